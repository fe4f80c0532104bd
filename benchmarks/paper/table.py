"""Tables of our figures beside the paper's: means with deviations, shares with intervals, differences with errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["difference", "format_table", "mean_and_deviation", "pooled_deviation", "proportion_interval"]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (divisor ``n - 1``; NaN for fewer than two values)."""
    count = len(values)
    if not count:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))


def proportion_interval(successes: int, trials: int, quantile: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval for a probability, by default of 95 %: it is sensible at 0 and at ``trials`` successes.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22, eq. 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"proportion_interval: got {successes} of {trials}, expected 0 <= successes <= trials >= 1.")
    share, spread = successes / trials, quantile**2 / trials
    center = share + spread / 2
    half = quantile * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = (center - half) / (1 + spread), (center + half) / (1 + spread)
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def difference(
    ours_mean: float, ours_sd: float, ours_n: int, paper_mean: float, paper_sd: float, paper_n: int
) -> tuple[float, float]:
    """Return ours minus the paper's mean, and the standard error of that difference (Welch 1947)."""
    return ours_mean - paper_mean, math.sqrt(ours_sd**2 / ours_n + paper_sd**2 / paper_n)


def pooled_deviation(one_sd: float, one_n: int, other_sd: float, other_n: int) -> float:
    """Return the deviation that two samples have in common, each weighed by its degrees of freedom (Student 1908).

    Three runs that fall close together by chance do not know their own deviation, and Welch's error would take it for
    small. A sample of one has no deviation (NaN) and no weight.
    """
    squares = ((n - 1, (n - 1) * sd**2) for sd, n in ((one_sd, one_n), (other_sd, other_n)) if n > 1)
    freedom, total = map(math.fsum, zip(*squares, strict=True))
    return math.sqrt(total / freedom)


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str], markdown: bool = False) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    table = [list(header), *(list(row) for row in rows)]
    if any(len(row) != len(header) for row in table):
        raise ValueError(f"format_table: got rows of {sorted({len(row) for row in table})} cells, expected one length.")
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [_line(row, widths, markdown) for row in table]
    if markdown:
        rule = "|" + "|".join(("-" * (w + 2)) if c == 0 else ("-" * (w + 1) + ":") for c, w in enumerate(widths)) + "|"
    else:
        rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int], markdown: bool) -> str:
    cells = [cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip()
