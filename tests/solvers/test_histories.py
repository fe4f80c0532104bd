"""What a Krylov method says of itself on the way: the residual of its iterate at every step, in the unit of b."""

from dataclasses import replace

import pytest

import implicitgrad as ig
from implicitgrad.testing import make_problem

METHODS = [ig.CG(), ig.MINRES(), ig.GMRES(), ig.BiCGSTAB(), ig.LSMR(), ig.NormalEquations()]


def _with_a_budget(solver, steps):
    settings = {"rtol": 0.0, "max_iters": steps}
    if isinstance(solver, ig.NormalEquations):
        return ig.NormalEquations(replace(solver.inner, **settings))
    return replace(solver, **settings)


@pytest.mark.parametrize("exponent", [0, 40])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("solver", METHODS, ids=lambda solver: solver.name)
def test_the_history_is_the_true_residual_of_every_iterate(solver, dtype, exponent):
    """history[k] = norm(b - A x_k): by the recurrence in one solve, from the dense matrix for budgets of k = 0 .. 4."""
    kind = "symmetric contraction" if isinstance(solver, ig.CG | ig.MINRES) else "contraction"
    problem = make_problem(kind, 12, seed=3, dtype=dtype, exponent=exponent)
    told = _with_a_budget(solver, 4).solve(problem.operator, problem.rhs).history
    assert len(told) == 5
    for k, size in enumerate(told):
        x = _with_a_budget(solver, k).solve(problem.operator, problem.rhs).x
        assert size == pytest.approx(problem.residual_norm(x), rel=1e-4), f"after {k} steps"
