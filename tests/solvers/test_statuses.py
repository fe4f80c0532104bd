"""Each status has a system that was built for it. And the other side: what must not be called that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import assert_close, assert_honest_counts, make_problem
from implicitgrad.testing.oracles import operator_of


def solve(matrix, b, solver, symmetric=False, x0=None):
    matrix = np.asarray(matrix, float)
    b = np.asarray(b, float)
    return solver.solve(ig.DenseOperator(matrix, symmetric=symmetric), b, x0)


# -- Neumann and Richardson --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
def test_neumann_with_a_budget_is_the_partial_sum_for_exactly_k_products(dtype, steps):
    """TRUNCATED: sum_{t=0..K} (J^H)^t g."""
    problem = make_problem("contraction", 6, steps, dtype)
    J = ig.VJPOperator(lambda u: problem.matrix.conj().T @ u, size=6)
    solution = ig.adjoint_solve(J, problem.rhs, solver=ig.Neumann(rtol=0, atol=0, max_iters=steps))
    assert solution.status is Status.TRUNCATED
    assert (solution.num_matvecs, solution.num_rmatvecs, solution.num_iters) == (steps, 0, steps)
    assert solution.residual_norm is None
    backward = problem.matrix.astype(problem.dense.dtype).conj().T
    expected = sum(np.linalg.matrix_power(backward, t) @ problem.rhs for t in range(steps + 1))
    assert_close(solution.x, expected, condition=steps + 1, scale=np.abs(expected) + np.abs(problem.rhs) * 10)
    assert_honest_counts(ig.Neumann(rtol=0, atol=0, max_iters=steps), problem.operator, problem.rhs)


def test_no_steps_of_neumann_are_the_one_step_gradient_in_memory_of_its_own():
    g = np.array([1.0, -2.0, 3.0])
    J = ig.VJPOperator(lambda u: 1 / 0, size=3)
    solution = ig.adjoint_solve(J, g, solver=ig.Neumann(max_iters=0))
    assert solution.status is Status.TRUNCATED
    assert np.array_equal(solution.x, g)
    assert not np.shares_memory(solution.x, g)


@pytest.mark.fault(32)
@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson()], ids=["Neumann", "Richardson"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 10), ("float64", 20), ("complex64", 10), ("complex128", 20)])
def test_an_expanding_orthogonal_j_diverges_within_few_steps(solver, dtype, most):
    """FAULTS 32, J = -3 Q. It takes log(threshold / eps) / log 3 steps: before that a decay could still help."""
    for seed in range(5):
        problem = make_problem("expanding", 30, seed, dtype)
        solution = solver.solve(problem.operator, problem.rhs)
        assert solution.status is Status.DIVERGED
        assert solution.num_matvecs <= most


@pytest.mark.fault(21, 37)
@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson()], ids=["Neumann", "Richardson"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transient_growth_is_not_divergence(solver, dtype):
    """FAULTS 21 and 37: a nilpotent J with norm 2, and spectral radius 0.5 with norm 4."""
    nilpotent = 2 * np.eye(10, k=1, dtype=dtype)
    J = ig.DenseOperator(nilpotent)
    solution = ig.adjoint_solve(J, np.ones(10, dtype), solver=solver)
    assert solution.converged
    assert solution.num_matvecs <= 12
    assert_close(solution.x, np.linalg.solve((np.eye(10) - nilpotent.astype(float)).T, np.ones(10)))
    slow = ig.DenseOperator(np.array([[0.5, 4.0], [0.0, 0.5]], dtype))
    assert ig.adjoint_solve(slow, np.ones(2, dtype), solver=solver).converged


@pytest.mark.fault(33)
@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson()], ids=["Neumann", "Richardson"])
def test_a_rotation_neither_diverges_nor_converges(solver):
    """FAULTS 33: spectral radius one."""
    J = ig.DenseOperator(np.array([[0.0, -1.0], [1.0, 0.0]]))
    assert ig.adjoint_solve(J, np.ones(2), solver=solver, on_failure="return").status is Status.MAX_ITERS


@pytest.mark.fault(36)
def test_a_slow_contraction_reaches_the_cap():
    """FAULTS 36: rho = 0.999, cap 200."""
    J = ig.DenseOperator(0.999 * np.eye(3))
    solution = ig.adjoint_solve(J, np.ones(3), solver=ig.Neumann(max_iters=200), on_failure="return")
    assert solution.status is Status.MAX_ITERS
    assert solution.relative_residual == pytest.approx(0.999**201, rel=1e-9)


@pytest.mark.fault(29)
def test_a_jordan_block_converges_where_peers_are_wrong():
    """FAULTS 29: eigenvalue 0.9, n = 4, cap 300."""
    J = ig.DenseOperator(0.9 * np.eye(4) + np.eye(4, k=1))
    assert ig.adjoint_solve(J, np.ones(4), solver=ig.Neumann(max_iters=400)).converged


# -- CG, MINRES --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("matrix", "b"), [(np.diag([1.0, -1.0]), [1, 1]), (np.diag([1.0, -2, 3]), [0, 1, 0])])
def test_negative_curvature_is_indefinite(matrix, b):
    solution = solve(matrix, b, ig.CG(), symmetric=True)
    assert solution.status is Status.INDEFINITE
    assert np.isfinite(solution.x).all()


def test_a_definite_system_is_not_indefinite():
    assert solve(np.diag([1.0, 1e-6, 3]), [1, 1, 1], ig.CG(), symmetric=True).converged


def test_a_system_whose_field_of_values_vanishes_is_indefinite_for_cg():
    """J = I: A = 0 has no curvature at all."""
    J = ig.DenseOperator(np.eye(3), symmetric=True)
    assert ig.adjoint_solve(J, np.ones(3), solver=ig.CG(), on_failure="return").status is Status.INDEFINITE


# -- singular systems --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", [ig.GMRES(), ig.Dense()], ids=["GMRES", "Dense"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_singular_system_without_solution_is_singular(solver, dtype):
    for matrix in (np.diag([1.0, 0.0]), np.array([[1.0, 1.0], [1.0, 1.0]])):
        A = ig.DenseOperator(matrix.astype(dtype))
        solution = solver.solve(A, np.array([1.0, 0.5], dtype))
        assert solution.status is Status.SINGULAR


@pytest.mark.fault(22)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_identity_as_j_is_singular_for_gmres_and_dense(dtype):
    """FAULTS 22: rounding in q^H q must not be taken for an eigenvalue of I - J."""
    for seed in range(30):
        problem = make_problem("J = I", 9, seed, dtype)
        for solver in (ig.GMRES(), ig.Dense()):
            assert solver.solve(problem.operator, problem.rhs).status is Status.SINGULAR


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "solver", [ig.LSMR(), ig.MINRES(), ig.NormalEquations()], ids=["LSMR", "MINRES", "NormalEquations"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_least_squares_is_said_with_the_smallest_residual(solver, dtype):
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    matrix = (q * np.array([0, 0, 1.0, 2, -1, 3])) @ q.T
    matrix = ((matrix + matrix.T) / 2).astype(dtype)
    b = rng.standard_normal(6).astype(dtype)
    solution = solver.solve(ig.DenseOperator(matrix, symmetric=True), b)
    assert solution.status is Status.LEAST_SQUARES
    smallest = np.linalg.norm(q[:, :2].T @ b)
    assert solution.residual_norm == pytest.approx(smallest, rel=1e-3)


def test_lsmr_gives_the_shortest_answer_of_a_rectangular_system():
    rng = np.random.default_rng(2)
    for shape in ((7, 4), (4, 7)):
        matrix, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
        solution = solve(matrix, b, ig.LSMR(rtol=1e-10))
        assert solution.status is (Status.LEAST_SQUARES if shape[0] > shape[1] else Status.CONVERGED)
        assert_close(solution.x, np.linalg.lstsq(matrix, b)[0], eps=1e-10, condition=10)


@pytest.mark.parametrize("solver", [ig.LSMR(), ig.NormalEquations()], ids=["LSMR", "NormalEquations"])
def test_b_orthogonal_to_the_range_has_the_answer_zero(solver):
    solution = solve(np.diag([1.0, 0.0]), [0, 1], solver)
    assert solution.status is Status.LEAST_SQUARES
    assert not solution.x.any()


def test_a_shift_of_the_normal_equations_is_not_called_a_solution():
    """eta of the reference code biases the answer: (A^H A + eta) x = A^H b."""
    matrix, b = np.diag([1.0, 2.0]), np.array([1.0, 1.0])
    solution = solve(matrix, b, ig.NormalEquations(ig.CG(rtol=1e-10), shift=0.5))
    assert solution.status is Status.LEAST_SQUARES
    assert_close(solution.x, np.array([1 / 1.5, 2 / 4.5]), eps=1e-10)


# -- operators that lie or fail ----------------------------------------------------------------------------------------
@pytest.mark.fault(50)
@pytest.mark.parametrize("solver", [ig.LSMR(), ig.NormalEquations()], ids=["LSMR", "NormalEquations"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_jvp_of_another_matrix_is_a_mismatch(solver, dtype):
    rng = np.random.default_rng(3)
    matrix, other = 0.5 * rng.standard_normal((2, 8, 8)).astype(dtype)
    J = ig.VJPOperator(lambda u: u @ matrix, 8, jvp=lambda v: other @ v)
    solution = ig.adjoint_solve(J, np.ones(8, dtype), solver=solver, on_failure="return")
    assert solution.status is Status.ADJOINT_MISMATCH
    assert solution.num_matvecs + solution.num_rmatvecs <= 5


@pytest.mark.fault(45, 46, 49)
def test_nan_and_inf_in_the_input_cost_no_product(row):
    for bad in (np.nan, np.inf, -np.inf):
        J = ig.VJPOperator(lambda u: 1 / 0, size=3, jvp=lambda v: 1 / 0)
        solution = row.solver.solve(ig.identity_minus(J).H, np.array([1.0, bad, 0.0]))
        assert solution.status is Status.NONFINITE_INPUT
        assert (solution.num_matvecs, solution.num_rmatvecs) == (0, 0)
        assert np.isfinite(solution.x).all()
    solution = row.solver.solve(ig.identity_minus(J).H, np.ones(3), np.array([1.0, np.nan, 0.0]))
    assert (solution.status, solution.num_matvecs) == (Status.NONFINITE_INPUT, 0)
    assert np.isfinite(solution.x).all()


@pytest.mark.fault(48)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_from_the_kth_product_on_stops_the_solve_at_once(row, bad):
    """FAULTS 48 and section 3, item 2: k = 1 .. 10, then the next solve is right and g, x0 are unchanged."""
    problem = make_problem("symmetric contraction", 30, 3)
    g, x0 = problem.rhs.copy(), np.ones(30)
    for k in range(1, 11):
        calls = 0

        def product(u, k=k):
            nonlocal calls
            calls += 1
            y = problem.matrix @ u
            return y if calls < k else np.where(np.arange(30) == 7, bad, y)

        A = ig.identity_minus(ig.VJPOperator(product, 30, jvp=product, symmetric=True)).H
        solution = row.solver.solve(A, g, x0)
        assert solution.status is Status.NONFINITE_OPERATOR, f"k = {k}: {solution.status}"
        assert np.isfinite(solution.x).all()
        assert solution.num_matvecs + solution.num_rmatvecs == calls
        assert calls <= k + 3 or row.name == "Dense"  # the step of two products is finished, the best iterate measured
        assert solution.residual_norm is None or np.isfinite(solution.residual_norm)
        assert np.array_equal(g, problem.rhs)
        assert np.array_equal(x0, np.ones(30))
    assert row.solver.solve(problem.operator, problem.rhs).converged


def test_a_nan_in_passing_does_not_reach_the_result(row):
    """One product is NaN, all others are right: whatever is said, x is finite and its residual the true one."""
    problem = make_problem("symmetric contraction", 12, 3)
    for k in range(1, 8):
        calls = 0

        def product(u, k=k):
            nonlocal calls
            calls += 1
            y = problem.matrix @ u
            return y if calls != k else np.full(12, np.nan)

        A = ig.identity_minus(ig.VJPOperator(product, 12, jvp=product, symmetric=True)).H
        solution = row.solver.solve(A, problem.rhs)
        assert np.isfinite(solution.x).all()
        if solution.converged:
            assert problem.residual_norm(solution.x) <= 1.01 * solution.bound


@pytest.mark.fault(44)
def test_products_that_overflow_are_nonfinite(row):
    """FAULTS 44: entries of 1e300 in J."""
    matrix = 1e300 * (1 + np.eye(4)) * 1e8
    A = operator_of(matrix, shifted=True, symmetric=True)
    with np.errstate(all="ignore"):
        solution = row.solver.solve(A, np.ones(4))
    assert not solution.is_good
    assert np.isfinite(solution.x).all()


@pytest.mark.fault(44)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("size", [1e150, 1e155, 1e160, 1e300])
def test_a_product_whose_square_overflows_is_said_at_once(row, size, batch):
    """NormalEquations took thirty idle steps from zero, and said MAX_ITERS; GMRES let an OverflowError through."""
    for matrix in (np.diag([1.0, 2.0, 3.0]), np.ones((3, 3))):
        J = ig.DenseOperator(size * matrix, symmetric=True)
        with np.errstate(all="ignore"):
            solution = ig.adjoint_solve(J, np.ones((*batch, 3)), solver=row.solver, on_failure="return")
        assert solution.num_matvecs + solution.num_rmatvecs <= 24
        assert np.isfinite(solution.x).all()
        if np.all(solution.converged):
            np.testing.assert_allclose(size * matrix @ solution.x.T, -1.0, rtol=1e-8)


@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_series_that_diverges_from_a_good_start_has_diverged(solver, dtype):
    """Its best iterate is far behind; its residual looked like noise beside the rounding of the last one."""
    for small in (-0.5, 0.3, 0.6):
        for large in (5.0, 30.0, -80.0):
            for part in (1e-2, 3e-4, 1e-5):
                J, g = ig.DenseOperator(np.diag([small, large]).astype(dtype)), np.array([1.0, part], dtype)
                solution = ig.adjoint_solve(J, g, solver=solver, on_failure="return")
                assert solution.status is Status.DIVERGED
                assert solution.relative_residual <= 1.0
                # One cycle: its steps, their check, and that of the iterate that was fallen back on.
                assert solution.num_matvecs <= solution.num_iters + 2
    for diagonal, part in (([-0.5, 30.0], 3e-4), ([0.3, 2.0], 2e-6)):
        J, g = ig.DenseOperator(np.diag(diagonal).astype(dtype)), np.array([1.0, part], dtype)
        for cap in range(1, 30):
            solution = ig.adjoint_solve(J, g, solver=replace(solver, max_iters=cap), on_failure="return")
            assert solution.status in (Status.DIVERGED, Status.MAX_ITERS)


# -- floors, restarts, breakdown ---------------------------------------------------------------------------------------
def test_the_floor_of_single_precision_is_recognized_with_few_products_wasted(row):
    """STAGNATED (or the floor's other names), where rtol asks for more than float32 has."""
    if row.name == "GMRES(5)":
        pytest.skip("restarts double the way to the floor")
    problem = make_problem("symmetric contraction", 60, 1, "float32")
    shrunk = operator_of(problem.matrix / 2, shifted=True, symmetric=True)
    near = row.set(rtol=1e-6).solve(shrunk, problem.rhs)
    beyond = row.set(rtol=1e-9).solve(shrunk, problem.rhs)
    assert near.converged
    assert beyond.status is Status.STAGNATED, beyond.message
    assert beyond.relative_residual < 1e-6
    spent, needed = (s.num_matvecs + s.num_rmatvecs for s in (beyond, near))
    assert spent <= 3 * needed + 8, f"{spent} products, {needed} reach 1e-6"


@pytest.mark.fault(66)
def test_a_tolerance_of_almost_nothing_ends_in_double_precision_too(row):
    """FAULTS 66: peers go past the solution to NaN."""
    problem = make_problem("symmetric contraction", 20, 1)
    solution = row.set(rtol=1e-300).solve(problem.operator, problem.rhs)
    assert solution.status in (Status.STAGNATED, Status.MAX_ITERS, Status.CONVERGED)
    assert solution.relative_residual < 1e-13


@pytest.mark.fault(31)
def test_a_restart_too_short_stagnates():
    """FAULTS 31: for the cyclic shift nothing is gained before step n."""
    shift = np.roll(np.eye(12), 1, axis=0)
    b = np.eye(12)[0]
    short = solve(shift, b, ig.GMRES(restart=4))
    assert short.status is Status.STAGNATED
    assert short.num_matvecs <= 10
    full = solve(shift, b, ig.GMRES())
    assert full.converged
    assert full.num_matvecs == 13


def test_bicgstab_breaks_down_on_a_skew_matrix():
    """<shadow, A p> = 0 at the first step."""
    solution = solve([[0.0, 1.0], [-1.0, 0.0]], [1, 0], ig.BiCGSTAB())
    assert solution.status is Status.BREAKDOWN
    assert np.isfinite(solution.x).all()
    assert ig.solve(ig.DenseOperator(np.array([[0.0, 1.0], [-1.0, 0.0]])), np.eye(2)[0], solver=ig.GMRES()).converged


def test_a_small_right_hand_side_is_no_breakdown():
    """SciPy compares with eps**2 and reports -10 at norm(b) = 1e-14."""
    problem = make_problem("contraction", 20, 1)
    assert ig.BiCGSTAB().solve(problem.operator, 1e-14 * problem.rhs).converged


def test_every_status_has_a_sentence():
    for status in Status:
        assert len(status.sentence) > 40
        assert status.sentence.endswith(".")
        assert status.is_good is (status in (Status.CONVERGED, Status.TRUNCATED, Status.SAMPLED))


def test_every_status_stands_in_the_table_of_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "statuses.md").read_text()
    for status in Status:
        assert f"| `{status.name}` |" in page


def test_a_solution_that_its_dtype_cannot_hold_is_no_success():
    J = ig.DenseOperator(0.9 * np.eye(4, dtype=np.float32))
    solution = ig.adjoint_solve(J, np.full(4, 3e38, np.float32), on_failure="return")
    assert solution.status is ig.Status.OVERFLOW


def test_minres_says_least_squares_only_of_a_minimizer():
    """Of singular systems without a solution; where rounding spoiled the recurrence, it says so and claims nothing."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        n = int(rng.integers(3, 30))
        B = rng.standard_normal((n, int(rng.integers(1, n))))
        b = rng.standard_normal(n)
        A = ig.DenseOperator(B @ B.T / n, symmetric=True)
        solution = ig.solve(A, b, solver=ig.MINRES(), on_failure="return")
        if solution.status is not ig.Status.LEAST_SQUARES:
            assert not solution.status.is_good
            continue
        found += 1
        assert solution.residual_norm <= 1.01 * np.linalg.norm(b - B @ np.linalg.lstsq(B, b)[0])
    assert found >= 95


@pytest.mark.fault(53)
def test_a_product_that_writes_into_its_input_leaves_the_right_hand_side_alone():
    torch = pytest.importorskip("torch")
    for solver in (ig.Neumann(), ig.Richardson(), ig.CG(), ig.BiCGSTAB(), ig.NormalEquations(), ig.GMRES()):
        g = torch.tensor([1.0, 2.0, 3.0])
        J = ig.VJPOperator(lambda u: u.mul_(0.5).clone(), 3, symmetric=True)
        with pytest.raises(ig.OperatorError, match="in place"):
            ig.adjoint_solve(J, g, solver=solver)
        assert g.tolist() == [1.0, 2.0, 3.0]


def test_zero_tolerances_without_a_budget_go_as_far_as_the_format():
    solution = ig.adjoint_solve(
        ig.DenseOperator(np.eye(20) / 2), np.ones(20), solver=ig.GMRES(rtol=0), on_failure="return"
    )
    assert solution.num_matvecs <= 4
    assert solution.relative_residual <= 1e-15


@pytest.mark.parametrize("solver", [ig.Neumann(), ig.Richardson(), ig.GMRES(), ig.BiCGSTAB(), ig.Auto()], ids=repr)
def test_rows_that_belong_together_are_no_batch(solver):
    """Nodes of a graph handed over as systems: whose own b is zero has an answer that the others decide."""
    n = 12
    chain = np.diag(np.full(n - 1, 0.4), 1) + np.diag(np.full(n - 1, 0.4), -1)
    J = ig.VJPOperator(lambda u: chain.T @ u, size=2)  # mixes the rows
    g = np.zeros((n, 2))
    g[0] = 1.0
    solution = ig.adjoint_solve(J, g, solver=solver, on_failure="return")
    assert not solution.is_good
    assert solution.status[1] is Status.COUPLED
    alone = np.zeros((n, 2))
    alone[0] = g[0]
    diagonal = ig.VJPOperator(lambda u: 0.4 * u, size=2)  # the same right-hand sides, and rows that are systems
    assert ig.adjoint_solve(diagonal, alone, solver=solver).converged.all()
