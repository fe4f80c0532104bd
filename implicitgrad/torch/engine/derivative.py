"""How a derivative's linear system is solved, and who is told: the settings that travel with the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from implicitgrad.adjoint import adjoint_solve, report_failure, solve, tangent_solve
from implicitgrad.backends.host import any_true, pick
from implicitgrad.backends.sharded import Sharded
from implicitgrad.errors import NotConvergedError
from implicitgrad.operators import VJPOperator
from implicitgrad.solvers import Solution, Solver
from implicitgrad.status import Status
from implicitgrad.torch.engine.graph import level_of_caller
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Adjoint"]


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
        twice: bool = True,
    ) -> Solution:
        """Solve ``A^H u = cotangent``, or ``A v = tangent``; report, then raise or warn as the policy says.

        Where ``moved`` holds, ``point`` is no solution of the equation any more: ``FORWARD_NOT_CONVERGED``. ``twice``
        says whether the graph can be differentiated twice; solvers that need a JVP are left out where not.
        """
        rhs: Any = cotangent.detach()
        x0: Any = self.x0 if transposed and self.x0 is not None and self.x0.shape == rhs.shape else None
        size = None
        if self.cut is not None:
            rhs, x0, size = self.cut.like(rhs), None if x0 is None else self.cut.like(x0), self.cut.shape[-1]
        operator: VJPOperator = jacobian_of(image, point, symmetric=self.symmetric, size=size, twice=twice)
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
        report_failure(name, solution, policy, level_of_caller())
        # NaN goes through a layer as through any other operation: a GradScaler looks for it in the gradients.
        lost = np.asarray(solution.status) == Status.NONFINITE_INPUT
        if lost.any():
            mask = torch.as_tensor(lost, device=cotangent.device)[..., None]
            solution = replace(solution, x=torch.where(mask, torch.nan, solution.x))
        return solution
