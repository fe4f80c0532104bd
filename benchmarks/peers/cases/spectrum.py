"""Smallest eigenvalues and singular values that were wrong, or NaN, or not reached without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.cases.case import Case
from benchmarks.peers.cases.linear import rotated

__all__ = ["SPECTRUM_CASES", "SpectralProblem"]


@dataclass(frozen=True)
class SpectralProblem:
    """The smallest eigenvalue of a symmetric matrix, or the smallest singular value of any.

    ``steps`` is the depth of the Krylov space for methods that want to be told; ``start`` the vector they start from.
    The error is relative to the value, or to the norm of the matrix where the value is 0.
    """

    matrix: Any
    expected: float
    steps: int
    start: Any = None
    singular: bool = False

    def error(self, value: Any) -> float:
        """Return the relative error of one number."""
        value = np.asarray(value, dtype=float)
        if value.shape != ():
            return float("inf")
        scale = abs(self.expected) or float(np.linalg.norm(self.matrix, 2)) or 1.0
        return float(abs(value - self.expected) / scale)


def _invariant() -> SpectralProblem:
    start = np.zeros(20)
    start[:2] = 1.0
    return SpectralProblem(np.diag(np.arange(1.0, 21.0)), 1.0, steps=6, start=start)


def _other_eigenvector() -> SpectralProblem:
    matrix = rotated([1.0, 1.136, 2.0, 3.0, 4.0, 5.0])
    return SpectralProblem(matrix, 1.0, steps=4, start=np.linalg.eigh(matrix)[1][:, 1])


def _small(n: int = 300) -> SpectralProblem:
    return SpectralProblem(rotated(np.geomspace(1e-6, 1.0, n)), 1e-6, steps=100)


def _with_nan() -> SpectralProblem:
    matrix = rotated([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    matrix[1, 2] = np.nan
    return SpectralProblem(matrix, 1.0, steps=6)


def _singular_value(smallest: float, n: int = 200) -> SpectralProblem:
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    values = np.concatenate([[smallest], np.linspace(0.1, 1.0, n - 1)])
    return SpectralProblem((left * values) @ right, smallest, steps=n, singular=True)


SPECTRUM_CASES = [
    Case("The identity has the eigenvalue 1", "fault 94; cupy#8486: no guard against beta = 0",
         "I, n = 50, depth 10", "1", lambda: SpectralProblem(np.eye(50), 1.0, steps=10), 1e-6),
    Case("The zero matrix has the eigenvalue 0", "fault 95", "0, n = 9, depth 6", "0",
         lambda: SpectralProblem(np.zeros((9, 9)), 0.0, steps=6), 1e-6),
    Case("A start in an invariant subspace makes no eigenvalue up", "probe of matfree: -9.2 of a spectrum in [1, 20]",
         "diag(1, ..., 20), start e1 + e2, depth 6", "1, or a report", _invariant, 1e-6),
    Case("A start at another eigenvector does not hide the smallest", "fault 97",
         "eigenvalues 1, 1.136, 2, 3, 4, 5, start at the second, depth 4", "1, or a report", _other_eigenvector,
         1e-6),
    Case("A smallest eigenvalue of 1e-6 is found, or said not to be",
         "probe of torch.lobpcg: 83 % off without a flag",
         "eigenvalues 1e-6 to 1 in geometric order, n = 300; the library's own limits, depth 100",
         "1e-6 to 1 %, or a report",
         _small, 1e-2),
    Case("A matrix that is not symmetric gives itself away", "fault 104",
         "Gaussian, n = 30, to a method for symmetric matrices", "say so",
         lambda: SpectralProblem(np.random.default_rng(0).standard_normal((30, 30)), 0.0, steps=20), 1e-6,
         solvable=False),
    Case("NaN in the matrix of a spectrum is said", "fault 106", "n = 9, A[1, 2] = NaN", "say NONFINITE", _with_nan,
         1e-6,
         solvable=False),
    Case("A smallest singular value of 1e-3 is found, or said not to be",
         "probe of svds: propack 0, lobpcg 2500 % off",
         "1e-3 and the others in [0.1, 1], n = 200, defaults of each method", "1e-3 to 1 %, or a report",
         lambda: _singular_value(1e-3), 1e-2),
    Case("A smallest singular value of 1e-8 is found, or said not to be", "probe: eigvalsh(A^T A) is negative",
         "1e-8 and the others in [0.1, 1], n = 200", "1e-8 to 1 %, or a report", lambda: _singular_value(1e-8), 1e-2),
]  # fmt: skip
