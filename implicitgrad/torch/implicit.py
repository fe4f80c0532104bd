"""The implicit function theorem as one ``autograd.Function``, which is its own derivative.

Let ``z = F(z, inputs)``. For a cotangent ``g`` of ``z`` the cotangents of the inputs are ``(dF/d inputs)^H u`` with
``u`` from ``(I - J)^H u = g`` (Liao et al. 2018, eq. 8). That equation reads ``u = g + J^H u``: it is a fixed point
itself, of the map ``G(u, g, z, inputs) = g + vjp of F at z``. So when the backward pass is to be differentiated, ``u``
is attached to its inputs by the same Function with ``G`` in the place of ``F``, and every order of derivative is exact.

The point ``z`` at which ``F`` is evaluated again is the output of the Function, saved as such: to autograd it is a
function of the inputs. A detached copy would give wrong Hessians without a sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from implicitgrad.adjoint import adjoint_solve
from implicitgrad.errors import NotConvergedError, SettingError
from implicitgrad.solvers import Solution, Solver
from implicitgrad.status import Status
from implicitgrad.torch.captured import Substituted, graph_leaves
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Adjoint", "attach"]

FlatMap = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Adjoint:
    """How a backward pass solves its equation, and whom it tells: the settings that travel with the graph."""

    name: str
    solver: Solver | None
    on_failure: Any
    tell: Callable[[Solution], None]

    def solve(self, image: torch.Tensor, point: torch.Tensor, g: torch.Tensor) -> Solution:
        """Solve ``(I - J)^H u = g`` with ``J = d image / d point``; report, then raise or warn as the policy says."""
        operator = jacobian_of(image, point)
        try:
            solution = adjoint_solve(operator, g.detach(), solver=self.solver, on_failure=self.on_failure)
        except NotConvergedError as error:
            if error.solution is not None:
                self.tell(error.solution)
            raise NotConvergedError(f"{self.name}, backward: {error}", error.solution) from None
        self.tell(solution)
        return solution


def attach(
    function: FlatMap, z: torch.Tensor, inputs: list[torch.Tensor], captured: list[torch.Tensor], adjoint: Adjoint
) -> torch.Tensor:
    """Return ``z``, a fixed point of ``function(z, *inputs)``, with gradients to ``inputs`` and ``captured``.

    Parameters
    ----------
    function : callable
        ``F`` on flat states ``(..., n)``; ``inputs`` are its explicit arguments.
    z : tensor, shape (..., n)
        The fixed point, without history.
    inputs : list of tensor
        What ``function`` is called with, besides ``z``.
    captured : list of tensor
        Leaves that ``function`` reaches by itself, such as the parameters of a module.
    adjoint : Adjoint
        Settings of the backward solve.
    """
    result: torch.Tensor = _FixedPoint.apply(function, adjoint, len(inputs), z, *inputs, *captured)
    return result


class _FixedPoint(torch.autograd.Function):
    """Forward: hand ``z`` through. Backward: the adjoint solve, and one pull-back to the inputs."""

    @staticmethod
    def forward(
        function: FlatMap, adjoint: Adjoint, count: int, z: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.function, ctx.adjoint, ctx.count = inputs[:3]
        ctx.save_for_backward(output, *inputs[4:])  # outputs kept on ctx itself would live until the cycle collector

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, *tensors = ctx.saved_tensors  # raises torch's version error after an in-place change
        adjoint, function = ctx.adjoint, ctx.function
        wanted = ctx.needs_input_grad[4:]
        create_graph = torch.is_grad_enabled()
        inputs, captured = tensors[: ctx.count], tensors[ctx.count :]
        with torch.enable_grad():
            if create_graph:
                # z depends on the inputs too, through this very node. Partial derivatives are taken with respect to
                # views that only this evaluation sees; through z they would call this backward again for ever.
                point, views, lent = z.view_as(z), [t.view_as(t) for t in inputs], [t.view_as(t) for t in captured]
                with Substituted(captured, lent):
                    image = function(point, *views)
                _check_substituted(adjoint.name, image, [point, *views, *lent], captured)
            else:
                point, lent = z.detach().requires_grad_(), captured
                views = [t.detach().requires_grad_(need) for t, need in zip(inputs, wanted, strict=False)]
                image = function(point, *views)
        solution = adjoint.solve(image, point, g)
        u = solution.x
        if create_graph:
            if not _all_converged(solution):
                raise SettingError(
                    f"{adjoint.name}: got a second derivative (create_graph=True) through an adjoint solve that "
                    f"ended as {_names(solution)}, expected CONVERGED: the derivative of an approximation is not an "
                    "approximation of the derivative. Use a solver that converges, such as adjoint=GMRES()."
                )
            u = attach(_adjoint_map(function), u, [g, z, *inputs], captured, adjoint)
        sources = [t for t, need in zip([*views, *lent], wanted, strict=True) if need]
        pulled = iter(
            torch.autograd.grad(image, sources, u, allow_unused=True, create_graph=create_graph)
            if image.requires_grad and sources
            else [None] * len(sources)
        )
        return (None, None, None, None, *(next(pulled) if need else None for need in wanted))


def _check_substituted(name: str, image: torch.Tensor, views: list[torch.Tensor], captured: list[torch.Tensor]) -> None:
    """Raise where the map reaches a captured tensor by a way that no torch function shows."""
    own = {view.grad_fn for view in views}
    leaked = {id(t) for t in graph_leaves(image, lambda node: node in own)} & {id(t) for t in captured}
    if leaked:
        raise SettingError(
            f"{name}: got a second derivative (create_graph=True) of a map that uses a captured tensor in a way that "
            "cannot be followed, expected it in torch functions only. Pass the tensor as an argument of f."
        )


def _adjoint_map(function: FlatMap) -> FlatMap:
    """Return ``G(u, g, z, *inputs) = g + (dF/dz)^H u``, whose fixed point is the adjoint."""

    def adjoint_map(u: torch.Tensor, g: torch.Tensor, z: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            image = function(point, *inputs)
            if not image.requires_grad:
                return g + 0 * u
            (product,) = torch.autograd.grad(image, point, u, create_graph=True, allow_unused=True)
        return g + (0 * u if product is None else product)

    return adjoint_map


def _all_converged(solution: Solution) -> bool:
    converged = solution.converged
    return converged if isinstance(converged, bool) else bool(converged.all())


def _names(solution: Solution) -> str:
    statuses = [solution.status] if isinstance(solution.status, Status) else list(solution.status.ravel())
    return ", ".join(sorted({status.name for status in statuses}))
