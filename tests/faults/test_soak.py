"""Thousands of solves leave nothing behind, the collector off: no object of Python, and no bytes of an array."""

import gc
import itertools
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


def stands_still(one, measure, rounds, times, allowed):
    """Say whether a measure grows by no more than what is allowed in one of so many rounds of calls.

    What leaks leaks in every round. A cache fills up in the first ones; and what was there before tracing began is
    replaced by what is traced, a little in each round and each time less.
    """
    before = measure()
    for _ in range(rounds):
        for _ in range(times):
            one()
        after = measure()
        if after - before <= allowed:
            return True
        before = after
    return False


def leave_nothing(one, times):
    """Assert that ``times`` calls leave no object, and fifty more not 32 bytes a call: the least of some rounds.

    NumPy's arrays are no objects to the collector; the least of them, header and data, has 120 bytes, and half as
    much a call if every other call leaves one.
    """
    assert stands_still(one, objects, 10, times, 0)
    tracemalloc.start()
    try:
        assert stands_still(one, traced, 20, 50, 50 * 32)
    finally:
        tracemalloc.stop()


@pytest.mark.fault(86)
def test_a_thousand_solves_leave_nothing_behind(row, uncollected):
    """Eleven solvers; half of the solves end as they should, half at a cap, with a history and a message."""
    operator = ig.DenseOperator(PROBLEM.matrix, symmetric=True)
    capped = row.set(max_iters=2) if row.has_budget else row.set(rtol=1e-300)
    turn = 0

    def one():
        nonlocal turn
        turn += 1
        solver = row.solver if turn % 2 else capped
        return ig.adjoint_solve(operator, PROBLEM.rhs, solver=solver, on_failure="return").status

    assert one() is ig.Status.CONVERGED
    leave_nothing(one, 1000)


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

    leave_nothing(one, 150)


@pytest.mark.fault(86)
def test_the_count_sees_a_cycle_and_an_array(uncollected):
    """The other side: a reference cycle a call, or a small array kept by every other call, is found."""

    def cycle():
        loop = []
        loop.append(loop)

    kept, turns = [], itertools.count()

    def every_other():
        kept.append(np.zeros(3) if next(turns) % 2 else None)

    for leak in (cycle, every_other):
        with pytest.raises(AssertionError):
            leave_nothing(leak, 40)
