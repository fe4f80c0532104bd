"""P3: K + 1 steps of RBP from zero equal K-step Neumann."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import assert_close, assert_rbp_is_neumann
from implicitgrad.testing.strategies import contractive_systems


@given(problem=contractive_systems(max_size=20), steps=st.integers(0, 20))
def test_k_plus_one_steps_of_rbp_are_k_steps_of_neumann(problem, steps):
    backward = (np.eye(problem.size) - problem.dense).astype(problem.dtype)
    assert_rbp_is_neumann(lambda u: backward @ u, problem.rhs, steps)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_tensors_obey_it_too(dtype, steps):
    torch = pytest.importorskip("torch")
    matrix = 0.3 * torch.randn(5, 5, dtype=getattr(torch, dtype), generator=torch.Generator().manual_seed(1))
    g = torch.ones(5, dtype=matrix.dtype)
    J = ig.VJPOperator(lambda u: u @ matrix, 5)
    neumann = ig.adjoint_solve(J, g, solver=ig.Neumann(rtol=0, max_iters=steps))
    rbp = ig.adjoint_solve(J, g, solver=ig.Richardson(rtol=0, max_iters=steps + 1))
    assert rbp.num_matvecs == neumann.num_matvecs == steps
    assert_close(rbp.x, neumann.x, condition=10)


def test_from_another_start_rbp_is_not_neumann():
    """The other side, and Table A1's: from z0 the error J^(K+1) z0 is added; at rho near one it hides the gradient."""
    J = ig.DenseOperator(0.95 * np.eye(3))
    g, z0 = np.ones(3), np.array([0.3, 0.7, 0.1])
    rbp = ig.adjoint_solve(J, g, solver=ig.Richardson(rtol=0, max_iters=11), x0=z0).x
    neumann = ig.adjoint_solve(J, g, solver=ig.Neumann(rtol=0, max_iters=10)).x
    assert_close(rbp - neumann, 0.95**11 * z0, condition=100)
    assert np.linalg.norm(rbp - neumann) > 0.4 * np.linalg.norm(z0)


def test_neither_converges_on_an_expanding_map():
    J = ig.DenseOperator(np.array([[0.0, 2.0], [-2.0, 0.0]]))
    for solver in (ig.Richardson(), ig.Neumann()):
        assert ig.adjoint_solve(J, np.ones(2), solver=solver, on_failure="return").status is Status.DIVERGED
