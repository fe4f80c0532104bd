"""Citation networks: Tables A2 and A3 of the paper, why its networks stay at 24-47 %, and one that does not.

``python -m benchmarks.paper citation [--data-dir DIR] [--trials N] [--only NAME] [--reverse]``, where NAME is
``statistics`` (Table A2), ``recurrent`` (Table A3), ``comparison``, ``why`` or ``diagnoses``, or a method of one of
these. A second process with ``--reverse`` works on the same list from its other end. ``--device`` is that of Table A3;
all else runs on the CPU.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict
from textwrap import fill

from benchmarks.paper.data import DataError, load_citation
from benchmarks.paper.options import Options
from benchmarks.paper.records import Records

from . import tables
from .comparison import CLASSIFIERS, compare
from .diagnosis import diagnose_all
from .equilibrium import normalized_adjacency
from .graph import Graph, simple_matrix
from .methods import METHODS
from .runs import MILESTONES, plan, run_all
from .statistics import count
from .substitute import digits_graph
from .training import Setting
from .why import ask_all, ask_trained

__all__ = ["blocks", "run"]

PARTS = ("statistics", "comparison", "why", "diagnoses", "recurrent")
TRIALS = 10
EPOCHS = 60  # of the equilibrium network
NETWORKS = ("cora", "citeseer", "pubmed")

NOTES = {
    "statistics": "Table A2. The paper's edges are the links as listed; 'edges' counts each pair of nodes once.",
    "recurrent": "Table A3. Mean +- standard deviation of the best validation accuracy of a run, in per cent; the "
    "difference +- its standard error, from both deviations pooled. A look is taken every 20 epochs. Last update: "
    "norm(F(h) - h) / norm(F(h)) after the last step, over all looks; fixed points: looks at which it was below 1e-5.",
    "comparison": "The same splits, in per cent: mean +- standard deviation. Differences are paired, +- their standard "
    "error, and in how many splits the row is ahead.",
    "diagnoses": "What igt.diagnose says of three of these networks, and of the trained equilibrium network.",
    "why": "After T steps. Size: of the state, relative to the initial one. Growth: of a difference of 1e-6 at first. "
    "Start, features: what is left of the difference to a network that begins with, or has, the features of other "
    "nodes. Readable: accuracy of logistic regression on the state, in per cent.",
}


def run(options: Options) -> None:
    """Run what is not on record, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper citation")
    parser.add_argument("--reverse", action="store_true", help="begin at the end of the list: for a second process")
    reverse = parser.parse_args(options.arguments).reverse
    parts, methods, classifiers = _chosen(options.only)
    records = Records(options.records_file(), fresh=options.quick, device=options.device)
    folder = records.path.with_suffix("")
    if options.quick:
        shutil.rmtree(folder, ignore_errors=True)
    graph = digits_graph() if options.quick else Graph.from_citation(load_citation("cora", options.data_dir), 64)
    S = normalized_adjacency(simple_matrix(graph.adjacency))
    trials = options.trials or (1 if options.quick else TRIALS)
    epochs = 5 if options.quick else EPOCHS
    setting = Setting(steps=10, every=5) if options.quick else Setting()
    if "statistics" in parts:
        count_all(options, records)
    if "comparison" in parts:
        compare(graph, S, classifiers, range(trials), epochs, records)
    if "recurrent" in parts:
        milestones = (10,) if options.quick else MILESTONES
        run_all(graph, plan(methods, range(trials), milestones), setting, records, reverse)
    if "why" in parts:
        ask_all(graph, S, setting.steps, range(min(3, trials)), records)
        for method in methods:
            if METHODS[method].last_state is not None:
                ask_trained(graph, folder, method, setting.steps, records)
    if "diagnoses" in parts:
        diagnose_all(graph, S, setting.steps, epochs, records)
    for part in sorted(parts, key=("statistics", "recurrent", "why", "diagnoses", "comparison").index):
        print(f"\n{fill(NOTES[part], 120)}\n\n{getattr(tables, part)(records)}")


def count_all(options: Options, records: Records) -> None:
    """Count the networks whose files are at hand; a quick run looks only where it is told to."""
    if options.quick and options.data_dir is None:
        print("Table A2 needs data files: set --data-dir.")
        return
    for name in NETWORKS:
        key = {"table": "A2", "graph": name}
        if records.find(**key) is not None:
            continue
        start = time.perf_counter()
        try:
            counts = count(load_citation(name, options.data_dir))
        except DataError as error:
            print(f"Table A2 without {name}: {error}")
        else:
            records.add(key, asdict(counts), time.perf_counter() - start)


def blocks(records: Records) -> dict[str, str]:
    """Return what ``docs/reproduction.md`` shows of the records."""
    return {f"citation-{part}": _block(part, records) for part in PARTS}


def _block(part: str, records: Records) -> str:
    return f"{getattr(tables, part)(records, markdown=True)}\n\n{fill(NOTES[part], 125, break_on_hyphens=False)}"


def _chosen(only: tuple[str, ...]) -> tuple[set[str], list[str], list[str]]:
    """Return the parts, the methods of Table A3 and the classifiers that ``--only`` names; all, if it names none."""
    known = {*PARTS, *METHODS, *CLASSIFIERS}
    if unknown := sorted(set(only) - known):
        raise SystemExit(f"citation: got --only {', '.join(unknown)}, expected one of {', '.join(sorted(known))}.")
    methods = [name for name in METHODS if name in only]
    classifiers = [name for name in CLASSIFIERS if name in only]
    parts = {part for part in PARTS if not only or part in only}
    parts |= {"recurrent"} if methods else set()
    parts |= {"comparison"} if classifiers else set()
    return parts, methods or list(METHODS), classifiers or list(CLASSIFIERS)
