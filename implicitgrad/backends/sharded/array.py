"""One vector spread over the processes of a group: an array whose last axis no process holds as a whole.

``Sharded`` pairs the local shard, a torch tensor, with the ``Ranks`` that hold the rest. Users make it, of a tensor or
of a DTensor, and hand it to the solvers; ``verbs.py`` is the arithmetic that these do on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from implicitgrad.backends.sharded.ranks import Ranks
from implicitgrad.errors import BackendError, ShapeError

__all__ = ["Sharded", "facing", "failed", "is_dtensor", "joined", "made"]


class Sharded:
    """An array ``(..., n)`` whose last axis is split over the ranks of a process group; leading axes are whole.

    ``adjoint_solve``, ``tangent_solve``, ``solve`` and the forward solvers take it where they take a tensor, and the
    callables of the operator are handed the local shard: they do the communication that the map itself needs.

    Parameters
    ----------
    local : torch.Tensor, shape (..., n_r)
        This rank's shard. The lengths ``n_r`` may differ, and be 0; leading axes, dtype and kind of device are the same
        on all ranks. Or a ``DTensor`` with ``Shard(last axis)`` on one axis of its mesh and ``Replicate`` on the
        others: callables are then handed DTensors and return them.
    group : torch.distributed.ProcessGroup, optional
        Whose ranks hold the shards, in the order of the entries. None: the default group or, where torch.distributed
        was not initialized, this process alone. Taken from the mesh of a DTensor.

    Attributes
    ----------
    local : torch.Tensor
        The shard. Raises the exception that the array stands for, where its rank could not compute it.
    ranks : Ranks
        ``sizes`` of all shards, this ``rank``, the ``group`` and the ``span`` of entries that this rank holds.
    shape, ndim, dtype, device
        Of the whole array; the device is this rank's.

    Raises
    ------
    BackendError, DtypeError, ShapeError, SettingError
        On all ranks, where the shards do not fit together. OperatorError, where a rank does not answer.

    Notes
    -----
    Construction is one exchange of shapes over the group; ``x.like(local)``, arithmetic and results of solvers need
    none. Sums run in double precision and give the same bits on all ranks, so every rank takes the same steps. How many
    reductions a step of a solver costs is told in its docstring; each is one message of a few numbers.

    Where a callable raises on one rank, the next reduction raises on all: that rank its own exception, the others an
    ``OperatorError`` that names it. Where a process ends, the others raise ``OperatorError`` as soon as the transport
    sees it (gloo at once, otherwise after the ``timeout`` of the process group).

    Examples
    --------
    In one process, without torch.distributed; with several, each hands in its own part of ``g``:

    >>> import torch
    >>> import implicitgrad as ig
    >>> from implicitgrad.backends.sharded import Sharded
    >>> g = Sharded(torch.tensor([1.0, 2.0, 3.0]))
    >>> g.shape, g.ranks.sizes
    (torch.Size([3]), (3,))
    >>> J = ig.VJPOperator(lambda u: 0.5 * u, size=g.shape[-1])
    >>> sol = ig.adjoint_solve(J, g)
    >>> sol.x.local
    tensor([2., 4., 6.])
    """

    __slots__ = ("__weakref__", "_local", "failure", "ranks")
    __array_ufunc__ = None  # a NumPy number on the left leaves the product to __rmul__

    def __init__(self, local: torch.Tensor, group: Any = None) -> None:
        if is_dtensor(local):
            local, self.ranks = _opened(local)
        else:
            self.ranks = Ranks.of(local, group)
        self._local = local
        self.failure: Exception | None = None

    def like(self, local: torch.Tensor) -> Sharded:
        """Return another array that is split in the same way, from its local shard and without communication."""
        if not isinstance(local, torch.Tensor) or local.ndim == 0 or local.shape[-1] != self._local.shape[-1]:
            raise ShapeError(
                f"Sharded.like: got {tuple(getattr(local, 'shape', ()))} on rank {self.ranks.rank}, expected "
                f"(..., {self._local.shape[-1]}), a shard of the same length."
            )
        return made(local, self.ranks, None)

    def gather(self) -> torch.Tensor:
        """Return the whole array on every rank; for tests and small states. All ranks must call it."""
        return self.ranks.gather(self._local, self.failure)

    def to_dtensor(self) -> Any:
        """Return the DTensor of the mesh and placements that the array came with."""
        if self.ranks.mesh is None:
            raise BackendError("Sharded.to_dtensor: got an array made of a plain shard, expected one of a DTensor.")
        return _wrapped(self.local, self.ranks)

    @property
    def local(self) -> torch.Tensor:
        """The shard of this rank."""
        if self.failure is not None:
            raise self.failure
        return self._local

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole array."""
        return torch.Size((*self._local.shape[:-1], self.ranks.total_size))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._local.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the shards."""
        return self._local.dtype

    @property
    def device(self) -> torch.device:
        """Device of this rank's shard."""
        return self._local.device

    def reshape(self, shape: Sequence[int]) -> Sharded:
        """Return the same numbers with other leading axes; the last one stays."""
        *leading, last = shape
        if last != self.shape[-1]:
            raise ShapeError(
                f"Sharded.reshape: got {tuple(shape)} of {tuple(self.shape)}, expected the same last axis."
            )
        if -1 in leading:  # filled in here: torch cannot where the shard is empty
            count = prod(self._local.shape[:-1]) // max(1, prod(size for size in leading if size != -1))
            leading = [count if size == -1 else size for size in leading]
        return made(self._local.reshape((*leading, self._local.shape[-1])), self.ranks, self.failure)

    def __getitem__(self, index: Any) -> Sharded:
        key = index if isinstance(index, tuple) else (index,)
        if len(key) >= self.ndim and key[-1] not in (slice(None), ...):
            raise ShapeError(f"Sharded: got the index {index!r}, expected one of the leading axes: the last is split.")
        return made(self._local[index], self.ranks, self.failure)

    def __add__(self, other: Any) -> Sharded:
        return joined(torch.add, self, other) if isinstance(other, Sharded) else NotImplemented

    def __sub__(self, other: Any) -> Sharded:
        return joined(torch.sub, self, other) if isinstance(other, Sharded) else NotImplemented

    def __mul__(self, factor: Any) -> Sharded:
        return NotImplemented if isinstance(factor, Sharded) else made(self._local * factor, self.ranks, self.failure)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Sharded:
        return NotImplemented if isinstance(factor, Sharded) else made(self._local / factor, self.ranks, self.failure)

    def __matmul__(self, other: Any) -> Sharded:
        raise BackendError(
            "Sharded: got a product with a matrix, expected a tensor beside it: the matrix is not split. Write the "
            "product with its communication, and wrap it with VJPOperator."
        )

    __rmatmul__ = __matmul__

    def __neg__(self) -> Sharded:
        return made(-self._local, self.ranks, self.failure)

    def __repr__(self) -> str:
        """Return shape, split and rank; the numbers are on several machines."""
        return (
            f"<Sharded of shape {tuple(self.shape)} and {self.dtype}, split {self.ranks.sizes}, rank {self.ranks.rank}>"
        )


def made(local: torch.Tensor, ranks: Ranks, failure: Exception | None) -> Sharded:
    """Return a Sharded whose split is known, without asking the other ranks."""
    made = Sharded.__new__(Sharded)
    made._local, made.ranks, made.failure = local, ranks, failure
    return made


def failed(*arrays: Sharded) -> Exception | None:
    """Return the exception of the first array that stands for one."""
    return next((x.failure for x in arrays if x.failure is not None), None)  # one that is false in itself counts too


def joined(function: Callable[..., torch.Tensor], x: Sharded, y: Sharded) -> Sharded:
    """Return ``function(x, y)``, entry by entry; a failure of either is one of the result."""
    if x.ranks is not y.ranks and x.ranks != y.ranks:  # all ranks see this: each knows the whole split
        raise ShapeError(
            f"Sharded: got arrays split {x.ranks.sizes} and {y.ranks.sizes}, expected one split over one group. "
            "Make the second with x.like(local)."
        )
    return made(function(x._local, y._local), x.ranks, failed(x, y))


def is_dtensor(x: Any) -> bool:
    """Return whether ``x`` is a DTensor, without importing a module that only its owner needs."""
    return any(cls.__module__ == "torch.distributed.tensor" for cls in type(x).__mro__)


def _opened(x: Any) -> tuple[torch.Tensor, Ranks]:
    """Return the shard of a DTensor and who holds the others."""
    axes = [axis for axis, placement in enumerate(x.placements) if not placement.is_replicate()]
    if len(axes) != 1 or not x.placements[axes[0]].is_shard(x.ndim - 1) or x.ndim == 0:
        raise ShapeError(
            f"Sharded: got a DTensor with placements {x.placements}, expected Shard({x.ndim - 1}), the last axis, on "
            "one axis of the mesh and Replicate on the others. Use x.redistribute; samples of a batch that are split "
            "over ranks are systems of their own: solve x.to_local()."
        )
    local = x.detach().to_local()
    return local, Ranks.of(local, x.device_mesh.get_group(axes[0]), x.device_mesh, tuple(x.placements))


def _wrapped(local: torch.Tensor, ranks: Ranks) -> Any:
    """Return the DTensor that has ``local`` as this rank's shard."""
    from torch.distributed.tensor import DTensor

    shape = (*local.shape[:-1], ranks.total_size)
    stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return DTensor.from_local(
        local, ranks.mesh, ranks.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def facing(ranks: Ranks, function: Callable[[Any], Any]) -> Callable[[torch.Tensor], Any]:
    """Return the user's function on local tensors, whichever kind it was written for."""
    if ranks.mesh is None:
        return function

    def on_dtensors(local: torch.Tensor) -> Any:
        result = function(_wrapped(local, ranks))
        if not is_dtensor(result):
            return result
        # The VJP of a matrix product comes back as partial sums; their local part alone would be wrong without a sound.
        return result.redistribute(ranks.mesh, ranks.placements).to_local()

    return on_dtensors
