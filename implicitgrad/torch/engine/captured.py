"""Which tensors a map reaches besides its arguments, and which it writes to: seen in one call.

A map may come by a tensor in any way: as a parameter of a module, through a closure, a global, an attribute. One call
of it is observed, and every tensor that some torch function is handed, that carries a derivative and that the call did
not make itself, is *captured*. Captured tensors become explicit inputs of the implicit function, so their gradients are
those of arguments, to every order; ``substituted.py`` evaluates the map for other values of them.

What passes by torch functions unseen (a tensor that only a custom ``autograd.Function`` or a compiled region touches)
is looked for in the graph of the call. A leaf is found there; anything else is refused in words, for its gradient would
be lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from implicitgrad.errors import OperatorError, SettingError
from implicitgrad.torch.engine.graph import age, has_tangent, is_transformed, leaves_of, now
from implicitgrad.torch.engine.substituted import stand_in

__all__ = ["Observed"]

# torch functions that write into tensors without saying so: not in their names, nor in the tensors' version counters.
_WRITES_STATISTICS = ("batch_norm", "instance_norm")
# And some that say so and leave the numbers alone.
_WRITES_NOTHING = ("requires_grad_", "detach_", "share_memory_")


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
        self._first = self._last = age(self.start.grad_fn)
        self.captured: list[torch.Tensor] = []

    def __exit__(self, *exception: Any) -> None:
        """Remember when the call ended."""
        super().__exit__(*exception)
        self._last = now()

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
        if has_tangent(t):
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
        return t.grad_fn is None or self._transformed or not self._first <= age(t.grad_fn) <= now()

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
        in_place = [stand_in(t) for t in self.captured]  # where an outer map is evaluated with other tensors
        heads = {t.grad_fn for t in in_place if t.grad_fn is not None}
        met: set[Any] = set()

        def stop(node: Any) -> bool:
            if node in heads:
                met.add(node)
                return True
            if not self._first <= age(node) <= self._last:
                raise SettingError(
                    f"{name}: f uses a tensor computed before the call ({node.name()}) in a way that cannot be "
                    "followed, expected such tensors as arguments, or their gradient would be lost. Write f(z, x) and "
                    f"pass x: {name}(f, z, x)."
                )
            return False

        leaves = {id(leaf): leaf for leaf in leaves_of(image, stop)}
        reached = [
            t
            for t, used in zip(self.captured, in_place, strict=True)
            if id(used) in leaves or used.grad_fn in met or has_tangent(t)
        ]
        known = {*self._known, *map(id, in_place)}
        return reached + [leaf for key, leaf in leaves.items() if key not in known]


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


def _version(t: torch.Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _storage(t: torch.Tensor) -> int:
    """Return where the numbers of ``t`` lie; 0 if they lie nowhere, as those of a sparse or a wrapped tensor."""
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
