"""Matrices, systems, maps and strategies keep the premise that their name states."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

import implicitgrad as ig
import implicitgrad.testing as igtest
from implicitgrad.testing import strategies as igst

DOUBLE = ("float64", "complex128")


# -- systems -----------------------------------------------------------------------------------------------------------
@given(problem=igst.contractions(norm=st.floats(0.1, 3.0), dtypes=DOUBLE))
def test_a_contraction_has_the_norm_that_was_asked_for(problem):
    norm = float(problem.kind.removeprefix("contractions(").removesuffix(")"))
    assert np.linalg.norm(problem.matrix, 2) == pytest.approx(norm, rel=1e-12)
    assert problem.contractive or norm >= 1


@given(
    values=st.lists(st.complex_numbers(max_magnitude=2, allow_subnormal=False), min_size=1, max_size=5),
    departure=st.floats(0, 5),
    is_complex=st.booleans(),
)
def test_a_rotated_spectrum_is_the_one_that_was_given(values, departure, is_complex):
    """By the characteristic polynomial, for the roots are ill-conditioned where the matrix is far from normal."""
    J = igtest.rotated_spectrum(np.random.default_rng(0), values, departure, is_complex)
    expected = list(values) if is_complex else [w for v in values for w in ([v, v.conjugate()] if v.imag else [v])]
    assert J.dtype == (complex if is_complex else float)
    scale = (1 + departure + max(map(abs, values))) ** len(J)
    assert np.abs(np.poly(J) - np.poly(expected)).max() <= 1e-12 * scale


@given(problem=igst.rotated_spectra([0.5, 0.2, -0.3], departure=8.0, dtypes=["float64"]))
def test_a_departure_from_normality_is_the_one_that_was_given(problem):
    """Henrici: norm(J, F)^2 - sum |lambda|^2."""
    departure = np.linalg.norm(problem.matrix) ** 2 - 0.25 - 0.04 - 0.09
    assert departure**0.5 == pytest.approx(8.0, rel=1e-10)


@given(problem=igst.skew_systems(norm=3.0, dtypes=DOUBLE))
def test_a_skew_system_is_skew(problem):
    J = problem.matrix
    assert np.array_equal(J, -J.conj().T)
    assert np.linalg.norm(J, 2) == pytest.approx(3.0, rel=1e-12) or (problem.size == 1 and J.dtype == float)


@given(problem=igst.jordan_systems(eigenvalue=0.5, coupling=2.0, dtypes=["float64"], max_size=6))
def test_a_jordan_system_has_one_eigenvector(problem):
    """``(J - lambda I)^(n - 1)`` is ``coupling^(n - 1)`` times a matrix of norm one, its next power is zero."""
    n, shifted = problem.size, problem.matrix - 0.5 * np.eye(problem.size)
    assert np.linalg.norm(np.linalg.matrix_power(shifted, n - 1), 2) == pytest.approx(2.0 ** (n - 1), rel=1e-9)
    assert np.linalg.norm(np.linalg.matrix_power(shifted, n)) <= 1e-12 * 2.0**n


@given(problem=igst.clustered_systems(centres=(0.0, 0.9), width=0.01, dtypes=["float64"]))
def test_a_clustered_spectrum_lies_in_its_clusters(problem):
    values = np.linalg.eigvalsh(problem.matrix)
    assert problem.symmetric
    assert np.minimum(abs(values), abs(values - 0.9)).max() <= 0.01 + 1e-12


@given(problem=igst.singular_systems())
def test_the_null_space_of_a_singular_system_is_known(problem):
    """Orthonormal, annihilated by A, and as large as what the rank leaves."""
    null = problem.null_space
    assert len(null) >= 1
    eps = problem.eps
    assert np.abs(null.conj() @ null.T - np.eye(len(null))).max() <= 1e-12
    assert np.abs(problem.dense @ null.T).max(initial=0.0) <= 8 * problem.size * eps * np.linalg.norm(problem.dense)
    assert len(null) == problem.size - np.linalg.matrix_rank(problem.dense, tol=1e-3)


def test_a_regular_system_has_no_null_space_and_a_batch_has_several():
    assert len(igtest.make_problem("contraction", 4, 0).null_space) == 0
    with pytest.raises(ig.ShapeError, match=r"got a batch of shape \(3,\), expected one system.*\.one\(i\)"):
        _ = igtest.make_problem("J = I", 4, 0, batch=3).null_space


@given(problem=igst.scaled_systems())
def test_a_scaled_system_is_out_of_scale(problem):
    size = np.linalg.norm(problem.matrix)
    assert size < 1e-7 or size > 1e7


@given(problem=igst.contractions(norm=0.5, batch=3, max_size=4))
def test_a_batch_has_systems_of_its_own(problem):
    assert problem.rhs.shape == (3, problem.size)
    solution = ig.GMRES().solve(problem.operator, problem.rhs)
    igtest.assert_no_false_success(problem, solution)
    assert solution.converged.all()


@given(problem=igst.problems(max_size=6))
def test_a_problem_says_how_to_build_it_again(problem):
    again = eval(repr(problem), {"make_problem": igtest.make_problem})
    assert np.array_equal(again.matrix, problem.matrix)
    assert np.array_equal(again.rhs, problem.rhs)


def test_one_system_of_a_batch_says_so_too():
    problem = igtest.make_problem("skew", 3, 5, "complex64", exponent=-2, rhs="one zero", batch=2)
    assert repr(problem.one(1)) == (
        "make_problem('skew', size=3, seed=5, dtype='complex64', exponent=-2, rhs='one zero', batch=2).one(1)"
    )


def test_facts_of_a_given_matrix_are_measured():
    facts = lambda p: (p.symmetric, p.definite, p.contractive, p.singular)
    assert facts(igtest.problem_of(np.diag([0.5, -0.5]))) == (True, True, True, False)
    assert facts(igtest.problem_of(np.diag([2.0, 0.5]))) == (True, False, False, False)
    assert facts(igtest.problem_of(np.array([[0.5, 3.0], [0.0, 0.5]]))) == (False, False, True, False)
    assert facts(igtest.problem_of(np.eye(2))) == (True, False, False, True)
    assert facts(igtest.problem_of(np.diag([1.0, 3.0]), shifted=False)) == (True, True, False, False)


def test_unknown_kinds_and_right_hand_sides_are_refused():
    with pytest.raises(ig.SettingError, match=r"got kind='slanted', expected one of 'contraction', "):
        igtest.make_problem("slanted", 3, 0)
    with pytest.raises(ig.SettingError, match=r"got rhs='ones', expected 'random'"):
        igtest.make_problem("skew", 3, 0, rhs="ones")
    with pytest.raises(ig.SettingError, match=r"got form='relu', expected one of 'affine', 'tanh'"):
        igtest.make_map("relu")


# -- maps --------------------------------------------------------------------------------------------------------------
@given(known=igst.fixed_point_maps(norm=st.floats(0.0, 0.7), dtypes=DOUBLE))
def test_a_map_has_the_fixed_point_and_the_derivatives_that_it_states(known):
    """By complex differences along random directions of z, W and b."""
    rng, n, h = np.random.default_rng(0), known.size, 1e-6
    kind = known.W.dtype
    assert np.abs(known(known.z_star) - known.z_star).max() <= 1e-14
    dz, dW, db = (rng.standard_normal(s).astype(kind) for s in ((n,), (n, n), (n,)))
    along = lambda t: known(known.z_star + t * dz, known.W + t * dW, known.b + t * db)
    expected = known.J @ dz + known.parameter_jacobian @ np.concatenate([dW.ravel(), db])
    assert np.abs((along(h) - along(-h)) / (2 * h) - expected).max() <= 1e-8 * (1 + np.abs(expected).max())
    igtest.assert_adjoint(known.operator)


@given(known=igst.fixed_point_maps(norm=0.5, dtypes=["float64"], max_size=4))
def test_the_gradient_of_a_map_is_that_of_its_fixed_point(known):
    """By differences of the whole solve, iterated to rounding."""
    g, rng, h = np.arange(1.0, known.size + 1), np.random.default_rng(1), 1e-5
    dW, db = rng.standard_normal(known.W.shape), rng.standard_normal(known.size)

    def loss(t):
        z = known.z_star
        for _ in range(80):
            z = known(z, known.W + t * dW, known.b + t * db)
        return g @ z

    exact = known.gradient(g)
    assert (exact["W"] * dW).sum() + exact["b"] @ db == pytest.approx(
        (loss(h) - loss(-h)) / (2 * h), rel=1e-6, abs=1e-8
    )


@pytest.mark.parametrize("form", ["tanh", "affine"])
def test_a_map_takes_the_jacobian_that_it_is_built_around(form):
    J = igtest.rotated_spectrum(np.random.default_rng(0), [0.5, 1.0, 0.1], departure=3.0)  # I - J is singular
    known = igtest.map_of(J, form=form)
    np.testing.assert_allclose(known.J, J, atol=1e-14)
    np.testing.assert_allclose(known(known.z_star), known.z_star, atol=1e-14)


@given(data=st.data(), size=st.integers(1, 9))
def test_a_pytree_holds_as_many_numbers_as_were_asked_for(data, size):
    tree = data.draw(igst.pytrees(size=size, dtype="float32"))

    def leaves(node):
        if isinstance(node, np.ndarray):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]

    assert sum(leaf.size for leaf in leaves(tree)) == size
    assert {leaf.dtype for leaf in leaves(tree)} == {np.dtype("float32")}


def test_pytrees_nest_and_reach_scalars():
    find(igst.pytrees(), lambda tree: isinstance(tree, tuple) and any(isinstance(node, dict) for node in tree))
    find(igst.pytrees(size=1), lambda tree: isinstance(tree, np.ndarray) and tree.ndim == 0)


# -- what is imported when ---------------------------------------------------------------------------------------------
def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_without_hypothesis_everything_but_the_strategies_is_there():
    said = run(
        "import sys; sys.modules['hypothesis'] = None\n"
        "import implicitgrad.testing as igtest\n"
        "igtest.assert_adjoint(igtest.make_map().operator)\n"
        "try:\n    igtest.strategies\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert said.strip() == (
        "implicitgrad.testing.strategies: the package 'hypothesis' is not installed, expected hypothesis. "
        'Install it with: pip install "implicitgrad[testing]"'
    )


def test_without_torch_everything_but_the_layers_is_there():
    said = run(
        "import sys; sys.modules['torch'] = None\n"
        "from implicitgrad.testing import *\n"
        "import implicitgrad as ig\n"
        "assert_solver(ig.GMRES(), kinds=['contraction'], dtypes=['float64'], sizes=[2])\n"
        "try:\n    assert_implicit_gradient(abs, 1)\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert re.search("the package '(torch|optree)' is not installed", said)  # where both are missing: either
    assert 'pip install "implicitgrad[torch]"' in said


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'assert_everything'"):
        _ = igtest.assert_everything
