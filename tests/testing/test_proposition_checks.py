"""The propositions as checks: they hold for every system, and say by how much where a planted fault breaks them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
import implicitgrad.testing as igtest
from implicitgrad.testing import propositions
from implicitgrad.testing import strategies as igst


@given(problem=igst.problems(kinds=[k for k, kind in igtest.KINDS.items() if kind.shifted], max_size=6, zero=False))
def test_gershgorin_below_and_ritz_above_for_every_system(problem):
    igtest.assert_gershgorin_bound(ig.DenseOperator(problem.matrix))


@given(problem=igst.contractions(norm=st.floats(0, 0.3), max_size=6, dtypes=["float64"]))
def test_gershgorin_takes_an_array(problem):
    igtest.assert_gershgorin_bound(problem.matrix)


J = np.array([[0.5, 0.2], [0.0, 0.3]])


@pytest.mark.parametrize("form", ["paper", "frobenius", "norm", "rows"])
def test_a_gershgorin_form_that_is_too_large_is_named(monkeypatch, form):
    """lambda_min is 0.2: claimed is 0.3."""
    right = ig.gershgorin_lower_bound
    monkeypatch.setattr(
        propositions,
        "gershgorin_lower_bound",
        lambda A, bound: 0.3 if bound in (form, "rows") else right(A, bound=bound),
    )
    words = rf"gershgorin: the form '{form}' is 0\.3, above lambda_min = 0\.2\d* by \d\.\de-0\d, expected at most"
    if form in ("paper", "norm"):
        words = rf"gershgorin: the form '{form}' is 0\.3 and|{words}"
    with pytest.raises(AssertionError, match=words):
        igtest.assert_gershgorin_bound(J)


def test_forms_in_the_wrong_order_are_named(monkeypatch):
    """The factor of the paper forgotten: its form is that of Frobenius, above the one by rows."""
    right = ig.gershgorin_lower_bound
    monkeypatch.setattr(
        propositions,
        "gershgorin_lower_bound",
        lambda A, bound: right(A, bound="frobenius" if bound == "paper" else bound) - 2.0 * (bound == "norm"),
    )
    with pytest.raises(
        AssertionError, match=r"gershgorin: the form 'paper' is -?\d.* and 'norm' is -?\d.*, expected the other"
    ):
        igtest.assert_gershgorin_bound(J)


@pytest.mark.parametrize("name", ["smallest_eigenvalue", "smallest_singular_value"])
def test_a_ritz_value_that_is_too_small_is_named(monkeypatch, name):
    """As of a Lanczos recurrence that has lost its orthogonality, or squared what it should not."""
    right = getattr(ig, name)
    monkeypatch.setattr(
        propositions,
        name,
        lambda A, **given: dataclasses.replace(right(A, **given), upper=0.4 * right(A, **given).upper),
    )
    with pytest.raises(
        AssertionError, match=rf"gershgorin: the Ritz value 0\.\d+ of {name}\(.* is below lambda_min = 0\.2\d* by"
    ):
        igtest.assert_gershgorin_bound(J)


def test_p1_says_by_how_much_and_for_which_k():
    vjp, pull = (lambda u: u @ J), (lambda u: u)
    with pytest.raises(
        AssertionError, match=r"P1: Neumann with K = 3 products and 4 unrolled updates: differs by 1\.768e-01"
    ):
        igtest.assert_neumann_is_truncated_bptt(vjp, pull, np.ones(2), 3, np.ones(2) @ np.linalg.inv(np.eye(2) - J))


def test_p2_says_by_how_much_and_for_which_k(monkeypatch):
    """A sum that is one term short."""
    short = propositions.Neumann
    monkeypatch.setattr(
        propositions, "Neumann", lambda max_iters, **given: short(max_iters=max(max_iters - 1, 0), **given)
    )
    with pytest.raises(
        AssertionError, match=r"P2: the error of K = 4 terms is \d\S+, expected at most \d.*norm 2, n = 3"
    ):
        igtest.assert_neumann_error_bound(0.5 * np.eye(3), 4)


def test_p3_says_by_how_much_and_for_which_k(monkeypatch):
    """RBP that starts at g, and so is one step ahead."""
    right = propositions.adjoint_solve

    def ahead(operator, g, solver):
        return right(operator, g, solver=solver, x0=None if isinstance(solver, ig.Neumann) else 0.5 * g)

    monkeypatch.setattr(propositions, "adjoint_solve", ahead)
    with pytest.raises(
        AssertionError, match=r"P3: (\d+ and \d+ products, expected|3 steps of RBP and Neumann with K = 2: differs)"
    ):
        igtest.assert_rbp_is_neumann(lambda u: u @ J, np.ones(2), 2)
