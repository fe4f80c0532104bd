"""matfree: its LSMR, its Lanczos and Golub-Kahan decompositions, and the gradient through Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp, eig, lstsq

from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.spectrum import SpectralProblem
from benchmarks.peers.libraries.precision import use_precision_of
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return what fits the problem; operators with a state cannot be traced."""
    if isinstance(problem, LinearProblem):
        fits = "lsmr" in problem.families and problem.fault is None
        return {"lsmr": partial(_lsmr, problem)} if fits else {}
    if isinstance(problem, SpectralProblem):
        if problem.singular:
            return {"svd_partial(bidiag)": partial(_smallest, problem, eig.svd_partial, decomp.bidiag)}
        return {"eigh_partial(tridiag_sym)": partial(_smallest, problem, eig.eigh_partial, decomp.tridiag_sym)}
    if isinstance(problem, GradientProblem) and problem.kind == "lambda_min":
        return {"grad of eigh_partial": _gradient}
    return {}


def _lsmr(problem: LinearProblem) -> Answer:
    use_precision_of(problem)
    limit = {} if problem.max_iters is None else {"maxiter": problem.max_iters}
    solve = lstsq.lsmr(atol=problem.rtol, btol=problem.rtol, **limit)
    matrix = jnp.asarray(problem.matrix).T
    start = {} if problem.x0 is None else {"x0": jnp.asarray(problem.x0)}
    x, stats = solve(lambda u: matrix @ u, jnp.asarray(problem.rhs), **start)  # it asks for the transposed product
    istop = int(stats["istop"])
    return Answer(
        np.asarray(x), bool(stats["success"]) and istop != 2, f"istop = {istop}, success = {bool(stats['success'])}"
    )


def _start(problem: SpectralProblem) -> Any:
    n = len(problem.matrix)
    return jnp.asarray(np.random.default_rng(0).standard_normal(n) if problem.start is None else problem.start)


def _smallest(problem: SpectralProblem, partial_of: Callable[..., Any], decomposition: Callable[..., Any]) -> Answer:
    use_precision_of(problem)
    matrix = jnp.asarray(problem.matrix)
    result = partial_of(decomposition(problem.steps))(lambda v: matrix @ v, _start(problem))
    values = result[1] if problem.singular else result[0]
    return Answer(np.asarray(jnp.min(values)), None, "no flag")


def _gradient() -> Answer:
    use_precision_of(None)
    start = jnp.asarray(np.random.default_rng(0).standard_normal(6))

    def value(theta):
        return jnp.min(eig.eigh_partial(decomp.tridiag_sym(6))(lambda v, t: t * v, start, theta)[0])

    return Answer(np.asarray(jax.grad(value)(1.0)), None, "no flag")
