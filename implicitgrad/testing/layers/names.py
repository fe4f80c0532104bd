"""Names for the tensors that a map depends on, as the user would say them: ``args[0]['w']``, ``layer.weight``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, cast

import optree
import torch

__all__ = ["name_of_captured", "names_of_arguments"]

_DEPTH = 3  # partial of a method of a module: deeper nests are not looked into


def names_of_arguments(args: tuple[Any, ...]) -> list[str]:
    """Return the name of each leaf of ``args``, in the order of ``optree.tree_leaves``."""
    treespec = optree.tree_structure(cast(Any, args))
    return ["args" + "".join(f"[{key!r}]" for key in path) for path in treespec.paths()]


def name_of_captured(f: Callable[..., Any], tensor: torch.Tensor) -> str:
    """Return how ``f`` calls ``tensor``, or that it is captured, where no name is found."""
    for name, value in _reachable(f, _DEPTH):
        if value is tensor:
            return name
        if isinstance(value, torch.nn.Module):
            for member, parameter in (*value.named_parameters(), *value.named_buffers()):
                if parameter is tensor:
                    return f"{name}.{member}" if name else member
    return "a captured tensor"


def _reachable(f: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield names and values of what ``f`` is or holds: a module, closures, globals, ``self``, parts of a partial."""
    if isinstance(f, torch.nn.Module):
        yield "", f
    if depth == 0:
        return
    if isinstance(f, FunctionType):
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # a name that has not been assigned yet
                continue
            yield from _named(name, value, depth)
        for name in f.__code__.co_names:
            if name in f.__globals__:
                yield from _named(name, f.__globals__[name], depth)
        for name, value in (f.__kwdefaults__ or {}).items():
            yield from _named(name, value, depth)
    elif isinstance(f, MethodType):
        yield from _named("self", f.__self__, depth)
        yield from _reachable(f.__func__, depth - 1)
    elif isinstance(f, partial):
        yield from _reachable(f.func, depth - 1)
        for name, value in f.keywords.items():
            yield from _named(name, value, depth)
        for index, value in enumerate(f.args):
            yield from _named(f"partial[{index}]", value, depth)


def _named(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor | torch.nn.Module):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, torch.Tensor | torch.nn.Module):
                yield f"{name}[{key!r}]", item
    elif isinstance(value, FunctionType | MethodType | partial):
        yield from _reachable(value, depth - 1)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for key, item in vars(value).items():
            if isinstance(item, torch.Tensor | torch.nn.Module):
                yield f"{name}.{key}", item
