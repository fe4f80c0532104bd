"""Train one network with each method of Figure A1 and let it retrieve the ten images. Used by ``__init__.py``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.paper.records import Records

from .cells import checkpoint_of, key_of, succeeded, train
from .digits import Digits
from .figure import Row, draw
from .methods import BPTT, METHODS
from .settings import Plan
from .trials import Trials

__all__ = ["COLUMNS", "make_figure"]

COLUMNS = (BPTT, *(name for name in METHODS if name != "RBP from zero"))  # the paper's (b) to (f), and ours
_LABEL = {"GMRES": "GMRES (ours)"}
_TRIAL = 0


def make_figure(plan: Plan, digits: Digits, records: Records, path: Path) -> None:
    """Draw Figure A1 to ``path``; networks that are on record are not trained again."""
    truth = digits.images
    rows = []
    for method in tqdm([name for name in COLUMNS if name in plan.methods], desc="Figure A1", unit="network"):
        key = key_of(plan.setting, method, plan.figure_truncation, _TRIAL, part="Figure A1")
        line = records.find(**key)
        if line is None:
            trials = Trials(plan.setting, method, plan.figure_truncation, [_TRIAL], digits, records.device)
            train(trials, records.path, method)
            recalled = (trials.recall(trials.corrupted)[0] > 0.5).cpu().numpy()
            records.add(
                key,
                {
                    "input": _packed(trials.corrupted[0].cpu().numpy() > 0.5),
                    "recalled": _packed(recalled),
                    "untrained": trials.untrained[0],
                    "first": trials.curve[0][0],
                    "final": trials.curve[-1][0],
                },
                trials.seconds,
            )
            checkpoint_of(trials, records.path).unlink(missing_ok=True)
            line = records.find(**key)
        result = line["result"]
        if not rows:
            rows.append(Row("corrupted", _unpacked(result["input"], truth.shape)))
        failed = not succeeded(result, "first")
        rows.append(Row(_LABEL.get(method, method), _unpacked(result["recalled"], truth.shape), failed))
    draw(path, truth, rows, _subtitle(plan, digits))


def _subtitle(plan: Plan, digits: Digits) -> str:
    setting = asdict(plan.setting)
    rate = "" if setting["schedule"] == "constant" else ", a rate that falls to zero"
    return (
        f"Ten digits of {digits.side} x {digits.side} pixels, {setting['hidden']} hidden units, K = "
        f"{plan.figure_truncation}, {setting['epochs']} epochs{rate}. Half of the ink of the input is erased.\n"
        "Black: ink as it should be. Pale: ink that is missing. Orange: ink in error. "
        "Red: training did not halve the loss."
    )


def _packed(images: np.ndarray) -> str:
    """Return binary images as hexadecimal digits, a bit a pixel."""
    return np.packbits(images.reshape(-1)).tobytes().hex()


def _unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=int(np.prod(shape)))
    return bits.reshape(shape).astype(bool)
