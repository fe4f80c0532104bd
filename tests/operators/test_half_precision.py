"""A map in half precision, applied to vectors of any size: the dtype rounds its digits and not its range."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.backends import backend_of
from implicitgrad.operators.precision import in_half_precision

EXPONENTS = np.array([-60, -20, 0, 15, 60])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_size_of_a_vector_changes_no_bit_of_its_product(shifted, adjoint):
    """float16 ends at 65504 and at 6e-8: A (2**k x) = 2**k (A x) for every row of a batch all the same."""
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((6, 6)).astype(np.float16), rng.standard_normal(6).astype(np.float16)
    exact = matrix.astype(float)
    inner = ig.VJPOperator(lambda u: u @ matrix, 6, jvp=lambda v: v @ matrix.T)
    operator = ig.identity_minus(inner) if shifted else inner
    wide = in_half_precision(operator.H if adjoint else operator, backend_of(x), x.dtype)
    dense = np.eye(6) - exact if shifted else exact
    rows = np.ldexp(np.tile(x.astype(np.float32), (len(EXPONENTS), 1)), EXPONENTS[:, None])
    products = wide.matvec(rows)
    expected = (dense.T if adjoint else dense) @ x.astype(float)
    tolerance = 6 * 2.0**-10 * np.linalg.norm(exact) * np.linalg.norm(x.astype(float))
    for product, row, exponent in zip(products, rows, EXPONENTS, strict=True):
        assert product.dtype == np.float32
        assert np.array_equal(product, np.ldexp(products[2], exponent))
        assert np.array_equal(product, wide.matvec(row))
        assert np.linalg.norm(np.ldexp(product.astype(float), -exponent) - expected) <= tolerance
