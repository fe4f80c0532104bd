"""Thousands of solves leave nothing behind, the collector off: no object of Python, and no bytes of an array."""

import gc
import tracemalloc

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import make_problem

PROBLEM = make_problem("symmetric contraction", 5, 1)


@pytest.fixture
def uncollected():
    """Turn the collector off: what only a reference cycle holds then counts as left behind."""
    gc.collect()
    gc.freeze()  # what there is already is looked at no more
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def objects():
    return len(gc.get_objects())


def traced():
    gc.collect()  # empties the free lists, which keep what was there once; cycles have been counted by then
    return tracemalloc.get_traced_memory()[0]


def least_growth(one, measure, rounds, times):
    """Return by how much a measure has grown in the best of some rounds of that many calls.

    What leaks leaks in every round; a cache fills up in the first ones, and then no more.
    """
    growth, before = [], measure()
    for _ in range(rounds):
        for _ in range(times):
            one()
        after = measure()
        growth.append(after - before)
        before = after
    return min(growth)


def leave_nothing(one, times):
    """Assert that ten rounds of ``times`` calls leave no object, and five more, of twenty, not 64 bytes a call.

    NumPy's arrays are no objects to the collector; the least of them, header and data, has 120 bytes.
    """
    assert least_growth(one, objects, 10, times) <= 0
    tracemalloc.start()
    try:
        assert least_growth(one, traced, 5, 20) <= 20 * 64
    finally:
        tracemalloc.stop()


@pytest.mark.fault(86)
def test_a_thousand_solves_leave_nothing_behind(row, uncollected):
    """Eleven solvers, 11,000 solves; half of them end as they should, half at a cap, with a history and a message."""
    operator = ig.DenseOperator(PROBLEM.matrix, symmetric=True)
    capped = row.set(max_iters=2) if row.has_budget else row.set(rtol=1e-300)
    turn = 0

    def one():
        nonlocal turn
        turn += 1
        solver = row.solver if turn % 2 else capped
        return ig.adjoint_solve(operator, PROBLEM.rhs, solver=solver, on_failure="return").status

    assert one() is ig.Status.CONVERGED
    leave_nothing(one, 100)


@pytest.mark.fault(57, 86)
def test_solves_that_raise_leave_nothing_behind(row, uncollected):
    """Of the product, of our checks of it, and for want of convergence; the frames of a traceback hold vectors."""

    def wrong(u):
        raise ValueError("mine")

    bad = [ig.VJPOperator(p, 5, symmetric=True) for p in (wrong, lambda u: None, lambda u: u)]  # J = I: not converged
    solver = row.set(max_iters=9) if row.has_budget else row.solver

    def one():
        for operator in bad:
            try:
                ig.adjoint_solve(operator, PROBLEM.rhs, solver=solver)
            except (ValueError, ig.BackendError, ig.NotConvergedError):
                continue
            raise AssertionError("nothing was raised")

    leave_nothing(one, 15)


@pytest.mark.fault(86)
def test_the_count_sees_a_cycle_and_an_array(uncollected):
    """The other side: a reference cycle a call, or a small array kept, is found."""

    def cycle():
        loop = []
        loop.append(loop)

    kept = []
    for leak in (cycle, lambda: kept.append(np.zeros(3))):
        with pytest.raises(AssertionError):
            leave_nothing(leak, 40)
