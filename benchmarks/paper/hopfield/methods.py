"""The ways to the gradient that Table A1 compares, each a function that gives a settled state its history.

``K`` is the table's truncation step: TBPTT goes back through the last K of 50 updates, the others take K steps to solve
``(I - J)^T z = g`` at the last state. Used by ``trials.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import implicitgrad as ig
import implicitgrad.torch as igt

from .network import settled, update

__all__ = ["BPTT", "METHODS", "PAPER", "UPDATES", "Pass", "run_method"]

UPDATES = 50  # of the state, in the paper and here
ETA = 1e-5  # the shift of the reference code's normal equations

BPTT = "BPTT"  # in Figure A1 alone
METHODS = ("TBPTT", "RBP", "CG-RBP", "Neumann-RBP", "RBP from zero", "GMRES")
PAPER = {  # successes of 100 trials, Table A1
    "TBPTT": {10: 100, 20: 100, 30: 100},
    "RBP": {10: 1, 20: 4, 30: 99},
    "CG-RBP": {10: 100, 20: 100, 30: 100},
    "Neumann-RBP": {10: 100, 20: 100, 30: 100},
}


@dataclass(frozen=True)
class Pass:
    """A state ``(trials, m, free)`` with its history, the updates it took, and what the backward solve will report."""

    state: torch.Tensor
    updates: int
    report: igt.Report


def run_method(
    name: str,
    truncate: int,
    inner: torch.Tensor,
    sent: torch.Tensor,
    start: Callable[[torch.Size], torch.Tensor],
) -> Pass:
    """Return the state after 50 updates from zero, differentiable as the method says.

    ``start`` draws the uniform numbers that RBP begins with, given their shape.
    """
    report = igt.Report()
    if name in (BPTT, "TBPTT"):
        kept = UPDATES if name == BPTT else min(truncate, UPDATES)
        state, made = settled(inner.detach(), sent.detach(), UPDATES - kept)
        return Pass(igt.tbptt(update, state, inner, sent, steps=kept, truncate=kept), made + kept, report)
    state, made = settled(inner.detach(), sent.detach(), UPDATES)
    shared = {"batch_ndim": 2, "on_failure": "return", "report": report}  # each image of each trial is a system
    if name == "GMRES":
        adjoint = ig.GMRES(max_iters=truncate)
        return Pass(igt.implicit_gradient(update, state, inner, sent, adjoint=adjoint, **shared), made, report)
    rbp = partial(igt.rbp, update, state, inner, sent, steps=0, truncate=truncate, **shared)
    if name == "RBP":
        return Pass(rbp(method="rbp", start=start(state.shape)), made, report)
    if name == "RBP from zero":
        return Pass(rbp(method="rbp"), made, report)
    if name == "CG-RBP":
        return Pass(rbp(method="cg", eta=ETA), made, report)
    if name == "Neumann-RBP":
        return Pass(rbp(method="neumann"), made, report)
    raise ValueError(f"run_method: got the method {name!r}, expected one of {(BPTT, *METHODS)}.")
