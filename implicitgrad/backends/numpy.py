"""NumPy arrays, natively: ``vdot`` and plain operators cost a fraction of the wrapped calls of the array API."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends.base import Array, Backend, Scalar

__all__ = ["BACKEND", "NumpyBackend"]


# Outside this range a single-precision sum of squares has lost digits to under- or overflow; it is redone in double.
_TINY, _HUGE = 1e-30, 1e30


class NumpyBackend(Backend):
    """Arithmetic on ``numpy.ndarray``."""

    name = "numpy"

    def is_array(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def dtype_name(self, dtype: Any) -> str:
        return str(np.dtype(dtype).name)

    def device(self, x: Array) -> Any:
        return None

    def inner(self, x: Array, y: Array) -> Scalar:
        if x.ndim == 1:
            value = np.vdot(x, y).item()
            if x.itemsize < 8 * (1 + np.iscomplexobj(x)) and not _TINY < abs(value) < _HUGE:
                value = np.vdot(x.astype(np.result_type(x, np.float64)), y).item()
            return value
        values: Any = np.einsum("...i,...i->...", x.conj(), y)
        if x.dtype.char in "fF":
            double = np.result_type(x, np.float64)
            if not bool(((np.abs(values) > _TINY) & (np.abs(values) < _HUGE)).all()):
                values = np.einsum("...i,...i->...", x.conj(), y, dtype=double)
            values = np.asarray(values, double)
        return values[..., None]

    def squared_norm(self, x: Array) -> Scalar:
        return self.inner(x, x).real

    def norm(self, x: Array) -> Scalar:
        return self.squared_norm(x) ** 0.5

    def max_abs(self, x: Array) -> Any:
        largest = np.abs(x).max(axis=-1, initial=0.0)
        return float(largest) if x.ndim == 1 else largest.astype(float)

    def to_host(self, scalar: Scalar) -> Any:
        return scalar if isinstance(scalar, float) else scalar[..., 0]

    def from_host(self, values: Any, like: Array) -> Scalar:
        return values if like.ndim == 1 else np.asarray(values, float)[..., None]

    def quotient(self, numerator: Scalar, denominator: Scalar) -> Scalar:
        if isinstance(denominator, float | complex):
            return numerator / denominator if denominator else 0.0
        out = np.zeros(np.broadcast(numerator, denominator).shape, np.result_type(numerator, denominator))
        with np.errstate(all="ignore"):  # a system with NaN or Inf has a status for it, and needs no warning
            return np.divide(numerator, denominator, out=out, where=denominator != 0)

    def axpy(self, alpha: Scalar, x: Array, y: Array) -> Array:
        if x.ndim > 1:
            alpha = alpha.astype(x.dtype, copy=False)
        return alpha * x + y

    def times(self, alpha: Scalar, x: Array) -> Array:
        return (alpha if x.ndim == 1 else alpha.astype(x.dtype, copy=False)) * x

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return np.zeros(shape, like.dtype)

    def zeros_of(self, size: int, dtype_name: str) -> Array:
        return np.zeros(size, dtype_name)

    def copy(self, x: Array) -> Array:
        return np.array(x)

    def equal(self, x: Array, y: Array) -> bool:
        return np.array_equal(x, y)

    def select(self, mask: Any, x: Array, y: Array) -> Array:
        return np.where(np.asarray(mask)[..., None], x, y)

    def times_power_of_two(self, x: Array, exponent: Any) -> Array:
        if x.ndim > 1:
            exponent = np.asarray(exponent)[..., None]
        if np.iscomplexobj(x):
            scaled = np.empty_like(x)
            scaled.real, scaled.imag = np.ldexp(x.real, exponent), np.ldexp(x.imag, exponent)
            return scaled
        return np.ldexp(x, exponent)

    def random_like(self, x: Array, seed: int) -> Array:
        draw = np.random.default_rng(seed).standard_normal((2, *x.shape))
        return (draw[0] + 1j * draw[1] if np.iscomplexobj(x) else draw[0]).astype(x.dtype)

    def astype(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def from_numpy(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        return values.astype(like.dtype)

    def empty_rows(self, count: int, like: Array) -> Array:
        return np.empty((*like.shape[:-1], count, like.shape[-1]), like.dtype)

    def set_row(self, rows: Array, index: int, x: Array) -> Array:
        rows[..., index, :] = x
        return rows

    def row_products(self, rows: Array, x: Array) -> Array:
        if np.iscomplexobj(x):  # conj(rows) would copy the basis; conj(rows @ conj(x)) copies one vector
            return np.matmul(rows, x.conj()[..., None])[..., 0].conj()
        return rows @ x if x.ndim == 1 else np.matmul(rows, x[..., None])[..., 0]

    def subtract_rows(self, x: Array, coefficients: Array, rows: Array) -> Array:
        if x.ndim == 1:
            return x - coefficients @ rows
        return x - np.matmul(coefficients[..., None, :], rows)[..., 0, :]

    def mix_rows(self, coefficients: Array, rows: Array) -> Array:
        return np.matmul(coefficients, rows)

    def apply_matrix(self, matrix: Array, x: Array) -> Array:
        if matrix.ndim == 2:
            return x @ matrix.T
        return np.matmul(matrix, x[..., None])[..., 0]

    def conjugate_transpose(self, matrix: Array) -> Array:
        return np.swapaxes(matrix, -1, -2).conj()


BACKEND = NumpyBackend()
