"""The wall time of a solve: set for every solver, products and all attempts included."""

import math
from dataclasses import dataclass
from time import perf_counter, sleep

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import make_problem

PAUSE = 0.002


def sleepy(matrix):
    def product(u):
        sleep(PAUSE)
        return u @ matrix

    return ig.identity_minus(ig.VJPOperator(product, len(matrix), jvp=product, symmetric=True))


def test_seconds_hold_the_products_and_fit_into_the_call(row):
    problem = make_problem("symmetric contraction", 6, 1)
    start = perf_counter()
    solution = row.solver.solve(sleepy(problem.matrix), problem.rhs)
    whole = perf_counter() - start
    assert PAUSE * (solution.num_matvecs + solution.num_rmatvecs) <= solution.seconds <= whole


def test_seconds_of_a_fallback_are_those_of_all_attempts():
    problem = make_problem("symmetric contraction", 6, 1)
    solution = ig.solve(
        sleepy(problem.matrix), problem.rhs, solver=ig.Neumann(max_iters=3), on_failure=ig.CG(), x0=np.ones(6)
    )
    assert [attempt.solver for attempt in solution.attempts] == ["Neumann", "CG"]
    parts = [attempt.seconds for attempt in solution.attempts]
    assert all(PAUSE * a.num_matvecs <= a.seconds for a in solution.attempts)
    assert sum(parts) <= solution.seconds <= sum(parts) + 0.1
    auto = ig.Auto().solve(sleepy(problem.matrix), problem.rhs)
    assert auto.attempts[0].seconds <= auto.seconds


def test_a_solver_of_the_user_is_timed_too():
    @dataclass(frozen=True)
    class Mine(ig.Solver):
        def solve(self, operator, rhs, x0=None):
            sleep(PAUSE)
            return ig.Solution(rhs, ig.Status.CONVERGED, 0.0, 1.0, 1.0, 0, 0, 0)

    assert math.isnan(ig.Solution(None, ig.Status.CONVERGED, 0.0, 1.0, 1.0, 0, 0, 0).seconds)
    assert ig.adjoint_solve(ig.DenseOperator(np.zeros((2, 2))), np.ones(2), solver=Mine()).seconds >= PAUSE


def test_seconds_of_a_batch_that_is_looped_are_those_of_the_loop():
    igs = pytest.importorskip("implicitgrad.scipy")
    problem = make_problem("contraction", 5, 1)
    solution = igs.ScipySolver("gmres").solve(sleepy(problem.matrix), np.ones((3, 5)))
    assert solution.seconds >= PAUSE * solution.num_matvecs
