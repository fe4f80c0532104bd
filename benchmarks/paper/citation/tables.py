"""The tables of this experiment, made of its records alone: for the terminal, and for the page in the docs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.paper.records import Records
from benchmarks.paper.table import difference, format_table, mean_and_deviation, pooled_deviation

from .methods import METHODS
from .statistics import PAPER

__all__ = ["comparison", "diagnoses", "recurrent", "statistics", "why"]

RUNS_OF_THE_PAPER = 10
FURTHER = 5  # column of what goes beyond the epochs that are compared
ENOUGH = 3  # runs, to speak of a mean and a deviation
LABELS = {
    "logistic": "logistic regression, PCA features",
    "labels": "label propagation, no features",
    "gcn": "GCN, two layers",
    "equilibrium": "equilibrium network",
    "regularized": "equilibrium network, penalty on norm(J)",
    "truncated": "equilibrium network, Neumann of 5 products",
}


def statistics(records: Records, markdown: bool = False) -> str:
    """Return Table A2: what was counted, and what the paper says."""
    rows = []
    for line in records.lines(table="A2"):
        name, r = line["key"]["graph"], line["result"]
        paper = PAPER.get(name)
        rows.append([name, *(_count(r[what]) for what in ("nodes", "links", "edges", "repeated", "loops", "isolated"))])
        rows[-1] += [_count(r["classes"]), _count(r["features"])]
        rows[-1].append("not in the paper" if paper is None else " / ".join(f"{number:,}" for number in paper))
    header = ["network", "nodes", "links listed", "edges", "repeated", "loops", "isolated", "classes", "features"]
    return format_table(rows, [*header, "paper: nodes / edges / classes / features"], markdown)


def recurrent(records: Records, markdown: bool = False) -> str:
    """Return Table A3: the accuracy after as many epochs as three runs of the paper's methods have made, and beyond.

    A row that has not come as far says where it stands. Graphs of other names than the first one's are left out.
    """
    runs = _by_method(records)
    common = _common_epochs(runs)
    rows = []
    for name, method in METHODS.items():
        lengths = runs.get(name, {})
        reached = [e for e in lengths if e <= common]
        if not reached:
            continue
        epochs = max(reached, key=lambda e: (len(lengths[e]) >= ENOUGH, e))
        results = lengths[epochs]
        accuracies = [r["validation"] for r in results]
        ours = mean_and_deviation(accuracies)
        rows.append(
            [
                method.label,
                "-" if method.paper is None else f"{method.paper[0]:.2f} +- {method.paper[1]:.1f}",
                f"{_spread(accuracies)} ({len(results)})" + ("" if epochs == common else f" after {epochs}"),
                _gap(ours, len(results), method.paper),
                _spread([r["test"] for r in results]),
                "; ".join(_further(lengths[e], e) for e in sorted(lengths) if e > epochs) or "-",
                _largest_and_least(results),
                _fixed_points(results),
                _statuses(Counter(), *(r["backward"] for r in results)),
            ]
        )
    header = ["validation accuracy", "paper (10)", f"ours, {common} epochs (runs)", "difference", "test"]
    header += ["further, epochs: (runs)", "last update", "fixed points", "adjoint solves"]
    if all(row[FURTHER] == "-" for row in rows):
        header, *rows = ([*row[:FURTHER], *row[FURTHER + 1 :]] for row in (header, *rows))
    return format_table(rows, header, markdown)


def comparison(records: Records, markdown: bool = False) -> str:
    """Return the four classifiers at the same splits, with differences to the GCN, split by split."""
    lines = records.lines(table="comparison")
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["key"]["method"], {})[line["key"]["seed"]] = line["result"]
    rows = []
    for name, label in LABELS.items():
        if name not in by_name:
            continue
        results = by_name[name]
        against = by_name.get("gcn", {})
        pairs = [results[s]["validation"] - against[s]["validation"] for s in results if s in against]
        tests = [results[s]["test"] - against[s]["test"] for s in results if s in against]
        solves = list(results.values())
        rows.append(
            [
                label,
                str(len(results)),
                _spread([r["validation"] for r in solves]),
                _spread([r["test"] for r in solves]),
                "-" if name == "gcn" else _paired(pairs),
                "-" if name == "gcn" else _paired(tests),
                _statuses(Counter(), *(r.get("forward", {}) for r in solves)),
                _statuses(Counter(), *(r.get("backward", {}) for r in solves)),
            ]
        )
    header = ["", "splits", "validation", "test", "minus GCN", "minus GCN, test", "forward solves", "backward solves"]
    return format_table(rows, header, markdown)


def why(records: Records, markdown: bool = False) -> str:
    """Return the answers of ``why.py``, one network a row."""
    rows = []
    for line in records.lines(table="why"):
        r = line["result"]
        doubt = "" if r["radius_status"] == "CONVERGED" else f" ({r['radius_status']})"
        trained = f" ({r['epoch']} epochs)" if "epoch" in r else ""
        figures = (f"{r[what]:.0e}" for what in ("size", "update", "growth", "start", "features"))
        rows.append([line["key"]["network"] + trained, f"{r['radius']:.2f}{doubt}", *figures, _spread(r["accuracy"])])
    header = ["network", "rho(J)", "size", "last update", "growth", "start", "features", "readable"]
    return format_table(rows, header, markdown)


def diagnoses(records: Records, markdown: bool = False) -> str:
    """Return the reports of ``diagnose``, one after the other."""
    pages = [f"{line['key']['network']}\n\n{line['result']['page']}" for line in records.lines(table="diagnosis")]
    return "\n\n".join(f"```text\n{page}\n```" if markdown else page for page in pages)


def _by_method(records: Records) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Return ``results[method][epochs]``, a list over the seeds, of the graph that has the first record."""
    lines = records.lines(table="A3")
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for line in lines:
        key = line["key"]
        if key["graph"] == lines[0]["key"]["graph"]:
            runs.setdefault(key["method"], {}).setdefault(key["epochs"], []).append(line["result"])
    return runs


def _common_epochs(runs: dict[str, dict[int, list[dict[str, Any]]]]) -> int:
    """Return the largest number of epochs with enough runs of the paper's methods; failing that, with the most rows."""
    lengths = sorted({epochs for of_method in runs.values() for epochs in of_method})
    papers = [of_method for name, of_method in runs.items() if METHODS[name].paper is not None]
    enough = [e for e in lengths if all(len(of_method.get(e, ())) >= ENOUGH for of_method in papers)]
    if enough:
        return enough[-1]
    return max(lengths, key=lambda e: (sum(len(of_method.get(e, ())) for of_method in runs.values()), e), default=0)


def _further(results: Sequence[dict[str, Any]], epochs: int) -> str:
    return f"{epochs}: {_spread([r['validation'] for r in results])} ({len(results)})"


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.1f}" if math.isnan(deviation) else f"{mean:.1f} +- {deviation:.1f}"


def _gap(ours: tuple[float, float], runs: int, paper: tuple[float, float] | None) -> str:
    """Return ours minus the paper's mean, and its standard error, from the deviation of all these runs together."""
    if paper is None:
        return "-"
    (mean, deviation), (paper_mean, paper_deviation) = ours, paper
    deviation = pooled_deviation(deviation, runs, paper_deviation, RUNS_OF_THE_PAPER)
    gap, error = difference(mean, deviation, runs, paper_mean, deviation, RUNS_OF_THE_PAPER)
    return f"{gap:+.1f} +- {error:.1f}"


def _paired(differences: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(differences)
    if math.isnan(deviation):
        return f"{mean:+.1f}"
    ahead = sum(d > 0 for d in differences)
    return f"{mean:+.1f} +- {deviation / math.sqrt(len(differences)):.1f} ({ahead} of {len(differences)})"


def _largest_and_least(results: Sequence[dict[str, Any]]) -> str:
    changes = [change for r in results for change in r["change"]]
    return f"{min(changes):.0e} .. {max(changes):.0e}" if changes else "-"


def _fixed_points(results: Sequence[dict[str, Any]]) -> str:
    looks = sum(r["looks"] for r in results)
    return f"{sum(r['looks_at_a_fixed_point'] for r in results)} of {looks}" if looks else "-"


def _statuses(total: Counter[str], *parts: dict[str, int]) -> str:
    for part in parts:
        total.update(part)
    return ", ".join(f"{number:,} {status}" for status, number in total.most_common()) or "-"


def _count(number: float | None) -> str:
    return "not at hand" if number is None else f"{number:,.0f}"
