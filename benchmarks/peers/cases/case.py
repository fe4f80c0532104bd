"""A case of the zoo: a problem, where it comes from, and how an answer to it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One fault that was met, as a problem that every library can be given.

    Parameters
    ----------
    name : str
        What holds where all is well, in one short sentence.
    source : str
        Where it was met: a thread of the library, or the probe that found it.
    premise : str
        The problem, and the settings that every library is given.
    right : str
        What a library should do.
    make : callable
        Builds the problem, a ``LinearProblem``, ``GradientProblem`` or ``SpectralProblem``.
    tolerance : float
        The largest relative error that passes for right.
    solvable : bool
        Whether there is an answer. Where there is none, only a report is right.
    """

    name: str
    source: str
    premise: str
    right: str
    make: Callable[[], Any]
    tolerance: float
    solvable: bool = True

    def error(self, problem: Any, value: Any) -> float:
        """Return the relative error of ``value``, ``inf`` where no value is right."""
        return float(problem.error(value)) if self.solvable else float("inf")
