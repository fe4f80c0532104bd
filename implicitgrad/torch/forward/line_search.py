"""Backtracking along a Newton direction, sample by sample: how much of the step is taken.

The condition is Armijo's: the residual norm, or the merit of the equation, falls by a small part of what the linear
model promises. Samples whose step is accepted wait where they are until the others have theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, finite, negate, pick
from implicitgrad.status import Status
from implicitgrad.torch.forward.search import Point, Search

__all__ = ["Step", "line_search"]

_ARMIJO = 1e-4  # the part of the promised decrease that a step has to keep: Dennis & Schnabel 1983, sec. 6.3.2
_NOISE = 64  # a sum of n terms is right to some tens of eps: closer than that, two merits cannot be told apart
_SHORTEST, _LONGEST = 0.1, 0.5  # a trial step is cut to between these parts of the last one (ibid., alg. 6.3.1)


class Step(NamedTuple):
    """A direction ``(..., n)``, and what it promises: host values, one a sample."""

    direction: Array
    slope: Any  # -d/dt of the merit at t = 0, or 1 - eta: of the residual norm, relative to that


def line_search(
    search: Search, here: Point, value: Any, step: Step, where: Any, shortest: float
) -> tuple[Point, Any, Any]:
    """Look for an acceptable part ``t`` of a step, from 1 downwards, for the samples in ``where``.

    Parameters
    ----------
    search : Search
        Evaluates the trial points, and ends the samples that reach their bound.
    here, value : Point, host value
        Where the step starts, and the merit there (the residual norm without one).
    step : Step
        Where it leads.
    where : host mask
        Live samples; the others stay where they are.
    shortest : float
        A sample gives up at the first ``t`` below this.

    Returns
    -------
    Point, host value, host mask
        The accepted points with their merit, and the live samples that have given up, as at a fold of the residual
        norm, where ``I - J`` has lost rank. Which of them is at the floor of the format has ended as ``STAGNATED``.
    """
    backend, by_merit = search.backend, search.equation.merit is not None
    t: Any = np.ones(search.batch) if search.batch else 1.0
    pending, lost = where, where & negate(where)
    kept, kept_value = here, value
    while any_true(pending):
        z = backend.axpy(backend.from_host(t, here.z), step.direction, here.z)
        trial = search.evaluate(search.choose(pending, z, kept.z))
        smaller = trial.size <= (1 - _ARMIJO * t * pick(by_merit, 1.0, step.slope)) * here.size
        if by_merit:
            trial_value = search.merit(trial.z)
            close = abs(trial_value - value) <= _NOISE * search.eps * abs(value)
            good = (
                pending & ((trial_value <= value - _ARMIJO * t * step.slope) | (close & smaller)) & finite(trial.size)
            )
            search.settle(trial, good, better=good)
            # The minimum of the parabola through both values with the slope at 0.
            short = _quotient(step.slope * t * t, 2 * (trial_value - value + step.slope * t))
        else:
            trial_value = trial.size
            good = pending & smaller
            search.settle(trial, pending)
            # The same for norm(r)^2, which has the slope -2 norm(r)^2 along an exact Newton direction.
            short = _quotient(t * t, _quotient(trial.size, here.size) ** 2 - 1 + 2 * t)
        kept, kept_value = search.blend(good, trial, kept), pick(good, trial_value, kept_value)
        pending = pending & negate(good) & search.live
        floored = pending & (here.size <= search.floor)  # a full step that does not decrease says all
        search.close(floored, Status.STAGNATED)
        given_up = pending & negate(floored) & (t < shortest)
        lost, pending = lost | given_up, pending & negate(floored | given_up)
        cut = np.where(np.isfinite(short), np.clip(short, _SHORTEST * t, _LONGEST * t), _SHORTEST * t)
        t = np.where(pending, cut, t) if search.batch else float(cut)
    return kept, kept_value, lost


def _quotient(numerator: Any, denominator: Any) -> Any:
    with np.errstate(all="ignore"):  # Inf and NaN are answers here: they shorten the step
        return np.divide(numerator, denominator)
