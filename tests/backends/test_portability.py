"""The whole battery of a solver's properties, ``assert_solver``, on the arrays of every library that is installed.

A solver is handed the arrays of a library, and an operator whose products go over NumPy: everything between two
products is done by the library, and what differs from NumPy is the fault of the solver or the backend. JAX's arrays
cannot be written to, so a solver that writes into a vector fails there. NumPy's own column is ``tests/testing``.
"""

import os
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.backends import backend_of
from implicitgrad.testing import assert_close, assert_solver, counted, make_problem, problem_of

SOLVERS = [
    ig.Neumann(rtol=1e-3, max_iters=100), ig.Richardson(rtol=1e-3, max_iters=100), ig.CG(), ig.NormalEquations(),
    ig.MINRES(), ig.GMRES(), ig.GMRES(restart=2), ig.BiCGSTAB(), ig.LSMR(), ig.Dense(), ig.Auto(),
]  # fmt: skip
DTYPES = ("float32", "float64", "complex64", "complex128")
# Solved, without a solution, solved by some and by some not, and far from the size 1 of b.
KINDS = ("symmetric contraction", "singular, b out of range", "indefinite", "tiny")
DEEP = os.environ.get("IMPLICITGRAD_HYPOTHESIS_PROFILE") == "deep"  # the whole battery is some 20 solves a system


def torch(x):
    return pytest.importorskip("torch").from_numpy(np.array(x))


def array_api_strict(x):
    return pytest.importorskip("array_api_strict").asarray(np.array(x))


def jax(x):
    return pytest.importorskip("jax").numpy.asarray(x)


@pytest.fixture(params=SOLVERS, ids=lambda s: s.name + (str(getattr(s, "restart", None) or "")))
def solver(request):
    return request.param


@pytest.fixture
def in_double():
    """JAX has no float64 unless it is asked for; what other tests find is left as it was."""
    config = pytest.importorskip("jax").config
    before = config.read("jax_enable_x64")
    config.update("jax_enable_x64", True)
    yield
    config.update("jax_enable_x64", before)


class Carried(ig.LinearOperator):
    """A NumPy operator for the vectors of another library."""

    def __init__(self, operator, convert):
        self.operator, self.convert = operator, convert
        self.shape, self.symmetric = operator.shape, operator.symmetric

    @property
    def has_adjoint(self):
        return self.operator.has_adjoint

    def apply(self, x):
        return self.convert(self.operator.matvec(backend_of(x).to_numpy(x)))

    def apply_adjoint(self, y):
        return self.convert(self.operator.rmatvec(backend_of(y).to_numpy(y)))


@dataclass(frozen=True)
class On(ig.Solver):
    """A solver that works on the arrays of a library, and takes and returns those of NumPy."""

    solver: ig.Solver
    convert: object

    def solve(self, operator, rhs, x0=None):
        there = self.convert(rhs)
        start = None if x0 is None else self.convert(x0)
        solution = self.solver.solve(Carried(operator, self.convert), there, start)
        assert type(solution.x) is type(there)
        assert solution.x.dtype == there.dtype
        assert backend_of(there).device(solution.x) == backend_of(there).device(there)
        return replace(solution, x=np.array(backend_of(solution.x).to_numpy(solution.x)))


def must_converge(solver, kinds):
    """Return the kinds that a solver is for; of the others it may say that it has not solved them."""
    claims = {"MINRES": KINDS[0:3:2], "GMRES": KINDS[:1] if getattr(solver, "restart", None) else KINDS[0::3]}
    stationary = dict.fromkeys(("Neumann", "Richardson", "CG", "BiCGSTAB"), KINDS[:1])
    return [kind for kind in (claims | stationary).get(solver.name, KINDS[0:1]) if kind in kinds]


ALL = [(convert, dtype) for convert in (array_api_strict, torch) for dtype in DTYPES]
BATTERY = ALL if DEEP else [(array_api_strict, "complex128"), (torch, "float32")]


@pytest.mark.parametrize(("convert", "dtype"), BATTERY, ids=lambda value: getattr(value, "__name__", value))
def test_every_property_holds_on_every_library(solver, convert, dtype):
    """False success, scale to the bit, batches, counts, warm starts, zero, NaN, inputs, repetition."""
    kinds = KINDS if DEEP else KINDS[:2]
    wanted = must_converge(solver, kinds)
    assert_solver(On(solver, convert), kinds=kinds, dtypes=[dtype], sizes=(7,), must_converge=wanted)


def well_conditioned(n, dtype, batch=None):
    """Return symmetric systems of condition 3 at most: rounding decides nothing there."""
    problem = make_problem("symmetric contraction", n, 1, dtype, batch=batch)
    small = problem_of(problem.matrix / 2, 1, dtype)
    assert small.condition < 3
    return small


@pytest.mark.parametrize(("convert", "dtype"), ALL, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("batch", [None, 3])
def test_every_library_takes_the_steps_that_numpy_takes(solver, convert, dtype, batch):
    """The same status after the same products, and x to rounding."""
    assert_same_steps(solver, convert, well_conditioned(9, dtype, batch))


def assert_same_steps(solver, convert, problem):
    here, there = (s.solve(problem.operator, problem.rhs) for s in (solver, On(solver, convert)))
    assert np.all(here.status == Status.CONVERGED)
    assert np.all(there.status == Status.CONVERGED)
    assert np.array_equal(here.num_iters, there.num_iters)
    assert (here.num_matvecs, here.num_rmatvecs) == (there.num_matvecs, there.num_rmatvecs)
    assert_close(there.x, here.x, condition=problem.condition**2)


# -- JAX, where it is installed ----------------------------------------------------------------------------------------
# Each operation is compiled for each shape, which is what these cost: fewer systems, and the same properties.
@pytest.mark.usefixtures("in_double")
@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
class TestJax:
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    def test_every_property_holds(self, solver, dtype):
        kinds = KINDS[:2]
        wanted = must_converge(solver, kinds)
        assert_solver(On(solver, jax), kinds=kinds, dtypes=[dtype], sizes=(4,), must_converge=wanted)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_it_takes_the_steps_that_numpy_takes(self, solver, dtype):
        assert_same_steps(solver, jax, well_conditioned(4, dtype))

    def test_its_own_vjp_gives_the_gradient_of_a_fixed_point(self, solver):
        """``jax.vjp`` at ``h*`` is the operator, and ``z`` the dense solution; JVPs by ``jax.jvp``."""
        import jax

        problem = make_problem("symmetric contraction", 6, 3)
        W, bias = jax.numpy.asarray(problem.matrix), jax.numpy.asarray(problem.rhs)
        h = jax.numpy.zeros(6)
        for _ in range(300):
            h = jax.numpy.tanh(W @ h + bias)
        f = lambda h: jax.numpy.tanh(W @ h + bias)
        _, pull_back = jax.vjp(f, h)
        J = ig.VJPOperator(lambda u: pull_back(u)[0], 6, jvp=lambda v: jax.jvp(f, (h,), (v,))[1], batched=False)
        dense = np.eye(6) - np.asarray(jax.jacobian(f)(h))
        if solver.name in ("CG", "MINRES"):  # A is not symmetric; A A^T is
            watched = ig.identity_minus(J)
            operator, matrix = watched @ watched.H, dense @ dense.T
        else:
            operator, matrix = ig.identity_minus(J).H, dense.T
        operator, calls = counted(operator)
        solution = solver.solve(operator, bias)
        assert solution.converged
        assert calls() == (solution.num_matvecs, solution.num_rmatvecs)
        residual = np.asarray(bias) - matrix @ np.asarray(solution.x)
        assert np.linalg.norm(residual) <= 1.01 * solution.bound

    def test_single_precision_is_solved_where_double_is_switched_off(self, solver):
        """JAX's default: host values in double are narrowed by JAX, and no warning or NaN comes of it."""
        import jax

        jax.config.update("jax_enable_x64", False)
        for batch in (None, 3):
            problem = make_problem("symmetric contraction", 4, 1, "float32", batch=batch)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                solution = On(solver, lambda x: jax.numpy.asarray(x)).solve(problem.operator, problem.rhs)
            assert np.all(solution.converged)
            assert np.all(problem.residual_norm(solution.x) <= 1.01 * solution.bound + problem.rounding(solution.x))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_is_solved_in_single_and_returned_in_half(self, solver, dtype):
        import jax

        problem = make_problem("symmetric contraction", 6, 1)
        matrix, g = (jax.numpy.asarray(a, dtype) for a in (problem.matrix / 2, problem.rhs))
        J = ig.VJPOperator(lambda u: matrix @ u, 6, symmetric=True, batched=False)
        solution = ig.adjoint_solve(J, g, solver=solver, on_failure="return")
        assert solution.x.dtype == g.dtype
        exact = np.linalg.solve(np.eye(6) - np.asarray(matrix, float), np.asarray(g, float))
        eps = 2.0**-10 if dtype == "float16" else 2.0**-7
        assert_close(np.asarray(solution.x, float), exact, eps=eps, condition=2)
