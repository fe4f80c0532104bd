"""The loop around every iterative method: verified cycles.

A method (``iterative.py``) yields, after each step, its estimate of the residual norm and the iterate. This file does
the rest, the same for all:

1. run the method until every system has *claimed* its bound, broken down, diverged or spent its budget: one cycle;
2. recompute ``b - A x`` with one product. Only this residual can say ``CONVERGED``;
3. where the claim was false, start another cycle from the recomputed residual, unless the last one gained nothing.

So a recurrence that drifts from the truth is restarted rather than believed, a restarted method is a sequence of short
cycles, and the price of a certificate is one product a solve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import all_true, any_true, finite, ldexp, negate, pick
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers.best import Best, Foreseen
from implicitgrad.solvers.solution import Solution
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

if TYPE_CHECKING:
    from implicitgrad.solvers.iterative import IterativeSolver

__all__ = ["Iteration"]

# Why a system left a cycle, beside a Status, which means that the method could not go on.
_CLAIM, _BUDGET, _RESTART = "claim", "budget", "restart"


@dataclass(slots=True)
class _Cycle:
    """How each system left a cycle: why, after how many steps, from which residual norm to which promised one.

    ``behind`` is what to fall back on where the iterate that came back turns out to be worse.
    """

    reason: Any
    steps: Any
    started_from: Any
    promised: Any
    behind: tuple[Any, Array] | None = None


class Iteration:
    """One solve. The books are host values, one a system; see ``backends/host.py`` for their two forms."""

    def __init__(self, method: IterativeSolver, operator: LinearOperator, rhs: Array, x0: Array | None) -> None:
        self.method = method
        self.system = system = System(operator, rhs, method.rtol, method.atol, method.max_iters)
        self.max_iters: Any = method.budget(operator.shape[1], system.batch)
        self.fixed = system.fixed_budget or (method.series and self.max_iters == 0)
        self.takes_last = self.fixed or method.regularized
        self.nothing: Any = None if system.single else np.full(system.batch, None, dtype=object)
        self.zeros: Any = 0 if system.single else np.zeros(system.batch, dtype=int)
        self.status = self.nothing
        self.iters = self.false_claims = self.zeros
        self.history: list[Any] = []
        self.open = system.live
        self._close(negate(system.finite), Status.NONFINITE_INPUT)
        self._close(self.open & (system.rhs_norm == 0), Status.CONVERGED)  # b = 0 has the answer 0, whatever A is

        self.x: Array | None = None  # where the next cycle starts, None for zero; r is its true residual
        self.r: Array | None = system.first_residual()
        self.r_norm = system.rhs_norm
        self.best: Array | None = None  # the best iterate whose residual was measured, None for zero
        self.best_norm = pick(self.open, math.inf, self.r_norm) if method.series else self.r_norm
        self.measured = True

        if x0 is not None and any_true(self.open):
            self._start_at(x0)
        if not method.series and self.max_iters == 0:
            self._close(self.open, method.outcome if self.fixed else Status.MAX_ITERS)
        while any_true(self.open):
            self._conclude(*self._cycle())

    def _start_at(self, x0: Array) -> None:
        """Start from the caller's guess: its residual costs the one product that an exact guess needs."""
        system, backend = self.system, self.system.backend
        x0 = backend.stop_gradient(x0)
        if system.half:
            x0 = backend.astype(x0, system.given.dtype)
        self._close(self.open & negate(finite(backend.max_abs(x0))), Status.NONFINITE_INPUT)
        if any_true(self.open):
            self._measure(backend.times_power_of_two(system.keep(self.open, x0), -system.exponent))
            if not self.fixed:
                self._close(self.open & (self.r_norm <= system.threshold), Status.CONVERGED)
            self._close(self.open & negate(finite(self.r_norm)), Status.NONFINITE_OPERATOR)

    def _close(self, where: Any, status: Status) -> None:
        """End the systems in ``where`` with ``status``."""
        if any_true(where):
            self.status = pick(where, status, self.status)
            self.open = self.open & negate(where)

    def _replace(self, where: Any, x: Array) -> None:
        """Let ``x`` be the answer of the systems in ``where``."""
        if any_true(where):
            self.best = self.system.chosen(where, x, self.best)

    def _measure(self, x: Array) -> None:
        """Recompute the residual of ``x``, one product, and keep ``x`` where it is the best so far."""
        system = self.system
        self.x, self.r = x, system.residual(x)
        self.r_norm = system.backend.host_norm(self.r)
        # The last iterate is what was asked for, so long as it is finite; else the best one.
        better = self.open & (self.r_norm < (math.inf if self.takes_last else self.best_norm))
        self._replace(better, x)
        self.best_norm = pick(better, self.r_norm, self.best_norm)
        if not system.single:
            self._see_coupling(x)

    def _see_coupling(self, x: Array) -> None:
        """Find the systems that were done and are not any more: their residual has changed with their neighbours' x.

        The residual of a system of its own stays what it was, zero where ``b = 0``. Rows that belong together, such as
        the nodes of a graph, end up here when they are handed over as a batch.
        """
        system = self.system
        moved = negate(self.open) & (self.status == Status.CONVERGED) & (self.r_norm > 2 * system.threshold)
        if any_true(moved):
            size = system.rhs_norm + system.operator_norm * system.backend.host_norm(x)
            moved = moved & (self.r_norm > 8 * system.eps * size)
            self.status = pick(moved, Status.COUPLED, self.status)
            self.best_norm = pick(moved, self.r_norm, self.best_norm)

    def _handed_over(self) -> tuple[Array | None, Array]:
        """Return the start of a cycle and its residual, and forget them: a vector held here is one that nobody uses."""
        x, r, self.x, self.r = self.x, self.r, None, None
        return x, (r if all_true(self.open) else self.system.keep(self.open, r))

    def _cycle(self) -> tuple[Array, _Cycle]:
        """Run the method from ``(x, r)`` until every open system has left it; return its best iterates."""
        system, method = self.system, self.method
        single, history = system.single, self.history
        system.live, system.parking, system.broken, system.passed, system.latest = self.open, None, None, None, None
        started_from = pick(self.open, self.r_norm, 0.0)
        cycle = _Cycle(self.nothing, self.zeros, started_from, started_from)
        length = method.cycle_length()
        remaining = self.max_iters - self.iters
        last = self._last_step(remaining, length)

        # Growth by 1/eps leaves no correct digit in x. With a fixed budget only NaN and Inf end a system early.
        # Below eps norm(b) a recurrence goes on falling, and the residual of x does not.
        floor = system.eps * system.rhs_norm
        wanted = pick(system.threshold > floor, system.threshold, floor)
        limit = pick(self.open, -1.0 if self.fixed else wanted, -1.0)
        ceiling = pick(self.open, math.inf if self.fixed else started_from / system.eps, math.inf)
        best = Foreseen(system, self.x) if method.foresees and not self.fixed else Best(system, self.x, self.takes_last)
        poisoned = False

        for step, (norms, iterate) in enumerate(method.iterations(system, *self._handed_over())):
            history.append(norms if single else np.where(system.live, norms, np.nan))
            best.see(norms, iterate)
            if single and limit < norms < ceiling and step < last and system.broken is None:
                continue
            # Zero times a NaN scalar is NaN again: where one has been seen, the vectors are parked at every step.
            system.parking = system.live if poisoned else None
            if step < last and system.broken is None and all_true(norms > limit) and all_true(norms < ceiling):
                continue

            gone = self._leave(cycle, step, remaining, length, norms, limit, ceiling)
            best.leave(gone, cycle.reason == _CLAIM, norms, iterate)
            system.live = system.live & negate(gone)
            if not any_true(system.live):
                break
            if any_true(gone):
                system.parking = system.live
                poisoned = poisoned or any_true(cycle.reason == Status.NONFINITE_OPERATOR)
                limit = pick(system.live, limit, -1.0)
                ceiling = pick(system.live, ceiling, math.inf)
                last = self._last_step(remaining, length)
        self.iters = self.iters + cycle.steps
        system.latest = None  # it holds vectors
        cycle.behind = best.behind()
        return best.result(), cycle

    def _last_step(self, remaining: Any, length: int | None) -> int:
        """Return the step at which the first of the live systems has spent its budget, or the cycle ends."""
        last = int(remaining) if self.system.single else int(remaining[self.system.live].min())
        return last if length is None else min(last, length)

    def _leave(
        self, cycle: _Cycle, step: int, remaining: Any, length: int | None, norms: Any, limit: Any, ceiling: Any
    ) -> Any:
        """Write down which of the live systems end here and why; return them as a host mask."""
        system = self.system
        live, reason = system.live, self.nothing
        if length is not None and step >= length:
            reason = pick(live, _RESTART, reason)
        reason = pick(live & (step >= remaining), _BUDGET, reason)
        reason = pick(live & negate(norms < ceiling), Status.DIVERGED, reason)
        if system.broken is not None:
            where, status = system.broken
            reason = pick(live & where, status, reason)
            if self.fixed:
                reason = pick(live & where & self._is_exhausted(status, norms), _BUDGET, reason)
            system.broken = None
        # After the breakdowns, which a product with Inf or NaN in it can feign.
        sound = finite(norms) & finite(system.operator_norm)
        reason = pick(live & negate(sound), Status.NONFINITE_OPERATOR, reason)
        reason = pick(live & (norms <= limit), _CLAIM, reason)
        gone = reason is not None if system.single else np.not_equal(reason, self.nothing).astype(bool)
        cycle.reason = pick(gone, reason, cycle.reason)
        cycle.steps = pick(gone, step, cycle.steps)
        cycle.promised = pick(gone, norms, cycle.promised)
        return gone

    def _is_exhausted(self, status: Status, norms: Any) -> Any:
        """Return where a recurrence ended because it has arrived: what is left of a fixed budget would change nothing.

        Past the last digit a residual underflows, and the tests of a breakdown divide zero by zero. And where another
        system is solved on purpose, its solution has no smaller residual to look for.
        """
        solved = self.method.regularized and status is Status.LEAST_SQUARES
        return norms <= (math.inf if solved else self.system.eps * self.system.rhs_norm)

    def _conclude(self, x: Array, cycle: _Cycle) -> None:
        """Measure ``x`` and decide, system by system, what is said and who goes on."""
        system, method = self.system, self.method
        x = system.rounded(x)
        # A restarted method needs the residual to go on, also where nobody else asks for it.
        again = self.open & (cycle.reason == _RESTART)
        if self.fixed and not method.final_residual and not any_true(again):
            sound = finite(system.backend.max_abs(x))
            self._close(self.open & negate(sound) & (cycle.reason == _BUDGET), Status.DIVERGED)
            self._replace(self.open & sound, x)
            self.measured = False
        else:
            self._measure(x)
            reached = self.r_norm
            if cycle.behind is not None:
                size, former = cycle.behind
                worse = self.open & negate((self.r_norm <= system.threshold) | (self.r_norm <= size))
                if any_true(worse):
                    self._measure(system.chosen(worse, system.rounded(former), x))
            if not self.fixed:
                self._close(self.open & (self.r_norm <= system.threshold), Status.CONVERGED)
                if not any_true(self.open):
                    return
        claim = self.open & (cycle.reason == Status.LEAST_SQUARES)
        if method.measures_minimum and self.measured and any_true(claim):  # A^H r = 0 is what a minimizer is
            slope = system.backend.host_norm((system.matvec if system.operator.symmetric else system.rmatvec)(self.r))
            drifted = slope > system.eps**0.5 * system.operator_norm * self.r_norm
            cycle.reason = pick(claim & drifted, Status.BREAKDOWN, cycle.reason)
        gained = False if self.fixed else reached < 0.5 * cycle.started_from  # by the method, not by falling back
        for status in Status:
            self._close(self.open & (cycle.reason == status) & negate(gained), status)
        if self.fixed:
            self._close(self.open & negate(again), method.outcome)
            return
        self._close(self.open & negate(finite(self.r_norm)), Status.NONFINITE_OPERATOR)
        if not any_true(self.open):
            return

        # The floor of the format: x solves a system within a few eps of this one, so b - A x is all rounding.
        x_norm = system.backend.host_norm(self.x)
        floor = 4 * system.eps * (system.rhs_norm + system.operator_norm * x_norm)
        self._close(self.open & (self.r_norm <= floor), Status.STAGNATED)
        # A claim is false when the recurrence has drifted. One restart is always granted; later ones must deliver at
        # least half of the decades that the recurrence promised, or rounding is all that is left.
        claim = self.open & (cycle.reason == _CLAIM)
        delivered = self.r_norm <= cycle.promised**0.5 * cycle.started_from**0.5
        self._close(claim & negate(delivered) & (self.false_claims > 0), Status.STAGNATED)
        self.false_claims = self.false_claims + claim
        # A restarted method that gains less than a thousandth in a whole cycle repeats that cycle for ever.
        idle = (cycle.reason == _RESTART) & (cycle.steps == method.cycle_length())
        self._close(self.open & idle & (self.r_norm > 0.999 * cycle.started_from), Status.STAGNATED)
        self._close(self.open & (self.iters >= self.max_iters), Status.MAX_ITERS)

    def solution(self) -> Solution:
        """Return the best iterates in the caller's scale, with the books."""
        system, exponent = self.system, self.system.exponent
        rhs_norm = pick(system.finite, system.rhs_norm, math.nan)
        # Infinite where no iterate of a series could be measured: x is still zero, and b its residual.
        best_norm = pick(self.best_norm == math.inf, rhs_norm, pick(system.finite, self.best_norm, math.nan))
        history = np.asarray(self.history, dtype=float).reshape(len(self.history), *system.batch)
        x = system.restore(system.zero() if self.best is None else self.best)
        status = self.status
        if system.rescaled:
            status = pick(finite(system.backend.max_abs(x)), status, Status.OVERFLOW)
        bias = self.method.bias(system, best_norm if self.measured else None) if self.fixed else None
        if bias is not None:  # x = 0 for b = 0 is exact; where the solve failed there is no approximation to judge
            exact = pick(self.status == Status.CONVERGED, 0.0, math.nan)
            bias = pick(self.status == self.method.outcome, bias, exact)
        return Solution(
            x=x,
            status=status,
            residual_norm=ldexp(best_norm, exponent) if self.measured else None,
            rhs_norm=ldexp(rhs_norm, exponent),
            bound=ldexp(system.threshold, exponent),
            num_iters=self.iters,
            num_matvecs=system.num_matvecs,
            num_rmatvecs=system.num_rmatvecs,
            history=np.ldexp(history, exponent),
            solver=self.method.name,
            bias=None if bias is None else ldexp(bias, exponent),
        )
