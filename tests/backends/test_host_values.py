"""Host values have two forms, lists and numbers for one system and arrays for a batch: both say what NumPy says."""

import numpy as np
import pytest

from implicitgrad.backends import host


@pytest.mark.parametrize("is_complex", [False, True])
def test_inner_sums_of_a_list_are_those_of_a_row_of_an_array(is_complex):
    """squared_norm is sum |x_i|^2; dot is sum x_i y_i, without a conjugate."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((3, 5)) + (1j * rng.standard_normal((3, 5)) if is_complex else 0) for _ in range(2))
    np.testing.assert_allclose(host.squared_norm(x), np.linalg.norm(x, axis=-1) ** 2, rtol=1e-14)
    np.testing.assert_allclose(host.dot(x, y), np.einsum("ij,ij->i", x, y), rtol=1e-12)
    for i in range(3):
        assert host.squared_norm(x[i].tolist()) == pytest.approx(np.linalg.norm(x[i]) ** 2, rel=1e-14)
        assert host.dot(x[i].tolist(), y[i].tolist()) == pytest.approx(complex(x[i] @ y[i]), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0, np.inf, np.nan])
def test_decisions_on_a_number_are_those_on_an_array(value):
    array = np.array([value, 1.0])
    assert host.finite(value) == host.finite(array)[0] == np.isfinite(value)
    assert host.negate(value > 0) == host.negate(array > 0)[0]
    assert host.pick(value > 0, 1, 2) == host.pick(array > 0, 1, 2)[0]
    np.testing.assert_equal(host.ldexp(value, 3), host.ldexp(array, 3)[0])
    np.testing.assert_equal(host.quotient(3.0, value), host.quotient(np.array([3.0, 3.0]), array)[0])
