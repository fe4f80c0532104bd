"""The trials that have no record yet, cell by cell; an interrupted run continues, in the middle of a trial too.

Used by ``__init__.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.paper.records import Records

from .digits import Digits
from .methods import BPTT
from .settings import Plan, Setting
from .trials import Trials

__all__ = ["SUCCESS", "key_of", "run_cells", "succeeded", "train"]

SUCCESS = 0.5  # of the initial loss: the paper's criterion
_CHECKPOINT_EVERY = 60.0  # seconds
_CURVE_POINTS = 50


def key_of(setting: Setting, method: str, truncate: int, trial: int, part: str = "A1") -> dict[str, Any]:
    """Return what tells a trial from any other; BPTT has no truncation."""
    return {"table": part, "method": method, "truncate": 0 if method == BPTT else truncate, "trial": trial} | asdict(
        setting
    )


def run_cells(plan: Plan, digits: Digits, records: Records) -> None:
    """Run the table's trials: a few of every cell, then the next few, so that all cells stay even."""
    methods = [method for method in plan.methods if method != BPTT]
    cells = [(truncate, method) for truncate in plan.truncations for method in methods]
    groups = [range(first, min(first + plan.at_once, plan.trials)) for first in range(0, plan.trials, plan.at_once)]
    with tqdm(total=len(cells) * plan.trials, desc="Table A1", unit="trial") as bar:
        for group in groups:
            for truncate, method in cells:
                keys = {trial: key_of(plan.setting, method, truncate, trial) for trial in group}
                todo = [trial for trial, key in keys.items() if records.find(**key) is None]
                if todo:
                    trials = Trials(plan.setting, method, truncate, todo, digits, records.device)
                    train(trials, records.path, f"{method} {truncate}")
                    for trial, result in zip(todo, results(trials), strict=True):
                        records.add(keys[trial], result, trials.seconds / len(todo))
                    checkpoint_of(trials, records.path).unlink(missing_ok=True)
                bar.update(len(group))


def train(trials: Trials, records: Path, name: str) -> None:
    """Bring trials to their last epoch, from their checkpoint if there is one."""
    checkpoint = checkpoint_of(trials, records)
    if checkpoint.exists():
        trials.load(checkpoint)
    saved = time.monotonic()
    total, done = trials.setting.epochs, trials.epoch
    with tqdm(total=total, initial=done, desc=name, unit="epoch", leave=False, mininterval=1) as bar:
        while not trials.done:
            trials.advance()
            bar.update()
            bar.set_postfix_str(f"loss {trials.curve[-1][0]:.3f}", refresh=False)
            if time.monotonic() - saved > _CHECKPOINT_EVERY:
                trials.save(checkpoint)
                saved = time.monotonic()


def checkpoint_of(trials: Trials, records: Path) -> Path:
    """Return where these trials are kept while they are not finished."""
    text = json.dumps([asdict(trials.setting), trials.method, trials.truncate, trials.numbers])
    name = f"{trials.method}-{trials.truncate}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt"
    return records.with_suffix("") / name.replace(" ", "-")


def results(trials: Trials) -> list[dict[str, Any]]:
    """Return what is written down of each trial."""
    last = trials.evaluate()
    recalled = trials.recall(trials.corrupted) > 0.5
    wrong = (recalled != (trials.images > 0.5)).float().mean(dim=(1, 2)).tolist()  # of the pixels, from half the ink
    every = max(1, math.ceil(trials.epoch / _CURVE_POINTS))
    kept = sorted({*range(0, trials.epoch, every), trials.epoch - 1})
    return [
        {
            "untrained": trials.untrained[i],
            "first": trials.curve[0][i],
            "final": trials.curve[-1][i],
            "trained": last[i],
            "wrong": wrong[i],
            "curve": [[epoch, trials.curve[epoch][i]] for epoch in kept],
            "forward": dict(trials.forward[i]),
            "backward": dict(trials.backward[i]),
            "updates": trials.updates / trials.steps,
            "products": trials.products / trials.steps,
        }
        for i in range(len(trials.numbers))
    ]


def succeeded(result: dict[str, Any], initial: str) -> bool:
    """Say whether the final loss is below half of the ``"first"`` or ``"untrained"`` one; a lost number is no success.

    Two readings of "initial": the mean over the first epoch, which trains already, and the loss before any step.
    """
    final, start = result["final"], result[initial]
    return final is not None and start is not None and math.isfinite(final) and final < SUCCESS * start
