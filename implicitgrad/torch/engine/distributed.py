"""Maps that communicate: the same number of evaluations on every rank, however soon each of them is done.

Where FSDP2 shards a module inside the map, each evaluation and each product gathers its parameters, and all ranks have
to take part. But each rank solves for samples of its own, and stops when these are done: the next call of the others
would wait for it until the transport gives up. ``Lockstep`` lets the ranks announce their calls, and those that are
done lend theirs until nobody calls any more. Solvers know nothing of it, and may differ between ranks (fallbacks).

Used by ``reattach`` in the backward pass, and by whoever runs a forward solver on such a map.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from implicitgrad.backends.sharded.ranks import Ranks
from implicitgrad.errors import SettingError

__all__ = ["Lockstep", "announced", "gathering_group"]

# FSDP2 puts a Function of this name before each module that it shards; its backward frees the gathered parameters and
# reduces their gradients. The name is what torch shows of it; torch.distributed.fsdp is private below fully_shard.
_FSDP_NODE = "RegisterPostBackwardFunctionBackward"


class Lockstep:
    """Calls that all ranks of a group have to make together, from solves that end at different times.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or None
        Who calls together. None: nobody else, and nothing is communicated.
    idle : callable
        Makes one call whose result is thrown away, for the ranks that are done.

    Notes
    -----
    Use as a context around the solve, in which the map is called as ``together(function)``, or after ``announce()``. An
    announcement is one reduction of two numbers. An exception in the context ends it on all ranks: on its own rank as
    itself, on the others as an ``OperatorError`` that names the rank, raised by their next announcement.

    Examples
    --------
    >>> calls = []
    >>> with Lockstep(None, idle=lambda: calls.append("idle")) as ranks:
    ...     function = ranks.together(calls.append)
    ...     function(1), function(2)
    (None, None)
    >>> calls
    [1, 2]
    """

    def __init__(self, group: Any, idle: Callable[[], Any]) -> None:
        self._idle = idle
        self._ranks = None
        if group is not None and dist.get_world_size(group) > 1:
            self._ranks = Ranks(group, (0,) * dist.get_world_size(group), dist.get_rank(group))
        self._ended = False
        self._device = torch.device("cuda" if group is not None and dist.get_backend(group) == "nccl" else "cpu")

    def announce(self) -> None:
        """Say that this rank is about to call; raises where another one has failed."""
        self._calling(True, None)

    def together(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with an announcement before each call; without a group, ``function`` itself."""
        if self._ranks is None:
            return function

        def announced_call(*args: Any) -> Any:
            self.announce()
            return function(*args)

        return announced_call

    def _calling(self, this: bool, failure: Exception | None) -> bool:
        """Return whether any rank is about to call."""
        if self._ranks is None:
            return False
        try:
            count = self._ranks.sum(torch.full((1,), float(this), device=self._device), failure)
        except BaseException:
            self._ended = True  # all ranks know, and none will answer any more
            raise
        return bool(count.item() > 0)

    def __enter__(self) -> Lockstep:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lend calls until no rank needs one, or tell the others of the exception that ended this one."""
        if self._ended or (error is not None and not isinstance(error, Exception)):
            return
        try:
            while self._calling(False, error):
                self._idle()
        except Exception as told:
            if told is not error:
                raise


def announced(image: torch.Tensor, ranks: Lockstep) -> torch.Tensor:
    """Return ``image``, with an announcement at the head of its graph: each product through it is a call."""
    with torch.enable_grad():
        result: torch.Tensor = _Announced.apply(image, ranks)
    return result


class _Announced(torch.autograd.Function):
    """The identity, whose backward announces that the graph before it is about to be run through."""

    @staticmethod
    def forward(x: torch.Tensor, ranks: Lockstep) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.ranks.announce()
        return g, None


def gathering_group(image: torch.Tensor, start: torch.Tensor) -> Any:
    """Return the process group whose ranks an evaluation has gathered parameters from, by FSDP2; None for none.

    Parameters
    ----------
    image : tensor
        What the map returned for a point that requires a gradient: FSDP2 marks the inputs of its modules, so an
        evaluation at a constant shows nothing.
    start : tensor
        A tensor whose graph node was made just before the map was called: older nodes are not the map's.

    Raises
    ------
    SettingError
        Modules inside the map are sharded over different groups: no one group can keep them together.

    Examples
    --------
    >>> import torch
    >>> start = torch.ones(2, requires_grad=True) + 0
    >>> gathering_group(torch.nn.Linear(2, 2)(start), start) is None
    True
    """
    first = 0 if start.grad_fn is None else start.grad_fn._sequence_nr()
    groups: list[Any] = []
    seen: set[Any] = set()
    stack: list[Any] = [image.grad_fn]
    while stack:
        node = stack.pop()
        # An AccumulateGrad, the end of a path, has the largest number there is; it has no followers either.
        if node is None or node in seen or node._sequence_nr() < first:
            continue
        if node.name() == _FSDP_NODE:
            group = getattr(node.param_group.mesh_info, "shard_process_group", None)  # replicas gather nothing
            if group is not None and group not in groups:
                groups.append(group)
        seen.add(node)
        stack.extend(following for following, _ in node.next_functions)
    if len(groups) > 1:
        raise SettingError(
            f"fixed_point: got a map whose modules are sharded over {len(groups)} process groups, expected one mesh "
            "for all modules inside the map. Apply fully_shard to them with the same mesh."
        )
    return groups[0] if groups else None
