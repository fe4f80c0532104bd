"""Which tensors a map reaches besides its arguments: parameters of a module, or tensors closed over.

Found by walking the graph of one evaluation, so it does not matter how the map came by them. Leaves become explicit
inputs of the implicit function. A tensor that was computed from others before the call cannot be: its node can be seen,
the tensor cannot. It is refused in words, for its gradient would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import optree
import torch
from torch.overrides import TorchFunctionMode

from implicitgrad.errors import SettingError

__all__ = ["Substituted", "captured_leaves", "graph_leaves"]


class Substituted(TorchFunctionMode):
    """While active, every torch function that is handed one of ``tensors`` receives its stand-in instead.

    So the partial derivative of a map with respect to a tensor that it has captured can be told from the total one:
    the stand-in is a view of the tensor that nothing but this evaluation depends on.
    """

    depth = 0  # how many are active: a nested call must know that a stand-in is no tensor of its own

    def __init__(self, tensors: Sequence[torch.Tensor], stand_ins: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._stand_ins = {id(t): s for t, s in zip(tensors, stand_ins, strict=True)}

    def __enter__(self) -> Any:
        """Begin to substitute."""
        Substituted.depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End it."""
        Substituted.depth -= 1
        super().__exit__(*error)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with the stand-ins."""

        def swap(x: Any) -> Any:
            return self._stand_ins.get(id(x), x) if isinstance(x, torch.Tensor) else x

        given: Any = optree.tree_map(swap, cast(Any, (tuple(args), dict(kwargs or {}))))
        return func(*given[0], **given[1])


def captured_leaves(name: str, image: torch.Tensor, start: torch.Tensor, own: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the leaves that ``image`` depends on, other than those in ``own``.

    Parameters
    ----------
    name : str
        Opens the error message.
    image : tensor
        What the map returned for detached arguments.
    start : tensor
        A tensor whose graph node was made just before the map was called: older nodes are not the map's.
    own : list of tensor
        The arguments that the map was called with.

    Raises
    ------
    SettingError
        The map uses a tensor with a history from before the call.
    """
    if image.grad_fn is None:
        return []
    first = _age(start.grad_fn)

    def refuse(node: Any) -> bool:
        if _age(node) >= first:
            return False
        if Substituted.depth:
            raise SettingError(
                f"{name}: got a second derivative (create_graph=True) through nested fixed points whose inner map "
                "captures a parameter, expected it among the arguments of both maps. Pass the parameter to f."
            )
        raise SettingError(
            f"{name}: f uses a tensor computed before the call ({node.name()}) that is not among its arguments, "
            "expected such tensors as arguments, or their gradient would be lost. Write f(z, x) and pass x: "
            f"{name}(f, z, x)."
        )

    known = {id(t) for t in own}
    return [leaf for leaf in graph_leaves(image, refuse) if id(leaf) not in known]


def graph_leaves(image: torch.Tensor, stop: Callable[[Any], bool]) -> list[torch.Tensor]:
    """Return the leaves that ``image`` depends on, without looking past graph nodes for which ``stop`` holds."""
    leaves: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    stack = [image.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:  # AccumulateGrad: the end of a path
            leaves[id(variable)] = variable
        elif not stop(node):
            stack.extend(following for following, _ in node.next_functions)
    return list(leaves.values())


def _age(node: Any) -> int:
    age: int = node._sequence_nr()  # counts the nodes that this thread has made
    return age
