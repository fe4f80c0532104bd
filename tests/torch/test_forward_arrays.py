"""Forward solvers on arrays of other libraries: the iteration knows the verbs of a backend and nothing else."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.forward.broyden import Broyden
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.forward.newton import NewtonKrylov

SOLVERS = [igt.Picard(), igt.Picard(damping=0.2), igt.Anderson(), Broyden(), NewtonKrylov()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)


def strict(x):
    return pytest.importorskip("array_api_strict").asarray(x)


def linear(dtype, batch, convert):
    """Return z -> z W^T + b in NumPy, and the equation on converted arrays with W as its derivative."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if "complex" in dtype else 0)
    W, b = draw(6, 6), draw(*batch, 6)
    W = (0.8 * W / np.linalg.norm(W, 2)).astype(dtype)
    b = b.astype(dtype)
    matrix, shift, transposed = convert(W), convert(b), convert(np.ascontiguousarray(W.T))
    equation = Equation(lambda z: z @ transposed + shift, linearize=lambda z: ig.DenseOperator(matrix))
    return W, b, equation


@each_solver
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, strict], ids=["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_a_linear_map_is_solved_on_arrays_of_every_library(solver, convert, batch, dtype):
    W, b, equation = linear(dtype, batch, convert)
    z0 = convert(np.zeros((*batch, 6), dtype))
    sol = solver.solve(equation, z0)
    assert type(sol.x) is type(z0)
    assert sol.x.dtype == z0.dtype
    assert np.all(sol.converged)
    expected = np.linalg.solve(np.eye(6) - W, b[..., None])[..., 0]
    assert np.abs(np.asarray(sol.x) - expected).max() <= 20 * np.finfo(dtype).eps ** 0.75 * np.abs(expected).max()


@each_solver
def test_every_library_takes_the_same_steps(solver):
    counts = set()
    for convert in (np.asarray, torch.from_numpy):
        _, _, equation = linear("float64", (3,), convert)
        sol = solver.solve(equation, convert(np.zeros((3, 6))))
        counts.add((sol.num_matvecs, sol.num_rmatvecs, tuple(sol.num_iters)))
    assert len(counts) == 1


@each_solver
def test_numpy_maps_that_misbehave_are_told(solver):
    """A bad neighbour, a map in place, one that keeps its buffer."""
    rates = np.array([[0.5], [np.nan], [0.3]])
    equation = Equation(lambda z: rates * z + 1, linearize=lambda z: _Diagonal(rates))
    sol = solver.solve(equation, np.zeros((3, 4)))
    assert [s.name for s in sol.status] == ["CONVERGED", "NONFINITE_OPERATOR", "CONVERGED"]
    assert np.isfinite(sol.x).all()

    def spoil(z):
        z *= 0.5
        return z

    with pytest.raises(ig.OperatorError, match="changed its state in place"):
        solver.solve(spoil, np.ones(4))
    buffer = np.zeros(4)

    def shared(z):
        np.multiply(z, 0.5, out=buffer)
        buffer[:] += 1.0
        return buffer

    sol = solver.solve(Equation(shared, linearize=lambda z: ig.DenseOperator(0.5 * np.eye(4))), np.zeros(4))
    assert sol.converged
    assert np.abs(sol.x - 2.0).max() <= 1e-10


class _Diagonal(ig.LinearOperator):
    shape = (4, 4)
    symmetric = True

    def __init__(self, rates):
        self.rates = rates

    def apply(self, x):
        return self.rates * x
