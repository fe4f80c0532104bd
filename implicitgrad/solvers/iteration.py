"""The loop around every iterative method: verified cycles.

A method is a generator, ``iterations(system, x, r)``, that starts at an iterate ``x`` with true residual ``r`` and
yields, after each step, its estimate of the residual norm and the iterate. This file does the rest, the same for all:

1. run the method until every system has *claimed* its bound, broken down, diverged or spent its budget: one cycle;
2. recompute ``b - A x`` with one product. Only this residual can say ``CONVERGED``;
3. where the claim was false, start another cycle from the recomputed residual, unless the last one gained nothing.

So a recurrence that drifts from the truth is restarted rather than believed, a restarted method is a sequence of short
cycles, and the price of a certificate is one product a solve.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array, Scalar
from implicitgrad.backends.base import all_true
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers.base import Solution, Solver, check_system, default_max_iters
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["IterativeSolver"]

# Why a system left a cycle, beside a Status, which means that the method could not go on.
_CLAIM, _BUDGET, _RESTART = "claim", "budget", "restart"


class IterativeSolver(Solver):
    """Interface of the methods that iterate. A finished one is a frozen dataclass with these four settings."""

    rtol: float | None
    atol: float
    max_iters: int | None
    final_residual: bool

    square: ClassVar[bool] = True
    stationary: ClassVar[bool] = False  # x <- (I - A) x + b: its first iterate is b, not 0, and max_iters=0 is a budget

    @abstractmethod
    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Scalar, Any]]:
        """Yield ``(residual norm, iterate)`` at the start and after each step, from ``x`` with residual ``r``.

        ``x`` is None for zero. An iterate may be a callable that forms it when asked. After each ``yield``, pass the
        vectors of the recurrence through ``system.park``.
        """

    def cycle_length(self) -> int | None:
        """Return after how many steps a cycle ends of itself; None for never."""
        return None

    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``; see ``Solver.solve``."""
        check_system(f"{self.name}.solve", operator, rhs, x0, square=self.square)
        return _Run(self, operator, rhs, x0).solution()


@dataclass
class _Cycle:
    """How each system left a cycle: why, after how many steps, from which residual norm to which promised one."""

    reason: Any
    steps: Any
    started_from: Any
    promised: Any


class _Run:
    """One solve. The books are host arrays ``(...)``, one entry a system; 0-d for one system."""

    def __init__(self, method: IterativeSolver, operator: LinearOperator, rhs: Array, x0: Array | None) -> None:
        self.method = method
        self.system = system = System(operator, rhs, method.rtol, method.atol)
        most = method.max_iters
        self.max_iters = default_max_iters(operator.shape[1], method.stationary) if most is None else int(most)
        self.fixed = system.fixed_budget or (method.stationary and self.max_iters == 0)
        self.status = np.full(system.batch, None, dtype=object)
        self.iters = np.zeros(system.batch, dtype=int)
        self.false_claims = np.zeros(system.batch, dtype=int)
        self.history: list[Any] = []
        self.open = system.finite & (np.asarray(system.rhs_norm) > 0)
        self.status[~system.finite] = Status.NONFINITE_INPUT
        self.status[system.finite & ~self.open] = Status.CONVERGED  # b = 0 has the answer 0, whatever A is

        self.x: Array | None = None  # where the next cycle starts, None for zero; r is its true residual
        self.r = system.rhs
        self.r_norm = np.array(system.rhs_norm, dtype=float)
        self.best = system.zero()
        self.best_norm = np.where(self.open & method.stationary, np.inf, self.r_norm)
        self.best_norm[~system.finite] = np.nan
        self.measured = True

        if x0 is not None and self.open.any():
            self._start_at(x0)
        if self.max_iters == 0 and not method.stationary:
            self._close(self.open, Status.TRUNCATED if self.fixed else Status.MAX_ITERS)
        while self.open.any():
            x, cycle = self._cycle()
            self._conclude(x, cycle)

    def _start_at(self, x0: Array) -> None:
        """Start from the caller's guess: its residual costs the one product that an exact guess needs."""
        system, backend = self.system, self.system.backend
        x0 = backend.stop_gradient(x0)
        if system.half:
            x0 = backend.astype(x0, system.rhs.dtype)
        self._close(self.open & ~np.isfinite(np.asarray(backend.max_abs(x0))), Status.NONFINITE_INPUT)
        if self.open.any():
            self.x = backend.times_power_of_two(system.keep(self.open, x0), -system.exponent)
            self._measure(self.x)
            self._close(self.open & (self.r_norm <= system.threshold) & (not self.fixed), Status.CONVERGED)
            self._close(self.open & ~np.isfinite(self.r_norm), Status.NONFINITE_OPERATOR)

    def _close(self, where: Any, status: Status) -> None:
        self.status[where] = status
        self.open = self.open & ~where

    def _measure(self, x: Array) -> None:
        """Recompute the residual of ``x``, one product, and keep ``x`` where it is the best so far."""
        system = self.system
        self.x, self.r = x, system.residual(x)
        self.r_norm = np.array(system.backend.to_host(system.backend.norm(self.r)), dtype=float)
        better = self.open & (self.r_norm < self.best_norm)
        if better.all():
            self.best = x
        elif better.any():
            self.best = system.backend.select(better, x, self.best)
        self.best_norm = np.where(better, self.r_norm, self.best_norm)

    def _cycle(self) -> tuple[Array, _Cycle]:
        """Run the method from ``(x, r)`` until every open system has left it; return its best iterates."""
        system, method = self.system, self.method
        started_from = np.where(self.open, self.r_norm, 0.0)
        cycle = _Cycle(np.full(system.batch, None, dtype=object), np.zeros(system.batch, dtype=int), started_from, None)
        cycle.promised = started_from.copy()
        system.live, system.parking, system.broken = self.open, None, None
        remaining = np.where(self.open, self.max_iters - self.iters, 0)
        last = int(remaining[self.open].min())
        length = method.cycle_length()
        last = last if length is None else min(last, length)

        # Growth by 1/eps leaves no correct digit in x. With a fixed budget only NaN and Inf end a system early.
        tested: Any = np.zeros_like(self.open) if self.fixed else self.open
        limit: Any = np.where(tested, system.threshold, -1.0)
        ceiling: Any = np.where(tested, started_from / system.eps, np.inf)
        best: Any = system.zero() if self.x is None else self.x
        best_norm: Any = np.full(system.batch, np.inf)
        if system.single:
            limit, ceiling, best_norm = float(limit), float(ceiling), np.inf
        r = self.r if self.open.all() else system.keep(self.open, self.r)

        for step, (estimate, iterate) in enumerate(method.iterations(system, self.x, r)):
            norms = system.backend.to_host(estimate)
            self.history.append(norms if system.single else np.where(system.live, norms, np.nan))
            # With a fixed budget the last iterate is what was asked for, so long as it is finite; else the best one.
            better = norms < (np.inf if self.fixed else best_norm)
            if system.single:
                if better:
                    best, best_norm = iterate, norms
            elif callable(iterate):
                best = iterate  # formed at the end; the systems that have left do not move any more
            else:
                better = np.asarray(better) & system.live
                if better.any():
                    best = iterate if better.all() else system.backend.select(better, iterate, best)
                    best_norm = np.where(better, norms, best_norm)
            system.parking = None
            if step < last and system.broken is None and all_true(norms > limit) and all_true(norms < ceiling):
                continue

            gone = self._leave(cycle, step, last, remaining, norms, limit, ceiling)
            system.live = system.live & ~gone
            if not system.live.any():
                break
            if gone.any():
                system.parking = system.live
                limit = np.where(system.live, limit, -1.0)
                ceiling = np.where(system.live, ceiling, np.inf)
        self.iters = self.iters + cycle.steps
        return (best() if callable(best) else best), cycle

    def _leave(self, cycle: _Cycle, step: int, last: int, remaining: Any, norms: Any, limit: Any, ceiling: Any) -> Any:
        """Write down which of the live systems end here and why; return them as a host mask."""
        system = self.system
        live, norms = system.live, np.asarray(norms)
        reason = np.full(system.batch, None, dtype=object)
        if step >= last:
            reason[live] = _RESTART
            reason[live & (step >= remaining)] = _BUDGET
        reason[live & ~(norms < ceiling)] = Status.DIVERGED
        reason[live & ~np.isfinite(norms)] = Status.NONFINITE_OPERATOR
        if system.broken is not None:
            where, status = system.broken
            reason[live & where] = status
            system.broken = None
        reason[live & (norms <= limit)] = _CLAIM
        gone = np.asarray(reason != np.full(system.batch, None, dtype=object), dtype=bool)
        cycle.reason[gone] = reason[gone]
        cycle.steps[gone] = step
        cycle.promised[gone] = norms[gone]
        return gone

    def _conclude(self, x: Array, cycle: _Cycle) -> None:
        """Measure ``x`` and decide, system by system, what is said and who goes on."""
        system = self.system
        x = system.rounded(x)
        if self.fixed and not self.method.final_residual:
            self.best = x if self.open.all() else system.backend.select(self.open, x, self.best)
            self.measured = False
        else:
            self._measure(x)
            if not self.fixed:
                self._close(self.open & (self.r_norm <= system.threshold), Status.CONVERGED)
        for status in {s for s in cycle.reason[self.open] if isinstance(s, Status)}:
            gained = (self.r_norm < 0.5 * cycle.started_from) & (not self.fixed)
            self._close(self.open & (cycle.reason == status) & ~gained, status)
        if self.fixed:
            self._close(self.open, Status.TRUNCATED)
        if not self.open.any():
            return
        self._close(self.open & ~np.isfinite(self.r_norm), Status.NONFINITE_OPERATOR)

        # The floor of the format: x solves a system within eps of this one, so b - A x is all rounding.
        x_norm = np.asarray(system.backend.to_host(system.backend.norm(x)), dtype=float)
        floor = system.eps * (np.asarray(system.rhs_norm) + system.operator_norm * x_norm)
        self._close(self.open & (self.r_norm <= floor), Status.STAGNATED)
        # A claim is false when the recurrence has drifted. One restart is always granted; later ones must deliver at
        # least half of the decades that the recurrence promised, or rounding is all that is left.
        claim = self.open & (cycle.reason == _CLAIM)
        delivered = self.r_norm <= np.sqrt(cycle.promised) * np.sqrt(cycle.started_from)
        self._close(claim & ~delivered & (self.false_claims > 0), Status.STAGNATED)
        self.false_claims = self.false_claims + claim
        # A restarted method that gains less than a thousandth in a whole cycle repeats that cycle for ever.
        idle = (cycle.reason == _RESTART) & (cycle.steps == self.method.cycle_length())
        self._close(self.open & idle & (self.r_norm > 0.999 * cycle.started_from), Status.STAGNATED)
        self._close(self.open & (self.iters >= self.max_iters), Status.MAX_ITERS)

    def solution(self) -> Solution:
        """Return the best iterates in the caller's scale, with the books."""
        system = self.system
        exponent = np.asarray(system.exponent)

        def restored(values: Any) -> Any:
            values = np.ldexp(np.asarray(values, dtype=float), exponent)
            return float(values) if system.single else values

        rhs_norm = np.where(system.finite, system.rhs_norm, np.nan)
        return Solution(
            x=system.restore(self.best),
            status=self.status.item() if system.single else self.status,
            residual_norm=restored(self.best_norm) if self.measured else None,
            rhs_norm=restored(rhs_norm),
            bound=restored(system.threshold),
            num_iters=int(self.iters) if system.single else self.iters,
            num_matvecs=system.num_matvecs,
            num_rmatvecs=system.num_rmatvecs,
            history=np.ldexp(np.asarray(self.history, dtype=float).reshape(-1, *system.batch), exponent),
            solver=self.method.name,
        )
