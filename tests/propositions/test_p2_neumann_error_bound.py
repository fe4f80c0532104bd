"""P2: the error of the truncated sum is at most norm((I - J)^-1) norm(J)^(K + 1), in any sub-multiplicative norm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import assert_close, assert_neumann_error_bound
from implicitgrad.testing.strategies import contractive_systems

REAL = ("float32", "float64")


@given(problem=contractive_systems(max_size=10), steps=st.integers(0, 20), order=st.sampled_from([1, 2, np.inf, "fro"]))
def test_the_error_of_k_terms_is_bounded(problem, steps, order):
    """Also where norm(J) > 1 makes the bound grow: it needs I - J to be invertible, no more."""
    jacobian = problem.matrix
    assert_neumann_error_bound(jacobian, steps, order)


@given(problem=contractive_systems(max_size=12), terms=st.integers(0, 20))
def test_residual_after_k_products_is_a_power_of_the_contraction(problem, terms):
    """P2 in its exact form: b - A x_K = (I - A)^(K+1) b."""
    solution = ig.Neumann(rtol=0.0, atol=0.0, max_iters=terms).solve(problem.operator, problem.rhs)
    contraction = np.eye(problem.size) - problem.dense
    expected = np.linalg.matrix_power(contraction, terms + 1) @ problem.rhs
    sizes = sum(np.linalg.norm(np.linalg.matrix_power(np.abs(contraction), t)) for t in range(terms + 2))
    residual = problem.rhs - problem.dense @ solution.x
    assert_close(residual, expected, eps=problem.eps, condition=(terms + 1) * sizes, scale=problem.rhs)


@pytest.mark.parametrize("dtype", REAL)
def test_torch_obeys_the_same_bound(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for steps in range(8):
        matrix = 0.3 * rng.standard_normal((6, 6))
        jacobian = torch.tensor(matrix, dtype=getattr(torch, dtype))
        exact = jacobian.double().numpy()
        J = ig.VJPOperator(lambda u, jacobian=jacobian: u @ jacobian, 6)
        eye = torch.eye(6, dtype=jacobian.dtype)
        total = ig.adjoint_solve(J, eye, solver=ig.Neumann(rtol=0, max_iters=steps)).x.double().numpy()
        inverse = np.linalg.inv(np.eye(6) - exact)
        bound = np.linalg.norm(inverse, 2) * np.linalg.norm(exact, 2) ** (steps + 1)
        assert np.linalg.norm(total - inverse, 2) <= bound + 1e3 * np.finfo(dtype).eps * np.linalg.norm(inverse)


def test_a_wrong_sum_breaks_the_bound():
    """The check can fail: the bound of K + 5 terms does not hold for K."""
    jacobian = 0.5 * np.eye(3)
    error = np.linalg.norm(sum(np.linalg.matrix_power(jacobian, t) for t in range(4)) - 2 * np.eye(3), 2)
    assert error == pytest.approx(2 * 0.5**4)  # so it is sharp
    assert error > 2 * 0.5**9


def test_beyond_a_norm_of_one_the_bound_promises_nothing():
    """The other side: the bound grows, and the sum may converge (non-normal J) or not (an expanding one)."""
    non_normal = ig.DenseOperator(np.array([[0.5, 4.0], [0.0, 0.5]]))
    assert ig.adjoint_solve(non_normal, np.ones(2), solver=ig.Neumann()).converged
    expanding = ig.DenseOperator(np.array([[-1.5, 0.0], [0.0, 0.5]]))
    assert ig.adjoint_solve(expanding, np.ones(2), solver=ig.Neumann(), on_failure="return").status is Status.DIVERGED
