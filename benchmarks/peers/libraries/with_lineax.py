"""lineax: its iterative solvers with throw=False, so that the result code is what is judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.operators import product_of
from benchmarks.peers.libraries.precision import use_precision_of
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return every solver that fits the problem; operators with a state cannot be traced."""
    if not isinstance(problem, LinearProblem) or problem.fault not in (None, "affine"):
        return {}
    settings = {"rtol": problem.rtol, "atol": 0.0, "max_steps": problem.max_iters}
    gmres = settings | {"restart": problem.restart or max(1, min(20, problem.max_iters or 20))}
    families = {
        "cg": ("CG", lambda: lx.CG(**settings)),
        "gmres": ("GMRES", lambda: lx.GMRES(**gmres)),
        "bicgstab": ("BiCGStab", lambda: lx.BiCGStab(**settings)),
        "lsmr": ("LSMR", lambda: lx.LSMR(**settings)),
        "normal cg": ("Normal(CG)", lambda: lx.Normal(lx.CG(**settings))),
        "dense": ("AutoLinearSolver", lambda: lx.AutoLinearSolver(well_posed=True)),
    }
    return {
        name: partial(_solve, problem, make) for family, (name, make) in families.items() if family in problem.families
    }


def _solve(problem: LinearProblem, make: Callable[[], Any]) -> Answer:
    use_precision_of(problem)
    matrix, b = jnp.asarray(problem.matrix), jnp.asarray(problem.rhs)
    tags = lx.positive_semidefinite_tag if problem.symmetric else ()
    if problem.fault is None:
        operator = lx.MatrixLinearOperator(matrix, tags)
    else:
        operator = lx.FunctionLinearOperator(product_of(problem, matrix), jax.ShapeDtypeStruct(b.shape, b.dtype), tags)
    options = {} if problem.x0 is None else {"y0": jnp.asarray(problem.x0)}
    solution = lx.linear_solve(operator, b, make(), options=options, throw=False)
    good = bool(solution.result == lx.RESULTS.successful)
    words = "successful" if good else " ".join(str(lx.RESULTS[solution.result]).partition(".")[0].split())
    steps = solution.stats.get("num_steps")
    return Answer(np.asarray(solution.value), good, words if steps is None else f"{words}, {int(steps)} steps")
