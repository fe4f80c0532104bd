"""Each system of a batch has a budget of its own, whatever its neighbours have spent."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.solvers.iteration import IterativeSolver

CLAIMS = (3, 7)  # the step at which each system claims to be done, in the first cycle


@dataclass(frozen=True, kw_only=True)
class Optimist(IterativeSolver):
    """Richardson steps that claim a residual of zero too early, once."""

    rtol: float = 1e-12
    max_iters: int = 10
    claims: tuple[int, ...] = CLAIMS

    atol: ClassVar[float] = 0.0
    final_residual: ClassVar[bool] = False

    def iterations(self, system, x, r):
        cycle = system.kept["cycle"] = system.kept.get("cycle", 0) + 1
        x, step = (system.zero() if x is None else x), 0
        while True:
            claimed = np.array([cycle == 1 and step == claim for claim in self.claims])
            size = np.where(claimed, 0.0, np.linalg.norm(r, axis=-1))
            yield (float(size[0]) if system.single else size), x
            x, r = system.park(x, r)
            x = x + r
            r = r - system.matvec(r)
            step += 1


def test_a_system_with_steps_left_goes_on_where_its_neighbour_has_spent_them():
    """After false claims at 3 and 7 of 10 steps the second cycle has 7 and 3 left: it is one cycle for both."""
    A = ig.DenseOperator(0.5 * np.eye(2))
    rhs = np.array([[1.0, 2.0], [3.0, -1.0]])
    solution = Optimist().solve(A, rhs)
    assert list(solution.status) == [Status.MAX_ITERS, Status.MAX_ITERS]
    assert solution.num_iters.tolist() == [10, 10]
    assert solution.num_matvecs == (7 + 1) + (7 + 1)  # steps and a check, twice
    for i, claim in enumerate(CLAIMS):
        alone = Optimist(claims=(claim,)).solve(A, rhs[i])
        assert alone.num_matvecs == 10 + 2
        # The neighbour's steps must not move a system that waits parked for its next cycle.
        assert np.allclose(solution.x[i], alone.x, rtol=1e-14)
