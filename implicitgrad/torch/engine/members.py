"""The parameters and buffers of the modules behind a map, as the first call found them.

``torch.func.functional_call`` puts other tensors in the place of a module's parameters, and takes them out when the
forward pass is over. The backward pass calls the map again, and must meet the same ones: here they are put back for
the length of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

__all__ = ["Members"]

_GONE = object()  # stands for a member that the module no longer has


class Members:
    """What the modules that ``f`` is, holds or refers to contain.

    Parameters
    ----------
    f : callable
        A module, a function whose closure, defaults, globals or ``self`` lead to modules, or a partial of one.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        owners: list[dict[str, Any]] = [members for m in _modules(f) for members in (m._parameters, m._buffers)]
        held = [(members, name, t) for members in owners if isinstance(members, dict) for name, t in members.items()]
        self._held = [member for member in held if member[2] is not None]  # and without those of scripted modules

    def keep(self, tensors: list[torch.Tensor]) -> None:
        """Forget all but ``tensors``, those that the map has used."""
        used = {id(t) for t in tensors}
        self._held = [member for member in self._held if id(member[2]) in used]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Surround a call that is to find the members as they were."""
        others = [
            (members, name, members.get(name, _GONE)) for members, name, t in self._held if members.get(name) is not t
        ]
        if not others:
            yield
            return
        for members, name, t in self._held:
            members[name] = t
        try:
            yield
        finally:
            for members, name, other in others:
                if other is _GONE:
                    del members[name]
                else:
                    members[name] = other


def _modules(f: Any) -> list[torch.nn.Module]:
    """Return the modules that can be reached from ``f`` without running it, and those in them."""
    found: dict[int, torch.nn.Module] = {}
    seen: set[int] = set()
    stack = [f]
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.nn.Module):
            found |= {id(m): m for m in x.modules()}
        elif isinstance(x, FunctionType):
            names = (x.__globals__.get(name) for name in x.__code__.co_names)
            stack += [value for value in names if isinstance(value, torch.nn.Module | FunctionType)]
            stack += [content for cell in x.__closure__ or () for content in _contents(cell)]
            stack += [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        elif isinstance(x, MethodType):
            stack += [x.__self__, x.__func__]
        elif isinstance(x, partial):
            stack += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, list | tuple):
            stack += [item for item in x if isinstance(item, torch.nn.Module)]
        elif isinstance(x, dict):
            stack += [item for item in x.values() if isinstance(item, torch.nn.Module)]
        elif hasattr(x, "__dict__") and not isinstance(x, type | torch.Tensor):
            stack += [item for item in vars(x).values() if isinstance(item, torch.nn.Module)]
    return list(found.values())


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that has not been assigned yet
        return []
