"""What is said of the bias of a truncated series, beside what it is."""

import math

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import make_problem
from implicitgrad.testing.oracles import operator_of


def truncated(problem, steps, solver=ig.Neumann, **more):
    return solver(rtol=0, max_iters=steps, **more).solve(problem.operator, problem.rhs)


@pytest.mark.parametrize("kind", ["normal", "symmetric contraction"])
@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
@pytest.mark.parametrize("final", [False, True])
def test_the_bias_of_a_normal_contraction_is_known_within_a_factor(kind, solver, final):
    """K >= 5: at least a third of the true bias, at most (1 + rho) / (1 - rho) times it."""
    seen = 0
    for seed in range(100):
        problem = make_problem(kind, [1, 3, 8, 25][seed % 4], seed)
        rho = np.abs(np.linalg.eigvals(np.eye(problem.size) - problem.dense)).max()
        for steps in (5, 10, 20):
            solution = truncated(problem, steps + (solver is ig.Richardson), solver, final_residual=final)
            true = np.linalg.norm(problem.x_exact - solution.x)
            if true < 1e-10 * np.linalg.norm(solution.x):
                continue  # rounding
            assert true / 3 <= solution.bias <= 1.001 * (1 + rho) / (1 - rho) * true, f"{kind} {seed}, K = {steps}"
            seen += 1
    assert seen > 200


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
@pytest.mark.parametrize("final", [False, True])
def test_one_positive_eigenvalue_has_a_known_bias(solver, damping, final):
    """A geometric series: the tail is exact."""
    J = ig.DenseOperator(0.75 * np.eye(3))
    g = np.array([1.0, -2.0, 2.0])
    solution = ig.adjoint_solve(J, g, solver=solver(rtol=0, max_iters=4, damping=damping, final_residual=final))
    assert solution.bias == pytest.approx(np.linalg.norm(4 * g - solution.x), rel=1e-12)


def test_damping_does_not_hide_the_slow_eigenvalue():
    J = ig.DenseOperator(np.diag([0.9, -0.9]))
    for damping in (0.0, 0.5):
        solution = ig.adjoint_solve(J, np.ones(2), solver=ig.Neumann(rtol=0, max_iters=20, damping=damping))
        true = np.linalg.norm([10 - solution.x[0], 1 / 1.9 - solution.x[1]])
        assert true / 1.01 <= solution.bias <= 2 * true


def test_one_term_has_no_decay_to_go_by_unless_the_residual_was_measured():
    J = ig.DenseOperator(0.5 * np.eye(3))
    for solver in (ig.Neumann(max_iters=0), ig.Richardson(rtol=0, max_iters=1), ig.Richardson(rtol=0, max_iters=0)):
        assert ig.adjoint_solve(J, np.ones(3), solver=solver).bias is None
    for solver in (
        ig.Neumann(rtol=0, max_iters=0, final_residual=True),
        ig.Richardson(rtol=0, max_iters=1, final_residual=True),
    ):
        solution = ig.adjoint_solve(J, np.ones(3), solver=solver)
        assert solution.bias == pytest.approx(3**0.5)  # 2 - 1 in each of three entries


def test_growing_terms_have_no_bound():
    J = ig.DenseOperator(-1.5 * np.eye(2))
    for solver in (ig.Neumann(rtol=0, max_iters=3), ig.Richardson(rtol=0, max_iters=3)):
        solution = ig.adjoint_solve(J, np.ones(2), solver=solver)
        assert (solution.status, solution.bias) == (Status.TRUNCATED, math.inf)
        assert "bias unbounded" in solution.message


def test_a_series_that_ends_has_no_bias():
    J = ig.DenseOperator(2.0 * np.eye(4, k=1))
    assert ig.adjoint_solve(J, np.ones(4), solver=ig.Neumann(rtol=0, max_iters=6)).bias == 0.0


def test_a_transient_misleads_as_the_docstring_says():
    """Powers that fall fast at first and slowly later: the estimate is far below the truth."""
    J = ig.DenseOperator(np.diag([0.1, 0.98]))
    solution = ig.adjoint_solve(J, np.array([1.0, 1e-4]), solver=ig.Neumann(rtol=0, max_iters=2))
    true = np.linalg.norm(solution.x - np.array([1.0, 1e-4]) / [0.9, 0.02])
    assert 0 < solution.bias < true / 2
    shear = ig.DenseOperator(np.array([[0.5, 8.0], [0.0, 0.5]]).T)  # grows for a step, then contracts
    assert ig.adjoint_solve(shear, np.array([0.0, 1.0]), solver=ig.Neumann(rtol=0, max_iters=1)).bias == math.inf


def test_every_system_has_a_bias_of_its_own():
    matrix = np.stack([0.5 * np.eye(2), 0.5 * np.eye(2), np.full((2, 2), np.nan), 2.0 * np.eye(2), 0.9 * np.eye(2)])
    rhs = np.ones((5, 2))
    rhs[1] = 0
    A = operator_of(matrix, shifted=True)
    solution = ig.Neumann(rtol=0, max_iters=3).solve(A, rhs)
    names = [status.name for status in solution.status]
    assert names == ["TRUNCATED", "CONVERGED", "NONFINITE_OPERATOR", "TRUNCATED", "TRUNCATED"]
    assert solution.bias[0] == pytest.approx(2**0.5 / 8)
    assert solution.bias[1] == 0
    assert np.isnan(solution.bias[2])
    assert solution.bias[3] == math.inf
    assert solution.bias[4] == pytest.approx(2**0.5 * 10 * 0.9**4)
    assert "bias unbounded" in solution.message


@pytest.mark.parametrize("exponent", [-60, -3, 60])
def test_the_bias_has_the_unit_of_x(exponent):
    problem = make_problem("contraction", 7, 2)
    base = truncated(problem, 6)
    scaled = ig.Neumann(rtol=0, max_iters=6).solve(problem.operator, problem.rhs * 2.0**exponent)
    assert scaled.bias == base.bias * 2.0**exponent


def test_what_was_solved_and_what_has_no_rate_has_none(row):
    problem = make_problem("symmetric contraction", 12, 1)
    assert row.solver.solve(problem.operator, problem.rhs).bias is None
    if row.has_budget and not getattr(row.solver, "stationary", False):
        assert row.set(rtol=0.0, atol=0.0, max_iters=3).solve(problem.operator, problem.rhs).bias is None


def test_the_message_says_the_bias():
    J = ig.DenseOperator(0.5 * np.eye(1))
    solution = ig.adjoint_solve(J, np.ones(1), solver=ig.Neumann(rtol=0, max_iters=3))
    assert "norm(x* - x) about 1.2e-01" in solution.message
    assert "about" not in ig.adjoint_solve(J, np.ones(1)).message


def test_a_fallback_keeps_the_bias_of_the_systems_it_left_alone():
    calls = 0

    def product(u):
        nonlocal calls
        calls += 1
        return np.stack([0.5 * u[0], (np.nan if calls == 3 else 0.5) * u[1]])

    J = ig.VJPOperator(product, 2)
    solution = ig.adjoint_solve(J, np.ones((2, 2)), solver=ig.Neumann(rtol=0, max_iters=4), on_failure=ig.GMRES())
    assert [status.name for status in solution.status] == ["TRUNCATED", "CONVERGED"]
    assert solution.bias[0] == pytest.approx(2**0.5 / 16)
    assert np.isnan(solution.bias[1])
    assert "TRUNCATED, norm(x* - x) about" in solution.message
