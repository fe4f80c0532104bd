"""Our own solvers, layers and spectra; torch is imported where a gradient is asked for, and not before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import implicitgrad as ig
from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.operators import product_of
from benchmarks.peers.cases.spectrum import SpectralProblem
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]

Methods = dict[str, Callable[[], Answer]]


def methods(problem: Any) -> Methods:
    """Return every solver that fits the problem."""
    if isinstance(problem, LinearProblem):
        return _solvers(problem)
    if isinstance(problem, SpectralProblem):
        return _spectra(problem)
    from benchmarks.peers.libraries.our_layers import layers

    assert isinstance(problem, GradientProblem)
    return layers(problem)


def _solvers(problem: LinearProblem) -> Methods:
    steps = {} if problem.max_iters is None else {"max_iters": problem.max_iters}
    settings = {"rtol": problem.rtol, **steps}
    restart = {} if problem.restart is None else {"restart": problem.restart}
    families = {
        "cg": {"CG": ig.CG(**settings)},
        "minres": {"MINRES": ig.MINRES(**settings)},
        "gmres": {"GMRES": ig.GMRES(**settings, **restart)},
        "bicgstab": {"BiCGSTAB": ig.BiCGSTAB(**settings)},
        "lsmr": {"LSMR": ig.LSMR(**settings)},
        "normal cg": {"NormalEquations": ig.NormalEquations(ig.CG(**settings))},
        "neumann": {"Neumann": ig.Neumann(**settings), "Richardson": ig.Richardson(**settings)},
        "dense": {} if steps else {"Dense": ig.Dense(rtol=problem.rtol)},
        "default": {"default": ig.Auto(**settings)},
    }
    found: Methods = {}
    for family, solvers in families.items():
        if family in problem.families:
            found.update({name: partial(_solve, problem, solver) for name, solver in solvers.items()})
    return found


def _solve(problem: LinearProblem, solver: ig.Solver) -> Answer:
    # The matrix is that of A, so its JVP is A u; a faulty A has a true transpose.
    operator = ig.VJPOperator(
        lambda u: problem.matrix.T @ u,
        problem.size,
        jvp=product_of(problem, problem.matrix),
        symmetric=problem.symmetric,
        batched=False,
    )
    solution = ig.solve(operator, problem.rhs.copy(), solver=solver, x0=problem.x0, on_failure="return")
    return Answer(solution.x, bool(solution.converged), f"{solution.status.name}, {_products(solution)}")


def _products(solution: ig.Solution) -> str:
    count = solution.num_matvecs + solution.num_rmatvecs
    return f"{count} product{'' if count == 1 else 's'}"


def _spectra(problem: SpectralProblem) -> Methods:
    if problem.singular:
        return {"smallest_singular_value": partial(_extreme, problem, ig.smallest_singular_value)}
    return {"smallest_eigenvalue": partial(_extreme, problem, ig.smallest_eigenvalue)}


def _extreme(problem: SpectralProblem, extreme: Callable[..., ig.SpectralResult]) -> Answer:
    operator = ig.DenseOperator(problem.matrix, symmetric=not problem.singular)
    result = extreme(operator, start=problem.start, on_failure="return")
    return Answer(np.asarray(result.value), bool(result.converged), f"{result.status.name}, {result.num_iters} steps")
