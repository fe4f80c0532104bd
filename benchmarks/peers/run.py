"""Give every case to every library, each library in processes of its own, and collect what was found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.verdict import Finding, Verdict

__all__ = ["Findings", "run_library"]

ROOT = Path(__file__).parents[2]
Findings = dict[str, dict[str, Finding]]  # case -> method -> finding; no method where nothing fits


def run_library(command: Sequence[str], names: Iterable[str]) -> Findings:
    """Run ``command`` with the cases that are left until none is.

    Parameters
    ----------
    command : sequence of str
        Writes what ``benchmarks.peers.worker`` writes. A process that ends in the midst of a method gives that method
        the verdict, a hang where the worker's clock ended it; the case is not tried again.
    names : iterable of str
        Names of cases.
    """
    findings: Findings = {}
    left = list(names)
    while left:
        done = subprocess.run([*command, *left], cwd=ROOT, capture_output=True, text=True)
        begun: tuple[str, str] | None = None
        for line in _lines(done.stdout):
            of_case = findings.setdefault(line["case"], {})
            if "verdict" in line:
                of_case[line["method"]] = Finding(Verdict[line["verdict"]], line["error"], line["words"])
                begun = None
            elif "done" in line:
                left.remove(line["case"])
            else:
                begun = (line["case"], line["method"])
        if not left:
            break
        if begun is None:
            raise RuntimeError(f"{command} ended with code {done.returncode} before any method: {done.stderr[-2000:]}")
        case, method = begun
        hung = done.returncode in (-signal.SIGPROF, -signal.SIGALRM)
        words = "no end within the limit" if hung else f"the process ended with code {done.returncode}"
        findings[case][method] = Finding(Verdict.HANG if hung else Verdict.CRASH, None, words)
        left.remove(case)
    return findings


def _lines(output: str) -> Iterable[dict[str, Any]]:
    """Return the lines that are JSON: libraries in Fortran and C write others to the same place."""
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def worker_of(library: str) -> list[str]:
    """Return the command that runs a library of the zoo."""
    return [sys.executable, "-m", "benchmarks.peers.worker", library]
