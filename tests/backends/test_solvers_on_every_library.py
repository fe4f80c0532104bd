"""The solvers give on torch and on array-api-strict what they give on NumPy; half precision is solved in float32."""

from dataclasses import replace

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.backends import backend_of
from implicitgrad.testing import assert_close, assert_honest_counts, assert_scale_equivariant, make_problem

SOLVERS = [
    ig.Neumann(), ig.Richardson(), ig.CG(), ig.NormalEquations(), ig.MINRES(), ig.GMRES(), ig.GMRES(restart=5),
    ig.BiCGSTAB(), ig.LSMR(), ig.Dense(), ig.Auto(),
]  # fmt: skip
KINDS = ("J = 0", "symmetric contraction")


def tensor(x):
    return pytest.importorskip("torch").from_numpy(np.ascontiguousarray(x))


def strict(x):
    return pytest.importorskip("array_api_strict").asarray(x)


@pytest.fixture(params=SOLVERS, ids=lambda s: s.name + (str(getattr(s, "restart", None) or "")))
def solver(request):
    return request.param


@pytest.mark.parametrize("convert", [tensor, strict], ids=["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("batch", [None, 3])
def test_every_library_gives_the_same_answer(solver, convert, dtype, batch):
    for kind in KINDS:
        problem = make_problem(kind, 12, 1, dtype, batch=batch)
        A = ig.identity_minus(ig.DenseOperator(convert(problem.matrix), symmetric=True)).H
        b = convert(problem.rhs)
        solution = solver.solve(A, b)
        assert np.all(solution.converged), solution.message
        assert type(solution.x) is type(b)
        assert solution.x.dtype == b.dtype
        true = problem.residual_norm(backend_of(b).to_numpy(solution.x))
        assert np.all(true <= 1.01 * np.asarray(solution.bound) + problem.rounding(problem.x_exact))
        assert_honest_counts(solver, A, b)
        assert_scale_equivariant(solver, A, b, exponents=(-60, 60))


@pytest.mark.parametrize("convert", [tensor, strict], ids=["torch", "array_api_strict"])
def test_hard_systems_of_every_library_are_no_success(solver, convert):
    if isinstance(solver, ig.Neumann | ig.Richardson):
        solver = replace(solver, max_iters=50)
    for kind in ("J = I", "singular, b out of range", "nearly singular"):
        problem = make_problem(kind, 6, 2, "float64", batch=2)
        J = ig.DenseOperator(convert(problem.matrix))
        solution = solver.solve(ig.identity_minus(J).H if problem.shifted else J, convert(problem.rhs))
        true = problem.residual_norm(backend_of(solution.x).to_numpy(solution.x))
        rounding = problem.rounding(backend_of(solution.x).to_numpy(solution.x))
        assert np.all(~solution.converged | (true <= 1.01 * solution.bound + rounding))


@pytest.mark.parametrize("convert", [tensor, strict], ids=["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_with_nan_and_zero_keeps_its_dtype_and_neighbours(solver, convert, dtype):
    problem = make_problem("symmetric contraction", 10, 1, dtype, batch=4)
    rhs = problem.rhs.copy()
    rhs[1, 2], rhs[2] = np.nan, 0
    A = ig.identity_minus(ig.DenseOperator(convert(problem.matrix), symmetric=True)).H
    solution = solver.solve(A, convert(rhs))
    assert [s is Status.CONVERGED for s in solution.status] == [True, False, True, True]
    assert solution.status[1] is Status.NONFINITE_INPUT
    assert solution.x.dtype == convert(rhs).dtype
    got = backend_of(solution.x).to_numpy(solution.x)
    assert np.isfinite(got).all()
    assert np.all(got[2] == 0)


def test_a_tensor_that_requires_grad_is_solved_without_history():
    torch = pytest.importorskip("torch")
    g = torch.ones(3, dtype=torch.float64, requires_grad=True)
    matrix = torch.full((3, 3), 0.1, dtype=torch.float64, requires_grad=True)
    solution = ig.adjoint_solve(ig.VJPOperator(lambda u: u @ matrix, 3), g)
    assert not solution.x.requires_grad


# -- half precision ----------------------------------------------------------------------------------------------------
def half_arrays(name):
    if name == "numpy float16":
        return (lambda x: x.astype(np.float16)), 2.0**-10
    torch = pytest.importorskip("torch")
    dtype = torch.float16 if name == "torch float16" else torch.bfloat16
    return (lambda x: torch.tensor(x, dtype=dtype)), 2.0**-10 if name == "torch float16" else 2.0**-7


@pytest.mark.fault(9, 10, 41)
@pytest.mark.parametrize("name", ["numpy float16", "torch float16", "torch bfloat16"])
@pytest.mark.parametrize("batch", [None, 3])
def test_half_precision_is_solved_in_single_and_returned_in_half(solver, name, batch):
    """FAULTS 9, 10, 41: the operator runs in its own dtype, whatever the size of g."""
    convert, eps = half_arrays(name)
    problem = make_problem("symmetric contraction", 12, 1, batch=batch)
    seen = set()
    J = convert(problem.matrix / 2)

    def product(u):
        seen.add(u.dtype)
        return (J @ u[..., None])[..., 0]

    for factor in (1.0, 1e-4):
        g = convert(problem.rhs * factor)
        solution = ig.adjoint_solve(ig.VJPOperator(product, 12, symmetric=True), g, solver=solver, on_failure="return")
        assert solution.x.dtype == g.dtype
        exact_j, exact_g = (backend_of(g).to_numpy(a.astype(np.float64) if isinstance(a, np.ndarray) else a.double())
                            for a in (J, g))  # fmt: skip
        exact = np.linalg.solve(np.eye(12) - exact_j, exact_g[..., None])[..., 0]
        got = solution.x.astype(float) if isinstance(g, np.ndarray) else solution.x.double().numpy()
        assert np.isfinite(got).all()
        assert_close(got, exact, eps=eps, condition=2)
    assert seen == {g.dtype}
