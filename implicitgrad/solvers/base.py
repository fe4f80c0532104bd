"""What every solver is: ``Solver``, and the checks of settings and arguments.

Used by every method of this folder, by ``adjoint.py`` and by the adapters, which make a ``Solver`` of foreign ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of, backend_of_dtype
from implicitgrad.backends.base import DtypeFacts
from implicitgrad.errors import BackendError, DeviceError, DtypeError, SettingError, SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers.solution import Solution

__all__ = ["Solver"]


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
        if is_dataclass(cls):  # a user's class may have an __init__ of its own
            refuse_unknown(cls.__name__, [f.name for f in fields(cls)], kwargs)
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
    facts = backend.facts(rhs.dtype)
    if facts is None:
        raise DtypeError(
            f"{name}: got rhs of dtype {rhs.dtype}, expected real or complex floating point of at most 64 bits a part. "
            "Cast it: integers do not solve, and LAPACK knows no wider formats."
        )
    if operator.makes_complex and not facts.is_complex:
        raise DtypeError(
            f"{name}: got rhs of dtype {rhs.dtype} for an operator with a complex factor, expected a complex one. "
            "Cast it."
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
    return backend_of_dtype(dtype).dtype_name(dtype)
