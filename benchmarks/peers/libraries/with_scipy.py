"""SciPy: scipy.sparse.linalg."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse.linalg as sla

from benchmarks.peers.cases.linear import LinearProblem
from benchmarks.peers.cases.operators import product_of
from benchmarks.peers.cases.spectrum import SpectralProblem
from benchmarks.peers.verdict import Answer

__all__ = ["methods"]

FAMILIES = {
    "cg": ("cg",),
    "minres": ("minres",),
    "gmres": ("gmres", "lgmres", "gcrotmk"),
    "bicgstab": ("bicgstab", "bicg", "cgs", "tfqmr", "qmr"),
    "lsmr": ("lsmr", "lsqr"),
}


def methods(problem: Any) -> dict[str, Callable[[], Answer]]:
    """Return every solver that fits the problem."""
    if isinstance(problem, LinearProblem):
        names = [name for family, group in FAMILIES.items() if family in problem.families for name in group]
        return {name: partial(_solve, problem, name) for name in names}
    if isinstance(problem, SpectralProblem):
        return _spectra(problem)
    return {}


def _solve(problem: LinearProblem, name: str) -> Answer:
    products = 0
    product = product_of(problem, problem.matrix)

    def matvec(u: Any) -> Any:
        nonlocal products
        products += 1
        return product(u)

    def rmatvec(u: Any) -> Any:
        nonlocal products
        products += 1
        return problem.matrix.T @ u

    dtype = problem.rhs.dtype
    operator = sla.LinearOperator((problem.size,) * 2, matvec=matvec, rmatvec=rmatvec, dtype=dtype)

    def count():
        return f"{products} product{'' if products == 1 else 's'}"

    b, x0, cap = problem.rhs.copy(), problem.x0, problem.max_iters
    if name in ("lsmr", "lsqr"):
        tolerances = {"atol": problem.rtol, "btol": problem.rtol}
        limit = {} if cap is None else {"maxiter" if name == "lsmr" else "iter_lim": cap}
        x, istop, *_ = getattr(sla, name)(operator, b, x0=x0, **tolerances, **limit)
        # 0 and 1: a solution; 2: a least-squares solution, which is a report; 4: 1 at the precision; else limits
        return Answer(x, istop in (0, 1, 4), f"istop = {istop}, {count()}")
    settings: dict[str, Any] = {"rtol": problem.rtol} if cap is None else {"rtol": problem.rtol, "maxiter": cap}
    if name == "gmres":
        settings["restart"] = problem.restart or max(1, min(problem.size, 100, cap or 100))
        if cap is not None:
            settings["maxiter"] = -(-cap // settings["restart"])  # its maxiter counts restarts
    if name in ("lgmres", "gcrotmk"):
        inner = problem.restart or max(1, min(30, cap or 30))
        settings |= {"inner_m" if name == "lgmres" else "m": inner} | (
            {} if cap is None else {"maxiter": -(-cap // inner)}
        )
    x, info = getattr(sla, name)(operator, b, x0=x0, **settings)
    return Answer(x, info == 0, f"info = {info}, {count()}")


def _spectra(problem: SpectralProblem) -> dict[str, Callable[[], Answer]]:
    if problem.singular:
        return {f"svds {solver}": partial(_svds, problem, solver) for solver in ("arpack", "lobpcg", "propack")}
    return {"eigsh SA": partial(_eigsh, problem), "lobpcg": partial(_lobpcg, problem)}


def _eigsh(problem: SpectralProblem) -> Answer:
    operator = sla.aslinearoperator(problem.matrix)
    value = sla.eigsh(operator, k=1, which="SA", v0=problem.start, return_eigenvectors=False)
    return Answer(value[0], True, "returned, which eigsh does on convergence only")


def _lobpcg(problem: SpectralProblem) -> Answer:
    n = len(problem.matrix)
    start = np.random.default_rng(0).standard_normal(n) if problem.start is None else problem.start
    value, _ = sla.lobpcg(problem.matrix, start[:, None], largest=False)
    return Answer(value[0], None, "no flag")


def _svds(problem: SpectralProblem, solver: str) -> Answer:
    _, value, _ = sla.svds(problem.matrix, k=1, which="SM", solver=solver, rng=np.random.default_rng(0))
    return Answer(value[0], None, "no flag")
