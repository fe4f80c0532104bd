"""Table A1 beside the paper's: successes, their intervals, and what the solves said. Used by ``__init__.py``."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from benchmarks.paper.records import Records
from benchmarks.paper.table import difference, format_table, proportion_interval

from .cells import key_of, succeeded
from .methods import BPTT, PAPER
from .settings import Plan

__all__ = ["HEADER", "rows", "table"]

HEADER = (
    "method",
    "K",
    "paper, %",
    "ours, %",
    "95 % interval",
    "difference",
    "below half of untrained, %",
    "final loss, % of untrained",
    "updates",
    "products",
    "last state",
    "solves",
)
_OF_THE_PAPER = 100  # trials a cell


def table(plan: Plan, records: Records, markdown: bool = False) -> str:
    """Return the table of all trials on record with the plan's setting."""
    return format_table(rows(plan, records), HEADER, markdown)


def rows(plan: Plan, records: Records) -> list[list[str]]:
    """Return one row a cell that has trials on record."""
    found = []
    for method in (method for method in plan.methods if method != BPTT):
        for truncate in plan.truncations:
            key = key_of(plan.setting, method, truncate, 0)
            del key["trial"]
            lines = {line["key"]["trial"]: line["result"] for line in records.lines(**key)}
            if lines:
                found.append(_row(method, truncate, list(lines.values())))
    return found


def _row(method: str, truncate: int, results: list[dict[str, Any]]) -> list[str]:
    count = len(results)
    first, untrained = (sum(succeeded(result, start) for result in results) for start in ("first", "untrained"))
    low, high = proportion_interval(first, count)
    paper = PAPER.get(method, {}).get(truncate)
    left = [100 * result["final"] / result["untrained"] for result in results if result["final"] is not None]
    products = statistics.fmean(result["products"] for result in results)
    return [
        method,
        str(truncate),
        "-" if paper is None else str(paper),
        f"{100 * first / count:.0f} ({first}/{count})",
        f"{100 * low:.0f} to {100 * high:.0f}",
        "-" if paper is None else _difference(first, count, paper),
        f"{100 * untrained / count:.0f}",
        f"{statistics.median(left):.0f}" if left else "lost",
        f"{statistics.fmean(result['updates'] for result in results):.0f}",
        f"{products:.0f}" if products else "-",
        _shares(results, "forward"),
        _shares(results, "backward"),
    ]


def _difference(successes: int, trials: int, paper: int) -> str:
    """Return ours minus the paper's share, and its standard error in points.

    Each share's deviation is that of (successes + 1) / (trials + 2): the plain one would call 5 of 5 free of error.
    """
    deviations = []
    for hits, number in ((successes, trials), (paper, _OF_THE_PAPER)):
        share = (hits + 1) / (number + 2)
        deviations.append((share * (1 - share)) ** 0.5)
    gap, error = difference(
        successes / trials, deviations[0], trials, paper / _OF_THE_PAPER, deviations[1], _OF_THE_PAPER
    )
    return f"{100 * gap:+.0f} +- {100 * error:.0f}"


def _shares(results: list[dict[str, Any]], part: str) -> str:
    """Return the two most frequent outcomes and their shares, such as ``TRUNCATED 97%, NONFINITE_INPUT 3%``."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result[part])
    if not total:
        return "-"
    shares = ((name, 100 * number / total.total()) for name, number in total.most_common(2))
    return ", ".join(f"{name} {'<1' if share < 0.5 else f'{share:.0f}'}%" for name, share in shares)
