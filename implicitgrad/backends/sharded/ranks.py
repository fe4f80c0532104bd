"""The processes that hold one vector together: what each of them has, and what they agree on.

Entry ``i`` of a vector of length ``n = n_0 + n_1 + ...`` lies on one rank; shards may have any length, 0 included. All
that a solver decides on is a sum, a maximum or a conjunction over the ranks, so that no rank stops alone and leaves the
others waiting.

A rank can fail by itself: its part of the map raises, or returns the wrong thing. Every reduction therefore carries one
number more than it was asked for, a flag, at no cost that can be measured. A rank with an exception goes on with zeros
until the next reduction, and there all ranks learn of it: the origin raises its own exception, the others an
``OperatorError`` that names it. Used by ``array.py`` and ``verbs.py``, and by
the torch adapter's ``Lockstep``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from implicitgrad.errors import BackendError, DtypeError, OperatorError, SettingError, ShapeError

__all__ = ["Ranks"]

# How long a rank that has failed waits for the others, which may sit in a communication of the user's own map that this
# rank will never join. They take no longer than one product to come; after that the exception is worth more than order.
_PATIENCE = timedelta(seconds=10)


@dataclass(frozen=True)
class Ranks:
    """A process group, and how many entries of the last axis each of its ranks holds.

    Attributes
    ----------
    group : torch.distributed.ProcessGroup or None
        None: this process alone, without torch.distributed.
    sizes : tuple of int
        ``n_r`` of every rank, the same on all of them.
    rank : int
        Which of them this process is.
    mesh, placements : DeviceMesh and tuple of Placement, or None
        How the caller's DTensors lie, where the vector came as one.
    """

    group: Any
    sizes: tuple[int, ...]
    rank: int
    mesh: Any = None
    placements: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, local: Any, group: Any, mesh: Any = None, placements: Any = None) -> Ranks:
        """Learn how the last axis is split, by one exchange of shapes and dtypes; every rank judges all of them.

        Raises
        ------
        BackendError, DtypeError, ShapeError, SettingError
            On every rank, where any of them holds no tensor, or where dtypes, batch axes or the number of axes differ;
            on the ranks outside the group.
        """
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        if group is None:
            told = [_described(local)]
            rank = 0
        else:
            rank = dist.get_rank(group)
            if rank < 0:
                raise SettingError("Sharded: got a process group that this process is not in, expected one of its own.")
            told = [("", (), "")] * dist.get_world_size(group)
            if len(told) > 1:
                _told(lambda: dist.all_gather_object(told, _described(local), group=group), len(told))
            else:
                told = [_described(local)]
        for number, (kind, shape, dtype) in enumerate(told):
            if kind:
                raise BackendError(f"Sharded: got {kind} on rank {number}, expected a torch.Tensor, its local shard.")
            if not shape:
                raise ShapeError(
                    f"Sharded: got a tensor without axes on rank {number}, expected (..., n_r). Use reshape(1)."
                )
            if (shape[:-1], dtype) != (told[0][1][:-1], told[0][2]):
                error = ShapeError if shape[:-1] != told[0][1][:-1] else DtypeError
                raise error(
                    f"Sharded: got {dtype} of shape {shape} on rank {number} and {told[0][2]} of {told[0][1]} on rank "
                    "0, expected shards of one dtype that differ in their last axis only. The leading axes are whole."
                )
        return cls(group, tuple(shape[-1] for _, shape, _ in told), rank, mesh, placements)

    @property
    def total_size(self) -> int:
        """Length ``n`` of the whole vector."""
        return sum(self.sizes)

    @property
    def span(self) -> slice:
        """The entries of the whole vector that this rank holds."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def sum(self, values: torch.Tensor, failure: Exception | None) -> torch.Tensor:
        """Return the sums of ``values`` over the ranks, in double precision: one reduction, however many they are."""
        wide = values.to(torch.complex128 if values.is_complex() else torch.float64)
        flat = (torch.view_as_real(wide) if wide.is_complex() else wide).reshape(-1)
        summed = self._agreed(flat, "SUM", failure)
        if wide.is_complex():
            return torch.view_as_complex(summed.reshape(*wide.shape, 2))
        return summed.reshape(wide.shape)

    def max(self, values: Any, device: torch.device, failure: Exception | None) -> np.ndarray[Any, Any]:
        """Return the maxima of non-negative host values over the ranks; NaN where any rank has one."""
        values = np.asarray(values, dtype=float)
        # A maximum with NaN depends on the order of the ranks, so NaN travels as a number beside it.
        lost = np.isnan(values)
        sent = np.stack([np.where(lost, 0.0, values), lost]).reshape(-1)
        largest = self._agreed(torch.as_tensor(sent, device=device), "MAX", failure).cpu().numpy()
        value, lost = largest.reshape(2, *values.shape)
        return np.where(lost > 0, np.nan, value)

    def all(self, condition: bool, device: torch.device, failure: Exception | None) -> bool:
        """Return whether the condition holds on every rank."""
        count = self.sum(torch.as_tensor(float(not condition), device=device), failure)
        return bool(count.item() == 0)

    def gather(self, local: torch.Tensor, failure: Exception | None) -> torch.Tensor:
        """Return the whole tensor, on every rank; shards travel padded to the longest."""
        self.sum(local.new_zeros(0, dtype=torch.float64), failure)
        if len(self.sizes) == 1:
            return local
        longest = max(self.sizes)
        padded = local.new_zeros((*local.shape[:-1], longest))
        padded[..., : local.shape[-1]] = local
        parts = [torch.empty_like(padded) for _ in self.sizes]
        _told(lambda: dist.all_gather(parts, padded, group=self.group), len(self.sizes))
        return torch.cat([part[..., :size] for part, size in zip(parts, self.sizes, strict=True)], dim=-1)

    def _agreed(self, values: torch.Tensor, operation: str, failure: Exception | None) -> torch.Tensor:
        """Reduce a flat tensor of doubles, and raise on all ranks where one of them has failed."""
        if len(self.sizes) == 1:
            if failure is not None:
                raise failure
            return values
        sent = torch.cat([values, values.new_full((1,), failure is not None)])
        op = getattr(dist.ReduceOp, operation)
        if failure is None:
            _told(lambda: dist.all_reduce(sent, op=op, group=self.group), len(self.sizes))
        else:
            try:
                dist.all_reduce(sent, op=op, group=self.group, async_op=True).wait(_PATIENCE)
            except RuntimeError:  # the others are gone, or wait for this rank elsewhere
                raise failure from None
        if sent[-1].item() > 0:
            self._fail(failure)
        return sent[:-1]

    def _fail(self, failure: Exception | None) -> None:
        """Tell all ranks who has failed and how; reached by all of them, because the flag was reduced."""
        told: list[Any] = [None] * len(self.sizes)
        own = None if failure is None else f"{type(failure).__name__}: {failure}"
        _told(lambda: dist.all_gather_object(told, own, group=self.group), len(self.sizes))
        if failure is not None:
            raise failure
        where = "; ".join(f"rank {number}, {words}" for number, words in enumerate(told) if words is not None)
        raise OperatorError(
            f"A solve over {len(told)} ranks ends on all of them because of {where}. This rank has done nothing wrong; "
            "look at the one that is named."
        )


def _described(local: Any) -> tuple[str, tuple[int, ...], str]:
    """Return what is wrong with the kind of a shard, or nothing, its shape and its dtype."""
    if not isinstance(local, torch.Tensor):
        return f"an object of type {type(local).__qualname__}", (), ""
    return "", tuple(local.shape), str(local.dtype)


def _told(collective: Callable[[], Any], count: int) -> None:
    """Run a collective; say in words what its failure means: errors of other ranks reach this one as silence."""
    try:
        collective()
    except RuntimeError as error:
        raise OperatorError(
            f"A reduction over {count} ranks failed, expected all to answer. One has ended, or has not "
            f"come within the timeout of its process group; look for its own error. Here: {error}"
        ) from error
