"""The Lanczos factorization ``A V = V T + rest e_k^H`` of a symmetric ``A``, as an object that can be taken up again.

``V`` has orthonormal columns (held as rows), ``T`` is small and Hermitian: tridiagonal until the first restart, then
with an arrow where the kept Ritz vectors meet the first new one (thick restart: Wu & Simon 2000, SIAM J. Matrix Anal.
Appl. 22). Every vector is orthogonalized against all the others, twice where once is not enough, and what that takes
away is part of ``T``; so there are no ghost copies, and an ``A`` that is not symmetric gives itself away
(``mismatch``).

Each step makes one product. Used by ``extremal.py`` through ``search.py``.
"""

from __future__ import annotations

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.spectral.certify import LogProduct
from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.ritz import Ritz, unscaled
from implicitgrad.spectral.space import Host, Space

__all__ = ["Lanczos"]


class Lanczos:
    """A growing Lanczos factorization of ``A = A^H``, one for each system of a batch.

    Parameters
    ----------
    space : Space
        The operator.
    start : array, shape (..., n)
        First vector, of any length.
    most : int
        The most vectors held at a time. At the cap, ``restart`` makes room.

    Attributes
    ----------
    frame : Frame
        ``V``.
    small : ndarray, shape (s, k, k)
        ``V^H A V`` as the Gram-Schmidt coefficients gave it: column ``j`` belongs to ``A v_j``. Upper triangle and
        diagonal are what ``T`` is made of.
    residual : ndarray, shape (s,)
        Norm of the rest of ``A v_k`` outside ``V``.
    norms : LogProduct
        Product of the subdiagonal of ``T``, the last rest included; it means something before the first restart.
    broken : ndarray of bool, shape (s,)
        Where that rest is rounding: ``V`` is invariant.
    mismatch : ndarray, shape (s,)
        The largest relative difference seen between ``<v_i, A v_k>`` and the conjugate of ``<v_k, A v_i>``.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.diag([4.0, 3.0, 2.0, 1.0]), symmetric=True)
    >>> space = Space("example", A)
    >>> process = Lanczos(space, space.start, most=4)
    >>> for _ in range(4):
    ...     process.step()
    >>> process.ritz("smallest").values[0].round(12)
    array([1., 2., 3., 4.])
    """

    directed = False

    def __init__(self, space: Space, start: Array, most: int) -> None:
        self.space = space
        self.frame = Frame(space, space.domain, most)
        self.small = np.zeros((space.systems, 0, 0), space.dtype)
        self.mismatch = np.zeros(space.systems)
        self.residual = np.full(space.systems, np.inf)
        self.broken = np.zeros(space.systems, bool)
        self.norms = LogProduct(space.systems)
        self.restarted = False
        norm = space.norms(start)
        self._next = self.frame.normalized(start, norm, norm == 0)
        self._row = np.zeros((space.systems, 0), space.dtype)  # <v_next, A v_i> by the steps before

    @property
    def count(self) -> int:
        """Vectors held."""
        return self.frame.count

    @property
    def full(self) -> bool:
        """Whether the cap is reached."""
        return bool(self.count >= self.frame.most)

    def step(self, live: Host | None = None) -> None:
        """Make one step: one product."""
        self.grow(np.ones(self.space.systems, bool) if live is None else live)

    def grow(self, live: Host) -> None:
        """Append the next vector ``v``, and form ``A v``: a column of ``T``, and the vector after it."""
        space, k = self.space, self.count
        v = space.keep(live, self._next)
        self.frame.append(v)
        rest, column, norm, broken = self.frame.split(space.matvec(v))
        space.seen(np.hypot(norm, np.linalg.norm(column, axis=-1)))
        gap = np.linalg.norm(column[:, :k] - self._row.conj(), axis=-1) + np.abs(column[:, k].imag)
        self.mismatch = np.fmax(self.mismatch, np.where(live, gap / np.where(space.norm > 0, space.norm, 1.0), 0.0))
        small = np.zeros((space.systems, k + 1, k + 1), space.dtype)
        small[:, :k, :k] = self.small
        small[:, : k + 1, k] = column
        small[:, k, :k] = column[:, :k].conj()
        self.small = small
        self.residual, self.broken = norm, broken
        # A rest of rounding may hide a value that the start has little of: it counts as large as it may be.
        rounding = 8 * space.eps * space.norm
        self.norms.multiply(np.where(broken, rounding, norm))
        self._next = self.frame.normalized(rest, norm, broken & live)
        self._row = np.zeros((space.systems, k + 1), space.dtype)
        self._row[:, k] = np.where(broken, 0.0, norm)

    def look(self, ritz: Ritz | None) -> None:
        """Do nothing: the rest of the last product is the residual already."""

    def ritz(self, which: str, count: int | None = None) -> Ritz:
        """Return the eigenpairs of ``T`` (of its leading block), the wanted end first."""
        small = self.small if count is None else self.small[:, :count, :count]
        small, power = unscaled(small)
        values, y = np.linalg.eigh(small, UPLO="U")
        values = values * power
        if which == "largest":
            values, y = values[:, ::-1], y[:, :, ::-1]
        return Ritz(values, y, None, np.abs(y[:, -1, :]))

    def restart(self, ritz: Ritz) -> None:
        """Shrink to the half of the Ritz vectors next to the wanted end; the pending next vector stays what it is."""
        keep = max(1, self.count // 2)
        y = ritz.right[:, :, :keep]
        self.frame.recombine(y)
        self.small = np.zeros((self.space.systems, keep, keep), self.space.dtype)
        diagonal = np.arange(keep)
        self.small[:, diagonal, diagonal] = ritz.values[:, :keep]
        self._row = np.where(self.broken, 0.0, self.residual)[:, None] * y[:, -1, :]
        self.restarted = True

    def form(self, ritz: Ritz) -> tuple[Array, None]:
        """Return the wanted Ritz vector ``V y``, and no left one."""
        return self.frame.combine(ritz.right[:, :, 0]), None
