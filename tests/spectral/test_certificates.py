"""What is said of a value beside the value is true: bounds under their conditions, intervals, the order of all of them.

Dense NumPy is the reference; it, too, rounds, so comparisons leave ``rounding`` of a decomposition.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad.spectral.certify import random_start_shift
from implicitgrad.testing import KINDS

from .conftest import SYMMETRIC, make_case

KIND, SEED = st.sampled_from(sorted(KINDS)), st.integers(0, 10**6)
DTYPE = st.sampled_from(["float64", "complex128", "float32", "complex64"])
BUDGET = st.sampled_from([None, 1, 2, 3, 5, 8, 13])
MEMORY = st.sampled_from([None, 5, 8])


@given(kind=KIND, seed=SEED, dtype=DTYPE, budget=BUDGET, memory=MEMORY)
def test_sigma_min_lies_between_its_bounds_whatever_the_budget(kind, seed, dtype, budget, memory):
    """lower <= sigma_min <= upper under a condition that fails once in a thousand; and some value in the interval."""
    case = make_case(kind, seed, dtype)
    result = ig.smallest_singular_value(case.operator, max_iters=budget, memory=memory, seed=seed, on_failure="return")
    values = case.singular_values
    assert result.lower - case.rounding <= values[-1] <= result.upper + case.rounding
    lo, hi = result.residual_interval
    assert ((values >= lo - case.rounding) & (values <= hi + case.rounding)).any()
    assert lo <= result.value <= hi
    if result.converged:
        assert np.abs(values - result.value).min() <= case.eps**0.4 * result.value + case.rounding
    norm = ig.operator_norm(case.operator, max_iters=budget, memory=memory, seed=seed, on_failure="return")
    assert norm.lower - case.rounding <= values[0] <= norm.upper + case.rounding


@given(kind=st.sampled_from(SYMMETRIC), seed=SEED, dtype=DTYPE, budget=BUDGET, memory=MEMORY)
def test_gershgorin_is_below_lambda_min_and_every_ritz_value_above(kind, seed, dtype, budget, memory):
    case = make_case(kind, seed, dtype)
    values = case.eigenvalues
    bounds = {b: ig.gershgorin_lower_bound(case.operator, bound=b) for b in ("rows", "norm", "frobenius", "paper")}
    slack = case.rounding * len(values) ** 0.5
    assert bounds["rows"] >= bounds["norm"] - slack
    assert min(bounds.values()) >= bounds["paper"] - slack
    low = ig.smallest_eigenvalue(case.operator, max_iters=budget, memory=memory, seed=seed, on_failure="return")
    high = ig.largest_eigenvalue(case.operator, max_iters=budget, memory=memory, seed=seed, on_failure="return")
    for bound in bounds.values():
        assert bound <= values[0] + slack
    assert (low.ritz_values[~np.isnan(low.ritz_values)] >= values[0] - case.rounding).all()
    assert low.lower - case.rounding <= values[0] <= low.upper + case.rounding
    assert high.lower - case.rounding <= values[-1] <= high.upper + case.rounding


@given(seed=SEED, gap=st.floats(1e-6, 1.0), budget=st.integers(2, 20))
def test_kato_temple_holds_given_the_gap(seed, gap, budget):
    """With the true second value, or any number below it, the bound is below the true first one."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[1.0, 1.0 + gap], 1.0 + gap + rng.uniform(0, 3, 20)])
    matrix = (q := np.linalg.qr(rng.standard_normal((22, 22)))[0]) @ np.diag(values) @ q.T
    A = ig.DenseOperator((matrix + matrix.T) / 2, symmetric=True)
    for share in (0.5, 1.0):
        second = 1.0 + share * gap
        low = ig.smallest_eigenvalue(A, max_iters=budget, next_value=second, seed=seed, on_failure="return")
        assert low.lower <= 1.0 + 1e-14
        sigma = ig.smallest_singular_value(A, max_iters=budget, next_value=second, seed=seed, on_failure="return")
        assert sigma.lower <= 1.0 + 1e-14
        if low.value < second and "gap" in low.condition:
            assert low.lower == pytest.approx(low.value - low.residual_norm**2 / (second - low.value), abs=1e-12)
    far = ig.largest_eigenvalue(
        ig.DenseOperator(-(matrix + matrix.T) / 2), max_iters=budget, next_value=-second, seed=seed, on_failure="return"
    )
    assert far.upper >= -1.0 - 1e-14


def test_a_bound_that_was_given_is_unconditional_and_competes():
    J = ig.DenseOperator(0.9 * np.eye(300)[::-1] * np.linspace(0.1, 1.0, 300))
    A = ig.identity_minus(J)
    result = ig.smallest_singular_value(A, max_iters=3, known_lower=1 - 0.9, on_failure="return")
    assert (result.lower, result.condition) == (pytest.approx(0.1), "unconditional: the bound that was given")
    assert ig.operator_norm(J, known_upper=0.95, max_iters=2, on_failure="return").upper == 0.95
    assert ig.spectral_radius(J, known_upper=0.9, max_iters=2, on_failure="return").upper == 0.9


def test_conditions_name_what_they_stand_on():
    values = np.sqrt(np.concatenate([[0.05], np.linspace(0.06, 4.0, 999)]))
    A = ig.VJPOperator(lambda u: values * u, 1000, jvp=lambda v: values * v)
    by_chance = ig.smallest_singular_value(A)
    assert by_chance.condition.startswith("with probability 0.999 over the random start")
    assert 0 < by_chance.lower < values[0] <= by_chance.upper
    given_start = ig.smallest_singular_value(A, start=by_chance.vector + 1e-3)
    assert given_start.condition == "unconditional: no singular value is negative"
    assert given_start.lower == 0.0
    small = ig.smallest_eigenvalue(ig.DenseOperator(np.diag([2.0, 3.0, 4.0]), symmetric=True))
    assert small.condition == "unconditional: the whole space was searched"
    twice = ig.smallest_eigenvalue(ig.DenseOperator(np.diag([2.0, 2.0, 4.0, 4.0]), symmetric=True))
    # An invariant space, as far as rounding tells: the start may have too little of a lower value to show it.
    assert twice.condition.startswith("with probability 0.999 over the random start")
    assert twice.lower <= 2.0
    started = ig.smallest_eigenvalue(A.H @ A, start=np.ones(1000), max_iters=5, on_failure="return")
    assert (started.lower, started.condition) == (-np.inf, "none: nothing is known on this side")


def test_the_bound_of_a_random_start_fails_as_seldom_as_it_says():
    """At a confidence of 0.5 it holds in half of the draws at least; one that never could fail would say nothing."""
    values = np.concatenate([[0.0], np.linspace(0.5, 1.0, 399)])
    A = ig.VJPOperator(lambda u: values * u, 400, symmetric=True)
    excess = []
    for seed in range(40):
        result = ig.smallest_eigenvalue(A, max_iters=12, confidence=0.5, seed=seed, on_failure="return")
        assert "probability 0.5" in result.condition
        excess.append(result.value - result.lower)
        assert result.lower <= 0.0
    apart, norms = np.linspace(0, 1, 12)[None], np.full(1, 12 * np.log(0.25))
    shifts = [random_start_shift(apart, norms, 400, False, p)[0] for p in (0.5, 0.9, 0.999, 0.999999)]
    assert shifts == sorted(shifts)
    assert max(excess) < 0.2


@pytest.mark.parametrize("criterion", ["residual", "gap"])
def test_converged_is_what_the_criterion_says(criterion):
    """An unresolved pair, apart by more than rtol: the residual criterion goes on until it is told apart."""
    missed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.concatenate([[1.0, 1.0 + 1e-4], rng.uniform(1.5, 2.0, 198)])
        A = ig.VJPOperator(lambda u, values=values: values * u, 200, jvp=lambda v, values=values: values * v)
        result = ig.smallest_singular_value(A, rtol=1e-7, memory=32, criterion=criterion, seed=seed)
        error = np.abs(values - result.value).min() / result.value
        missed += error > 1e-7
        assert result.converged
        if criterion == "residual":
            assert result.residual_norm <= 1e-7 * result.value
    assert (missed == 0) if criterion == "residual" else (missed > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rest_of_rounding_hides_no_value_from_the_bound(dtype):
    """One eigenvalue lies 300 eps below 9,999 ones: the start has 1 % of it, and the rest of the step is rounding."""
    n, eps = 10_000, np.finfo(dtype).eps
    values = np.ones(n, dtype)
    values[0] -= 300 * eps
    A = ig.VJPOperator(lambda u: values * u, n, symmetric=True, dtype=np.dtype(dtype))
    for seed in range(5):
        assert ig.smallest_eigenvalue(A, seed=seed).lower <= values[0]


def test_the_gap_criterion_does_not_stop_in_noise():
    """Of 1, 1e-6, 1e-12 two steps show two values far apart, and neither is the smallest."""
    q, r = (np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0] for seed in (0, 1))
    A = ig.DenseOperator(q @ np.diag([1.0, 1e-6, 1e-12]) @ r)
    for seed in range(5):
        found = ig.smallest_singular_value(A, criterion="gap", seed=seed, on_failure="return")
        assert not found.converged or found.value < 1e-9
