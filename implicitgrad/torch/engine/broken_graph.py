"""A map whose value changes with its state, but whose graph does not lead back to it: detach, no_grad, NumPy inside.

Autograd takes its Jacobian for zero, and the gradient would be that of one step without a word. Whether a map that has
no such graph is constant, its values tell.
"""

from __future__ import annotations

import torch

from implicitgrad.errors import SettingError
from implicitgrad.torch.engine.flat import FlatFunction, differs

__all__ = ["CALLS", "refuse_broken_graph"]

CALLS = 2  # of f, for one answer


def refuse_broken_graph(function: FlatFunction, z: torch.Tensor, is_map: bool) -> None:
    """Raise where ``F``, whose first call had no graph to its state, changes with it at ``z``.

    ``is_map`` says whether ``F`` is the map of a fixed point, of which the gradient of one step can be asked for.
    """
    if not _changes(function, z):
        return
    remedy = "Take the detach out."
    if is_map:
        remedy = "That is the gradient of one step: ask for it with adjoint='jfb', or take the detach out."
    raise SettingError(
        f"{function.name}: got a function whose value changes with its state, but whose graph does not lead back to it "
        "(detach, no_grad, NumPy inside), expected a differentiable one: its Jacobian would be taken for zero. "
        f"{remedy}"
    )


def _changes(function: FlatFunction, z: torch.Tensor) -> bool:
    """Say whether the value at ``z`` is another one a little further on, in no special direction.

    That is a thousandth of the size of ``z``, or as far as the format needs to tell two states apart. What the search
    has seen would not do: one that starts at the fixed point moves nowhere.
    """
    eps = max(torch.finfo(z.dtype).eps, function.precision or 0.0)
    with torch.no_grad():
        size = z.abs().amax(-1, keepdim=True) if z.shape[-1] else z.abs()
        unlike = torch.cos(torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=size.dtype))
        other = z + max(2.0**-10, 4 * eps**0.5) * torch.where(size > 0, size, 1.0) * unlike
        return differs(function(other, *function.tensors), function(z, *function.tensors))
