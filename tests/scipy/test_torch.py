"""SciPy on torch operators: eigenvalues and solves through the adapter, and ScipySolver on tensors."""

import warnings

import numpy as np
import pytest

import implicitgrad as ig

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh, gmres

import implicitgrad.scipy as igs


def hopfield(n=60, symmetric=True, dtype=torch.float64):
    """The VJP of h -> tanh(W h) at a point, and the dense Jacobian."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, dtype=torch.float64, generator=generator) / (3 * n**0.5)
    W = ((W + W.T) / 2 if symmetric else W).to(dtype)
    h = torch.zeros(n, dtype=dtype) if symmetric else torch.randn(n, dtype=torch.float64, generator=generator).to(dtype)
    _, vjp = torch.func.vjp(lambda h: torch.tanh(W @ h), h)
    jacobian = ((1 - torch.tanh(W @ h) ** 2)[:, None] * W).numpy()
    J = ig.VJPOperator(lambda u: vjp(u)[0], size=n, symmetric=symmetric, batched=False, like=torch.zeros_like(h))
    return J, jacobian


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigsh_of_a_torch_vjp(dtype):
    J, jacobian = hopfield(dtype=dtype)
    values = eigsh(igs.as_linear_operator(J), k=3, which="LA", return_eigenvectors=False)
    assert values.dtype == str(dtype).removeprefix("torch.")
    expected = np.linalg.eigvalsh(jacobian)[-3:]
    np.testing.assert_allclose(np.sort(values), expected, atol=1e3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gmres_of_a_torch_vjp(dtype):
    J, jacobian = hopfield(symmetric=False, dtype=dtype)
    A = igs.as_linear_operator(ig.identity_minus(J).H, like=torch.zeros(60, dtype=dtype))
    g = np.random.default_rng(0).standard_normal(60).astype(A.dtype)
    z, info = gmres(A, g, rtol=1e-5)
    assert info == 0
    np.testing.assert_allclose(z, np.linalg.solve(np.eye(60) - jacobian.T, g), rtol=0, atol=2e-4)


def test_vectors_are_lent_to_torch_without_a_copy_and_products_are_not():
    seen = []
    kept = torch.ones(4)

    def apply(u):
        seen.append(u.data_ptr())
        return kept

    A = igs.as_linear_operator(ig.VJPOperator(apply, 4, symmetric=True), like=torch.zeros(4))
    x = np.ones(4, np.float32)
    y = A.matvec(x)
    assert seen == [x.ctypes.data]
    y[:] = 7
    assert kept.tolist() == [1, 1, 1, 1]


def test_a_read_only_vector_is_no_cause_for_a_warning():
    A = igs.as_linear_operator(ig.VJPOperator(lambda u: 2 * u, 3, symmetric=True), like=torch.zeros(3))
    x = np.ones(3, np.float32)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert A.matvec(x).tolist() == [2, 2, 2]


def test_bfloat16_is_applied_in_its_dtype_and_computed_in_float32():
    dtypes = []

    def apply(u):
        dtypes.append(u.dtype)
        return 2 * u

    A = igs.as_linear_operator(ig.VJPOperator(apply, 3, symmetric=True), like=torch.zeros(3, dtype=torch.bfloat16))
    assert A.dtype == np.float32
    assert A.matvec(np.ones(3, np.float32)).tolist() == [2, 2, 2]
    assert dtypes == [torch.bfloat16]


def test_a_sparse_matrix_takes_tensors():
    matrix = np.array([[0.5, 0.0], [0.25, 0.0]])
    J = igs.from_linear_operator(csr_array(matrix))
    sol = ig.adjoint_solve(J, torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert isinstance(sol.x, torch.Tensor)
    np.testing.assert_allclose(sol.x.numpy(), np.linalg.inv(np.eye(2) - matrix), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
def test_scipy_solver_on_tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = (0.1 * torch.randn(12, 12, generator=generator)).to(dtype)
    g = torch.randn(12, generator=generator).to(dtype)
    J = ig.VJPOperator(lambda u: matrix.mH @ u, size=12)
    sol = ig.adjoint_solve(J, g, solver=igs.ScipySolver("lgmres"))
    assert sol.converged
    assert sol.x.dtype == dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = torch.linalg.solve(torch.eye(12, dtype=wide) - matrix.mH.to(wide), g.to(wide))
    assert (sol.x.to(wide) - expected).norm() <= 0.1 * expected.norm() * (1 if dtype is torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("method", ["lgmres", "bicgstab"])
def test_an_operator_that_takes_whole_batches_only(method):
    """Every system has its own map, so the batch of three cannot be taken apart."""
    generator = torch.Generator().manual_seed(0)
    maps = 0.1 * torch.randn(3, 8, 8, dtype=torch.float64, generator=generator)

    def vjp(u):
        assert u.shape == (3, 8)
        return torch.einsum("bij,bi->bj", maps, u)

    g = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    g[1, 2] = torch.nan
    sol = ig.adjoint_solve(ig.VJPOperator(vjp, size=8), g, solver=igs.ScipySolver(method), on_failure="return")
    assert [s.name for s in sol.status] == ["CONVERGED", "NONFINITE_INPUT", "CONVERGED"]
    for i in (0, 2):
        expected = torch.linalg.solve(torch.eye(8, dtype=torch.float64) - maps[i].T, g[i])
        torch.testing.assert_close(sol.x[i], expected, rtol=0, atol=1e-7)


def test_a_batch_of_half_precision_keeps_the_identity_outside_as_one_system_does():
    J = ig.VJPOperator(lambda u: 0.3 * u.roll(1, -1), size=6)
    g = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    solver = igs.ScipySolver("gmres", rtol=1e-3)
    both = ig.adjoint_solve(J, g, solver=solver, on_failure="return")
    for i in range(2):
        one = ig.adjoint_solve(J, g[i], solver=solver, on_failure="return")
        assert torch.equal(both.x[i], one.x)
        assert both.residual_norm[i] == one.residual_norm
