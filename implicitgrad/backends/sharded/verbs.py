"""What solvers do on a ``Sharded``: torch's arithmetic on the shards, and reductions over the ranks.

Solvers run on it unchanged, and take the same decisions on all ranks, because they are handed the same numbers. What is
reduced: ``inner``, ``norm``, ``squared_norm`` and ``max_abs`` one number a system, ``row_products`` ``k`` of them at
once, in double precision whatever the vectors are. Nothing else communicates, but the user's map.
"""
# ruff: noqa: D102 -- a backend's verbs are documented once, in backends/base.py

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from implicitgrad.backends.base import Array, Scalar
from implicitgrad.backends.sharded.array import Sharded, facing, failed, joined, made
from implicitgrad.backends.torch import TorchBackend
from implicitgrad.errors import BackendError, DeviceError, DtypeError, OperatorError, ShapeError

__all__ = ["BACKEND", "ShardedBackend"]

# Outside this range a single-precision sum of squares has lost digits to under- or overflow; it is redone in double.
_TINY, _HUGE = 1e-30, 1e30
_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class ShardedBackend(TorchBackend):
    """Arithmetic on ``Sharded``: torch's on the shards, and reductions over the ranks."""

    name = "sharded"
    lends_copies = True  # no, but watching would cost reductions over the ranks, for a write that torch itself missed
    advice = (
        "Hand a DTensor to adjoint_solve, tangent_solve or solve, which open it, or wrap it: Sharded(x). Its own "
        "arithmetic answers .item() with a part of a sum."
    )

    def is_array(self, x: Any) -> bool:
        return isinstance(x, Sharded)

    # -- one number a system: reduced over the ranks ---------------------------------------------------------------
    def host_norm(self, x: Array) -> Any:
        return self.to_host(self.norm(x))

    def inner(self, x: Array, y: Array) -> Scalar:
        total = x.ranks.sum(_products(x._local, y._local), failed(x, y))
        if x.dtype in _DOUBLE:
            size = total.abs().cpu().numpy()  # of the reduced values, so that all ranks take the same turn
            if not (size.min(initial=1.0) > _TINY and size.max(initial=1.0) < _HUGE):
                wide = _DOUBLE[x.dtype]
                total = x.ranks.sum(_products(x._local.to(wide), y._local.to(wide)), failed(x, y))
        return total.item() if x.ndim == 1 else total.unsqueeze(-1)

    def max_abs(self, x: Array) -> Any:
        largest = x.ranks.max(super().max_abs(x._local), x.device, x.failure)
        return float(largest) if x.ndim == 1 else largest

    def equal(self, x: Array, y: Array) -> bool:
        same = x.ranks == y.ranks and torch.equal(x._local, y._local)
        everywhere: bool = x.ranks.all(same, x.device, failed(x, y))
        return everywhere

    def row_products(self, rows: Array, x: Array) -> Array:
        return self.block_products([rows], x)[0]

    def block_products(self, blocks: list[Array], x: Array) -> list[Array]:
        parts = [super(ShardedBackend, self).row_products(rows._local, x._local) for rows in blocks]
        summed = x.ranks.sum(torch.cat(parts, dim=-1), failed(x, *blocks)).to(x.dtype)
        return list(torch.split(summed, [part.shape[-1] for part in parts], dim=-1))

    # -- vectors: each rank its own part ---------------------------------------------------------------------------
    def axpy(self, alpha: Scalar, x: Array, y: Array) -> Array:
        axpy = super().axpy
        return joined(lambda a, b: axpy(alpha, a, b), x, y)

    def times(self, alpha: Scalar, x: Array) -> Array:
        return made(super().times(alpha, x._local), x.ranks, x.failure)

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        length = like._local.shape[-1]
        if tuple(shape) == (1,) != tuple(like.shape[-1:]):
            length = 1  # a single zero, which broadcasts against shards of any length: what select takes for "nothing"
        else:
            _require_length("zeros", shape[-1], like)
        return made(super().zeros((*shape[:-1], length), like._local), like.ranks, None)

    def copy(self, x: Array) -> Array:
        return made(super().copy(x._local), x.ranks, x.failure)

    def select(self, mask: Any, x: Array, y: Array) -> Array:
        select = super().select
        return joined(lambda a, b: select(mask, a, b), x, y)

    def times_power_of_two(self, x: Array, exponent: Any) -> Array:
        return made(super().times_power_of_two(x._local, exponent), x.ranks, x.failure)

    def random_like(self, x: Array, seed: int) -> Array:
        # A stream of its own for each rank, or shards of one length would repeat each other; one long stream, cut into
        # shards, would have to be drawn whole by everybody.
        own = int(np.random.SeedSequence([seed, x.ranks.rank]).generate_state(1)[0])
        return made(super().random_like(x._local, own), x.ranks, None)

    def astype(self, x: Array, dtype: Any) -> Array:
        return made(x._local.to(dtype), x.ranks, x.failure)

    def stop_gradient(self, x: Array) -> Array:
        return made(super().stop_gradient(x._local), x.ranks, x.failure)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return super().to_numpy(x.gather() if isinstance(x, Sharded) else x)

    def from_numpy(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        _require_length("from_numpy", values.shape[-1], like)
        return made(super().from_numpy(values[..., like.ranks.span], like._local), like.ranks, None)

    # -- rows of vectors, and the numbers that belong to them, which every rank holds --------------------------------
    def empty_rows(self, count: int, like: Array) -> Array:
        return made(super().empty_rows(count, like._local), like.ranks, None)

    def set_row(self, rows: Array, index: int, x: Array) -> Array:
        return made(super().set_row(rows._local, index, x._local), rows.ranks, failed(rows, x))

    def first_rows(self, rows: Array, count: int) -> Array:
        return made(super().first_rows(rows._local, count), rows.ranks, rows.failure)

    def coefficients(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        return super().from_numpy(values, like._local)

    def subtract_rows(self, x: Array, coefficients: Array, rows: Array) -> Array:
        local = super().subtract_rows(x._local, coefficients, rows._local)
        return made(local, x.ranks, failed(x, rows))

    def mix_rows(self, coefficients: Array, rows: Array) -> Array:
        return made(super().mix_rows(coefficients, rows._local), rows.ranks, rows.failure)

    # -- matrices and foreign callables ------------------------------------------------------------------------------
    def conjugate_transpose(self, matrix: Array) -> Array:
        raise BackendError("DenseOperator: got a Sharded matrix, expected a tensor. Wrap its product: VJPOperator.")

    def call_foreign(self, function: Callable[[Any], Any], x: Array) -> tuple[Array, bool]:
        """Call a user's function on the local shard; what goes wrong is told at the next reduction, to all ranks."""
        try:
            y, intact = super().call_foreign(facing(x.ranks, function), x._local)
            _check_shard(y, x._local, intact, x.ranks.rank)
        except Exception as failure:
            return made(torch.zeros_like(x._local), x.ranks, failure if x.failure is None else x.failure), True
        return made(y, x.ranks, x.failure), True


def _products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.vdot(x, y) if x.ndim == 1 else torch.linalg.vecdot(x, y)


def _require_length(name: str, length: int, like: Sharded) -> None:
    if length != like.shape[-1]:
        raise ShapeError(
            f"Sharded, {name}: got a last axis of {length}, expected {like.shape[-1]}, whose split is known. A "
            "rectangular operator has two splits, of which only one is given: solve the square system."
        )


def _check_shard(y: Any, x: torch.Tensor, intact: bool, rank: int) -> None:
    """Raise unless ``y`` is a shard like ``x``, which is still what it was."""
    where = f"Sharded: the callable returned %s for the shard of rank {rank}, expected %s. %s"
    if not isinstance(y, torch.Tensor):
        raise BackendError(where % (f"an object of type {type(y).__qualname__}", "a tensor like it", "Return one."))
    if y.shape != x.shape:
        hint = "It is handed the local part and returns the local part; communicate what it needs of the others."
        raise ShapeError(where % (f"shape {tuple(y.shape)}", f"its own shape {tuple(x.shape)}", hint))
    if y.dtype != x.dtype:
        raise DtypeError(where % (y.dtype, f"its own dtype, {x.dtype}", "Cast inside the callable."))
    if y.device != x.device:
        raise DeviceError(where % (f"a tensor on {y.device}", f"it on {x.device}", "Move the map or the state."))
    if not intact:
        raise OperatorError(
            f"Sharded: the callable changed its input in place on rank {rank}, expected it to be left as it is. "
            "Write into a copy, and use x * 2 rather than x *= 2."
        )


BACKEND = ShardedBackend()
