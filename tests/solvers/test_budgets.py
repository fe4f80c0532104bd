"""Each system of a batch has a budget of its own, whatever its neighbours have spent."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.solvers.iterative import IterativeSolver

CLAIMS = (3, 7)  # the step at which each system claims to be done, in the first cycle


@dataclass(frozen=True, kw_only=True)
class Optimist(IterativeSolver):
    """Richardson steps that claim a residual of zero too early, once."""

    rtol: float = 1e-12
    max_iters: int = 10
    claims: tuple[int, ...] = CLAIMS

    atol: ClassVar[float] = 0.0
    final_residual: ClassVar[bool] = False

    def iterations(self, system, x, r):
        cycle = system.kept["cycle"] = system.kept.get("cycle", 0) + 1
        x, step = (system.zero() if x is None else x), 0
        while True:
            claimed = np.array([cycle == 1 and step == claim for claim in self.claims])
            size = np.where(claimed, 0.0, np.linalg.norm(r, axis=-1))
            yield (float(size[0]) if system.single else size), x
            x, r = system.park(x, r)
            x = x + r
            r = r - system.matvec(r)
            step += 1


def test_a_system_with_steps_left_goes_on_where_its_neighbour_has_spent_them():
    """After false claims at 3 and 7 of 10 steps the second cycle has 7 and 3 left: it is one cycle for both."""
    A = ig.DenseOperator(0.5 * np.eye(2))
    rhs = np.array([[1.0, 2.0], [3.0, -1.0]])
    solution = Optimist().solve(A, rhs)
    assert list(solution.status) == [Status.MAX_ITERS, Status.MAX_ITERS]
    assert solution.num_iters.tolist() == [10, 10]
    assert solution.num_matvecs == (7 + 1) + (7 + 1)  # steps and a check, twice
    for i, claim in enumerate(CLAIMS):
        alone = Optimist(claims=(claim,)).solve(A, rhs[i])
        assert alone.num_matvecs == 10 + 2
        # The neighbour's steps must not move a system that waits parked for its next cycle.
        assert np.allclose(solution.x[i], alone.x, rtol=1e-14)


@given(st.integers(1, 6), st.integers(1, 90), st.sampled_from([np.float32, np.float64]), st.booleans(), st.data())
def test_a_budget_that_outlasts_the_recurrence_is_spent_and_not_a_breakdown(row, size, steps, dtype, two, data):
    """After n steps of a Krylov method there is nothing left to do, and 0/0 was INDEFINITE, or LEAST_SQUARES."""
    if not row.has_budget or isinstance(row.solver, ig.Auto):
        return
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = ((q * rng.uniform(0.5, 1.5, size)) @ q.T).astype(dtype)
    rhs = rng.standard_normal((2, size) if two else size).astype(dtype)
    matrix = (matrix + matrix.T) / 2
    A = ig.DenseOperator(matrix, symmetric=True)
    solution = ig.solve(A, rhs, solver=row.set(rtol=0.0, atol=0.0, max_iters=steps))
    assert (np.asarray(solution.status) == Status.TRUNCATED).all()
    assert np.max(solution.num_iters) <= steps
    if steps >= 60 and not isinstance(row.solver, ig.GMRES):  # 0.5^60 is below eps; rounding may undo GMRES(5)
        exact = np.linalg.solve(matrix.astype(float), rhs[..., None].astype(float))[..., 0]
        assert np.abs(solution.x - exact).max() <= 400 * np.finfo(dtype).eps * np.abs(exact).max()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.5, 3.0]), st.sampled_from([1.0, 1.01, 1e4]), st.booleans())
def test_a_shifted_system_has_one_answer_whatever_the_first_guess(seed, shift, factor, fixed):
    """The guess has the smaller residual of the system without a shift: it was handed back as it came."""
    rng = np.random.default_rng(seed)
    A = np.eye(4) - 0.7 * np.linalg.qr(rng.standard_normal((4, 4)))[0]
    b = rng.standard_normal(4)
    expected = np.linalg.solve(A.T @ A + shift * np.eye(4), A.T @ b)
    inner = ig.CG(rtol=0.0, max_iters=8) if fixed else ig.CG(rtol=1e-11)
    solver = ig.NormalEquations(inner, shift=shift)
    guess = factor * expected + 1e-3 * rng.standard_normal(4)
    for x0 in (None, guess, np.linalg.solve(A, b) * (1 + 1e-6)):
        solution = ig.solve(ig.DenseOperator(A), b, solver=solver, x0=x0, on_failure="return")
        assert solution.status is (Status.TRUNCATED if fixed else Status.LEAST_SQUARES)
        assert np.abs(solution.x - expected).max() <= 1e-9 * max(1.0, factor * fixed) * np.abs(expected).max()


@pytest.mark.parametrize("factor", [None, 1.0, 1e3, 1e6])
def test_a_bad_first_guess_does_not_loosen_the_bound_of_a_shifted_system(factor):
    """``rtol`` is relative to ``A^H b``, and not to what the guess has left of it."""
    rng = np.random.default_rng(4)
    q = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    A, b, shift = q * np.geomspace(1e-2, 1.0, 60), rng.standard_normal(60), 1e-3
    guess = None if factor is None else factor * rng.standard_normal(60)
    solver = ig.NormalEquations(ig.CG(rtol=1e-6), shift=shift)
    x = ig.solve(ig.DenseOperator(A), b, solver=solver, x0=guess, on_failure="return").x
    assert np.linalg.norm(A.T @ (b - A @ x) - shift * x) <= 1.01e-6 * np.linalg.norm(A.T @ b)


@pytest.mark.parametrize("x0", [None, [3.0, 2.0], [0.0, 1e-3]])
def test_a_shifted_system_without_a_right_hand_side_has_the_answer_zero(x0):
    """A^H b = 0 was taken for a first guess that is the answer."""
    A, b = ig.DenseOperator(np.diag([1.0, 0.0])), np.array([0.0, 1.0])
    guess = None if x0 is None else np.array(x0)
    solution = ig.solve(A, b, solver=ig.NormalEquations(ig.CG(), shift=0.5), x0=guess, on_failure="return")
    assert np.abs(solution.x).max() <= 1e-12


def test_a_system_without_a_solution_is_said_to_have_none_also_by_a_fixed_budget():
    """The other side: LEAST_SQUARES at a residual that is no rounding is news, whatever the budget."""
    A, b = ig.DenseOperator(np.diag([1.0, 2.0, 0.0])), np.array([1.0, 1.0, 1.0])
    for solver in (ig.LSMR(rtol=0, max_iters=30), ig.NormalEquations(ig.CG(rtol=0, max_iters=30))):
        assert ig.solve(A, b, solver=solver, on_failure="return").status is Status.LEAST_SQUARES
    indefinite = ig.DenseOperator(np.diag([1.0, -1.0, 2.0]), symmetric=True)
    solution = ig.solve(indefinite, b, solver=ig.CG(rtol=0, max_iters=30), on_failure="return")
    assert solution.status is Status.INDEFINITE
