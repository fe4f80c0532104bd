"""Table A1 beside the paper's: successes, their intervals, and what the solves said. Used by ``__init__.py``."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

from benchmarks.paper.records import Records
from benchmarks.paper.table import difference, format_table, proportion_interval

from .cells import key_of, succeeded
from .methods import BPTT, PAPER
from .settings import Plan

__all__ = ["HEADER", "NOTES", "cells_on_record", "rows", "strict_successes", "table"]

HEADER = (
    "method",
    "K",
    "paper, %",
    "ours, %",
    "95 % interval",
    "difference",
    "final/first",
    "final/untrained",
    "updates",
    "products",
    "settled",
    "solves",
)
_OF_THE_PAPER = 100  # trials a cell

NOTES = (
    "ours: trials whose mean loss over the last epoch is below half of that over the first, which trains already; "
    "95 % interval: Wilson's. difference: ours minus the paper's (100 trials), in points, and its standard error. "
    "final/first, final/untrained: medians of the loss over the last epoch, relative to the first epoch and to the "
    "loss before any step. updates: computed of 50, on average; the others would have changed no bit. products: with J "
    "or its transpose, a gradient. settled: last states that are fixed points to half of the digits. RBP starts from "
    "uniform random numbers, as the reference code does; RBP from zero is proposition 3. GMRES stops early where it "
    "has converged, and so does CG where its shifted system is solved: LEAST_SQUARES in records of 2026-11-24, in "
    "later ones TRUNCATED, as a fixed budget is called."
)


def table(plan: Plan, records: Records, markdown: bool = False) -> str:
    """Return the table of all trials on record with the plan's setting."""
    return format_table(rows(plan, records), HEADER, markdown)


def rows(plan: Plan, records: Records) -> list[list[str]]:
    """Return one row a cell that has trials on record."""
    return [_row(*cell, results) for cell, results in cells_on_record(plan, records).items()]


def strict_successes(plan: Plan, records: Records) -> tuple[int, int]:
    """Return how many trials came below half of the loss before any step, "initial" read otherwise; and of how many."""
    results = [result for cell in cells_on_record(plan, records).values() for result in cell]
    return sum(succeeded(result, "untrained") for result in results), len(results)


def cells_on_record(plan: Plan, records: Records) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the results on record of each cell (method, truncation); of a trial that stands there twice, the last."""
    found = {}
    for method in (method for method in plan.methods if method != BPTT):
        for truncate in plan.truncations:
            key = key_of(plan.setting, method, truncate, 0)
            del key["trial"]
            if lines := {line["key"]["trial"]: line["result"] for line in records.lines(**key)}:
                found[method, truncate] = list(lines.values())
    return found


def _row(method: str, truncate: int, results: list[dict[str, Any]]) -> list[str]:
    count = len(results)
    first = sum(succeeded(result, "first") for result in results)
    low, high = proportion_interval(first, count)
    paper = PAPER.get(method, {}).get(truncate)
    products = statistics.fmean(result["products"] for result in results)
    return [
        method,
        str(truncate),
        "-" if paper is None else str(paper),
        f"{100 * first / count:.0f} ({first}/{count})",
        f"{100 * low:.0f} to {100 * high:.0f}",
        "-" if paper is None else _difference(first, count, paper),
        _median_ratio(results, "first"),
        _median_ratio(results, "untrained"),
        f"{statistics.fmean(result['updates'] for result in results):.0f}",
        f"{products:.0f}" if products else "-",
        _settled(results),
        _shares(results),
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


def _median_ratio(results: list[dict[str, Any]], initial: str) -> str:
    """Return the median of the final loss over an initial one; a lost trial counts as infinitely bad."""
    median = statistics.median(
        math.inf if result["final"] is None else result["final"] / result[initial] for result in results
    )
    return f"{median:.2f}"


def _settled(results: list[dict[str, Any]]) -> str:
    total = _total(results, "forward")
    return f"{100 * total['CONVERGED'] / total.total():.0f}%" if total else "-"


def _total(results: list[dict[str, Any]], part: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result[part])
    return total


def _shares(results: list[dict[str, Any]]) -> str:
    """Return the two most frequent outcomes and their shares, such as ``TRUNCATED 97%, LEAST_SQUARES 3%``."""
    total = _total(results, "backward")
    if not total:
        return "-"
    shares = ((name, 100 * number / total.total()) for name, number in total.most_common(2))
    return ", ".join(f"{name} {'<1' if share < 0.5 else f'{share:.0f}'}%" for name, share in shares)
