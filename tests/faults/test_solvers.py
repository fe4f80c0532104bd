"""Every fault of a product, at any call, in every solver: the right exception or an honest status, and nothing changed.

The guard ``undisturbed`` compares ``g``, ``x0``, the operator and the state of the world with what they were.
"""

import contextlib
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from injection import FAULTS, HONEST, RIGHT, Injected
from world import undisturbed

import implicitgrad as ig
from implicitgrad.testing import make_problem

KINDS = ["contraction", "symmetric contraction", "positive definite", "indefinite", "skew", "jordan", "singular"]
KINDS[-1] += ", b out of range"
NEVER = 10**9
DTYPES = ["float32", "float64", "complex64", "complex128"]


@contextlib.contextmanager
def unguarded(*values):
    yield


def system(problem, injected):
    """Return ``A`` of a problem, and the operator of its callables, with the fault in both of them."""
    matrix, adjoint = problem.matrix, np.swapaxes(problem.matrix, -1, -2).conj()
    vjp = injected.around(lambda u: np.matmul(adjoint, u[..., None])[..., 0])
    jvp = injected.around(lambda v: np.matmul(matrix, v[..., None])[..., 0])
    J = ig.VJPOperator(vjp, problem.size, jvp=jvp, symmetric=problem.symmetric)
    return (ig.identity_minus(J).H if problem.shifted else J), J


def solve(problem, injected, solver, guess, guard=unguarded):
    """Return the Solution, or the exception that came out."""
    A, J = system(problem, injected)
    g, x0 = problem.rhs.copy(), np.ones_like(problem.rhs) if guess else None
    with np.errstate(all="ignore"), guard(g, J, *([x0] if guess else [])):
        try:
            return ig.solve(A, g, solver=solver, x0=x0, on_failure="return")
        except BaseException as error:
            return error


drawn = cache(make_problem)  # nothing of a problem is ever written to


@cache
def sound(problem, solver, guess):
    """Return what comes out without a fault."""
    return solve(problem, Injected(FAULTS[0], NEVER), solver, guess).x


def check(problem, fault, k, once, solver, guess=False):
    """Inject the fault and assert all of it; return how often it struck."""
    expected = sound(problem, solver, guess)
    injected = Injected(fault, k, once)
    told = solve(problem, injected, solver, guess, undisturbed)
    if fault.raises and injected.hits:
        assert type(told) is fault.ends, repr(told)
        assert injected.raised in (None, told), "the same object that the callable raised"
        assert injected.hits == 1, "and no product after it"
    else:
        assert isinstance(told, ig.Solution), repr(told)
        check_honest(problem, fault, injected, told)
        if fault.ends is RIGHT or not injected.hits:
            assert np.array_equal(told.x, expected)
    again = solve(problem, Injected(fault, NEVER), solver, guess)
    assert np.array_equal(again.x, expected), "the next solve"
    return injected.hits


def check_honest(problem, fault, injected, told):
    """``CONVERGED`` is true: of the sound operator, or of the one that all products were of in the end."""
    assert (told.x.shape, told.x.dtype) == (problem.rhs.shape, problem.rhs.dtype)
    assert np.isfinite(told.x).all()
    assert told.num_matvecs + told.num_rmatvecs == injected.calls
    residual = problem.residual_norm(told.x)
    if injected.hits and not injected.once:
        A, _ = system(problem, Injected(fault))
        with np.errstate(all="ignore"):
            last = np.linalg.norm(problem.rhs - A.matvec(told.x), axis=-1)
        residual = np.fmin(residual, last)
    hidden = fault.noise * np.linalg.norm(told.x, axis=-1) + problem.rounding(told.x)
    assert np.all(~np.asarray(told.converged) | (residual <= 1.01 * told.bound + hidden)), (told.status, residual)


@pytest.mark.fault(3, 4, 11, 14, 17, 19, 22, 44, 47, 48, 50, 51, 52, 53, 54, 55, 57, 58, 79)
@given(
    fault=st.sampled_from(FAULTS),
    k=st.integers(1, 10),
    once=st.booleans(),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    guess=st.booleans(),
    batch=st.sampled_from([None, None, 3]),
    seed=st.integers(0, 3),
)
def test_a_fault_at_any_call_is_its_exception_or_an_honest_status(row, fault, k, once, kind, dtype, guess, batch, seed):
    problem = drawn(kind, 6, seed, dtype, batch=batch)
    check(problem, fault, k, once, row.solver, guess)


@pytest.mark.fault(3, 4, 11, 14, 19, 53, 54, 57, 58)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_the_first_and_the_third_product_is_met(row, fault):
    """The same with calls that every solver makes, so that none of the faults is ever out of reach."""
    # The products of A = I - J are new arrays, those of a positive definite A are what the callable returned.
    for kind in ["symmetric contraction", "positive definite"][: 2 if fault.ends is RIGHT else 1]:
        problem = drawn(kind, 6, 1)
        for k in (1, 3):
            assert check(problem, fault, k, False, row.solver) > 0
            assert check(problem, fault, k, True, row.solver) == 1


@pytest.mark.fault(51, 52)
@pytest.mark.parametrize("name", ["adds a constant", "adds the cube", "is off by 1e-2"])
def test_what_is_not_linear_is_named_by_the_check(name):
    """A solver measures its residual with the product that it has; ``check_operator`` asks whether that is one."""
    fault = next(fault for fault in FAULTS if fault.name == name)
    assert fault.ends is HONEST
    _, J = system(make_problem("contraction", 6, 0), Injected(fault))
    with pytest.raises(ig.OperatorError, match="linearity"):
        ig.check_operator(J)


@pytest.mark.fault(57)
def test_a_product_that_a_solve_inside_of_a_product_lacks_is_not_lacking_here():
    """Auto goes on without LSMR where the operator turns out to have no adjoint; this is another operator."""
    problem, calls = make_problem("singular, b out of range", 6, 0), []

    def product(u):
        calls.append(0)
        if len(calls) == 9:  # GMRES has found the system singular, and LSMR has begun
            ig.tangent_solve(ig.VJPOperator(lambda w: 0.5 * w, 6), u)
        return u @ problem.matrix.T

    A = ig.VJPOperator(lambda u: u @ problem.matrix, 6, jvp=product)
    with pytest.raises(ig.MissingProductError, match="without a JVP"):
        ig.solve(A, problem.rhs, on_failure="return")
    assert len(calls) == 9


@pytest.mark.fault(50)
def test_a_jvp_of_another_matrix_matters_only_to_those_that_use_it(row):
    problem, other = make_problem("contraction", 8, 2), make_problem("contraction", 8, 3)
    matrix = problem.matrix
    J = ig.VJPOperator(lambda u: u @ matrix.conj(), 8, jvp=lambda v: v @ other.matrix.T)
    solution = ig.adjoint_solve(J, problem.rhs, solver=row.solver, on_failure="return")
    assert solution.converged or row.needs_adjoint or row.name in ("CG", "MINRES")
    if solution.converged:
        assert problem.residual_norm(solution.x) <= 1.01 * solution.bound + problem.rounding(solution.x)


WRONG = [fault for fault in FAULTS if fault.raises]


@pytest.mark.fault(3, 4, 14, 19, 53, 57, 58)
@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.name)
def test_an_operator_class_of_the_users_is_held_to_the_same(row, fault):
    """A product that wrote into its input was called CONVERGED, at a relative residual of 1, by GMRES and Dense."""
    problem = make_problem("positive definite", 6, 0)
    injected = Injected(fault)

    class Own(ig.LinearOperator):
        shape, symmetric = (6, 6), True

        def apply(self, x):
            return injected.around(lambda u: u @ problem.matrix.T)(x)

        def apply_adjoint(self, y):
            return self.apply(y)

    g = problem.rhs.copy()
    with undisturbed(g), pytest.raises(fault.ends) as caught:
        ig.solve(Own(), g, solver=row.solver)
    assert injected.raised in (None, caught.value)
    assert injected.hits == 1
    assert injected.raised or "Own: apply" in str(caught.value)


@pytest.mark.fault(47, 48)
def test_nan_is_told_by_the_status_and_by_no_warning_of_ours(row):
    """Where the user's own arithmetic is silent, so is the solve."""
    problem = make_problem("symmetric contraction", 6, 1)
    for k in (1, 2, 4):
        A, _ = system(problem, Injected(next(f for f in FAULTS if f.name == "returns NaN"), k))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = ig.solve(A, problem.rhs, solver=row.solver, on_failure="return")
        assert solution.status is ig.Status.NONFINITE_OPERATOR
