"""The picture of ``associative_memory.py``: what was stored, what was shown, and what each method recalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_INK, _QUIET, _ALARM = "#1f2933", "#7b8794", "#c0392b"
# Colours of a pixel, by what it should be and what it is: off as it should, on in error, off in error, on as it should.
_PALETTE = np.array([[255, 255, 255], [214, 69, 65], [246, 205, 203], [31, 41, 51]], dtype=np.uint8)
_CELL, _GAP, _BREAK = 1.0, 0.14, 0.42  # in units of one image: its side, the space between two, the one between groups
_LEFT, _RIGHT, _TOP, _BOTTOM = 2.35, 1.75, 1.15, 0.2


@dataclass(frozen=True)
class Row:
    """Binary images ``(count, side, side)``, what they should be, the label on their left, the note on their right."""

    label: str
    images: np.ndarray
    truth: np.ndarray
    note: str = ""
    failed: bool = False


def draw(groups: Sequence[Sequence[Row]], title: str, subtitle: str, path: Path) -> None:
    """Write the rows, group by group from the top, to a PNG file at ``path``; make its folder if there is none."""
    count = len(groups[0][0].images)
    rows = sum(len(group) for group in groups)
    width = _LEFT + count * _CELL + (count - 1) * _GAP + _RIGHT
    height = _TOP + rows * _CELL + (rows - len(groups)) * _GAP + (len(groups) - 1) * _BREAK + _BOTTOM
    figure = Figure(figsize=(0.62 * width, 0.62 * height), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    axes.text(0.3, 0.34, title, size=13, weight="bold", color=_INK, va="center")
    axes.text(0.3, 0.76, subtitle, size=9, color=_QUIET, va="center")
    top = _TOP
    for group in groups:
        for row in group:
            _draw_row(axes, row, top)
            top += _CELL + _GAP
        top += _BREAK - _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_row(axes, row: Row, top: float) -> None:
    middle = top + _CELL / 2
    axes.text(_LEFT - 0.25, middle, row.label, size=10, color=_ALARM if row.failed else _INK, ha="right", va="center")
    right = _LEFT
    for image, truth in zip(row.images, row.truth, strict=True):
        box = (right, right + _CELL, top + _CELL, top)
        axes.imshow(_PALETTE[2 * truth.astype(int) + image], extent=box, interpolation="nearest")
        axes.add_patch(Rectangle((right, top), _CELL, _CELL, fill=False, linewidth=0.5, edgecolor="#cbd2d9"))
        right += _CELL + _GAP
    axes.text(right - _GAP + 0.22, middle, row.note, size=9, color=_ALARM if row.failed else _QUIET, va="center")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
