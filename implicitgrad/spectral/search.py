"""The loop around a factorization: grow it, look at its Ritz values, restart it, and believe only recomputed residuals.

The same for eigenvalues (Lanczos) and singular values (Golub-Kahan). A *cycle* runs one factorization until every
system has claimed its bound or spent its budget; then the pair is formed and recomputed with fresh products, and these
numbers alone are judged and reported. A claim that turns out false, by drift, is granted one more cycle from the
vector found. A caller's start that leads to an invariant space, or satisfies the bound at once, is followed by a random
one: an eigenvector is the one start that hides all other eigenvectors.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.spectral.certify import LogProduct, random_start_shift
from implicitgrad.spectral.criterion import Criterion, scaled
from implicitgrad.spectral.ritz import Ritz
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host, Space
from implicitgrad.status import Status

__all__ = ["ROUNDING", "Process", "Search"]

ROUNDING = 8  # how many eps of norm(A) the rounding of a product may hide
_CLAIM = "claim"


class Process(Protocol):
    """A factorization as the loop sees it; ``Lanczos`` and ``GolubKahan`` are the two."""

    residual: Host
    norms: LogProduct
    broken: Host
    mismatch: Host
    directed: bool
    restarted: bool
    small: Host

    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def full(self) -> bool: ...  # noqa: D102
    def grow(self, live: Host) -> None: ...  # noqa: D102
    def look(self, ritz: Ritz | None) -> None: ...  # noqa: D102
    def ritz(self, which: str, count: int | None = None) -> Ritz: ...  # noqa: D102
    def restart(self, ritz: Ritz) -> None: ...  # noqa: D102
    def form(self, ritz: Ritz) -> tuple[Array, Array | None]: ...  # noqa: D102


class Search:
    """The search for one extreme value of each system; the books are host arrays ``(s,)``.

    Parameters
    ----------
    space : Space
        The operator, with its counters.
    settings : Settings
        What the caller asked for.
    which : {"smallest", "largest", "dominant"}
        Which end of the spectrum; ``"dominant"``: the largest modulus.
    most : int, optional
        No more vectors than this by default.

    Attributes
    ----------
    value, residual, gap, distance : ndarray, shape (s,)
        Of the best pair so far: recomputed value and residual norm, and what the projected problem said of the gap.
    vector, left : array, shape (..., n) and (..., m)
        That pair; ``left`` is None for eigenvalues.
    status : ndarray of Status, shape (s,)
        How each system ended.
    exact : ndarray of bool, shape (s,)
        Where the space of a random start was invariant, so that nothing can be missed but by chance zero.
    whole : ndarray of bool, shape (s,)
        Where the basis has filled the whole space.
    chance_bound : ndarray, shape (s,)
        Lower bound on ``+-value`` (for singular values ``+-value^2``) from the unrestarted space of the random start.
    """

    def __init__(self, space: Space, settings: Settings, which: str, most: int | None = None) -> None:
        self.space, self.settings, self.which = space, settings, which
        systems = space.systems
        self.singular = settings.singular
        self.size = min(space.operator.shape)
        self.criterion = Criterion.of(settings, space.eps)
        self.max_iters = settings.steps(self.size)
        self.memory = settings.vectors(self.size, max(space.operator.shape), space, most)
        self.status = np.full(systems, None, dtype=object)
        self.status[~space.finite_start] = Status.NONFINITE_INPUT
        self.iters = np.zeros(systems, int)
        self.value, self.residual, self.gap = (np.full(systems, np.nan) for _ in range(3))
        self.distance = np.zeros(systems)
        self.vector: Array = space.domain
        self.paired = self.singular or which == "dominant"  # a left vector, or an imaginary part
        self.left: Array | None = space.range if self.paired else None
        self.sensitivity = np.ones(systems)
        self.ritz_values: Host = np.full((systems, 1), np.nan, complex if which == "dominant" else float)
        self.cycles = 0
        self.exact, self.whole = np.zeros(systems, bool), np.zeros(systems, bool)
        self.chance_bound = np.full(systems, np.nan)

    @property
    def rounding(self) -> Host:
        """What the rounding of one product may hide."""
        hidden: Host = ROUNDING * self.space.product_eps * self.space.norm
        return hidden

    def run(self, make: Any, recompute: Any) -> None:
        """Search with the factorizations that ``make(start, memory)`` gives and the pairs that ``recompute`` measures.

        ``recompute(v, u)`` returns unit vectors, the value and the residual norm, from fresh products.
        """
        space = self.space
        random = not space.given
        start, pending = space.start, self.status == None  # noqa: E711  elementwise
        granted = np.ones(space.systems, bool)
        while pending.any():
            self._begin(pending)
            process = make(start, self.memory)
            self._cycle(process, random)
            self._recompute(pending, recompute)
            claimed = pending & (self.reason == _CLAIM)
            error = scaled(self.found_sensitivity, self.found_residual)
            true = claimed & self.satisfied(self.found_value, error, self.found_distance, self.found_gap)
            blind = claimed & (not random) & self.suspicious & (self.iters < self.max_iters)
            again = claimed & ~true & granted & (self.iters < self.max_iters)
            self._conclude(pending, true)
            if not random and blind.any():
                start, pending, random = space.random(space.domain), blind, True
                continue
            granted &= ~again
            start, pending, random = self.vector, again, False

    # -- one cycle ---------------------------------------------------------------------------------------------------
    def _begin(self, pending: Host) -> None:
        systems = self.space.systems
        self.live = pending.copy()
        self.reason = np.full(systems, None, dtype=object)
        self.looked = np.full(systems, np.nan), 0
        self.suspicious = np.zeros(systems, bool)
        self.cycles += 1
        self.found: tuple[Array, Array | None] = (self.space.domain, self.space.range if self.paired else None)
        self.found_sensitivity = np.ones(systems)
        self.found_gap, self.found_distance = np.full(systems, np.nan), np.zeros(systems)

    def _cycle(self, process: Process, random: bool) -> None:
        space = self.space
        step = next_check = 0
        while self.live.any():
            process.grow(self.live)
            step += 1
            spent = self.iters + 1
            self.iters = np.where(self.live, spent, self.iters)
            exhausted = process.count == self.size
            last = exhausted | (spent >= self.max_iters)
            check = process.directed or step >= next_check or process.full or bool(last[self.live].any())
            ritz = process.ritz(self.which) if check else None
            process.look(ritz)
            bad = ~np.isfinite(process.residual) | ~np.isfinite(process.small[:, :, -1]).all(axis=-1)
            self._fail(process, bad, Status.NONFINITE_OPERATOR)
            self._fail(process, process.mismatch > space.product_eps**0.5, Status.ADJOINT_MISMATCH)
            if ritz is None and process.broken[self.live].any():
                ritz = process.ritz(self.which)
            if ritz is None:
                continue
            # In the whole space there is no rest but rounding, unless the rows are fewer than the columns.
            rest = np.where(exhausted, 0.0, process.residual)
            residual, distance = ritz.residual(rest, process.directed), ritz.distance(rest, process.directed)
            value, gap = ritz.values[:, 0], np.abs(ritz.neighbour - ritz.values[:, 0])
            ended = process.broken | exhausted
            error = scaled(ritz.sensitivity, residual)
            short = self.shortfall(value, error, distance, gap)
            done = self.live & (ended | (short <= 1.0))
            leaving = done | (self.live & last)
            if random and not process.restarted and self.which != "dominant" and (process.full or leaving.any()):
                self._bound_by_chance(process, ritz)
            if leaving.any():
                invariant = ended & (not process.directed) & (not process.restarted)
                self.exact = np.where(leaving & random, invariant, self.exact)
                self.whole = np.where(leaving, exhausted, self.whole)
                self.suspicious = np.where(leaving, (ended & (not exhausted)) | (step <= 2), self.suspicious)
                self._note(leaving, process, ritz, gap, distance)
                self._leave(done, _CLAIM)
                self._leave(leaving, Status.MAX_ITERS)
            if process.full and self.live.any():
                process.restart(ritz)
            next_check = step + self._patience(step, short)

    def _bound_by_chance(self, process: Process, ritz: Ritz) -> None:
        """Note what the polynomial of an unrestarted process from a random start says of the live systems."""
        theta, apart = ritz.values[:, 0], ritz.apart
        sign = 1.0 if self.which == "smallest" else -1.0
        theta = theta**2 if self.singular else theta
        logs, exponent = process.norms.scaled()
        apart = np.ldexp(np.concatenate([np.zeros((len(apart), 1)), apart], axis=1), -exponent[:, None])
        confidence = self.settings.confidence
        shift = random_start_shift(apart, logs, self.size, self.space.is_complex, confidence)
        self.chance_bound = np.where(self.live, sign * theta - np.ldexp(shift, exponent), self.chance_bound)

    def _patience(self, step: int, short: Host) -> int:
        """Return after how many steps to look again: an eighth of those made, or fewer if the end is near.

        A projected problem of size ``k`` costs ``k^3``. The end is foreseen from the rate since the last look.
        """
        patience = max(1, step // 8)
        before, steps = self.looked
        self.looked = short, step
        with np.errstate(all="ignore"):
            left = np.log(short) * (step - steps) / (np.log(before) - np.log(short))
        left = left[self.live & (left > 0)]  # NaN, where there is no rate yet, is not greater
        return int(min(patience, max(1.0, 0.7 * left.min()))) if left.size else patience

    def shortfall(self, value: Host, residual: Host, distance: Host, gap: Host) -> Host:
        """Return by which factor the residual has still to fall; at most one where the bound is met."""
        return self.criterion.shortfall(value, residual, distance, gap, self.rounding)

    def satisfied(self, value: Host, residual: Host, distance: Host, gap: Host) -> Host:
        """Return where the bound is met."""
        met: Host = self.shortfall(value, residual, distance, gap) <= 1.0
        return met

    def _fail(self, process: Process, where: Host, status: Status) -> None:
        """End systems that cannot go on, with the best pair of what was sound."""
        where = where & self.live
        if not where.any():
            return
        sound = np.isfinite(process.small[where]).all()
        count = process.count if sound else process.count - 1
        if count > 0:
            ritz = process.ritz(self.which, count)
            self._note(where, process, ritz, np.abs(ritz.neighbour - ritz.values[:, 0]), np.zeros(len(where)))
        self._leave(where, status)

    def _leave(self, where: Host, reason: Any) -> None:
        where = where & self.live
        self.reason[where] = reason
        self.live = self.live & ~where

    def _note(self, where: Host, process: Process, ritz: Ritz, gap: Host, distance: Host) -> None:
        """Form the pairs of the systems that leave, and keep what the projected problem says of them."""
        space = self.space
        v, u = process.form(ritz)
        held_v, held_u = self.found
        self.found = space.select(where, v, held_v), None if u is None else space.select(where, u, held_u)
        self.found_gap = np.where(where, gap, self.found_gap)
        self.found_distance = np.where(where, distance, self.found_distance)
        self.found_sensitivity = np.where(where, ritz.sensitivity, self.found_sensitivity)
        width = max(self.ritz_values.shape[1], ritz.values.shape[1])
        held = np.full((len(where), width), np.nan, self.ritz_values.dtype)
        held[:, : self.ritz_values.shape[1]] = self.ritz_values
        held[where] = np.nan
        values = np.sort(ritz.values, axis=-1) if ritz.shown is None else ritz.shown[:, ::-1]
        held[where, : ritz.values.shape[1]] = values[where]
        self.ritz_values = held

    # -- between cycles ----------------------------------------------------------------------------------------------
    def _recompute(self, pending: Host, recompute: Any) -> None:
        space = self.space
        systems = space.systems
        self.found_value, self.found_residual = np.full(systems, np.nan), np.full(systems, np.nan)
        there = pending & (space.norms(self.found[0]) > 0)
        if there.any():
            v, u, value, residual = recompute(*self.found)
            self.found = v, u
            self.found_value = np.where(there, value, np.nan)
            self.found_residual = np.where(there, residual, np.nan)

    def _conclude(self, pending: Host, true: Host) -> None:
        """Keep the better of two pairs, and its status: the one further out, for both are Ritz values."""
        space = self.space
        sign = 1.0 if self.which == "smallest" else -1.0
        status = np.array([s if isinstance(s, Status) else Status.STAGNATED for s in self.reason], dtype=object)
        status[true] = Status.CONVERGED
        with np.errstate(invalid="ignore"):
            further = ~(sign * self.found_value > sign * self.value)
            worse = np.array([s is None or s is Status.STAGNATED for s in self.status])
        better = pending & (further | worse | ~np.isfinite(self.value))
        v, u = self.found
        self.vector = space.select(better, v, self.vector)
        if u is not None:
            self.left = space.select(better, u, self.left)
        self.value = np.where(better, self.found_value, self.value)
        self.residual = np.where(better, self.found_residual, self.residual)
        self.gap = np.where(better, self.found_gap, self.gap)
        self.distance = np.where(better, self.found_distance, self.distance)
        self.sensitivity = np.where(better, self.found_sensitivity, self.sensitivity)
        # A cycle that did not converge says so, whichever pair is kept; a first one that did stays what it was only
        # where the second agrees.
        self.status[pending] = status[pending]
