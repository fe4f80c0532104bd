"""The Arnoldi factorization ``A V = V H + rest b^H`` of any square ``A``, as an object that can be taken up again.

``V`` has orthonormal columns (held as rows); ``H = V^H A V`` is small: upper Hessenberg until the first restart, then a
Krylov-Schur matrix (Stewart 2001, SIAM J. Matrix Anal. Appl. 23): a triangular block of the wanted Ritz values with one
row below it. Each step makes one product. Used by ``radius.py`` through ``search.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.spectral.certify import LogProduct
from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.ritz import Ritz, unscaled
from implicitgrad.spectral.space import Host, Space

__all__ = ["Arnoldi"]


class Arnoldi:
    """A growing Arnoldi factorization, one for each system of a batch.

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
        ``H``, in double precision.
    residual : ndarray, shape (s,)
        Norm of the rest of ``A v_k`` outside ``V``.
    broken : ndarray of bool, shape (s,)
        Where that rest is rounding: ``V`` is invariant, and the eigenvalues of ``H`` are some of ``A``'s.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> space = Space("example", ig.DenseOperator(np.array([[0.0, -2.0], [2.0, 0.0]])))
    >>> process = Arnoldi(space, space.start, most=2)
    >>> for _ in range(2):
    ...     process.step()
    >>> np.abs(process.ritz("dominant").shown[0]).round(12)
    array([2., 2.])
    """

    directed = False

    def __init__(self, space: Space, start: Array, most: int) -> None:
        self.space = space
        self.frame = Frame(space, space.domain, most)
        self.small = np.zeros((space.systems, 0, 0), space.dtype)
        self.mismatch = np.zeros(space.systems)
        self.residual = np.full(space.systems, np.inf)
        self.broken = np.zeros(space.systems, bool)
        self.norms = LogProduct(space.systems)  # of use to symmetric operators only
        self.restarted = False
        norm = space.norms(start)
        self._next = self.frame.normalized(start, norm, norm == 0)
        self._row = np.zeros((space.systems, 0), space.dtype)  # <v_next, A v_i> of the vectors held

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
        """Append the next vector ``v``, and form ``A v``: a column of ``H``, and the vector after it."""
        space, k = self.space, self.count
        v = space.keep(live, self._next)
        self.frame.append(v)
        rest, column, norm, broken = self.frame.split(space.matvec(v))
        space.seen(np.hypot(norm, np.linalg.norm(column, axis=-1)))
        small = np.zeros((space.systems, k + 1, k + 1), space.dtype)
        small[:, :k, :k] = self.small
        small[:, k, :k] = self._row
        small[:, : k + 1, k] = column
        self.small = small
        self.residual, self.broken = norm, broken
        self._next = self.frame.normalized(rest, norm, broken & live)
        self._row = np.zeros((space.systems, k + 1), space.dtype)
        self._row[:, k] = np.where(broken, 0.0, norm)

    def look(self, ritz: Ritz | None) -> None:
        """Do nothing: the rest of the last product is the residual already."""

    def ritz(self, which: str, count: int | None = None) -> Ritz:
        """Return the eigenpairs of ``H`` (of its leading block) by falling modulus, each with its condition number."""
        small = self.small if count is None else self.small[:, :count, :count]
        small, power = unscaled(small)
        values, y = np.linalg.eig(small)
        values, y = values.astype(complex) * power, y.astype(complex)
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        values, y = np.take_along_axis(values, order, -1), np.take_along_axis(y, order[:, None, :], -1)
        y = y / np.linalg.norm(y, axis=-2, keepdims=True)
        return Ritz(np.abs(values), y, None, np.abs(y[:, -1, :]), _conditions(y), values)

    def restart(self, ritz: Ritz) -> None:
        """Shrink to a half: the invariant subspace of the dominant eigenvalues of ``H``.

        With a third, the search on matrices whose eigenvalues fill a disc settled on a smaller one now and then.
        """
        keep = max(2, self.count // 2)
        scaled, power = unscaled(self.small)
        turns = [_dominant_schur(h, keep) for h in scaled]
        q, small = (np.stack(parts) for parts in zip(*turns, strict=True))
        self.frame.recombine(q)
        self.small = small * power[:, :, None]
        # H is no longer e_k^H-coupled: the rest of A v_k is shared among the vectors that are kept.
        self._row = np.where(self.broken, 0.0, self.residual)[:, None] * q[:, -1, :]
        self.restarted = True

    def form(self, ritz: Ritz) -> tuple[Array, Array]:
        """Return real and imaginary part of the wanted Ritz vector; of a complex operator the vector, and zero."""
        y = ritz.right[:, :, 0]
        if self.space.is_complex:
            return self.frame.combine(y), self.space.domain
        return self.frame.combine(y.real), self.frame.combine(y.imag)


def _conditions(y: Host) -> Host:
    """Return ``norm(left) norm(right) / |left^H right|`` of each eigenvalue, infinite where ``y`` is singular."""
    conditions = np.full(y.shape[:1] + y.shape[2:], np.inf)
    for i, vectors in enumerate(y):
        try:
            conditions[i] = np.linalg.norm(np.linalg.inv(vectors), axis=-1)
        except np.linalg.LinAlgError:
            continue  # defective: a first-order bound does not exist
    return conditions


def _dominant_schur(h: Host, keep: int) -> tuple[Host, Host]:
    """Return ``Q (m, keep)`` and ``S (keep, keep)`` with ``H Q = Q S`` for the dominant eigenvalues of ``H``.

    By deflation: rotate an eigenvector of the trailing block to the front, again and again. Each turn is unitary, so
    the error is that of one eigenvector, also where eigenvectors are nearly parallel. Of a real matrix a complex pair
    gives two real columns; where only one is left, it stays zero, a dimension that nothing leads to.
    """
    m = len(h)
    turned, q = h.copy(), np.eye(m, dtype=h.dtype)
    done = 0
    while done < keep:
        values, vectors = np.linalg.eig(turned[done:, done:])
        i = int(np.argmax(np.abs(values)))
        x: Any = vectors[:, [i]]
        if not np.iscomplexobj(h):
            pair = abs(np.imag(values[i])) > 0
            if pair and done + 2 > keep:
                break
            x = np.concatenate([x.real, x.imag], axis=1) if pair else x.real
        z = np.linalg.qr(x, mode="complete")[0]
        turned[:, done:] = turned[:, done:] @ z
        turned[done:, :] = z.conj().T @ turned[done:, :]
        q[:, done:] = q[:, done:] @ z
        done += x.shape[1]
        turned[done:, :done] = 0.0
    kept, small = q[:, :keep].copy(), turned[:keep, :keep].copy()
    kept[:, done:], small[done:, :], small[:, done:] = 0.0, 0.0, 0.0
    return kept, small
