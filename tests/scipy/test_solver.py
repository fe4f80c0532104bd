"""ScipySolver: SciPy's methods under our rules. Every residual here is recomputed with a matrix in double precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import Status

pytest.importorskip("scipy")
from scipy.sparse import diags_array

import implicitgrad.scipy as igs

HERMITIAN = ["cg", "minres"]
LEAST_SQUARES = ["lsqr", "lsmr"]
METHODS = [
    "cg", "cgs", "bicg", "bicgstab", "gmres", "lgmres", "gcrotmk", "minres", "qmr", "tfqmr", "lsqr", "lsmr",
]  # fmt: skip
TWO_PRODUCTS = ["cgs", "bicgstab"]
DTYPES = ["float32", "float64", "complex64", "complex128"]


class Counted(ig.LinearOperator):
    """A matrix, or one for each system, that counts what it is asked for."""

    def __init__(self, matrix, symmetric=False):
        self.inner = ig.DenseOperator(matrix)
        self.shape, self.dtype = self.inner.shape, self.inner.dtype
        self.symmetric = False
        self.matvecs = self.rmatvecs = 0

    def apply(self, x):
        self.matvecs += 1
        return self.inner.apply(x)

    def apply_adjoint(self, y):
        self.rmatvecs += 1
        return self.inner.apply_adjoint(y)


def problem(method, dtype="float64", size=20, condition=10.0, seed=0, batch=()):
    """A matrix of the given condition number, Hermitian (cg: definite) where the method asks for it, and b."""
    rng = np.random.default_rng(seed)
    is_complex = np.dtype(dtype).kind == "c"

    def normal(*shape):
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if is_complex else 0)

    Q, R = (np.linalg.qr(normal(*batch, size, size))[0] for _ in range(2))
    values = np.geomspace(1.0, 1 / condition, size)
    if method == "minres":
        values = values * rng.choice([-1.0, 1.0], size)
    if method in HERMITIAN:
        R = Q
    elif method not in LEAST_SQUARES:  # I plus a contraction: what the transpose-free methods are for
        Q, values = np.eye(size), None
        noise = normal(*batch, size, size)
        matrix = np.eye(size) + (1 - 2 / condition) * noise / np.linalg.norm(noise, 2, axis=(-2, -1))[..., None, None]
    if values is not None:
        matrix = (Q * values) @ np.swapaxes(R, -1, -2).conj()
    return matrix.astype(dtype), normal(*batch, size).astype(dtype)


def true_residual(matrix, x, b):
    wide = np.result_type(matrix, np.float64)
    return np.linalg.norm(b.astype(wide) - np.einsum("...ij,...j->...i", matrix.astype(wide), x.astype(wide)), axis=-1)


def assert_honest(matrix, b, sol):
    """CONVERGED means that the residual is within the bound, and its number is what was said, but for rounding."""
    wide = np.linalg.norm(matrix.astype(np.result_type(matrix, np.float64)), 2, axis=(-2, -1))
    rounding = 2 * b.shape[-1] * np.finfo(b.dtype).eps * (np.linalg.norm(sol.x, axis=-1) * wide + sol.rhs_norm)
    actual = true_residual(matrix, sol.x, b)
    assert np.all(np.isfinite(sol.x))
    assert np.all(np.abs(actual - sol.residual_norm) <= rounding)
    assert np.all(np.where(sol.converged, actual <= 1.01 * sol.bound + rounding, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 30), condition=st.sampled_from([2.0, 10.0, 30.0]))
def test_equals_the_dense_solve(method, dtype, seed, size, condition):
    if method == "minres" and dtype.startswith("complex"):
        return
    matrix, b = problem(method, dtype, size, condition, seed)
    sol = ig.solve(
        ig.DenseOperator(matrix), b, solver=igs.ScipySolver(method, max_iters=50 * size), on_failure="return"
    )
    assert_honest(matrix, b, sol)
    assert sol.x.dtype == dtype
    # Methods that look ahead nowhere (cgs, bicg, ...) may break down on an unlucky system; they say so then.
    assert sol.converged or (method not in [*HERMITIAN, *LEAST_SQUARES, "lgmres"] and sol.status is not None)
    if sol.converged:
        x = np.linalg.solve(matrix.astype(np.result_type(dtype, np.float64)), b)
        smallest = np.linalg.svd(matrix, compute_uv=False)[-1]
        assert np.linalg.norm(sol.x - x) <= 1.1 * sol.error_bound(smallest) + 1e3 * np.finfo(dtype).eps * condition


@pytest.mark.parametrize("method", METHODS)
def test_converges_on_an_easy_system(method):
    matrix, b = problem(method, size=30)
    sol = ig.solve(ig.DenseOperator(matrix), b, solver=igs.ScipySolver(method))
    assert sol.converged
    assert sol.solver == f"ScipySolver({method!r})"
    assert len(sol.history) == sol.num_iters + 1
    least = sol.num_matvecs - (3 if method == "minres" else 1)  # without the checks
    assert least <= sol.num_iters * (2 if method in TWO_PRODUCTS else 1) <= sol.num_matvecs


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_counts_are_those_of_an_instrumented_operator(method, start, batch):
    matrix, b = problem(method, size=25, condition=20.0, batch=batch)
    operator = Counted(matrix)
    sol = igs.ScipySolver(method).solve(operator, b, 0.1 * b if start else None)
    assert (sol.num_matvecs, sol.num_rmatvecs) == (operator.matvecs, operator.rmatvecs)
    assert (sol.num_rmatvecs > 0) == (method in ["bicg", "qmr", "lsqr", "lsmr"])
    assert np.all(sol.converged)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-60, -1, 7, 60])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_two_change_no_bit(method, exponent, dtype):
    matrix, b = problem(method, dtype, size=15)
    solver = igs.ScipySolver(method)
    one = solver.solve(ig.DenseOperator(matrix), b)
    other = solver.solve(ig.DenseOperator(matrix), np.ldexp(b, exponent))
    assert np.array_equal(np.ldexp(one.x, exponent), other.x)
    assert (one.status, one.num_iters, one.num_matvecs) == (other.status, other.num_iters, other.num_matvecs)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_systems(method):
    """Also beside a system with NaN and one of zeros, and with a guess for each."""
    matrix, b = problem(method, size=12, batch=(2, 3))
    b[0, 1, 3], b[1, 2] = np.nan, 0
    x0 = np.full_like(b, 0.5)
    solver = igs.ScipySolver(method)
    sol = solver.solve(ig.DenseOperator(matrix), b, x0)
    assert sol.x.shape == (2, 3, 12)
    assert sol.history.shape[1:] == (2, 3)
    for index in np.ndindex(2, 3):
        single = solver.solve(ig.DenseOperator(matrix[index]), b[index], x0[index])
        assert (sol.status[index], sol.num_iters[index]) == (single.status, single.num_iters)
        np.testing.assert_allclose(sol.x[index], single.x, atol=1e-7)
    assert sol.status[0, 1] is Status.NONFINITE_INPUT
    assert sol.status[1, 2] is Status.CONVERGED
    assert not sol.x[1, 2].any()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0,)])
def test_empty_batches_and_empty_systems(shape):
    operator = Counted(np.eye(shape[-1]))
    sol = igs.ScipySolver("gmres").solve(operator, np.ones(shape))
    assert sol.x.shape == shape
    assert np.all(sol.converged)
    assert operator.matvecs == 0


# -- what SciPy says of itself is not believed -------------------------------------------------------------------------
def test_minres_on_a_singular_system_is_no_success():
    """SciPy: info = 0 at relative residual 0.5."""
    matrix, b = np.diag([0.0, 1.0, 2.0, 3.0]), np.ones(4)
    sol = igs.ScipySolver("minres").solve(ig.DenseOperator(matrix, symmetric=True), b)
    assert sol.status is Status.STAGNATED
    assert_honest(matrix, b, sol)
    assert sol.residual_norm >= 1


@pytest.mark.parametrize("method", ["bicgstab", "cgs", "gmres", "cg"])
def test_a_small_right_hand_side_in_float32_is_solved(method):
    """SciPy's bicgstab returns x = 0, info = -10: its breakdown threshold eps**2 is absolute."""
    matrix, b = problem(method, "float32")
    sol = igs.ScipySolver(method).solve(ig.DenseOperator(matrix), b * np.float32(1e-8))
    assert sol.converged
    assert_honest(matrix, b * np.float32(1e-8), sol)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "rtol", "condition"), [("float64", 1e-12, 1e7), ("float32", 1e-6, 1e5)])
def test_no_false_success_at_the_edge_of_the_format(method, seed, dtype, rtol, condition):
    """cg at rtol 1e-12 and condition 1e7: its recurrence falls below the bound, the residual does not."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    matrix = ((Q * np.geomspace(1, 1 / condition, 40)) @ Q.T).astype(dtype)
    b = rng.standard_normal(40).astype(dtype)
    sol = igs.ScipySolver(method, rtol=rtol, max_iters=2000).solve(ig.DenseOperator(matrix), b)
    assert_honest(matrix, b, sol)
    assert sol.residual_norm <= sol.rhs_norm


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_range", [True, False])
def test_singular_systems(method, in_range):
    values = np.arange(10.0)
    b = np.where(values == 0, 0.0 if in_range else 1.0, 1.0)
    matrix = np.diag(values)
    sol = igs.ScipySolver(method).solve(ig.DenseOperator(matrix), b)
    assert_honest(matrix, b, sol)
    assert in_range or not sol.converged
    assert sol.status is not Status.MAX_ITERS or 2 * sol.num_matvecs >= sol.num_iters >= 100
    assert not (in_range and method in ["cg", "minres", "gmres", "lgmres", "lsqr", "lsmr"]) or sol.converged


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_operator_is_given_up_soon(method):
    """J = I: there is nothing to solve, and nothing to spend the budget on."""
    sol = igs.ScipySolver(method).solve(ig.DenseOperator(np.zeros((20, 20))), np.ones(20))
    assert sol.status in (Status.STAGNATED, Status.BREAKDOWN, Status.LEAST_SQUARES)
    assert sol.num_matvecs + sol.num_rmatvecs <= 8
    assert np.isfinite(sol.x).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(20))
def test_a_null_vector_that_grows_without_bound_does_not_overflow_the_answer(dtype, seed):
    """bicgstab adds ever more of it: nothing in the residual tells."""
    matrix, b = problem("bicgstab", dtype, 20, 10.0, seed)
    matrix[:, 0] = 0
    sol = igs.ScipySolver("bicgstab").solve(ig.DenseOperator(matrix), b)
    assert not sol.converged
    assert np.isfinite(sol.x).all()


@pytest.mark.parametrize("method", LEAST_SQUARES)
def test_rectangular_systems(method):
    rng = np.random.default_rng(0)
    tall, wide = rng.standard_normal((9, 5)), rng.standard_normal((5, 9))
    b = rng.standard_normal(9)
    solver = igs.ScipySolver(method)
    sol = solver.solve(ig.DenseOperator(tall), b)
    assert sol.status is Status.LEAST_SQUARES
    np.testing.assert_allclose(sol.x, np.linalg.lstsq(tall, b)[0], atol=1e-6)
    batch = solver.solve(ig.DenseOperator(tall), np.stack([b, tall @ np.ones(5)]))
    assert batch.x.shape == (2, 5)
    assert batch.status[1] is Status.CONVERGED
    shortest = solver.solve(ig.DenseOperator(wide), b[:5])
    assert shortest.converged
    np.testing.assert_allclose(shortest.x, np.linalg.lstsq(wide, b[:5])[0], atol=1e-6)
    with pytest.raises(ig.ShapeError, match="expected a square one"):
        igs.ScipySolver("gmres").solve(ig.DenseOperator(tall), b)


# -- budgets, guesses, zeros -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [0, 1, 5, 40])
def test_the_budget_bounds_the_products(method, most):
    """On top of the iterations: the check, and for gmres and tfqmr their own residuals and first product."""
    matrix, b = problem("cg", size=60, condition=1e6)
    sol = igs.ScipySolver(method, rtol=1e-14, max_iters=most).solve(ig.DenseOperator(matrix), b)
    assert not sol.converged
    assert sol.num_iters <= most
    extra = {"gmres": most // 20 + 1, "tfqmr": 1, "lgmres": 1, "gcrotmk": 1}.get(method, 0)
    assert sol.num_matvecs <= most * (2 if method in TWO_PRODUCTS else 1) + bool(most) + extra
    if most <= 5:
        assert sol.status is Status.MAX_ITERS


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_budget_is_spent(method):
    matrix, b = problem("cg", size=60, condition=1e3)
    operator = Counted(matrix)
    sol = igs.ScipySolver(method, rtol=0.0, max_iters=7).solve(operator, b)
    assert sol.status is Status.TRUNCATED
    assert sol.residual_norm is None
    assert sol.num_iters == 7
    assert 7 <= operator.matvecs == sol.num_matvecs <= 14
    checked = igs.ScipySolver(method, rtol=0.0, max_iters=7, final_residual=True).solve(operator, b)
    assert checked.status is Status.TRUNCATED
    assert_honest(matrix, b, checked)


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_budget_beyond_the_exact_answer_keeps_it(method):
    sol = igs.ScipySolver(method, rtol=0.0, max_iters=20).solve(ig.DenseOperator(2 * np.eye(3)), np.ones(3))
    assert sol.status is Status.TRUNCATED
    np.testing.assert_allclose(sol.x, 0.5, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_guess_costs_one_product_and_zero_none(method):
    matrix, b = problem(method)
    operator = Counted(matrix)
    sol = igs.ScipySolver(method).solve(operator, b, np.linalg.solve(matrix, b))
    assert sol.converged
    assert operator.matvecs == 1
    assert operator.rmatvecs == 0
    sol = igs.ScipySolver(method).solve(operator, 0 * b, b)
    assert sol.converged
    assert operator.matvecs == 1
    assert not sol.x.any()


def test_options_reach_scipy():
    matrix, b = problem("cg", size=60, condition=1e3)
    products = [
        igs.ScipySolver("gmres", options={"restart": restart}).solve(ig.DenseOperator(matrix), b).num_matvecs
        for restart in (5, 60)
    ]
    assert products[1] <= 61 < products[0]
    inverse = diags_array(1 / np.arange(1.0, 101.0))
    sol = igs.ScipySolver("cg", options={"M": inverse}).solve(
        ig.DenseOperator(np.diag(np.arange(1.0, 101.0))), np.ones(100)
    )
    assert sol.converged
    assert sol.num_matvecs <= 3


# -- NaN, exceptions, mistakes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_told_at_once(method, bad):
    matrix, b = problem(method, size=40)
    operator = Counted(matrix)
    broken = b.copy()
    broken[3] = bad
    sol = igs.ScipySolver(method).solve(operator, broken)
    assert sol.status is Status.NONFINITE_INPUT
    assert operator.matvecs + operator.rmatvecs == 0
    matrix[0, 0] = bad
    sol = igs.ScipySolver(method).solve(ig.DenseOperator(matrix), b)
    assert sol.status is Status.NONFINITE_OPERATOR
    assert np.isfinite(sol.x).all()
    assert sol.num_matvecs + sol.num_rmatvecs <= 3


@pytest.mark.parametrize(("method", "most"), [("cg", 1), ("cg", 10), ("bicgstab", 10)])
def test_a_breakdown_of_scipy_is_told_with_a_finite_iterate(method, most):
    """b^T A b = 0: cg divides by it, bicgstab says info = -11."""
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]])
    sol = igs.ScipySolver(method, max_iters=most).solve(ig.DenseOperator(matrix), np.array([1.0, 0.0]))
    assert sol.status is Status.BREAKDOWN
    assert not sol.x.any()
    assert sol.num_matvecs <= 3


@pytest.mark.parametrize("method", ["cg", "cgs", "bicgstab", "bicg", "minres", "qmr", "tfqmr"])
def test_the_iterates_before_a_nan_are_not_lost(method):
    """One product is lost, by a race in the map say; SciPy goes on from what it had."""
    matrix, b = problem("cg", size=30, condition=5.0)

    class Once(Counted):
        def apply(self, x):
            return super().apply(x) * (np.nan if self.matvecs == 12 else 1.0)

    operator = Once(matrix)
    sol = igs.ScipySolver(method).solve(operator, b)
    assert sol.converged
    assert sol.num_matvecs == operator.matvecs > 13
    # One budget serves both calls; the two checks, and tfqmr's first products, come on top.
    sol = igs.ScipySolver(method, rtol=1e-14, max_iters=16).solve(Once(matrix), b)
    assert sol.num_iters == 16
    assert sol.num_matvecs <= 16 * (2 if method in TWO_PRODUCTS else 1) + (4 if method == "tfqmr" else 2)


@pytest.mark.parametrize("method", METHODS)
def test_no_product_is_spent_on_zero_and_one_budget_serves_all_calls(method):
    class Nonzero(Counted):
        def apply(self, x):
            assert x.any()
            return super().apply(x)

    matrix, b = problem("cg", "float32", size=40, condition=100.0)
    for most in (20, 50, 80):
        operator = Nonzero(matrix)
        sol = igs.ScipySolver(method, rtol=3e-7, max_iters=most).solve(operator, b)
        assert sol.num_iters <= most
        extra = 6 + (most // 10 if method in ("gmres", "lgmres", "gcrotmk") else 0)
        assert sol.num_matvecs <= most * (2 if method in TWO_PRODUCTS else 1) + extra


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [np.linalg.LinAlgError, KeyboardInterrupt, KeyError])
@pytest.mark.parametrize("product", [1, 2])
def test_the_exception_of_a_map_passes_through(method, error, product):
    """lgmres and gcrotmk take a LinAlgError for their own, and go on."""
    raised = error("the user's")
    matrix, b = problem(method)

    class Broken(Counted):
        calls = 0

        def apply(self, x):
            self.calls += 1
            if self.calls == product:
                raise raised
            return super().apply(x)

    operator = Broken(matrix)
    with pytest.raises(error) as caught:
        igs.ScipySolver(method).solve(operator, b)
    assert caught.value is raised
    assert operator.calls == product


def test_numpy_warnings_of_the_map_are_its_own():
    seen = []

    def vjp(u):
        seen.append(np.geterr())
        return 0.1 * u

    with np.errstate(over="raise", invalid="print"):
        ig.adjoint_solve(ig.VJPOperator(vjp, 3), np.ones(3), solver=igs.ScipySolver("cg"))
        assert seen == len(seen) * [np.geterr()]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: igs.ScipySolver("gmress"),
            ig.SettingTypeError,
            "got 'gmress', expected one of bicg, bicgstab, cg, cgs",
        ),
        (lambda: igs.ScipySolver(None), ig.SettingTypeError, "got None, expected one of"),
        (lambda: igs.ScipySolver("cg", rtoll=1), ig.SettingTypeError, "unexpected keyword argument 'rtoll'.*rtol"),
        (lambda: igs.ScipySolver("cg", rtol=-1.0), ig.SettingError, "got rtol=-1.0, expected a finite number >= 0"),
        (lambda: igs.ScipySolver("cg", max_iters=1.5), ig.SettingTypeError, "got max_iters=1.5, expected an integer"),
        (lambda: igs.ScipySolver("cg", options=3), ig.SettingTypeError, "got options=3, expected a mapping such as"),
        (
            lambda: igs.ScipySolver("gmres", options={"restrt": 3}),
            ig.SettingTypeError,
            "option 'restrt', expected of gmres one of restart, M.$",
        ),
        (
            lambda: igs.ScipySolver("cg", options={"maxiter": 3}),
            ig.SettingTypeError,
            "option 'maxiter', expected of cg one of M. Tolerances, max_iters and x0 are settings of ours",
        ),
        (
            lambda: ig.adjoint_solve(ig.VJPOperator(lambda u: u / 2, 3), np.ones(3), solver=igs.ScipySolver("lsmr")),
            ig.MissingProductError,
            r"ScipySolver\('lsmr'\).solve: got an operator without the adjoint product.*'gmres'",
        ),
        (
            lambda: ig.solve(ig.DenseOperator(np.eye(3)), np.ones(4), solver=igs.ScipySolver("cg")),
            ig.ShapeError,
            r"solve: got rhs of shape \(4,\), expected \(\.\.\., 3\)",
        ),
        (
            lambda: ig.solve(ig.DenseOperator(np.eye(3) + 0j), np.ones(3) + 0j, solver=igs.ScipySolver("minres")),
            ig.DtypeError,
            "got rhs of dtype complex128, expected real numbers",
        ),
    ],
)
def test_a_mistake_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_solver_is_a_value():
    solver = igs.ScipySolver("gmres", options={"restart": 5})
    assert solver == igs.ScipySolver("gmres", options=[("restart", 5)])
    assert hash(solver) == hash(igs.ScipySolver("gmres", options=(("restart", 5),)))
