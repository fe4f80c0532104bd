"""A caller's mistake raises before the first product, and says what was got, what was expected, what to do."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import counted

A = ig.DenseOperator(np.diag([1.0, 2.0, 3.0]), symmetric=True)
ALL = [
    ig.smallest_eigenvalue,
    ig.largest_eigenvalue,
    ig.smallest_singular_value,
    ig.operator_norm,
    ig.spectral_radius,
]


@pytest.fixture(params=ALL, ids=lambda f: f.__name__)
def extreme(request):
    return request.param


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"rtol": -1.0}, ig.SettingError, "got rtol=-1.0, expected a number > 0 or None"),
        ({"rtol": "fast"}, ig.SettingTypeError, "got rtol='fast', expected a number > 0 or None"),
        ({"rtol": True}, ig.SettingTypeError, "got rtol=True"),
        ({"max_iters": 2.5}, ig.SettingTypeError, "got max_iters=2.5, expected an integer >= 1 or None"),
        ({"memory": 3}, ig.SettingError, "got memory=3, expected an integer >= 5 or None"),
        ({"seed": -1}, ig.SettingTypeError, "got seed=-1, expected an integer >= 0"),
        ({"on_failure": "ignore"}, ig.SettingTypeError, "got on_failure='ignore', expected 'raise', 'warn' or"),
        ({"start": np.ones(4)}, ig.ShapeError, r"got a start of shape \(4,\), expected \(..., 3\)"),
        ({"start": np.ones(3, np.float32)}, ig.DtypeError, "got a start of dtype float32, expected float64"),
        ({"start": np.ones(3, int)}, ig.DtypeError, "got a start of dtype int64, expected floating point"),
        ({"start": [1.0, 0.0, 0.0]}, ig.BackendError, "got an object of type list, expected an array"),
        ({"start": np.zeros(3)}, ig.SettingError, "got a start vector of zeros"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_words(extreme, settings, error, text):
    watched, calls = counted(A)
    with pytest.raises(error, match=f"{extreme.__name__}: {text}"):
        extreme(watched, **settings)
    assert calls() == (0, 0)


def test_a_matrix_is_no_operator(extreme):
    with pytest.raises(ig.SettingTypeError, match=r"expected a LinearOperator\. Wrap a vector-Jacobian product"):
        extreme(np.eye(3))


def test_an_unknown_keyword_raises(extreme):
    with pytest.raises(TypeError, match="tolerance"):
        extreme(A, tolerance=1e-3)


def test_an_empty_operator_has_no_values(extreme):
    with pytest.raises(ig.ShapeError, match="expected at least one row and column"):
        extreme(ig.DenseOperator(np.zeros((0, 0))))


def test_eigenvalues_need_a_square_operator():
    rectangular = ig.DenseOperator(np.ones((3, 2)))
    for extreme in (ig.smallest_eigenvalue, ig.largest_eigenvalue, ig.spectral_radius, ig.gershgorin_lower_bound):
        with pytest.raises(ig.ShapeError, match=r"of shape \(3, 2\), expected a square one"):
            extreme(rectangular)
    with pytest.raises(ig.ShapeError, match="got refine for an operator of shape"):
        ig.smallest_singular_value(rectangular, refine=ig.GMRES())


def test_singular_values_need_both_products():
    vjp_only = ig.VJPOperator(lambda u: 0.5 * u, 3)
    for extreme in (ig.smallest_singular_value, ig.operator_norm):
        with pytest.raises(ig.MissingProductError, match="expected both products"):
            extreme(vjp_only)
    assert ig.spectral_radius(vjp_only).value == pytest.approx(0.5)


def test_settings_of_single_functions_are_checked():
    for wrong in ({"criterion": "value"}, {"confidence": 1.0}, {"confidence": 0.0}, {"vector_tol": 0.0}):
        with pytest.raises(ig.SettingError, match=next(iter(wrong))):
            ig.smallest_singular_value(A, **wrong)
    with pytest.raises(ig.SettingTypeError, match="expected a solver such as GMRES"):
        ig.smallest_singular_value(A, refine=ig.GMRES)
    with pytest.raises(ig.SettingError, match="expected one of rows, norm, frobenius, paper"):
        ig.gershgorin_lower_bound(A, bound="discs")
    with pytest.raises(ig.SettingError, match="expected 'hutch\\+\\+' or 'hutchinson'"):
        ig.trace(A, method="exact")
    with pytest.raises(ig.SettingError, match="got samples=0, expected an integer >= 1"):
        ig.squared_frobenius_norm(A, samples=0)
    with pytest.raises(ig.SettingError, match="got terms=-1, expected an integer >= 0"):
        ig.neumann_error_bound(0.5, -1)
    with pytest.raises(ig.SettingError, match=r"got norm=-0\.5, expected a number >= 0"):
        ig.neumann_error_bound(-0.5, 1)
    with pytest.raises(ig.SettingError, match=r"got error=0\.0, expected a number > 0"):
        ig.neumann_terms(0.5, 0.0)
    with pytest.raises(ig.SettingError, match=r"got residual_norm=nan, expected a finite number >= 0"):
        ig.gradient_error_bound(0.5, float("nan"))


def test_an_exception_of_the_callable_passes_through(extreme):
    def broken(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        extreme(ig.VJPOperator(broken, 3, symmetric=True))


def test_starts_are_left_as_they_are(extreme):
    start = np.array([1.0, 2.0, 3.0])
    extreme(A, start=start)
    assert start.tolist() == [1.0, 2.0, 3.0]
