"""The Golub-Kahan factorization ``A V = U B``, ``A^H U = V B^H + rest``, as an object that can be taken up again.

``V`` and ``U`` have orthonormal columns (held as rows), ``B`` is upper triangular and small; before the first restart
it is bidiagonal (Golub & Kahan 1965). Singular values of ``B`` are Ritz values of ``A``, and the smallest is the
minimum of ``norm(A v)`` over the span of ``V``, since the range of ``A V`` is in that of ``U``: an upper bound on
``sigma_min`` that falls with every step. ``A^H A``, whose formation loses half of the digits, appears nowhere.

Each step makes one product with ``A`` and one with ``A^H``. Used by ``singular.py``.
"""

from __future__ import annotations

import numpy as np

from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.space import Host, Space

__all__ = ["GolubKahan"]


class GolubKahan:
    """A growing Golub-Kahan factorization of ``A``, one for each system of a batch.

    Parameters
    ----------
    space : Space
        The operator and the start vector.
    most : int
        The most vectors that ``V``, and ``U``, hold at a time. At the cap, ``restart`` makes room.

    Attributes
    ----------
    right, left : Frame
        ``V`` and ``U``.
    small : ndarray, shape (s, k, k)
        ``B``, in double precision.
    residual : ndarray, shape (s,)
        Norm of the rest of ``A^H U p`` outside ``V`` for the last direction ``p``. Where ``p`` is a left singular
        vector of ``B``, that is the residual ``norm(A^H u - sigma v)`` of its triplet, not an estimate of it.
    broken : ndarray of bool, shape (s,)
        Where that rest is rounding: ``V`` holds all that the start vector leads to.
    mismatch : ndarray, shape (s,)
        The largest relative difference seen between ``V^H A^H U`` and ``B^H``: beyond rounding, the products are not
        those of a matrix and its adjoint.
    steps : int
        Steps made, over all restarts.

    Notes
    -----
    The next right vector comes from ``A^H U p``. With ``p = e_k`` (default) it is the classical recurrence; with ``p``
    a left singular vector of ``B`` the expansion is along that triplet's residual (Goldenberg, Stathopoulos & Romero
    2019, SIAM J. Sci. Comput. 41, "GKD"). Without a restart both span the same Krylov space; after one, the second
    works whatever was kept, so that vectors of the step before can be kept too (``restart``).
    """

    def __init__(self, space: Space, most: int) -> None:
        self.space = space
        self.right = Frame(space, space.domain, most)
        self.left = Frame(space, space.range, most)
        self.small = np.zeros((space.systems, 0, 0), space.dtype)
        self.steps = 0
        self.mismatch = np.zeros(space.systems)
        norm = space.norms(space.start)
        self._next = self.right.normalized(space.start, norm, norm == 0)
        self.residual = np.full(space.systems, np.inf)
        self.broken = np.zeros(space.systems, bool)

    @property
    def count(self) -> int:
        """Vectors held in ``V``."""
        return self.right.count

    @property
    def full(self) -> bool:
        """Whether the cap is reached."""
        return bool(self.count >= self.right.most)

    def grow(self, live: Host) -> None:
        """Append the next right vector ``v``, and ``A v`` orthogonalized to ``U``: a column of ``B``."""
        space, k = self.space, self.count
        v = space.keep(live, self._next)
        self.right.append(v)
        rest, coefficients, norm, broken = self.left.split(space.matvec(v))
        sound = np.isfinite(norm)
        space.seen(np.hypot(norm, np.linalg.norm(coefficients, axis=-1)))
        self.left.append(space.keep(live & sound, self.left.normalized(rest, norm, broken & live)))
        small = np.zeros((space.systems, k + 1, k + 1), space.dtype)
        small[:, :k, :k] = self.small
        small[:, :k, k] = coefficients
        small[:, k, k] = np.where(broken, 0.0, norm)
        self.small = small
        self.steps += 1

    def look(self, direction: Host | None = None) -> None:
        """Form ``A^H U p``: its rest outside ``V`` is the next right vector, and ``residual`` its norm.

        Parameters
        ----------
        direction : ndarray, shape (s, k), optional
            ``p``, a unit vector a system. Default: ``e_k``.
        """
        space, k = self.space, self.count
        if direction is None:
            direction = np.zeros((space.systems, k), space.dtype)
            direction[:, -1] = 1.0
        rest, coefficients, norm, broken = self.right.split(space.rmatvec(self.left.combine(direction)))
        expected = np.matmul(np.swapaxes(self.small, -1, -2).conj(), direction[..., None])[..., 0]
        space.seen(np.hypot(norm, np.linalg.norm(coefficients, axis=-1)))
        gap = np.linalg.norm(coefficients - expected, axis=-1)
        self.mismatch = np.fmax(self.mismatch, gap / np.where(space.norm > 0, space.norm, 1.0))
        self.residual, self.broken = norm, broken
        self._next = self.right.normalized(rest, norm, broken)

    def restart(self, right: Host) -> None:
        """Shrink ``V`` to the combinations in ``right`` ``(s, k, keep)``, orthonormal columns, and ``U`` to match.

        The pending next vector is orthogonal to all of the old ``V`` and stays what it is.
        """
        turned, small = np.linalg.qr(np.matmul(self.small, right))
        self.right.recombine(right)
        self.left.recombine(turned)
        self.small = small

    def triplets(self) -> tuple[Host, Host, Host]:
        """Return ``left (s, k, k), values (s, k) descending, right (s, k, k)``, the SVD of ``B``, columns each."""
        sound = np.isfinite(self.small).all(axis=(-2, -1), keepdims=True)
        p, values, yh = np.linalg.svd(np.where(sound, self.small, 0.0))
        return p, values, np.swapaxes(yh, -1, -2).conj()
