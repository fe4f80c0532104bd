"""The rules of ``assert_solver``: each a property, the systems that it is for, and the line that repeats it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from implicitgrad.solvers import Solver
from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.problem import Problem
from implicitgrad.testing.properties.invariance import (
    assert_batch_is_loop,
    assert_repeatable,
    assert_scale_equivariant,
    assert_warm_start_never_hurts,
)
from implicitgrad.testing.properties.solvers import (
    assert_honest_counts,
    assert_inputs_untouched,
    assert_nan_is_told,
    assert_no_false_success,
    assert_zero_is_solved,
)

__all__ = ["RULES", "Rule"]

# Of these a batch is solved as the loop is, to rounding: elsewhere the last step hangs on rounding itself.
_EASY = ("contraction", "J = 0", "symmetric contraction")
# Squares of numbers that are 2**60 times as large stay within the range of single precision, for these operators.
_OF_ORDER_ONE = tuple(kind for kind in KINDS if kind not in ("tiny", "huge"))


@dataclass(frozen=True)
class Rule:
    """One property: its check, the line that repeats it, and the systems that it is for."""

    check: Callable[[Solver, Problem], None]
    line: str
    kinds: tuple[str, ...] = tuple(KINDS)
    batch: int | None = None


RULES = {
    "no false success": Rule(
        lambda solver, problem: assert_no_false_success(problem, solver.solve(problem.operator, problem.rhs.copy())),
        "assert_no_false_success(problem, solver.solve(problem.operator, problem.rhs))",
    ),
    "scale equivariance": Rule(
        lambda solver, problem: assert_scale_equivariant(solver, problem.operator, problem.rhs, (-60, -1, 23, 60)),
        "assert_scale_equivariant(solver, problem.operator, problem.rhs)",
        kinds=_OF_ORDER_ONE,
    ),
    "batch independence": Rule(
        lambda solver, problem: assert_batch_is_loop(solver, problem, steps_apart=1),
        "assert_batch_is_loop(solver, problem)",
        kinds=_EASY,
        batch=3,
    ),
    "honest counts": Rule(
        lambda solver, problem: _counts(solver, problem),
        "assert_honest_counts(solver, problem.operator, problem.rhs)",
    ),
    "warm start": Rule(assert_warm_start_never_hurts, "assert_warm_start_never_hurts(solver, problem)"),
    "zero": Rule(assert_zero_is_solved, "assert_zero_is_solved(solver, problem)"),
    "NaN": Rule(assert_nan_is_told, "assert_nan_is_told(solver, problem)"),
    "inputs": Rule(assert_inputs_untouched, "assert_inputs_untouched(solver, problem)"),
    "repeatable": Rule(assert_repeatable, "assert_repeatable(solver, problem)"),
}


def _counts(solver: Solver, problem: Problem) -> None:
    assert_honest_counts(solver, problem.operator, problem.rhs)
    assert_honest_counts(solver, problem.operator, problem.rhs, np.ones_like(problem.rhs))
