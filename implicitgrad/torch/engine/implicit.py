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

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import handle_torch_function

from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import SettingError
from implicitgrad.solvers import Neumann, Solution
from implicitgrad.solvers.tail import geometric_tail
from implicitgrad.status import Status
from implicitgrad.torch.engine.compiled import uncompiled
from implicitgrad.torch.engine.equations import Implicit, Tangent, Transposed
from implicitgrad.torch.engine.graph import is_transformed
from implicitgrad.torch.engine.linearize import linearized, pulled_back

__all__ = ["attach"]


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
        system = Tangent(ctx.equation.adjoint, ctx.equation)
        v = attach(system, torch.zeros_like(x), x, *tensors, *filled)
        words = _why_only_once(system)
        return _Once.apply(words, v, x, *tensors, *filled) if words else v

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
    tell = equation.adjoint.tell
    # A fixed budget of no products from zero, u = g or a part of it: Neumann alone has that.
    solver, unseen = equation.adjoint.solver, solution.num_matvecs == 0 and solution.residual_norm is None
    unseen = unseen and not np.any(solution.converged) and equation.adjoint.cut is None
    if unseen and tell is not None and isinstance(solver, Neumann):
        # A one-step gradient that someone asks about: its residual J^H g is one more output of the pull-back, at 1.5
        # times the cost of the pull-back to a dense layer alone, and the only sign of its bias.
        *cotangents, pulled = _cotangents(equation, image, [*stand_ins, point], (*wanted, True), solution.x)
        # g - A^H u, where the pull-back has J^H u for a fixed point and -J^H u for a root; u = g but for damping.
        if not equation.adjoint.shifted or solver.damping or pulled is None:
            rest = g - solution.x if equation.adjoint.shifted else g
            pulled = rest if pulled is None else rest + pulled
        tell(_with_residual(solution, pulled, solver.damping))
        return cotangents
    return _cotangents(equation, image, stand_ins, wanted, solution.x)


def _with_residual(solution: Solution, residual: torch.Tensor, damping: float) -> Solution:
    """Return a one-step solution with its residual, and the bias that it lets expect."""
    size = solution.rhs_norm
    norm: Any = np.asarray(BACKEND.host_norm(residual.detach()), dtype=float)
    norm = norm if isinstance(size, np.ndarray) else float(norm)
    return replace(solution, residual_norm=norm, bias=geometric_tail((size, None), norm, 1.0 - damping))


def _differentiable_pull_back(
    equation: Implicit, x: torch.Tensor, tensors: tuple[torch.Tensor, ...], wanted: tuple[bool, ...], g: torch.Tensor
) -> list[torch.Tensor | None]:
    """Return the cotangents of ``tensors`` as differentiable functions of ``g``, ``x`` and ``tensors``."""
    system = Transposed(equation.adjoint, equation)
    u = attach(system, torch.zeros_like(g), g, x, *tensors)
    if words := _why_only_once(system):
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


def _why_only_once(system: Implicit) -> str:
    """Return why what ``system`` has found may not be differentiated, empty if it may; its reports are forgotten."""
    found = [system.found.pop() for _ in range(len(system.found))]  # the graph will hold the system
    bad = [solution for solution in found if not _all_converged(solution)]
    if not bad:
        return ""
    return (
        f"{system.adjoint.name}: got a second derivative (create_graph=True) through a solve that ended as "
        f"{_names(bad[0])}, expected CONVERGED: the derivative of an approximation is not an approximation of the "
        "derivative. Use a solver that converges, such as adjoint=GMRES()."
    )


def _all_converged(solution: Solution) -> bool:
    converged = solution.converged
    return converged if isinstance(converged, bool) else bool(converged.all())


def _names(solution: Solution) -> str:
    statuses = [solution.status] if isinstance(solution.status, Status) else list(solution.status.ravel())
    return ", ".join(sorted({status.name for status in statuses}))
