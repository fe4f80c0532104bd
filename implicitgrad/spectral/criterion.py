"""When a pair is good enough: its residual relative to its value, or to the gap, and what the vectors ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host

__all__ = ["Criterion", "scaled"]


@dataclass(frozen=True)
class Criterion:
    """The bound that a residual has to meet; all arguments of its methods are host arrays ``(s,)``.

    Parameters
    ----------
    rtol : float
        The error of the value that is allowed, relative to the value.
    by_gap : bool
        Whether the error ``r^2 / D`` that the projected problem foresees is believed too (``Ritz.distance``).
    vector_tol : float or None
        The angle between the vector and the true one that is allowed: ``r / gap`` (Davis and Kahan 1970).
    singular : bool
        Whether the values are singular values, whose gaps are those of their squares.
    """

    rtol: float
    by_gap: bool
    vector_tol: float | None
    singular: bool

    @classmethod
    def of(cls, settings: Settings, eps: float) -> Criterion:
        """Return the one that a caller asked for, in a format with that ``eps``."""
        by_gap = settings.criterion == "gap"
        return cls(settings.tolerance(eps), by_gap, settings.vector_tol, settings.singular)

    def shortfall(self, value: Host, residual: Host, distance: Host, gap: Host, rounding: Host) -> Host:
        """Return by which factor the residual has still to fall; at most one where the bound is met.

        Parameters
        ----------
        value, residual : ndarray, shape (s,)
            Of the pair.
        distance, gap : ndarray, shape (s,)
            ``D`` of ``Ritz.distance``, and what lies between the value and the next Ritz value.
        rounding : ndarray, shape (s,)
            What the rounding of one product may hide: nobody can ask for less.
        """
        bound = np.fmax(self.rtol * np.abs(value), rounding)
        with np.errstate(all="ignore"):
            short = np.where(residual <= bound, 0.0, residual / bound)
            if self.by_gap:
                # For singular values the relative error is r^2 / (2 D), also where the value is all rounding.
                by_gap = residual / np.sqrt(distance * (2 * self.rtol if self.singular else bound))
                # A gap is believed once the value has some digits; in noise any two values are far apart.
                some = np.fmax(np.sqrt(self.rtol) * np.abs(value), rounding)
                short = np.fmin(short, np.fmax(by_gap, residual / some))
            if self.vector_tol is not None:
                wide = gap * (2 * value + gap) if self.singular else gap  # the gap of the squares
                angle = residual * (value + gap if self.singular else 1.0) / wide
                short = np.fmax(short, np.where(gap > 0, angle / self.vector_tol, 0.0))
        return np.where(np.isfinite(residual), short, np.inf)


def scaled(sensitivity: Host, residual: Host) -> Host:
    """Return ``sensitivity * residual``, the error of a non-normal eigenvalue: zero where the residual is."""
    with np.errstate(invalid="ignore"):
        return np.where(residual == 0, 0.0, sensitivity * residual)
