"""The tables of ``docs/reproduction.md``, written from the records in ``results/``: no figure is typed by hand.

``python -m benchmarks.paper.document`` rewrites what stands between the markers ``<!-- NAME -->`` and ``<!-- end -->``;
``--check`` says whether that would change anything; a test runs the check. The losses of Table A1 are drawn anew, too.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections import Counter
from pathlib import Path

from benchmarks.paper.hopfield import draw_losses
from benchmarks.paper.options import EXPERIMENTS
from benchmarks.paper.records import Records

__all__ = ["PAGE", "RESULTS", "provenance", "rendered"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproduction.md"
RESULTS = Path(__file__).resolve().parent / "results"
_BLOCK = re.compile(r"(<!-- (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str, results: Path = RESULTS) -> str:
    """Return the page with each block made anew from the records; an unknown name raises ``KeyError``."""
    blocks: dict[str, str] = {}
    for name in EXPERIMENTS:
        records = Records(results / f"{name}.jsonl")
        blocks |= importlib.import_module(f"benchmarks.paper.{name}").blocks(records)
        blocks[f"{name}-provenance"] = provenance(records)
    return _BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found['name']]}\n\n{found[3]}", page)


def provenance(records: Records) -> str:
    """Return when, on what and with what the records were made, as a sentence."""
    lines = records.lines()
    if not lines:
        return "Not run yet."
    dates = sorted(line["date"][:10] for line in lines)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = ", ".join(name for name, _ in Counter(line["machine"] for line in lines).most_common())
    versions = ", ".join(
        f"{name} {'/'.join(sorted({line['versions'][name] for line in lines if name in line['versions']}))}"
        for name in lines[0]["versions"]
    )
    return f"{len(lines)} records, {when}; {machines}; {versions}."


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check the page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.document", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args(arguments).check
    old = PAGE.read_text()
    new = rendered(old)
    if check:
        return int(new != old)
    PAGE.write_text(new)
    draw_losses(Records(RESULTS / "hopfield.jsonl"), PAGE.parent / "images" / "hopfield-loss.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
