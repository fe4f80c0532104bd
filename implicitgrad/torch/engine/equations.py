"""The equations that define an unknown as a function of tensors: the user's, and those of its derivatives.

``x = map(x, *tensors)`` or ``map(x, *tensors) = 0``. The adjoint and the tangent of an equation are equations of the
same form, with more tensors in them; ``implicit.py`` differentiates any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from implicitgrad.backends import backend_of
from implicitgrad.backends.host import finite, negate
from implicitgrad.solvers import Solution
from implicitgrad.torch.engine.derivative import Adjoint
from implicitgrad.torch.engine.graph import is_transformed, refuse_unknown_leaves
from implicitgrad.torch.engine.linearize import linearized, push_forward

__all__ = ["Implicit", "Primal", "Tangent", "Transposed"]

FlatMap = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Implicit(ABC):
    """An unknown defined by an equation with tensors in it: ``x = map(x, *tensors)``, or ``map(x, *tensors) = 0``.

    Attributes
    ----------
    adjoint : Adjoint
        Settings of the derivatives' solves.
    found : list of Solution
        What ``find`` has found, for whoever called it.
    """

    adjoint: Adjoint
    found: list[Solution] = field(default_factory=list, kw_only=True)

    @abstractmethod
    def map(self, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Evaluate the equation's map, differentiably."""

    @abstractmethod
    def find(self, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Solve the equation for plain tensors."""

    def moved(self, image: torch.Tensor, point: torch.Tensor) -> Any:
        """Return, one a system, whether the map has changed since ``point`` was found; our own maps do not."""
        return False

    @abstractmethod
    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> Implicit:
        """Return the equation of a batch, whose axis 0 runs over ``x`` and the tensors with 0 in ``dims``."""

    def mapped_axes(self, dims: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return ``dims`` with 0 also for those tensors that every member of a batch must have of its own."""
        return dims

    def partials(
        self,
        x: torch.Tensor,
        tensors: tuple[torch.Tensor, ...],
        wanted: tuple[bool, ...],
        detached: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return ``map`` at stand-ins for ``x`` and ``tensors``, and the stand-ins.

        With ``detached`` the stand-ins carry no history. Without, they are views, so that what is computed from them is
        a function of the originals, and yet derivatives with respect to them are partial ones: through ``x`` itself,
        which depends on the tensors by this very equation, they would call themselves for ever.
        """
        places = range(-len(tensors), 0)
        with torch.enable_grad():
            if detached:
                point = x.detach().requires_grad_()
                stand_ins = [self._stand_in(*each) for each in zip(places, tensors, wanted, strict=True)]
            else:
                point, stand_ins = x.view_as(x), []
                for place, t, need in zip(places, tensors, wanted, strict=True):
                    if t.requires_grad:
                        stand_ins.append(t.view_as(t))
                    else:  # a constant, which may be sparse and has no views; or torch.func.vjp is over, and t is bare
                        stand_ins.append(self._stand_in(place, t, True) if need else t)
            image = self.map(point, *stand_ins)
        self._check(image, [point, *stand_ins])
        return image, point, stand_ins

    def _check(self, image: torch.Tensor, known: list[torch.Tensor]) -> None:  # noqa: B027 - for the user's map only
        """Raise where ``image`` depends on a tensor besides the ``known`` ones; our own maps do not."""

    def _stand_in(self, place: int, t: torch.Tensor, need: bool) -> torch.Tensor:
        """Return a stand-in without history for the tensor at ``place``, counted from the end.

        It requires a gradient where ``t`` does, wanted or not: a checkpoint inside of the map calls its part again with
        the tensors that it has captured, and takes the i-th saved one for the i-th.
        """
        return t.detach().requires_grad_(need or t.requires_grad)


@dataclass(frozen=True)
class Primal(Implicit):
    """The user's own equation.

    Attributes
    ----------
    function : callable
        ``F`` on flat states ``(..., n)``, with every tensor it depends on among its arguments.
    limits : list of host values
        Once ``find`` has run: how large the residual at its point may be when ``F`` is evaluated there again.
    solver : callable
        ``(F, merit, z0) -> Solution`` with ``F`` and ``merit`` functions of the state alone.
    merit : callable or None
        What a line search has to decrease, a function of the same tensors.
    captured : tuple of tensor
        The last of the tensors, as ``function`` finds them by itself; it needs no stand-in for these very ones.
    """

    function: FlatMap
    solver: Callable[[FlatMap, FlatMap | None, torch.Tensor], Solution]
    merit: FlatMap | None = None
    captured: tuple[torch.Tensor, ...] = ()
    limits: list[Any] = field(default_factory=list, kw_only=True)

    def map(self, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``F(z, *tensors)``."""
        return self.function(x, *tensors)

    def find(self, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the forward solver."""
        merit = None if self.merit is None else partial(_at, self.merit, tensors)
        solution = self.solver(partial(_at, self.function, tensors), merit, x0)
        self.found.append(solution)
        # Rounding differs between a call with and one without gradients (fused kernels, compiled code). A system that
        # was not solved has said so.
        largest = 10 * np.fmax(solution.residual_norm, solution.bound)
        limit = largest + 1000 * torch.finfo(x0.dtype).eps * np.asarray(solution.rhs_norm)
        limit = np.where(np.asarray(solution.converged), limit, np.inf)
        self.limits[:] = [limit if limit.ndim else float(limit)]
        result: torch.Tensor = solution.x.clone()  # the report keeps its own: this one is about to get a history
        return result

    def moved(self, image: torch.Tensor, point: torch.Tensor) -> Any:
        """Return, one a system, whether ``image``, the value at the ``point`` found, is no longer that of then."""
        if not self.limits:
            return False
        with torch.no_grad():
            residual: Any = image - point if self.adjoint.shifted else image
            if residual.dtype in (torch.float16, torch.bfloat16):
                residual = residual.float()
        if self.adjoint.cut is not None:
            residual = self.adjoint.cut.like(residual)
        limit = self.limits[0]  # infinite where the forward pass has failed, and has said so
        return negate(backend_of(residual).host_norm(residual) <= limit) & finite(limit)

    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> Primal:
        """Return the equation of a batch: ``F`` mapped over it."""
        mapped = partial(torch.vmap, in_dims=(0, *dims), randomness=randomness)
        merit = None if self.merit is None else mapped(self.merit)
        return replace(self, function=mapped(self.function), merit=merit, captured=(), limits=[])

    def _check(self, image: torch.Tensor, known: list[torch.Tensor]) -> None:
        if not is_transformed():
            refuse_unknown_leaves(self.adjoint.name, image, known)

    def _stand_in(self, place: int, t: torch.Tensor, need: bool) -> torch.Tensor:
        # A parameter serves as it is, nothing has to be put in its place; but one with hooks, which would run on the
        # cotangent here and again where the caller's backward pass hands it on.
        if place >= -len(self.captured) and t is self.captured[place] and t.is_leaf and not t._backward_hooks:
            return t
        return super()._stand_in(place, t, need)


def _at(function: FlatMap, tensors: tuple[torch.Tensor, ...], z: torch.Tensor) -> torch.Tensor:
    """Return ``function(z, *tensors)``: of the state alone, once the tensors are bound."""
    return function(z, *tensors)


@dataclass(frozen=True)
class Transposed(Implicit):
    """``A^H u = g``; its tensors are ``g``, the point ``z``, and those of the equation that gives ``A``."""

    of: Implicit

    def map(self, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``g + J^H u``, or ``J^H u - g``."""
        g, z, *rest = tensors
        _, pull_back = linearized(lambda z: self.of.map(z, *rest), z)
        (product,) = pull_back(x)
        assert product is not None  # z is no integer
        return g + product if self.adjoint.shifted else product - g

    def find(self, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the adjoint solve."""
        g, z, *rest = tensors
        image, point, _ = self.of.partials(z, tuple(rest), (False,) * len(rest), detached=True)
        solution = self.adjoint.solve(image, point, g, moved=self.of.moved(image, point))
        self.found.append(solution)
        result: torch.Tensor = solution.x.clone()
        return result

    def mapped_axes(self, dims: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return 0 for ``g`` and ``z``: each member of a batch has its own system."""
        return 0, 0, *self.of.mapped_axes(dims[2:])

    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> Transposed:
        """Return the system of a batch."""
        return replace(self, of=self.of.vmapped(dims[2:], randomness))


@dataclass(frozen=True)
class Tangent(Implicit):
    """``A v = (dF/dw) t``; its tensors are the point ``z``, the equation's tensors ``w``, and their tangents ``t``."""

    of: Implicit

    def map(self, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``J v + (dF/dw) t``, for a fixed point and for a root alike."""
        sources, tangents = self._split(tensors)
        return push_forward(self.of.map, sources, (x, *tangents))

    def find(self, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the tangent solve."""
        (z, *rest), tangents = self._split(tensors)
        rhs = push_forward(self.of.map, (z, *rest), (torch.zeros_like(z), *tangents))
        image, point, _ = self.of.partials(z, tuple(rest), (False,) * len(rest), detached=True)
        solution = self.adjoint.solve(image, point, rhs if self.adjoint.shifted else -rhs, transposed=False)
        self.found.append(solution)
        result: torch.Tensor = solution.x.clone()
        return result

    @staticmethod
    def _split(tensors: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        count = 1 + len(tensors) // 2
        return tensors[:count], tensors[count:]

    def mapped_axes(self, dims: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return 0 for ``z``, and for both of a tensor and its tangent where one of them is mapped."""
        count = len(dims) // 2
        either = (None if d is t is None else 0 for d, t in zip(dims[1 : 1 + count], dims[1 + count :], strict=True))
        both = self.of.mapped_axes(tuple(either))
        return 0, *both, *both

    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> Tangent:
        """Return the system of a batch."""
        return replace(self, of=self.of.vmapped(dims[1 : 1 + len(dims) // 2], randomness))
