"""One pass of an implicit layer: solve forward, attach the derivative, tell the report and the caller.

The part that ``fixed_point``, ``implicit_gradient``, ``root`` and ``argmin`` have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import optree
import torch

from implicitgrad.adjoint import check_policy, report_failure
from implicitgrad.backends import backend_of
from implicitgrad.backends.sharded import Sharded
from implicitgrad.errors import DtypeError, SettingError, SettingTypeError, ShapeError
from implicitgrad.solvers import Auto, Neumann, Solution, Solver
from implicitgrad.status import Status
from implicitgrad.torch.engine.broken_graph import CALLS, refuse_broken_graph
from implicitgrad.torch.engine.derivative import Adjoint
from implicitgrad.torch.engine.distributed import Lockstep
from implicitgrad.torch.engine.equations import Primal
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.engine.graph import is_transformed, level_of_caller
from implicitgrad.torch.engine.implicit import attach
from implicitgrad.torch.engine.reattach import reattach
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.report import Report

__all__ = ["FlatMap", "Pass", "Search", "measured"]

FlatMap = Callable[..., torch.Tensor]
# (F of the state alone, the merit of a line search, z0, F(z0) where it is known, whether to keep the trajectory)
Search = Callable[[FlatMap, FlatMap | None, Any, Any, bool], Solution]


class Pass:
    """Settings of one pass, checked, and the function it is about.

    Parameters
    ----------
    function : FlatFunction
        The equation's map; its ``name`` opens the messages.
    adjoint : Solver, "jfb" or None
        As the caller gave it.
    on_failure, report, adjoint_x0
        As the caller gave them.
    symmetric, shifted : bool
        What the derivative's operator is; see ``Adjoint``.
    group : ProcessGroup, optional
        Over whose ranks the state is split; then all tensors here are local shards.
    """

    def __init__(
        self,
        function: FlatFunction,
        adjoint: Any,
        on_failure: Any,
        report: Report | None,
        adjoint_x0: Any = None,
        symmetric: bool = False,
        shifted: bool = True,
        group: Any = None,
    ) -> None:
        name = function.name
        if report is not None and not isinstance(report, Report):
            raise SettingTypeError(f"{name}: got report={report!r}, expected an igt.Report() or None.")
        self.function, self.on_failure, self.report = function, on_failure, report

        def tell(backward: Solution) -> None:
            assert report is not None
            report.backward = backward

        solver = _adjoint_solver(name, adjoint, on_failure)
        if function.precision is not None:  # what a map in lower precision cannot meet would be asked for in vain
            solver = _with_tolerance(Auto() if solver is None else solver, function.precision)
        x0 = None if adjoint_x0 is None else _first_guess(name, function.layout, adjoint_x0)
        layout = function.layout
        if group is not None and is_transformed():
            raise SettingError(
                f"{name}: got a torch.func transform of a state that is spread over processes, expected plain tensors. "
                "Use torch.autograd.grad."
            )
        cut = None if group is None else Sharded(torch.zeros((*layout.batch, layout.size), **layout.kind), group)
        self.adjoint = Adjoint(name, solver, on_failure, None if report is None else tell, x0, symmetric, shifted, cut)

    def forward_solver(self, solver: ForwardSolver) -> ForwardSolver:
        """Return ``solver`` with the tolerance that the precision of the map allows, where it names none itself."""
        precision = self.function.precision
        return solver if precision is None else _with_tolerance(solver, precision)

    def run(self, z0: Any, search: Search, merit: FlatMap | None = None) -> Any:
        """Return the solution in the structure of ``z0``, with its derivatives.

        ``search`` finds the unknown for plain tensors; ``merit`` is what its line search has to decrease.
        """
        function, layout, report = self.function, self.function.layout, self.report
        _refuse_tracing(function.name)
        if torch.is_inference_mode_enabled():
            # Newton's method and argmin differentiate also where nobody else will, which that mode does not allow.
            with torch.inference_mode(False), torch.no_grad():
                return self.run(optree.tree_map(torch.clone, z0), search, merit)
        start = layout.ravel(z0)
        with torch.autocast(layout.device.type, enabled=False):
            first = function.observe(start)
        cut, keep = self.adjoint.cut, report is not None and report.keeps_trajectory
        firsts = [] if is_transformed() else [first]  # used once: the graph, which keeps ``solve``, is not to keep it
        del first

        def solve(flat_map: FlatMap, merit: FlatMap | None, z: torch.Tensor) -> Solution:
            with torch.autocast(layout.device.type, enabled=False):
                known: Any = firsts.pop() if firsts else None
                if cut is None:
                    solution = search(flat_map, merit, z.detach(), known, keep)
                else:
                    known = None if known is None else cut.like(known)
                    solution = search(flat_map, merit, cut.like(z.detach()), known, keep)
                    points = tuple(point.local for point in solution.trajectory)
                    solution = replace(solution, x=solution.x.local, trajectory=points)
            return replace(solution, num_matvecs=solution.num_matvecs + 1)  # the call that was observed

        if function.gathered is not None:
            solution = self._together(solve, start)
            z = reattach(lambda z: function(z, *function.tensors), solution.x, self.adjoint)
        else:
            equation = Primal(self.adjoint, function, solve, merit, function.captured)
            z = attach(equation, start, *function.tensors)
            solution = equation.found.pop()
            if torch.is_grad_enabled() and not is_transformed() and not z.requires_grad:
                function.refuse_late_captures(solution.x)  # a backward pass, which would have seen them, will not come
        if not function.is_linked and not _is_one_step(self.adjoint.solver):
            refuse_broken_graph(function, solution.x, is_map=self.adjoint.shifted)
            solution = replace(solution, num_matvecs=solution.num_matvecs + CALLS)
        if report is not None:
            report.forward, report.backward = solution, None
            report.trajectory = [layout.stacked(point).unravel(point) for point in solution.trajectory]
        policy = "warn" if isinstance(self.on_failure, Solver) else self.on_failure
        report_failure(f"{function.name}, forward", solution, policy, level_of_caller())
        function.settle(z)
        return layout.unravel(z)

    def _together(self, solve: Callable[..., Solution], start: torch.Tensor) -> Solution:
        """Solve for a map that communicates: a rank that is done lends its calls to those that are not."""
        function, tensors = self.function, tuple(t.detach() for t in self.function.tensors)
        with torch.no_grad(), Lockstep(function.gathered, idle=lambda: function(start, *tensors)) as ranks:
            return solve(ranks.together(lambda z: function(z, *tensors)), None, start)


def measured(
    function: FlatMap,
    merit: FlatMap | None,
    z: torch.Tensor,
    first: torch.Tensor | None,
    trajectory: bool,
    origin: str = "the given point",
) -> Solution:
    """Say how far a point that was found elsewhere is from being fixed: a search that takes no step."""
    image = function(z) if first is None else first
    residual, norm = (np.asarray(backend_of(x).host_norm(x), dtype=float) for x in (image - z, image))
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
        num_matvecs=0 if first is not None else 1,
        num_rmatvecs=0,
        solver=origin,
        trajectory=(z,) if trajectory else (),
    )


def _with_tolerance(solver: Any, rtol: float) -> Any:
    """Return ``solver`` with ``rtol`` in the place of the default of the state's dtype."""
    own = {f.name for f in fields(solver)}
    return replace(solver, rtol=rtol) if "rtol" in own and solver.rtol is None else solver


def _is_one_step(solver: Solver | None) -> bool:
    return isinstance(solver, Neumann) and solver.max_iters == 0


def _refuse_tracing(name: str) -> None:
    keys = torch._C._TorchDispatchModeKey
    if any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE)):
        raise SettingError(
            f"{name}: got tensors that are being traced (torch.func.linearize, make_fx, torch.export), expected "
            "numbers, on which a solver can decide when to stop. Use torch.func.jvp for linearize; leave the layer out "
            "of the traced part."
        )


def _adjoint_solver(name: str, adjoint: Any, on_failure: Any) -> Solver | None:
    if isinstance(adjoint, str):
        if adjoint == "jfb":
            return Neumann(max_iters=0, rtol=0.0)
        raise SettingTypeError(f"{name}: got adjoint={adjoint!r}, expected a Solver, 'jfb' or None.")
    check_policy(name, adjoint, on_failure)
    solver: Solver | None = adjoint
    return solver


def _first_guess(name: str, layout: Layout, given: Any) -> torch.Tensor:
    """Return a first guess of the adjoint as a flat tensor, from a flat one or from one like the state."""
    flat_shape = (*layout.batch, layout.size)
    if isinstance(given, torch.Tensor) and given.shape == flat_shape:
        flat = given.detach()
    else:
        leaves, treespec = optree.tree_flatten(given)
        shapes = [getattr(leaf, "shape", None) for leaf in leaves]
        if treespec != layout.treespec or shapes != list(layout.shapes):
            raise ShapeError(
                f"{name}: got adjoint_x0 with shapes {shapes}, expected {tuple(flat_shape)}, as report.backward.x has, "
                "or a structure like the state."
            )
        flat = layout.ravel(given).detach()
    if flat.dtype != layout.dtype:
        raise DtypeError(f"{name}: got adjoint_x0 of {flat.dtype}, expected {layout.dtype} as the state has.")
    return flat
