"""The spectral radius: complex pairs, operators without a direction, and no number where there is none to be had."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import KINDS, assert_close

from .conftest import SYMMETRIC

DEFECTIVE = ("jordan", "nilpotent")


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_radius_is_the_largest_modulus_wherever_it_is_said_to_have_converged(dtype):
    for kind, recipe in KINDS.items():
        for seed in range(4):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(1, 60))
            matrix = recipe.make(rng, n, dtype == "complex128")
            true = np.abs(np.linalg.eigvals(matrix)).max()
            result = ig.spectral_radius(ig.DenseOperator(matrix), on_failure="return")
            rounding = 1e-13 * np.linalg.norm(matrix, 2)
            if result.converged:
                assert abs(result.value - true) <= 1e-6 * true + rounding, kind
            else:
                assert kind in (*DEFECTIVE, "non-normal"), f"{kind}: {result.message}"
            lo, hi = result.residual_interval
            assert lo <= result.value <= hi
            assert result.value == pytest.approx(abs(result.eigenvalue))


def test_a_rotation_has_a_complex_pair():
    """A power iteration on real vectors wanders for ever (torchdeq reads 0.486 here)."""
    angle = 1.1
    turn = 0.9 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.kron(np.diag([1.0, 0.5, 0.2]), turn)
    result = ig.spectral_radius(ig.DenseOperator(matrix))
    assert_close(np.array([result.value]), np.array([0.9]))
    x = result.vector + 1j * result.vector_imag
    assert_close(matrix @ x, result.eigenvalue * x, condition=10)
    assert_close(np.array([np.linalg.norm(x)]), np.ones(1))


def test_a_complex_operator_has_a_complex_eigenvector():
    matrix = np.diag([0.3 + 0.4j, 0.1, -0.2j]) + np.eye(3, k=1)
    result = ig.spectral_radius(ig.DenseOperator(matrix))
    assert result.vector_imag is None
    assert_close(np.array([result.eigenvalue]), np.array([0.3 + 0.4j]), condition=100)
    assert_close(matrix @ result.vector, result.eigenvalue * result.vector, condition=100)
    vjp_only = ig.VJPOperator(lambda u: u @ matrix.conj(), 3, like=np.zeros(3, complex))
    assert_close(np.array([ig.spectral_radius(vjp_only).eigenvalue]), np.array([0.3 + 0.4j]), condition=100)


def test_no_eigenvalue_is_claimed_that_rounding_has_made():
    """A nilpotent matrix: rounding of eps moves zero by eps^(1/n), and no residual shows it."""
    for n in (12, 30):
        result = ig.spectral_radius(ig.DenseOperator(2.0 * np.eye(n, k=1)), on_failure="return")
        assert result.status is Status.STAGNATED
        assert result.lower == 0.0
    assert ig.spectral_radius(ig.DenseOperator(np.zeros((5, 5)))).value == 0.0


def test_restarts_bound_the_memory_and_find_the_same():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        matrix = 0.9 * rng.standard_normal((120, 120)) / 120**0.5
        true = np.abs(np.linalg.eigvals(matrix)).max()
        result = ig.spectral_radius(ig.DenseOperator(matrix), memory=20)
        assert result.num_iters > 20
        assert abs(result.value - true) <= 1e-5 * true


def test_of_a_symmetric_operator_the_ritz_value_is_a_lower_bound():
    for kind in SYMMETRIC:
        matrix = KINDS[kind].make(np.random.default_rng(0), 30, False)
        true = np.abs(np.linalg.eigvalsh(matrix)).max()
        for budget in (2, 5, None):
            result = ig.spectral_radius(
                ig.DenseOperator(matrix, symmetric=True), max_iters=budget, on_failure="return", known_upper=1e3
            )
            assert result.lower <= true * (1 + 1e-14)
            assert result.upper == 1e3
    assert ig.spectral_radius(ig.DenseOperator(np.eye(3) + np.eye(3, k=1)), on_failure="return").lower == 0.0


def test_inverse_iteration_ends_a_search_that_was_too_short():
    """sigma_min = 1e-8 below a spectrum from 0.01: thirty steps do not see it, two solves do."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.01, 1.0, 200)
    values[0] = 1e-8
    left, right = (np.linalg.qr(rng.standard_normal((200, 200)))[0] for _ in range(2))
    A = ig.DenseOperator((left * values) @ right)
    short = ig.smallest_singular_value(A, max_iters=30, on_failure="return")
    assert short.value > 1e-3
    refined = ig.smallest_singular_value(A, max_iters=30, refine=ig.GMRES())
    assert refined.converged
    assert abs(refined.value - 1e-8) <= 1e-6 * 1e-8
    assert abs(right[0] @ refined.vector) == pytest.approx(1.0, abs=1e-12)
    assert abs(left[:, 0] @ refined.left_vector) == pytest.approx(1.0, abs=1e-12)
    untouched = ig.smallest_singular_value(A, refine=ig.GMRES())
    assert untouched.num_matvecs == ig.smallest_singular_value(A).num_matvecs
