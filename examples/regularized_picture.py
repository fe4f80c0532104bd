"""The picture of ``regularized_training.py``: loss, sigma_min and gradient of two trainings, and what they learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_INK, _QUIET, _RULE = "#1f2933", "#7b8794", "#d9dee4"
_COLOURS = ("#c0392b", "#1d4ed8")  # without, with


@dataclass(frozen=True)
class Curve:
    """One training: its name, an entry a step of each quantity, and the output at each point at the end."""

    name: str
    losses: Sequence[float]
    sigmas: Sequence[float]
    gradients: Sequence[float]
    failures: Sequence[int]
    output: Any


def draw(curves: Sequence[Curve], x: np.ndarray, y: np.ndarray, sigma: float, path: Path) -> None:
    """Write four panels to a PNG file at ``path``; ``sigma`` is the singular value that the margin asks for."""
    figure = Figure(figsize=(11.6, 7.6), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    places = [(left, bottom, 0.405, 0.29) for bottom in (0.525, 0.085) for left in (0.065, 0.565)]
    loss, smallest, gradient, learned = (figure.add_axes(place) for place in places)
    figure.text(0.065, 0.955, "Training through a fixed point", size=15, weight="bold", color=_INK, va="center")
    names = [curve.name for curve in curves]
    figure.text(0.065, 0.915, "Penalty on lambda_min:", size=10.5, color=_QUIET, va="center")
    for place, name, colour in zip((0.225, 0.285), names, _COLOURS, strict=False):
        figure.text(place, 0.915, name, size=10.5, weight="bold", color=colour, va="center")
    for curve, colour in zip(curves, _COLOURS, strict=False):
        steps = np.arange(len(curve.losses))
        loss.plot(steps, curve.losses, color=colour, linewidth=1.8)
        smallest.plot(steps, curve.sigmas, color=colour, linewidth=1.8)
        gradient.plot(steps, curve.gradients, color=colour, linewidth=1.5)
        failed = np.flatnonzero(curve.failures)
        gradient.scatter(
            failed, np.asarray(curve.gradients)[failed], marker="x", s=34, color=_INK, zorder=4, linewidth=1.4
        )
        learned.plot(x, curve.output, color=colour, linewidth=1.8, zorder=3)
    smallest.axhline(sigma, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    learned.plot(x, y, drawstyle="steps-mid", color=_RULE, linewidth=3.5, zorder=1, solid_capstyle="butt")
    for axes in (smallest, gradient):
        axes.set_yscale("log")
    loss.set_ylim(bottom=0)
    _dress(loss, "Loss", "mean square error, step by step")
    _dress(smallest, "Smallest singular value of I - J", "of the worst of the points; dashed: the root of the margin")
    _dress(gradient, "Norm of the gradient", "crosses: steps where a solve did not converge")
    _dress(learned, "What was learned", "grey: the function that was asked for")
    for axes in (loss, smallest, gradient):
        axes.set_xlabel("step", size=9, color=_QUIET)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _dress(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(title, size=11.5, color=_INK, loc="left", pad=22)
    axes.text(0, 1.035, subtitle, size=9.5, color=_QUIET, transform=axes.transAxes, va="bottom")
    axes.tick_params(colors=_QUIET, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_RULE)
