"""The list of runs: each (method, seed) once, by whichever process gets to it first, continued where it was left.

Who uses it: ``table_a3.py``.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.paper.records import Records

from .graph import Graph
from .training import Setting, Training

__all__ = ["MILESTONES", "claimed", "run_all", "run_key"]

MILESTONES = (200, 500, 1000, 2000)  # the last one is the paper's
SEEDS_TOGETHER = 3
EPOCHS_A_CHECKPOINT = 100


def run_key(graph: str, method: str, seed: int, epochs: int, setting: Setting) -> dict[str, object]:
    """Return what tells this run from any other."""
    return {"table": "A3", "graph": graph, "method": method, "seed": seed, "epochs": epochs, **asdict(setting)}


def plan(methods: Sequence[str], seeds: Sequence[int], milestones: Sequence[int]) -> list[list[tuple[int, int, str]]]:
    """Return batches of (epochs, seed, method): three seeds at a time go from milestone to milestone.

    So whenever it is stopped, there are three runs of each method that have come equally far.
    """
    batches = []
    for first in range(0, len(seeds), SEEDS_TOGETHER):
        together = seeds[first : first + SEEDS_TOGETHER]
        batches += [[(epochs, seed, method) for seed in together for method in methods] for epochs in milestones]
    return batches


def run_all(
    graph: Graph,
    batches: list[list[tuple[int, int, str]]],
    setting: Setting,
    records: Records,
    reverse: bool = False,
) -> None:
    """Make the runs that have no record yet; with ``reverse`` each batch from its end, as a second process."""
    order = [run for batch in batches for run in (reversed(batch) if reverse else batch)]
    for epochs, seed, method in tqdm(order, desc="Table A3", unit="run"):
        key = run_key(graph.name, method, seed, epochs, setting)
        if records.find(**key) is not None:
            continue
        checkpoint = records.path.with_suffix("") / f"{graph.name}-{method}-{seed}.pt"
        with claimed(checkpoint.with_suffix(".lock")) as mine:
            if mine and records.find(**key) is None:
                training = Training(graph, method, seed, setting, records.device)
                if checkpoint.exists():
                    training.load(checkpoint)
                if training.epoch > epochs:  # it has gone further than what is asked for: begin anew
                    training = Training(graph, method, seed, setting, records.device)
                before = training.curves.seconds
                run_one(training, epochs, checkpoint, f"{method}, seed {seed}")
                records.add(key, training.result(), training.curves.seconds - before)


def run_one(training: Training, epochs: int, checkpoint: Path, name: str) -> None:
    """Bring one run to that epoch."""
    bar = tqdm(total=epochs, initial=training.epoch, desc=name, unit="epoch", leave=False, mininterval=5)
    with bar:
        while not training.done(epochs):
            training.advance()
            bar.update()
            if training.epoch % EPOCHS_A_CHECKPOINT == 0:
                training.save(checkpoint)
                looks = training.curves
                bar.set_postfix(loss=looks.loss[-1], validation=max(looks.validation), refresh=False)
    training.save(checkpoint)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Say whether this process may do the work that ``path`` stands for; the claim ends with the process, however."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
