"""A growing set of vectors, one row a vector, and the two products that Gram-Schmidt needs of it.

Rows live in blocks of 16, 16, 32, 64, ... rows: room doubles when it runs out, so k vectors need about log2(k / 16)
matrix-vector products a pass, and nothing is ever copied to a larger place. On a CPU only rows that have been written
take memory, so a basis of k vectors costs k vectors.
"""

from __future__ import annotations

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
        self._room = 0
        self.count = 0

    def append(self, x: Array) -> None:
        """Add ``x`` as the last row."""
        if self.count == self._room:
            rows = min(max(_FIRST_BLOCK, self._room), self._most - self._room)
            self._blocks.append(self._backend.empty_rows(rows, self._like))
            self._sizes.append(0)
            self._room += rows
        self._blocks[-1] = self._backend.set_row(self._blocks[-1], self._sizes[-1], x)
        self._sizes[-1] += 1
        self.count += 1

    def project_out(self, x: Array) -> tuple[Array, np.ndarray[Any, Any]]:
        """Return ``x - Q Q^H x`` by classical Gram-Schmidt, and ``Q^H x`` on the host, ``(..., k)``."""
        backend = self._backend
        if len(self._blocks) == 1:
            coefficients = backend.row_products(self._blocks[0], self.count, x)
            return backend.subtract_rows(x, coefficients, self._blocks[0]), backend.to_numpy(coefficients)
        # All products before the first subtraction: block by block would be modified Gram-Schmidt over blocks, which
        # is as good but reads x once more from memory for each block.
        parts = [backend.row_products(b, s, x) for b, s in zip(self._blocks, self._sizes, strict=True)]
        for coefficients, rows in zip(parts, self._blocks, strict=True):
            x = backend.subtract_rows(x, coefficients, rows)
        return x, np.concatenate([backend.to_numpy(part) for part in parts], axis=-1)

    def combine(self, coefficients: np.ndarray[Any, Any], x: Array) -> Array:
        """Return ``x + sum_i coefficients[..., i] q_i``; the coefficients, on the host, may be fewer than the rows."""
        done = 0
        for rows, size in zip(self._blocks, self._sizes, strict=True):
            part = -coefficients[..., done : done + size]
            if part.shape[-1]:
                x = self._backend.subtract_rows(x, self._backend.from_numpy(part, self._like), rows)
            done += size
        return x
