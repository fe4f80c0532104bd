"""P1: at a fixed point, K-step Neumann is back-propagation through K + 1 updates, and its limit is that of BPTT."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.testing import assert_close, assert_neumann_is_truncated_bptt
from implicitgrad.testing.strategies import contractive_systems


@given(problem=contractive_systems(max_size=12), steps=st.integers(0, 12))
def test_k_steps_of_neumann_are_k_plus_one_unrolled_updates(problem, steps):
    """The linear map h <- J h + B w: its cotangents are pulled back one update after the other."""
    backward = (np.eye(problem.size) - problem.dense).astype(problem.dtype)
    pull_back = np.triu(np.ones((problem.size, problem.size))).astype(problem.dtype)
    assert_neumann_is_truncated_bptt(lambda u: backward @ u, lambda u: pull_back @ u, problem.rhs, steps)


@given(problem=contractive_systems(dtypes=("float64",), max_size=8))
def test_one_term_more_or_less_is_another_gradient(problem):
    """The boundary of the convention: K unrolled updates are not K products."""
    backward = np.eye(problem.size) - problem.dense
    if np.linalg.norm(backward @ problem.rhs) <= 1e-3 * np.linalg.norm(problem.rhs) or not problem.rhs.any():
        return  # J = 0 or g in its kernel: no later term exists that could differ
    shorter = problem.rhs + 0 * backward @ problem.rhs
    with pytest.raises(AssertionError, match="differs by"):
        assert_neumann_is_truncated_bptt(lambda u: backward @ u, lambda u: u, problem.rhs, 1, shorter)


def tanh_network(torch, dtype, n=8):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, dtype=dtype, generator=generator) * (0.6 / n**0.5)
    b = torch.randn(n, dtype=dtype, generator=generator)
    h = torch.zeros(n, dtype=dtype)
    for _ in range(300):
        h = torch.tanh(W @ h + b)
    return W, b, h


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_autograd_through_k_plus_one_updates_agrees(dtype, steps):
    """By torch's own unrolled graph, started at the fixed point."""
    torch = pytest.importorskip("torch")
    W, b, star = tanh_network(torch, getattr(torch, dtype))
    g = torch.ones_like(star)
    w = W.clone().requires_grad_()
    h = star
    for _ in range(steps + 1):
        h = torch.tanh(w @ h + b)
    (unrolled,) = torch.autograd.grad(h, w, g)

    state, weight = star.clone().requires_grad_(), W.clone().requires_grad_()
    out = torch.tanh(weight @ state + b)

    def pull(to):
        return lambda u: torch.autograd.grad(out, to, u, retain_graph=True)[0].reshape(-1)

    assert_neumann_is_truncated_bptt(pull(state), pull(weight), g, steps, unrolled.reshape(-1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_full_sum_is_the_limit_of_bptt(dtype):
    torch = pytest.importorskip("torch")
    W, b, star = tanh_network(torch, getattr(torch, dtype))
    g = torch.ones_like(star)
    w = W.clone().requires_grad_()
    h = torch.zeros_like(star)
    for _ in range(200):
        h = torch.tanh(w @ h + b)
    (unrolled,) = torch.autograd.grad(h, w, g)
    jacobian = (1 - star**2)[:, None] * W
    eps = torch.finfo(star.dtype).eps
    z = ig.adjoint_solve(ig.DenseOperator(jacobian), g, solver=ig.Neumann(rtol=16 * eps)).x
    assert_close((z * (1 - star**2))[:, None] * star, unrolled, condition=20)


def test_without_a_contraction_there_is_no_limit():
    """The other side: the premise dropped."""
    J = ig.DenseOperator(np.diag([0.5, 1.5]))
    assert ig.adjoint_solve(J, np.ones(2), solver=ig.Neumann(), on_failure="return").status is Status.DIVERGED


def test_away_from_the_fixed_point_the_two_differ():
    """The other side: every unrolled update has a Jacobian of its own there."""
    w, h0 = 0.5, 3.0
    first = np.tanh(w * h0)
    second = np.tanh(w * first)
    slopes = (1 - first**2) * w, (1 - second**2) * w
    unrolled = (1 - second**2) * first + slopes[1] * (1 - first**2) * h0
    with pytest.raises(AssertionError, match="differs by"):
        assert_neumann_is_truncated_bptt(
            lambda u: slopes[1] * u, lambda u: (1 - second**2) * first * u, np.ones(1), 1, np.array([unrolled])
        )
