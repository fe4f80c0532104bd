"""GMRES needs the fewest products there are: at most one more than the smallest residual over the Krylov space asks."""

from functools import cache

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import assert_close


@cache
def non_normal(n, seed, radius=0.99, norm=3.0):
    """Return J with that spectral radius and norm: a Gaussian matrix, graded by a diagonal similarity."""
    gauss = np.random.default_rng(seed).standard_normal((n, n))
    gauss *= radius / np.abs(np.linalg.eigvals(gauss)).max()
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        grade = np.exp(np.linspace(-middle, middle, n))
        low, high = (middle, high) if operator_norm(gauss * grade / grade[:, None]) < norm else (low, middle)
    return gauss * grade / grade[:, None]


def operator_norm(matrix):
    v = np.ones(len(matrix))
    for _ in range(20):
        v = matrix.T @ (matrix @ v)
        v /= np.linalg.norm(v)
    return np.linalg.norm(matrix @ v)


def krylov_optimum(A, b, rtol, most):
    """Return the smallest k with min over K_k(A, b) of norm(b - A x) <= rtol norm(b): Arnoldi in double, MGS twice."""
    n = len(b)
    q = np.zeros((most + 1, n))
    h = np.zeros((most + 1, most))
    q[0] = b / np.linalg.norm(b)
    for k in range(most):
        w = A @ q[k]
        for _ in range(2):
            for i in range(k + 1):
                c = q[i] @ w
                h[i, k] += c
                w = w - c * q[i]
        h[k + 1, k] = np.linalg.norm(w)
        q[k + 1] = w / h[k + 1, k]
        target = np.zeros(k + 2)
        target[0] = 1
        if k % 8 == 7 or k < 8 or k == most - 1:  # look back from here for the first k
            residuals = []
            for j in range(max(0, k - 7), k + 1):
                small, unit = h[: j + 2, : j + 1], target[: j + 2]
                residuals.append(np.linalg.norm(unit - small @ np.linalg.lstsq(small, unit)[0]))
            if min(residuals) <= rtol:
                return max(0, k - 7) + next(i for i, r in enumerate(residuals) if r <= rtol) + 1
    raise AssertionError("no optimum found")


@cache
def optimum_of(n):
    return krylov_optimum(np.eye(n) - non_normal(n, seed=n).T, np.random.default_rng(7).standard_normal(n), 1e-4, 400)


@pytest.mark.parametrize(
    ("n", "dtype"), [(200, "float64"), (200, "float32"), (1000, "float64"), (1000, "float32")], ids=str
)
def test_gmres_needs_at_most_one_product_more_than_the_krylov_optimum(n, dtype):
    J = non_normal(n, seed=n)
    b = np.random.default_rng(7).standard_normal(n)
    optimum = optimum_of(n)
    assert optimum > 50, "a system this hard fills several blocks of the basis"
    solution = ig.adjoint_solve(ig.DenseOperator(J.astype(dtype)), b.astype(dtype), solver=ig.GMRES(rtol=1e-4))
    assert solution.num_matvecs <= optimum + 1, f"{solution.num_matvecs} products, optimum {optimum}"
    true = np.linalg.norm(b - (np.eye(n) - J.T) @ solution.x.astype(float))
    assert true <= 1.01e-4 * np.linalg.norm(b) + n * np.finfo(dtype).eps * np.linalg.norm(b)


def test_the_basis_stays_orthogonal_over_blocks():
    """More than 64 steps, to full accuracy: the answer is that of the dense solve."""
    J = non_normal(150, seed=3, radius=0.95, norm=2.0)
    b = np.random.default_rng(8).standard_normal(150)
    solution = ig.adjoint_solve(ig.DenseOperator(J), b, solver=ig.GMRES(rtol=1e-12))
    assert solution.num_iters > 64
    dense = np.eye(150) - J.T
    assert_close(solution.x, np.linalg.solve(dense, b), eps=1e-12, condition=np.linalg.cond(dense))


@pytest.mark.parametrize("condition", [1e3, 1e4])
def test_a_second_pass_is_made_where_the_first_lost_orthogonality(condition):
    """In single precision; with one pass of classical Gram-Schmidt 74 products for 50, and no end for 56."""
    matrix, b = np.diag(np.geomspace(1 / condition, 1, 60)), np.ones(60)
    optimum = krylov_optimum(matrix, b, 1e-4, most=60)
    A = ig.DenseOperator(matrix.astype(np.float32))
    solution = ig.solve(A, b.astype(np.float32), solver=ig.GMRES(rtol=1e-4))
    assert solution.num_matvecs <= optimum + 1, f"{solution.num_matvecs} products, optimum {optimum}"


def test_the_recurrence_residual_is_the_true_one_at_every_step():
    rng = np.random.default_rng(0)
    J = 0.3 * rng.standard_normal((20, 20)) / np.sqrt(20)
    b = rng.standard_normal(20)
    A = ig.identity_minus(ig.DenseOperator(J)).H
    history = ig.GMRES(rtol=1e-10).solve(A, b).history
    for k, estimate in enumerate(history):
        solution = ig.GMRES(rtol=0, max_iters=k, final_residual=True).solve(A, b)
        assert solution.residual_norm == pytest.approx(estimate, rel=1e-6, abs=1e-13)


def test_a_restart_bounds_the_steps_between_two_residuals():
    """Each cycle ends in one product for the residual: 23 steps of GMRES(5) are 23 + 5 products."""
    J = non_normal(60, seed=1, radius=0.9, norm=2.0)
    solution = ig.GMRES(rtol=0, max_iters=23, restart=5, final_residual=True).solve(
        ig.identity_minus(ig.DenseOperator(J)).H, np.ones(60)
    )
    assert (solution.num_iters, solution.num_matvecs) == (23, 28)


def test_a_complex_shift_is_kept_on_the_host():
    rng = np.random.default_rng(4)
    matrix = (rng.standard_normal((9, 9)) + 1j * rng.standard_normal((9, 9))) / 6
    A = ig.DenseOperator(matrix) * (0.5 - 1j) + (2 + 1j) * ig.DenseOperator(np.eye(9, dtype=complex))
    b = rng.standard_normal(9) + 0j
    exact = np.linalg.solve((0.5 - 1j) * matrix + (2 + 1j) * np.eye(9), b)
    assert_close(ig.solve(A, b, solver=ig.GMRES(rtol=1e-12)).x, exact, eps=1e-12, condition=10)
