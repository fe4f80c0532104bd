"""The implicit function theorem as one ``autograd.Function``, which is its own derivative, backwards and forwards.

Let ``z(w)`` be defined by ``z = F(z, w)``, and ``A = I - J`` with ``J = dF/dz``; or by ``F(z, w) = 0``, and ``A = J``.
For a cotangent ``g`` of ``z`` the cotangent of ``w`` is ``(dF/dw)^H u`` with ``u`` from ``A^H u = g`` (Liao et al.
2018, eq. 8; with the other sign for a root), and for a tangent ``t`` of ``w`` the tangent of ``z`` is ``A^-1 (dF/dw)
t``.

Both systems have the form they came from. ``u = g + J^H u`` is a fixed point, of a map whose parameters are ``g``,
``z`` and ``w``; so is ``v = (dF/dw) t + J v``. So when a derivative is to be differentiated, ``u`` or ``v`` is attached
to what it depends on by the same Function, and every order, in every mix of the two modes, is exact.

The solve runs inside of the Function: there a ``torch.func`` transform has taken off its wrappers, and the solver sees
plain tensors, on whose values it can decide. Under ``vmap`` the mapped axis becomes one more batch axis of one solve.

The point ``z`` at which ``F`` is evaluated again is the output of the Function, saved as such: to autograd it is a
function of ``w``. A detached copy would give wrong Hessians without a sound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import handle_torch_function

from implicitgrad.adjoint import adjoint_solve, report_failure, solve, tangent_solve
from implicitgrad.backends import backend_of
from implicitgrad.backends.host import any_true, negate, pick
from implicitgrad.backends.sharded import Sharded
from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import NotConvergedError, SettingError
from implicitgrad.operators import VJPOperator
from implicitgrad.solvers import Solution, Solver
from implicitgrad.solvers.tail import geometric_tail
from implicitgrad.status import Status
from implicitgrad.torch.captured import is_transformed, refuse_unknown_leaves
from implicitgrad.torch.compiled import uncompiled
from implicitgrad.torch.linearize import linearized, pulled_back, push_forward
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Adjoint", "Implicit", "Primal", "attach"]

FlatMap = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Adjoint:
    """How a derivative solves its equation, and whom it tells: the settings that travel with the graph.

    Attributes
    ----------
    name : str
        Opens messages.
    solver : Solver or None
        None is ``Auto()``.
    on_failure : str or Solver
        As for ``adjoint_solve``.
    tell : callable or None
        Receives each ``Solution``; None where nobody wants to know.
    x0 : tensor (..., n) or None
        First guess of the adjoint, such as that of the last training step; used where its shape fits.
    symmetric : bool
        Whether ``J`` equals its conjugate transpose.
    shifted : bool
        Whether ``A = I - J`` (a fixed point) or ``A = J`` (a root).
    cut : Sharded or None
        A vector split as the state is, where the state is spread over processes; tensors are local shards then.
    """

    name: str
    solver: Solver | None
    on_failure: Any
    tell: Callable[[Solution], None] | None
    x0: torch.Tensor | None = None
    symmetric: bool = False
    shifted: bool = True
    cut: Sharded | None = None

    def solve(
        self,
        image: torch.Tensor,
        point: torch.Tensor,
        cotangent: torch.Tensor,
        transposed: bool = True,
        moved: Any = False,
    ) -> Solution:
        """Solve ``A^H u = cotangent``, or ``A v = tangent``; report, then raise or warn as the policy says.

        Where ``moved`` holds, ``point`` is no solution of the equation any more: ``FORWARD_NOT_CONVERGED``.
        """
        rhs: Any = cotangent.detach()
        x0: Any = self.x0 if transposed and self.x0 is not None and self.x0.shape == rhs.shape else None
        size = None
        if self.cut is not None:
            rhs, x0, size = self.cut.like(rhs), None if x0 is None else self.cut.like(x0), self.cut.shape[-1]
        operator: VJPOperator = jacobian_of(image, point, symmetric=self.symmetric, size=size)
        # The policy is carried out here, so that the words name the layer; another solver to try is the solver's part.
        policy = self.on_failure if isinstance(self.on_failure, Solver) else "return"
        try:
            if self.shifted:
                entry = adjoint_solve if transposed else tangent_solve
                solution = entry(operator, rhs, solver=self.solver, x0=x0, on_failure=policy)
            else:
                A = operator.H if transposed else operator
                solution = solve(A, rhs, solver=self.solver, x0=x0, on_failure=policy)
        except NotConvergedError as error:
            solution = error.solution
            policy = "raise"
        else:
            policy = self.on_failure if policy == "return" else "return"
        name = f"{self.name}, {'backward' if transposed else 'forward mode'}"
        if any_true(moved):
            good = np.asarray(solution.status) == Status.CONVERGED
            good |= np.asarray(solution.status) == Status.TRUNCATED
            status = pick(moved & good, Status.FORWARD_NOT_CONVERGED, solution.status)
            solution = replace(solution, status=status)
            policy = "warn" if policy == "return" != self.on_failure else policy
            name += (
                " (f no longer has the fixed point that was found: something it uses has changed since, or it mixes "
                "systems that batch_ndim counts as independent)"
            )
        if self.cut is not None:
            solution = replace(solution, x=solution.x.local)
        if self.tell is not None:
            self.tell(solution)
        report_failure(name, solution, policy, 4)
        return solution


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
            if BACKEND.facts(residual.dtype).is_half:
                residual = residual.float()
        if self.adjoint.cut is not None:
            residual = self.adjoint.cut.like(residual)
        return negate(backend_of(residual).host_norm(residual) <= self.limits[0])

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
class _Transposed(Implicit):
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

    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> _Transposed:
        """Return the system of a batch."""
        return replace(self, of=self.of.vmapped(dims[2:], randomness))


@dataclass(frozen=True)
class _Tangent(Implicit):
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

    def vmapped(self, dims: tuple[int | None, ...], randomness: str) -> _Tangent:
        """Return the system of a batch."""
        return replace(self, of=self.of.vmapped(dims[1 : 1 + len(dims) // 2], randomness))


def attach(equation: Implicit, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
    """Return the solution of ``equation``, with its derivatives with respect to ``tensors``; that for ``x0`` is zero.

    Seen by torch as one function of its tensors: an outer map that is observed, or evaluated with stand-ins, sees what
    an inner one has captured.
    """
    if torch._C._is_torch_function_mode_enabled():
        result: torch.Tensor = handle_torch_function(_apply, (x0, *tensors), equation, x0, *tensors)
        return result
    return _apply(equation, x0, *tensors)


def _apply(equation: Implicit, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _Solve.apply(equation, x0, *tensors)
    return result


class _Solve(torch.autograd.Function):
    """Forward: solve the equation. Backward: the adjoint solve and one pull-back. Forward mode: the tangent solve."""

    @staticmethod
    def forward(equation: Implicit, x0: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return equation.find(x0, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.equation = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])  # outputs kept on ctx itself would live until the cycle collector
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    @uncompiled
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch._C._functorch.is_legacy_batchedtensor(g):
            raise SettingError(
                f"{ctx.equation.adjoint.name}: got a batch of cotangents by the legacy vmap (is_grads_batched=True, "
                "vectorize=True or check_batched_grad=True), expected single ones: it hides the values that a solver "
                "decides by. Use torch.func.vmap, jacrev or jacfwd, which are one batched solve."
            )
        saved = ctx.saved_tensors  # raises torch's version error after an in-place change
        # What torch.func.vjp returns is called when its wrappers mean nothing any more.
        x, *tensors = map(torch._C._functorch.unwrap_if_dead, saved)
        wanted = tuple(ctx.needs_input_grad[2:])
        start = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        if not any(wanted):
            return None, start, *(None for _ in tensors)
        again = torch.is_grad_enabled() or is_transformed()  # the derivative is to be differentiated in turn
        differentiate = _differentiable_pull_back if again else _plain_pull_back
        return None, start, *differentiate(ctx.equation, x, tuple(tensors), wanted, g)

    @staticmethod
    @uncompiled
    def jvp(ctx: Any, equation: None, x0: torch.Tensor | None, *tangents: torch.Tensor | None) -> torch.Tensor:
        x, *tensors = ctx.saved_tensors
        filled = [torch.zeros_like(w) if t is None else t for w, t in zip(tensors, tangents, strict=True)]
        system = _Tangent(ctx.equation.adjoint, ctx.equation)
        return attach(system, torch.zeros_like(x), x, *tensors, *filled)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], equation: Implicit, *tensors: torch.Tensor) -> tuple[Any, int]:
        dims = equation.mapped_axes(tuple(None if d is None else 0 for d in in_dims[2:]))
        moved = [
            t if axis is None else t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d, axis in zip(tensors, in_dims[1:], (0, *dims), strict=True)
        ]
        return attach(equation.vmapped(dims, info.randomness), *moved), 0


def _plain_pull_back(
    equation: Implicit, x: torch.Tensor, tensors: tuple[torch.Tensor, ...], wanted: tuple[bool, ...], g: torch.Tensor
) -> list[torch.Tensor | None]:
    """Return the cotangents of ``tensors`` on one graph of the map: products of the solve and pull-back alike."""
    image, point, stand_ins = equation.partials(x, tensors, wanted, detached=True)
    solution = equation.adjoint.solve(image, point, g, moved=equation.moved(image, point))
    tell, unseen = equation.adjoint.tell, solution.num_matvecs == 0 and not np.any(solution.converged)
    if unseen and tell is not None and equation.adjoint.cut is None:
        # A one-step gradient that someone asks about: its residual J^H g is one more output of the pull-back, at 1.5
        # times the cost of the pull-back to a dense layer alone, and the only sign of its bias.
        *cotangents, residual = _cotangents(equation, image, [*stand_ins, point], (*wanted, True), solution.x)
        tell(_with_residual(solution, residual))
        return cotangents
    return _cotangents(equation, image, stand_ins, wanted, solution.x)


def _with_residual(solution: Solution, residual: torch.Tensor | None) -> Solution:
    """Return a one-step solution, ``u = g``, with the residual ``g - (I - J)^H g = J^H g`` and the bias it tells of."""
    size = solution.rhs_norm
    norm = 0.0 * size if residual is None else np.asarray(BACKEND.host_norm(residual.detach()), dtype=float)
    norm = norm if isinstance(size, np.ndarray) else float(norm)
    return replace(solution, residual_norm=norm, bias=geometric_tail((size, None), norm, 1.0))


def _differentiable_pull_back(
    equation: Implicit, x: torch.Tensor, tensors: tuple[torch.Tensor, ...], wanted: tuple[bool, ...], g: torch.Tensor
) -> list[torch.Tensor | None]:
    """Return the cotangents of ``tensors`` as differentiable functions of ``g``, ``x`` and ``tensors``."""
    system = _Transposed(equation.adjoint, equation)
    u = attach(system, torch.zeros_like(g), g, x, *tensors)
    for solution in system.found:
        if not _all_converged(solution):
            words = (
                f"{equation.adjoint.name}: got a second derivative (create_graph=True) through an adjoint solve that "
                f"ended as {_names(solution)}, expected CONVERGED: the derivative of an approximation is not an "
                "approximation of the derivative. Use a solver that converges, such as adjoint=GMRES()."
            )
            if not is_transformed():
                raise SettingError(words)
            u = _Once.apply(words, u, g, x, *tensors)  # a transform keeps graphs whether they will be used or not
    if is_transformed():  # who requires a gradient cannot be told there
        _, pull_back = linearized(lambda *tensors: equation.map(x, *tensors), *tensors)
        return list(pull_back(u if equation.adjoint.shifted else -u))
    image, _, stand_ins = equation.partials(x, tensors, wanted, detached=False)
    return _cotangents(equation, image, stand_ins, wanted, u, create_graph=True)


def _cotangents(
    equation: Implicit,
    image: torch.Tensor,
    stand_ins: list[torch.Tensor],
    wanted: tuple[bool, ...],
    u: torch.Tensor,
    create_graph: bool = False,
) -> list[torch.Tensor | None]:
    """Return ``(dF/dw)^H u`` for a fixed point, its negative for a root, for those tensors where it is wanted."""
    sources = [t for t, need in zip(stand_ins, wanted, strict=True) if need]
    cotangent = u if equation.adjoint.shifted else -u
    pulled = iter(pulled_back(image, sources, cotangent, create_graph=create_graph))
    return [next(pulled) if need else None for need in wanted]


class _Once(torch.autograd.Function):
    """The second argument, whose derivative is refused in the words of the first."""

    @staticmethod
    def forward(words: str, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.words = inputs[0]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        raise SettingError(ctx.words)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise SettingError(ctx.words)

    @staticmethod
    def vmap(info: Any, in_dims: Any, words: str, u: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return _Once.apply(words, u, *tensors), in_dims[1]


def _all_converged(solution: Solution) -> bool:
    converged = solution.converged
    return converged if isinstance(converged, bool) else bool(converged.all())


def _names(solution: Solution) -> str:
    statuses = [solution.status] if isinstance(solution.status, Status) else list(solution.status.ravel())
    return ", ".join(sorted({status.name for status in statuses}))
