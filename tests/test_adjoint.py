"""The entry points: which equation they solve, and what they do when it was not solved."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import ConvergenceWarning, NotConvergedError, SettingError, Status
from implicitgrad.testing import assert_close, make_problem, random_matrix
from implicitgrad.testing.counting import counted

RNG = np.random.default_rng(0)
MATRIX = 0.2 * random_matrix(RNG, 4, True)
G = random_matrix(RNG, 4, True)[0]


def test_the_three_entries_solve_their_equations():
    """(I - J)^H z = g with the conjugate transpose, (I - J) z = b, and A x = b."""
    J = ig.DenseOperator(MATRIX)
    eye = np.eye(4)
    for sol, matrix in [
        (ig.adjoint_solve(J, G, solver=ig.GMRES(rtol=1e-13)), (eye - MATRIX).conj().T),
        (ig.tangent_solve(J, G, solver=ig.GMRES(rtol=1e-13)), eye - MATRIX),
        (ig.solve(J, G, solver=ig.GMRES(rtol=1e-13)), MATRIX),
    ]:
        assert_close(sol.x, np.linalg.solve(matrix, G), eps=1e-13, condition=np.linalg.cond(matrix))


def test_one_matvec_of_the_adjoint_is_one_vjp():
    vjps, jvps = [], []
    J = ig.VJPOperator(lambda u: vjps.append(1) or u @ MATRIX.conj(), 4, jvp=lambda v: jvps.append(1) or v @ MATRIX.T)
    sol = ig.adjoint_solve(J, G)
    assert (sol.num_matvecs, sol.num_rmatvecs) == (len(vjps), len(jvps))
    assert not jvps
    sol = ig.tangent_solve(J, G)
    assert sol.num_matvecs == len(jvps)


SINGULAR = ig.DenseOperator(np.diag([1.0, 0.5]))
HARD = ig.DenseOperator(-3 * np.eye(2)[::-1].copy())


def test_by_default_a_failure_raises_with_the_solution_in_it():
    with pytest.raises(NotConvergedError, match=r"adjoint_solve: .* stopped after \d+ matvecs.*: \w+\. ") as caught:
        ig.adjoint_solve(SINGULAR, np.ones(2))
    assert isinstance(caught.value.solution, ig.Solution)
    assert not caught.value.solution.is_good
    assert np.isfinite(caught.value.solution.x).all()


def test_the_message_says_how_far_it_came():
    with pytest.raises(NotConvergedError, match=r"Neumann stopped after 4 matvecs at relative residual 6\.6e-01, "
                                                r"expected 1\.0e-06: MAX_ITERS. max_iters was reached"):  # fmt: skip
        ig.adjoint_solve(ig.DenseOperator(0.9 * np.eye(2)), np.ones(2), solver=ig.Neumann(rtol=1e-6, max_iters=3))


def test_warn_returns_and_return_is_silent():
    with pytest.warns(ConvergenceWarning, match="adjoint_solve: Neumann stopped") as record:
        sol = ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(), on_failure="warn")
    assert record[0].filename == __file__, "the warning points at the caller"
    assert sol.status is Status.DIVERGED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(), on_failure="return").status is Status.DIVERGED
        ig.adjoint_solve(HARD, np.ones(2), solver=ig.GMRES(), on_failure="warn")
        ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(rtol=0, max_iters=3), on_failure="warn")


def test_a_truncated_solve_is_no_failure():
    assert ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(rtol=0, max_iters=3)).status is Status.TRUNCATED


def test_a_solver_as_policy_takes_over_where_the_first_failed():
    sol = ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(), on_failure=ig.GMRES())
    assert sol.converged
    assert [a.solver for a in sol.attempts] == ["Neumann", "GMRES"]
    assert [a.status for a in sol.attempts] == [Status.DIVERGED, Status.CONVERGED]
    assert sol.num_matvecs == sum(a.num_matvecs for a in sol.attempts)
    with pytest.raises(NotConvergedError):
        ig.adjoint_solve(SINGULAR, np.ones(2), solver=ig.Neumann(max_iters=5), on_failure=ig.GMRES())


def test_a_fallback_serves_the_failed_systems_of_a_batch_only():
    matrix = np.stack([0.5 * np.eye(3), -3 * np.eye(3)[::-1], 0.2 * np.eye(3)])
    g = np.arange(9.0).reshape(3, 3) + 1
    J = ig.DenseOperator(matrix)
    alone = ig.adjoint_solve(J, g, solver=ig.Neumann(), on_failure="return")
    sol = ig.adjoint_solve(J, g, solver=ig.Neumann(), on_failure=ig.GMRES())
    assert np.all(sol.converged)
    for i in (0, 2):
        assert np.array_equal(sol.x[i], alone.x[i])
        assert sol.num_iters[i] == alone.num_iters[i]
    expected = np.linalg.solve((np.eye(3) - matrix[1]).T, g[1])
    assert_close(sol.x[1], expected, eps=1e-8)


# -- Auto --------------------------------------------------------------------------------------------------------------
def test_auto_takes_gmres_first_and_minres_for_a_symmetric_operator():
    assert ig.adjoint_solve(ig.DenseOperator(MATRIX), G).solver == "GMRES"
    S = ig.DenseOperator((MATRIX + MATRIX.conj().T) / 2, symmetric=True)
    assert ig.adjoint_solve(S, G).solver == "MINRES"


def test_auto_takes_short_recurrences_where_memory_is_short():
    problem = make_problem("contraction", 60, 0)
    sol = ig.solve(problem.operator, problem.rhs, solver=ig.Auto(memory=60 * 8 * 10))
    assert sol.solver == "BiCGSTAB"


def test_auto_falls_back_and_says_so():
    """A cap of three steps is too little for GMRES and LSMR, and rules out the n products of a dense solve."""
    problem = make_problem("contraction", 30, 0)
    sol = ig.solve(problem.operator, problem.rhs, solver=ig.Auto(max_iters=3), on_failure="return")
    assert [a.solver for a in sol.attempts] == ["GMRES", "LSMR"]
    assert sol.status is Status.MAX_ITERS
    assert sol.residual_norm == min(a.residual_norm for a in sol.attempts)
    assert sol.num_matvecs == sum(a.num_matvecs for a in sol.attempts)
    assert sol.num_rmatvecs == sum(a.num_rmatvecs for a in sol.attempts)


def test_auto_tries_nothing_else_where_nothing_else_can_help():
    J = ig.DenseOperator(0.5 * np.eye(3))
    sol = ig.adjoint_solve(J, np.array([1.0, np.nan, 0.0]), on_failure="return")
    assert [a.solver for a in sol.attempts] == ["GMRES"]
    assert sol.status is Status.NONFINITE_INPUT


def test_auto_says_least_squares_where_that_is_what_it_found():
    """The status does not hang on which of two equal residuals rounding made smaller."""
    for seed in range(20):
        problem = make_problem("singular, b out of range", 8, seed)
        sol = ig.solve(problem.operator, problem.rhs, on_failure="return")
        assert sol.status is Status.LEAST_SQUARES
        smallest = np.linalg.norm(problem.rhs - problem.dense @ problem.x_exact)
        assert sol.residual_norm == pytest.approx(smallest, rel=1e-6)


def test_auto_solves_rectangular_systems_by_lsmr():
    A = ig.DenseOperator(np.random.default_rng(1).standard_normal((3, 6)))
    assert ig.solve(A, np.ones(3)).solver == "LSMR"


# -- Solution ----------------------------------------------------------------------------------------------------------
@pytest.mark.fault(88)
def test_a_solution_and_its_error_can_be_pickled_and_copied():
    """FAULTS 88."""
    sol = ig.adjoint_solve(HARD, np.ones(2), solver=ig.Neumann(), on_failure="return")
    for other in (pickle.loads(pickle.dumps(sol)), copy.deepcopy(sol)):
        assert np.array_equal(other.x, sol.x)
        assert other.status is sol.status
    error = NotConvergedError("text", sol)
    other = pickle.loads(pickle.dumps(error))
    assert other.args == ("text",)
    assert other.solution.status is sol.status


def test_the_error_bound_holds_and_asks_for_what_it_needs():
    problem = make_problem("contraction", 12, 3)
    sol = ig.GMRES(rtol=1e-3).solve(problem.operator, problem.rhs)
    sigma = np.linalg.svd(problem.dense, compute_uv=False)[-1]
    assert np.linalg.norm(sol.x - problem.x_exact) <= sol.error_bound(sigma)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="expected a positive number"):
            sol.error_bound(wrong)
    with pytest.raises(SettingError, match="final_residual=True"):
        ig.Neumann(rtol=0, max_iters=2).solve(problem.operator, problem.rhs).error_bound(sigma)


def test_each_system_has_an_error_bound_of_its_own():
    rng = np.random.default_rng(0)
    dense = np.eye(4) - 0.2 * rng.standard_normal((3, 4, 4))
    A = ig.DenseOperator(dense)
    b = rng.standard_normal((3, 4))
    sol = ig.solve(A, b, solver=ig.GMRES(rtol=1e-2))
    smallest = np.linalg.svd(dense, compute_uv=False)[:, -1]
    found = ig.smallest_singular_value(A)
    error = np.linalg.norm(sol.x - np.linalg.solve(dense, b[..., None])[..., 0], axis=-1)
    for sigma in (smallest, found, found.lower, list(smallest)):
        bound = sol.error_bound(sigma)
        assert bound.shape == (3,)
        assert (error <= bound * (1 + 1e-9)).all()
        np.testing.assert_allclose(bound, sol.residual_norm / smallest, rtol=1e-6)
    one = sol.error_bound(smallest.min())
    assert (one >= sol.error_bound(smallest)).all()
    assert sol.error_bound(np.array([1.0, 0.0, 1.0]))[1] == np.inf
    singular = ig.DenseOperator(np.diag([1.0, 0.0]))
    least = ig.solve(singular, np.array([1.0, 0.0]), solver=ig.LSMR(), on_failure="return")
    assert least.error_bound(ig.smallest_singular_value(singular)) == np.inf  # known, and nothing is
    single = ig.solve(ig.DenseOperator(dense[0]), b[0], solver=ig.GMRES(rtol=1e-2))
    for sigma in (np.array(0.5), np.int64(1), 1, np.float32(0.5)):
        assert isinstance(single.error_bound(sigma), float)
    wrongs = (smallest[:2], np.ones((2, 3)), "0.5", None, True, np.True_, [0.1, -0.1, 0.1], 1j, np.array(0.5 + 1j))
    for wrong in wrongs:
        with pytest.raises(SettingError, match="expected a positive number, one for each system"):
            sol.error_bound(wrong)
    with pytest.raises(SettingError, match="expected a positive number"):
        single.error_bound(smallest)


SOLVERS = [
    None,
    ig.GMRES(),
    ig.BiCGSTAB(),
    ig.LSMR(),
    ig.NormalEquations(),
    ig.Dense(),
    ig.Neumann(max_iters=5),  # the series knows no systems, and is right, given time
    ig.CG(),
    ig.MINRES(),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_a_failed_solve_of_rows_that_mix_says_so_and_blames_nothing_else(solver, batch):
    """ADJOINT_MISMATCH of products from autograd, 'use a longer restart', 'use GMRES' of GMRES's own failure."""
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((30, 30))
    whole *= 0.9 / np.linalg.norm(whole, 2)
    vjp, jvp = (
        (lambda u: (u.reshape(30) @ whole).reshape(u.shape)),
        (lambda v: (whole @ v.reshape(30)).reshape(v.shape)),
    )
    J = ig.VJPOperator(vjp, 5, jvp=jvp, batched=True)
    A, calls = counted(ig.identity_minus(J).H)
    g = rng.standard_normal((*batch, 5))
    solution = ig.solve(A, g, solver=solver, on_failure="return")
    assert not solution.is_good
    assert all(status in (Status.COUPLED, Status.CONVERGED) for status in solution.status.ravel())
    assert (solution.num_matvecs, solution.num_rmatvecs) == calls()
    with pytest.raises(NotConvergedError, match="Leave batch_ndim at 0"):
        ig.adjoint_solve(J, g, solver=solver)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_constant_term_is_no_coupling(solver):
    """The other rows' products are not zero then, either."""
    J = ig.VJPOperator(lambda u: u @ np.diag([0.5, 3.0]) + 0.1, 2, jvp=lambda v: v @ np.diag([0.5, 3.0]) + 0.1)
    solution = ig.adjoint_solve(J, RNG.standard_normal((3, 2)), solver=solver, on_failure="return")
    assert not any(status is Status.COUPLED for status in solution.status)


def test_a_batch_of_empty_systems_costs_nothing():
    A, calls = counted(ig.DenseOperator(np.zeros((3, 0))))
    solution = ig.solve(A, np.ones((2, 3)), solver=ig.LSMR(), on_failure="return")
    assert (solution.num_matvecs, solution.num_rmatvecs) == calls()


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_failed_solve_of_rows_of_their_own_keeps_its_status(solver):
    """The other side; the product that asks is counted."""
    rng = np.random.default_rng(2)
    matrix = np.eye(5) - np.diag([0.0, 1.0, 1.0, 2.0, 3.0])  # I - J is singular
    A, calls = counted(ig.identity_minus(ig.DenseOperator(matrix)).H)
    solution = ig.solve(A, rng.standard_normal((4, 5)), solver=solver, on_failure="return")
    assert not any(status in (Status.COUPLED, Status.CONVERGED) for status in solution.status)
    assert (solution.num_matvecs, solution.num_rmatvecs) == calls()


def test_a_solution_prints_its_message():
    sol = ig.adjoint_solve(ig.DenseOperator(MATRIX), G)
    assert repr(sol).startswith("<Solution: GMRES stopped after")
    batch = ig.adjoint_solve(ig.DenseOperator(MATRIX), np.stack([G, 0 * G]))
    assert "2 of 2 systems: CONVERGED" in batch.message


def test_history_has_one_row_a_step():
    problem = make_problem("contraction", 12, 3, batch=3)
    sol = ig.GMRES().solve(problem.operator, problem.rhs)
    assert sol.history.shape == (sol.num_iters.max() + 1, 3)
    assert np.all(np.isnan(sol.history[-1]) == (sol.num_iters < sol.num_iters.max()))
