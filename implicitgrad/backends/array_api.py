"""Arrays of every other library that speaks the array API standard (JAX, CuPy, Dask, array-api-strict, ...)."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from implicitgrad.backends.base import Array, Backend, Scalar

__all__ = ["BACKEND", "ArrayApiBackend"]


class ArrayApiBackend(Backend):
    """Arithmetic through the array API standard; the namespace is found from each array."""

    name = "array_api"

    def is_array(self, x: Any) -> bool:
        return compat.is_array_api_obj(x)

    def dtype_name(self, dtype: Any) -> str:
        name = getattr(dtype, "name", None) or str(dtype)  # array-api-strict prints "array_api_strict.float32"
        return str(name).rpartition(".")[-1]

    def device(self, x: Array) -> Any:
        return compat.device(x)

    def inner(self, x: Array, y: Array) -> Scalar:
        xp = compat.array_namespace(x)
        value = xp.linalg.vecdot(x, y)
        if x.ndim > 1:
            return value[..., None]
        return complex(value) if xp.isdtype(x.dtype, "complex floating") else float(value)

    def squared_norm(self, x: Array) -> Scalar:
        return self.real(self.inner(x, x))

    def norm(self, x: Array) -> Scalar:
        return self.squared_norm(x) ** 0.5

    def real(self, scalar: Scalar) -> Scalar:
        if isinstance(scalar, float | complex):
            return scalar.real
        xp = compat.array_namespace(scalar)
        return xp.real(scalar) if xp.isdtype(scalar.dtype, "complex floating") else scalar

    def max_abs(self, x: Array) -> Any:
        if x.shape[-1] == 0:
            return 0.0 if x.ndim == 1 else np.zeros(x.shape[:-1])
        largest = compat.array_namespace(x).max(abs(x), axis=-1)
        return float(largest) if x.ndim == 1 else self.to_numpy(largest).astype(float)

    def to_host(self, scalar: Scalar) -> Any:
        return scalar if isinstance(scalar, float) else self.to_numpy(scalar)[..., 0]

    def from_host(self, values: Any, like: Array) -> Scalar:
        if like.ndim == 1:
            return values
        real = {"complex64": "float32", "complex128": "float64"}.get(self.dtype_name(like.dtype))
        xp = compat.array_namespace(like)
        dtype = getattr(xp, real) if real else like.dtype
        return xp.asarray(np.asarray(values), dtype=dtype, device=compat.device(like))[..., None]

    def quotient(self, numerator: Scalar, denominator: Scalar) -> Scalar:
        if isinstance(denominator, float | complex):
            return numerator / denominator if denominator else 0.0
        xp = compat.array_namespace(denominator)
        zero = denominator == 0
        return xp.where(
            zero, xp.zeros_like(denominator), numerator / xp.where(zero, xp.ones_like(denominator), denominator)
        )

    def axpy(self, alpha: Scalar, x: Array, y: Array) -> Array:
        return alpha * x + y

    def times(self, alpha: Scalar, x: Array) -> Array:
        return alpha * x

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return compat.array_namespace(like).zeros(shape, dtype=like.dtype, device=compat.device(like))

    def zeros_of(self, size: int, dtype_name: str) -> Array:
        return np.zeros(size, dtype_name)  # a dtype does not tell which of these libraries it is of

    def copy(self, x: Array) -> Array:
        return compat.array_namespace(x).asarray(x, copy=True)

    def equal(self, x: Array, y: Array) -> bool:
        return bool(compat.array_namespace(x).all(x == y))

    def select(self, mask: Any, x: Array, y: Array) -> Array:
        xp = compat.array_namespace(x)
        return xp.where(xp.asarray(np.asarray(mask), device=compat.device(x))[..., None], x, y)

    def times_power_of_two(self, x: Array, exponent: Any) -> Array:
        half = exponent // 2  # two factors, for 2**149 is no float32
        if x.ndim == 1:
            return x * 2.0**half * 2.0 ** (exponent - half)
        first, second = (np.exp2(np.asarray(part, float)) for part in (half, exponent - half))
        return x * self.from_host(first, x) * self.from_host(second, x)

    def random_like(self, x: Array, seed: int) -> Array:
        draw = np.random.default_rng(seed).standard_normal((2, *x.shape))
        is_complex = compat.array_namespace(x).isdtype(x.dtype, "complex floating")
        return self.from_numpy(draw[0] + 1j * draw[1] if is_complex else draw[0], x)

    def astype(self, x: Array, dtype: Any) -> Array:
        return compat.array_namespace(x).astype(x, dtype)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)  # libraries whose dtypes are their own have no half formats, the only ones asked for

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        if compat.is_cupy_array(x):
            return np.asarray(x.get())
        return np.from_dlpack(x) if not hasattr(x, "__array__") else np.asarray(x)

    def from_numpy(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        values = values.astype(self.dtype_name(like.dtype))
        return compat.array_namespace(like).asarray(values, dtype=like.dtype, device=compat.device(like))

    def empty_rows(self, count: int, like: Array) -> Array:
        return self.zeros((*like.shape[:-1], count, like.shape[-1]), like)

    def set_row(self, rows: Array, index: int, x: Array) -> Array:
        if compat.is_writeable_array(rows):
            rows[..., index, :] = x
            return rows
        return rows.at[..., index, :].set(x)  # JAX's arrays are immutable

    def row_products(self, rows: Array, x: Array) -> Array:
        xp = compat.array_namespace(x)
        if xp.isdtype(x.dtype, "complex floating"):
            return xp.conj(xp.matmul(rows, xp.conj(x)[..., None])[..., 0])
        return xp.matmul(rows, x[..., None])[..., 0]

    def subtract_rows(self, x: Array, coefficients: Array, rows: Array) -> Array:
        return x - compat.array_namespace(x).matmul(coefficients[..., None, :], rows)[..., 0, :]

    def mix_rows(self, coefficients: Array, rows: Array) -> Array:
        return compat.array_namespace(rows).matmul(coefficients, rows)

    def apply_matrix(self, matrix: Array, x: Array) -> Array:
        return compat.array_namespace(x).matmul(matrix, x[..., None])[..., 0]

    def conjugate_transpose(self, matrix: Array) -> Array:
        xp = compat.array_namespace(matrix)
        transposed = xp.matrix_transpose(matrix)
        return xp.conj(transposed) if xp.isdtype(matrix.dtype, "complex floating") else transposed


BACKEND = ArrayApiBackend()
