"""Bounds have the unit of the operator, whatever they stand on."""

import numpy as np
import pytest

import implicitgrad as ig


@pytest.mark.parametrize("exponent", [-30, 3, 30])
@pytest.mark.parametrize("search", [ig.smallest_singular_value, ig.smallest_eigenvalue], ids=lambda f: f.__name__)
def test_kato_temple_has_the_unit_of_the_operator(search, exponent):
    """lower(2**k A, 2**k next) = 2**k lower(A, next) bit for bit: the residual of (sigma^2, v) is sigma r, not r."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    matrix = (q * np.r_[1.0, np.linspace(3.0, 9.0, 29)]) @ q.T
    settings = {"max_iters": 9, "on_failure": "return"}
    plain = search(ig.DenseOperator(matrix, symmetric=True), next_value=2.9, **settings)
    scaled = search(
        ig.DenseOperator(np.ldexp(matrix, exponent), symmetric=True), next_value=np.ldexp(2.9, exponent), **settings
    )
    assert "Kato-Temple" in plain.condition
    assert 0.5 < plain.lower <= 1.0 <= plain.upper
    assert scaled.lower == np.ldexp(plain.lower, exponent)


@pytest.mark.parametrize("size", [0.1, 1.0, 40.0])
def test_the_bound_of_a_random_start_is_of_sigma_and_not_of_its_square(size):
    """lower <= sigma_min <= upper with sigma_min near ``size``; the square is above it or far below."""
    rng = np.random.default_rng(1)
    matrix = size * (np.diag(np.linspace(1.0, 3.0, 40)) + 0.02 * rng.standard_normal((40, 40)))
    sigma = np.linalg.svd(matrix, compute_uv=False)[-1]
    result = ig.smallest_singular_value(ig.DenseOperator(matrix), max_iters=25, on_failure="return")
    assert result.condition.startswith("with probability")
    assert 0.5 * sigma < result.lower <= sigma <= result.upper
