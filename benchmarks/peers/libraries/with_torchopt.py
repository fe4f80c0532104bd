"""TorchOpt: its linear solvers, which have no flag, and gradients by diff.implicit.custom_root."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchopt

from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.operators import product_of
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return the solvers that fit the problem."""
    if isinstance(problem, LinearProblem):
        families = {"cg": "solve_cg", "normal cg": "solve_normal_cg", "dense": "solve_inv"}
        names = [name for family, name in families.items() if family in problem.families]
        if problem.fault in ("nan", "dropout", "writes"):
            names = [name for name in names if name == "solve_cg"]  # the others take the product apart by functorch
        return {name: partial(_solve, problem, name) for name in names}
    kinds = {"tanh": _tanh, "twice": _tanh, "second": _second, "affine": _affine, "coupled": _coupled}
    if not isinstance(problem, GradientProblem) or problem.kind not in kinds or problem.forward_steps is not None:
        return {}  # it has no forward solver of its own to be stopped early
    names = ["solve_normal_cg", *(["solve_inv"] if problem.backward_steps is None else [])]
    return {f"custom_root, {name}": partial(kinds[problem.kind], problem, name) for name in names}


def _solve(problem: LinearProblem, name: str) -> Answer:
    settings: dict[str, Any] = {}
    if name != "solve_inv":
        settings = (
            {"rtol": problem.rtol}
            if problem.max_iters is None
            else {"rtol": problem.rtol, "maxiter": problem.max_iters}
        )
        settings |= {} if problem.x0 is None else {"init": torch.tensor(problem.x0)}
    solve = getattr(torchopt.linear_solve, name)(**settings)
    x = solve(product_of(problem, torch.tensor(problem.matrix)), torch.tensor(problem.rhs))
    return Answer(x.detach().numpy(), None, "no flag")


def _root(problem: GradientProblem, name: str, f: Any, z0: Any, argnums: int) -> Any:
    """Return the fixed point of ``f(z, ...)`` as a function of its arguments, found by plain iteration to 1e-12."""
    cap = {} if problem.backward_steps is None else {"maxiter": problem.backward_steps}
    solver = getattr(torchopt.linear_solve, name)(**cap)
    flat = (lambda z: z) if isinstance(z0, torch.Tensor) else torch.cat

    def residual(z, *args):
        return _minus(f(z, *args), z)

    @torchopt.diff.implicit.custom_root(residual, argnums=argnums, solve=solver)
    def solve(z: Any, *args: Any) -> Any:
        with torch.no_grad():
            for _ in range(5000):
                new = f(z, *args)
                if torch.linalg.vector_norm(flat(new) - flat(z)) <= 1e-12 * torch.linalg.vector_norm(flat(new)):
                    break
                z = new
        return new

    return solve


def _minus(a: Any, b: Any) -> Any:
    return a - b if isinstance(a, torch.Tensor) else tuple(x - y for x, y in zip(a, b, strict=True))


def _answer(value: Any) -> Answer:
    return Answer(value.detach().numpy(), None, "no flag")


def _tanh(problem: GradientProblem, name: str) -> Answer:
    W = torch.tensor(problem.W, requires_grad=True)
    rows = torch.tensor(problem.x).reshape(-1, W.shape[0])
    zeros = torch.zeros_like(rows[0])
    solve = _root(problem, name, lambda z, W, x: torch.tanh(W @ z + x), zeros, argnums=1)
    loss = problem.scale * sum(solve(zeros, W, x).sum() for x in rows)
    return _answer(torch.autograd.grad(loss, W)[0])


def _second(problem: GradientProblem, name: str) -> Answer:
    b, zero = torch.tensor([0.3], dtype=torch.float64, requires_grad=True), torch.zeros(1, dtype=torch.float64)
    solve = _root(problem, name, lambda z, b: torch.tanh(0.5 * z + b), zero, argnums=1)
    (first,) = torch.autograd.grad(solve(zero, b).sum(), b, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), b)
    return _answer(second[0])


def _affine(problem: GradientProblem, name: str) -> Answer:
    shape = (1,) if problem.slope > 1 else ()  # the 0-d tensor is a case of its own
    x, zero = torch.ones(shape, dtype=torch.float64, requires_grad=True), torch.zeros(shape, dtype=torch.float64)
    start = zero if problem.slope < 1 else zero - 1 / (problem.slope - 1)  # its user brings the fixed point
    solve = _root(problem, name, lambda z, x: problem.slope * z + x, zero, argnums=1)
    return _answer(torch.autograd.grad(solve(start, x).sum(), x)[0].reshape(()))


def _coupled(problem: GradientProblem, name: str) -> Answer:
    M, g, k = torch.tensor(problem.W), torch.tensor(problem.g), problem.split
    x = torch.tensor(problem.x, requires_grad=True)

    def f(state: Any, x: Any) -> Any:
        new = M @ torch.cat(state) + x
        return new[:k], new[k:]

    zeros = (torch.zeros_like(x[:k]).detach(), torch.zeros_like(x[k:]).detach())
    z = _root(problem, name, f, zeros, argnums=1)(zeros, x)
    return _answer(torch.autograd.grad(torch.cat(z) @ g, x)[0])
