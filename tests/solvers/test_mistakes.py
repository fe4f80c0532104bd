"""A caller's mistake raises at once, in words, before any product; what a user's callable raises passes through.

Every row has its healthy twin: the same call with nothing wrong in it, in ``test_the_healthy_call_raises_nothing``.
"""

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.errors import (
    BackendError,
    ConvergenceWarning,
    DtypeError,
    ImplicitGradError,
    MissingProductError,
    NotConvergedError,
    OperatorError,
    SettingError,
    SettingTypeError,
    ShapeError,
)

MATRIX = np.array([[0.5, 0.2, 0.0], [0.0, 0.25, 0.1], [0.1, 0.0, 0.3]])


class Watch:
    """A VJP that counts its calls."""

    def __init__(self, product=lambda u: u @ MATRIX):
        self.product, self.calls = product, 0

    def __call__(self, u):
        self.calls += 1
        return self.product(u)


def system(dtype=None, jvp=True, product=None):
    watch = Watch() if product is None else Watch(product)
    J = ig.VJPOperator(watch, 3, jvp=(lambda v: v @ MATRIX.T) if jvp else None, dtype=dtype)
    return watch, J


# -- arrays ------------------------------------------------------------------------------------------------------------
ARRAYS = [
    ("too long", np.ones(4), ShapeError, ValueError, r"got rhs of shape \(4,\), expected \(\.\.\., 3\)"),
    ("too short", np.ones(2), ShapeError, ValueError, r"got rhs of shape \(2,\), expected \(\.\.\., 3\)"),
    ("a column", np.ones((3, 1)), ShapeError, ValueError, r"got rhs of shape \(3, 1\).*reshape\(-1\)"),
    ("a number in an array", np.array(1.0), ShapeError, ValueError, r"got rhs of shape \(\)"),
    (
        "integers",
        np.ones(3, int),
        DtypeError,
        TypeError,
        r"rhs of dtype int64, expected real or complex floating point.*Cast it",
    ),
    (
        "long doubles",
        np.ones(3, np.longdouble),
        DtypeError,
        TypeError,
        r"dtype float128, expected .* of at most 64 bits",
    ),
    ("booleans", np.ones(3, bool), DtypeError, TypeError, r"rhs of dtype bool"),
    ("objects", np.array([1.0, None, 2.0]), DtypeError, TypeError, r"rhs of dtype object"),
    ("a list", [1.0, 2.0, 3.0], BackendError, TypeError, r"type list, expected an array.*numpy\.asarray"),
    ("a tuple", (1.0, 2.0, 3.0), BackendError, TypeError, r"type tuple"),
    ("None", None, BackendError, TypeError, r"type NoneType"),
    ("a string", "abc", BackendError, TypeError, r"type str"),
    ("a number", 1.0, BackendError, TypeError, r"type float"),
]


@pytest.mark.fault(1, 11, 12)
@pytest.mark.parametrize(("rhs", "error", "builtin", "text"), [a[1:] for a in ARRAYS], ids=[a[0] for a in ARRAYS])
def test_a_wrong_right_hand_side_costs_no_product(row, rhs, error, builtin, text):
    watch, J = system()
    with pytest.raises(error, match=text) as caught:
        ig.adjoint_solve(J, rhs, solver=row.solver)
    assert type(caught.value) is error
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, ImplicitGradError)
    assert watch.calls == 0


GUESSES = [
    ("too long", np.ones(4), ShapeError, r"got x0 of shape \(4,\), expected \(3,\)"),
    ("empty", np.ones(0), ShapeError, r"got x0 of shape \(0,\)"),
    ("a batch", np.ones((2, 3)), ShapeError, r"got x0 of shape \(2, 3\)"),
    ("single precision", np.ones(3, np.float32), DtypeError, r"x0 of dtype float32, expected float64"),
    ("integers", np.ones(3, int), DtypeError, r"x0 of dtype int64"),
    ("a list", [1.0, 2.0, 3.0], BackendError, r"type list"),
    ("a string", "abc", BackendError, r"type str"),
]


@pytest.mark.fault(2)
@pytest.mark.parametrize(("x0", "error", "text"), [a[1:] for a in GUESSES], ids=[a[0] for a in GUESSES])
def test_a_wrong_first_guess_costs_no_product(row, x0, error, text):
    watch, J = system()
    with pytest.raises(error, match=text):
        ig.adjoint_solve(J, np.ones(3), solver=row.solver, x0=x0)
    assert watch.calls == 0


def test_a_right_hand_side_of_another_dtype_than_the_operator_costs_no_product(row):
    watch, J = system(dtype=np.float64)
    with pytest.raises(DtypeError, match=r"rhs of dtype float32 for an operator of float64|float64.*expected the same"):
        ig.adjoint_solve(J, np.ones(3, np.float32), solver=row.solver)
    assert watch.calls == 0


def test_arrays_of_two_libraries_are_refused(row):
    torch = pytest.importorskip("torch")
    watch, J = system()
    with pytest.raises(BackendError, match=r"got x0 of Tensor, expected an array of rhs's library"):
        ig.adjoint_solve(J, np.ones(3), solver=row.solver, x0=torch.ones(3, dtype=torch.float64))
    assert watch.calls == 0


def test_a_vector_of_another_library_than_the_matrix_is_refused(row):
    """NumPy took the tensors, with a DeprecationWarning; a SciPy operator takes any library on purpose."""
    torch = pytest.importorskip("torch")
    with pytest.raises(BackendError, match=r"got a vector of torch for a matrix of numpy, expected one library"):
        ig.adjoint_solve(ig.DenseOperator(MATRIX), torch.ones(3, dtype=torch.float64), solver=row.solver)
    with pytest.raises(BackendError, match=r"got a vector of numpy for a matrix of torch"):
        ig.adjoint_solve(ig.DenseOperator(torch.tensor(MATRIX)), np.ones(3), solver=row.solver)


def test_the_healthy_call_raises_nothing(row):
    _, J = system()
    symmetric = ig.DenseOperator((MATRIX + MATRIX.T) / 2, symmetric=True)
    assert ig.adjoint_solve(symmetric, np.ones(3), solver=row.solver, x0=np.zeros(3)).converged
    assert ig.adjoint_solve(J, np.ones(3)).converged


# -- operators ---------------------------------------------------------------------------------------------------------
def in_place(u):
    u *= 0.5
    return u.copy()


PRODUCTS = [
    ("None", lambda u: None, BackendError, r"vjp returned an object of type NoneType.*return zeros"),
    ("a list", lambda u: [1.0, 2.0, 3.0], BackendError, r"vjp returned an object of type list"),
    ("a tuple", lambda u: (u @ MATRIX,), BackendError, r"vjp returned an object of type tuple"),
    ("one short", lambda u: u[:2], ShapeError, r"vjp returned shape \(2,\) for an input of shape \(3,\)"),
    ("a column", lambda u: u[:, None], ShapeError, r"vjp returned shape \(3, 1\).*batched=False"),
    ("single precision", lambda u: u.astype(np.float32), DtypeError, r"returned float32 for an input of float64"),
    ("complex", lambda u: u + 0j, DtypeError, r"returned complex128 for an input of float64"),
    ("integers", lambda u: u.astype(int), DtypeError, r"returned int64 for an input of float64"),
    ("in place", in_place, OperatorError, r"vjp changed its input in place.*x \* 2 rather than x \*= 2"),
]


@pytest.mark.fault(3, 4, 11, 14, 19, 53)
@pytest.mark.parametrize(("product", "error", "text"), [a[1:] for a in PRODUCTS], ids=[a[0] for a in PRODUCTS])
def test_an_operator_that_returns_the_wrong_thing_is_named_at_the_first_product(row, product, error, text):
    g = np.array([1.0, 2.0, 3.0])
    watch = Watch(product)
    J = ig.VJPOperator(watch, 3, jvp=lambda v: v @ MATRIX.T)
    with pytest.raises(error, match=text):
        ig.adjoint_solve(J, g, solver=row.solver)
    assert watch.calls == 1
    assert np.array_equal(g, [1.0, 2.0, 3.0])


@pytest.mark.fault(4, 14, 19, 53)
@pytest.mark.parametrize("spoil", ["None", "one short", "single precision", "in place"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_fault_at_the_kth_product_is_named_there(spoil, k):
    """FAULTS section 3, item 2."""
    faulty, error = next((a[1], a[2]) for a in PRODUCTS if a[0] == spoil)
    watch = Watch(lambda u: faulty(u) if watch.calls == k else u @ MATRIX)
    J = ig.VJPOperator(watch, 3)
    with pytest.raises(error):
        ig.adjoint_solve(J, np.array([1.0, 2.0, 3.0]))
    assert watch.calls == k
    assert ig.adjoint_solve(ig.VJPOperator(lambda u: u @ MATRIX, 3), np.ones(3)).converged


def test_an_in_place_change_of_a_tensor_is_named():
    torch = pytest.importorskip("torch")
    matrix, g = torch.tensor(MATRIX), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    kept = g.clone()
    for context in (torch.enable_grad, torch.inference_mode):
        with context(), pytest.raises(OperatorError, match="changed its input in place"):
            ig.adjoint_solve(ig.VJPOperator(lambda u: u.mul_(0.5) @ matrix, 3), g)
    with pytest.raises(BackendError, match="vjp returned an object of type ndarray"):
        ig.adjoint_solve(ig.VJPOperator(lambda u: u.numpy() @ MATRIX, 3), kept)


@pytest.mark.fault(54)
def test_a_buffer_that_the_operator_keeps_does_no_harm(row):
    """FAULTS 54: one shared buffer is returned again and again; and 53's twin, the input itself."""
    half = np.full(3, np.nan)

    def shared(u):
        np.multiply(u, 0.5, out=half)
        return half

    J = ig.VJPOperator(shared, 3, symmetric=True)
    solution = ig.adjoint_solve(J, np.array([1.0, 2.0, 3.0]), solver=row.solver)
    assert np.allclose(solution.x, [2.0, 4.0, 6.0], rtol=1e-7)
    identity = ig.VJPOperator(lambda u: u, 3, symmetric=True)
    assert not ig.adjoint_solve(identity, np.ones(3), solver=row.solver, on_failure="return").is_good


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.fault(57, 58)
@pytest.mark.parametrize("error", [ValueError("mine"), Interrupted("mine"), ZeroDivisionError("mine")], ids=repr)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_exception_of_the_callable_passes_through_unchanged(row, error, k):
    """FAULTS 57 and 58; g and x0 keep every bit, and the next solve is right."""
    if row.name == "Dense" and k > 3:
        pytest.skip("three columns")
    g, x0 = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, -1.0])
    calls = 0

    def product(u):
        nonlocal calls
        calls += 1
        if calls == k:
            raise error
        return 0.25 * u[::-1]

    J = ig.VJPOperator(product, 3, symmetric=True)
    with pytest.raises(type(error)) as caught:
        ig.adjoint_solve(J, g, solver=row.set(rtol=1e-12), x0=x0)
    assert caught.value is error
    assert np.array_equal(g, [1.0, 2.0, 3.0])
    assert np.array_equal(x0, [0.5, 0.0, -1.0])
    assert ig.adjoint_solve(J, g, solver=row.solver).converged


def test_a_solver_that_needs_the_jvp_says_so_before_any_product():
    watch, J = system(jvp=False)
    for solver in (ig.LSMR(), ig.NormalEquations()):
        with pytest.raises(MissingProductError, match=r"without (a JVP|the adjoint product)"):
            ig.adjoint_solve(J, np.ones(3), solver=solver)
    with pytest.raises(MissingProductError, match=r"without a JVP.*jvp="):
        ig.tangent_solve(J, np.ones(3))
    assert watch.calls == 0
    assert isinstance(MissingProductError("x"), NotImplementedError)


# -- settings ----------------------------------------------------------------------------------------------------------
TOLERANCES = [
    (-1e-6, SettingError),
    (float("nan"), SettingError),
    (float("inf"), SettingError),
    (True, SettingTypeError),
    ("1e-6", SettingTypeError),
    ([1e-6], SettingTypeError),
    (1e-6j, SettingTypeError),
]


@pytest.mark.fault(67, 68, 69)
@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize(("value", "error"), TOLERANCES, ids=repr)
def test_a_senseless_tolerance_is_refused_when_it_is_set(row, name, value, error):
    with pytest.raises(error, match=re.escape(f"got {name}={value!r}, expected a finite number >= 0")):
        row.set(**{name: value})


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, SettingError), *((wrong, SettingTypeError) for wrong in (1.5, 2.0, True, "10", float("nan")))],
    ids=repr,
)
def test_a_senseless_cap_is_refused_when_it_is_set(budget_row, value, error):
    with pytest.raises(error, match=re.escape(f"got max_iters={value!r}, expected an integer >= 0 or None")):
        budget_row.set(max_iters=value)


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "5"], ids=repr)
def test_a_senseless_restart_is_refused(value):
    with pytest.raises(SettingError, match=re.escape(f"got restart={value!r}, expected an integer >= 1 or None")):
        ig.GMRES(restart=value)


@pytest.mark.fault(71)
def test_a_huge_cap_works(budget_row):
    """FAULTS 71: the cap is no size of anything."""
    symmetric = ig.DenseOperator((MATRIX + MATRIX.T) / 2, symmetric=True)
    for cap in (2**31, 2**40):
        assert ig.adjoint_solve(symmetric, np.ones(3), solver=budget_row.set(max_iters=cap)).converged


def test_sensible_settings_of_numpy_are_taken():
    assert ig.GMRES(rtol=np.float32(1e-3), max_iters=np.int64(5), restart=np.int32(3)).restart == 3


KEYWORDS = [
    (lambda: ig.GMRES(tol=1e-6), r"GMRES: got an unexpected keyword argument 'tol'.*Did you mean rtol\?"),
    (lambda: ig.GMRES(maxiter=3), r"'maxiter'.*Did you mean max_iters\?"),
    (lambda: ig.Neumann(max_steps=3), r"'max_steps'.*Did you mean max_iters\?"),
    (lambda: ig.Neumann(restart=3), r"'restart', expected one of rtol, atol, max_iters, final_residual"),
    (lambda: ig.NormalEquations(eta=1.0), r"'eta', expected one of inner, shift"),
    (lambda: ig.Auto(memry=3), r"Did you mean memory\?"),
    (lambda: ig.NormalEquations(ig.GMRES()), r"got inner of type GMRES, expected CG"),
    (lambda: ig.NormalEquations(shift=float("nan")), r"got shift=nan"),
    (lambda: ig.VJPOperator(MATRIX, 3), r"got vjp of type ndarray, expected a callable.*DenseOperator"),
    (lambda: ig.VJPOperator(lambda u: u, 2.5), r"got size=2\.5"),
    (lambda: ig.VJPOperator(lambda u: u, -1), r"got size=-1"),
    (lambda: ig.VJPOperator(lambda u: u, True), r"got size=True"),
    (lambda: ig.identity_minus(MATRIX), r"identity_minus: got an object of type ndarray"),
]


@pytest.mark.fault(72)
@pytest.mark.parametrize(("call", "text"), KEYWORDS, ids=[k[1][:30] for k in KEYWORDS])
def test_a_wrong_setting_names_what_there_is(call, text):
    with pytest.raises(SettingError, match=text):
        call()


POLICIES = [
    ({"solver": ig.GMRES}, r"got solver=<class .*expected a Solver such as GMRES\(\).*Did you mean GMRES\(\)\?"),
    ({"solver": "gmres"}, r"got solver='gmres', expected a Solver"),
    ({"on_failure": "ignore"}, r"got on_failure='ignore', expected 'raise', 'warn', 'return' or a Solver"),
    ({"on_failure": None}, r"got on_failure=None"),
    ({"on_failure": ig.LSMR}, r"got on_failure=<class"),
    ({"on_failure": np.ones(3)}, r"got on_failure=array"),
]


@pytest.mark.parametrize(("arguments", "text"), POLICIES, ids=[p[1][:25] for p in POLICIES])
@pytest.mark.parametrize("entry", [ig.adjoint_solve, ig.tangent_solve, ig.solve])
def test_a_wrong_policy_costs_no_product(entry, arguments, text):
    watch, J = system()
    with pytest.raises(SettingTypeError, match=text):
        entry(J, np.ones(3), **arguments)
    assert watch.calls == 0


@pytest.mark.parametrize("entry", [ig.adjoint_solve, ig.tangent_solve, ig.solve])
def test_a_matrix_or_a_callable_for_an_operator_is_named(entry):
    for wrong in (MATRIX, lambda u: u, None):
        with pytest.raises(SettingTypeError, match=r"got an operator of type \w+, expected a LinearOperator.*Dense"):
            entry(wrong, np.ones(3))


def test_a_rectangular_operator_needs_lsmr(row):
    A = ig.DenseOperator(np.ones((4, 3)))
    if row.name in ("LSMR", "Auto"):
        assert ig.solve(A, np.ones(4), solver=row.solver, on_failure="return").x.shape == (3,)
        return
    with pytest.raises(ShapeError, match=r"shape \(4, 3\), expected a square one"):
        ig.solve(A, np.ones(4), solver=row.solver)


def test_solvers_are_frozen_and_comparable(row):
    field = "inner" if row.name == "NormalEquations" else "rtol"
    with pytest.raises(FrozenInstanceError):
        setattr(row.solver, field, 1.0)
    assert row.set() == row.solver
    assert hash(row.set()) == hash(row.solver)


def test_the_exceptions_carry_the_builtin_that_fits():
    assert issubclass(NotConvergedError, RuntimeError)
    assert issubclass(ConvergenceWarning, UserWarning)
    assert issubclass(SettingTypeError, TypeError)
    assert issubclass(SettingError, ValueError)


def test_settings_are_named():
    """Neumann(20) would be rtol=20, and converge at once."""
    for solver in (
        ig.Neumann,
        ig.Richardson,
        ig.CG,
        ig.MINRES,
        ig.GMRES,
        ig.BiCGSTAB,
        ig.LSMR,
        ig.Dense,
        ig.Auto,
        ig.RussianRoulette,
    ):
        with pytest.raises(TypeError, match="positional"):
            solver(20)


class _Inverse(ig.Solver):
    """A solver of a user's own, with an ``__init__`` where ours have fields."""

    def __init__(self, *, digits):
        self.digits = digits

    def solve(self, operator, rhs, x0=None):
        return ig.Dense().solve(operator, rhs)


def test_a_solver_of_a_users_own_needs_no_dataclass():
    J = ig.DenseOperator(np.array([[0.5]]))
    assert ig.adjoint_solve(J, np.ones(1), solver=_Inverse(digits=3)).x == 2
