"""What a library answered, and what is to be thought of it: right, reported, or wrong without a word."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

__all__ = ["Answer", "Finding", "Verdict", "judge"]


class Verdict(Enum):
    """How one method of one library fared in one case; the later, the worse."""

    NOT_INSTALLED = "not installed"
    NOT_APPLICABLE = "–"
    RIGHT = "right"
    REPORTED = "reported"
    WARNED = "wrong, flag good, a warning"
    NAN_SILENT = "NaN silent"
    SILENT_WRONG = "SILENT WRONG"
    CRASH = "crash"
    HANG = "hang"


@dataclass(frozen=True)
class Answer:
    """What came back.

    ``value`` is a vector or a number. ``said`` is True where the library called it a success, False where it called it
    a failure, and None where it has no channel for either. ``words`` quotes what it said. A residual that is handed
    back unasked and lies above the tolerance counts as "a failure".
    """

    value: Any
    said: bool | None = None
    words: str = ""


@dataclass(frozen=True)
class Finding:
    """A verdict, the relative error it rests on (None: no number), and what the library said."""

    verdict: Verdict
    error: float | None = None
    words: str = ""


def judge(error: float, tolerance: float, answer: Answer, warnings: list[str]) -> Finding:
    """Judge an answer by its relative error (``inf`` where no answer is right); NaN is an error of its own.

    A warning is a report where it is the only channel. Where a flag says success beside it, whoever reads the flag is
    misled, which is a verdict of its own.
    """
    finite = bool(np.isfinite(np.asarray(answer.value)).all())
    words = "; ".join(filter(None, [answer.words, *warnings]))
    if finite and error <= tolerance:
        if answer.said is False:
            return Finding(Verdict.REPORTED, error, f"{words}; the value is right")
        return Finding(Verdict.RIGHT, error, answer.words)
    if answer.said is False or (warnings and answer.said is None):
        verdict = Verdict.REPORTED
    elif warnings:
        verdict = Verdict.WARNED
    else:
        verdict = Verdict.SILENT_WRONG if finite else Verdict.NAN_SILENT
    return Finding(verdict, error if finite else None, words)
