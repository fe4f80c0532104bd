"""Six ways to the gradient of a loss at a fixed point, each a method with a ``gradient`` and a ``settle``.

BPTT and TBPTT make 50 updates and go back through the last of them. The others are one call of ``igt.fixed_point``, and
differ in nothing but the solver of ``(I - J)^T z = g`` that it is given. Used by ``associative_memory.py``.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hopfield import Hopfield
from torch.profiler import ProfilerActivity, profile

import implicitgrad as ig
import implicitgrad.torch as igt

UPDATES = 50  # of the state, before BPTT and TBPTT go back; the paper's number
LARGEST_DENSE = 1000  # units; above, a tight GMRES stands in for the dense solve


@dataclass(frozen=True)
class Pass:
    """One gradient of the summed losses: what it is, what it cost, and how the solve of each image ended."""

    losses: torch.Tensor
    gradient: torch.Tensor
    vjps: int
    jvps: int
    statuses: tuple[str, ...]


class Method(ABC):
    """Interface: a way to run the network to its fixed point and to differentiate a loss there."""

    name: str

    @abstractmethod
    def gradient(self, net: Hopfield, images: torch.Tensor) -> Pass:
        """Store ``images``: the losses of recalling each from itself, and the gradient of their sum for the weights."""

    @abstractmethod
    def settle(self, net: Hopfield, images: torch.Tensor) -> torch.Tensor:
        """Return the state that the network settles in when it is shown ``images``."""


@dataclass(frozen=True)
class Unrolled(Method):
    """Backpropagation through the last ``tracked`` of 50 updates: all of them is BPTT, fewer is TBPTT.

    The gradient through ``K + 1`` updates is the sum over ``k = 0 .. K`` of the paper's appendix (eq. 6): ``K``
    products with the Jacobian, as many as ``K``-step Neumann-RBP takes.
    """

    name: str
    tracked: int = UPDATES

    def gradient(self, net: Hopfield, images: torch.Tensor) -> Pass:
        coupling, shown = net.coupling(), net.clamp(images)
        with torch.no_grad():
            state = net.run(shown, coupling, shown, UPDATES - self.tracked)
        losses = net.losses(net.run(state, coupling, shown, self.tracked), images)
        (gradient,) = torch.autograd.grad(losses.sum(), net.weight)
        return Pass(losses.detach(), gradient, vjps=self.tracked - 1, jvps=0, statuses=())

    def settle(self, net: Hopfield, images: torch.Tensor) -> torch.Tensor:
        shown = net.clamp(images)
        with torch.no_grad():
            return net.run(shown, net.coupling(), shown, UPDATES)


@dataclass(frozen=True)
class Implicit(Method):
    """The implicit gradient at the fixed point, whoever solves ``(I - J)^T z = g``: any solver of implicitgrad."""

    name: str
    adjoint: ig.Solver
    forward: igt.ForwardSolver = igt.Anderson()  # noqa: RUF009 - frozen settings

    def gradient(self, net: Hopfield, images: torch.Tensor) -> Pass:
        report = igt.Report()
        losses = net.losses(self._fixed_point(net, images, report), images)
        (gradient,) = torch.autograd.grad(losses.sum(), net.weight)
        statuses = tuple(
            backward.name if forward.is_good else ig.Status.FORWARD_NOT_CONVERGED.name
            for forward, backward in zip(report.forward.status, report.backward.status, strict=True)
        )
        solve = report.backward
        return Pass(losses.detach(), gradient, solve.num_matvecs, solve.num_rmatvecs, statuses)

    def settle(self, net: Hopfield, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._fixed_point(net, images, igt.Report())

    def _fixed_point(self, net: Hopfield, images: torch.Tensor, report: igt.Report) -> torch.Tensor:
        coupling, shown = net.coupling(), net.clamp(images)
        return igt.fixed_point(
            net.update,
            shown,  # where to start
            coupling,
            shown,
            solver=self.forward,
            adjoint=self.adjoint,
            batch_ndim=1,  # ten images, ten systems
            on_failure="return",  # the report is read instead
            report=report,
        )


@dataclass(frozen=True)
class FromUniform(ig.Solver):
    """Another solver, started from uniform random numbers in [0, 1), as the paper's RBP was."""

    inner: ig.Solver
    generator: torch.Generator

    def solve(self, operator: ig.LinearOperator, rhs: torch.Tensor, x0: torch.Tensor | None = None) -> ig.Solution:
        start = torch.rand(rhs.shape, generator=self.generator, dtype=rhs.dtype)
        return self.inner.solve(operator, rhs, start)


def all_methods(truncate: int, seed: int) -> list[Method]:
    """Return the paper's five methods, four of them with a budget of ``truncate`` steps, and ours."""
    uniform = torch.Generator().manual_seed(seed)
    return [
        Unrolled("BPTT"),
        Unrolled("TBPTT", tracked=min(truncate + 1, UPDATES)),
        Implicit("RBP", FromUniform(ig.Richardson(max_iters=truncate), uniform)),
        Implicit("CG-RBP", ig.NormalEquations(ig.CG(max_iters=truncate))),
        Implicit("Neumann-RBP", ig.Neumann(max_iters=truncate)),
        Implicit("GMRES", ig.GMRES()),
    ]


def reference_gradient(net: Hopfield, images: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient by a dense solve in float64 at a fixed point found to 12 digits; None where there is none.

    Above 1000 units it is a GMRES with a relative residual of 1e-10 instead.
    """
    double = Hopfield(net.pixels, net.size - 2 * net.pixels, scale=0.0, seed=0).double()
    double.load_state_dict(net.state_dict())
    solver = ig.Dense() if net.size <= LARGEST_DENSE else ig.GMRES(rtol=1e-10)
    exact = Implicit("reference", solver, forward=igt.Anderson(max_iters=1000)).gradient(double, images.double())
    return exact.gradient if set(exact.statuses) == {ig.Status.CONVERGED.name} else None


def gradient_error(method: Method, net: Hopfield, images: torch.Tensor, exact: torch.Tensor | None) -> float:
    """Return ``norm(gradient - exact) / norm(exact)`` of a method at a network; NaN without an exact one."""
    if exact is None:
        return float("nan")
    gradient = method.gradient(net, images).gradient.double()
    return float((gradient - exact).norm() / exact.norm())


def peak_memory(compute: Callable[[], object]) -> int:
    """Return the most bytes that torch's allocator held at once during ``compute()``, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        compute()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
