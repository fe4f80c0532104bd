"""Bounds on an extreme value beside the Ritz value, as arithmetic on numbers: no operator in sight.

Used by ``report.py``. The page ``docs/spectrum.md`` has the proofs and the sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from implicitgrad.spectral.space import Host

__all__ = ["best_bound", "random_start_deficit"]


def random_start_deficit(steps: int, size: int, is_complex: bool, confidence: float, spread: float) -> float:
    """Return how far the extreme Ritz value of ``k`` Lanczos steps may be from the eigenvalue, with a probability.

    Kuczynski & Wozniakowski 1992 (SIAM J. Matrix Anal. Appl. 13, thm. 4.2): from a random start uniform on the sphere
    of ``R^n``, ``P(error > e (lambda_max - lambda_min)) <= 1.648 sqrt(n) exp(-sqrt(e) (2k - 1))``, whatever the
    spectrum, clusters included. Both ends are asked for at once, so that the spread of the Ritz values, widened by both
    errors, may stand for that of the spectrum.

    Parameters
    ----------
    steps : int
        ``k``: the dimension of the Krylov space.
    size : int
        ``n``; a Hermitian matrix counts twice, for it is a symmetric one of ``R^{2n}``.
    is_complex : bool
        Whether the matrix is complex.
    confidence : float
        The probability with which the result is to hold.
    spread : float
        Largest less smallest Ritz value of these ``k`` steps.

    Examples
    --------
    >>> round(random_start_deficit(steps=100, size=10**6, is_complex=False, confidence=0.999, spread=1.0), 4)
    0.0057
    """
    dimension = size * (2 if is_complex else 1)
    relative = (math.log(2 * 1.648 * math.sqrt(dimension) / (1 - confidence)) / (2 * steps - 1)) ** 2
    return spread * relative / (1 - 2 * relative) if relative < 0.5 else math.inf


def best_bound(candidates: Sequence[tuple[Any, str]], systems: int) -> tuple[Host, list[str]]:
    """Return the largest of several lower bounds of each system, and the condition that it stands under.

    Parameters
    ----------
    candidates : sequence of (ndarray (s,) or float, str)
        Bounds with their conditions; where two are equal the earlier one is named. NaN is passed over.
    systems : int
        ``s``.

    Examples
    --------
    >>> best_bound([(0.0, "unconditional"), (0.2, "given a gap")], systems=1)
    (array([0.2]), ['given a gap'])
    """
    best = np.full(systems, -np.inf)
    names = ["none: nothing is known on this side"] * systems
    for values, condition in candidates:
        values = np.broadcast_to(np.asarray(values, float), (systems,))
        for i in np.flatnonzero(values > best):
            best[i], names[i] = values[i], condition
    return best, names
