"""The continuous Hopfield network: Table A1 and Figure A1 of the paper, with two rows that the paper lacks.

``python -m benchmarks.paper hopfield [--trials N] [--device cuda] [--data-dir DIR] [--only METHOD]
[--part table|figure] [--epochs N] [--images-per-step 1|2|5|10] [--pool N] [--hidden N] [--rate X]
[--schedule constant|cosine] [--truncate K] [--at-once N] [--figure-truncation K]``
"""

from __future__ import annotations

from collections import Counter
from textwrap import fill
from typing import Any

from benchmarks.paper.options import Options
from benchmarks.paper.records import Records

from .cells import run_cells
from .digits import load_digits
from .methods import METHODS
from .recall import make_figure
from .settings import Plan, Setting, plan
from .table import NOTES, strict_successes, table

__all__ = ["blocks", "run"]


def run(options: Options) -> None:
    """Run what is not on record, print Table A1 beside the paper's numbers, and draw Figure A1."""
    this = plan(options)
    digits = load_digits(this.setting.data, this.setting.pool, options.data_dir)
    records = Records(options.records_file(), fresh=options.quick, device=options.device)
    if "table" in this.parts:
        run_cells(this, digits, records)
        hits, trials = strict_successes(this, records)
        strict = f"{hits} of all {trials} trials came below half of the loss before any step."
        print(f"\n{_title(this, digits.source)}\n\n{table(this, records)}\n\n{fill(NOTES, 120)}\n{strict}")
    if "figure" in this.parts:
        path = options.out / f"{'quick-' if options.quick else ''}hopfield.png"
        make_figure(this, digits, records, path)
        print(f"\nFigure A1: {path}")


def _title(this: Plan, source: str) -> str:
    setting = this.setting
    return (
        f"Table A1. {source}, {setting.hidden} hidden units, {setting.epochs} epochs, images a step: "
        f"{setting.images_per_step}, Adam's rate {setting.rate:g}, {setting.schedule}."
    )


def blocks(records: Records) -> dict[str, str]:
    """Return Table A1 as ``docs/reproduction.md`` shows it: of the setting with the most trials on record."""
    settings = Counter(tuple(sorted(_setting_of(line).items())) for line in records.lines(table="A1"))
    if not settings:
        return {"hopfield": "Not run yet."}
    setting = Setting(**dict(settings.most_common(1)[0][0]))
    this = Plan(setting, tuple(METHODS), (10, 20, 30), 0, 0, ("table",), 0)
    hits, trials = strict_successes(this, records)
    title = _title(this, setting.data).partition(". ")[2]
    strict = f"{hits} of all {trials} trials came below half of the loss before any step."
    return {"hopfield": f"{title}\n\n{table(this, records, markdown=True)}\n\n{NOTES[0].upper()}{NOTES[1:]}\n{strict}"}


def _setting_of(line: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a record's key that is its setting."""
    return {name: value for name, value in line["key"].items() if name in Setting.__dataclass_fields__}
