"""Our own gradients through fixed points, in torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import implicitgrad as ig
import implicitgrad.torch as igt
from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.verdict import Answer

__all__ = ["layers"]


def layers(problem: GradientProblem) -> dict[str, Callable[[], Answer]]:
    """Return the adjoints that fit the problem."""
    if problem.kind == "lambda_min":
        return {f"lambda_min, {m}": partial(_lambda_min, m) for m in ("hellmann-feynman", "adjoint", "unrolled")}
    run = {"tanh": _tanh, "twice": _tanh, "second": _second, "affine": _affine, "coupled": _coupled}[problem.kind]
    if problem.backward_steps is None:
        return {"default": partial(run, problem, None)}
    cap = problem.backward_steps
    adjoints = (ig.GMRES(max_iters=cap), ig.BiCGSTAB(max_iters=cap), ig.Neumann(max_iters=cap),
                ig.NormalEquations(ig.CG(max_iters=cap)), ig.LSMR(max_iters=cap))  # fmt: skip
    return {type(adjoint).__name__: partial(run, problem, adjoint) for adjoint in adjoints}


def _solved(problem: GradientProblem, adjoint: ig.Solver | None, f: Any, z0: Any, *args: Any) -> tuple[Any, igt.Report]:
    report = igt.Report()
    solver = None if problem.forward_steps is None else igt.Anderson(max_iters=problem.forward_steps)
    if solver is None and problem.exact_forward:
        solver = igt.Anderson(rtol=1e-12)
    return igt.fixed_point(f, z0, *args, solver=solver, adjoint=adjoint, on_failure="return", report=report), report


def _answer(value: Any, *reports: igt.Report) -> Answer:
    statuses = [report.status for report in reports]
    return Answer(
        value.detach().numpy(), all(s.is_good for s in statuses), ", ".join(dict.fromkeys(s.name for s in statuses))
    )


def _cell(z: Any, W: Any, x: Any) -> Any:
    return torch.tanh(W @ z + x)


def _tanh(problem: GradientProblem, adjoint: ig.Solver | None) -> Answer:
    W = torch.tensor(problem.W, requires_grad=True)
    rows = torch.tensor(problem.x).reshape(-1, W.shape[0])
    solved = [_solved(problem, adjoint, _cell, torch.zeros_like(x), W, x) for x in rows]
    loss = problem.scale * sum(z.sum() for z, _ in solved)
    (gradient,) = torch.autograd.grad(loss, W)
    return _answer(gradient, *(report for _, report in solved))


def _second(problem: GradientProblem, adjoint: ig.Solver | None) -> Answer:
    b = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z, report = _solved(problem, adjoint, lambda z, b: torch.tanh(0.5 * z + b), torch.zeros_like(b), b)
    (first,) = torch.autograd.grad(z, b, create_graph=True)
    (second,) = torch.autograd.grad(first, b)
    return _answer(second, report)


def _affine(problem: GradientProblem, adjoint: ig.Solver | None) -> Answer:
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    z, report = _solved(problem, adjoint, lambda z, x: problem.slope * z + x, torch.zeros_like(x), x)
    return _answer(torch.autograd.grad(z, x)[0], report)


def _coupled(problem: GradientProblem, adjoint: ig.Solver | None) -> Answer:
    M, g, k = torch.tensor(problem.W), torch.tensor(problem.g), problem.split
    x = torch.tensor(problem.x, requires_grad=True)

    def f(state: Any, x: Any) -> Any:
        new = M @ torch.cat(state) + x
        return new[:k], new[k:]

    z, report = _solved(problem, adjoint, f, (torch.zeros_like(x[:k]), torch.zeros_like(x[k:])), x)
    return _answer(torch.autograd.grad(torch.cat(z) @ g, x)[0], report)


def _lambda_min(method: str) -> Answer:
    """``f(z) = (1 - theta) z``: the eigenvalue is ``theta^2``, and half its derivative at 1 is that of theta."""
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = igt.lambda_min(lambda z, t: (1 - t) * z, torch.zeros(6, dtype=torch.float64), theta, method=method)
    return Answer(torch.autograd.grad(value, theta)[0].numpy() / 2, True, "no warning")
