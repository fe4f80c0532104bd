"""A user's map ``f(z, *args)`` as a function of flat tensors: what the solvers and the implicit function work on.

Used by ``fixed_point``, ``implicit_gradient``, ``root`` and ``argmin``, and where a Jacobian is taken at a point. Here
``f`` is taken apart: its tensors are found, those in its arguments and those it captures; it is made one fixed function
for the length of the pass (``frozen.py``); and it runs under the autocast state of the call, in the forward solve,
whose own arithmetic does not, and in the backward pass, which autograd runs without it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from copy import copy
from typing import Any, cast

import optree
import torch

from implicitgrad.backends.torch import seen_by_numpy
from implicitgrad.errors import ConvergenceWarning, OperatorError, SettingError, SettingTypeError
from implicitgrad.torch.engine.captured import Observed
from implicitgrad.torch.engine.compiled import eager
from implicitgrad.torch.engine.distributed import gathering_group
from implicitgrad.torch.engine.frozen import Frozen
from implicitgrad.torch.engine.graph import is_transformed, leaves_of, level_of_caller
from implicitgrad.torch.engine.members import Members
from implicitgrad.torch.engine.substituted import Substituted
from implicitgrad.torch.layout import Layout

__all__ = ["FlatFunction", "differs"]

# f of a structured state and its arguments, as a flat tensor; the user's f with the output checked, or made from it.
Form = Callable[[Callable[..., Any], Layout, torch.Tensor, tuple[Any, ...]], torch.Tensor]


class FlatFunction:
    """``f`` as ``F(z, *tensors)`` on flat states ``(..., n)``.

    Parameters
    ----------
    name : str
        Who asks; opens the error messages.
    f : callable
        The user's.
    layout : Layout
        Of the state.
    args : tuple
        Further arguments of ``f``; tensors may be nested in them.
    form : callable, optional
        ``(f, layout, z, args) -> flat tensor``; default the output of ``f``, once it is known to be a state like ``z``.

    Attributes
    ----------
    tensors : list of tensor
        The tensors among the arguments and then, once ``observe`` has run, the captured ones.
    captured : tuple of tensor
        The latter.
    is_linked : bool
        Whether the graph of the first call led back to the state; True where no graph was wanted.
    gathered : ProcessGroup or None
        Whose ranks each evaluation gathers parameters from, where FSDP2 shards a module inside of ``f``.
    """

    def __init__(
        self, name: str, f: Callable[..., Any], layout: Layout, args: tuple[Any, ...], form: Form | None = None
    ) -> None:
        if not callable(f):
            raise SettingTypeError(f"{name}: got f of type {type(f).__qualname__}, expected a callable f(z, *args).")
        self.name, self.layout = name, layout
        self.captured: tuple[torch.Tensor, ...] = ()
        self.gathered: Any = None
        self.is_linked = True
        self.frozen = Frozen(layout.device)
        self._f, self._form = f, form
        self._constants: list[tuple[torch.Tensor, int]] = []
        self._members = Members(f)
        leaves, self._treespec = optree.tree_flatten(cast(Any, args))
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self.tensors: list[torch.Tensor] = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self._count = len(self.tensors)
        self._others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._bare = len(args) == self._count and all(isinstance(arg, torch.Tensor) for arg in args)
        device = layout.device.type
        self._autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def __call__(self, z: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``F(z, *tensors)``: every time the same function, which leaves nothing behind.

        Raises
        ------
        OperatorError
            A tensor that ``f`` captures has been changed in place since the first call.
        """
        self._refuse_changes()
        with self._members.in_place():
            if not self.frozen.moves:
                return self._substituted(z, tensors)
            with self.frozen.again():
                return self.frozen.apart(self._substituted(z, tensors))

    def formed(self, form: Form) -> Callable[..., torch.Tensor]:
        """Return another function of the same ``f``, arguments and surroundings; once ``observe`` has run."""

        def other(z: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            twin = copy(self)
            twin._form = form
            return twin(z, *tensors)

        return other

    def observe(self, z: torch.Tensor) -> torch.Tensor:
        """Return ``F(z)`` with the arguments as they were given, and learn from it what ``f`` depends on.

        Raises
        ------
        SettingError
            ``f`` uses a tensor with a history in a way that cannot be followed, or writes one into a captured buffer.
        OperatorError
            ``f`` changed its state in place.
        """
        wanted, plain = torch.is_grad_enabled(), not is_transformed()
        # What FSDP2 does to its modules is to be seen in a graph only.
        fsdp = plain and "torch.distributed.fsdp" in sys.modules and torch.distributed.is_initialized()
        # New tensors, for f may capture what it is also given, and only the former is captured; and may write to z0.
        self.tensors = [_usual(t) for t in self.tensors]
        own = [z.detach().clone(), *(t.detach() for t in self.tensors)]
        with eager(), torch.set_grad_enabled(wanted or fsdp):
            if plain and torch.is_grad_enabled():  # a transform lets nobody ask for a gradient
                own[0].requires_grad_()
            seen = Observed(own)
            self.frozen.begin()
            try:
                with seen:
                    image = self.frozen.apart(self._evaluate(own[0], tuple(own[1:])), seen.written)
            except RuntimeError as error:  # torch has a word of its own for a leaf that is written to
                if "in-place operation" in str(error):
                    self._refuse_writes(seen, self._writes_to(z))
                raise
            finally:
                self.frozen.end(seen.written)
            self._refuse_writes(seen, plain and differs(own[0].detach(), z.detach()))
            if plain and wanted:
                self.is_linked = any(leaf is own[0] for leaf in (image, *leaves_of(image, lambda node: False)))
            if fsdp:
                self.gathered = gathering_group(image, seen.start)
            if self.gathered is None and (wanted or not fsdp):
                self.captured = tuple(seen.reached(self.name, image))
                self.tensors = [*self.tensors, *(_usual(t) for t in self.captured)]
            self._constants = seen.constants if plain else []
            self._members.keep([*self.captured, *(t for t, _ in seen.constants)])
        image = image.detach()
        return image.clone() if seen_by_numpy(image) else image  # a buffer that the next call fills again

    def _writes_to(self, z: torch.Tensor) -> bool:
        """Say whether ``f`` changes its state in place."""
        mine = z.detach().clone()
        with torch.no_grad():
            self._evaluate(mine, tuple(t.detach() for t in self.tensors))
        return mine._version > 0 or differs(mine, z.detach())

    def _refuse_writes(self, seen: Observed, state_changed: bool) -> None:
        """Raise where ``f`` has written what several calls of it cannot share."""
        if state_changed:
            raise OperatorError(
                f"{self.name}: f changed its state in place, expected it to be left as it is. "
                "Use z * 2 rather than z.mul_(2), and inplace=False in the first layer."
            )
        if torch.is_grad_enabled() and any(t.grad_fn is not None for t, _ in seen.written):
            raise SettingError(
                f"{self.name}: f writes what carries a derivative into a tensor from outside, expected a new "
                "one, since several calls of f share it. Return the value, or detach what is written."
            )

    def refuse_late_captures(self, z: torch.Tensor) -> None:
        """Raise where ``f`` depends at ``z``, the fixed point, on tensors that its first call has not shown."""
        twin = copy(self)
        twin.frozen, twin.tensors = Frozen(self.layout.device), self.tensors[: self._count]
        with self.frozen.again():
            twin.observe(z)
        if any(t.requires_grad for t in twin.captured):
            raise SettingError(
                f"{self.name}: at the fixed point f depends on a tensor that it did not use at the start, so it was "
                "not seen and would get no gradient. Pass the tensor as an argument of f, or start elsewhere."
            )

    @property
    def precision(self) -> float | None:
        """Spacing at 1 of the dtype that autocast lets ``f`` run in; None where it runs in that of the state."""
        return None if self._autocast is None else torch.finfo(self._autocast).eps

    def warn_of_other_draws(self, z: torch.Tensor, image: torch.Tensor) -> None:
        """Warn where ``f`` is random and ``z`` no fixed point of the draw that gave ``image``: it belongs to another.

        For whoever takes a Jacobian at a point that another pass has found. The draw is that of torch's generators as
        they stand, so a caller can have the one of the forward pass by setting them back.
        """
        if not self.frozen.is_random:
            return
        with torch.no_grad():
            size = torch.linalg.vector_norm(image)
            if torch.linalg.vector_norm(image - z) > torch.finfo(image.dtype).eps ** 0.5 * size:
                warnings.warn(
                    f"{self.name}: f draws random numbers (dropout), and z is no fixed point of this draw, so it was "
                    "found with another one: the Jacobian is that of another map. Keep rng = torch.get_rng_state() "
                    "before the forward pass, and call torch.set_rng_state(rng) before this one.",
                    ConvergenceWarning,
                    stacklevel=level_of_caller() - 1,
                )

    def settle(self, z: torch.Tensor) -> None:
        """Call ``f`` once more, at the fixed point, for what a call leaves behind: statistics and random numbers."""
        if self.frozen.writes:
            with torch.no_grad(), self.frozen.once():
                self._substituted(z, tuple(self.tensors))

    def _substituted(self, z: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Evaluate with those values of the captured tensors that are handed in, if they are not the ones it has."""
        given, values = tensors[: self._count], tensors[self._count :]
        captured = self.captured
        if all(value is own for value, own in zip(values, captured, strict=True)):
            if not torch.is_grad_enabled():
                return self._evaluate(z, given)
            captured = values = ()
        if torch.is_grad_enabled() and self.frozen.writes:
            buffers, stand_ins = self.frozen.buffers()
            captured, values = captured + buffers, values + stand_ins
        if not captured:
            return self._eagerly(z, given)
        try:
            with Substituted(captured, values):
                return self._eagerly(z, given)
        except RuntimeError as error:
            if "functorch" in str(error) and any(map(is_transformed, captured)):
                raise SettingError(
                    f"{self.name}: f hands a captured tensor to a torch.func transform of its own while another is "
                    f"taken of the layer, and torch cannot tell them apart. Pass the tensor: {self.name}(f, z, x)."
                ) from error
            raise

    def _refuse_changes(self) -> None:
        """Raise what autograd raises for tensors that it has saved; it knows nothing of those without a gradient."""
        for t, version in self._constants:
            if not t.is_inference() and t._version != version:
                raise OperatorError(
                    f"{self.name}: a tensor of shape {tuple(t.shape)} that f captures has been modified by an inplace "
                    f"operation: it is at version {t._version}, expected version {version}, at which the fixed point "
                    "was found. Change it after the backward pass, or a clone of it."
                )

    def _eagerly(self, z: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        with eager():
            return self._evaluate(z, tensors)

    def _evaluate(self, z: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        arguments = self._arguments(tensors)
        if self._autocast is None:
            return self._formed(z, arguments)
        # Cached casts of weights, made under no_grad, would outlive it.
        with torch.autocast(self.layout.device.type, dtype=self._autocast, cache_enabled=False):
            return self._formed(z, arguments)

    def _formed(self, z: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
        if self._form is not None:
            return self._form(self._f, self.layout, z, arguments)
        return self.layout.ravel_output(self.name, self._f(self.layout.unravel(z), *arguments))

    def _arguments(self, tensors: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        if self._bare:
            return tensors
        given = iter(tensors)
        filled = [next(given) if own else other for own, other in zip(self._is_tensor, self._others, strict=True)]
        return cast(tuple[Any, ...], optree.tree_unflatten(self._treespec, filled))


def differs(x: torch.Tensor, before: torch.Tensor) -> bool:
    """Return whether ``x`` no longer holds what it held: by value, since a change through ``.data`` has no version."""
    return not torch.equal(x, before) and not bool(((x == before) | (before != before)).all())  # NaN equals NaN


def _usual(t: torch.Tensor) -> torch.Tensor:
    """Return a clone of a tensor made in inference mode, which Newton's method could not differentiate by.

    Where gradients are wanted it stays as it is, for torch to refuse.
    """
    return t.clone() if t.is_inference() and not torch.is_grad_enabled() else t
