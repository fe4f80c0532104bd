"""The Golub-Kahan factorization ``A V = U B``, ``A^H U = V B^H + rest``, as an object that can be taken up again.

``V`` and ``U`` have orthonormal columns (held as rows), ``B`` is upper triangular and small; before the first restart
it is bidiagonal (Golub & Kahan 1965). Singular values of ``B`` are Ritz values of ``A``, and the smallest is the
minimum of ``norm(A v)`` over the span of ``V``, since the range of ``A V`` is in that of ``U``: an upper bound on
``sigma_min`` that falls with every step. ``A^H A``, whose formation loses half of the digits, appears nowhere.

Each step makes one product with ``A`` and one with ``A^H``. Used by ``singular.py`` through ``search.py``.
"""

from __future__ import annotations

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.spectral.certify import LogProduct
from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.ritz import Ritz, unscaled
from implicitgrad.spectral.space import Host, Space

__all__ = ["GolubKahan"]

_WORKING = 32  # vectors after the first restart: 16 are as good (docs/spectrum.md), and an SVD of B is made every step


class GolubKahan:
    """A growing Golub-Kahan factorization of ``A``, one for each system of a batch.

    Parameters
    ----------
    space : Space
        The operator.
    start : array, shape (..., n)
        First right vector, of any length.
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
    norms : LogProduct
        Product of the subdiagonal of ``B^H B``, the last rest included; it means something before the first restart.
    broken : ndarray of bool, shape (s,)
        Where that rest is rounding: ``V`` holds all that the start vector leads to, or the triplet is exact.
    mismatch : ndarray, shape (s,)
        The largest relative difference seen between ``V^H A^H U`` and ``B^H``: beyond rounding, the products are not
        those of a matrix and its adjoint.
    directed : bool
        Whether the next right vector is taken along the wanted triplet's residual: after the first restart.

    Notes
    -----
    The next right vector comes from ``A^H U p``. With ``p = e_k`` it is the classical recurrence; with ``p`` a left
    singular vector of ``B`` the expansion is along that triplet's residual (Goldenberg, Stathopoulos & Romero 2019,
    SIAM J. Sci. Comput. 41, "GKD"). Without a restart both span the same Krylov space. After one the second works
    whatever was kept, so a vector of the step before can be kept too, and with it a space of 16 vectors loses next to
    nothing against one that is never restarted (Stathopoulos 2007, "locally optimal restarting").

    Examples
    --------
    Two steps, then two more: the same factorization as four at once.

    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> space = Space("example", ig.DenseOperator(np.diag([4.0, 3.0, 2.0, 1.0, 0.5])), adjoint=True)
    >>> process = GolubKahan(space, space.start, most=5)
    >>> for _ in range(2):
    ...     process.step()
    >>> first = process.small[0]
    >>> for _ in range(2):
    ...     process.step()
    >>> bool(np.allclose(process.small[0, :2, :2], first)), bool(np.allclose(np.tril(process.small[0], -1), 0))
    (True, True)
    """

    def __init__(self, space: Space, start: Array, most: int) -> None:
        self.space = space
        self.right = Frame(space, space.domain, most)
        self.left = Frame(space, space.range, most)
        self.most = self.right.most
        self.small = np.zeros((space.systems, 0, 0), space.dtype)
        self.mismatch = np.zeros(space.systems)
        self.residual = np.full(space.systems, np.inf)
        self.broken = np.zeros(space.systems, bool)
        self.norms = LogProduct(space.systems)
        self.directed = self.restarted = False
        self._live = np.ones(space.systems, bool)
        norm = space.norms(start)
        self._next = self.right.normalized(start, norm, norm == 0)
        self._current: Host | None = None  # the wanted y of this step, and of the one before, for the next restart
        self._before: Host | None = None

    @property
    def count(self) -> int:
        """Vectors held in ``V``."""
        return self.right.count

    @property
    def full(self) -> bool:
        """Whether the cap is reached."""
        return bool(self.count >= self.most)

    def step(self, live: Host | None = None) -> None:
        """Make one step of the classical recurrence: a product with ``A`` and one with ``A^H``."""
        self.grow(np.ones(self.space.systems, bool) if live is None else live)
        self.look(None)

    def grow(self, live: Host) -> None:
        """Append the next right vector ``v``, and ``A v`` orthogonalized to ``U``: a column of ``B``."""
        space, k = self.space, self.count
        self._live = live
        v = space.keep(live, self._next)
        self.right.append(v)
        rest, coefficients, norm, broken = self.left.split(space.matvec(v))
        sound = np.isfinite(norm)
        space.seen(np.hypot(norm, np.linalg.norm(coefficients, axis=-1)))
        # Where A v lies in the range of U, B is singular, and any u that is orthogonal to U completes it.
        self.left.append(space.keep(live & sound, self.left.normalized(rest, norm, broken & live)))
        small = np.zeros((space.systems, k + 1, k + 1), space.dtype)
        small[:, :k, :k] = self.small
        small[:, :k, k] = coefficients
        small[:, k, k] = np.where(broken, 0.0, norm)
        self.small = small

    def look(self, ritz: Ritz | None) -> None:
        """Form ``A^H U p``: its rest outside ``V`` is the next right vector, and ``residual`` its norm.

        Parameters
        ----------
        ritz : Ritz or None
            In a directed factorization, ``p`` is its wanted left vector; else ``e_k``.
        """
        space, k = self.space, self.count
        if self.directed and ritz is not None and ritz.left is not None:
            direction = ritz.left[:, :, 0]
            self._before, self._current = self._current, ritz.right[:, :, 0]
        else:
            direction = np.zeros((space.systems, k), space.dtype)
            direction[:, -1] = 1.0
        rest, coefficients, norm, broken = self.right.split(space.rmatvec(self.left.combine(direction)))
        expected = np.matmul(np.swapaxes(self.small, -1, -2).conj(), direction[..., None])[..., 0]
        space.seen(np.hypot(norm, np.linalg.norm(coefficients, axis=-1)))
        gap = np.linalg.norm(coefficients - expected, axis=-1)
        self.mismatch = np.fmax(self.mismatch, gap / np.where(space.norm > 0, space.norm, 1.0))
        self.residual, self.broken = norm, broken
        # A rest of rounding may hide a value that the start has little of: it counts as large as it may be.
        rounding = 8 * space.eps * space.norm
        self.norms.multiply(np.where(broken, rounding, norm) * np.abs(self.small[:, -1, -1]))
        self._next = self.right.normalized(rest, norm, broken & self._live)

    def ritz(self, which: str, count: int | None = None) -> Ritz:
        """Return the SVD of ``B`` (of its leading block), the wanted end first."""
        small = self.small if count is None else self.small[:, :count, :count]
        small, power = unscaled(small)
        p, values, yh = np.linalg.svd(small)
        values, y = values * power, np.swapaxes(yh, -1, -2).conj()
        if which == "smallest":
            p, values, y = p[:, :, ::-1], values[:, ::-1], y[:, :, ::-1]
        return Ritz(values, y, p, np.abs(p[:, -1, :]))

    def restart(self, ritz: Ritz) -> None:
        """Shrink to a third: the Ritz vectors next to the wanted end, and the wanted one of the step before.

        The pending next vector is orthogonal to all of the old ``V`` and stays what it is.
        """
        # Two at least: where the neighbour is thrown away, the gap is that to a value further up.
        kept = ritz.right[:, :, : max(2, self.count // 3 if self.count <= _WORKING else _WORKING // 3)]
        if self.directed and self._before is not None:
            padded = np.zeros((len(kept), self.count, 1), kept.dtype)
            padded[:, : self._before.shape[-1], 0] = self._before
            kept = np.concatenate([kept, padded], axis=-1)
        kept = np.linalg.qr(kept)[0]
        small, power = unscaled(np.matmul(self.small, kept))
        turned, small = np.linalg.qr(small)
        self.right.recombine(kept)
        self.left.recombine(turned)
        self.small = small * power[:, :, None]
        self._current = self._before = None
        self.directed = self.restarted = True
        self.most = min(self.most, _WORKING)

    def form(self, ritz: Ritz) -> tuple[Array, Array]:
        """Return the wanted right and left Ritz vectors, ``V y`` and ``U p``."""
        assert ritz.left is not None
        return self.right.combine(ritz.right[:, :, 0]), self.left.combine(ritz.left[:, :, 0])
