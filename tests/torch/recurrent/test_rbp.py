"""rbp: the paper's three adjoints by name, each with the equation that only it fulfils."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


@pytest.fixture
def linear():
    """z = W z + b at its fixed point: J = W, and dL/db is the adjoint itself."""
    torch.manual_seed(0)
    W = torch.randn(5, 5, dtype=DOUBLE)
    W = 0.6 * W / torch.linalg.matrix_norm(W, 2)
    b = torch.randn(5, dtype=DOUBLE, requires_grad=True)
    z_star = torch.linalg.solve(torch.eye(5, dtype=DOUBLE) - W, b.detach())
    return (lambda z, b: z @ W.mT + b), z_star, b, W, torch.randn(5, dtype=DOUBLE)


def adjoint(linear, **settings):
    f, z_star, b, _, g = linear
    settings = {"on_failure": "return", **settings}  # a shift is no solution of the unshifted system
    return torch.autograd.grad(igt.rbp(f, z_star, b, steps=0, **settings) @ g, b)[0]


@pytest.mark.parametrize("K", [0, 1, 2, 10])
def test_neumann_is_the_sum_of_k_plus_one_powers(linear, K):
    W, g = linear[3], linear[4]
    expected = sum(torch.linalg.matrix_power(W.mT, t) @ g for t in range(K + 1))
    torch.testing.assert_close(adjoint(linear, truncate=K), expected)


@pytest.mark.parametrize("K", [1, 2, 10])
def test_k_plus_one_steps_of_rbp_from_zero_are_k_step_neumann(linear, K):
    """P3."""
    torch.testing.assert_close(adjoint(linear, method="rbp", truncate=K + 1), adjoint(linear, truncate=K))


@pytest.mark.parametrize("K", [1, 3])
def test_from_another_start_rbp_is_off_by_the_power_times_the_start(linear, K):
    """P3's other side: z_K = (J^T)^K z_0 + sum of the first K terms."""
    W, g, start = linear[3], linear[4], torch.rand(5, dtype=DOUBLE)
    expected = torch.linalg.matrix_power(W.mT, K) @ start + sum(
        torch.linalg.matrix_power(W.mT, t) @ g for t in range(K)
    )
    torch.testing.assert_close(adjoint(linear, method="rbp", truncate=K, start=start), expected)


def test_a_uniform_start_is_drawn_from_the_generator(linear):
    generator = torch.Generator().manual_seed(4)
    drawn = torch.rand(5, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    ours = adjoint(linear, method="rbp", truncate=2, start="uniform", generator=generator)
    torch.testing.assert_close(ours, adjoint(linear, method="rbp", truncate=2, start=drawn))


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_cg_minimizes_the_residual_over_the_krylov_space_of_the_normal_equations(linear, eta):
    """After K steps x minimizes the energy of (A^T A + eta) x = A^T g over span{A^T g, ...}; n steps are exact."""
    W, g = linear[3].numpy(), linear[4].numpy()
    A = np.eye(5) - W.T
    M, c = A.T @ A + eta * np.eye(5), A.T @ g
    for K in (1, 3, 5):
        basis = np.linalg.qr(np.stack([np.linalg.matrix_power(M, t) @ c for t in range(K)], axis=1))[0]
        expected = basis @ np.linalg.solve(basis.T @ M @ basis, basis.T @ c)
        ours = adjoint(linear, method="cg", truncate=K, eta=eta).numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)


def test_the_report_counts_the_products_and_says_truncated(linear):
    f, z_star, b, _, g = linear
    for method, products in (("neumann", (4, 0)), ("rbp", (3, 0)), ("cg", (4, 5))):
        report = igt.Report()
        (igt.rbp(f, z_star, b, steps=0, method=method, truncate=4, report=report) @ g).backward()
        assert report.backward.status is ig.Status.TRUNCATED
        assert (report.backward.num_matvecs, report.backward.num_rmatvecs) == products, method


def test_the_updates_are_made_without_history_and_the_end_is_checked(linear):
    f, z_star, b, _, g = linear
    with pytest.warns(ig.ConvergenceWarning, match="residual"):
        z = igt.rbp(f, torch.zeros(5, dtype=DOUBLE), b, steps=3, truncate=2)
    torch.testing.assert_close(z, igt.bptt(f, torch.zeros(5, dtype=DOUBLE), b, steps=3))
    report = igt.Report()
    far = igt.rbp(f, torch.zeros(5, dtype=DOUBLE), b, steps=200, truncate=200, report=report)
    assert report.forward.converged
    torch.testing.assert_close(far.detach(), z_star)
    dense = torch.linalg.solve((torch.eye(5, dtype=DOUBLE) - linear[3]).mT, g)
    torch.testing.assert_close(torch.autograd.grad(far @ g, b)[0], dense)


def test_samples_of_a_batch_have_starts_of_their_own():
    f = lambda z, b: 0.5 * z + b
    b = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    z = igt.rbp(
        f, 2 * b.detach(), b, steps=0, method="rbp", truncate=1, start="uniform", batch_ndim=1, generator=generator
    )
    (gradient,) = torch.autograd.grad(z.sum(), b)
    start = torch.rand(3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient, 0.5 * start + 1)
