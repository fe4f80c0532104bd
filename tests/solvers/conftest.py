"""The table of solvers. One new row, and every shared property runs for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.testing import KINDS, Problem, make_problem


def well_posed(problem: Problem) -> bool:
    """Whether the default bound can be met: the rounding of one product at x* is a tenth of it."""
    if problem.singular or not problem.rhs.any():
        return False
    rtol = problem.eps**0.5 / 4
    if problem.condition * rtol >= 1:  # first: the oracle has no answer where LAPACK meets a pivot of zero
        return False
    floor = problem.rounding(problem.x_exact)
    return bool(10 * floor <= rtol * np.linalg.norm(problem.rhs))


def contracts(problem: Problem) -> bool:
    """Whether the powers of I - A die out before their rounding has reached the bound."""
    if not (problem.contractive and well_posed(problem)):
        return False
    power, largest = np.eye(problem.size), 1.0
    for _ in range(200):
        power = power @ (np.eye(problem.size) - problem.dense)
        largest = max(largest, float(np.linalg.norm(power)))
    return largest * problem.eps < 0.1 * problem.eps**0.5 / 4


def definite(problem: Problem) -> bool:
    return problem.definite and well_posed(problem)


def symmetric(problem: Problem) -> bool:
    return problem.symmetric and well_posed(problem)


def squarable(problem: Problem) -> bool:
    """Whether the condition number survives being squared."""
    return well_posed(problem) and problem.condition**2 * problem.eps < 0.1


def accretive(problem: Problem) -> bool:
    """Whether the field of values stays away from zero: restarts and BiCGSTAB have a guarantee, or the habit, there."""
    hermitian = (problem.dense + np.swapaxes(problem.dense, -1, -2).conj()) / 2
    return well_posed(problem) and float(np.linalg.eigvalsh(hermitian).min()) > 0.3 * np.linalg.norm(problem.dense, 2)


@dataclass(frozen=True)
class Row:
    """A solver, where it must converge, and what it needs."""

    solver: ig.Solver
    must_converge: Callable[[Problem], bool]
    needs_adjoint: bool = False
    has_budget: bool = True  # whether rtol = atol = 0 with max_iters is a fixed budget
    id: str = ""

    @property
    def name(self) -> str:
        return self.id or type(self.solver).__name__

    def set(self, **settings: object) -> ig.Solver:
        """Return the solver with other settings; those of NormalEquations stand in its inner CG."""
        if isinstance(self.solver, ig.NormalEquations):
            return ig.NormalEquations(replace(self.solver.inner, **settings))
        return replace(self.solver, **settings)


SOLVERS = [
    Row(ig.Neumann(), contracts),
    Row(ig.Richardson(), contracts),
    Row(ig.CG(), definite),
    Row(ig.NormalEquations(), squarable, needs_adjoint=True),
    Row(ig.MINRES(), symmetric),
    Row(ig.GMRES(), well_posed),
    Row(ig.GMRES(restart=5), accretive, id="GMRES(5)"),
    Row(ig.BiCGSTAB(), accretive),
    Row(ig.LSMR(), squarable, needs_adjoint=True),
    Row(ig.Dense(), well_posed, has_budget=False),
    Row(ig.Auto(), well_posed, has_budget=False),
]


@pytest.fixture(params=SOLVERS, ids=lambda row: row.name)
def row(request):
    return request.param


@pytest.fixture(params=[row for row in SOLVERS if row.has_budget], ids=lambda row: row.name)
def budget_row(request):
    return request.param


@pytest.fixture(params=["float32", "float64", "complex64", "complex128"])
def dtype(request):
    return request.param


cached_problem = cache(make_problem)  # every solver sees the same systems; nothing of a problem is ever written to


@pytest.fixture
def systems():
    """Return a generator of ``rounds`` systems of each kind, of the kinds asked for, with their sizes and scales."""

    def generate(dtype, rounds, kinds=KINDS, exponents=True, rhs=("random", "random", "one zero", "zero"), **more):
        for turn in range(rounds):
            for number, kind in enumerate(kinds):
                rng = np.random.default_rng([turn, number])
                yield cached_problem(
                    kind,
                    size=int(rng.choice([1, 2, 3, 5, 8, 13, 25, 40])),
                    seed=1000 * turn + number,
                    dtype=dtype,
                    exponent=int(rng.integers(-60, 61)) if exponents else 0,
                    rhs=str(rng.choice(rhs)),
                    **more,
                )

    return generate
