"""What must not change an answer: the scale of ``b``, the company in a batch, a first guess, a second run.

Each check asserts, returns None, and says by how much it failed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers import Solution, Solver
from implicitgrad.status import Status
from implicitgrad.testing.problem import Problem, scaled_norm
from implicitgrad.testing.properties.closeness import assert_close, on_host
from implicitgrad.testing.properties.solvers import assert_no_false_success

__all__ = [
    "assert_batch_is_loop",
    "assert_repeatable",
    "assert_scale_equivariant",
    "assert_warm_start_never_hurts",
]


def assert_scale_equivariant(
    solver: Solver, operator: LinearOperator, rhs: Array, exponents: Any = (-60, -7, 1, 33, 60)
) -> None:
    """Assert that ``2**k b`` gives ``2**k x``, bit for bit, by the same steps and with the same status.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("contraction", size=4, seed=1)
    >>> assert_scale_equivariant(ig.GMRES(), problem.operator, problem.rhs)
    """
    backend = backend_of(rhs)
    base = solver.solve(operator, backend.copy(rhs))
    for exponent in exponents:
        power = int(exponent) if rhs.ndim == 1 else np.full(tuple(rhs.shape[:-1]), int(exponent))
        other = solver.solve(operator, backend.times_power_of_two(rhs, power))
        iters, expected = np.asarray(other.num_iters), np.asarray(base.num_iters)
        assert (iters == expected).all(), f"2**{exponent}: {iters} iterations, expected {expected}"
        assert _statuses(other) == _statuses(base), f"2**{exponent}: {other.status}, expected {base.status}"
        scaled = backend.times_power_of_two(base.x, power)
        worst = np.max(np.abs(on_host(other.x) - on_host(scaled)), initial=0.0)
        assert backend.equal(other.x, scaled), f"2**{exponent}: x differs by {worst:.3e}, expected the same bits"


def assert_batch_is_loop(
    solver: Solver, problem: Problem, condition: float | None = None, steps_apart: int = 0
) -> None:
    """Assert that a batch is solved as its systems are alone: same status, same steps, ``x`` to rounding.

    Values are compared where both solves were good, for an iterate that failed may be all rounding. ``steps_apart``
    lets the iterations of a system differ by so many: sums run in another order in a batch, and a residual that meets
    the bound by a hair may meet it a step later.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_batch_is_loop(ig.CG(), make_problem("positive definite", size=4, seed=1, batch=3))
    """
    together = solver.solve(problem.operator, problem.rhs.copy())
    for i in range(problem.rhs.shape[0]):
        one = problem.one(i)
        alone = solver.solve(one.operator, one.rhs.copy())
        status, steps = together.status[i], int(together.num_iters[i])
        if status is not alone.status or abs(steps - alone.num_iters) > steps_apart:
            raise AssertionError(
                f"system {i} of the batch: {status.name} after {steps} iterations, expected {alone.status.name} after "
                f"{alone.num_iters} as alone"
            )
        if alone.is_good and steps == alone.num_iters:
            # Sums run in another order. MINRES and the normal equations magnify that by the square of the condition,
            # and where orthogonality is lost the last step is known to a part of what the bound leaves open only.
            values = np.linalg.svd(one.dense, compute_uv=False)
            growth = float(values[0] / values[-1]) ** 2 if condition is None else condition
            left_open = alone.bound / values[-1] / max(float(scaled_norm(on_host(alone.x))), 1e-300) / one.eps
            try:
                assert_close(together.x[i], alone.x, condition=growth * max(alone.num_iters, 1) + left_open / 100)
            except AssertionError as error:
                raise AssertionError(f"system {i} of the batch {error} from what it is alone") from None


def assert_warm_start_never_hurts(solver: Solver, problem: Problem) -> None:
    """Assert that a guess moves neither the bound nor the truth, and that the solution itself costs one product.

    From a guess 1e3 times too large the bound stays relative to ``b`` and the answer is no worse than the guess. From
    ``x_exact``, where its rounding is within the bound, the status is ``CONVERGED`` and at most one product is spent.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_warm_start_never_hurts(ig.GMRES(), make_problem("contraction", size=4, seed=1))
    """
    cold = solver.solve(problem.operator, problem.rhs.copy())
    size = np.maximum(scaled_norm(np.asarray(cold.x).astype(problem.dense.dtype)), scaled_norm(problem.rhs))
    draw = np.random.default_rng(0).standard_normal(problem.rhs.shape)
    guess = (1e3 * np.asarray(size)[..., None] * draw).astype(problem.dtype)
    warm = solver.solve(problem.operator, problem.rhs.copy(), guess.copy())
    assert np.array_equal(warm.bound, cold.bound), (
        f"from a guess 1e3 times too large the bound is {np.max(warm.bound):.3e}, expected {np.max(cold.bound):.3e} "
        "as from zero: relative to b, not to the first residual"
    )
    assert_no_false_success(problem, warm)
    before, after = problem.residual_norm(guess), problem.residual_norm(np.asarray(warm.x))
    allowed = 1.01 * before + problem.rounding(guess)
    assert np.all(after <= allowed), (
        f"worse than its guess: a residual of {np.max(after):.3e}, expected at most {np.max(allowed):.3e}"
    )
    if problem.singular or not np.any(problem.rhs):
        return
    exact = problem.x_exact.astype(problem.dtype)
    if np.any(problem.residual_norm(exact) + problem.rounding(exact) > np.asarray(cold.bound)):
        return  # rounded to its dtype, the solution is not within the bound
    again = solver.solve(problem.operator, problem.rhs.copy(), exact.copy())
    assert np.all(again.converged), f"from the exact solution: {again.message}"
    spent = again.num_matvecs + again.num_rmatvecs
    assert spent <= 1, f"from the exact solution {spent} products were spent, expected at most 1"


def assert_repeatable(solver: Solver, problem: Problem) -> None:
    """Assert that the same problem gives the same bits twice, also with another problem in between.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_repeatable(ig.LSMR(), make_problem("contraction", size=4, seed=1))
    """
    first = solver.solve(problem.operator, problem.rhs.copy())
    solver.solve(problem.operator, -0.5 * problem.rhs)
    second = solver.solve(problem.operator, problem.rhs.copy())
    moved = np.max(np.abs(on_host(second.x) - on_host(first.x)), initial=0.0)
    assert np.array_equal(first.x, second.x), f"the second time x differs by {moved:.3e}, expected the same bits"
    assert _statuses(first) == _statuses(second), f"{second.status}, the first time {first.status}"


def _statuses(solution: Solution) -> list[Status]:
    return list(np.asarray(solution.status, dtype=object).ravel())
