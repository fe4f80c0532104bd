"""Figure A1: the corrupted input, and what a network trained with each method retrieves from it.

Used by ``__init__.py``. The images are on record, so that the figure can be drawn again without training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ["ALARM", "INK", "LINE", "QUIET", "Row", "draw"]

INK, QUIET, LINE, ALARM = "#1f2933", "#7b8794", "#cbd2d9", "#b83227"
# Colours of a pixel, by what it should be and what it is: off as it should, on in error, off in error, on as it should.
_PALETTE = np.array([[255, 255, 255], [224, 122, 95], [247, 214, 208], [31, 41, 51]], dtype=np.uint8)
_GAP, _BREAK = 0.12, 0.34  # in units of an image's side: the space between two, the one below the input
_LEFT, _RIGHT, _TOP, _BOTTOM = 2.4, 1.55, 1.6, 0.35


@dataclass(frozen=True)
class Row:
    """Binary images ``(10, side, side)`` under a label; ``failed`` sets it in the colour of errors."""

    label: str
    images: np.ndarray
    failed: bool = False


def draw(path: Path, truth: np.ndarray, rows: Sequence[Row], subtitle: str) -> None:
    """Write the figure as a PNG: the first row, the input, stands apart; pixels that differ from ``truth`` are red."""
    count = len(truth)
    width = _LEFT + count + (count - 1) * _GAP + _RIGHT
    height = _TOP + len(rows) * (1 + _GAP) - _GAP + _BREAK + _BOTTOM
    figure = Figure(figsize=(0.62 * width, 0.62 * height), dpi=220, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    axes.text(
        0.35, 0.4, "What each gradient taught the network to retrieve", size=13, weight="bold", color=INK, va="center"
    )
    axes.text(0.35, 0.72, subtitle, size=8.5, color=QUIET, va="top", linespacing=1.5)
    top = _TOP
    for index, row in enumerate(rows):
        _draw_row(axes, f"({chr(ord('a') + index)})  {row.label}", row, truth, top, apart=index == 0)
        top += 1 + (_BREAK if index == 0 else _GAP)
    axes.set(xlim=(0, width), ylim=(height, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_row(axes, label: str, row: Row, truth: np.ndarray, top: float, apart: bool) -> None:
    middle, left = top + 0.5, _LEFT
    colour = ALARM if row.failed else INK
    axes.text(0.35, middle, label, size=9.5, color=colour, va="center", weight="bold" if apart else "normal")
    for image, true in zip(row.images, truth, strict=True):
        box = (left, left + 1, top + 1, top)
        axes.imshow(_PALETTE[2 * true.astype(int) + image.astype(int)], extent=box, interpolation="nearest")
        axes.add_patch(Rectangle((left, top), 1, 1, fill=False, linewidth=0.6, edgecolor=LINE))
        left += 1 + _GAP
    wrong = float((row.images != truth).mean())
    axes.text(
        left - _GAP + 0.2, middle, f"{wrong:.1%} wrong", size=8.5, color=colour if row.failed else QUIET, va="center"
    )
