"""``assert_adjoint`` and ``assert_linear``: pass on what is right, and name what is wrong, by how much and where."""

import numpy as np
import pytest
from hypothesis import given

import implicitgrad as ig
from implicitgrad.testing import assert_adjoint, assert_close, assert_linear, random_matrix
from implicitgrad.testing.strategies import problems

RNG = np.random.default_rng(0)
REAL, COMPLEX = random_matrix(RNG, 5), random_matrix(RNG, 5, True)


def pair(matvec, rmatvec, dtype=float):
    return ig.VJPOperator(rmatvec, 5, jvp=matvec, dtype=np.dtype(dtype))


@given(problem=problems())
def test_every_system_passes(problem):
    assert_adjoint(problem.operator)
    assert_linear(problem.operator)


WRONG_ADJOINTS = {
    "transpose missing": (
        pair(lambda v: v @ REAL.T, lambda u: u @ REAL.T),
        "rmatvec gives A u: the transpose is missing",
    ),
    "conjugate missing": (
        pair(lambda v: v @ COMPLEX.T, lambda u: u @ COMPLEX, complex),
        r"rmatvec gives A\^T u: the conjugate is missing",
    ),
    "conjugate, not transposed": (
        pair(lambda v: v @ COMPLEX.T, lambda u: u @ COMPLEX.conj().T, complex),
        r"rmatvec gives conj\(A\) u: the transpose is missing",
    ),
    "sign": (pair(lambda v: v @ REAL.T, lambda u: -u @ REAL), "The sign of one product is wrong"),
    "factor": (pair(lambda v: v @ REAL.T, lambda u: 1.5 * u @ REAL), "rmatvec is 1.5 times too large"),
    "complex factor": (
        pair(lambda v: v @ COMPLEX.T, lambda u: 1j * u @ COMPLEX.conj(), complex),
        r"rmatvec is \(-?0\.000-1\.000j\) times too large",
    ),
    "another matrix": (pair(lambda v: v @ REAL.T, lambda u: u @ COMPLEX.real), "belongs to another matrix"),
    "one entry": (
        pair(lambda v: v @ REAL.T, lambda u: u @ (REAL + 1e-9 * np.eye(5, k=2))),
        r"differ by \d\.\de-(09|10|11) of norm\(u\) norm\(A v\), expected at most \d\.\de-14",
    ),
    "a claim of symmetry": (ig.DenseOperator(REAL, symmetric=True), None),
}


@pytest.mark.parametrize("name", [name for name, (_, words) in WRONG_ADJOINTS.items() if words])
def test_a_wrong_adjoint_is_named(name):
    operator, words = WRONG_ADJOINTS[name]
    with pytest.raises(AssertionError, match=words) as caught:
        assert_adjoint(operator, seed=7)
    message = str(caught.value)
    assert message.startswith("assert_adjoint: <u, A v> = ")
    assert (
        "draw 0 of seed 7, shape (5, 5), " + ("complex128" if "conj" in name or "complex" in name else "float64")
        in message
    )


def test_a_dot_test_in_single_precision_allows_for_its_rounding_alone():
    A = REAL.astype("float32")
    right = ig.VJPOperator(lambda u: u @ A, 5, jvp=lambda v: v @ A.T, dtype=A.dtype)
    assert_adjoint(right)
    wrong = ig.VJPOperator(lambda u: u @ (A + np.float32(1e-3)), 5, jvp=lambda v: v @ A.T, dtype=A.dtype)
    with pytest.raises(AssertionError, match=r"expected at most 1\.7e-05"):
        assert_adjoint(wrong)


def test_the_system_of_a_batch_with_the_wrong_adjoint_is_named():
    A = np.stack([REAL, REAL, REAL])
    back = A.swapaxes(-1, -2).copy()
    back[1] = A[1]
    apply = lambda M: lambda v: np.matmul(M, v[..., None])[..., 0]
    operator = ig.VJPOperator(apply(back), 5, jvp=apply(A), like=np.zeros((3, 5)))
    with pytest.raises(AssertionError, match=r"\(system 1, draw 0"):
        assert_adjoint(operator)


def test_a_product_of_nan_is_no_adjoint():
    operator = pair(lambda v: v @ REAL.T, lambda u: u * np.nan)
    with pytest.raises(AssertionError, match="A product holds NaN or Inf"):
        assert_adjoint(operator)


def noisy():
    rng = np.random.default_rng(1)
    return lambda u: u * (rng.random(u.shape) < 0.5)


NOT_LINEAR = {
    "a constant term": (lambda u: u @ REAL + 1.0, r"A 0 is not zero but has norm 2\.2e\+00: a constant term"),
    "dropout": (noisy(), r"two identical calls differ \(dropout, or a state that moves\), by \d"),
    "a norm": (lambda u: u * np.linalg.norm(u), r"A\(-2 v\) differs from -2 A v, by \d\.\de[-+]0\d of norm\(A v\)"),
    "homogeneous alone": (
        lambda u: np.sort(np.abs(u)) * np.sign(u[0]),
        r"A\(a v \+ b w\) differs from a A v \+ b A w, by",
    ),
    "NaN": (lambda u: u * np.nan, "got NaN or Inf"),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
@pytest.mark.parametrize("product", ["matvec", "rmatvec"])
def test_a_map_that_is_not_linear_is_named(name, product):
    wrong, words = NOT_LINEAR[name]
    callables = {"rmatvec": (lambda v: v @ REAL.T, wrong), "matvec": (wrong, lambda u: u @ REAL)}
    with pytest.raises(AssertionError, match=f"assert_linear: {product}: .*{words}"):
        assert_linear(pair(*callables[product]), seed=3)


def test_an_operator_of_one_product_is_checked_by_that_one():
    assert_linear(ig.VJPOperator(lambda u: u @ REAL, 5))
    with pytest.raises(ig.MissingProductError, match="without a JVP"):
        assert_adjoint(ig.VJPOperator(lambda u: u @ REAL, 5))


@pytest.mark.parametrize("check", [assert_adjoint, assert_linear])
def test_what_is_no_operator_is_refused_in_words(check):
    with pytest.raises(ig.SettingTypeError, match=r"got an object of type ndarray, expected a LinearOperator\. Wrap"):
        check(REAL)


# -- assert_close ------------------------------------------------------------------------------------------------------
def test_nan_is_close_to_nothing():
    for actual, expected in ((np.nan, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, np.inf)):
        with pytest.raises(AssertionError, match="got NaN or Inf"):
            assert_close(np.array([actual]), np.array([expected]))


def test_the_worst_vector_of_a_batch_is_named():
    expected = np.ones((2, 3, 4))
    actual = expected.copy()
    actual[1, 2, 0] += 1e-3
    actual[0, 1, 0] += 1e-6
    with pytest.raises(
        AssertionError, match=r"differs by 1\.000e-03 at vector 1, 2 of shape \(2, 3\), expected at most"
    ):
        assert_close(actual, expected)


def test_a_tolerance_follows_from_eps_size_and_condition():
    one = np.ones(4)
    for eps, condition in ((2.0**-52, 1.0), (2.0**-52, 1e3), (2.0**-23, 1.0)):
        allowed = 32 * 2 * eps * condition * 2
        assert_close(one + np.array([0.99 * allowed, 0, 0, 0]), one, eps=eps, condition=condition)
        with pytest.raises(AssertionError, match="differs by"):
            assert_close(one + np.array([1.01 * allowed, 0, 0, 0]), one, eps=eps, condition=condition)


def test_shapes_that_broadcast_are_not_equal():
    with pytest.raises(AssertionError, match=r"got shape \(1, 3\), expected \(3,\)"):
        assert_close(np.ones((1, 3)), np.ones(3))
