"""What torch's graphs and transforms tell: who is wrapped, how old a node is, where paths end.

Autograd shows its graph through attributes with an underscore, and ``torch.func`` its wrappers through ``torch._C``:
what is used of them in more than one place is here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from implicitgrad.errors import SettingError

__all__ = ["age", "has_tangent", "is_transformed", "leaves_of", "level_of_caller", "now", "refuse_unknown_leaves"]


def is_transformed(x: object = None) -> bool:
    """Return whether ``x`` is a wrapper of a ``torch.func`` transform; without ``x``, whether one is active."""
    functorch = torch._C._functorch
    if x is None:
        return functorch.peek_interpreter_stack() is not None
    return isinstance(x, torch.Tensor) and functorch.is_functorch_wrapped_tensor(x)


def has_tangent(t: torch.Tensor) -> bool:
    """Return whether ``t`` is a dual number of ``torch.autograd.forward_ad``."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def age(node: Any) -> int:
    """Return when a node was made: how many nodes its thread had made before."""
    number: int = node._sequence_nr()
    return number


def now() -> int:
    """Return the age of a node made now."""
    with torch.enable_grad():
        return age((torch.zeros((), requires_grad=True) + 0).grad_fn)


def refuse_unknown_leaves(name: str, image: torch.Tensor, known: Sequence[torch.Tensor]) -> None:
    """Raise where ``image`` depends on a leaf that is not among the tensors ``known`` to the implicit function.

    Parameters
    ----------
    name : str
        Opens the error message.
    image : tensor
        What the map returned for stand-ins of all of its tensors.
    known : sequence of tensor
        Those stand-ins. The graph is not followed beyond them.
    """
    own = {t.grad_fn for t in known if t.grad_fn is not None}
    leaves = {id(t) for t in known}
    for leaf in leaves_of(image, lambda node: node in own):
        if id(leaf) not in leaves:
            raise SettingError(
                f"{name}: at the fixed point f depends on a tensor of shape {tuple(leaf.shape)} in a way that was not "
                "seen before: on another branch than at the start, or through something that no torch function shows. "
                "Its gradient would be wrong. Pass the tensor as an argument of f."
            )


def leaves_of(image: torch.Tensor, stop: Callable[[Any], bool]) -> list[torch.Tensor]:
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


def level_of_caller() -> int:
    """Return the stacklevel of the user's line for a warning that a function called by the one that asks issues."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("implicitgrad.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level
