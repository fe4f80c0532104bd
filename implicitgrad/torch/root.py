"""``root``: find r(z, *args) = 0; ``argmin``: find the w that minimizes a loss, the root of its gradient.

The implicit function theorem once more, with ``A = J`` in the place of ``I - J``: the equation is not bent into a fixed
point ``z - r(z)``, whose Jacobian ``I - J`` would lose the digits of ``J`` wherever the unit of ``r`` is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator, VJPOperator, identity_minus
from implicitgrad.solvers import CG, Solution, Solver
from implicitgrad.torch.engine.compiled import uncompiled
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.engine.graph import is_transformed
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.forward.newton import NewtonKrylov
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.operators import jacobian_of
from implicitgrad.torch.passes import FlatMap, Pass, Search
from implicitgrad.torch.report import Report

__all__ = ["argmin", "root"]


@uncompiled
def root(
    residual: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: ForwardSolver | None = None,
    adjoint: Solver | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
    adjoint_x0: Any = None,
) -> Any:
    """Return ``z`` with ``residual(z, *args) = 0``, differentiable by the implicit function theorem.

    ``dL/dw = -(dr/dw)^H u`` with ``u`` from ``J^H u = dL/dz``, ``J = dr/dz`` at the root.

    Parameters
    ----------
    residual : callable or torch.nn.Module
        ``r(z, *args)`` returns a tree like ``z``: as many equations as unknowns.
    z0 : tensor, or nested tuples, lists and dicts of tensors
        Where the forward solver starts.
    *args
        Further arguments of ``residual``; tensors may be nested.
    solver : ForwardSolver, optional
        Default ``NewtonKrylov()``. The others iterate on ``z <- z - r(z)``.
    adjoint : Solver, optional
        Solver of ``J^H u = g``. Default ``Auto()``.
    batch_ndim, on_failure, report, adjoint_x0
        As for ``fixed_point``.

    Returns
    -------
    tensor, or nested tensors
        Of the structure of ``z0``.

    Raises
    ------
    As ``fixed_point``.

    Notes
    -----
    The residual is measured against ``norm(J z - r(z))``, the right-hand side of Newton's linear system at ``z``. For
    ``r(z) = A z - b`` that is ``norm(b)``, the convention of the linear solvers; it does not depend on ``z0`` nor on
    the units of ``z`` and ``r``.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> a = torch.tensor([2.0, 9.0], dtype=torch.float64, requires_grad=True)
    >>> z = igt.root(lambda z, a: z**2 - a, torch.ones(2, dtype=torch.float64), a)
    >>> z.sum().backward()
    >>> a.grad * 2 * z.detach()
    tensor([1., 1.], dtype=torch.float64)
    """
    name = "root"
    _check_solver(name, solver)
    layout = Layout.of(name, z0, batch_ndim)
    function = FlatFunction(name, residual, layout, args)
    this = Pass(function, adjoint, on_failure, report, adjoint_x0, shifted=False)
    method = this.forward_solver(NewtonKrylov() if solver is None else solver)
    return this.run(z0, _search(method, symmetric=False))


@uncompiled
def argmin(
    loss: Callable[..., torch.Tensor],
    w0: Any,
    *args: Any,
    solver: ForwardSolver | None = None,
    adjoint: Solver | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
    adjoint_x0: Any = None,
) -> Any:
    """Return a stationary point of ``loss(w, *args)``, found downhill, differentiable by the implicit function theorem.

    The inner optimum of a bilevel problem: hyperparameters, data weights, targets among ``args`` receive the gradient
    ``-(d grad/d args)^H u`` with ``u`` from ``H u = dL/dw``, ``H`` the Hessian at the minimum, known through
    Hessian-vector products.

    Parameters
    ----------
    loss : callable
        ``loss(w, *args)`` returns one real number; with ``batch_ndim``, one for each system of the batch, of the
        batch's shape. Twice differentiable in ``w``.
    w0 : tensor, or nested tuples, lists and dicts of tensors
        Where the forward solver starts: near a minimum found by any optimizer, or not so near.
    *args
        Further arguments of ``loss``; tensors may be nested.
    solver : ForwardSolver, optional
        Default ``NewtonKrylov(inner=CG())``, with a line search on the loss, which leaves a saddle point where the
        gradient shows the way down. A start where the gradient vanishes (zeros, of a symmetric problem) stays there and
        is ``CONVERGED``; so is a search that ends on a saddle. The backward pass says ``INDEFINITE`` where its own
        search meets a direction of negative curvature, which it need not.
    adjoint : Solver, optional
        Solver of ``H u = g``. Default ``CG()``: at a point where the Hessian is not positive definite, which is no
        strict minimum, it says ``INDEFINITE`` instead of returning a gradient that means nothing.
    batch_ndim, on_failure, report, adjoint_x0
        As for ``fixed_point``.

    Returns
    -------
    tensor, or nested tensors
        Of the structure of ``w0``.

    Raises
    ------
    As ``fixed_point``; ``ShapeError`` if ``loss`` returns another shape.

    Notes
    -----
    The gradient's norm is measured against ``norm(H w - grad)``; see ``root``.

    Examples
    --------
    Ridge regression, and the derivative of its solution for the penalty:

    >>> import torch, implicitgrad.torch as igt
    >>> X, y = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> ridge = lambda w, penalty: (X @ w - y).square().sum() + penalty * w.square().sum()
    >>> penalty = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    >>> w = igt.argmin(ridge, torch.zeros(2, dtype=torch.float64), penalty)
    >>> w.detach(), torch.autograd.grad(w.sum(), penalty)[0]
    (tensor([0.5000, 1.0000], dtype=torch.float64), tensor(-0.7500, dtype=torch.float64))
    """
    name = "argmin"
    _check_solver(name, solver)
    layout = Layout.of(name, w0, batch_ndim)
    function = FlatFunction(name, loss, layout, args, form=_gradient)
    solver = NewtonKrylov(inner=CG()) if solver is None else solver
    adjoint = CG() if adjoint is None else adjoint
    this = Pass(function, adjoint, on_failure, report, adjoint_x0, symmetric=True, shifted=False)
    return this.run(w0, _search(this.forward_solver(solver), symmetric=True), merit=function.formed(_losses))


def _search(solver: ForwardSolver, symmetric: bool) -> Search:
    """Return how ``solver`` looks for ``r(z) = 0``: by the map ``z - r(z)``, the residual being ``-r(z)`` itself."""

    def search(
        r: FlatMap, merit: FlatMap | None, z0: torch.Tensor, first: torch.Tensor | None, trajectory: bool
    ) -> Solution:
        def linearize(z: torch.Tensor) -> LinearOperator:
            return identity_minus(_jacobian(r, z, symmetric)[1])

        def scale(z: torch.Tensor, image: torch.Tensor) -> Any:
            residual, J = _jacobian(r, z, symmetric)
            return BACKEND.host_norm(J.matvec(z) - residual.detach())

        def value(z: torch.Tensor) -> Any:
            assert merit is not None
            return BACKEND.to_numpy(merit(z)) if z.ndim > 1 else float(merit(z))

        equation = Equation(
            lambda z: z - r(z),
            residual=lambda z: -r(z),
            linearize=linearize,
            scale=scale,
            merit=None if merit is None else value,
            name="residual" if merit is None else "loss",
        )
        # Not from ``first``: z0 - r(z0) knows r only to eps norm(z0).
        return solver.solve(equation, z0, trajectory=trajectory)

    return search


def _jacobian(r: FlatMap, z: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, VJPOperator]:
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        residual = r(point)
    return residual, jacobian_of(residual, point, symmetric=symmetric)


def _gradient(
    loss: Callable[..., torch.Tensor], layout: Layout, z: torch.Tensor, args: tuple[Any, ...]
) -> torch.Tensor:
    """Return the gradient of the loss as a flat tensor, differentiable in turn."""
    if is_transformed():
        gradient: torch.Tensor = torch.func.grad(lambda z: _losses(loss, layout, z, args).sum())(z)
        return gradient
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        point = z if z.requires_grad else z.detach().requires_grad_()
        total = _losses(loss, layout, point, args).sum()
        if not total.requires_grad:
            return torch.zeros_like(z)
        (pulled,) = torch.autograd.grad(total, point, create_graph=keep, allow_unused=True)
    return torch.zeros_like(z) if pulled is None else pulled


def _losses(loss: Callable[..., torch.Tensor], layout: Layout, z: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
    """Return the loss of each system, once it is known to be that."""
    value = loss(layout.unravel(z), *args)
    shape = getattr(value, "shape", None)
    if shape != layout.batch or not value.is_floating_point():
        got = type(value).__qualname__ if shape is None else f"{value.dtype} of shape {tuple(shape)}"
        raise ShapeError(
            f"argmin: loss returned {got}, expected real numbers of shape {tuple(layout.batch)}, one for each system. "
            "Sum over everything but the batch axes."
        )
    return value


def _check_solver(name: str, solver: Any) -> None:
    if solver is not None and not isinstance(solver, ForwardSolver):
        raise SettingTypeError(
            f"{name}: got solver={solver!r}, expected a forward solver such as NewtonKrylov() or Broyden()."
        )
