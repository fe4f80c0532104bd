"""Optimistix: fixed points by FixedPointIteration, with the default adjoint and with NormalCG behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.libraries.precision import use_precision_of
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return the adjoints that fit the problem."""
    if isinstance(problem, LinearProblem):
        if (
            "adjoint" not in problem.families
            or problem.fault
            or problem.x0 is not None
            or problem.max_iters is not None
        ):
            return {}
        iterative = {"Normal(CG)": lx.Normal(lx.CG(problem.rtol, 0.0)), "GMRES": lx.GMRES(problem.rtol, 0.0)}
        return {
            f"ImplicitAdjoint({name})": partial(_adjoint, problem, solver) for name, solver in iterative.items()
        } | {"ImplicitAdjoint()": partial(_adjoint, problem, None)}
    if isinstance(problem, GradientProblem):
        use_precision_of(problem)
    kinds = {"tanh": _tanh, "twice": _tanh, "second": _second, "affine": _affine, "coupled": _coupled}
    if not isinstance(problem, GradientProblem) or problem.kind not in kinds:
        return {}
    run = kinds[problem.kind]
    if problem.backward_steps is None:
        return {"ImplicitAdjoint()": partial(run, problem, None)}
    cap = problem.backward_steps
    solvers = {"Normal(CG)": lx.Normal(lx.CG(1e-8, 0.0, max_steps=cap)), "GMRES": lx.GMRES(1e-8, 0.0, max_steps=cap)}
    return {f"ImplicitAdjoint({name})": partial(run, problem, solver) for name, solver in solvers.items()}


def _implicit(solver: Any) -> Any:
    return optx.ImplicitAdjoint() if solver is None else optx.ImplicitAdjoint(linear_solver=solver)


def _adjoint(problem: LinearProblem, solver: Any) -> Answer:
    """The gradient of the cotangent ``b`` through ``z = J z + x``, ``J = (I - A)^T``: it solves ``A u = b``."""
    use_precision_of(problem)
    J = jnp.eye(problem.size, dtype=problem.rhs.dtype) - jnp.asarray(problem.matrix).T
    zeros = jnp.zeros_like(problem.rhs)
    forward, adjoint = optx.FixedPointIteration(1e-6, 1e-6), _implicit(solver)

    def run(x: Any) -> Any:
        return optx.fixed_point(lambda z, x: J @ z + x, forward, zeros, x, adjoint=adjoint).value

    _, pull_back = jax.vjp(run, zeros)
    return Answer(np.asarray(pull_back(jnp.asarray(problem.rhs))[0]), True, "returned, which it does on success only")


def _solve(problem: GradientProblem, solver: Any, f: Any, z0: Any, args: Any) -> Any:
    forward = optx.FixedPointIteration(1e-10, 1e-10) if problem.exact_forward else optx.FixedPointIteration(1e-3, 1e-6)
    steps = 5000 if problem.forward_steps is None else problem.forward_steps
    return optx.fixed_point(f, forward, z0, args, adjoint=_implicit(solver), max_steps=steps, throw=False)


def _answer(value: Any, *results: Any) -> Answer:
    good = all(bool(result == optx.RESULTS.successful) for result in results)
    worst = next((r for r in results if not bool(r == optx.RESULTS.successful)), results[0])
    return Answer(
        np.asarray(value),
        good,
        "successful" if good else "forward: " + " ".join(str(optx.RESULTS[worst]).partition(".")[0].split()),
    )


def _tanh(problem: GradientProblem, solver: Any) -> Answer:
    rows = jnp.asarray(problem.x).reshape(-1, problem.W.shape[0])

    def loss(W: Any) -> Any:
        runs = [
            _solve(problem, solver, lambda z, a: jnp.tanh(a[0] @ z + a[1]), jnp.zeros_like(x), (W, x)) for x in rows
        ]
        return problem.scale * sum(run.value.sum() for run in runs), [run.result for run in runs]

    gradient, results = jax.grad(loss, has_aux=True)(jnp.asarray(problem.W))
    return _answer(gradient, *results)


def _second(problem: GradientProblem, solver: Any) -> Answer:
    def run(b: Any) -> Any:
        return _solve(problem, solver, lambda z, b: jnp.tanh(0.5 * z + b), jnp.asarray(0.0), b)

    b = jnp.asarray(0.3)
    return _answer(jax.grad(jax.grad(lambda b: run(b).value))(b), run(b).result)


def _affine(problem: GradientProblem, solver: Any) -> Answer:
    def run(x: Any) -> Any:
        return _solve(problem, solver, lambda z, x: problem.slope * z + x, jnp.asarray(0.0), x)

    x = jnp.asarray(1.0)
    return _answer(jax.grad(lambda x: run(x).value)(x), run(x).result)


def _coupled(problem: GradientProblem, solver: Any) -> Answer:
    M, g, k = jnp.asarray(problem.W), jnp.asarray(problem.g), problem.split

    def f(state: Any, x: Any) -> Any:
        new = M @ jnp.concatenate(state) + x
        return new[:k], new[k:]

    x = jnp.asarray(problem.x)

    def run(x: Any) -> Any:
        return _solve(problem, solver, f, (jnp.zeros(k), jnp.zeros(len(x) - k)), x)

    return _answer(jax.grad(lambda x: jnp.concatenate(run(x).value) @ g)(x), run(x).result)
