"""The nine ways of Table A3, and two of ours, to get the last state of the network with a gradient.

Each takes ``T`` updates from the features, which are nothing but the initial state, and differs in what it
differentiates. The paper's RBP methods are linearized at ``h^(T-1)``; ours at ``h^T`` itself, as the theory has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import implicitgrad as ig
import implicitgrad.torch as igt

from .cell import Update

__all__ = ["METHODS", "Method", "Pass"]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a method is given: the map, where it starts, its parameters, the effort, and a source of random numbers."""

    update: Update
    h0: torch.Tensor
    parameters: list[torch.Tensor]
    steps: int
    truncate: int
    generator: torch.Generator


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    label : str
        As in the paper.
    paper : (mean, deviation) or None
        In per cent, of 10 runs; None: not a row of the paper.
    last_state : callable or None
        Return ``h^T`` with its history, and the solution of the adjoint equation as it is found, if one is solved.
        None: there is no recurrent part, the read-out sees the features.
    """

    label: str
    paper: tuple[float, float] | None
    last_state: Callable[[Pass, igt.Report], torch.Tensor] | None


def _bptt(this: Pass, report: igt.Report) -> torch.Tensor:
    return igt.bptt(this.update, this.h0, *this.parameters, steps=this.steps)


def _tbptt(this: Pass, report: igt.Report) -> torch.Tensor:
    return igt.tbptt(this.update, this.h0, *this.parameters, steps=this.steps, truncate=this.truncate)


def _artbp(this: Pass, distribution: str) -> torch.Tensor:
    return igt.artbp(
        this.update,
        this.h0,
        *this.parameters,
        steps=this.steps,
        distribution=distribution,
        generator=this.generator,
    )


def _uniform_artbp(this: Pass, report: igt.Report) -> torch.Tensor:
    return _artbp(this, "uniform")


def _poisson_artbp(this: Pass, report: igt.Report) -> torch.Tensor:
    """The cut is near step 95 of 100 in the mean."""
    return _artbp(this, "poisson")


def _rbp(this: Pass, report: igt.Report, **settings) -> torch.Tensor:
    return igt.rbp(
        this.update,
        this.h0,
        *this.parameters,
        steps=this.steps,
        truncate=this.truncate,
        on_failure="return",  # that h^T is no fixed point is what the table shows
        report=report,
        **settings,
    )


def _neumann(this: Pass, report: igt.Report) -> torch.Tensor:
    return _rbp(this, report, method="neumann")


def _rbp_from_uniform(this: Pass, report: igt.Report) -> torch.Tensor:
    """As the reference code has it: z_0 is drawn from [0, 1), whatever the size of the loss gradient."""
    return _rbp(this, report, method="rbp", start="uniform", generator=this.generator)


def _cg(this: Pass, report: igt.Report) -> torch.Tensor:
    return _rbp(this, report, method="cg", eta=1e-5)


def _gmres(this: Pass, report: igt.Report) -> torch.Tensor:
    h = this.h0
    with torch.no_grad():
        for _ in range(this.steps):
            h = this.update(h, *this.parameters)
    adjoint = ig.GMRES(rtol=1e-3, max_iters=GMRES_CAP)
    return igt.implicit_gradient(this.update, h, *this.parameters, adjoint=adjoint, on_failure="return", report=report)


GMRES_CAP = 20  # products; what is not solved then is reported as such, and the best iterate is used

METHODS = {  # the cheap ones first: this is the order of the runs
    "baseline": Method("Baseline", (39.96, 3.4), None),
    "tbptt": Method("TBPTT", (46.55, 6.4), _tbptt),
    "neumann": Method("Neumann-RBP", (46.63, 8.3), _neumann),
    "rbp": Method("RBP", (29.25, 3.3), _rbp_from_uniform),
    "cg": Method("CG-RBP", (39.26, 6.5), _cg),
    "artbp-poisson": Method("TPoisson-ARTBP", (42.22, 7.1), _poisson_artbp),
    "gmres": Method("GMRES, rtol 1e-3", None, _gmres),
    "artbp-uniform": Method("Uniform-ARTBP", (27.88, 3.2), _uniform_artbp),
    "bptt": Method("BPTT", (24.48, 6.6), _bptt),
}
