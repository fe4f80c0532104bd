"""What holds of every solver: DESIGN section 4, rules 1 to 6. The answers come from a dense oracle."""

import numpy as np
import pytest
from hypothesis import given, settings

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import (
    KINDS,
    assert_batch_is_loop,
    assert_close,
    assert_honest_counts,
    assert_no_false_success,
    assert_scale_equivariant,
    make_problem,
)
from implicitgrad.testing.oracles import Problem
from implicitgrad.testing.strategies import problems

EASY = ("contraction", "normal", "J = 0", "symmetric contraction", "positive definite", "indefinite", "tiny", "huge")


def test_no_success_is_false_and_every_residual_is_the_true_one(row, dtype, systems):
    """Rules 1 and 4, over 30 systems of each of 18 kinds: 540 for each solver and dtype."""
    seen = 0
    for problem in systems(dtype, rounds=30):
        solution = row.solver.solve(problem.operator, problem.rhs)
        assert_no_false_success(problem, solution)
        seen += 1
    assert seen >= 500


@given(problem=problems())
def test_no_success_is_false_on_drawn_systems(row, problem):
    assert_no_false_success(problem, row.solver.solve(problem.operator, problem.rhs))


def test_a_solver_converges_where_its_premise_holds(row, dtype, systems):
    """And the error is then at most the bound on the residual over the smallest singular value."""
    seen = 0
    for problem in systems(dtype, rounds=30, exponents=False, rhs=("random", "one zero")):
        if not row.must_converge(problem):
            continue
        seen += 1
        solution = row.solver.solve(problem.operator, problem.rhs)
        assert solution.status is Status.CONVERGED, f"{problem.kind}, n = {problem.size}: {solution.message}"
        sigma = float(np.linalg.svd(problem.dense, compute_uv=False)[-1])
        error = float(np.linalg.norm(solution.x - problem.x_exact))
        allowed = (1.01 * solution.bound + problem.rounding(solution.x)) / sigma
        assert error <= allowed, f"{problem.kind}: error {error:.3e}, expected at most {allowed:.3e}"
    assert seen >= 40


@pytest.mark.fault(23)
@pytest.mark.parametrize("kind", ["singular, b in range"])
def test_a_singular_system_with_b_in_the_range_is_solved(row, dtype, kind):
    """x is not unique, its residual is what counts; symmetric and stationary methods have no claim on these."""
    if row.name in ("Neumann", "Richardson", "CG", "MINRES", "BiCGSTAB", "GMRES(5)"):
        pytest.skip("no claim")
    for seed in range(10):
        problem = make_problem(kind, 8, seed, dtype)
        assert row.solver.solve(problem.operator, problem.rhs).converged


@pytest.mark.fault(24)
@pytest.mark.parametrize("kind", ["J = I", "singular, b out of range"])
def test_a_singular_system_without_solution_is_never_a_success(row, dtype, kind):
    for seed in range(10):
        problem = make_problem(kind, 6, seed, dtype)
        solution = row.solver.solve(problem.operator, problem.rhs)
        assert not solution.is_good, solution.message


# -- rule 2: scaling ---------------------------------------------------------------------------------------------------
def test_scaling_by_powers_of_two_changes_no_bit(row, dtype, systems):
    for problem in systems(dtype, rounds=2, exponents=False, rhs=("random", "one zero")):
        assert_scale_equivariant(row.solver, problem.operator, problem.rhs, exponents=(-60, -1, 23, 60))


def test_scaling_changes_no_bit_when_atol_is_scaled_too(row, dtype, systems):
    """``atol`` has the unit of b."""
    for problem in systems(dtype, rounds=1, kinds=EASY, exponents=False, rhs=("random",)):
        atol = 1e-3 * float(np.linalg.norm(problem.rhs))
        base = row.set(rtol=0.0, atol=atol).solve(problem.operator, problem.rhs)
        for exponent in (-60, -3, 60):
            factor = problem.rhs.dtype.type(2.0**exponent)
            other = row.set(rtol=0.0, atol=atol * 2.0**exponent).solve(problem.operator, problem.rhs * factor)
            assert np.array_equal(other.x, base.x * factor)
            assert (other.num_iters, other.status) == (base.num_iters, base.status)


@pytest.mark.fault(38, 39, 40, 42)
@pytest.mark.parametrize(("dtype", "factors"), [("float32", (1e-25, 1e-37, 1e20, 1e35)), ("float64", (1e-200, 1e200))])
def test_squares_of_small_and_large_right_hand_sides_do_not_vanish(row, dtype, factors):
    """FAULTS 38 to 42: norm(b)**2 under- or overflows, b does not."""
    problem = make_problem("symmetric contraction", 8, 3, dtype)
    for factor in factors:
        rhs = (problem.rhs * problem.rhs.dtype.type(factor)).astype(dtype)
        solution = row.solver.solve(problem.operator, rhs)
        assert solution.converged
        exact = np.linalg.solve(problem.dense, rhs.astype(float) / factor)
        assert_close(solution.x.astype(float) / factor, exact, eps=4 * problem.eps**0.5)


@pytest.mark.fault(43)
def test_a_subnormal_right_hand_side_gives_no_nan(row):
    problem = make_problem("symmetric contraction", 4, 0)
    solution = row.solver.solve(problem.operator, np.full(4, 5e-324))
    assert np.abs(solution.x).max() <= 1e-321


# -- batches -----------------------------------------------------------------------------------------------------------
@pytest.mark.fault(62)
def test_a_batch_is_the_loop_of_its_systems(row, dtype, systems):
    for problem in systems(dtype, rounds=3, kinds=EASY, exponents=False, rhs=("random", "one zero"), batch=4):
        if row.needs_adjoint and problem.condition > 10:
            continue  # after n steps the recurrences have lost their orthogonality: rounding moves the last step by one
        if all(row.must_converge(problem.one(i)) for i in range(4)):
            assert_batch_is_loop(row.set(rtol=1e-3), problem)


@pytest.mark.fault(61, 62, 63)
def test_a_batch_next_to_nan_zero_and_divergence_is_the_loop(row, dtype):
    """A NaN in b, a zero b and a system whose iteration diverges leave their neighbours alone."""
    for seed in range(6):
        problem = make_problem("symmetric contraction", 20, seed, dtype, batch=5)
        rhs, matrix = problem.rhs.copy(), problem.matrix / 2
        rhs[1, 3] = np.nan
        rhs[2] = 0
        matrix[3] -= 7 * np.eye(20, dtype=dtype)  # I - J has eigenvalues near 8: easy for all but the stationary ones
        mixed = Problem(
            problem.kind, np.eye(20) - matrix.astype(problem.dense.dtype), rhs, matrix, True, symmetric=True
        )
        assert_batch_is_loop(row.solver, mixed)
        solution = row.solver.solve(mixed.operator, mixed.rhs)
        assert solution.status[1] is Status.NONFINITE_INPUT
        assert solution.status[2] is Status.CONVERGED
        assert np.all(solution.x[2] == 0)
        assert np.isfinite(solution.x).all()
        assert all(solution.status[i] is Status.CONVERGED for i in (0, 4))


@pytest.mark.fault(63)
def test_a_system_whose_products_are_nan_leaves_its_neighbours_alone(row, dtype):
    for seed in range(4):
        problem = make_problem("symmetric contraction", 20, seed, dtype, batch=3)
        matrix = problem.matrix / 2
        matrix[1, 2, 2] = np.nan
        sick = Problem(problem.kind, problem.dense, problem.rhs, matrix, True, symmetric=True)
        solution = row.solver.solve(sick.operator, sick.rhs)
        assert solution.status[1] is Status.NONFINITE_OPERATOR
        assert np.isfinite(solution.x).all()
        for i in (0, 2):
            alone = row.solver.solve(sick.one(i).operator, sick.rhs[i])
            assert (solution.status[i], solution.num_iters[i]) == (alone.status, alone.num_iters)
            assert_close(solution.x[i], alone.x, condition=100)


def test_a_system_that_has_ended_sends_no_more_nan_to_the_operator(row):
    """Its vectors are parked at zero, for an operator serves the whole batch in one call."""
    matrix = make_problem("symmetric contraction", 20, 0).matrix / 2
    calls, late = 0, []

    def product(u):
        nonlocal calls
        calls += 1
        late.append(bool(np.isfinite(u).all()))
        y = u @ matrix
        if calls == 2:
            y[1, 4] = np.nan
        return y

    A = ig.identity_minus(ig.VJPOperator(product, 20, jvp=product, symmetric=True)).H
    solution = row.solver.solve(A, np.random.default_rng(0).standard_normal((3, 20)))
    assert all(late[3:]), f"NaN reached products {[i for i, fine in enumerate(late) if not fine]}"
    assert solution.status[0] is solution.status[2] is Status.CONVERGED
    assert np.isfinite(solution.x).all()


@pytest.mark.fault(5, 8)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (2, 0), (0,)])
def test_empty_arrays_are_solved_by_nothing(row, shape):
    """FAULTS 5 and 8: n = 0 and a batch of none cost no product."""
    J = ig.VJPOperator(lambda u: 0.5 * u, size=shape[-1], jvp=lambda v: 0.5 * v)
    solution = ig.adjoint_solve(J, np.zeros(shape), solver=row.solver)
    assert solution.x.shape == shape
    assert (solution.num_matvecs, solution.num_rmatvecs) == (0, 0)


def test_a_batch_of_two_axes_keeps_its_shape(row):
    problem = make_problem("symmetric contraction", 5, 0, batch=6)
    J = ig.DenseOperator(problem.matrix.reshape(2, 3, 5, 5), symmetric=True)
    solution = ig.adjoint_solve(J, problem.rhs.reshape(2, 3, 5), solver=row.solver)
    assert solution.status.shape == (2, 3)
    flat = row.solver.solve(problem.operator, problem.rhs)
    assert_close(solution.x.reshape(6, 5), flat.x, condition=100)


# -- rule 5: warm starts -----------------------------------------------------------------------------------------------
@pytest.mark.fault(20)
def test_an_exact_guess_costs_at_most_one_product(row, dtype, systems):
    for problem in systems(dtype, rounds=4, exponents=False, rhs=("random", "one zero")):
        if row.must_converge(problem):
            x0 = problem.x_exact.astype(dtype)
            solution = row.solver.solve(problem.operator, problem.rhs, x0)
            assert solution.converged
            assert solution.num_matvecs + solution.num_rmatvecs <= 1
            assert np.array_equal(solution.x, x0)
            assert not np.shares_memory(solution.x, x0)


def test_a_terrible_guess_moves_neither_the_bound_nor_the_truth(row, dtype, systems):
    for problem in systems(dtype, rounds=4, exponents=False, rhs=("random",)):
        rng = np.random.default_rng(5)
        x0 = (1e4 * rng.standard_normal(problem.size)).astype(dtype)
        kept = x0.copy()
        solution = row.solver.solve(problem.operator, problem.rhs, x0)
        assert solution.bound == row.solver.solve(problem.operator, problem.rhs).bound
        assert_no_false_success(problem, solution)
        assert np.array_equal(x0, kept)
        start = problem.residual_norm(x0)
        assert solution.residual_norm <= 1.01 * start + problem.rounding(x0), "worse than the guess"


def test_a_terrible_guess_is_overcome(row, systems):
    """In double precision, from a start a thousand times too large."""
    for problem in systems("float64", rounds=4, kinds=EASY, exponents=False, rhs=("random",)):
        if row.must_converge(problem):
            x0 = 1e3 * np.linalg.norm(problem.x_exact) * np.ones(problem.size)
            solution = row.solver.solve(problem.operator, problem.rhs, x0)
            assert solution.converged, f"{problem.kind}: {solution.message}"


# -- rules 4 and 6: counts, budgets and the best iterate ---------------------------------------------------------------
def test_reported_products_are_the_products_made(row, dtype, systems):
    for problem in systems(dtype, rounds=2):
        assert_honest_counts(row.solver, problem.operator, problem.rhs)
        x0 = np.ones(problem.size, dtype)
        assert_honest_counts(row.solver, problem.operator, problem.rhs, x0)


def test_reported_products_are_the_products_made_with_a_budget(budget_row, dtype, systems):
    for problem in systems(dtype, rounds=1):
        for steps in (0, 1, 4):
            for final in (False, True):
                solver = budget_row.set(rtol=0.0, atol=0.0, max_iters=steps, final_residual=final)
                assert_honest_counts(solver, problem.operator, problem.rhs)


@settings(max_examples=30)
@given(problem=problems(max_size=12))
def test_the_result_is_never_worse_than_zero(row, problem):
    """The best iterate is returned; x = 0 is one of every method that starts there."""
    if row.name in ("Neumann", "Richardson"):
        return  # their first iterate is x = b
    solution = row.solver.solve(problem.operator, problem.rhs)
    assert solution.residual_norm <= solution.rhs_norm


def test_a_fixed_budget_is_spent_as_asked(budget_row, dtype):
    """TRUNCATED, no residual unless it is asked for, which costs one product more."""
    problem = make_problem("symmetric contraction", 12, 1, dtype)
    for steps in (1, 3, 6):
        bare = budget_row.set(rtol=0.0, atol=0.0, max_iters=steps).solve(problem.operator, problem.rhs)
        assert bare.status is Status.TRUNCATED
        assert bare.is_good
        assert not bare.converged
        assert bare.residual_norm is None
        assert bare.num_iters == steps
        solver = budget_row.set(rtol=0.0, atol=0.0, max_iters=steps, final_residual=True)
        full = solver.solve(problem.operator, problem.rhs)
        assert full.status is Status.TRUNCATED
        assert full.num_matvecs == bare.num_matvecs + 1
        assert full.num_rmatvecs == bare.num_rmatvecs
        assert np.array_equal(full.x, bare.x)
        assert_no_false_success(problem, full)


@pytest.mark.fault(64)
def test_no_steps_allowed_is_no_success(budget_row):
    """FAULTS 64: peers report success with x = 0. Neumann's series has a first term that costs nothing."""
    problem = make_problem("symmetric contraction", 5, 2)
    solution = budget_row.set(max_iters=0).solve(problem.operator, problem.rhs)
    assert solution.num_matvecs == solution.num_rmatvecs == 0
    if budget_row.name == "Neumann":
        assert solution.status is Status.TRUNCATED
        assert np.array_equal(solution.x, problem.rhs)
        return
    assert solution.status is Status.MAX_ITERS
    assert solution.residual_norm == pytest.approx(np.linalg.norm(problem.rhs))
    guess = 0.5 * problem.x_exact
    warm = budget_row.set(max_iters=0).solve(problem.operator, problem.rhs, guess)
    assert (warm.status, warm.num_matvecs) == (Status.MAX_ITERS, 1)
    assert np.array_equal(warm.x, guess)
    assert warm.residual_norm == pytest.approx(problem.residual_norm(guess))


@pytest.mark.fault(70)
def test_a_cap_that_is_reached_is_said(budget_row):
    """FAULTS 70: the status is MAX_ITERS, the residual the true one."""
    problem = make_problem("symmetric contraction", 30, 2)
    solution = budget_row.set(max_iters=2).solve(problem.operator, problem.rhs)
    assert solution.status is Status.MAX_ITERS
    assert solution.num_iters == 2
    assert_no_false_success(problem, solution)


@pytest.mark.fault(16)
def test_a_zero_right_hand_side_gives_zero_for_nothing(row, dtype, systems):
    for problem in systems(dtype, rounds=1, rhs=("zero",)):
        solution = row.solver.solve(problem.operator, problem.rhs, np.ones(problem.size, dtype))
        assert (solution.status, solution.num_matvecs, solution.num_rmatvecs) == (Status.CONVERGED, 0, 0)
        assert not solution.x.any()
        assert solution.residual_norm == 0.0
        assert solution.relative_residual == 0.0


def test_the_result_has_the_dtype_of_b_and_memory_of_its_own(row, dtype):
    for kind in ("J = 0", "symmetric contraction"):
        problem = make_problem(kind, 4, 1, dtype)
        kept = problem.rhs.copy()
        solution = row.solver.solve(problem.operator, problem.rhs)
        assert solution.x.dtype == problem.rhs.dtype
        assert not np.shares_memory(solution.x, problem.rhs)
        assert np.array_equal(problem.rhs, kept)


@pytest.mark.fault(89)
def test_the_same_problem_gives_the_same_bits(row, dtype):
    """FAULTS 89."""
    problem = make_problem("symmetric contraction", 9, 4, dtype)
    first, second = (row.solver.solve(problem.operator, problem.rhs) for _ in range(2))
    assert np.array_equal(first.x, second.x)


def test_solve_is_additive_in_b(row):
    """FAULTS section 3, item 3: z(a g1 + b g2) = a z1 + b z2, within the bounds on the residuals."""
    problem = make_problem("symmetric contraction", 9, 4)
    rng = np.random.default_rng(0)
    g1, g2 = rng.standard_normal((2, 9))
    z1, z2, z = (row.solver.solve(problem.operator, g).x for g in (g1, g2, 2.0 * g1 - 3.0 * g2))
    assert_close(z, 2.0 * z1 - 3.0 * z2, eps=4 * problem.eps**0.5, condition=problem.condition)


def test_every_kind_is_covered():
    assert len(KINDS) == 18
