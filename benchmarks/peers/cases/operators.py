"""Operators that do not keep their word: they write into their argument, add a constant, forget, or turn to NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.cases.case import Case
from benchmarks.peers.cases.linear import LinearProblem, contraction

__all__ = ["OPERATOR_CASES", "product_of"]


def product_of(problem: LinearProblem, matrix: Any) -> Callable[[Any], Any]:
    """Return ``u -> A u`` with the problem's fault, for a matrix of NumPy, torch or JAX."""
    calls = 0
    rng = np.random.default_rng(7)

    def nan_from_the_third(u: Any) -> Any:
        nonlocal calls
        calls += 1
        return matrix @ u * (1.0 if calls < 3 else float("nan"))

    def writes(u: Any) -> Any:
        product = matrix @ u
        u *= 0.5
        return product

    def forgets(u: Any) -> Any:
        kept = rng.random(problem.size) < 0.9
        mask = kept / 0.9 if isinstance(u, np.ndarray) else u.new_tensor(kept / 0.9)
        return u - (u * mask - matrix @ (u * mask))  # I - J diag(mask)

    return {
        None: lambda u: matrix @ u,
        "affine": lambda u: matrix @ u + 1.0,
        "nan": nan_from_the_third,
        "writes": writes,
        "dropout": forgets,
    }[problem.fault]


class _Affine(LinearProblem):
    def error(self, x: Any) -> float:
        """Measure by the operator as it was handed in: who meets ``A x + 1 = b`` has an answer to it."""
        shifted = LinearProblem(self.matrix, self.rhs - 1.0)
        return shifted.error(x) * float(np.linalg.norm(self.rhs - 1.0) / np.linalg.norm(self.rhs))


def _faulty(fault: str, kind: type[LinearProblem] = LinearProblem) -> LinearProblem:
    return kind(*contraction(), fault=fault, max_iters=200)


PURE = "only where an operator can have a state: JAX traces it once"

OPERATOR_CASES = [
    Case("Products that are NaN from the third on are said", "fault 48", f"condition 3, n = 30; {PURE}",
         "stop, say NONFINITE, keep the last finite iterate", lambda: _faulty("nan"), 1e-3, solvable=False),
    Case("An operator that writes into its argument does no harm, or is refused", "fault 53",
         f"u *= 0.5 after the product; {PURE}", "hand it a copy, or refuse it", lambda: _faulty("writes"), 1e-3),
    Case("An affine operator is no linear one", "fault 51", "the product is A u + 1",
         "meet A x + 1 = b, or say that it was not met", lambda: _faulty("affine", _Affine), 1e-3),
    Case("An operator with dropout is no operator", "fault 55", f"a new mask of 10 % at every product; {PURE}",
         "say that no residual holds", lambda: _faulty("dropout"), 1e-3, solvable=False),
]  # fmt: skip
