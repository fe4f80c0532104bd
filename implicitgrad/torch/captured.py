"""Which tensors a map reaches besides its arguments, and how to put others in their place.

A map may come by a tensor in any way: as a parameter of a module, through a closure, a global, an attribute. One call
of it is observed, and every tensor that some torch function is handed, that carries a derivative and that the call did
not make itself, is *captured*. Captured tensors become explicit inputs of the implicit function, so their gradients are
those of arguments, to every order; to evaluate the map for other values of them, stand-ins are put in their place.

What passes by torch functions unseen (a tensor that only a custom ``autograd.Function`` or a compiled region touches)
is looked for in the graph of the call. A leaf is found there; anything else is refused in words, for its gradient would
be lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, handle_torch_function

from implicitgrad.errors import SettingError

__all__ = ["Observed", "Substituted", "is_transformed", "refuse_unknown_leaves"]

# torch functions that write into tensors without saying so: not in their names, nor in the tensors' version counters.
_WRITES_STATISTICS = ("batch_norm", "instance_norm")


def is_transformed(x: object = None) -> bool:
    """Return whether ``x`` is a wrapper of a ``torch.func`` transform; without ``x``, whether one is active."""
    functorch = torch._C._functorch
    if x is None:
        return functorch.peek_interpreter_stack() is not None
    return isinstance(x, torch.Tensor) and functorch.is_functorch_wrapped_tensor(x)


class Observed(TorchFunctionMode):
    """Active during one call of a map: collects the tensors it captures and the buffers it writes to.

    Parameters
    ----------
    own : sequence of tensor
        The arguments that the map is called with.

    Attributes
    ----------
    captured : list of tensor
        Tensors from outside the call that carry a derivative.
    written : list of (tensor, tensor)
        Tensors from outside that the call writes to, each with a copy of what it held before.
    """

    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._known = {id(t): t for t in own}
        self._made: dict[int, weakref.ref[torch.Tensor]] = {}
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.enable_grad():
            self.start = torch.zeros((), requires_grad=True) + 0  # older graph nodes are not the map's
        self._first = _age(self.start.grad_fn)
        self._transformed = is_transformed()
        self.captured: list[torch.Tensor] = []

    @property
    def written(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The buffers that were written to, with copies of what they held before."""
        return list(self._written.values())

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what ``func`` is handed and what it writes to, call it, and remember what it made."""
        kwargs = kwargs or {}
        for t in _tensors((args, kwargs)):
            if id(t) not in self._known and self._carries_derivative(t) and self._is_foreign(t):
                self._known[id(t)] = t
                self.captured.append(t)
        for t in _targets(getattr(func, "__name__", ""), args, kwargs):
            if id(t) not in self._written and not t.requires_grad and id(t) not in self._known and self._is_foreign(t):
                self._written[id(t)] = t, t.detach().clone()
        result = func(*args, **kwargs)
        for t in _tensors(result):
            self._made[id(t)] = weakref.ref(t)
        return result

    def _carries_derivative(self, t: torch.Tensor) -> bool:
        return t.requires_grad or (self._transformed and is_transformed(t))

    def _is_foreign(self, t: torch.Tensor) -> bool:
        """Return whether ``t`` was there before the call."""
        made = self._made.get(id(t))
        if made is not None and made() is t:
            return False
        return t.grad_fn is None or self._transformed or _age(t.grad_fn) < self._first

    def reached(self, name: str, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the captured tensors that ``image``, the value of the call, depends on.

        Parameters
        ----------
        name : str
            Opens the error message.
        image : tensor
            What the map returned.

        Raises
        ------
        SettingError
            The map uses a tensor with a history from before the call which no torch function was handed.
        """
        if self._transformed or image.grad_fn is None:
            return self.captured
        in_place = [_stand_in(t) for t in self.captured]  # where an outer map is evaluated with other tensors
        heads = {t.grad_fn for t in in_place if t.grad_fn is not None}
        met: set[Any] = set()

        def stop(node: Any) -> bool:
            if node in heads:
                met.add(node)
                return True
            if _age(node) < self._first:
                raise SettingError(
                    f"{name}: f uses a tensor computed before the call ({node.name()}) in a way that cannot be "
                    "followed, expected such tensors as arguments, or their gradient would be lost. Write f(z, x) and "
                    f"pass x: {name}(f, z, x)."
                )
            return False

        leaves = {id(leaf): leaf for leaf in _leaves(image, stop)}
        reached = [
            t for t, used in zip(self.captured, in_place, strict=True) if id(used) in leaves or used.grad_fn in met
        ]
        known = {*self._known, *map(id, in_place)}
        return reached + [leaf for key, leaf in leaves.items() if key not in known]


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
            return self._stand_ins.get(id(x), x)
        if x.__class__ is tuple or x.__class__ is list:
            return x.__class__(map(self._swapped, x))
        return x


def _stand_in(t: torch.Tensor) -> torch.Tensor:
    """Return what stands in for ``t`` now: a torch function like any other to the modes that are active."""
    if torch._C._is_torch_function_mode_enabled():
        result: torch.Tensor = handle_torch_function(_stand_in, (t,), t)
        return result
    return t


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
    for leaf in _leaves(image, lambda node: node in own):
        if id(leaf) not in leaves:
            raise SettingError(
                f"{name}: at the fixed point f depends on a tensor of shape {tuple(leaf.shape)} in a way that was not "
                "seen before: on another branch than at the start, or through something that no torch function shows. "
                "Its gradient would be wrong. Pass the tensor as an argument of f."
            )


def _leaves(image: torch.Tensor, stop: Callable[[Any], bool]) -> list[torch.Tensor]:
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


def _tensors(x: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among the arguments or results of a torch function."""
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for item in x:
            yield from _tensors(item)
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))


def _targets(name: str, args: Any, kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors that the torch function of that name writes to."""
    if any(name.endswith(norm) for norm in _WRITES_STATISTICS):
        yield from _tensors((args, kwargs))
        return
    if (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "set_data") or name[:3] == "__i":
        yield from _tensors(args[:1])
    yield from _tensors(kwargs.get("out"))


def _age(node: Any) -> int:
    age: int = node._sequence_nr()  # counts the nodes that this thread has made
    return age
