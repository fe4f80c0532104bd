"""torch tensors, natively: at n = 1000 a wrapped call costs more than the arithmetic (19 us against 1.6 for a dot)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from implicitgrad.backends.base import Array, Backend, Scalar

__all__ = ["BACKEND", "TorchBackend", "seen_by_numpy"]


# Outside this range a single-precision sum of squares has lost digits to under- or overflow; it is redone in double.
_TINY, _HUGE = 1e-30, 1e30
_LARGEST = torch.finfo(torch.float32).max
_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class TorchBackend(Backend):
    """Arithmetic on ``torch.Tensor``, on any device."""

    name = "torch"
    lends_copies = False

    def is_array(self, x: Any) -> bool:
        return isinstance(x, torch.Tensor)

    def dtype_name(self, dtype: Any) -> str:
        return str(dtype).removeprefix("torch.")

    def inner(self, x: Array, y: Array) -> Scalar:
        if x.ndim == 1:
            value = torch.vdot(x, y).item()
            if not _TINY < abs(value) < _HUGE and x.dtype in _DOUBLE:
                value = torch.vdot(x.to(_DOUBLE[x.dtype]), y.to(_DOUBLE[x.dtype])).item()
            return value
        products = torch.linalg.vecdot(x, y)
        if x.dtype in _DOUBLE:
            size, products = abs(products.cpu().numpy()), products.to(_DOUBLE[x.dtype])
            doubtful = ~((size > _TINY) & (size < _HUGE))
            if doubtful.any():  # those systems alone: one that has ended is zero, and would have the whole batch copied
                rows = torch.as_tensor(doubtful, device=x.device)
                products[rows] = torch.linalg.vecdot(x[rows].to(products.dtype), y[rows].to(products.dtype))
        return products.unsqueeze(-1)

    def squared_norm(self, x: Array) -> Scalar:
        return self.inner(x, x).real

    def norm(self, x: Array) -> Scalar:
        return self.inner(x, x).real ** 0.5

    def host_norm(self, x: Array) -> Any:
        if x.ndim > 1:  # without the way through scalars on the device: four calls less, of which it has seven
            squares = torch.linalg.vecdot(x, x).real.cpu().numpy()
            if x.dtype not in _DOUBLE or (squares.min(initial=1.0) > _TINY and squares.max(initial=1.0) < _HUGE):
                result: np.ndarray[Any, Any] = np.sqrt(squares.astype(float))
                return result
        return self.to_host(self.norm(x))

    def max_abs(self, x: Array) -> Any:
        if x.shape[-1] == 0:
            return 0.0 if x.ndim == 1 else np.zeros(x.shape[:-1])
        largest = torch.linalg.vector_norm(x, float("inf"), dim=-1)
        return largest.item() if x.ndim == 1 else largest.double().cpu().numpy()

    def to_host(self, scalar: Scalar) -> Any:
        return scalar if isinstance(scalar, float) else scalar.squeeze(-1).cpu().numpy()

    def from_host(self, values: Any, like: Array) -> Scalar:
        if like.ndim == 1:
            return values
        return torch.as_tensor(values, dtype=torch.float64, device=like.device).unsqueeze(-1)

    def quotient(self, numerator: Scalar, denominator: Scalar) -> Scalar:
        if isinstance(denominator, float | complex):
            return numerator / denominator if denominator else 0.0
        return torch.where(denominator == 0, torch.zeros_like(denominator), numerator / denominator)

    def axpy(self, alpha: Scalar, x: Array, y: Array) -> Array:
        if x.ndim == 1:
            if abs(alpha) > _LARGEST and x.dtype in _DOUBLE:  # torch raises for a number that the dtype cannot hold
                alpha = math.copysign(math.inf, alpha.real)
            return torch.add(y, x, alpha=alpha)
        return torch.addcmul(y, alpha.to(x.dtype), x)

    def times(self, alpha: Scalar, x: Array) -> Array:
        return torch.mul(x, alpha if x.ndim == 1 else alpha.to(x.dtype))  # alpha * x is 8 us of Python in __rmul__

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def zeros_of(self, size: int, dtype_name: str) -> Array:
        return torch.zeros(size, dtype=getattr(torch, dtype_name))

    def copy(self, x: Array) -> Array:
        return x.detach().clone()

    def equal(self, x: Array, y: Array) -> bool:
        return torch.equal(x, y)

    def select(self, mask: Any, x: Array, y: Array) -> Array:
        if isinstance(mask, np.ndarray):  # copied: torch warns of a broadcast one, which is not writable
            mask = torch.tensor(mask)
        return torch.where(torch.as_tensor(mask, device=x.device).unsqueeze(-1), x, y)

    def times_power_of_two(self, x: Array, exponent: Any) -> Array:
        # In two factors: 2**149, which lifts the smallest float32 to 1, is no float32 itself.
        half = exponent // 2
        if x.ndim == 1:
            return torch.mul(torch.mul(x, 2.0**half), 2.0 ** (exponent - half))
        factors = np.exp2(np.stack([half, exponent - half]).astype(float))[..., None]
        first, second = torch.as_tensor(factors, dtype=x.real.dtype, device=x.device)
        return x * first * second

    def random_like(self, x: Array, seed: int) -> Array:
        generator = torch.Generator().manual_seed(seed)  # on the host, so that every device sees the same numbers
        dtype = torch.complex128 if x.is_complex() else torch.float64
        return torch.randn(x.shape, dtype=dtype, generator=generator).to(device=x.device, dtype=x.dtype)

    def astype(self, x: Array, dtype: Any) -> Array:
        return x.to(dtype)

    def dtype(self, name: str) -> Any:
        return getattr(torch, name)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach() if x.requires_grad else x

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        if x.is_cpu and not x.requires_grad and not x.is_complex() and x.dtype != torch.bfloat16:
            values: np.ndarray[Any, Any] = x.numpy()
        else:
            x = x.float() if x.dtype == torch.bfloat16 else x  # NumPy has no bfloat16
            values = x.detach().cpu().resolve_conj().numpy()
        return values

    def from_numpy(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=like.device, dtype=like.dtype)

    def empty_rows(self, count: int, like: Array) -> Array:
        return torch.empty((*like.shape[:-1], count, like.shape[-1]), dtype=like.dtype, device=like.device)

    def set_row(self, rows: Array, index: int, x: Array) -> Array:
        rows.select(-2, index).copy_(x)
        return rows

    def first_rows(self, rows: Array, count: int) -> Array:
        return rows.narrow(-2, 0, count)

    def row_products(self, rows: Array, x: Array) -> Array:
        if x.is_complex():  # conj of the product, not of the basis: one vector is conjugated instead of k
            return torch.matmul(x.conj().unsqueeze(-2), rows.mT).squeeze(-2).conj().resolve_conj()
        if x.ndim == 1:
            return torch.mv(rows, x)
        return torch.matmul(x.unsqueeze(-2), rows.mT).squeeze(-2)  # 15 times faster than the bmm of rows @ x

    def subtract_rows(self, x: Array, coefficients: Array, rows: Array) -> Array:
        if x.ndim == 1:
            return torch.addmv(x, rows.T, coefficients, alpha=-1)
        return x - torch.matmul(coefficients.unsqueeze(-2), rows).squeeze(-2)

    def mix_rows(self, coefficients: Array, rows: Array) -> Array:
        return torch.matmul(coefficients, rows)

    def apply_matrix(self, matrix: Array, x: Array) -> Array:
        if matrix.dtype != x.dtype:  # a real matrix in a complex operator; NumPy promotes by itself
            dtype = torch.promote_types(matrix.dtype, x.dtype)
            matrix, x = matrix.to(dtype), x.to(dtype)
        if matrix.ndim == 2:
            return x @ matrix.T
        return torch.matmul(matrix, x.unsqueeze(-1)).squeeze(-1)

    def conjugate_transpose(self, matrix: Array) -> Array:
        return matrix.mH

    def call_foreign(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, bool]:
        """Call a user's function on ``x``; a tensor's version counter tells an in-place change without a copy."""
        if x.is_inference():  # tensors of inference_mode keep no version
            return super().call_foreign(function, x)
        version = x._version
        result = function(x)
        intact = x._version == version
        if isinstance(result, torch.Tensor):
            if result.requires_grad:
                result = result.detach()
            if result is not x and not result.is_inference() and (result._version or seen_by_numpy(result)):
                result = result.clone()  # written to before, so perhaps again: a buffer that the function keeps
        return result, intact


def seen_by_numpy(x: torch.Tensor) -> bool:
    """Return whether an array of NumPy shares the memory, by from_numpy or numpy(): a write to it leaves no version.

    Torch forbids such a storage to be resized. Tensors of a transform have no storage, nor can NumPy see them.
    """
    try:
        return not x.untyped_storage().resizable()
    except (NotImplementedError, RuntimeError):
        return False


BACKEND = TorchBackend()
