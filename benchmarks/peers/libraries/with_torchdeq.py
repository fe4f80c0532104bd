"""torchdeq: get_deq with its defaults, and with the implicit gradient asked for (ift=True, hook_ift=True)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torchdeq import get_deq

from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]

Make = Callable[..., Any]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return the backward passes that fit the problem."""
    if isinstance(problem, LinearProblem):
        if "adjoint" not in problem.families or problem.fault is not None or problem.x0 is not None:
            return {}
        if problem.max_iters is not None and problem.max_iters < 100:
            return {}  # cases about a budget: see the gradients
        cap = {} if problem.max_iters is None else {"b_max_iter": problem.max_iters}
        solvers = ("fixed_point_iter", "anderson", "broyden")
        return {
            f"ift, {name}": partial(_adjoint, problem, partial(get_deq, ift=True, b_solver=name, **cap))
            for name in solvers
        }
    kinds = {"tanh": _tanh, "twice": _tanh, "second": _second, "affine": _affine}
    if not isinstance(problem, GradientProblem) or problem.kind not in kinds:
        return {}
    run = kinds[problem.kind]
    forward = {"f_tol": 1e-10, "f_max_iter": 5000} if problem.exact_forward else {}
    forward |= {} if problem.forward_steps is None else {"f_max_iter": problem.forward_steps}
    if problem.backward_steps is not None:
        return {
            f"ift, {name}": partial(
                run, problem, partial(get_deq, ift=True, b_solver=name, b_max_iter=problem.backward_steps, **forward)
            )
            for name in ("fixed_point_iter", "anderson", "broyden")
        }
    makers = {"ift": partial(get_deq, ift=True, **forward), "hook_ift": partial(get_deq, hook_ift=True, **forward)}
    if not problem.exact_forward and problem.kind == "tanh":
        makers = {
            "defaults": partial(get_deq, **forward)
        } | makers  # elsewhere the implicit gradient is what is asked for
    return {name: partial(run, problem, make) for name, make in makers.items()}


def _adjoint(problem: LinearProblem, make: Make) -> Answer:
    """The gradient of the cotangent ``b`` through ``z = J z + x``, ``J = (I - A)^T``: it solves ``A u = b``."""
    A = torch.tensor(problem.matrix)
    J = torch.eye(problem.size, dtype=A.dtype) - A.T
    x = torch.zeros(1, problem.size, dtype=A.dtype, requires_grad=True)
    z, _ = make()(lambda z: z @ J.T + x, torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(z[-1], x, torch.tensor(problem.rhs)[None])
    return Answer(gradient[0].numpy(), None, "no flag")


def _answer(value: Any, *infos: Any, tol: float) -> Answer:
    """The info of the forward pass comes back unasked: a residual above the tolerance is a report."""
    residual = max(float(info["abs_lowest"].max()) for info in infos)
    met = residual <= tol
    words = "forward met its tolerance, no flag backward" if met else f"info: residual {residual:.1e} > f_tol {tol:.0e}"
    return Answer(value.detach().numpy(), None if met else False, words)


def _tanh(problem: GradientProblem, make: Make) -> Answer:
    W = torch.tensor(problem.W, requires_grad=True)
    rows = torch.tensor(problem.x).reshape(-1, 1, W.shape[0])
    deq = make()
    runs = [deq(lambda z, x=x: torch.tanh(z @ W.T + x), torch.zeros_like(x)) for x in rows]
    loss = problem.scale * sum(z[-1].sum() for z, _ in runs)
    (gradient,) = torch.autograd.grad(loss, W)
    return _answer(gradient, *(info for _, info in runs), tol=deq.f_tol)


def _second(problem: GradientProblem, make: Make) -> Answer:
    b = torch.full((1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    deq = make(b_tol=1e-10)
    z, info = deq(lambda z: torch.tanh(0.5 * z + b), torch.zeros(1, 1, dtype=torch.float64))
    (first,) = torch.autograd.grad(z[-1].sum(), b, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), b)
    return _answer(second[0, 0], info, tol=deq.f_tol)


def _affine(problem: GradientProblem, make: Make) -> Answer:
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    deq = make()
    z, info = deq(lambda z: problem.slope * z + x, torch.zeros((), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(z[-1], x)
    return _answer(gradient, info, tol=deq.f_tol)
