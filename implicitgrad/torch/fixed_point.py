"""``fixed_point``: find z = f(z, *args), and differentiate through the equation instead of the iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from implicitgrad.backends import Array
from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import VJPOperator
from implicitgrad.solvers import Solution, Solver
from implicitgrad.torch.engine.compiled import uncompiled
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.forward.anderson import Anderson
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.operators import jacobian_of
from implicitgrad.torch.passes import FlatMap, Pass, measured
from implicitgrad.torch.report import Report

__all__ = ["fixed_point", "implicit_gradient"]


@uncompiled
def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: ForwardSolver | None = None,
    adjoint: Solver | str | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
    adjoint_x0: Any = None,
    group: Any = None,
) -> Any:
    """Return the fixed point ``z = f(z, *args)``, differentiable by the implicit function theorem.

    Gradients flow to every tensor in ``args`` and to every tensor that ``f`` captures, the parameters of a module among
    them, in training and in eval mode alike; the gradient for ``z0`` is zero. Memory does not grow with the number of
    iterations.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state of the structure, shapes and dtype of ``z``.
    z0 : tensor, or nested tuples, lists and dicts of tensors
        Where the forward solver starts.
    *args
        Further arguments of ``f``; tensors may be nested.
    solver : ForwardSolver, optional
        Default ``Anderson()``. ``Picard(damping=)`` is plain iteration; ``Broyden()`` and ``NewtonKrylov()`` solve maps
        that do not contract.
    adjoint : Solver or "jfb", optional
        Solver of the backward equation ``(I - J)^H u = g``. Default ``Auto()``. Approximations are asked for by name:
        ``Neumann(max_iters=K, rtol=0)``, ``RussianRoulette()``, or ``"jfb"`` for ``K = 0`` (Jacobian-free, one-step
        gradients).
    batch_ndim : int
        How many leading axes of each tensor count independent systems, which stop and are reported one by one. 0
        (default): the whole state is one system.
    on_failure : {"warn", "raise", "return"} or Solver
        What to do if the forward or the backward solve fails; a Solver is tried on the backward system next.
    report : Report, optional
        Filled with what was done, forward at once and backward when it happens.
    adjoint_x0 : tensor or nested tensors, optional
        First guess of the adjoint, flat as ``report.backward.x`` is or of the structure of ``z``: hand back the last
        one when the same batch comes again, and the backward solve begins where it ended. It changes no bound.

    group : torch.distributed.ProcessGroup, optional
        The state is split over the ranks of this group, and ``z0`` is this rank's shard, of any length: ``f`` maps
        local shards and does the communication that it needs, differentiably; inner products are reduced over the
        group, so all ranks take the same steps. Gradients of tensors that every rank holds are this rank's part of a
        sum.

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
        Unknown settings; a captured tensor that cannot be followed; a second derivative through an adjoint solve that
        did not converge.

    Notes
    -----
    Forward: the solver's calls of ``f``; the first one also shows what ``f`` depends on. Backward: one call of ``f``
    with gradients, the solver's VJPs on that graph, one pull-back to the inputs. With ``create_graph=True`` the
    backward pass is differentiable in turn, to any order, and forward mode (``torch.func.jvp``, ``jacfwd``) solves the
    tangent equation with the same solver. ``torch.func`` transforms apply; the axis of a ``vmap`` is one more batch
    axis of one solve.

    ``f`` is one fixed function for the length of a pass: dropout draws one mask for all of its calls, the same in the
    backward pass, and running statistics of batch normalization move once, at the fixed point. (Batch normalization in
    training mode mixes the samples: leave ``batch_ndim`` at 0.) Randomness other than that of torch's own generators
    ends as ``MAX_ITERS``. A compiled ``f`` runs compiled in the forward solve and eagerly where its graph is needed.

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
    layout = Layout.of(name, z0, batch_ndim)
    this = Pass(FlatFunction(name, f, layout, args), adjoint, on_failure, report, adjoint_x0, group=group)
    return this.run(z0, partial(_search, this.forward_solver(Anderson() if solver is None else solver)))


def _search(
    method: ForwardSolver, F: FlatMap, merit: FlatMap | None, z0: Array, first: Array | None, trajectory: bool
) -> Solution:
    """Run ``method`` on the map alone, or on a map of shards, which only we know how to linearize."""

    def linearize(z: Array) -> VJPOperator:
        with torch.enable_grad():
            point = z.local.clone().requires_grad_()
            return jacobian_of(F(point), point, size=z.shape[-1])

    equation = F if isinstance(z0, torch.Tensor) else Equation(F, linearize=linearize)
    return method.solve(equation, z0, first, trajectory)


@uncompiled
def implicit_gradient(
    f: Callable[..., Any],
    z_star: Any,
    *args: Any,
    adjoint: Solver | str | None = None,
    batch_ndim: int = 0,
    on_failure: Any = "warn",
    report: Report | None = None,
    adjoint_x0: Any = None,
    group: Any = None,
) -> Any:
    """Give a fixed point that was found elsewhere its implicit gradient: bring your own forward solver.

    Parameters
    ----------
    f, *args, adjoint, batch_ndim, report, adjoint_x0, group
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
    layout = Layout.of(name, z_star, batch_ndim)
    this = Pass(FlatFunction(name, f, layout, args), adjoint, on_failure, report, adjoint_x0, group=group)
    return this.run(z_star, measured)
