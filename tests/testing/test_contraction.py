"""``assert_contraction`` claims from upper bounds, refutes by lower ones, and says when it cannot tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
import implicitgrad.testing as igtest
from implicitgrad.testing import assert_contraction
from implicitgrad.testing import strategies as igst


@given(problem=igst.contractions(norm=st.floats(0.1, 0.95)), norm=st.sampled_from([1, 2, np.inf, "fro"]))
def test_the_verdict_is_that_of_the_dense_norm(problem, norm):
    J, exact = ig.DenseOperator(problem.matrix), float(np.linalg.norm(problem.matrix.astype(problem.dense.dtype), norm))
    if exact < 0.99:
        assert_contraction(J, norm=norm)
    elif exact >= 1:
        with pytest.raises(AssertionError, match="no contraction: norm"):
            assert_contraction(J, norm=norm)
    with pytest.raises(AssertionError, match=rf"expected below {0.5 * exact:g} "):
        assert_contraction(J, norm=norm, factor=0.5 * exact)


def test_a_spectral_radius_below_one_is_no_contraction_and_the_message_tells_both():
    J = igtest.rotated_spectrum(np.random.default_rng(0), [0.5, 0.5, 0.5], departure=10.0)
    size = np.linalg.norm(J, 2)
    with pytest.raises(
        AssertionError, match=rf"norm\(J, 2\) = {size:.4g}, .*spectral radius is 0\.5\d*: iteration converges"
    ):
        assert_contraction(J)
    with pytest.raises(AssertionError, match=r"The spectral radius is 1\.5: iteration does not converge either"):
        assert_contraction(1.5 * np.eye(2))


def test_a_norm_on_the_edge_is_no_contraction():
    with pytest.raises(AssertionError, match="no contraction"):
        assert_contraction(np.eye(3))
    with pytest.raises(AssertionError, match=r"undecided: .* below 1 by less than the rounding of its entries"):
        assert_contraction(np.diag([1.0 - 2.0**-52, 0.0]))
    J = np.diag([0.99999, 0.5, 0.5]).astype("float32")
    assert_contraction(J)
    with pytest.raises(AssertionError, match="Use a wider dtype"):
        assert_contraction(np.diag([0.9999998, 0.5, 0.5]).astype("float32"))


def test_a_vjp_alone_is_enough():
    """norm(J^H, 2) = norm(J, 2), and the rows of J are its columns."""
    J = np.array([[0.5, 0.4], [0.0, 0.5]])
    operator = ig.VJPOperator(lambda u: u @ J, 2)
    for norm, value in ((1, 0.9), (np.inf, 0.9), (2, 0.738516), ("fro", 0.812404)):
        assert_contraction(operator, norm=norm, factor=value * 1.001)
        with pytest.raises(AssertionError, match=rf"not that much of a contraction: .* = {value:.4g}, expected"):
            assert_contraction(operator, norm=norm, factor=value * 0.999)
    lopsided = ig.VJPOperator(lambda u: u @ np.array([[0.5, 0.6], [0.3, 0.1]]), 2)
    assert_contraction(lopsided, norm=1, factor=0.81)
    with pytest.raises(AssertionError, match=r"norm\(J, inf\) = 1\.1"):
        assert_contraction(lopsided, norm=np.inf)


def test_the_worst_system_of_a_batch_is_named():
    J = np.stack([0.5 * np.eye(2), 2.0 * np.eye(2), 0.1 * np.eye(2)])
    with pytest.raises(AssertionError, match=r"= 2, expected below 1 \(n = 2, system 1 of \(3,\)\)"):
        assert_contraction(J)


@pytest.mark.parametrize("size", [0.8, 1.2])
def test_a_large_operator_is_refuted_by_certainty_and_accepted_by_a_probability_only(size):
    """A Ritz value is a lower bound: below one it shows nothing, however small it is."""
    J = ig.DenseOperator(igtest.contraction(np.random.default_rng(0), 40, norm=size))
    if size > 1:
        with pytest.raises(
            AssertionError, match=r"no contraction: norm\(J, 2\) >= 1\.2, expected below 1 \(n = 40, \d+ products"
        ):
            assert_contraction(J, max_size=10)
        return
    with pytest.raises(AssertionError, match=r"undecided: norm\(J, 2\) is at least 0\.\d+, which shows no contraction"):
        assert_contraction(J, max_size=10)
    assert_contraction(J, max_size=10, confidence=0.999)
    with pytest.raises(AssertionError, match=r"undecided: norm\(J, inf\) takes the whole matrix, n = 40 products"):
        assert_contraction(J, norm=np.inf, max_size=10)


def test_a_lower_bound_that_is_wrong_shows_nothing(monkeypatch):
    """If the search is cut short its Ritz value is far too small: 1.2 is not found, and still nothing is claimed."""
    from implicitgrad.testing.properties import contraction

    full = contraction.operator_norm
    monkeypatch.setattr(contraction, "operator_norm", lambda J, **given: full(J, max_iters=1, **given))
    J = ig.DenseOperator(igtest.contraction(np.random.default_rng(0), 40, norm=1.2))
    for confidence in (None, 0.999):
        with pytest.raises(AssertionError, match="undecided"):
            assert_contraction(J, max_size=10, confidence=confidence)


def test_a_torch_map_is_checked_at_a_point():
    torch = pytest.importorskip("torch")
    W = torch.tensor([[0.5, 0.9], [0.0, 0.5]], dtype=torch.float64)
    f = lambda z, x: torch.tanh(z @ W.T + x)
    x = torch.ones(3, 2, dtype=torch.float64)
    assert_contraction(f, x, at=2 * x)  # saturated
    with pytest.raises(AssertionError, match=r"no contraction: norm\(J, 2\) = 1\.123, expected below 1 \(n = 6\)"):
        assert_contraction(f, 0 * x, at=0 * x)
    assert_contraction({"f": f}["f"], 0 * x, at=0 * x, factor=1.2)


def test_misuse_is_refused_in_words():
    with pytest.raises(ig.SettingError, match=r"got norm=3, expected 1, 2, inf or 'fro'"):
        assert_contraction(np.eye(2), norm=3)
    with pytest.raises(ig.SettingTypeError, match=r"got a map without a point, expected at=z\. Sampled values"):
        assert_contraction(np.tanh)
    with pytest.raises(ig.SettingTypeError, match=r"with J of type ndarray, expected them with a torch map only"):
        assert_contraction(np.eye(2), at=np.zeros(2))
    with pytest.raises(ig.ShapeError, match=r"got J of shape \(2, 3\), expected a square one"):
        assert_contraction(np.ones((2, 3)))
    with pytest.raises(AssertionError, match="J holds NaN or Inf"):
        assert_contraction(np.full((2, 2), np.nan))
