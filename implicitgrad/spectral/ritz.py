"""What a projected problem says: Ritz values and vectors, the wanted end first, and how far they may be from the truth.

Plain arithmetic on host arrays, one row a system; shared by the factorizations and the loop around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from implicitgrad.spectral.space import Host

__all__ = ["Ritz", "unscaled"]

_NODE = (
    0.5  # the Lehmann bound is taken half-way to the next Ritz value, which overestimates the gap until it converges
)


def unscaled(small: Host) -> tuple[Host, Host]:
    """Return small matrices ``(s, k, k)`` divided by the powers of two ``(s, 1)`` next to their largest entries.

    LAPACK scales by norms, which are no powers of two, so ``2 A`` would not have exactly twice the values of ``A``.
    Matrices with NaN or Inf become zero: their systems have ended.
    """
    sound = np.isfinite(small).all(axis=(-2, -1), keepdims=True)
    small = np.where(sound, small, 0.0)
    exponent = np.frexp(np.abs(small).max(axis=(-2, -1), initial=0.0))[1]
    power = np.ldexp(1.0, exponent)[:, None]
    return small / power[:, :, None], power


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs, or triplets, of each system.

    Attributes
    ----------
    values : ndarray, shape (s, k)
        Ritz values, the wanted one first, its neighbour second.
    right : ndarray, shape (s, k, k)
        Coefficients of the (right) Ritz vectors in the basis, a column each.
    left : ndarray, shape (s, k, k), or None
        Those of the left ones; None for eigenvalues.
    tails : ndarray, shape (s, k)
        What part of the factorization's rest each Ritz pair has as its residual.
    conditions : ndarray, shape (s, k), or None
        Condition numbers of the eigenvalues, ``norm(left) norm(right) / |left^H right|``; None: all one, as they are
        for symmetric matrices and for singular values.
    shown : ndarray of complex, shape (s, k), or None
        The eigenvalues themselves, where ``values`` are their moduli.
    """

    values: Host
    right: Host
    left: Host | None
    tails: Host
    conditions: Host | None = None
    shown: Host | None = None

    @property
    def neighbour(self) -> Host:
        """The second value, NaN where there is none."""
        values: Host = self.values[:, 1] if self.values.shape[1] > 1 else np.full(len(self.values), np.nan)
        return values

    @property
    def apart(self) -> Host:
        """Distances of the other values to the wanted one; for singular values, of the squares."""
        apart: Host = np.abs(self.values[:, 1:] - self.values[:, :1])
        return apart if self.left is None else apart * (self.values[:, 1:] + self.values[:, :1])

    @property
    def sensitivity(self) -> Host:
        """Condition number of the wanted value."""
        ones: Host = np.ones(len(self.values)) if self.conditions is None else self.conditions[:, 0]
        return ones

    def residual(self, rest: Host, directed: bool) -> Host:
        """Return the residual norm of the wanted pair; in a directed factorization the rest itself."""
        return rest if directed else rest * self.tails[:, 0]

    def distance(self, rest: Host, directed: bool) -> Host:
        """Return ``D`` with ``error of the wanted value = r^2 / D``, by the whole projected problem and a gap.

        For singular values: ``D`` for the squares, with ``relative error of sigma = r^2 / (2 D)``.

        Notes
        -----
        If no other eigenvalue lies below ``rho``, then the smallest is at least the smallest root ``x`` of

            ``a - x - sum_j c_j^2 / (theta_j - x) = 0``,  ``a = rho + sum_j c_j^2 / (theta_j - rho)``,

        with the Ritz values ``theta_j`` and their residual norms ``c_j``: the matrix of the next step, its last
        diagonal entry replaced so that ``rho`` is an eigenvalue (Lehmann 1949; Golub 1973, Gauss-Radau; Beattie 1998).
        Solved for ``theta_0 - x = c_0^2 / D``. Keeping ``j = 0`` alone gives ``D = rho - theta_0``, Kato-Temple, which
        on slowly converging problems is too small by a factor of a hundred: most of the residual lies far up in the
        spectrum. Here ``rho`` is the middle between the first two Ritz values.
        """
        if self.values.shape[1] < 2:
            return np.zeros(len(self.values))
        values, apart = self.values, self.apart
        with np.errstate(all="ignore"):
            rest = rest / self.tails[:, 0] if directed else rest
            coupling = rest[:, None] * self.tails[:, 1:] * (values[:, 1:] if self.left is not None else 1.0)
            node = _NODE * apart[:, :1]
            terms = coupling**2 / ((apart - node) * apart)
            distance = node[:, 0] * (1.0 + terms.sum(axis=-1))
        finite: Host = np.where(np.isfinite(distance), distance, node[:, 0])
        return finite
