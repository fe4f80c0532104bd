"""An orthonormal set of vectors that grows by Gram-Schmidt, twice where once is not enough, and can be recombined.

Every factorization of this folder stands on it. Classical Gram-Schmidt is two matrix-vector products with the basis; a
second pass makes it orthogonal to working precision (Giraud, Langou, Rozloznik & van den Eshof 2005, "twice is
enough"), and what it takes away is added to the coefficients, so that they are those of the vectors as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, Basis
from implicitgrad.spectral.space import Host, Space

__all__ = ["Frame"]

_TWICE = 0.5  # 1/sqrt(2) squared: Daniel, Gragg, Kaufman & Stewart 1976 repeat a projection that took more than this
_BREAKDOWN = 8  # a rest of a few eps is rounding: the space is invariant


class Frame:
    """Orthonormal vectors ``q_0 .. q_{k-1}`` of the shape of ``like``.

    Parameters
    ----------
    space : Space
        The computation: its backend, norms and fresh directions.
    like : array, shape (..., n)
        A vector like those that will be held.
    most : int
        No more than this many at a time.
    """

    def __init__(self, space: Space, like: Array, most: int) -> None:
        self.space, self.like, self.most = space, like, min(most, like.shape[-1])
        self.basis = Basis(space.backend, like, self.most)

    @property
    def count(self) -> int:
        """Number of vectors held."""
        return self.basis.count

    def split(self, x: Array) -> tuple[Array, Host, Host, Host]:
        """Return ``rest, coefficients (s, k), norm of the rest (s,), broken (s,)`` with ``x = Q coefficients + rest``.

        ``broken`` says where the rest is rounding, measured against ``x`` and against the operator.
        """
        space = self.space
        coefficients = np.zeros((space.systems, self.count), space.dtype)
        if self.count:
            x, taken = self.basis.project_out(x)
            coefficients = space.hosted(taken).astype(space.dtype)
        left = space.norms(x)
        took = np.linalg.norm(coefficients, axis=-1)
        if self.count and (left**2 < _TWICE * (left**2 + took**2)).any():
            x, taken = self.basis.project_out(x)
            coefficients = coefficients + space.hosted(taken)
            left = space.norms(x)
        scale = np.fmax(np.hypot(left, took), space.norm)
        return x, coefficients, left, left <= _BREAKDOWN * space.eps * scale

    def fresh(self) -> Array:
        """Return a random unit vector orthogonal to all of them."""
        space = self.space
        x = space.random(self.like)
        for _ in range(2):
            if self.count:
                x, _ = self.basis.project_out(x)
            x = space.times(_inverse(space.norms(x)), x)
        return x

    def normalized(self, x: Array, norm: Host, broken: Host) -> Array:
        """Return ``x / norm``; where that is rounding, a fresh direction, if the space has one left."""
        x = self.space.times(_inverse(np.where(broken, 0.0, norm)), x)
        if broken.any() and self.count < self.like.shape[-1]:
            x = self.space.select(broken, self.fresh(), x)
        return x

    def append(self, x: Array) -> None:
        """Add a unit vector that is orthogonal to all of them."""
        self.basis.append(x)

    def combine(self, coefficients: Host) -> Array:
        """Return ``sum_i coefficients[:, i] q_i``, one combination a system."""
        space = self.space
        weights = coefficients[0] if space.single else coefficients.reshape(*space.batch, -1)
        return self.basis.combine(weights, space.backend.zeros(tuple(self.like.shape), self.like))

    def recombine(self, coefficients: Host) -> None:
        """Replace the vectors by ``sum_i coefficients[:, i, j] q_i``, ``j = 0 .. count - 1``."""
        space = self.space
        columns = coefficients[0] if space.single else coefficients.reshape(*space.batch, *coefficients.shape[1:])
        self.basis = self.basis.recombined(columns)

    def defect(self) -> float:
        """Return the largest entry of ``Q^H Q - I`` over the batch: how far orthogonality has been lost."""
        rows = self.basis.to_numpy()
        gram = np.matmul(rows.conj(), np.swapaxes(rows, -1, -2))
        return float(np.abs(gram - np.eye(self.count)).max(initial=0.0))


def _inverse(values: Host) -> Host:
    """Return ``1 / values``, 0 where that is not finite."""
    with np.errstate(all="ignore"):
        inverse: Any = 1.0 / values
    return np.where(np.isfinite(inverse) & (values != 0), inverse, 0.0)
