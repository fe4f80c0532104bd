"""The default solver: picks a method by what the operator offers, and tries another where that one fails."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.errors import MissingProductError
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers.base import Solver, check_settings, check_system, default_max_iters, timed
from implicitgrad.solvers.bicgstab import BiCGSTAB
from implicitgrad.solvers.dense import Dense
from implicitgrad.solvers.gmres import GMRES
from implicitgrad.solvers.lsmr import LSMR
from implicitgrad.solvers.minres import MINRES
from implicitgrad.solvers.solution import Attempt, Solution
from implicitgrad.status import Status

__all__ = ["Auto", "fall_back"]

_SMALL = 256  # up to here the n products of a dense solve are no more than a hard Krylov solve takes anyway
_ROOMY = 64  # most adjoint solves end within so many steps, so that a restart of this length is seldom met
# Nothing else would do better: the data is bad, the format has no more digits, x minimizes the residual, or the batch
# is none.
_FINAL = (
    Status.NONFINITE_INPUT,
    Status.NONFINITE_OPERATOR,
    Status.STAGNATED,
    Status.LEAST_SQUARES,
    Status.COUPLED,
)


@dataclass(frozen=True, kw_only=True)
class Auto(Solver):
    """Choose a solver for ``A x = b``, and fall back to another for the systems where it fails.

    ======================================  ============================================
    operator                                tried in this order
    ======================================  ============================================
    ``symmetric=True``                      MINRES, GMRES
    basis of GMRES within ``memory`` bytes  GMRES, LSMR (with an adjoint), Dense (n <= 256)
    room for 64 vectors of it               GMRES(restart), BiCGSTAB, LSMR (with an adjoint)
    less                                    BiCGSTAB, GMRES(restart), LSMR (with an adjoint)
    ======================================  ============================================

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``.
    max_iters : int, optional
        Most steps of each solver that is tried. None: ``min(10 n, 1000)``.
    memory : int
        Bytes that the basis of GMRES may take. Default 1 GiB.

    Notes
    -----
    GMRES is first because it needs the fewest products of all methods that have the VJP alone. A fallback starts at
    the best iterate so far. ``Solution.attempts`` lists who was tried, with the status, residual and cost of each.
    Where the format's floor is met (``STAGNATED``), the residual is the smallest there is (``LEAST_SQUARES``) or the
    data is not finite, no other method is tried.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> sol = ig.adjoint_solve(ig.DenseOperator(np.array([[0.5]])), np.array([1.0]))
    >>> sol.solver, [a.solver for a in sol.attempts]
    ('GMRES', ['GMRES'])
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    memory: int = 2**30

    def __post_init__(self) -> None:
        check_settings(self)

    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``; see ``Solver.solve``."""
        check_system("Auto.solve", operator, rhs, x0, square=False)
        return fall_back(self._choice(operator, rhs), operator, rhs, x0)

    def _choice(self, operator: LinearOperator, rhs: Array) -> Iterable[Solver]:
        settings: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "max_iters": self.max_iters}
        rows, columns = operator.shape
        if rows != columns:
            return [LSMR(**settings)]
        lsmr = [LSMR(**settings)] if operator.has_adjoint else []
        if operator.symmetric:
            return [MINRES(**settings), GMRES(**settings)]
        steps = default_max_iters(columns) if self.max_iters is None else self.max_iters
        backend = backend_of(rhs)
        vector = max(8, int(np.prod(rhs.shape, dtype=float)) * _bytes(backend.dtype_name(rhs.dtype)))
        room = int(self.memory) // vector - 2
        if room < min(columns, steps):
            restarted, short = GMRES(**settings, restart=max(1, room)), BiCGSTAB(**settings)
            return [restarted, short, *lsmr] if room >= _ROOMY else [short, restarted, *lsmr]
        dense = [Dense(rtol=self.rtol, atol=self.atol)] if columns <= min(_SMALL, steps) else []
        return [GMRES(**settings), *lsmr, *dense]


@timed
def fall_back(
    solvers: Iterable[Solver], operator: LinearOperator, rhs: Array, x0: Array | None = None, stop: Any = _FINAL
) -> Solution:
    """Solve with the first solver, then, for the systems where that failed, with the next, from the best iterate.

    Systems that are done take no part: their right-hand side is set to zero, which costs no step. ``stop`` lists the
    statuses that end the search for a system.
    """
    backend = backend_of(rhs)
    best: Solution | None = None
    attempts: list[Attempt] = []
    for solver in solvers:
        if best is None:
            best = solver.solve(operator, rhs, x0)
            attempts.append(_attempt(best))
            failed = _unsolved(best, stop)
            continue
        if not failed.any():
            break
        zeros = backend.zeros(tuple(rhs.shape), rhs)
        start = backend.select(failed, best.x, backend.zeros(tuple(best.x.shape), best.x))
        try:
            after = solver.solve(operator, backend.select(failed, rhs, zeros), start)
        except MissingProductError as error:  # found out at the product: the first solver's answer stands
            if error.nested:
                raise
            continue
        attempts.append(_attempt(after))
        best = _merge(best, after, failed)
        failed = failed & _unsolved(after, stop)
    assert best is not None  # there is always a first solver
    return replace(
        best,
        attempts=tuple(attempts),
        num_matvecs=sum(a.num_matvecs for a in attempts),
        num_rmatvecs=sum(a.num_rmatvecs for a in attempts),
    )


def _attempt(solution: Solution) -> Attempt:
    return Attempt(
        solution.solver,
        solution.status,
        solution.residual_norm,
        solution.num_matvecs,
        solution.num_rmatvecs,
        solution.seconds,
    )


def _unsolved(solution: Solution, stop: Any) -> Any:
    statuses = np.asarray(solution.status, dtype=object)
    return np.array([not s.is_good and s not in stop for s in statuses.ravel()], dtype=bool).reshape(statuses.shape)


def _merge(first: Solution, second: Solution, failed: Any) -> Solution:
    """Take, for each failed system, the answer with the smaller residual, and its status."""
    single = isinstance(first.status, Status)
    old, new = (np.asarray(s.residual_norm, dtype=float) for s in (first, second))
    better = failed & ((new < old) | np.isnan(old))
    # Two solvers that reach the smallest residual differ by rounding; the one that knows that it is the smallest has
    # the say, and the shorter answer.
    smallest = np.asarray(second.status, dtype=object) == Status.LEAST_SQUARES
    better = better | (failed & smallest.astype(bool) & (new <= 1.01 * old))
    if single:
        chosen = second if better else first
        return replace(
            chosen,
            history=np.concatenate([first.history, second.history]),
            num_iters=first.num_iters + second.num_iters,
        )
    return replace(
        first,
        x=backend_of(first.x).select(better, second.x, first.x),
        status=np.where(better, second.status, first.status),
        residual_norm=np.where(better, new, old),
        num_iters=first.num_iters + np.where(failed, second.num_iters, 0),
        history=np.concatenate([first.history, second.history]),
        solver=f"{first.solver}, {second.solver}" if better.any() else first.solver,
        bias=_merged_bias(first.bias, second.bias, better),
    )


def _merged_bias(first: Any, second: Any, better: Any) -> Any:
    """Take each system's bias from the solver that it has its answer from; NaN where that gave none."""
    if first is None and second is None:
        return None
    return np.where(better, *(math.nan if bias is None else bias for bias in (second, first)))


def _bytes(name: str) -> int:
    return int("".join(filter(str.isdigit, name))) // 8
