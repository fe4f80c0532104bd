"""The algebra of operators against dense matrices."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.errors import DtypeError, MissingProductError, ShapeError
from implicitgrad.operators.algebra import split_shift
from implicitgrad.testing import assert_adjoint, assert_close, assert_linear, random_matrix

N = 6


@pytest.fixture(params=["float32", "float64", "complex64", "complex128"])
def pair(request):
    """Two matrices of a dtype, and the same in double precision."""
    rng = np.random.default_rng(0)
    return [random_matrix(rng, N, "complex" in request.param).astype(request.param) for _ in range(2)]


def assert_is(operator, matrix, dtype):
    """Assert that both products are those of ``matrix``, for one vector and for a batch."""
    rng = np.random.default_rng(1)
    wide = matrix.astype(np.result_type(matrix, np.float64))
    for shape in ((), (3,), (2, 3)):
        x = (random_matrix(rng, N, True)[0] * np.ones((*shape, 1))).astype(dtype)
        assert_close(operator.matvec(x), x @ wide.T, condition=N)
        if operator.has_adjoint:
            assert_close(operator.rmatvec(x), x @ wide.conj(), condition=N)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_every_operation_is_that_of_the_matrices(pair):
    a, b = pair
    A, B = ig.DenseOperator(a), ig.DenseOperator(b)
    eye = np.eye(N)
    for operator, matrix in [
        (A, a),
        (A.H, a.conj().T),
        (A + B, a + b),
        (A - B, a - b),
        (-A, -a),
        (2.5 * A, 2.5 * a),
        (A * 2.5, 2.5 * a),
        (A @ B, a.astype(complex) @ b if np.iscomplexobj(a) else a.astype(float) @ b),
        ((A @ B).H, (a.astype(complex) @ b).conj().T if np.iscomplexobj(a) else (a.astype(float) @ b).T),
        (ig.identity_minus(A), eye - a),
        (ig.identity_minus(A).H, (eye - a).conj().T),
        (ig.identity_minus(A.H), eye - a.conj().T),
        (2.0 * ig.identity_minus(A) + B, 2 * (eye - a) + b),
        (ig.identity_minus(-3.0 * A), eye + 3 * a),
    ]:
        assert_is(operator, matrix, a.dtype)
        assert_adjoint(operator)
        assert_linear(operator)


def test_complex_factors_are_conjugated_in_the_adjoint():
    a = random_matrix(np.random.default_rng(2), N, True)
    A = ig.DenseOperator(a)
    assert_is((1 + 2j) * A, (1 + 2j) * a, complex)
    assert_is(((1 + 2j) * ig.identity_minus(A)).H, ((1 + 2j) * (np.eye(N) - a)).conj().T, complex)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_complex_factor_makes_an_operator_of_complex_systems(library):
    """Solved with a real b: CONVERGED and complex, STAGNATED and real, or an error of NumPy's, by solver."""
    as_array = np.asarray if library == "numpy" else pytest.importorskip("torch").tensor
    matrix, b = 0.3 * random_matrix(np.random.default_rng(5), 3, False), np.array([1.0, 2.0, -1.0])
    J = ig.DenseOperator(as_array(matrix))
    for A, dense in [
        (0.5j * J, 0.5j * matrix),
        (3.0 * J + 1j * J, (3 + 1j) * matrix),
        (ig.identity_minus(1j * J).H, (np.eye(3) - 1j * matrix).conj().T),
        ((2j * J) @ J + J, 2j * matrix @ matrix + matrix),
    ]:
        assert A.makes_complex
        assert "complex128" in str(A.dtype)
        assert "complex128" in str(A.example().dtype)
        for solver in (ig.GMRES(), ig.Neumann(), ig.BiCGSTAB(), ig.LSMR(), ig.Dense(), None):
            with pytest.raises(DtypeError, match="for an operator with a complex factor, expected a complex one"):
                ig.solve(A, as_array(b), solver=solver)
        x = ig.solve(A, as_array(b + 0j), solver=ig.Dense()).x
        assert_close(np.asarray(x), np.linalg.solve(dense, b), condition=100)
        value = ig.smallest_singular_value(A).value
        assert value == pytest.approx(np.linalg.svd(dense, compute_uv=False)[-1], rel=1e-6)
    bare = 0.5j * ig.VJPOperator(lambda u: u @ matrix, 3, jvp=lambda v: v @ matrix.T)
    with pytest.raises(DtypeError, match="complex factor"):
        ig.adjoint_solve(bare + bare, b)
    with pytest.raises(DtypeError, match="complex factor"):
        ig.smallest_singular_value(bare)


def test_a_complex_number_without_an_imaginary_part_is_a_real_factor():
    A = ig.DenseOperator(np.diag([1.0, 2.0]))
    for factor in (complex(2, 0), np.complex128(2)):
        assert not (factor * A).makes_complex
        assert ig.solve(factor * A, np.array([1.0, 2.0])).x.dtype == np.float64


def test_operators_of_two_precisions_make_one_of_the_wider():
    """It took vectors of either, and gave back whichever it came to."""
    narrow, wide = ig.DenseOperator(np.eye(2, dtype=np.float32)), ig.DenseOperator(np.eye(2))
    for A in (narrow + wide, wide + narrow, narrow @ wide, wide @ narrow):
        assert A.dtype == np.float64
        with pytest.raises(DtypeError, match="rhs of dtype float32 for an operator of float64"):
            ig.solve(A, np.ones(2, np.float32))
        assert ig.solve(A, np.ones(2)).x.dtype == np.float64


def test_two_identities_give_the_operator_back():
    J = ig.DenseOperator(np.eye(3))
    assert J.H.H is J
    assert ig.identity_minus(ig.identity_minus(J)) is J
    assert ig.identity_minus(ig.identity_minus(J).H) is not None
    assert split_shift(ig.identity_minus(ig.identity_minus(J).H))[1:] == (0.0, 1.0)


def test_the_adjoint_of_a_shift_is_a_shift():
    """Krylov methods and Neumann look for it."""
    J = ig.DenseOperator(np.eye(3))
    inner, alpha, beta = split_shift(ig.identity_minus(J).H)
    assert (alpha, beta) == (1.0, -1.0)
    assert inner.H is J


def test_rectangular_operators_multiply_add_and_scale():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((4, 6)), rng.standard_normal((6, 4))
    A, B = ig.DenseOperator(a), ig.DenseOperator(b)
    assert (A @ B).shape == (4, 4)
    assert_close((A @ B).matvec(np.ones(4)), a @ b @ np.ones(4), condition=10)
    assert_close((3.0 * A).matvec(np.ones(6)), 3 * a @ np.ones(6))
    assert_close((3.0 * A).rmatvec(np.ones(4)), 3 * a.T @ np.ones(4))
    assert_close((A + B.H).matvec(np.ones(6)), (a + b.T) @ np.ones(6))
    assert_adjoint(A)
    assert (A.H @ A).symmetric
    for wrong in (lambda: A + B, lambda: A @ A, lambda: ig.identity_minus(A)):
        with pytest.raises(ShapeError, match=r"got (an operator|operators) of shape"):
            wrong()


def test_symmetry_is_kept_where_it_holds():
    S = ig.DenseOperator(np.eye(3), symmetric=True)
    A = ig.DenseOperator(np.eye(3))
    assert ig.identity_minus(S).symmetric
    assert (S + S).symmetric
    assert not (S + A).symmetric
    assert not (S @ S).symmetric
    assert not (1j * S).symmetric
    assert S.H.symmetric


def test_other_objects_are_no_operators():
    A = ig.DenseOperator(np.eye(3))
    for wrong in (lambda: A + np.eye(3), lambda: A @ 3, lambda: A * "x", lambda: A - None):
        with pytest.raises(TypeError):
            wrong()


def test_a_matrix_per_system_is_applied_to_its_system():
    rng = np.random.default_rng(4)
    stack, x = rng.standard_normal((5, 3, 3)), rng.standard_normal((5, 3))
    A = ig.DenseOperator(stack)
    expected = np.stack([m @ v for m, v in zip(stack, x, strict=True)])
    assert_close(A.matvec(x), expected)
    assert_adjoint(A)


def test_dense_operators_refuse_what_is_no_matrix():
    with pytest.raises(ShapeError, match=r"shape \(3,\), expected \(\.\.\., m, n\)"):
        ig.DenseOperator(np.ones(3))
    with pytest.raises(DtypeError, match="got dtype int64"):
        ig.DenseOperator(np.ones((3, 3), int))
    with pytest.raises(TypeError, match="type list"):
        ig.DenseOperator([[1.0]])


def test_vectors_are_checked_by_the_public_products():
    A = ig.DenseOperator(np.ones((3, 2)))
    with pytest.raises(ShapeError, match=r"DenseOperator.matvec: got an array of shape \(3,\), expected \(\.\.\., 2\)"):
        A.matvec(np.ones(3))
    with pytest.raises(ShapeError, match=r"rmatvec: got an array of shape \(2,\)"):
        A.rmatvec(np.ones(2))
    with pytest.raises(TypeError, match="type list"):
        A.matvec([1.0, 2.0])


class ForwardOnly(ig.LinearOperator):
    shape = (2, 2)

    def apply(self, x):
        return 2.0 * x


def test_an_operator_of_ones_own_needs_apply_alone():
    A = ForwardOnly()
    assert not A.has_adjoint
    assert not A.H.has_forward
    with pytest.raises(MissingProductError, match=r"ForwardOnly\.rmatvec: got an operator without the adjoint"):
        A.rmatvec(np.ones(2))
    assert np.allclose(ig.solve(A, np.ones(2)).x, 0.5)
    with pytest.raises(MissingProductError):
        ig.solve(A, np.ones(2), solver=ig.LSMR())
