"""From a finished search to a ``SpectralResult``: the tightest bounds of each system, with their conditions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from implicitgrad.spectral.certify import best_bound
from implicitgrad.spectral.result import SpectralResult
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.space import Host

__all__ = ["report"]


def report(search: Search, known: float | None, next_value: float | None) -> SpectralResult:
    """Return the result of a search.

    Parameters
    ----------
    search : Search
        Finished.
    known : float or None
        A bound on the far side that the caller has proved.
    next_value : float or None
        What all values but one are known to be beyond.
    """
    space, value, residual = search.space, search.value, search.residual
    rounding = search.rounding
    sign = 1.0 if search.which == "smallest" else -1.0
    with np.errstate(invalid="ignore"):
        far, conditions = best_bound(_candidates(search, sign, rounding, known, next_value), space.systems)
    near, far = value + sign * rounding, sign * far
    upper, lower = (near, far) if search.which == "smallest" else (far, near)
    lo, hi = value - residual - rounding, value + residual + rounding
    if search.singular:
        lower, lo = np.fmax(lower, 0.0), np.where(np.isnan(lo), lo, np.fmax(lo, 0.0))
    gap = space.shaped(search.gap)
    return SpectralResult(
        value=space.shaped(value),
        vector=space.restored(search.vector),
        left_vector=None if search.left is None else space.restored(search.left),
        upper=space.shaped(upper),
        lower=space.shaped(lower),
        condition=space.shaped_objects(conditions),
        residual_interval=(space.shaped(lo), space.shaped(hi)),
        residual_norm=space.shaped(residual),
        gap=None if space.single and math.isnan(gap) else gap,
        ritz_values=space.shaped_rows(search.ritz_values),
        status=space.shaped_objects(search.status),
        num_iters=space.shaped(search.iters),
        num_matvecs=space.num_matvecs,
        num_rmatvecs=space.num_rmatvecs,
        name=search.settings.name,
    )


def _candidates(
    search: Search, sign: float, rounding: Host, known: float | None, next_value: float | None
) -> list[tuple[Any, str]]:
    """Return lower bounds of ``sign * value``, each with its condition; the strongest conditions first."""
    value, r = sign * search.value, search.residual
    found: list[tuple[Any, str]] = []
    if search.singular and sign > 0:
        found.append((np.where(np.isnan(value), np.nan, 0.0), "unconditional: no singular value is negative"))
    if known is not None:
        found.append((sign * float(known), "unconditional: the bound that was given"))
    if search.which == "dominant":  # nothing is proved of the eigenvalues of an operator that need not be normal
        return found
    found.append((np.where(search.whole, value - r - rounding, np.nan), "unconditional: the whole space was searched"))
    chance = "over the random start"
    said = f"with probability {search.settings.confidence:g} {chance}"
    bound = np.where(search.whole, np.nan, search.chance_bound)  # there is more to be said of these
    if search.singular:  # it speaks of the squares
        bound = sign * np.sqrt(np.maximum(sign * bound, 0.0))  # maximum, unlike fmax, keeps NaN for "nothing known"
    found.append((bound - rounding, said))
    if next_value is not None:
        beyond, theta = sign * float(next_value), value
        side = "below" if sign > 0 else "above"
        if search.singular:  # the squares: the eigenpair (sigma^2, v) of A^H A has the residual sigma r
            apart = (beyond - theta) * abs(beyond + theta)
            shift = value**2 * r**2 / np.where(apart > 0, apart, np.nan)
            square = sign * value**2 - shift
            bound = sign * np.sqrt(np.maximum(sign * square, 0.0))
        else:
            apart = beyond - theta
            bound = theta - r**2 / np.where(apart > 0, apart, np.nan)
        found.append((bound - rounding, f"given a gap: only one value is {side} {next_value:g} (Kato-Temple)"))
    return found
