"""What a solver may claim: a true residual, honest counts, a word about NaN, and its inputs left as they were.

Each check asserts, returns None, and says by how much it failed. Users run them on their own solvers, all at once with
``assert_solver``; our tests on every solver of the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import LinearOperator, VJPOperator, identity_minus
from implicitgrad.solvers import Solution, Solver
from implicitgrad.status import Status
from implicitgrad.testing.counting import counted
from implicitgrad.testing.problem import Problem

__all__ = [
    "assert_honest_counts",
    "assert_inputs_untouched",
    "assert_nan_is_told",
    "assert_no_false_success",
    "assert_zero_is_solved",
]


def assert_no_false_success(problem: Problem, solution: Solution) -> None:
    """Assert that nothing is claimed which the dense matrix does not confirm.

    ``CONVERGED`` means that the residual of ``x``, recomputed in double precision, is within 1.01 times the bound plus
    the rounding of one product; ``residual_norm`` is that residual, whatever the status; ``x`` is never NaN or Inf.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("nearly singular", size=4, seed=1)
    >>> assert_no_false_success(problem, ig.GMRES().solve(problem.operator, problem.rhs))
    """
    x = np.asarray(solution.x)
    assert np.isfinite(x).all(), f"{problem.kind}: x holds NaN or Inf, status {solution.status}"
    true, rounding = np.asarray(problem.residual_norm(x)), np.asarray(problem.rounding(x))
    converged = np.asarray(solution.converged)
    allowed = 1.01 * np.asarray(solution.bound) + rounding
    false = converged & ~(true <= allowed)
    assert not false.any(), (
        f"{problem.kind}: CONVERGED at a residual of {np.max(true[false]):.3e}, "
        f"expected at most {np.min(allowed[false]):.3e}"
    )
    if solution.residual_norm is not None:
        gap = np.abs(np.asarray(solution.residual_norm) - true)
        assert (gap <= rounding + 1e-3 * true).all(), (
            f"{problem.kind}: residual_norm is off by {np.max(gap):.3e}, expected at most {np.max(rounding):.3e}"
        )


def assert_honest_counts(solver: Solver, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> None:
    """Assert that the products reported are those that an instrumented operator counts.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("contraction", size=4, seed=1)
    >>> assert_honest_counts(ig.Neumann(), problem.operator, problem.rhs)
    """
    watched, calls = counted(operator)
    copy = backend_of(rhs).copy
    solution = solver.solve(watched, copy(rhs), None if x0 is None else copy(x0))
    reported = (solution.num_matvecs, solution.num_rmatvecs)
    assert reported == calls(), (
        f"{solution.solver or type(solver).__name__}: reported {reported} products (matvecs, rmatvecs), "
        f"counted {calls()}"
    )


def assert_zero_is_solved(solver: Solver, problem: Problem) -> None:
    """Assert that ``b = 0`` gives exactly ``x = 0`` and ``CONVERGED``, from zero and from another start.

    A relative bound is zero there: a loop that waits for a residual below it never ends, or divides by it.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_zero_is_solved(ig.CG(), make_problem("positive definite", size=4, seed=1))
    """
    zero = np.zeros_like(problem.rhs)
    for x0 in (None, np.ones_like(problem.rhs)):
        solution = solver.solve(problem.operator, zero.copy(), x0)
        start = "" if x0 is None else " from x0 = 1"
        assert np.all(solution.converged), f"b = 0{start}: {_names(solution)}, expected CONVERGED"
        assert not np.any(np.asarray(solution.x)), (
            f"b = 0{start}: x of norm {np.linalg.norm(solution.x):.1e}, expected exactly 0"
        )


def assert_nan_is_told(solver: Solver, problem: Problem) -> None:
    """Assert that NaN, in ``b`` or in a product, ends with a bad status and a finite ``x``, not in an exception.

    Products turn to NaN from the first, the second and the fourth on.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_nan_is_told(ig.BiCGSTAB(), make_problem("contraction", size=4, seed=1))
    """
    sick = problem.rhs.copy()
    sick[..., -1] = np.nan
    _assert_told("NaN in b", solver.solve(problem.operator, sick))
    for number in (1, 2, 4):
        operator, made = _spoiled(problem, number)
        solution = solver.solve(operator, problem.rhs.copy())
        if made[0] >= number:
            _assert_told(f"NaN in every product from number {number} on", solution)


def _assert_told(what: str, solution: Solution) -> None:
    good = [status.name for status in np.asarray(solution.status, dtype=object).ravel() if status.is_good]
    assert not good, f"{what}: {good[0]}, expected NONFINITE_INPUT or NONFINITE_OPERATOR"
    assert np.isfinite(np.asarray(solution.x)).all(), f"{what}: x holds NaN or Inf, expected the last finite iterate"


def _spoiled(problem: Problem, number: int) -> tuple[LinearOperator, list[int]]:
    """Return the problem's operator with NaN in its products from ``number`` on, and the count of products so far."""
    made = [0]

    def watched(matrix: Any) -> Any:
        def product(v: Array) -> Array:
            made[0] += 1
            y = np.matmul(matrix, v[..., None])[..., 0]
            return np.full_like(y, np.nan) if made[0] >= number else y

        return product

    matrix = problem.matrix
    J = VJPOperator(
        watched(np.swapaxes(matrix, -1, -2).conj()),
        size=problem.size,
        jvp=watched(matrix),
        dtype=matrix.dtype,
        symmetric=problem.symmetric,
    )
    return (identity_minus(J).H if problem.shifted else J), made


def assert_inputs_untouched(solver: Solver, problem: Problem) -> None:
    """Assert that ``b`` and ``x0`` keep every bit, and that ``x`` has memory of its own and the dtype and shape of b.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_inputs_untouched(ig.MINRES(), make_problem("indefinite", size=4, seed=1))
    """
    for x0 in (None, np.ones_like(problem.rhs)):
        rhs, start = problem.rhs.copy(), None if x0 is None else x0.copy()
        solution = solver.solve(problem.operator, rhs, start)
        for name, array, before in (("b", rhs, problem.rhs), ("x0", start, x0)):
            if before is None or array is None:
                continue
            moved = np.max(np.abs(array.astype(problem.dense.dtype) - before), initial=0.0)
            assert np.array_equal(array, before), f"the solver wrote into {name}: it moved by up to {moved:.1e}"
            assert not np.shares_memory(np.asarray(solution.x), array), (
                f"x is a view of {name}, expected its own memory"
            )
        got, expected = (solution.x.shape, solution.x.dtype), (problem.rhs.shape, problem.rhs.dtype)
        assert got == expected, f"x has shape {got[0]} and dtype {got[1]}, expected {expected[0]} and {expected[1]}"


def _names(solution: Solution) -> str:
    statuses = np.asarray(solution.status, dtype=object).ravel()
    return ", ".join(sorted({status.name if isinstance(status, Status) else repr(status) for status in statuses}))
