"""Bounds on an extreme value beside the Ritz value, as arithmetic on numbers: no operator in sight.

Used by ``report.py``. The page ``docs/spectrum.md`` has the proofs and the sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from implicitgrad.spectral.space import Host

__all__ = ["LogProduct", "best_bound", "random_start_shift"]


class LogProduct:
    """A product of many numbers of each system: logarithms of the mantissas, and the exponents apart from them.

    So a power of two in every factor changes no bit of what is computed from it.
    """

    def __init__(self, systems: int) -> None:
        self.count = 0
        self._logs = np.zeros(systems)
        self._exponents = np.zeros(systems, int)

    def multiply(self, values: Host) -> None:
        """Multiply by values ``(s,)``, not negative."""
        mantissas, exponents = np.frexp(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._logs = self._logs + np.log(mantissas)
        self._exponents = self._exponents + exponents
        self.count += 1

    def scaled(self) -> tuple[Host, Host]:
        """Return the logarithm ``(s,)`` of the product with every factor divided by ``2**e``, and ``e``, the mean."""
        mean = self._exponents // max(self.count, 1)
        logs: Host = self._logs + math.log(2) * (self._exponents - self.count * mean)
        return logs, mean


def random_start_shift(apart: Host, log_norms: Host, size: int, is_complex: bool, confidence: float) -> Host:
    """Return how far the extreme Ritz value may be from the eigenvalue, with a probability over the random start.

    After ``k`` steps ``v_{k+1} = p(A) v_1`` with ``|p(t)| = prod |theta_i - t| / prod beta_j``, and it has norm one. So
    the part ``g`` of ``v_1`` along the extreme eigenvector satisfies ``|g| |p(lambda)| <= 1``. For a uniform ``v_1`` it
    is a rare event that ``|g| < delta``; but for that, ``|p(lambda)| <= 1 / delta``, and ``lambda`` lies no further out
    than where ``|p|`` has grown to ``1 / delta``. No gap is assumed: clusters only make ``p`` grow more slowly.

    Parameters
    ----------
    apart : ndarray, shape (s, k)
        Distances ``|theta_i - theta_1|`` of the Ritz values to the wanted one, which comes first, as zero.
    log_norms : ndarray, shape (s,)
        ``sum log beta_j`` over all ``k`` steps, the last rest included; a rest of rounding counts as large as it may
        be.
    size : int
        ``n >= 3``.
    is_complex : bool
        Whether the start is a complex vector.
    confidence : float
        The probability ``p`` with which the result is to hold: ``P(|g| < delta) <= 1 - p``.

    Notes
    -----
    Van Dorsselaer, Hochstenbach & van der Vorst 2000 (SIAM J. Matrix Anal. Appl. 22, 837-852), with their polynomial of
    the process itself; sharper than the bound for the worst of all spectra of Kuczynski & Wozniakowski 1992 (ibid. 13).
    The density of ``g`` is largest at 0, where it is below ``sqrt(n / (2 pi))``; so ``(1 - p) / sqrt(2 n / pi)`` will
    do for ``delta``. For a complex start ``P(|g| < delta) <= n delta^2``.

    Examples
    --------
    One step of size 0.1 from a random start in ten dimensions:

    >>> random_start_shift(np.zeros((1, 1)), np.log([0.1]), 10, False, 0.5).round(3)
    array([0.505])
    """
    chance = 1 - confidence
    log_delta = 0.5 * math.log(chance / size) if is_complex else math.log(chance / math.sqrt(2 * size / math.pi))
    with np.errstate(all="ignore"):
        wanted = log_norms - log_delta  # sum log(apart + shift)
        high = wanted / apart.shape[1]
        low = wanted - np.log(apart[:, 1:] + np.exp(high)[:, None]).sum(axis=-1)
        for _ in range(60):
            middle = 0.5 * (low + high)
            reached = np.log(apart + np.exp(middle)[:, None]).sum(axis=-1) >= wanted
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.where(np.isneginf(log_norms), 0.0, np.exp(high))


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
