"""The paper's propositions and bounds, measured: how closely each holds, and what happens beyond its premise.

``python -m benchmarks.paper propositions``. The tests hold the code to the same statements; this prints the figures.
"""

from __future__ import annotations

import time

from tqdm import tqdm

from benchmarks.paper.options import Options
from benchmarks.paper.propositions.checks import CHECKS, Check
from benchmarks.paper.records import Records
from benchmarks.paper.table import format_table, mean_and_deviation

__all__ = ["blocks", "rows", "run"]

TRIALS = 5  # networks a proposition is measured on
HEADER = ("statement", "largest", "allowed", "networks", "holds")


def run(options: Options) -> None:
    """Measure every proposition, print the table, and exit with an error where one does not hold."""
    trials = options.trials or (2 if options.quick else TRIALS)
    records = Records(options.records_file(), fresh=options.quick, device=options.device)
    chosen = [check for check in CHECKS if not options.only or check.name in options.only]
    with tqdm(total=len(chosen) * trials, desc="propositions", unit="network", ncols=88) as bar:
        for check in chosen:
            for seed in range(trials):
                if records.find(check=check.name, seed=seed) is None:
                    started = time.perf_counter()
                    result = check.measure(seed, 2_000 if options.quick else 100_000)
                    records.add({"check": check.name, "seed": seed}, result, time.perf_counter() - started)
                bar.update()
    table, all_hold = rows(records, chosen)
    print(format_table(table, HEADER))
    if not all_hold:
        raise SystemExit("A proposition does not hold: see the rows that say NO.")


def rows(records: Records, checks: list[Check] = CHECKS) -> tuple[list[list[str]], bool]:
    """Return the rows of the table, from the records, and whether all propositions hold."""
    table, all_hold = [], True
    for check in checks:
        found = [record["result"] for record in records.lines(check=check.name)]
        if not found:
            continue
        for name, statement in check.statements.items():
            measured = [
                (result[name]["deviation"], result[name]["allowed"]) for result in found if "allowed" in result[name]
            ]
            if not measured:  # a figure, with nothing to hold it to
                mean, sd = mean_and_deviation([result[name]["value"] for result in found])
                table.append([statement, f"{mean:.2g} +- {sd:.1g}", "", str(len(found)), ""])
                continue
            deviation, allowed = max(measured, key=lambda pair: pair[0] / pair[1])
            holds = all(d <= a for d, a in measured)
            all_hold &= holds
            table.append(
                [statement, f"{deviation:.1e}", f"{allowed:.1e}", str(len(measured)), "yes" if holds else "NO"]
            )
    return table, all_hold


def blocks(records: Records) -> dict[str, str]:
    """Return what ``docs/reproduction.md`` shows of the records."""
    return {"propositions": format_table(rows(records)[0], HEADER, markdown=True)}
