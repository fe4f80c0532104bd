"""The continuous Hopfield network: Table A1 and Figure A1 of the paper, with two rows that the paper lacks.

``python -m benchmarks.paper hopfield [--trials N] [--device cuda] [--data-dir DIR] [--only METHOD]
[--part table|figure] [--epochs N] [--images-per-step 1|2|5|10] [--pool N] [--hidden N] [--rate X]
[--schedule constant|cosine] [--truncate K] [--at-once N] [--figure-truncation K]``
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.paper.options import Options
from benchmarks.paper.records import Records

from .cells import run_cells
from .curves import draw_curves
from .digits import load_digits
from .methods import METHODS
from .recall import make_figure
from .settings import Plan, Setting, plan
from .table import NOTES, cells_on_record, rows, strict_successes, table

__all__ = ["blocks", "draw_losses", "run"]


def run(options: Options) -> None:
    """Run what is not on record, print Table A1 beside the paper's numbers, and draw Figure A1."""
    this = plan(options)
    digits = load_digits(this.setting.data, this.setting.pool, options.data_dir)
    records = Records(options.records_file(), fresh=options.quick, device=options.device)
    if "table" in this.parts:
        run_cells(this, digits, records)
        title, strict = _title(this, digits.source), _strictly(this, records)
        print(f"\n{title}\n\n{table(this, records)}\n\n{strict}\n{fill(NOTES, 120)}")
        if cells := cells_on_record(this, records):
            path = _picture(options, "hopfield-loss")
            draw_curves(path, cells, _subtitle(this))
            print(f"\nThe losses: {path}")
    if "figure" in this.parts:
        path = _picture(options, "hopfield")
        make_figure(this, digits, records, path)
        print(f"\nFigure A1: {path}")


def _picture(options: Options, name: str) -> Path:
    return options.out / f"{'quick-' if options.quick else ''}{name}.png"


def _subtitle(this: Plan) -> str:
    setting = this.setting
    return (
        f"Mean loss of an epoch, {setting.hidden} hidden units, Adam's rate {setting.rate:g}.\n"
        "Red: the last loss is not below half of that over the first epoch."
    )


def _title(this: Plan, source: str) -> str:
    setting = this.setting
    return (
        f"Table A1. {source}, {setting.hidden} hidden units, {setting.epochs} epochs, images a step: "
        f"{setting.images_per_step}, Adam's rate {setting.rate:g}, {setting.schedule}."
    )


def blocks(records: Records) -> dict[str, str]:
    """Return Table A1 as ``docs/reproduction.md`` shows it: of the setting with the most trials, and of the paper's."""
    settings = Counter(tuple(sorted(_setting_of(line).items())) for line in records.lines(table="A1"))
    if not settings:
        return dict.fromkeys(("hopfield", "hopfield-at-length"), "Not run yet.")
    most = _block(Setting(**dict(settings.most_common(1)[0][0])), records)
    notes = fill(NOTES[0].upper() + NOTES[1:], 125, break_on_hyphens=False)
    return {"hopfield": f"{most}\n\n{notes}", "hopfield-at-length": _block(Setting(), records)}


def _block(setting: Setting, records: Records) -> str:
    """Return title, table and what the other criterion says."""
    this = _all_cells(setting)
    if not rows(this, records):
        return "Not run yet."
    title = _title(this, setting.data).partition(". ")[2]
    return f"{title}\n\n{table(this, records, markdown=True)}\n\n{_strictly(this, records)}"


def draw_losses(records: Records, path: Path) -> None:
    """Draw the losses of the trials with the paper's setting, as ``docs/reproduction.md`` shows them."""
    this = _all_cells(Setting())
    draw_curves(path, cells_on_record(this, records), _subtitle(this))


def _all_cells(setting: Setting) -> Plan:
    return Plan(setting, tuple(METHODS), (10, 20, 30), 0, 0, ("table",), 0)


def _strictly(this: Plan, records: Records) -> str:
    hits, trials = strict_successes(this, records)
    return f"{hits} of all {trials} trials came below half of the loss before any step."


def _setting_of(line: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a record's key that is its setting."""
    return {name: value for name, value in line["key"].items() if name in Setting.__dataclass_fields__}
