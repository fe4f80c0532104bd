"""FAULTS 53: a torch product that writes into its argument where torch's version counter does not see it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import implicitgrad as ig
from implicitgrad import Status

WRITES = {
    "scaled through NumPy": lambda u: np.multiply(u.numpy(), 2, out=u.numpy()),
    "negated through NumPy": lambda u: np.negative(u.numpy(), out=u.numpy()),
    "scaled through .data": lambda u: u.data.mul_(2),
    "one entry through .data": lambda u: u.data[..., 0].add_(1),
}


def spoiling(matrix, write):
    """u -> u M, after which u is something else."""

    def product(u):
        result = u @ matrix
        write(u)
        return result

    return product


def problem(dtype, batch):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(7, 7, dtype=dtype, generator=generator)
    return (draw + draw.mT) / 20, torch.randn((*batch, 7), dtype=dtype, generator=generator)


SOLVERS = [ig.Neumann(), ig.Richardson(), ig.CG(), ig.NormalEquations(), ig.MINRES(), ig.GMRES(), ig.BiCGSTAB()]
SOLVERS += [ig.LSMR(), ig.Dense(), ig.Auto()]


@pytest.mark.fault(53)
@pytest.mark.parametrize("shifted", [True, False], ids=["(I - J)^T", "A"])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_what_was_written_unseen_is_refused_or_reported_and_never_converged(solver, write, dtype, batch, shifted):
    matrix, rhs = problem(dtype, batch)
    A = matrix if shifted else torch.eye(7, dtype=dtype) - matrix
    J = ig.VJPOperator(spoiling(A, write), 7, symmetric=True)
    dense = torch.eye(7, dtype=torch.float64) - matrix.double()
    solve = ig.adjoint_solve if shifted else ig.solve
    try:
        solution = solve(J, rhs, solver=solver, on_failure="return")
    except ig.OperatorError:
        return  # in words, see below
    left = torch.linalg.vector_norm(rhs.double() - solution.x.double() @ dense, dim=-1)
    wrong = (left > 10 * torch.finfo(dtype).eps ** 0.5 * torch.linalg.vector_norm(rhs.double(), dim=-1)).numpy()
    assert not np.any(np.asarray(solution.status == Status.CONVERGED) & wrong), solution


@pytest.mark.fault(53)
def test_an_exact_first_guess_is_not_handed_back_spoiled():
    """The solve that makes a single product."""
    matrix, rhs = problem(torch.float64, ())
    exact = torch.linalg.solve(torch.eye(7, dtype=torch.float64) - matrix, rhs)
    J = ig.VJPOperator(spoiling(matrix, WRITES["scaled through NumPy"]), 7, symmetric=True)
    with pytest.raises(ig.OperatorError, match="behind torch's back"):
        ig.adjoint_solve(J, rhs, x0=exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_product_that_reads_through_numpy_is_welcome(dtype):
    """The healthy twin: a NumPy view that nobody writes to."""
    matrix = torch.full((4, 4), 0.1, dtype=dtype)
    host = matrix.numpy()
    J = ig.VJPOperator(lambda u: torch.from_numpy(u.numpy() @ host), 4)
    assert ig.adjoint_solve(J, torch.ones(4, dtype=dtype)).converged
