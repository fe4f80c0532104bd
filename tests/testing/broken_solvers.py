"""Solvers with one fault each, planted around an honest one: what ``assert_solver`` has to catch, and by which rule."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import implicitgrad as ig
from implicitgrad import Status


@dataclass(frozen=True)
class Faulty(ig.Solver):
    """An honest solver whose arguments or whose solution are tampered with."""

    tamper: Callable[..., ig.Solution]

    def solve(self, operator, rhs, x0=None):
        return self.tamper(ig.GMRES().solve, operator, rhs, x0)


def _claims_success(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    return replace(solution, status=np.full(rhs.shape[:-1], Status.CONVERGED) if rhs.ndim > 1 else Status.CONVERGED)


def _flatters(solve, operator, rhs, x0):
    """Reports half of the residual, as a recurrence that has drifted does."""
    solution = solve(operator, rhs, x0)
    return replace(solution, residual_norm=0.5 * np.asarray(solution.residual_norm)[()])


def _returns_nan(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    return replace(solution, x=np.full_like(solution.x, np.nan)) if not solution.is_good else solution


def _forgets_the_last_check(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    return replace(solution, num_matvecs=max(solution.num_matvecs - 1, 0))


def _counts_systems(solve, operator, rhs, x0):
    """Counts the steps, not the products: forgets the first residual of a warm start."""
    solution = solve(operator, rhs, x0)
    return solution if x0 is None else replace(solution, num_matvecs=int(np.max(solution.num_iters)))


def _absolute_tolerance(solve, operator, rhs, x0):
    return ig.GMRES(atol=1e-3).solve(operator, rhs, x0)


def _absolute_ridge(solve, operator, rhs, x0):
    """Changes the last bits only: same steps, same status."""
    solution = solve(operator, rhs, x0)
    ridge = np.finfo(rhs.dtype).eps * 2.0**-3
    return replace(solution, x=(solution.x + ridge * (rhs != 0)).astype(rhs.dtype))


def _stops_together(solve, operator, rhs, x0):
    """All systems of a batch run until the slowest is done."""
    solution = solve(operator, rhs, x0)
    return (
        replace(solution, num_iters=np.full(rhs.shape[:-1], 5 + np.max(solution.num_iters)))
        if rhs.ndim > 1
        else solution
    )


def _mixes_samples(solve, operator, rhs, x0):
    """One line search for the whole batch: the first system sees a little of the others."""
    solution = solve(operator, rhs, x0)
    if rhs.ndim == 1:
        return solution
    x = solution.x.copy()
    x[0] = x[0] + 1e-4 * np.linalg.norm(x[0]) / np.linalg.norm(x[1:]) * x[1]
    return replace(solution, x=x)


def _first_residual(solve, operator, rhs, x0):
    """The bound is relative to the first residual."""
    solution = solve(operator, rhs, x0)
    if x0 is None:
        return solution
    start = np.linalg.norm(rhs - operator.matvec(x0), axis=-1)
    loose = np.maximum(solution.bound, 1e-6 * start)[()]
    return replace(solution, bound=loose, num_matvecs=solution.num_matvecs + 1)


def _last_iterate(solve, operator, rhs, x0):
    """Gives up a good guess for whatever it has after two steps."""
    solution = solve(operator, rhs, x0)
    if x0 is None or solution.is_good:
        return solution
    x = (1e6 * x0).astype(rhs.dtype)
    residual = np.linalg.norm(rhs - operator.matvec(x), axis=-1)[()]
    return replace(solution, x=x, residual_norm=residual, num_matvecs=solution.num_matvecs + 1)


def _always_works(solve, operator, rhs, x0):
    """Spends two products before it looks at the guess."""
    for _ in range(2):
        operator.matvec(rhs)
    solution = solve(operator, rhs, x0)
    return replace(solution, num_matvecs=solution.num_matvecs + 2)


def _divides_by_b(solve, operator, rhs, x0):
    """``b = 0``: 0 / 0."""
    solution = solve(operator, rhs, x0)
    zero = np.linalg.norm(rhs, axis=-1, keepdims=True) == 0
    return replace(solution, x=np.where(zero, np.nan, solution.x).astype(rhs.dtype))


def _stops_near_zero(solve, operator, rhs, x0):
    """``b = 0`` under an absolute floor: a start is worked off until it is small, not until it is zero."""
    solution = solve(operator, rhs, x0)
    return solution if x0 is None or np.any(rhs) else replace(solution, x=(1e-13 * x0).astype(rhs.dtype))


def _never_done_with_zero(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    return solution if np.any(rhs) else replace(solution, status=np.full(rhs.shape[:-1], Status.MAX_ITERS)[()])


def _nan_is_not_greater(solve, operator, rhs, x0):
    """``while residual > bound``: NaN ends the loop as success."""
    solution = solve(operator, rhs, x0)
    if rhs.ndim == 1 and solution.status in (Status.NONFINITE_INPUT, Status.NONFINITE_OPERATOR):
        return replace(solution, status=Status.CONVERGED)
    return solution


def _raises_on_nan(solve, operator, rhs, x0):
    if not np.isfinite(rhs).all():
        raise ZeroDivisionError("float division by zero")
    return solve(operator, rhs, x0)


def _writes_into_b(solve, operator, rhs, x0):
    solution = solve(operator, rhs.copy(), x0)
    rhs *= 1.0 + 1e-3
    return solution


def _writes_into_x0(solve, operator, rhs, x0):
    solution = solve(operator, rhs, None if x0 is None else x0.copy())
    if x0 is not None:
        x0[...] = solution.x
    return solution


def _returns_a_view(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    if x0 is None:
        return solution
    kept = x0.copy()
    x0[...] = solution.x
    return replace(solution, x=x0) if np.array_equal(kept, solution.x) else replace(solution, x=x0[...])


def _in_double(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    return replace(solution, x=solution.x.astype(np.result_type(rhs.dtype, np.float64)))


def _global_random_numbers(solve, operator, rhs, x0):
    solution = solve(operator, rhs, x0)
    noise = np.finfo(rhs.dtype).eps * _global_random_numbers.rng.standard_normal(rhs.shape)
    return replace(solution, x=(solution.x * (1 + noise)).astype(rhs.dtype))


_global_random_numbers.rng = np.random.default_rng(0)


def _remembers(solve, operator, rhs, x0):
    """Starts from the last solution: state between calls."""
    last = _remembers.last.get(rhs.shape)
    solution = solve(operator, rhs, last.astype(rhs.dtype) if x0 is None and last is not None else x0)
    _remembers.last[rhs.shape] = 0.1 * solution.x.real
    return solution


_remembers.last = {}


def _gives_up(solve, operator, rhs, x0):
    """Claims nothing, solves nothing."""
    return ig.GMRES(max_iters=0).solve(operator, rhs, x0) if np.any(rhs) and x0 is None else solve(operator, rhs, x0)


# name -> (the fault, the rule that has to catch it, the words of the message)
FAULTS = {
    "claims success": (_claims_success, "no false success", r"CONVERGED at a residual of \d.*, expected at most \d"),
    "flatters": (_flatters, "no false success", r"residual_norm is off by \d.*, expected at most \d"),
    "returns NaN": (_returns_nan, "no false success", "x holds NaN or Inf, status Status"),
    "forgets the last check": (
        _forgets_the_last_check,
        "honest counts",
        r"reported \(\d+, 0\) products \(matvecs, rmatvecs\), counted \(\d+, 0\)",
    ),
    "counts steps": (_counts_systems, "honest counts", r"reported \(\d+, 0\) products"),
    "absolute tolerance": (_absolute_tolerance, "scale equivariance", r"2\*\*\S+: \d+ iterations, expected \d+"),
    "absolute ridge": (_absolute_ridge, "scale equivariance", r"2\*\*\S+: x differs by \d.*, expected the same bits"),
    "stops together": (
        _stops_together,
        "batch independence",
        r"system \d of the batch: CONVERGED after \d+ iterations, expected CONVERGED after \d+ as alone",
    ),
    "mixes samples": (
        _mixes_samples,
        "batch independence",
        r"system 0 of the batch differs by \d.* from what it is alone",
    ),
    "bound of the first residual": (_first_residual, "warm start", "relative to b, not to the first residual"),
    "last iterate": (_last_iterate, "warm start", r"worse than its guess: a residual of \d"),
    "always works": (
        _always_works,
        "warm start",
        "from the exact solution [23] products were spent, expected at most 1",
    ),
    "divides by b": (_divides_by_b, "zero", r"b = 0: x of norm nan, expected exactly 0"),
    "stops near zero": (_stops_near_zero, "zero", r"b = 0 from x0 = 1: x of norm \d.\de-13, expected exactly 0"),
    "never done with zero": (_never_done_with_zero, "zero", "b = 0: MAX_ITERS, expected CONVERGED"),
    "NaN is not greater": (_nan_is_not_greater, "NaN", "NaN in b: CONVERGED, expected NONFINITE_INPUT"),
    "raises on NaN": (_raises_on_nan, "NaN", "raised ZeroDivisionError: float division by zero"),
    "writes into b": (_writes_into_b, "inputs", r"the solver wrote into b: it moved by up to \d"),
    "writes into x0": (_writes_into_x0, "inputs", r"the solver wrote into x0: it moved by up to \d"),
    "returns a view": (_returns_a_view, "inputs", "the solver wrote into x0|x is a view of x0"),
    "in double": (_in_double, "inputs", "x has shape .* and dtype complex128, expected .* and complex64"),
    "global random numbers": (_global_random_numbers, "repeatable", "the second time x differs by"),
    "remembers": (_remembers, "repeatable", "the second time x differs by"),
}
GIVES_UP = Faulty(_gives_up)
