"""Other tensors in the place of those that a map has captured, for the length of one call.

Used to evaluate a map for other values of its parameters, and by ``captured.py``, to tell what an inner map has
captured while an outer one is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, handle_torch_function

from implicitgrad.torch.engine.graph import is_transformed

__all__ = ["Substituted", "stand_in"]


class Substituted(TorchFunctionMode):
    """While active, every torch function that is handed one of ``tensors`` receives its stand-in instead.

    So the partial derivative of a map with respect to a tensor that it has captured can be told from the total one:
    the stand-in is a tensor that nothing but this evaluation depends on.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], stand_ins: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._stand_ins = {id(t): s for t, s in zip(tensors, stand_ins, strict=True)}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with the stand-ins."""
        return func(*self._swapped(args), **{key: self._swapped(value) for key, value in (kwargs or {}).items()})

    def _swapped(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            stand_in = self._stand_ins.get(id(x))
            return stand_in if stand_in is not None else self._rewrapped(x) if is_transformed(x) else x
        if x.__class__ is tuple or x.__class__ is list:
            return x.__class__(map(self._swapped, x))
        if x.__class__ is dict:
            return {key: self._swapped(value) for key, value in x.items()}
        return x

    def _rewrapped(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``, the wrapper of a ``vmap`` inside of the map, around the stand-in for what it holds."""
        functorch = torch._C._functorch
        if not functorch.is_batchedtensor(x):
            return x
        inner = functorch.get_unwrapped(x)
        swapped = self._swapped(inner)
        if swapped is inner:
            return x
        result: torch.Tensor = functorch._add_batch_dim(
            swapped, functorch.maybe_get_bdim(x), functorch.maybe_get_level(x)
        )
        return result


def stand_in(t: torch.Tensor) -> torch.Tensor:
    """Return what stands in for ``t`` now: a torch function like any other to the modes that are active."""
    if torch._C._is_torch_function_mode_enabled():
        result: torch.Tensor = handle_torch_function(stand_in, (t,), t)
        return result
    return t
