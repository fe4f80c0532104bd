"""jaxopt: its linear solvers (jax.scipy.sparse.linalg's, no flag) and the default adjoint of its fixed points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxopt import linear_solve

from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.operators import product_of
from benchmarks.peers.libraries.precision import use_precision_of
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]

FAMILIES = {
    "cg": "solve_cg",
    "gmres": "solve_gmres",
    "bicgstab": "solve_bicgstab",
    "normal cg": "solve_normal_cg",
    "dense": "solve_lu",
}


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return every solver that fits the problem; operators with a state cannot be traced."""
    if isinstance(problem, LinearProblem) and problem.fault in (None, "affine"):
        found = {
            name: partial(_solve, problem, name) for family, name in FAMILIES.items() if family in problem.families
        }
        if "adjoint" in problem.families and problem.fault is None and problem.x0 is None and problem.max_iters is None:
            found["FixedPointIteration's gradient"] = partial(_adjoint, problem)
        return found
    if isinstance(problem, GradientProblem):
        use_precision_of(problem)
        return _layers(problem)
    return {}


def _solve(problem: LinearProblem, name: str) -> Answer:
    use_precision_of(problem)
    matrix = jnp.asarray(problem.matrix)
    settings: dict[str, Any] = {}
    if name != "solve_lu":
        settings = (
            {"tol": problem.rtol} if problem.max_iters is None else {"tol": problem.rtol, "maxiter": problem.max_iters}
        )
        if name == "solve_gmres":
            settings["restart"] = problem.restart or max(1, min(problem.size, 20, problem.max_iters or 20))
            if problem.max_iters is not None:
                settings["maxiter"] = -(-problem.max_iters // settings["restart"])
        settings["init"] = None if problem.x0 is None else jnp.asarray(problem.x0)
    x = getattr(linear_solve, name)(product_of(problem, matrix), jnp.asarray(problem.rhs), **settings)
    return Answer(np.asarray(x), None, "no flag")


def _adjoint(problem: LinearProblem) -> Answer:
    """The gradient of the cotangent ``b`` through ``z = J z + x``, ``J = (I - A)^T``: it solves ``A u = b``."""
    use_precision_of(problem)
    J = jnp.eye(problem.size, dtype=problem.rhs.dtype) - jnp.asarray(problem.matrix).T
    solver = jaxopt.FixedPointIteration(lambda z, x: J @ z + x)
    zeros = jnp.zeros_like(problem.rhs)
    _, pull_back = jax.vjp(lambda x: solver.run(zeros, x).params, zeros)
    return Answer(np.asarray(pull_back(jnp.asarray(problem.rhs))[0]), None, "no flag")


def _layers(problem: GradientProblem) -> dict[str, Callable[[], Answer]]:
    kinds = {"tanh": _tanh, "twice": _tanh, "second": _second, "affine": _affine, "coupled": _coupled}
    return {"FixedPointIteration": partial(kinds[problem.kind], problem)} if problem.kind in kinds else {}


def _solver(problem: GradientProblem, f: Any) -> Any:
    settings: dict[str, Any] = {"tol": 1e-10, "maxiter": 5000} if problem.exact_forward else {}
    if problem.forward_steps is not None:
        settings["maxiter"] = problem.forward_steps
    if problem.backward_steps is not None:
        settings["implicit_diff_solve"] = partial(linear_solve.solve_normal_cg, maxiter=problem.backward_steps)
    return jaxopt.FixedPointIteration(f, **settings)


def _answer(value: Any, solver: Any, *states: Any) -> Answer:
    """The state carries the error of the forward pass, unasked, which is a report where it is above the tolerance."""
    errors = [float(state.error) for state in states]
    met = all(error <= solver.tol for error in errors)
    words = "" if met else f"state.error = {max(errors):.1e} > tol = {solver.tol:.0e}"
    return Answer(np.asarray(value), None if met else False, words or "forward met its tolerance, no flag backward")


def _tanh(problem: GradientProblem) -> Answer:
    solver = _solver(problem, lambda z, W, x: jnp.tanh(W @ z + x))
    rows = jnp.asarray(problem.x).reshape(-1, problem.W.shape[0])

    def loss(W: Any) -> Any:
        runs = [solver.run(jnp.zeros_like(x), W, x) for x in rows]
        return problem.scale * sum(run.params.sum() for run in runs), [run.state for run in runs]

    gradient, states = jax.grad(loss, has_aux=True)(jnp.asarray(problem.W))
    return _answer(gradient, solver, *states)


def _second(problem: GradientProblem) -> Answer:
    solver = _solver(problem, lambda z, b: jnp.tanh(0.5 * z + b))

    def run(b: Any) -> Any:
        return solver.run(jnp.asarray(0.0), b)

    b = jnp.asarray(0.3)
    return _answer(jax.grad(jax.grad(lambda b: run(b).params))(b), solver, run(b).state)


def _affine(problem: GradientProblem) -> Answer:
    solver = _solver(problem, lambda z, x: problem.slope * z + x)

    def run(x: Any) -> Any:
        return solver.run(jnp.asarray(0.0), x)

    x = jnp.asarray(1.0)
    return _answer(jax.grad(lambda x: run(x).params)(x), solver, run(x).state)


def _coupled(problem: GradientProblem) -> Answer:
    M, g, k = jnp.asarray(problem.W), jnp.asarray(problem.g), problem.split

    def f(state: Any, x: Any) -> Any:
        new = M @ jnp.concatenate(state) + x
        return new[:k], new[k:]

    solver = _solver(problem, f)
    x = jnp.asarray(problem.x)

    def run(x: Any) -> Any:
        return solver.run((jnp.zeros(k), jnp.zeros(len(x) - k)), x)

    return _answer(jax.grad(lambda x: jnp.concatenate(run(x).params) @ g)(x), solver, run(x).state)
