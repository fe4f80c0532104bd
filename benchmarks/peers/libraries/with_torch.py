"""torch itself: torch.lobpcg, which takes tensors only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.cases.spectrum import SpectralProblem
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return torch.lobpcg for the smallest eigenvalue."""
    if not isinstance(problem, SpectralProblem) or problem.singular:
        return {}

    def lobpcg() -> Answer:
        torch.manual_seed(0)
        A = torch.tensor(problem.matrix)
        start = None if problem.start is None else torch.tensor(problem.start)[:, None]
        value, _ = torch.lobpcg(A, k=1, X=start, largest=False)
        return Answer(value[0].numpy(), None, "no flag")

    return {"lobpcg": lobpcg}
