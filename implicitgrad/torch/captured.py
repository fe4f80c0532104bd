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
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, handle_torch_function

from implicitgrad.errors import OperatorError, SettingError

__all__ = ["Observed", "Substituted", "is_transformed", "refuse_unknown_leaves"]

# torch functions that write into tensors without saying so: not in their names, nor in the tensors' version counters.
_WRITES_STATISTICS = ("batch_norm", "instance_norm")
# And some that say so and leave the numbers alone.
_WRITES_NOTHING = ("requires_grad_", "detach_", "share_memory_")


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
        The state and the arguments that the map is called with.

    Attributes
    ----------
    captured : list of tensor
        Tensors from outside the call that carry a derivative; without gradients also those made in inference mode,
        which autograd does not take.
    constants : list of (tensor, int)
        Tensors from outside that carry none and that the call leaves as they are, each with its version.
    written : list of (tensor, tensor)
        Tensors from outside that the call writes to, each with a copy of what it held before.
    """

    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._known = {id(t): t for t in own}
        self._lent = {_storage(t) for t in own[1:]} - {0}  # the solver looks after the state itself
        self._made: dict[int, weakref.ref[torch.Tensor]] = {}
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._constants: dict[int, tuple[torch.Tensor, int]] = {}
        self._owners: dict[int, torch.Tensor] = {}  # of storages: a buffer may be written to through a view
        self._gradients = torch.is_grad_enabled()
        self._transformed = is_transformed()
        self._level = torch._C._functorch.maybe_current_level() or 0
        with torch.enable_grad():
            self.start = torch.zeros((), requires_grad=True) + 0  # older graph nodes are not the map's
        self._first = self._last = _age(self.start.grad_fn)
        self.captured: list[torch.Tensor] = []

    def __exit__(self, *exception: Any) -> None:
        """Remember when the call ended."""
        super().__exit__(*exception)
        self._last = _now()

    @property
    def written(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The buffers that were written to, with copies of what they held before."""
        return list(self._written.values())

    @property
    def constants(self) -> list[tuple[torch.Tensor, int]]:
        """The tensors without a derivative that the call has read, with their versions."""
        return [c for key, c in self._constants.items() if key not in self._written and _version(c[0]) == c[1]]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what ``func`` is handed and what it writes to, call it, and remember what it made."""
        kwargs = kwargs or {}
        for t in _tensors((args, kwargs)):
            self._look_at(t)
        for t in _targets(getattr(func, "__name__", ""), args, kwargs):
            if _storage(t) in self._lent:
                raise OperatorError(
                    f"f changes a tensor of shape {tuple(t.shape)} in place that it was given as an argument, expected "
                    "it to be left as it is: f is called many times. Write to a buffer of a module, or to a clone."
                )
            owner = t if id(t) in self._constants else self._owners.get(_storage(t))
            if owner is not None and id(owner) not in self._written:
                self._written[id(owner)] = owner, owner.detach().clone()
        result = func(*args, **kwargs)
        for t in _tensors(result):
            self._made[id(t)] = weakref.ref(t)
        return result

    def _look_at(self, t: torch.Tensor) -> None:
        """File ``t`` if it comes from outside and is new."""
        while not self._is_own(t) and is_transformed(t) and torch._C._functorch.maybe_get_level(t) > self._level:
            t = torch._C._functorch.get_unwrapped(t)  # a transform inside of the call has wrapped it
        if self._is_own(t) or id(t) in self._constants or not self._is_foreign(t):
            return
        if self._carries_derivative(t):
            self._known[id(t)] = t
            self.captured.append(t)
        else:
            self._constants[id(t)] = t, _version(t)
            self._owners.setdefault(_storage(t), t)

    def _carries_derivative(self, t: torch.Tensor) -> bool:
        if self._transformed and is_transformed(t):
            return True
        if _has_tangent(t):
            return True
        return t.requires_grad if self._gradients else t.is_inference()

    def _is_own(self, t: torch.Tensor) -> bool:
        """Return whether ``t`` is an argument, is filed, or was made by a torch function in this call."""
        made = self._made.get(id(t))
        return id(t) in self._known or (made is not None and made() is t)

    def _is_foreign(self, t: torch.Tensor) -> bool:
        """Return whether ``t``, which no torch function has made in this call, was there before it.

        What a custom Function makes is not. A node of another thread may be of any age; one from the future is of one.
        """
        return t.grad_fn is None or self._transformed or not self._first <= _age(t.grad_fn) <= _now()

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
        if self._transformed or not self._gradients or image.grad_fn is None:
            return self.captured
        in_place = [_stand_in(t) for t in self.captured]  # where an outer map is evaluated with other tensors
        heads = {t.grad_fn for t in in_place if t.grad_fn is not None}
        met: set[Any] = set()

        def stop(node: Any) -> bool:
            if node in heads:
                met.add(node)
                return True
            if not self._first <= _age(node) <= self._last:
                raise SettingError(
                    f"{name}: f uses a tensor computed before the call ({node.name()}) in a way that cannot be "
                    "followed, expected such tensors as arguments, or their gradient would be lost. Write f(z, x) and "
                    f"pass x: {name}(f, z, x)."
                )
            return False

        leaves = {id(leaf): leaf for leaf in _leaves(image, stop)}
        reached = [
            t
            for t, used in zip(self.captured, in_place, strict=True)
            if id(used) in leaves or used.grad_fn in met or _has_tangent(t)
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
        # The sixth argument of both of them, in torch and in torch.nn.functional, with opposite defaults in the latter.
        training = kwargs.get("training", kwargs.get("use_input_stats", (*args, *[True] * 6)[5]))
        yield from _tensors((args, kwargs)) if training else ()
        return
    if name in _WRITES_NOTHING:
        return
    if (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "set_data") or name[:3] == "__i":
        yield from _tensors(args[:1])
    yield from _tensors(kwargs.get("out"))


def _age(node: Any) -> int:
    age: int = node._sequence_nr()  # counts the nodes that this thread has made
    return age


def _now() -> int:
    """Return the age of a node made now."""
    with torch.enable_grad():
        return _age((torch.zeros((), requires_grad=True) + 0).grad_fn)


def _has_tangent(t: torch.Tensor) -> bool:
    """Return whether ``t`` is a dual number of ``torch.autograd.forward_ad``."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def _version(t: torch.Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _storage(t: torch.Tensor) -> int:
    """Return where the numbers of ``t`` lie; 0 if they lie nowhere, as those of a sparse or a wrapped tensor."""
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
