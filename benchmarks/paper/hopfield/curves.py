"""The losses of the trials of Table A1, epoch by epoch, and what half of the initial one is in both readings.

Used by ``__init__.py``. The curves are on record, so that the figure can be drawn again without training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .cells import SUCCESS, succeeded
from .figure import ALARM, INK, LINE, QUIET

__all__ = ["draw_curves"]

Cells = Mapping[tuple[str, int], Sequence[dict[str, Any]]]
_APART = 0.055  # of the height of the axes, between two labels


def draw_curves(path: Path, cells: Cells, subtitle: str) -> None:
    """Write the figure as a PNG: a curve a trial, red where it failed, its method and K beside its end."""
    figure = Figure(figsize=(8.6, 4.8), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.11, 0.72, 0.7), yscale="log")
    everything = [result for results in cells.values() for result in results]
    for result in everything:
        failed = not succeeded(result, "first")
        axes.plot(*zip(*_numbers(result), strict=True), color=ALARM if failed else INK, linewidth=1.1, alpha=0.75)
    last = max(result["curve"][-1][0] for result in everything)
    axes.set_xlim(0, last)
    for initial, name in (("first", "over the first epoch"), ("untrained", "before any step")):
        bound = SUCCESS * statistics.median(result[initial] for result in everything)
        axes.axhline(bound, color=QUIET, linewidth=0.9, dashes=(5, 3))
        axes.text(0.985 * last, bound, f"half of the loss {name}", size=8, color=QUIET, ha="right", va="bottom")
    _label_ends(axes, cells)
    axes.set_xlabel("epoch", size=9, color=INK)
    axes.tick_params(which="both", labelsize=8, color=LINE, labelcolor=QUIET)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    figure.text(0.03, 0.94, "Which loss is the initial one?", size=13, weight="bold", color=INK, va="center")
    figure.text(0.03, 0.9, subtitle, size=8.5, color=QUIET, va="top", linespacing=1.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _numbers(result: dict[str, Any]) -> list[tuple[int, float]]:
    """Return (epoch, loss), as far as the losses are numbers."""
    return [(epoch, loss) for epoch, loss in result["curve"] if loss is not None and math.isfinite(loss)]


def _label_ends(axes, cells: Cells) -> None:
    """Write each cell's name at the height of its last loss, or as near as the others leave room; one name a height."""
    axes.set_ylim(axes.get_ylim())  # settles the scale, and with it the transform
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = []
    for (method, truncate), results in cells.items():
        final = statistics.median(_numbers(result)[-1][1] for result in results)
        place = to_axes.transform((0, final))[1]
        ends.append((place, f"{method}, K = {truncate}", all(succeeded(result, "first") for result in results)))
    ends.sort()
    places = [place for place, _, _ in ends]
    while crowded := [i for i in range(1, len(places)) if places[i] - places[i - 1] < 0.999 * _APART]:
        for i in crowded:  # apart from the middle, so that a bundle of curves has its names around its end
            middle = (places[i] + places[i - 1]) / 2
            places[i - 1], places[i] = middle - _APART / 2, middle + _APART / 2
    for place, (_, name, good) in zip(places, ends, strict=True):
        axes.text(1.015, place, name, size=8.5, color=INK if good else ALARM, va="center", transform=axes.transAxes)
