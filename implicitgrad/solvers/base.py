"""What every solver is and returns: ``Solver``, ``Solution``, and the checks of settings and arguments.

Used by every method of this folder, by ``adjoint.py`` and by the adapters, which make a ``Solver`` of foreign ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.backends.base import DtypeFacts
from implicitgrad.errors import BackendError, DeviceError, DtypeError, SettingError, SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.status import Status

__all__ = ["Attempt", "Solution", "Solver"]


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

    def error_bound(self, sigma_min: float) -> Any:
        """Return a bound on the error, ``norm(x - x*) <= norm(b - A x) / sigma_min``.

        Parameters
        ----------
        sigma_min : float
            A lower bound on the smallest singular value of ``A``; the result is as rigorous as this number.

        Returns
        -------
        float (*)
            In the unit of ``x``.

        Raises
        ------
        SettingError
            ``sigma_min`` is not a positive number, or the residual was not measured (a fixed budget).
        """
        if not isinstance(sigma_min, int | float | np.floating) or not 0 < sigma_min < math.inf:
            raise SettingError(f"Solution.error_bound: got sigma_min={sigma_min!r}, expected a positive number.")
        if self.residual_norm is None:
            raise SettingError(
                "Solution.error_bound: the residual of a fixed budget was not measured. Solve with final_residual=True."
            )
        return self.residual_norm / sigma_min

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


def timed(solve: Callable[..., Solution]) -> Callable[..., Solution]:
    """Return ``solve`` with its wall time in the ``Solution``: of nested solves, the outer one has the last word."""

    @wraps(solve)
    def measured(*args: Any, **kwargs: Any) -> Solution:
        start = perf_counter()
        solution = solve(*args, **kwargs)
        # In place, though it is frozen: it was made a moment ago, and replace() takes ten times as long.
        object.__setattr__(solution, "seconds", perf_counter() - start)
        return solution

    return measured


class Solver(ABC):
    """The interface of a solver: settings in its fields, the problem in the call.

    Finished solvers are frozen dataclasses; they are compared, hashed, pickled and shared freely.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Solver:
        """Refuse unknown settings in words; the generated ``__init__`` would not say which ones there are."""
        refuse_unknown(cls.__name__, [f.name for f in fields(cls)], kwargs)  # type: ignore[arg-type]
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Time every ``solve``: here for all solvers, those of users among them, so that none can forget it."""
        super().__init_subclass__(**kwargs)
        if "solve" in cls.__dict__:
            cls.solve = timed(cls.solve)  # type: ignore[method-assign]

    @property
    def name(self) -> str:
        """The name that reports use."""
        return type(self).__name__

    @abstractmethod
    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``.

        Parameters
        ----------
        operator : LinearOperator, shape (m, n)
            Square unless the solver says otherwise.
        rhs : array, shape (..., m)
            ``b``: one system, or a batch of independent ones.
        x0 : array, shape (..., n), optional
            First guess; None is zero. The bound stays relative to ``norm(b)``, so a good guess only saves work.

        Returns
        -------
        Solution
            Numerical failure is a status there, never an exception.

        Raises
        ------
        BackendError, ShapeError, DtypeError, DeviceError
            The arrays or the operator do not fit together.
        MissingProductError
            The method needs a product that the operator lacks.
        """


def refuse_unknown(name: str, known: list[str], given: Iterable[str]) -> None:
    """Raise for a keyword that is not among the known settings, with the closest one as a suggestion."""
    for keyword in given:
        if keyword not in known:
            close = get_close_matches(keyword, known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise SettingTypeError(
                f"{name}: got an unexpected keyword argument {keyword!r}, expected one of {', '.join(known)}.{hint}"
            )


def default_rtol(facts: DtypeFacts) -> float:
    """Return the relative tolerance of a dtype: ``sqrt(eps) / 4``, 8.6e-5 in float32 and 3.7e-9 in float64.

    Half of the digits, and a factor of four towards the conditioning of I - J: with a condition number of about ten, a
    gradient is right to three digits in float32 and to seven in float64.
    """
    return math.sqrt(facts.eps) / 4


def default_max_iters(size: int, stationary: bool = False) -> int:
    """Return ``min(10 n, 1000)``: Krylov methods end in n steps but for rounding. Stationary ones never end: 1000."""
    return 1000 if stationary else min(10 * size, 1000)


def check_settings(solver: Any) -> None:
    """Raise unless the tolerances, counts and flags among a solver's fields make sense."""
    name = type(solver).__name__
    for entry in fields(solver):
        value = getattr(solver, entry.name)
        if entry.name in ("rtol", "atol", "shift", "damping"):
            if value is None and entry.name == "rtol":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise SettingTypeError(f"{name}: got {entry.name}={value!r}, expected a finite number >= 0.")
            if not 0 <= value < math.inf:
                raise SettingError(f"{name}: got {entry.name}={value!r}, expected a finite number >= 0.")
            if entry.name == "damping" and value >= 1:
                raise SettingError(f"{name}: got damping={value!r}, expected a number in [0, 1); 1 would stand still.")
        elif entry.name == "final_residual":
            if not isinstance(value, bool):
                raise SettingTypeError(f"{name}: got final_residual={value!r}, expected True or False.")
        elif entry.name in ("max_iters", "min_iters", "restart", "memory", "m"):
            least = 0 if entry.name in ("max_iters", "min_iters") else 1
            if value is None and entry.name != "min_iters":
                continue
            wanted = f"an integer >= {least}" + ("" if entry.name == "min_iters" else " or None")
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise SettingTypeError(f"{name}: got {entry.name}={value!r}, expected {wanted}.")
            if value < least:
                raise SettingError(f"{name}: got {entry.name}={value!r}, expected {wanted}.")


def check_system(name: str, operator: Any, rhs: Any, x0: Any, square: bool = True) -> None:
    """Raise unless ``operator``, ``rhs`` and ``x0`` make a linear system, before any product is spent."""
    if not isinstance(operator, LinearOperator):
        raise SettingTypeError(
            f"{name}: got an operator of type {type(operator).__qualname__}, expected a LinearOperator. "
            "Wrap a vector-Jacobian product with VJPOperator(vjp, size=n), or a matrix with DenseOperator."
        )
    backend = backend_of(rhs, name)
    rows, columns = operator.shape
    if square and rows != columns:
        raise ShapeError(f"{name}: got an operator of shape {operator.shape}, expected a square one. Use LSMR.")
    if rhs.ndim == 0 or rhs.shape[-1] != rows:
        raise ShapeError(
            f"{name}: got rhs of shape {tuple(rhs.shape)}, expected (..., {rows}) to match operator of shape "
            f"{operator.shape}. A vector is the last axis: flatten the right-hand side with rhs.reshape(-1)."
        )
    if backend.facts(rhs.dtype) is None:
        raise DtypeError(
            f"{name}: got rhs of dtype {rhs.dtype}, expected floating point. Cast it: integers do not solve."
        )
    if operator.dtype is not None and backend.dtype_name(rhs.dtype) != _dtype_name(operator.dtype):
        raise DtypeError(
            f"{name}: got rhs of dtype {rhs.dtype} for an operator of {operator.dtype}, expected the same. "
            "Cast one of them."
        )
    if x0 is None:
        return
    if backend_of(x0, f"{name} (x0)") is not backend:
        raise BackendError(f"{name}: got x0 of {type(x0).__qualname__}, expected an array of rhs's library.")
    if tuple(x0.shape) != (*rhs.shape[:-1], columns):
        raise ShapeError(f"{name}: got x0 of shape {tuple(x0.shape)}, expected {(*rhs.shape[:-1], columns)}.")
    if x0.dtype != rhs.dtype:
        raise DtypeError(f"{name}: got x0 of dtype {x0.dtype}, expected {rhs.dtype} as rhs has.")
    if backend.device(x0) != backend.device(rhs):
        raise DeviceError(f"{name}: got x0 on {backend.device(x0)}, expected {backend.device(rhs)} as rhs is.")


def _dtype_name(dtype: Any) -> str:
    from implicitgrad.backends import backend_of_dtype

    return backend_of_dtype(dtype).dtype_name(dtype)
