"""``fixed_point``: find z = f(z, *args), and differentiate through the equation instead of the iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import optree
import torch

from implicitgrad.adjoint import check_policy, report_failure
from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import SettingTypeError
from implicitgrad.solvers import Neumann, Solution, Solver
from implicitgrad.status import Status
from implicitgrad.torch.anderson import Anderson
from implicitgrad.torch.captured import captured_leaves
from implicitgrad.torch.forward import ForwardSolver
from implicitgrad.torch.implicit import Adjoint, attach
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.report import Report

__all__ = ["fixed_point", "implicit_gradient"]


def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: ForwardSolver | None = None,
    adjoint: Solver | str | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
) -> Any:
    """Return the fixed point ``z = f(z, *args)``, differentiable by the implicit function theorem.

    Gradients flow to every tensor in ``args`` and to every parameter that ``f`` uses, in training and in eval mode
    alike; the gradient for ``z0`` is zero. Memory does not grow with the number of iterations.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state of the structure, shapes and dtype of ``z``.
    z0 : tensor, or nested tuples, lists and dicts of tensors
        Where the forward solver starts.
    *args
        Further arguments of ``f``; tensors may be nested. A tensor with a gradient history must be passed here rather
        than closed over.
    solver : ForwardSolver, optional
        Default ``Anderson()``. ``Picard(damping=)`` is plain iteration.
    adjoint : Solver or "jfb", optional
        Solver of the backward equation ``(I - J)^H u = g``. Default ``Auto()``. Approximations are asked for by name:
        ``Neumann(max_iters=K, rtol=0)``, or ``"jfb"`` for ``K = 0`` (Jacobian-free, one-step gradients).
    batch_ndim : int
        How many leading axes of each tensor count independent systems, which stop and are reported one by one. 0
        (default): the whole state is one system.
    on_failure : {"warn", "raise", "return"} or Solver
        What to do if the forward or the backward solve fails; a Solver is tried on the backward system next.
    report : Report, optional
        Filled with what was done, forward at once and backward when it happens.

    Returns
    -------
    tensor, or nested tensors
        Of the structure of ``z0``.

    Raises
    ------
    NotConvergedError
        By ``on_failure``.
    BackendError, ShapeError, DtypeError, DeviceError
        ``z0`` is no state, or ``f`` does not return one like it.
    SettingError
        ``f`` closes over a tensor that has a history; unknown settings; a second derivative through an adjoint solve
        that did not converge.

    Notes
    -----
    Forward: the solver's calls of ``f`` without gradients, and one with, to see what ``f`` depends on. Backward: one
    call of ``f`` with gradients, the solver's VJPs on that graph, one pull-back to the inputs. With
    ``create_graph=True`` the backward pass is differentiable in turn, to any order.

    ``f`` is called many times, in the forward solve and again in the backward pass, so it must be one function for as
    long: call ``eval()`` on dropout, and on batch normalization, whose running statistics would move with each call.
    A random map ends as ``MAX_ITERS``. ``torch.func`` transforms are refused in words.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> layer, x = torch.nn.Linear(4, 4), torch.randn(8, 4)
    >>> z = igt.fixed_point(lambda z, x: torch.tanh(0.3 * layer(z) + x), torch.zeros(8, 4), x, batch_ndim=1)
    >>> z.square().sum().backward()
    >>> layer.weight.grad.shape
    torch.Size([4, 4])
    """
    name = "fixed_point"
    if solver is not None and not isinstance(solver, ForwardSolver):
        raise SettingTypeError(
            f"{name}: got solver={solver!r}, expected a forward solver such as Anderson() or Picard()."
        )
    settings = _settings(name, adjoint, on_failure, report)
    layout = Layout.of(name, z0, batch_ndim)
    call = _Call(name, f, layout, args)
    with torch.no_grad(), torch.autocast(layout.device.type, enabled=False):
        start = layout.ravel(z0).detach().clone()
        solution = (Anderson() if solver is None else solver).solve(call.flat, start)
    return _finish(call, z0, solution, settings, on_failure, report)


def implicit_gradient(
    f: Callable[..., Any],
    z_star: Any,
    *args: Any,
    adjoint: Solver | str | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
) -> Any:
    """Give a fixed point that was found elsewhere its implicit gradient: bring your own forward solver.

    Parameters
    ----------
    f, *args, adjoint, batch_ndim, report
        As for ``fixed_point``.
    z_star : tensor, or nested tensors
        ``z* = f(z*, *args)``, from any solver. Its own history is not used.
    on_failure : {"warn", "raise", "return"} or Solver
        Also applies if ``norm(f(z*) - z*) > sqrt(eps) norm(f(z*))``: the gradient would belong to another point.

    Returns
    -------
    tensor, or nested tensors
        ``z_star`` itself by value, with gradients to ``args`` and to the parameters of ``f``.

    Raises
    ------
    As ``fixed_point``.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> x = torch.tensor([0.5], requires_grad=True)
    >>> f = lambda z, x: 0.5 * z + x
    >>> igt.implicit_gradient(f, 2 * x.detach(), x).backward()
    >>> x.grad
    tensor([2.])
    """
    name = "implicit_gradient"
    settings = _settings(name, adjoint, on_failure, report)
    layout = Layout.of(name, z_star, batch_ndim)
    call = _Call(name, f, layout, args)
    with torch.no_grad():
        z = layout.ravel(z_star).detach().clone()
        solution = _measured(z, call.flat(z))
    return _finish(call, z_star, solution, settings, on_failure, report)


class _Call:
    """``f`` with its arguments taken apart: a flat map of the state and of the tensors among the arguments."""

    def __init__(self, name: str, f: Callable[..., Any], layout: Layout, args: tuple[Any, ...]) -> None:
        if not callable(f):
            raise SettingTypeError(f"{name}: got f of type {type(f).__qualname__}, expected a callable f(z, *args).")
        self.name, self.layout = name, layout
        leaves, treespec = optree.tree_flatten(cast(Any, args))
        is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        flat_args = len(args) == len(self.tensors) and all(isinstance(arg, torch.Tensor) for arg in args)

        def arguments_of(tensors: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            if flat_args:
                return tensors
            given = iter(tensors)
            filled = [next(given) if tensor else other for tensor, other in zip(is_tensor, others, strict=True)]
            return cast(tuple[Any, ...], optree.tree_unflatten(treespec, filled))

        # f runs under the autocast state of this call, in the forward solve, whose own arithmetic does not, and in the
        # backward pass, which autograd runs without it.
        device = layout.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

        def flat(z: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            state, arguments = layout.unravel(z), arguments_of(tensors)
            if dtype is None:
                return layout.ravel_output(name, f(state, *arguments))
            with torch.autocast(device, dtype=dtype, cache_enabled=False):  # cached casts outlive no_grad
                return layout.ravel_output(name, f(state, *arguments))

        self.function = flat

    def flat(self, z: torch.Tensor) -> torch.Tensor:
        """Return ``f`` of the flat state, with the arguments as they were given."""
        return self.function(z, *self.tensors)

    def captured(self, z: torch.Tensor) -> list[torch.Tensor]:
        """Return the leaves that ``f`` depends on besides its arguments, from one evaluation with gradients."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            marker = point + 0
            own = [t.detach() for t in self.tensors]
            image = self.function(point, *own)
        return captured_leaves(self.name, image, marker, [point, *own])


def _settings(name: str, adjoint: Any, on_failure: Any, report: Any) -> Solver | None:
    if report is not None and not isinstance(report, Report):
        raise SettingTypeError(f"{name}: got report={report!r}, expected an igt.Report() or None.")
    if isinstance(adjoint, str):
        if adjoint == "jfb":
            return Neumann(max_iters=0, rtol=0.0)
        raise SettingTypeError(f"{name}: got adjoint={adjoint!r}, expected a Solver, 'jfb' or None.")
    check_policy(name, adjoint, on_failure)
    solver: Solver | None = adjoint
    return solver


def _measured(z: torch.Tensor, image: torch.Tensor) -> Solution:
    """Say how far a given point is from being fixed."""
    residual, norm = (np.asarray(BACKEND.to_host(BACKEND.norm(x)), dtype=float) for x in (image - z, image))
    bound = torch.finfo(z.dtype).eps ** 0.5 * norm
    status = np.full(residual.shape, Status.FORWARD_NOT_CONVERGED, dtype=object)
    status[residual <= bound] = Status.CONVERGED
    status[~np.isfinite(residual)] = Status.NONFINITE_INPUT
    single = status.shape == ()
    number = float if single else np.asarray
    return Solution(
        x=z,
        status=status.item() if single else status,
        residual_norm=number(residual),
        rhs_norm=number(norm),
        bound=number(bound),
        num_iters=0 if single else np.zeros(status.shape, dtype=int),
        num_matvecs=1,
        num_rmatvecs=0,
        solver="the given point",
    )


def _finish(
    call: _Call, z0: Any, solution: Solution, solver: Solver | None, on_failure: Any, report: Report | None
) -> Any:
    """Report the forward part, and attach the fixed point to what it depends on."""
    if report is not None:
        report.forward, report.backward = solution, None
    report_failure(f"{call.name}, forward", solution, "warn" if isinstance(on_failure, Solver) else on_failure, 4)
    z = solution.x
    if not torch.is_grad_enabled():
        return call.layout.unravel(z)

    def tell(backward: Solution) -> None:
        if report is not None:
            report.backward = backward

    settings = Adjoint(call.name, solver, on_failure, tell)
    attached = attach(call.function, z, call.tensors, call.captured(z), settings)
    return call.layout.unravel(_with_zero_gradient(attached, z0))


def _with_zero_gradient(z: torch.Tensor, z0: Any) -> torch.Tensor:
    """Let the start take part in the graph, with the gradient that it has: a fixed point does not depend on it."""
    starts = [t for t in optree.tree_leaves(z0) if t.requires_grad]
    return _Ignore.apply(z, *starts) if starts else z


class _Ignore(torch.autograd.Function):
    """The first argument, as a constant function of the others."""

    @staticmethod
    def forward(z: torch.Tensor, *starts: torch.Tensor) -> torch.Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.shapes = [(t.shape, t.dtype, t.device) for t in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (g, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes))
