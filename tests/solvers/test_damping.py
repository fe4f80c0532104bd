"""Damped Neumann sums and Richardson steps: the series, its residual, and the unrolled steps it is the gradient of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import SettingError, SettingTypeError, Status
from implicitgrad.testing import (
    assert_batch_is_loop,
    assert_close,
    assert_honest_counts,
    assert_scale_equivariant,
    make_problem,
)
from implicitgrad.testing.strategies import contractive_systems

dampings = st.sampled_from([0.0, 0.1, 0.5, 0.9])


def budget(solver, steps, damping, final=False):
    return solver(rtol=0, max_iters=steps, damping=damping, final_residual=final)


@given(problem=contractive_systems(max_size=12), steps=st.integers(0, 12), damping=dampings)
def test_k_products_sum_the_damped_series_and_leave_its_next_power(problem, steps, damping):
    """x_K = s sum_{t<=K} (I - s A)^t b, and b - A x_K = (I - s A)^(K+1) b."""
    solution = budget(ig.Neumann, steps, damping, final=True).solve(problem.operator, problem.rhs)
    step = 1 - damping
    powers = [problem.rhs.astype(problem.dense.dtype)]
    for _ in range(steps + 1):
        powers.append(powers[-1] - step * problem.dense @ powers[-1])
    largest = max(np.linalg.norm(p) for p in powers)
    scale = (steps + 2) * largest * np.ones_like(powers[0])
    assert_close(solution.x, step * sum(powers[:-1]), eps=problem.eps, scale=scale)
    if problem.rhs.any():
        assert solution.num_matvecs == steps + 1
        allowed = 50 * problem.eps * (steps + 2) * largest * (1 + np.linalg.norm(problem.dense))
        assert solution.residual_norm == pytest.approx(np.linalg.norm(powers[-1]), rel=1e-3, abs=allowed)


@given(problem=contractive_systems(max_size=12), steps=st.integers(0, 12), damping=dampings)
def test_k_plus_one_damped_steps_of_richardson_are_k_products_of_neumann(problem, steps, damping):
    """Proposition 3, damped, and for the same number of products."""
    neumann = budget(ig.Neumann, steps, damping).solve(problem.operator, problem.rhs)
    richardson = budget(ig.Richardson, steps + 1, damping).solve(problem.operator, problem.rhs)
    assert richardson.num_matvecs == neumann.num_matvecs
    scale = np.linalg.norm(problem.rhs) * np.ones_like(neumann.x)
    assert_close(richardson.x, neumann.x, condition=20 * (steps + 1) ** 2, scale=np.abs(neumann.x) + scale)


@pytest.mark.parametrize("damping", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_k_products_are_the_gradient_of_k_plus_one_unrolled_damped_steps(steps, damping):
    """Phantom gradients (Geng et al. 2021): k = K + 1 and lambda = 1 - damping, from the fixed point."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    W = 0.5 * torch.randn(6, 6, dtype=torch.float64, generator=generator) / 6**0.5
    star = torch.ones(6, dtype=torch.float64)
    for _ in range(200):
        star = torch.tanh(W @ star + 0.3)
    g = torch.randn(6, dtype=torch.float64, generator=generator)
    w = W.clone().requires_grad_()

    def unrolled(count):
        h = star
        for _ in range(count):
            h = damping * h + (1 - damping) * torch.tanh(w @ h + 0.3)
        return torch.autograd.grad(h, w, g)[0]

    slope = 1 - star**2
    J = ig.DenseOperator(slope[:, None] * W)
    solution = ig.adjoint_solve(J, g, solver=budget(ig.Neumann, steps, damping))
    assert solution.num_matvecs == steps
    gradient = (slope * solution.x)[:, None] * star
    assert_close(gradient, unrolled(steps + 1), condition=100)
    other = unrolled(steps + 2)  # the boundary of the convention: one step more is another gradient
    assert float((gradient - other).norm() / other.norm()) > 1e-8


@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_damping_converges_where_eigenvalues_lie_left_of_minus_one(solver, dtype):
    """For real eigenvalues mu < 1 of J every 1 - damping < 2 / (1 - min mu); beyond that it diverges as before."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    matrix = ((q * np.linspace(-3.0, 0.5, 12)) @ q.T).astype(dtype)
    g = rng.standard_normal(12).astype(dtype)
    J = ig.DenseOperator(matrix)
    solution = ig.adjoint_solve(J, g, solver=solver(damping=0.55))  # 0.45 < 2 / 4
    assert solution.converged
    exact = np.linalg.solve(np.eye(12) - matrix.astype(np.result_type(dtype, float)).conj().T, g)
    assert_close(solution.x, exact, eps=np.finfo(dtype).eps ** 0.5, condition=4)
    for damping in (0.0, 0.45):  # 0.55 > 2 / 4
        assert ig.adjoint_solve(J, g, solver=solver(damping=damping), on_failure="return").status is Status.DIVERGED


@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
def test_an_eigenvalue_beyond_one_is_beyond_damping(solver):
    J = ig.DenseOperator(np.diag([0.5, 1.5]))
    solution = ig.adjoint_solve(J, np.ones(2), solver=solver(damping=0.9), on_failure="return")
    assert solution.status is Status.DIVERGED


@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
def test_the_rules_of_all_solvers_hold_with_damping(solver, dtype):
    for seed in range(5):
        problem = make_problem("contraction", 12, seed, dtype)
        assert_honest_counts(solver(damping=0.3), problem.operator, problem.rhs)
        assert_honest_counts(budget(solver, 4, 0.3), problem.operator, problem.rhs)
        assert_scale_equivariant(solver(damping=0.3), problem.operator, problem.rhs, exponents=(-60, -1, 23))
        assert_batch_is_loop(solver(damping=0.3, rtol=1e-3), make_problem("contraction", 12, seed, dtype, batch=4))
        exact = solver(damping=0.3).solve(problem.operator, problem.rhs, problem.x_exact.astype(dtype))
        assert exact.converged
        assert exact.num_matvecs == 1


@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
def test_from_a_guess_the_damped_series_is_that_of_its_residual(solver):
    problem = make_problem("contraction", 8, 3)
    x0 = np.linspace(-1, 1, 8)
    x, steps = x0, 5
    products = steps if solver is ig.Richardson else steps + 1
    for _ in range(products):
        x = x + 0.7 * (problem.rhs - problem.dense @ x)
    assert_close(budget(solver, steps, 0.3).solve(problem.operator, problem.rhs, x0).x, x, condition=10)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_without_damping_the_sum_is_bit_for_bit_the_plain_loop(dtype):
    problem = make_problem("contraction", 9, 1, dtype)
    J = ig.VJPOperator(lambda u: problem.matrix @ u, 9)
    term = x = problem.rhs
    for _ in range(6):
        term = problem.matrix @ term
        x = x + term
    assert np.array_equal(ig.adjoint_solve(J, problem.rhs, solver=ig.Neumann(rtol=0, max_iters=6)).x, x)
    x = problem.rhs
    for _ in range(6):
        x = problem.matrix @ x + problem.rhs
    assert np.array_equal(ig.adjoint_solve(J, problem.rhs, solver=ig.Richardson(rtol=0, max_iters=7)).x, x)


@pytest.mark.parametrize("solver", [ig.Neumann, ig.Richardson])
@pytest.mark.parametrize(
    ("value", "error"), [(1, SettingError), (1.5, SettingError), (-0.1, SettingError), ("0.5", SettingTypeError)]
)
def test_a_senseless_damping_is_refused_when_it_is_set(solver, value, error):
    with pytest.raises(error, match=r"got damping=.*, expected a (number in \[0, 1\)|finite number >= 0)"):
        solver(damping=value)
