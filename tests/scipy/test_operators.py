"""Operators to SciPy and back: the same products, in every dtype and shape, and faults told in words."""

import numpy as np
import pytest

import implicitgrad as ig

sparse = pytest.importorskip("scipy.sparse")
import scipy.sparse.linalg as sparse_linalg

import implicitgrad.scipy as igs

DTYPES = ["float32", "float64", "complex64", "complex128"]


def draw(shape, dtype, seed=0):
    real, imag = np.random.default_rng(seed).standard_normal((2, *shape))
    return (real + 1j * imag if np.dtype(dtype).kind == "c" else real).astype(dtype)


def assert_close(actual, expected, dtype):
    """The rounding of a product of a few dozen terms of size one."""
    assert np.asarray(actual).dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 6), (7, 4), (4, 7)])
def test_products_survive_the_way_to_scipy(shape, dtype):
    matrix = draw(shape, dtype)
    A = igs.as_linear_operator(ig.DenseOperator(matrix))
    x, y = draw((shape[1], 3), dtype, 1), draw((shape[0], 3), dtype, 2)
    assert A.dtype == dtype
    assert A.shape == shape
    assert_close(A.matvec(x[:, 0]), matrix @ x[:, 0], dtype)
    assert_close(A.rmatvec(y[:, 0]), matrix.conj().T @ y[:, 0], dtype)
    assert_close(A.matvec(x[:, :1]), matrix @ x[:, :1], dtype)
    assert_close(A.matmat(x), matrix @ x, dtype)
    assert_close(A.rmatmat(y), matrix.conj().T @ y, dtype)
    assert_close(A.H @ y, matrix.conj().T @ y, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_matrix, sparse_linalg.aslinearoperator])
@pytest.mark.parametrize("shape", [(6, 6), (7, 4)])
def test_products_survive_the_way_from_scipy(shape, kind, dtype):
    matrix = draw(shape, dtype)
    A = igs.from_linear_operator(kind(matrix))
    x, y = draw((2, 3, shape[1]), dtype, 1), draw((2, 3, shape[0]), dtype, 2)
    assert A.shape == shape
    assert A.dtype == dtype
    assert A.has_adjoint
    assert_close(A.matvec(x[0, 0]), matrix @ x[0, 0], dtype)
    assert_close(A.matvec(x), x @ matrix.T, dtype)
    assert_close(A.rmatvec(y), y @ matrix.conj(), dtype)
    assert A.matvec(x[:0]).shape == (0, 3, shape[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_again(dtype):
    matrix = draw((5, 5), dtype)
    A = igs.from_linear_operator(igs.as_linear_operator(ig.DenseOperator(matrix)))
    x = draw((4, 5), dtype, 1)
    assert_close(A.matvec(x), x @ matrix.T, dtype)
    assert_close(A.rmatvec(x), x @ matrix.conj(), dtype)


def test_a_real_operator_takes_complex_vectors_in_two_parts():
    matrix, x = draw((5, 5), "float64"), draw((5,), "complex128", 1)
    A = igs.as_linear_operator(ig.DenseOperator(matrix))
    assert_close(A @ x, matrix @ x, "complex128")


def test_an_integer_matrix_takes_vectors_of_any_floating_dtype():
    A = igs.from_linear_operator(sparse.csr_array(np.array([[2, 1], [0, 3]])))
    assert A.dtype is None
    assert_close(A.matvec(np.array([1.0, 2.0], "float32")), [4.0, 6.0], "float32")


def test_batches_go_through_one_matmat():
    shapes = []

    def matmat(X):
        shapes.append(X.shape)
        return 2 * X

    L = sparse_linalg.LinearOperator((3, 3), matvec=lambda v: 2 * v, matmat=matmat, dtype=float)
    igs.from_linear_operator(L).matvec(np.ones((2, 4, 3)))
    assert shapes == [(3, 8)]


def test_what_scipy_gets_is_its_own_memory():
    """gmres writes into the products: a map that keeps its result must not see that."""
    kept = np.array([1.0, 2.0])

    class Constant(ig.LinearOperator):
        shape = (2, 2)

        def apply(self, x):
            return kept[:]

    igs.as_linear_operator(Constant()).matvec(np.ones(2))[:] = 7
    assert kept.tolist() == [1, 2]


def test_the_adjoint_is_there_only_where_scipy_has_one():
    L = sparse_linalg.LinearOperator((3, 3), matvec=lambda v: 2 * v, dtype=float)
    A = igs.from_linear_operator(L)
    assert not A.has_adjoint
    with pytest.raises(ig.MissingProductError, match=r"got a SciPy operator without rmatvec.*tangent_solve"):
        A.rmatvec(np.ones(3))
    assert igs.from_linear_operator(L, symmetric=True).rmatvec(np.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(NotImplementedError):
        igs.as_linear_operator(A).rmatvec(np.ones(3))


def test_a_missing_jvp_is_told_at_the_product():
    A = igs.as_linear_operator(ig.VJPOperator(lambda u: u, size=3))
    assert A.rmatvec(np.ones(3)).tolist() == [1, 1, 1]
    with pytest.raises(ig.MissingProductError, match="without a JVP"):
        A.matvec(np.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: igs.as_linear_operator(np.eye(2)), ig.SettingTypeError, "got an object of type ndarray, expected"),
        (lambda: igs.as_linear_operator(ig.DenseOperator(np.ones((3, 2, 2)))), ig.ShapeError, "SciPy knows no batches"),
        (
            lambda: igs.as_linear_operator(ig.DenseOperator(np.eye(2)), like=np.ones(3)),
            ig.ShapeError,
            r"shape \(2, 2\) on vectors of shape \(3,\), expected \(2,\)",
        ),
        (lambda: igs.as_linear_operator(ig.VJPOperator(abs, 2), like=np.ones(2, int)), ig.DtypeError, "floating"),
        (lambda: igs.as_linear_operator(ig.VJPOperator(abs, 2), like=[1.0, 2.0]), ig.BackendError, r"\(like\)"),
        (lambda: igs.from_linear_operator("A"), ig.SettingTypeError, "type str .*expected a SciPy LinearOperator"),
        (lambda: igs.from_linear_operator(np.ones((2, 2, 2))), ig.SettingTypeError, "two-dimensional NumPy array"),
    ],
)
def test_a_wrong_operator_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_results_of_a_scipy_operator_are_checked():
    def inplace(v):
        v *= 2
        return v

    def build(matvec):
        return igs.from_linear_operator(sparse_linalg.LinearOperator((3, 3), matvec=matvec, dtype=float))

    with pytest.raises(ig.DtypeError, match="matvec returned complex128 for a vector of float64"):
        build(lambda v: 1j * v).matvec(np.ones(3))
    with pytest.raises(ig.OperatorError, match="matvec changed its input in place"):
        build(inplace).matvec(np.ones(3))
    with pytest.raises(ValueError, match="reshape"):
        build(lambda v: v[:2]).matvec(np.ones(3))
    with pytest.raises(ZeroDivisionError):
        build(lambda v: 1 // 0).matvec(np.ones(3))


def test_an_operator_of_scipy_solves():
    matrix = 0.1 * draw((20, 20), "float64")
    g = draw((20,), "float64", 1)
    for L in (sparse.csr_array(matrix), sparse_linalg.aslinearoperator(matrix)):
        sol = ig.adjoint_solve(igs.from_linear_operator(L), g)
        np.testing.assert_allclose(sol.x, np.linalg.solve(np.eye(20) - matrix.T, g), atol=1e-6)
