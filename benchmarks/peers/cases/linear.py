"""Linear systems ``A x = b`` that solvers answered wrongly: drift, scale, singularity, budgets, bad input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.peers.cases.case import Case

__all__ = ["GENERAL", "LINEAR_CASES", "LinearProblem", "contraction", "spd"]

# Families of methods. "adjoint" is the gradient of a linear fixed point, whose backward pass solves A x = b.
GENERAL = frozenset({"gmres", "bicgstab", "lsmr", "normal cg", "neumann", "dense", "adjoint", "default"})


@dataclass(frozen=True)
class LinearProblem:
    """``A x = b`` in the dtype of ``rhs``, and the settings that each solver is to be given."""

    matrix: Any
    rhs: Any
    families: frozenset[str] = GENERAL
    rtol: float = 1e-5
    max_iters: int | None = None
    restart: int | None = None
    x0: Any = None
    symmetric: bool = False
    fault: str | None = None  # what the operator does wrong: see cases/operators.py

    def __post_init__(self) -> None:
        if self.symmetric:
            object.__setattr__(self, "families", self.families | {"cg", "minres"})

    @property
    def size(self) -> int:
        """``n``."""
        return len(self.rhs)

    def error(self, x: Any) -> float:
        """Return ``norm(b - A x) / norm(b)``, in double precision and safe for any scale."""
        matrix, rhs, x = (np.asarray(part, dtype=np.float64) for part in (self.matrix, self.rhs, x))
        if x.shape != rhs.shape:
            return float("inf")
        scale = float(np.abs(rhs).max()) or 1.0
        residual = rhs / scale - matrix @ (x / scale)
        return float(np.linalg.norm(residual) / np.linalg.norm(rhs / scale))


def rotated(values: Any, seed: int = 0) -> Any:
    """Return a symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix = (q * np.asarray(values)) @ q.T
    return (matrix + matrix.T) / 2


def spd(n: int, condition: float, dtype: str, seed: int = 0) -> tuple[Any, Any]:
    """Return a symmetric positive definite matrix of this condition, and a random right-hand side."""
    rhs = np.random.default_rng(seed + 1).standard_normal(n)
    return rotated(np.geomspace(1 / condition, 1.0, n), seed).astype(dtype), rhs.astype(dtype)


def contraction(scale: float = 1.0, dtype: str = "float64", n: int = 30) -> tuple[Any, Any]:
    """Return ``I - 0.3 G / sqrt(n)`` for a Gaussian ``G``, of condition 3 or so, and ``scale`` times a random b."""
    rng = np.random.default_rng(0)
    matrix = np.eye(n) - 0.3 * rng.standard_normal((n, n)) / np.sqrt(n)
    return matrix.astype(dtype), (rng.standard_normal(n) * scale).astype(dtype)


def _scaled(scale: float, dtype: str) -> LinearProblem:
    return LinearProblem(*contraction(scale, dtype))


def _drift(values: Any, dtype: str, rtol: float) -> LinearProblem:
    rhs = np.random.default_rng(1).standard_normal(len(values)).astype(dtype)
    return LinearProblem(rotated(values).astype(dtype), rhs, frozenset(), rtol, symmetric=True, max_iters=3000)


def _normal_matrix(scale: float, dtype: str) -> tuple[Any, Any]:
    matrix, rhs = contraction(scale, dtype)
    return (matrix.astype(float) @ matrix.T.astype(float)).astype(dtype), rhs


def _symmetric_scaled(scale: float, dtype: str) -> LinearProblem:
    return LinearProblem(*_normal_matrix(scale, dtype), families=frozenset(), rtol=1e-4, symmetric=True)


def _singular(values: Any, seed: int = 3) -> LinearProblem:
    rng = np.random.default_rng(seed)
    n = len(values)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return LinearProblem((left * np.asarray(values)) @ right, rng.standard_normal(n), max_iters=500)


def _diagonal(*values: float) -> LinearProblem:
    return LinearProblem(np.diag(np.asarray(values, dtype=float)), np.ones(len(values)), frozenset(), symmetric=True)


def _jordan() -> LinearProblem:
    n = 16
    matrix = np.eye(n) - (0.5 * np.eye(n) + 2.0 * np.eye(n, k=1))
    return LinearProblem(matrix, np.random.default_rng(0).standard_normal(n), max_iters=2000)


def _cyclic() -> LinearProblem:
    n = 20
    rhs = np.random.default_rng(0).standard_normal(n)
    return LinearProblem(np.roll(np.eye(n), 1, axis=0), rhs, frozenset({"gmres"}), restart=5, max_iters=100)


def _with_zeros() -> LinearProblem:
    matrix, rhs = _normal_matrix(1.0, "float64")
    rhs[3:9] = 0.0
    return LinearProblem(matrix, rhs, GENERAL - {"neumann", "adjoint"}, symmetric=True)


def _negated() -> LinearProblem:
    matrix, rhs = contraction()
    return LinearProblem(-matrix, rhs, GENERAL - {"neumann", "adjoint"})


def _exact_start() -> LinearProblem:
    matrix, rhs = _normal_matrix(1.0, "float64")
    return LinearProblem(matrix, rhs, x0=np.linalg.solve(matrix, rhs), symmetric=True)


def _budget(steps: int) -> LinearProblem:
    matrix, rhs = spd(30, 100.0, "float64")
    return LinearProblem(matrix, rhs, max_iters=steps, symmetric=True)


def _with_nan(where: str) -> LinearProblem:
    matrix, rhs = _normal_matrix(1.0, "float64")
    (matrix[3] if where == "matrix" else rhs)[3] = np.nan
    return LinearProblem(matrix, rhs, symmetric=True, max_iters=200)


def _wide_spectrum() -> LinearProblem:
    """``x`` is 1e4 times ``b``, so a residual of ``1e-6 norm(A) norm(x)`` is one of ``1e-2 norm(b)``."""
    rng = np.random.default_rng(5)
    n = 40
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    matrix, rhs = (left * np.geomspace(1e-4, 1.0, n)) @ right, left[:, :6] @ rng.standard_normal(6)
    return LinearProblem(matrix, rhs, frozenset({"lsmr", "default"}), rtol=1e-6, max_iters=2000)


LINEAR_CASES = [
    Case("CG in float32 says success for a true residual only",
         "scipy#8407 and #18488: the recomputed residual that one added is gone from the other",
         "SPD, eigenvalues 1e-5 to 1 in geometric order, n = 300, float32, rtol 1e-6",
         "converge, or say that the bound was not met", lambda: _drift(np.geomspace(1e-5, 1.0, 300), "float32", 1e-6),
         2e-6),
    Case("CG in float64 says success for a true residual only",
         "the same", "SPD, eigenvalues 1e-7 to 1, evenly spread, n = 300, float64, rtol 1e-12",
         "converge, or say that the bound was not met", lambda: _drift(np.linspace(1e-7, 1.0, 300), "float64", 1e-12),
         2e-12),
    Case("A symmetric system with a right-hand side of 1e12 is solved",
         "probe of scipy's minres: its estimate of norm(A) takes norm(b) in",
         "SPD, condition below 10, b times 1e12, rtol 1e-4", "solve it", lambda: _symmetric_scaled(1e12, "float64"),
         1e-3),
    Case("A symmetric system with a right-hand side of 1e6 in float32 is solved",
         "the same", "SPD, condition below 10, float32, b times 1e6, rtol 1e-4", "solve it",
         lambda: _symmetric_scaled(1e6, "float32"), 1e-3),
    Case("A symmetric singular system is no success",
         "probe of scipy's minres: istop 2 to 5 become info 0", "A = diag(0, 1, 2, 3), b = 1",
         "say that there is no solution",
         lambda: _diagonal(0, 1, 2, 3), 1e-3, solvable=False),
    Case("Zero curvature is no division by zero",
         "probes of scipy's and TorchOpt's cg: p^T A p = 0", "A = diag(1, -1), b = 1", "solve it, or say INDEFINITE",
         lambda: _diagonal(1, -1), 1e-4),
    Case("BiCGSTAB in float32 does not break down on an easy system",
         "probe of lineax: thresholds of 1e-16 without a unit", "condition 3, n = 30, float32, rtol 1e-6", "solve it",
         lambda: replace(_scaled(1.0, "float32"), families=frozenset({"bicgstab"}), rtol=1e-6), 1e-5),
    Case("The sign of an operator does not matter", "probe of lineax: omega < 1e-16 without an absolute value",
         "A = -N with N of condition 3, n = 30", "solve it", _negated, 1e-4),
    Case("Exact zeros in the right-hand side cost nothing",
         "probe of lineax: it divides by atol + rtol abs(b), element by element", "SPD, b[3:9] = 0, atol = 0",
         "solve it",
         _with_zeros, 1e-4),
    Case("A right-hand side of 1e-8 in float32 is solved",
         "probes of scipy's bicgstab and lineax's GMRES; backward passes of mean losses",
         "condition 3, b times 1e-8, float32",
         "the same relative answer", lambda: _scaled(1e-8, "float32"), 1e-3),
    Case("A right-hand side of 1e-20 in float64 is solved",
         "probe of scipy's bicgstab: rho is compared with eps^2", "condition 3, b times 1e-20, float64",
         "the same relative answer", lambda: _scaled(1e-20, "float64"), 1e-3),
    Case("A right-hand side of 1e-25 in float32 is solved", "fault 40: norm(b)^2 underflows",
         "condition 3, b times 1e-25, float32", "the same relative answer", lambda: _scaled(1e-25, "float32"), 1e-3),
    Case("A right-hand side of 1e20 in float32 is solved", "fault 39: norm(b)^2 overflows",
         "condition 3, b times 1e20, float32", "the same relative answer", lambda: _scaled(1e20, "float32"), 1e-3),
    Case("A right-hand side of 1e-200 in float64 is solved", "fault 42: norm(b)^2 underflows",
         "condition 3, b times 1e-200, float64", "the same relative answer", lambda: _scaled(1e-200, "float64"),
         1e-3),
    Case("A right-hand side of 1e200 in float64 is solved", "fault 42: norm(b)^2 overflows",
         "condition 3, b times 1e200, float64", "the same relative answer", lambda: _scaled(1e200, "float64"), 1e-3),
    Case("A small backward error is no small residual",
         "LSMR's own test, norm(r) <= rtol (norm(A) norm(x) + norm(b))",
         "singular values 1e-4 to 1, b in the range of the six smallest, rtol 1e-6, 2000 steps",
         "reach the residual, or say that it was not reached",
         _wide_spectrum, 1e-5),
    Case("A singular system without a solution is no success", "fault 24; lineax#18",
         "four of twelve singular values 0, b out of range, 500 steps", "say least squares, or singular",
         lambda: _singular([0] * 4 + [1.0] * 8), 1e-3, solvable=False),
    Case("J = I is never solved", "fault 22", "A = 0, b = 1, 100 steps", "say that there is no solution",
         lambda: LinearProblem(np.zeros((5, 5)), np.ones(5), max_iters=100), 1e-3, solvable=False),
    Case("An operator far from normal is solved, or said not to be",
         "fault 28: the normal equations square the condition",
         "A = 0.5 I - 2 shift, n = 16, 2000 steps", "solve it, or say that it was not solved", _jordan, 1e-3),
    Case("A restart that stagnates is said", "jax#15837, KrylovKit.jl#70: GMRES(5) of a cyclic shift hardly moves",
         "cyclic shift, n = 20, random b, restart 5, 100 steps", "say that nothing was gained", _cyclic, 1e-3),
    Case("A start at the solution is the solution", "scipy#19952 (NaN until then); Krylov.jl#959",
         "SPD, x0 = the solution", "return it, for a product or two", _exact_start, 1e-4),
    Case("No steps allowed is no success", "fault 64", "SPD, condition 100, max_iters = 0",
         "say that nothing was done",
         lambda: _budget(0), 1e-4),
    Case("A budget of two steps that is spent is said", "fault 70", "SPD, condition 100, max_iters = 2", "say so",
         lambda: _budget(2), 1e-4),
    Case("NaN in the right-hand side is said", "fault 45", "SPD, b[3] = NaN", "refuse it, or say NONFINITE",
         lambda: _with_nan("rhs"), 1e-4, solvable=False),
    Case("NaN in the matrix is said", "fault 47", "SPD but for A[3, 3] = NaN", "say NONFINITE",
         lambda: _with_nan("matrix"), 1e-4, solvable=False),
]  # fmt: skip
