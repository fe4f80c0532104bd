"""What goes wrong elsewhere, by its number in the list of faults, and what is right."""

import warnings

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.spectral.lanczos import Lanczos
from implicitgrad.spectral.space import Space
from implicitgrad.testing import assert_close

EXTREMES = [ig.smallest_eigenvalue, ig.largest_eigenvalue, ig.smallest_singular_value, ig.operator_norm]
ALL = [*EXTREMES, ig.spectral_radius]


def dense(matrix, symmetric=True):
    return ig.DenseOperator(np.asarray(matrix, dtype=float), symmetric=symmetric)


def rotated(values, seed=0):
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    matrix = (q * np.asarray(values)) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.fault(94)
@pytest.mark.parametrize("extreme", ALL)
def test_94_identity_is_exact_after_one_step(extreme):
    result = extreme(dense(np.eye(50)))
    assert result.converged
    assert result.num_iters == 1
    assert_close(np.array([result.value]), np.array([1.0]))
    assert np.isfinite(result.ritz_values).all()


@pytest.mark.fault(95)
@pytest.mark.parametrize("extreme", ALL)
def test_95_the_zero_matrix_has_the_value_zero(extreme):
    result = extreme(dense(np.zeros((6, 6))))
    assert (result.value, result.status, result.residual_norm) == (0.0, Status.CONVERGED, 0.0)
    assert result.lower <= 0.0 <= result.upper
    assert_close(np.array([np.linalg.norm(result.vector)]), np.ones(1))


@pytest.mark.fault(96)
@pytest.mark.parametrize("extreme", ALL)
def test_96_a_start_of_zeros_is_refused(extreme):
    with pytest.raises(ig.SettingError, match="start vector of zeros"):
        extreme(dense(np.eye(3)), start=np.zeros(3))


@pytest.mark.fault(97)
@pytest.mark.parametrize("drift", [0.0, 1e-15, 1e-12, 1e-9])
def test_97_a_start_at_another_eigenvector_does_not_hide_the_extreme_one(drift):
    """An eigenvector of another value, exact or as a former solve left it, spans an invariant space of its own."""
    matrix = rotated([1.0, 1.136, 2.0, 3.0, 4.0, 5.0])
    values, vectors = np.linalg.eigh(matrix)
    start = vectors[:, 1] + drift * vectors[:, 3]
    for extreme in (ig.smallest_eigenvalue, ig.smallest_singular_value):
        result = extreme(dense(matrix), start=start)
        assert result.converged
        assert_close(np.array([result.value]), values[:1], condition=5)
    for extreme, start in ((ig.largest_eigenvalue, vectors[:, 0]), (ig.spectral_radius, vectors[:, 2])):
        assert_close(np.array([extreme(dense(matrix), start=start).value]), values[-1:])


@pytest.mark.fault(98)
@pytest.mark.parametrize("extreme", ALL)
def test_98_more_steps_than_the_space_has_dimensions_end_with_the_space(extreme):
    result = extreme(dense(rotated([0.5, 1.0, 2.0])), max_iters=10, rtol=1e-15)
    assert result.converged
    assert result.num_iters <= 3
    with pytest.raises(ig.SettingError, match="expected an integer >= 1"):
        extreme(dense(np.eye(3)), max_iters=0)


@pytest.mark.fault(99)
@pytest.mark.parametrize("steps", [3, 10, 30])
def test_99_beyond_the_condition_a_ritz_value_is_no_more_than_an_upper_bound(steps):
    """Condition 1e20: with a budget of k steps the value is far off, and everything that is said of it is true."""
    values = np.geomspace(1e-16, 1e4, 30)
    matrix = rotated(values)
    result = ig.smallest_eigenvalue(dense(matrix), max_iters=steps, on_failure="return")
    true = np.linalg.eigvalsh(matrix)[0]
    rounding = 16 * 2.0**-52 * 1e4
    assert result.lower - rounding <= true <= result.upper + rounding
    assert result.converged == (steps == 30)
    if steps == 30:
        assert abs(result.value - true) <= rounding


@pytest.mark.fault(100)
@pytest.mark.parametrize("values", [[1.0] * 9, [1.0, 2.0, 3.0] * 4])
def test_100_what_a_gradient_needs_is_there_after_a_breakdown(values):
    """The gradient ``v v^T`` is positive semi-definite with trace one: ``v`` is a unit eigenvector, whatever ended."""
    matrix = rotated(values)
    for extreme in (ig.smallest_eigenvalue, ig.smallest_singular_value):
        result = extreme(dense(matrix))
        gradient = np.outer(result.vector, result.vector)
        assert result.num_iters <= len(set(values))
        assert_close(np.array([np.trace(gradient)]), np.ones(1))
        assert np.linalg.eigvalsh(gradient)[0] > -1e-14
        assert_close(matrix @ result.vector, result.value * result.vector, condition=8)


@pytest.mark.fault(101)
def test_101_a_double_eigenvalue_has_a_vector_of_its_eigenspace():
    matrix = rotated([1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = ig.smallest_eigenvalue(dense(matrix))
    assert result.converged
    assert_close(matrix @ result.vector, result.vector, condition=8)
    assert_close(np.array([result.gap]), np.array([1.0]), condition=100)  # one copy alone is in a Krylov space


@pytest.mark.fault(102)
def test_102_a_gap_of_1e_minus_10_costs_the_value_nothing():
    matrix = rotated([1.0, 1.0 + 1e-10, 2.0, 3.0, 4.0, 7.0, 9.0])
    for extreme in (ig.smallest_eigenvalue, ig.smallest_singular_value):
        for criterion in ("residual", "gap"):
            result = extreme(dense(matrix), criterion=criterion)
            assert result.converged
            assert abs(result.value - 1.0) <= 2e-10


@pytest.mark.fault(103)
def test_103_orthogonality_holds_to_rounding_so_there_are_no_ghosts():
    """A single large eigenvalue converges early and comes back, as a copy, where orthogonality is lost."""
    values = np.concatenate([np.linspace(0.5, 1.0, 299), [1e3]])
    space = Space("test", dense(np.diag(values)))
    process = Lanczos(space, space.start, most=120)
    for _ in range(120):
        process.step()
    assert process.frame.defect() <= 32 * 2.0**-52
    assert (process.ritz("largest").values[0] > 2.0).sum() == 1
    assert ig.smallest_eigenvalue(dense(np.diag(values))).value >= 0.5 - 1e-10


@pytest.mark.fault(104)
@pytest.mark.parametrize("claim", [False, True])
def test_104_an_operator_that_is_not_symmetric_gives_itself_away(claim):
    matrix = np.random.default_rng(0).standard_normal((30, 30))
    for extreme in (ig.smallest_eigenvalue, ig.largest_eigenvalue):
        result = extreme(dense(matrix, symmetric=claim), on_failure="return")
        assert result.status is Status.ADJOINT_MISMATCH
        assert "use smallest_singular_value or spectral_radius" in result.message
    wrong = ig.VJPOperator(lambda u: u @ matrix, 30, jvp=lambda v: v @ matrix)
    assert ig.smallest_singular_value(wrong, on_failure="return").status is Status.ADJOINT_MISMATCH


@pytest.mark.fault(105)
@pytest.mark.parametrize("extreme", ALL)
def test_105_a_spent_budget_is_reported_with_the_best_pair(extreme):
    matrix = rotated(np.linspace(0.1, 4.0, 60))
    with pytest.raises(ig.NotConvergedError, match="MAX_ITERS") as caught:
        extreme(dense(matrix), max_iters=6)
    result = caught.value.solution
    assert (result.status, result.num_iters) == (Status.MAX_ITERS, 6)
    residual = np.linalg.norm(matrix @ result.vector - result.value * result.vector)
    if extreme not in (ig.smallest_singular_value, ig.operator_norm):
        assert_close(np.array([result.residual_norm]), np.array([residual]), scale=np.array([4.0]))
    with pytest.warns(ig.ConvergenceWarning, match="MAX_ITERS"):
        extreme(dense(matrix), max_iters=6, on_failure="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extreme(dense(matrix), max_iters=6, on_failure="return")


@pytest.mark.fault(106)
@pytest.mark.parametrize("extreme", ALL)
def test_106_nan_in_the_operator_is_said_and_no_value_pretended(extreme):
    matrix = rotated([1.0, 2.0, 3.0, 4.0])
    matrix[1, 2] = np.nan
    result = extreme(dense(matrix), on_failure="return")
    assert result.status is Status.NONFINITE_OPERATOR
    assert not result.converged
    assert np.isnan(result.value)
    start = extreme(dense(np.eye(3)), start=np.array([1.0, np.inf, 0.0]), on_failure="return")
    assert (start.status, start.num_matvecs) == (Status.NONFINITE_INPUT, 0)


@pytest.mark.fault(106)
def test_106_nan_after_a_while_leaves_the_best_pair_before_it():
    matrix = rotated(np.linspace(0.1, 4.0, 60))
    calls = 0

    def product(x):
        nonlocal calls
        calls += 1
        return x @ matrix if calls != 9 else x * np.nan

    for extreme in (ig.smallest_eigenvalue, ig.smallest_singular_value):
        calls = 0
        result = extreme(ig.VJPOperator(product, 60, symmetric=True), on_failure="return")
        assert result.status is Status.NONFINITE_OPERATOR
        assert 0.1 <= result.value < 2.0
        assert_close(np.array([np.linalg.norm(result.vector)]), np.ones(1))


@pytest.mark.fault(107)
def test_107_gershgorin_is_exact_for_diagonal_matrices_and_never_clipped():
    assert ig.gershgorin_lower_bound(dense(np.diag([3.0, 0.25, 7.0]))) == 0.25
    assert ig.gershgorin_lower_bound(dense([[-2.5]])) == -2.5
    off = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert_close(np.array([ig.gershgorin_lower_bound(dense(off))]), np.array([-1.0]))
    assert ig.gershgorin_lower_bound(dense(np.full((5, 5), 3.0)), bound="paper") < 0
    for bound in ("rows", "norm", "frobenius", "paper"):
        assert np.isfinite(ig.gershgorin_lower_bound(dense(np.eye(4)), bound=bound))
