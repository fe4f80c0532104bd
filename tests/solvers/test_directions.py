"""Propositions of single steps, seen from outside: by the vectors that the operator is applied to."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.solvers.system import System
from implicitgrad.testing import make_problem


class Watched(ig.LinearOperator):
    """A matrix that remembers what it was applied to, and what came of it."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.seen = []

    def apply(self, x):
        y = self.matrix @ x
        self.seen.append((x.copy(), y))
        return y


def test_cg_knows_the_largest_rayleigh_quotient_of_its_directions():
    """theta = max p^H A p / p^H p over the directions p: what the test of INDEFINITE and the floor are relative to."""
    values = np.linspace(1.0, 10.0, 12)
    operator, b = Watched(np.diag(values)), values**-4.0  # little of the large ones: each direction has more of them
    system = System(operator, b, 0.0, 0.0, 6)
    steps = ig.CG().iterations(system, None, b.copy())
    next(steps)
    for _ in range(6):
        next(steps)
        quotients = [p @ q / (p @ p) for p, q in operator.seen]
        assert max(quotients) > 1.01 * max(quotients[:-1], default=0.0)
        assert system.operator_norm == pytest.approx(max(quotients), rel=1e-8)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_second_half_of_a_step_of_bicgstab_makes_the_residual_smallest(dtype):
    """norm(s - omega t) is the least over omega: norm(s)^2 - |t^H s|^2 / norm(t)^2, with t = A s."""
    problem = make_problem("contraction", 20, seed=2, dtype=dtype)
    operator = Watched(problem.dense)
    solution = ig.BiCGSTAB(rtol=0.0, max_iters=4).solve(operator, problem.rhs)
    assert len(operator.seen) == 8
    for told, (s, t) in zip(solution.history[1:], operator.seen[1::2], strict=True):
        least = np.linalg.norm(s) ** 2 - abs(np.vdot(t, s)) ** 2 / np.linalg.norm(t) ** 2
        assert told**2 == pytest.approx(least, rel=1e-5)


def test_the_krylov_basis_of_gmres_is_orthonormal_to_rounding():
    """The vectors that A is applied to: a few eps off after 60 steps at condition 1e6, which one pass does not keep."""
    operator = Watched(np.diag(np.logspace(-6, 0, 60)))
    ig.GMRES(rtol=0.0, max_iters=60).solve(operator, np.ones(60))
    rows = np.array([q for q, _ in operator.seen])
    assert len(rows) == 60
    defect = np.abs(rows @ rows.T - np.eye(60)).max()
    assert defect <= 32 * np.finfo(float).eps
