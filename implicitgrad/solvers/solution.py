"""What a solve returns: the answer, how each system ended, what it cost, and how wrong it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import SettingError
from implicitgrad.status import Status

__all__ = ["Attempt", "Solution"]


@dataclass(frozen=True)
class Attempt:
    """One solver's part in a solve that tried several: who, how it ended, what it cost, where it got."""

    solver: str
    status: Any
    residual_norm: Any
    num_matvecs: int
    num_rmatvecs: int
    seconds: float = math.nan


@dataclass(frozen=True, repr=False)
class Solution:
    """What a solve returns. For a batch ``(..., n)``, the quantities marked (*) are NumPy arrays ``(...)``.

    Attributes
    ----------
    x : array, shape (..., n)
        The best iterate, with the dtype, device and shape of the right-hand side.
    status : Status (*)
        How each system ended; ``status.sentence`` says what to try.
    residual_norm : float or None (*)
        ``norm(b - A x)``, recomputed from the returned ``x``, in the unit of ``b``. None for a fixed budget, where it
        was not measured.
    rhs_norm : float (*)
        ``norm(b)``.
    bound : float (*)
        ``max(rtol * norm(b), atol)``: what ``residual_norm`` was to come below.
    num_iters : int (*)
        Iterations of the method.
    num_matvecs, num_rmatvecs : int
        Calls of ``A x`` and of ``A^H y``, the final check included; one call serves the whole batch.
    history : array, shape (iterations, ...)
        The method's own estimate of the residual norm after each iteration (NaN once a system of a batch has ended).
    solver : str
        The solver that produced ``x``.
    attempts : tuple of Attempt
        What ``Auto`` and fallbacks tried, in order; empty for a single solver.
    seconds : float
        Wall time of the solve, the operator's products and every attempt included; NaN where it was not taken. On a
        device it ends with the last number that came to the host, not with the last vector.
    bias : float or None (*)
        For an approximation that was asked for by name: an estimate of ``norm(x* - x)``, in the unit of ``x``. None
        where none can be had: for a system that was solved, for Krylov methods, whose residuals have no rate to go by
        (``final_residual=True`` and ``error_bound`` are for them), and for a single term, whose decay was not seen.

        ``TRUNCATED`` by ``Neumann`` or ``Richardson``: the geometric tail ``next / (1 - ratio)`` of the last two terms,
        or of the last term and the residual where that was measured; it costs no product. Infinite where the terms
        grow. For a normal ``I - A`` of spectral radius ``rho`` it is at most ``(1 + rho) / (1 - rho)`` times the true
        value, by alternating terms, and from five products on rarely below a third of it, by a slow part that the
        terms do not show yet. For a non-normal one it misleads while the powers of ``I - A`` still grow, or
        fall faster than they will in the end. It is an estimate, no bound.

        ``SAMPLED``: 0, for the mean of many draws is the solution; infinite where the terms of this draw grew in the
        end, for then there may be no mean. What one draw is off by is noise: take the standard error over draws.
    trajectory : tuple of array
        The points at which a forward solver has evaluated its map, where that was asked for; else empty.
    """

    x: Array
    status: Any
    residual_norm: Any
    rhs_norm: Any
    bound: Any
    num_iters: Any
    num_matvecs: int
    num_rmatvecs: int
    history: Any = field(default_factory=lambda: np.zeros(0))
    solver: str = ""
    attempts: tuple[Attempt, ...] = ()
    seconds: float = math.nan
    bias: Any = None
    trajectory: tuple[Array, ...] = ()

    @property
    def converged(self) -> Any:
        """Whether the recomputed residual is within the bound: a ``bool``, or an array of them."""
        result = np.asarray(self.status) == Status.CONVERGED
        return bool(result) if isinstance(self.status, Status) else result.astype(bool)

    @property
    def is_good(self) -> bool:
        """Whether every system did what was asked: converged, or made the approximation that was named."""
        if isinstance(self.status, Status):
            return self.status.is_good
        return all(status.is_good for status in self.status.ravel())

    @property
    def relative_residual(self) -> Any:
        """``residual_norm / rhs_norm``, 0 where both are 0; None where the residual was not measured."""
        if self.residual_norm is None:
            return None
        residual, rhs = np.asarray(self.residual_norm, float), np.asarray(self.rhs_norm, float)
        ratio = np.divide(residual, rhs, out=np.where(residual == 0, 0.0, np.inf), where=rhs > 0)
        return float(ratio) if isinstance(self.status, Status) else ratio

    def error_bound(self, sigma_min: Any) -> Any:
        """Return a bound on the error, ``norm(x - x*) <= norm(b - A x) / sigma_min``.

        Parameters
        ----------
        sigma_min : float, array (...), or the result of ``smallest_singular_value(A)``
            A lower bound on the smallest singular value of ``A``, or one for each system; of a result its ``lower``.
            The bound on the error is as rigorous as this number.

        Returns
        -------
        float (*)
            In the unit of ``x``; infinite where ``sigma_min`` is 0.

        Raises
        ------
        SettingError
            ``sigma_min`` is no such number, or the residual was not measured (a fixed budget).

        Examples
        --------
        >>> import numpy as np
        >>> import implicitgrad as ig
        >>> A = ig.DenseOperator(np.diag([1.0, 0.5]))
        >>> sol = ig.solve(A, np.array([1.0, 1.0]), solver=ig.Neumann(rtol=1e-3))
        >>> bound = sol.error_bound(ig.smallest_singular_value(A))
        >>> bool(np.linalg.norm(sol.x - [1, 2]) <= bound <= 2.1e-3 * 2**0.5)
        True
        """
        given = getattr(sigma_min, "lower", sigma_min)
        try:
            sigma = np.asarray(given)
            valid = sigma.dtype.kind in "iuf" and bool(((sigma >= 0) & (sigma < math.inf)).all())
            valid = valid and np.broadcast_shapes(sigma.shape, np.shape(self.status)) == np.shape(self.status)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor with a history
            valid = False
        if not valid or (given is sigma_min and sigma.ndim == 0 and sigma == 0):
            raise SettingError(
                f"Solution.error_bound: got sigma_min={sigma_min!r}, expected a positive number, one for each system, "
                "or a result of smallest_singular_value for this A."
            )
        if self.residual_norm is None:
            raise SettingError(
                "Solution.error_bound: the residual of a fixed budget was not measured. Solve with final_residual=True."
            )
        residual = np.asarray(self.residual_norm, dtype=float)
        bound = np.divide(residual, sigma, out=np.full(residual.shape, math.inf), where=sigma > 0)
        return float(bound) if bound.ndim == 0 else bound

    @property
    def message(self) -> str:
        """One paragraph: who stopped, after how many products, at which residual or bias, and what to try."""
        statuses = np.asarray(self.status, dtype=object)
        products = f"{self.num_matvecs} matvecs"
        if self.num_rmatvecs:
            products += f" and {self.num_rmatvecs} rmatvecs"
        if isinstance(self.status, Status):
            where = "" if self.residual_norm is None else _where(self.relative_residual, self.bound, self.rhs_norm)
            bias = _off_by(self.bias, self.status)
            return f"{self.solver} stopped after {products}{where}: {self.status.name}{bias}. {self.status.sentence}"
        lines = []
        for status in sorted(set(statuses.ravel()), key=lambda s: s.name):
            mask = statuses == status
            worst = math.nan if self.residual_norm is None else float(np.max(self.relative_residual[mask]))
            where = "" if math.isnan(worst) else f", worst relative residual {worst:.1e}"
            bias = "" if self.bias is None else _off_by(float(np.max(np.asarray(self.bias)[mask])), status)
            lines.append(f"{int(mask.sum())} of {mask.size} systems: {status.name}{where}{bias}. {status.sentence}")
        return f"{self.solver} stopped after {products}. " + " ".join(lines)

    def __repr__(self) -> str:
        """Return the message without the array."""
        return f"<Solution: {self.message}>"


def _where(relative: float, bound: float, rhs_norm: float) -> str:
    expected = bound / rhs_norm if rhs_norm > 0 else 0.0
    return f" at relative residual {relative:.1e}, expected {expected:.1e}"


def _off_by(bias: float | None, status: Status) -> str:
    """Say the bias of an approximation in the message, where there is one to say."""
    if bias is None or math.isnan(bias):
        return ""
    if bias == math.inf:
        return ", bias unbounded, for the terms grow"
    if status is not Status.TRUNCATED:
        return ""
    return f", norm(x* - x) about {bias:.1e}"
