"""A check that cannot fail is none: each is handed something that is wrong by just as much as it has to see."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import (
    assert_close,
    assert_neumann_error_bound,
    assert_no_false_success,
    assert_scale_equivariant,
    make_problem,
    propositions,
)


@dataclass(frozen=True)
class WithAnAbsoluteRidge(ig.Solver):
    """GMRES, and 1e-12 in the unit of ``x`` on top: the same steps, the same status, another answer."""

    def solve(self, operator, rhs, x0=None):
        solution = ig.GMRES().solve(operator, rhs, x0)
        return replace(solution, x=solution.x + 1e-12)


def test_an_absolute_part_of_x_is_not_scale_equivariant():
    problem = make_problem("contraction", size=6, seed=1)
    assert_scale_equivariant(ig.GMRES(), problem.operator, problem.rhs)
    with pytest.raises(AssertionError, match="x differs by"):
        assert_scale_equivariant(WithAnAbsoluteRidge(), problem.operator, problem.rhs)


def test_nan_is_close_to_nothing():
    """No comparison with NaN holds, so a gap of NaN exceeds no tolerance."""
    for wrong in (np.nan, np.inf):
        with pytest.raises(AssertionError, match="NaN or Inf"):
            assert_close(np.array([1.0, wrong]), np.array([1.0, 2.0]))
    with pytest.raises(AssertionError, match="NaN or Inf"):
        assert_close(np.array([1.0, 2.0]), np.array([1.0, np.nan]))


@pytest.mark.parametrize("times", [2, 100])
def test_a_residual_of_twice_the_bound_is_no_success(times):
    """CONVERGED with a residual norm of ``times`` the bound, told truthfully."""
    problem = make_problem("contraction", size=6, seed=1)
    solution = ig.GMRES().solve(problem.operator, problem.rhs)
    assert_no_false_success(problem, solution)
    residual = np.ones(6) / 6**0.5 * times * solution.bound
    x = np.linalg.solve(problem.dense, problem.rhs - residual)
    with pytest.raises(AssertionError, match="CONVERGED at a residual"):
        assert_no_false_success(problem, replace(solution, x=x, residual_norm=times * solution.bound))


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_sum_that_lacks_its_last_term_breaks_proposition_2(monkeypatch, steps):
    """For J = I / 2 the bound is attained, so one term less is beyond it."""
    jacobian = 0.5 * np.eye(3)
    assert_neumann_error_bound(jacobian, steps)
    short = lambda *, max_iters, **rest: ig.Neumann(max_iters=max_iters - 1, **rest)
    monkeypatch.setattr(propositions, "Neumann", short)
    with pytest.raises(AssertionError, match="P2"):
        assert_neumann_error_bound(jacobian, steps)
