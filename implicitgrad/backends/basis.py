"""A growing set of vectors, one row a vector, and the two products that Gram-Schmidt needs of it.

Rows live in blocks of 16, 16, 32, 64, ... rows: room doubles when it runs out, so k vectors need about log2(k / 16)
matrix-vector products a pass, and nothing is ever copied to a larger place. On a CPU only rows that have been written
take memory, so a basis of k vectors costs k vectors.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from implicitgrad.backends.base import Array, Backend

__all__ = ["Basis"]

_FIRST_BLOCK = 16  # most solves end within 16 steps and see one block; fewer rows would double sooner for nothing


class Basis:
    """Vectors ``q_0 .. q_{k-1}``, each of shape ``(..., n)``, appended one by one.

    Parameters
    ----------
    backend : Backend
        Arithmetic of the vectors' library.
    like : array
        A vector of the shape, dtype and device that all of them have.
    most : int
        No more than this many vectors will be appended; the last block is cut to fit.
    """

    def __init__(self, backend: Backend, like: Array, most: int) -> None:
        self._backend = backend
        self._like = like
        self._most = most
        self._blocks: list[Array] = []
        self._sizes: list[int] = []
        self._rows: list[Array] = []  # views of the rows that are filled
        self._room = 0
        self.count = 0

    def append(self, x: Array) -> None:
        """Add ``x`` as the last row."""
        if self.count == self._room:
            rows = min(max(_FIRST_BLOCK, self._room), self._most - self._room)
            self._blocks.append(self._backend.empty_rows(rows, self._like))
            self._rows.append(None)
            self._sizes.append(0)
            self._room += rows
        self._blocks[-1] = self._backend.set_row(self._blocks[-1], self._sizes[-1], x)
        self._sizes[-1] += 1
        self._rows[-1] = self._backend.first_rows(self._blocks[-1], self._sizes[-1])
        self.count += 1

    def project_out(self, x: Array) -> tuple[Array, Any]:
        """Return ``x - Q Q^H x``, by classical Gram-Schmidt, and ``Q^H x`` as a host list, or array ``(..., k)``."""
        backend, rows = self._backend, self._rows
        if len(rows) == 1:
            coefficients = backend.row_products(rows[0], x)
            return backend.subtract_rows(x, coefficients, rows[0]), backend.to_host_list(coefficients)
        # All products before the first subtraction: one reduction over processes, and the classical process proper.
        parts = backend.block_products(rows, x)
        for coefficients, block in zip(parts, rows, strict=True):
            x = backend.subtract_rows(x, coefficients, block)
        hosted = [backend.to_host_list(part) for part in parts]
        return x, list(chain.from_iterable(hosted)) if x.ndim == 1 else np.concatenate(hosted, axis=-1)

    def combine(self, coefficients: np.ndarray[Any, Any], x: Array) -> Array:
        """Return ``x + sum_i coefficients[..., i] q_i``; the coefficients, on the host, may be fewer than the rows."""
        done = 0
        for block, size in zip(self._blocks, self._sizes, strict=True):
            part = -coefficients[..., done : done + size]
            if part.shape[-1]:
                rows = self._backend.first_rows(block, part.shape[-1])
                x = self._backend.subtract_rows(x, self._backend.coefficients(part, self._like), rows)
            done += size
        return x

    def recombined(self, coefficients: np.ndarray[Any, Any]) -> Basis:
        """Return a new basis of the vectors ``sum_i coefficients[..., i, j] q_i``, ``j = 0 .. m - 1``; on the host."""
        backend = self._backend
        fresh = Basis(backend, self._like, self._most)
        weights = np.swapaxes(coefficients, -1, -2)
        rows: Array = None
        done = 0
        for block, size in zip(self._rows, self._sizes, strict=True):
            part = backend.mix_rows(backend.coefficients(weights[..., done : done + size], self._like), block)
            rows = part if rows is None else rows + part
            done += size
        if rows is not None and weights.shape[-2]:
            fresh._blocks, fresh._rows, fresh._sizes = [rows], [rows], [weights.shape[-2]]
            fresh._room = fresh.count = weights.shape[-2]
        return fresh

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Return all rows on the host, ``(..., k, n)``."""
        return np.concatenate([self._backend.to_numpy(rows) for rows in self._rows], axis=-2)
