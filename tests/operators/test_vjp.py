"""``VJPOperator``: which callable is which, batches, and callables that take single vectors only."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.errors import DtypeError, MissingProductError, ShapeError
from implicitgrad.testing import assert_adjoint, assert_close

MATRIX = np.arange(9.0).reshape(3, 3) / 10


def test_rmatvec_is_the_vjp_and_matvec_the_jvp():
    J = ig.VJPOperator(lambda u: u @ MATRIX, 3, jvp=lambda v: v @ MATRIX.T)
    u = np.array([1.0, 0.0, 0.0])
    assert_close(J.rmatvec(u), MATRIX[0])
    assert_close(J.matvec(u), MATRIX[:, 0])
    assert_adjoint(J)
    assert J.shape == (3, 3)


def test_without_a_jvp_there_is_no_forward_product():
    J = ig.VJPOperator(lambda u: u @ MATRIX, 3)
    assert not J.has_forward
    assert J.has_adjoint
    assert J.H.has_forward
    with pytest.raises(MissingProductError, match="without a JVP"):
        J.matvec(np.ones(3))
    with pytest.raises(MissingProductError):
        ig.tangent_solve(J, np.ones(3))


def test_a_symmetric_operator_uses_its_one_callable_both_ways():
    J = ig.VJPOperator(lambda u: u @ (MATRIX + MATRIX.T), 3, symmetric=True)
    assert J.has_forward
    assert_close(J.matvec(np.ones(3)), (MATRIX + MATRIX.T) @ np.ones(3))


def test_a_callable_of_single_vectors_is_looped_over_a_batch():
    seen = []

    def vjp(u):
        seen.append(u.shape)
        return MATRIX.T @ u

    J = ig.VJPOperator(vjp, 3, batched=False)
    g = np.random.default_rng(0).standard_normal((2, 2, 3))
    assert_close(J.rmatvec(g), g @ MATRIX)
    assert seen == [(3,)] * 4
    wrong = ig.VJPOperator(lambda u: np.zeros(3), 3)
    with pytest.raises(ShapeError, match="batched=False"):
        wrong.rmatvec(g)


def test_a_looped_operator_solves_like_a_batched_one():
    g = np.random.default_rng(1).standard_normal((4, 3))
    batched = ig.adjoint_solve(ig.VJPOperator(lambda u: u @ MATRIX, 3), g, solver=ig.GMRES())
    looped = ig.adjoint_solve(ig.VJPOperator(lambda u: MATRIX.T @ u, 3, batched=False), g, solver=ig.GMRES())
    assert_close(looped.x, batched.x, condition=100)
    assert np.array_equal(looped.num_iters, batched.num_iters)


def test_an_unusable_dtype_is_refused():
    with pytest.raises(DtypeError, match="expected a real or complex floating-point dtype"):
        ig.VJPOperator(lambda u: u, 3, dtype=np.int64)


def test_the_callable_gets_a_private_copy():
    kept = []
    J = ig.VJPOperator(lambda u: kept.append(u) or 0.5 * u, 3)
    x = np.ones(3)
    J.rmatvec(x)
    assert not np.shares_memory(kept[0], x)
