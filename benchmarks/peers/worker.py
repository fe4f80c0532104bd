"""One library, case after case, in a process of its own: a crash or a hang is a verdict, not the end of the table.

``python -m benchmarks.peers.worker LIBRARY CASE [CASE ...]`` writes a line of JSON before a method is called, with its
name, and one after it, with the finding. A method that works for more than ``CPU_SECONDS`` of processor time, or waits
for more than ``WALL_SECONDS``, ends the process by a signal.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.verdict import Answer, Finding, Verdict, judge

__all__ = ["find"]

CPU_SECONDS, WALL_SECONDS = 20, 240  # the second ends threads that wait for each other


def find(case: Case, problem: Any, method: Callable[[], Answer], reports: type[Exception] = Exception) -> Finding:
    """Call ``method`` and judge what it answers; an exception of the class ``reports`` is a report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = method()
        except reports as error:
            return Finding(Verdict.REPORTED, None, f"{type(error).__name__}: {_first_line(error)[:90]}")
    heard = [
        f"{w.category.__name__}: {str(w.message).strip().splitlines()[0][:70]}" for w in caught if _counts(w.category)
    ]
    return judge(case.error(problem, answer.value), case.tolerance, answer, list(dict.fromkeys(heard))[:1])


def _first_line(words: Any) -> str:
    return (str(words).strip().splitlines() or [""])[0]


def _counts(category: type[Warning]) -> bool:
    """Whether a warning is about the numbers: what is deprecated, or no longer kept up, is not."""
    return not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)


def main(library: str, *names: str) -> None:
    """Write the findings of ``library`` in the cases of these names."""
    for name in names:
        case = CASES[name]
        problem = case.make()
        for method, call in LIBRARIES[library].methods(problem).items():
            print(json.dumps({"case": name, "method": method}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # their signals end the process
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            finding = find(case, problem, call)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            line = {"verdict": finding.verdict.name, "error": finding.error, "words": finding.words}
            print(json.dumps({"case": name, "method": method, **line}), flush=True)
        print(json.dumps({"case": name, "done": True}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
