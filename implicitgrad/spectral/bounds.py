"""From norms and singular values to errors: of a Neumann sum, of a state, of an adjoint, of a gradient.

A residual is not what users want to know. With ``sigma = sigma_min(I - J)``, a residual ``r`` of the adjoint system
means an error of up to ``norm(r) / sigma`` in ``z``; and a forward solve that stopped at ``norm(F(h) - h) = d`` is up
to ``d / sigma`` away from the fixed point, whose adjoint is another one. Arguments are numbers, or results of the
spectral routines, of which the side is taken that keeps a bound a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.spectral.result import SpectralResult
from implicitgrad.spectral.settings import check_count, check_number

__all__ = ["GradientError", "gradient_error_bound", "neumann_error_bound", "neumann_terms"]

Number = float | SpectralResult


def neumann_error_bound(norm: Number, terms: int, *, sigma_min: Number | None = None) -> float:
    """Return the bound of proposition 2, ``norm(sum_{t=0..K} J^t - (I - J)^{-1}) <= norm((I - J)^{-1}) norm(J)^{K+1}``.

    Parameters
    ----------
    norm : float or SpectralResult
        ``norm(J, 2)`` or an upper bound on it; of ``operator_norm(J)`` its ``upper`` is taken. Without ``sigma_min``
        any sub-multiplicative norm of ``J`` will do, and the bound is in that norm (of ``J^H``, for an adjoint).
    terms : int
        ``K >= 0``, the number of products; the sum has ``K + 1`` terms.
    sigma_min : float or SpectralResult, optional
        ``sigma_min(I - J) = 1 / norm((I - J)^{-1}, 2)``; of a result its ``lower``. None: ``1 - norm(J)``, which is a
        lower bound on it where ``norm(J) < 1``.

    Returns
    -------
    float
        Times ``norm(g)`` it bounds ``norm(z_K - z)``. Infinite where nothing is known: ``norm(J) >= 1`` without a
        ``sigma_min``, or a ``sigma_min`` of zero. Where ``norm(J) >= 1`` it grows with ``K``.

    Examples
    --------
    >>> neumann_error_bound(0.5, 3)
    0.125
    >>> neumann_error_bound(0.5, 3, sigma_min=0.8)
    0.078125
    """
    name = "neumann_error_bound"
    check_count(name, "terms", terms, least=0)
    size, sigma = _norm(name, norm), _sigma(name, norm, sigma_min)
    if size == 0:
        return 0.0
    try:
        return size ** (terms + 1) / sigma if sigma > 0 else math.inf
    except OverflowError:
        return math.inf


def neumann_terms(norm: Number, error: float, *, sigma_min: Number | None = None) -> int | None:
    """Return the smallest ``K`` whose ``neumann_error_bound`` is at most ``error``; None where no ``K`` is enough.

    Parameters
    ----------
    norm, sigma_min
        As for ``neumann_error_bound``.
    error : float
        What is wanted of ``norm(z_K - z) / norm(g)``, ``> 0``.

    Examples
    --------
    >>> neumann_terms(0.5, 0.125), neumann_terms(0.9, 1e-4), neumann_terms(1.1, 1e-4)
    (3, 109, None)
    """
    name = "neumann_terms"
    check_number(name, "error", error)
    size, sigma = _norm(name, norm), _sigma(name, norm, sigma_min)
    if neumann_error_bound(size, 0, sigma_min=sigma if sigma > 0 else None) <= error:
        return 0
    if size >= 1 or sigma <= 0:
        return None
    terms = max(0, math.ceil(math.log(error * sigma) / math.log(size)) - 1)
    while size ** (terms + 1) / sigma > error:  # the logarithms round
        terms += 1
    while terms > 0 and size**terms / sigma <= error:
        terms -= 1
    return terms


@dataclass(frozen=True)
class GradientError:
    """Where the error of an implicit gradient comes from, each part a bound in the unit it says.

    Attributes
    ----------
    state : float
        ``norm(h - h*)``: how far the forward solve may be from the fixed point.
    adjoint_by_residual : float
        The part of ``norm(z - z*)`` that the adjoint's residual leaves open.
    adjoint_by_state : float
        The part that comes from solving at ``h`` rather than at ``h*``.
    gradient : float
        ``norm(dL/dw - true)``, all together; in the unit of ``z`` where ``parameter_norm`` was left at 1.
    rigorous : bool
        Whether every constant was given, ``sigma_min`` is no bound with a condition, and Kantorovich's holds. If not,
        the parts are to first order, or probable, and those whose constant was left out are missing.
    """

    state: float
    adjoint_by_residual: float
    adjoint_by_state: float
    gradient: float
    rigorous: bool

    @property
    def adjoint(self) -> float:
        """``norm(z - z*)``."""
        return self.adjoint_by_residual + self.adjoint_by_state


def gradient_error_bound(
    sigma_min: Number,
    residual_norm: float,
    *,
    forward_residual: float | None = None,
    adjoint_norm: float = 0.0,
    jacobian_lipschitz: float | None = None,
    cotangent_lipschitz: float | None = None,
    parameter_norm: float = 1.0,
    parameter_lipschitz: float = 0.0,
) -> GradientError:
    """Return bounds on the errors of state, adjoint and gradient from what the two solves left open.

    Parameters
    ----------
    sigma_min : float or SpectralResult
        ``sigma_min(I - J)`` at the state ``h`` that was reached; of a result its ``lower``.
    residual_norm : float
        ``norm(g - (I - J)^H z)``, the adjoint's residual, in the unit of ``g``.
    forward_residual : float, optional
        ``norm(F(h) - h)`` in the unit of the state. None: the state is taken for exact.
    adjoint_norm : float
        ``norm(z)``.
    jacobian_lipschitz, cotangent_lipschitz : float, optional
        Lipschitz constants of ``h -> J(h)`` and ``h -> dL/dh`` near ``h``. None: unknown, and their part is left out.
    parameter_norm, parameter_lipschitz : float
        ``norm(dF/dw)`` and the Lipschitz constant of ``h -> dF/dw``.

    Returns
    -------
    GradientError

    Raises
    ------
    SettingError
        A number is negative or not finite.

    Notes
    -----
    With ``L`` for ``jacobian_lipschitz`` and ``d`` for ``forward_residual``: if ``2 L d <= sigma^2`` there is a fixed
    point within ``(1 - sqrt(1 - 2 L d / sigma^2)) sigma / L``, about ``d / sigma`` (Newton-Kantorovich; Ortega &
    Rheinboldt 1970, thm. 12.6.2). There ``sigma* >= sigma - L norm(h - h*)``, and the adjoint equation at both points
    gives ``norm(z - z*) <= (norm(r) + (L norm(z) + L_g) norm(h - h*)) / sigma*``.

    Examples
    --------
    >>> error = gradient_error_bound(0.1, 1e-6, forward_residual=1e-5, adjoint_norm=3.0, jacobian_lipschitz=2.0,
    ...                              cotangent_lipschitz=1.0)
    >>> bool(0.99e-4 < error.state < 1.01e-4), bool(7e-3 < error.adjoint < 7.1e-3), error.rigorous
    (True, True, True)
    """
    name = "gradient_error_bound"
    given = {
        "residual_norm": residual_norm,
        "forward_residual": 0.0 if forward_residual is None else forward_residual,
        "adjoint_norm": adjoint_norm,
        "jacobian_lipschitz": jacobian_lipschitz or 0.0,
        "cotangent_lipschitz": cotangent_lipschitz or 0.0,
        "parameter_norm": parameter_norm,
        "parameter_lipschitz": parameter_lipschitz,
    }
    for label, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise SettingTypeError(f"{name}: got {label}={value!r}, expected a number >= 0.")
        if not 0 <= value < math.inf:
            raise SettingError(f"{name}: got {label}={value!r}, expected a finite number >= 0.")
    sigma = _lower(name, "sigma_min", sigma_min)
    proven = not isinstance(sigma_min, SpectralResult) or sigma_min.condition.startswith("unconditional")
    if sigma <= 0:
        return GradientError(math.inf, math.inf, math.inf, math.inf, False)
    forward, bend = given["forward_residual"], given["jacobian_lipschitz"]
    complete = forward_residual is None or (jacobian_lipschitz is not None and cotangent_lipschitz is not None)
    curvature = bend * forward / sigma**2
    holds = curvature <= 0.5
    # (1 - sqrt(1 - 2 c)) sigma / L without the cancellation; to first order where the condition fails.
    state = forward / sigma * (2 / (1 + math.sqrt(1 - 2 * curvature)) if holds else 1.0)
    there = max(sigma - bend * state, 0.0) if holds else sigma
    if there == 0:
        return GradientError(state, math.inf, math.inf, math.inf, False)
    by_residual = residual_norm / there
    by_state = (bend * adjoint_norm + given["cotangent_lipschitz"]) * state / there
    gradient = parameter_norm * (by_residual + by_state) + parameter_lipschitz * state * adjoint_norm
    return GradientError(state, by_residual, by_state, gradient, complete and holds and proven)


def _norm(name: str, norm: Number) -> float:
    if isinstance(norm, SpectralResult):
        return _single(name, norm.upper)
    if isinstance(norm, bool) or not isinstance(norm, int | float | np.integer | np.floating) or not norm >= 0:
        raise SettingError(f"{name}: got norm={norm!r}, expected a number >= 0 or the result of operator_norm.")
    return float(norm)


def _sigma(name: str, norm: Number, sigma_min: Number | None) -> float:
    return 1 - _norm(name, norm) if sigma_min is None else _lower(name, "sigma_min", sigma_min)


def _lower(name: str, label: str, value: Number) -> float:
    if isinstance(value, SpectralResult):
        return _single(name, value.lower)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not value >= 0:
        raise SettingError(f"{name}: got {label}={value!r}, expected a number >= 0 or a SpectralResult.")
    return float(value)


def _single(name: str, value: Any) -> float:
    if np.ndim(value):
        raise SettingError(
            f"{name}: got the result of a batch of {np.size(value)}, expected one system. Take one of them."
        )
    return float(value)
