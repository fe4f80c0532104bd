"""Errors from norms: the Neumann sum, state, adjoint and gradient; traces and Frobenius norms from probes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad.testing import assert_close, make_problem


@given(seed=st.integers(0, 10**6), terms=st.integers(0, 30))
def test_neumann_error_is_below_the_bound_of_proposition_2(seed, terms):
    """norm(sum_{t<=K} J^t - (I - J)^{-1}) <= norm((I - J)^{-1}) norm(J)^{K+1}, by either form of the first factor."""
    J = make_problem("contraction", 12, seed).matrix
    inverse = np.linalg.inv(np.eye(12) - J)
    total = sum(np.linalg.matrix_power(J, t) for t in range(terms + 1))
    error = np.linalg.norm(total - inverse, 2)
    norm, sigma = np.linalg.norm(J, 2), 1 / np.linalg.norm(inverse, 2)
    rounding = 1e-14 * np.linalg.norm(inverse, 2)
    sharp, safe = ig.neumann_error_bound(norm, terms, sigma_min=sigma), ig.neumann_error_bound(norm, terms)
    assert error <= sharp + rounding
    assert sharp <= safe * (1 + 1e-12)


@pytest.mark.parametrize("terms", [0, 1, 7])
def test_the_bound_is_attained_by_multiples_of_the_identity(terms):
    """J = c I: the error is c^{K+1} / (1 - c), no more and no less."""
    error = 1 / (1 - 0.5) - sum(0.5**t for t in range(terms + 1))
    assert ig.neumann_error_bound(0.5, terms) == error


@given(norm=st.floats(0.0, 0.999), error=st.floats(1e-12, 1e3), sigma=st.none() | st.floats(1e-3, 2.0))
def test_the_terms_for_an_error_are_the_fewest(norm, error, sigma):
    terms = ig.neumann_terms(norm, error, sigma_min=sigma)
    assert ig.neumann_error_bound(norm, terms, sigma_min=sigma) <= error
    assert terms == 0 or ig.neumann_error_bound(norm, terms - 1, sigma_min=sigma) > error


def test_without_the_premise_the_bound_says_nothing():
    assert ig.neumann_error_bound(1.2, 5) == math.inf
    assert ig.neumann_error_bound(1.2, 5, sigma_min=0.5) > ig.neumann_error_bound(1.2, 4, sigma_min=0.5)
    assert ig.neumann_terms(1.0, 1e-3) is None
    assert ig.neumann_error_bound(0.0, 0) == 0.0
    assert ig.neumann_error_bound(1e200, 10**6, sigma_min=1.0) == math.inf


def test_results_are_taken_by_the_side_that_keeps_a_bound_a_bound():
    J = make_problem("contraction", 20, 1).matrix
    operator = ig.DenseOperator(J)
    norm = ig.operator_norm(operator)
    sigma = ig.smallest_singular_value(ig.identity_minus(operator))
    assert ig.neumann_error_bound(norm, 4, sigma_min=sigma) == norm.upper**5 / sigma.lower
    assert ig.neumann_terms(norm, 1e-3, sigma_min=sigma) >= ig.neumann_terms(norm.lower, 1e-3, sigma_min=sigma.upper)


def fixed_point_problem(seed, n=8):
    """h = tanh(W h + b): Lipschitz constants of its Jacobian and cotangent are known."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n, n)) * 0.8 / np.sqrt(n)
    b = rng.standard_normal(n)
    h = np.zeros(n)
    for _ in range(2000):
        h = np.tanh(W @ h + b)
    target = rng.standard_normal(n)
    bend = 4 / (3 * math.sqrt(3)) * np.linalg.norm(W, 2) * np.abs(W).max(axis=0).max() * n**0.5
    lipschitz = 4 / (3 * math.sqrt(3)) * np.linalg.norm(W, 2) ** 2  # |tanh''| <= 4/(3 sqrt 3); D(h) W, D diagonal
    return W, b, h, target, max(bend, lipschitz)


@given(seed=st.integers(0, 10**6), miss=st.floats(1e-12, 1e-3), slack=st.floats(0, 1e-3))
def test_the_error_of_an_implicit_gradient_is_below_its_bound(seed, miss, slack):
    """A state off the fixed point and an adjoint with a residual: both errors are bounded, together and apart."""
    W, b, exact, target, lipschitz = fixed_point_problem(seed)
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(8)
    h = exact + miss * direction / np.linalg.norm(direction)

    def at(state):
        jacobian = (1 - np.tanh(W @ state + b) ** 2)[:, None] * W
        return np.eye(8) - jacobian, state - target  # loss |h - target|^2 / 2, so its Lipschitz constant is one

    A, g = at(h)
    A_star, g_star = at(exact)
    z = np.linalg.solve(A.T, g)
    z = z + slack * rng.standard_normal(8) / 8
    z_star = np.linalg.solve(A_star.T, g_star)
    error = ig.gradient_error_bound(
        np.linalg.svd(A, compute_uv=False)[-1],
        np.linalg.norm(g - A.T @ z),
        forward_residual=np.linalg.norm(np.tanh(W @ h + b) - h),
        adjoint_norm=np.linalg.norm(z),
        jacobian_lipschitz=lipschitz,
        cotangent_lipschitz=1.0,
    )
    rounding = 1e-12
    if error.rigorous:
        assert np.linalg.norm(h - exact) <= error.state * (1 + 1e-9) + rounding
        assert np.linalg.norm(z - z_star) <= error.adjoint * (1 + 1e-9) + rounding
        assert error.gradient == error.adjoint


def test_a_residual_is_not_an_error():
    """A nearly singular I - J: the residual is a millionth, the error a tenth, and the bound says so."""
    A = np.diag([1.0, 1e-5])
    z, g = np.array([1.0, 0.1]), np.array([1.0, 0.0])
    sigma = ig.smallest_singular_value(ig.DenseOperator(A))
    error = ig.gradient_error_bound(sigma, np.linalg.norm(g - A @ z))
    assert_close(np.array([error.adjoint]), np.array([0.1]), condition=1e6)
    assert (error.state, error.adjoint_by_state) == (0.0, 0.0)


def test_first_order_estimates_say_that_they_are():
    exact = ig.gradient_error_bound(0.5, 1e-3)
    assert exact.rigorous
    partial = ig.gradient_error_bound(0.5, 1e-3, forward_residual=1e-3)
    assert (partial.state, partial.rigorous) == (2e-3, False)
    far = ig.gradient_error_bound(0.1, 0.0, forward_residual=1.0, jacobian_lipschitz=1.0, cotangent_lipschitz=0.0)
    assert not far.rigorous
    assert ig.gradient_error_bound(0.0, 1e-3).gradient == math.inf


# -- traces ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_frobenius_and_trace_estimates_are_unbiased_within_their_standard_errors(dtype):
    """Over 60 seeds the mean is within four of its own standard errors, and the reported ones are of the right size."""
    M = make_problem("non-normal", 25, 3, dtype).matrix
    A = ig.DenseOperator(M)
    for name, true, estimate in (
        ("frobenius", np.linalg.norm(M) ** 2, lambda s: ig.squared_frobenius_norm(A, samples=12, seed=s)),
        ("hutchinson", np.trace(M), lambda s: ig.trace(A, products=12, method="hutchinson", seed=s)),
        ("hutch++", np.trace(M), lambda s: ig.trace(A, products=18, seed=s)),
    ):
        estimates = [estimate(seed) for seed in range(60)]
        values = np.array([e.value for e in estimates])
        spread = values.std(ddof=1)
        assert abs(values.mean() - true) <= 4 * spread / 60**0.5, name
        reported = np.mean([e.standard_error for e in estimates])
        assert 0.5 * spread <= reported <= 2 * spread, name


def test_the_trace_of_a_complex_operator_is_complex():
    """1j I has the trace 5j, of which the real part alone, 0 +- 0, was told."""
    estimate = ig.trace(ig.DenseOperator(1j * np.eye(5)), method="hutchinson")
    assert estimate.value == pytest.approx(5j)
    assert estimate.standard_error == 0.0


def test_a_bound_that_holds_with_a_probability_is_not_called_rigorous():
    values = np.concatenate([[0.01], np.linspace(0.3, 2.0, 199)])
    found = ig.smallest_singular_value(
        ig.DenseOperator(np.diag(values)), max_iters=20, confidence=0.9, on_failure="return"
    )
    assert not ig.gradient_error_bound(found, 1e-6).rigorous or found.condition.startswith("unconditional")
    assert ig.gradient_error_bound(0.01, 1e-6).rigorous
    batch = ig.smallest_singular_value(ig.DenseOperator(np.stack([np.eye(3), 2 * np.eye(3)])))
    with pytest.raises(ig.SettingError, match="expected one system"):
        ig.gradient_error_bound(batch, 1e-6)


def test_the_root_of_the_square_is_too_small_on_average():
    M = make_problem("non-normal", 25, 3).matrix
    roots = [math.sqrt(ig.squared_frobenius_norm(ig.DenseOperator(M), samples=2, seed=s).value) for s in range(200)]
    assert np.mean(roots) < np.linalg.norm(M)


def test_hutch_plus_plus_is_exact_where_the_sketch_holds_the_range():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((40, 3))
    matrix = factor @ factor.T
    estimate = ig.trace(ig.DenseOperator(matrix), products=30)
    assert_close(np.array([estimate.value]), np.array([np.trace(matrix)]), condition=10)
    assert estimate.num_products <= 30
    hutchinson = ig.trace(ig.DenseOperator(matrix), products=30, method="hutchinson")
    assert hutchinson.standard_error > 1e3 * estimate.standard_error


def test_one_product_suffices_for_the_frobenius_norm_and_a_vjp_will_do():
    M = np.random.default_rng(0).standard_normal((6, 6))
    J = ig.VJPOperator(lambda u: u @ M, 6)
    estimate = ig.squared_frobenius_norm(J, samples=1)
    assert (estimate.num_products, estimate.standard_error) == (1, math.inf)
    many = ig.squared_frobenius_norm(J, samples=4000)
    assert abs(many.value - np.linalg.norm(M) ** 2) <= 4 * many.standard_error


def test_estimates_of_a_batch_are_those_of_its_systems():
    stack = np.random.default_rng(0).standard_normal((3, 6, 6))
    for estimate in (ig.squared_frobenius_norm(ig.DenseOperator(stack)), ig.trace(ig.DenseOperator(stack), products=9)):
        assert (estimate.value.shape, estimate.standard_error.shape) == ((3,), (3,))
    exact = ig.trace(ig.DenseOperator(stack), products=60)
    true = np.trace(stack, axis1=-2, axis2=-1)
    assert (np.abs(exact.value - true) <= 4 * exact.standard_error + 1e-12).all()


def test_hutch_plus_plus_knows_that_a_sketch_may_miss_a_dimension():
    """Sign vectors of three entries are dependent more often than not; what they miss is left to the samples."""
    matrix = np.diag([1.0, 2.0, 4.0])
    values = [ig.trace(ig.DenseOperator(matrix), products=9, seed=s).value for s in range(40)]
    assert abs(np.mean(values) - 7.0) <= 4 * np.std(values) / 40**0.5 + 1e-12


@pytest.mark.parametrize("chunk", [1, 200, 2**26])
@pytest.mark.parametrize("bound", ["rows", "norm", "frobenius", "paper"])
def test_gershgorin_in_chunks_is_gershgorin_at_once(bound, chunk):
    M = np.random.default_rng(0).standard_normal((9, 9))
    S = np.eye(9) + 0.01 * (M + M.T)
    off = np.abs(S - np.diag(np.diag(S))).sum(1)
    expected = {
        "rows": (np.diag(S) - off).min(),
        "norm": 1 - np.abs(S - np.eye(9)).sum(1).max(),
        "frobenius": 1 - np.linalg.norm(S - np.eye(9)),
        "paper": 1 - 3 * np.linalg.norm(S - np.eye(9)),
    }[bound]
    seen = []

    def product(x):
        seen.append(x.size)
        return x @ S

    A = ig.VJPOperator(product, 9, symmetric=True)
    assert_close(np.array([ig.gershgorin_lower_bound(A, bound=bound, chunk_bytes=chunk)]), np.array([expected]))
    assert max(seen) <= max(9, chunk // 8)
    batch = ig.gershgorin_lower_bound(ig.DenseOperator(np.stack([S, np.eye(9)])), bound=bound)
    assert_close(batch[:, None], np.array([[expected], [1.0]]))


def test_gershgorin_of_the_paper_is_for_the_square_of_i_minus_j():
    """lambda_min((I - J)^H (I - J)) of a contraction from products alone, against the dense matrix."""
    J = 0.02 * np.random.default_rng(0).standard_normal((10, 10))
    B = ig.identity_minus(ig.DenseOperator(J))
    A = (np.eye(10) - J).T @ (np.eye(10) - J)
    true = np.linalg.eigvalsh(A)[0]
    for bound in ("rows", "frobenius", "paper"):
        value = ig.gershgorin_lower_bound(B.H @ B, bound=bound)
        assert value <= true
    assert ig.gershgorin_lower_bound(B.H @ B, bound="frobenius") > 0
