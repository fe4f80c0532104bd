"""The operator and the arrays of one spectral computation: counted products, random starts, host values a system.

Decisions are made on the host in double precision, on arrays ``(s,)`` with one entry a system: ``s = 1`` for a single
vector, the product of the leading axes for a batch. Vectors stay where they are, in the shape ``(..., n)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.errors import (
    BackendError,
    DtypeError,
    MissingProductError,
    SettingError,
    SettingTypeError,
    ShapeError,
)
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import split_shift
from implicitgrad.operators.precision import in_half_precision

__all__ = ["Space"]

Host = np.ndarray[Any, Any]


class Space:
    """``A`` with counters, and the conversions between vectors ``(..., n)`` and host values ``(s,)``.

    Parameters
    ----------
    name : str
        Who computes: the first words of error messages.
    operator : LinearOperator, shape (m, n)
        ``A``.
    start : array, shape (..., n), or None
        First vector of the caller; it also says which library, dtype, device and batch to work in.
    like : array, shape (..., n), or None
        The same without being a start. Default: ``operator.example()``.
    seed : int
        Of the random start and of fresh directions.
    adjoint : bool
        Whether ``A^H y`` will be needed, too.

    Attributes
    ----------
    eps : float
        Spacing of the format the recurrences run in, float32 for half precision.
    norm : ndarray, shape (s,)
        The largest part of ``A`` seen so far, a lower bound on its norm: what rounding is relative to. It begins with
        ``|alpha|`` for ``A = alpha I + beta B``, whose two parts may cancel.
    finite_start : ndarray of bool, shape (s,)
        Where the caller's start holds neither NaN nor Inf.
    """

    def __init__(
        self, name: str, operator: Any, start: Any = None, like: Any = None, seed: int = 0, adjoint: bool = False
    ) -> None:
        check_operator_type(name, operator)
        if min(operator.shape) == 0:
            raise ShapeError(
                f"{name}: got an operator of shape {operator.shape}, expected at least one row and column."
            )
        like = start if start is not None else operator.example() if like is None else like
        self.backend = backend = backend_of(like, name)
        rows, columns = operator.shape
        if like.ndim == 0 or like.shape[-1] != columns:
            raise ShapeError(
                f"{name}: got a start of shape {tuple(like.shape)}, expected (..., {columns}) to match an operator of "
                f"shape {operator.shape}: a vector is the last axis."
            )
        facts = backend.facts(like.dtype)
        if facts is None:
            raise DtypeError(f"{name}: got a start of dtype {like.dtype}, expected floating point. Cast it.")
        if operator.makes_complex and not facts.is_complex:
            raise DtypeError(
                f"{name}: got a start of dtype {like.dtype} for an operator with a complex factor, expected a complex "
                "one. Pass start=."
            )
        if operator.dtype is not None and backend_of(operator.example()) is not backend:
            raise BackendError(f"{name}: got a start of {type(like).__qualname__}, expected the operator's library.")
        if operator.dtype is not None and operator.dtype != like.dtype:
            raise DtypeError(
                f"{name}: got a start of dtype {like.dtype}, expected {operator.dtype} as the operator has."
            )
        if not operator.has_forward or (adjoint and not operator.has_adjoint):
            missing = "A x" if not operator.has_forward else "A^H y"
            raise MissingProductError(
                f"{name}: got an operator without {missing}, expected both products. Give VJPOperator(vjp, n, jvp=...)."
            )
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise SettingTypeError(f"{name}: got seed={seed!r}, expected an integer >= 0.")
        self.name, self.seed = name, int(seed)
        self.result_dtype = like.dtype
        self.half = facts.is_half
        if facts.is_half:
            operator = in_half_precision(operator, backend, like.dtype)
            like = backend.astype(like, backend.dtype("float32"))
        self.eps = 2.0**-23 if facts.is_half else facts.eps
        self.product_eps = facts.eps
        self.is_complex = facts.is_complex
        self.dtype: Any = complex if facts.is_complex else float
        self.operator = operator
        self.batch = tuple(like.shape[:-1])
        self.single = like.ndim == 1
        self.systems = int(np.prod(self.batch, dtype=int))
        self.domain = backend.zeros(tuple(like.shape), like)
        self.range = self.domain if rows == columns else backend.zeros((*self.batch, rows), like)
        self.num_matvecs = self.num_rmatvecs = self.draws = 0
        self.norm = np.full(self.systems, abs(split_shift(operator)[1]), float)
        self.finite_start = np.ones(self.systems, bool)
        self.given = start is not None
        self.start = self._given(like) if start is not None else self.random(self.domain)

    def _given(self, start: Array) -> Array:
        """Return the caller's start near norm one, zero where it holds NaN; raise where it is zero."""
        backend = self.backend
        start = backend.stop_gradient(start)
        largest = self.host(backend.max_abs(start))
        self.finite_start = np.isfinite(largest)
        if (largest == 0).any():
            raise SettingError(
                f"{self.name}: got a start vector of zeros, expected one with a part along the wanted eigenvector. "
                "Leave start=None for a random one."
            )
        start = self.keep(self.finite_start, start)
        exponent = np.frexp(np.where(self.finite_start, largest, 1.0))[1].astype(int)
        return backend.times_power_of_two(start, self.shaped(-exponent))

    # -- products --------------------------------------------------------------------------------------------------
    def matvec(self, x: Array) -> Array:
        """Return ``A x`` and count it."""
        self.num_matvecs += 1
        return self.operator.apply(x)

    def rmatvec(self, y: Array) -> Array:
        """Return ``A^H y`` and count it."""
        self.num_rmatvecs += 1
        return self.operator.apply_adjoint(y)

    # -- host and device -------------------------------------------------------------------------------------------
    def host(self, values: Any) -> Host:
        """Return values ``(...)``, or one number, as an array ``(s,)``."""
        return np.asarray(values).reshape(self.systems)

    def hosted(self, values: Any) -> Host:
        """Return ``k`` values a system as an array ``(s, k)``."""
        return np.asarray(values).reshape(self.systems, -1)

    def shaped(self, values: Host) -> Any:
        """Return ``(s,)`` as the one number, or the array ``(...)``, that results hold and backends take."""
        return values[0].item() if self.single else values.reshape(*self.batch, *values.shape[1:])

    def shaped_objects(self, values: Any) -> Any:
        """Return a sequence of ``s`` objects as the one, or as an object array ``(...)``."""
        if self.single:
            return values[0]
        objects = np.empty(self.systems, dtype=object)
        objects[:] = values
        return objects.reshape(self.batch)

    def shaped_rows(self, values: Host) -> Host:
        """Return ``(s, k)`` as ``(..., k)``."""
        return values.reshape(*self.batch, values.shape[-1])

    def norms(self, x: Array) -> Host:
        """Return the norm of each system; by ``sqrt``, for Python's ``x ** 0.5`` is not exact for ``4 x``."""
        squares = self.host(self.backend.to_host(self.backend.squared_norm(x)))
        norms: Host = np.sqrt(squares.astype(float))
        return norms

    def times(self, values: Host, x: Array) -> Array:
        """Return each system's vector times its real number."""
        return self.backend.times(self.backend.from_host(self.shaped(values), x), x)

    def unit(self, x: Array) -> Array:
        """Return each system's vector divided by its norm; zero stays zero."""
        norm = self.norms(x)
        return self.times(np.where(norm > 0, 1.0 / np.where(norm > 0, norm, 1.0), 0.0), x)

    def plus(self, values: Host, x: Array, y: Array) -> Array:
        """Return each system's real number times ``x``, plus ``y``."""
        return self.backend.axpy(self.backend.from_host(self.shaped(values), x), x, y)

    def complex_times(self, values: Host, x: Array) -> Array:
        """Return each system's complex number times ``x``, a complex vector."""
        if self.single:
            return x * complex(values[0])
        return x * self.backend.coefficients(values.reshape(*self.batch, 1), x)

    def select(self, where: Host, x: Array, y: Array) -> Array:
        """Return ``x`` for the systems in ``where``, ``y`` for the others."""
        if where.all():
            return x
        return self.backend.select(self.shaped(where), x, y) if where.any() else y

    def keep(self, where: Host, x: Array) -> Array:
        """Return ``x`` with the systems outside ``where`` set to zero."""
        return x if where.all() else self.select(where, x, self.backend.zeros(tuple(x.shape), x))

    def random(self, like: Array) -> Array:
        """Return fresh normal numbers; two calls of one computation never draw the same."""
        self.draws += 1
        return self.backend.random_like(like, self.seed + 7919 * (self.draws - 1))

    def seen(self, size: Host) -> None:
        """Raise ``norm`` to a part of ``A`` that has been seen."""
        self.norm = np.fmax(self.norm, np.where(np.isfinite(size), size, 0.0))

    def restored(self, x: Array) -> Array:
        """Return a vector in the caller's dtype."""
        return self.backend.astype(x, self.result_dtype) if self.half else x


def check_operator_type(name: str, operator: Any) -> None:
    """Raise unless ``operator`` is a ``LinearOperator``."""
    if not isinstance(operator, LinearOperator):
        raise SettingTypeError(
            f"{name}: got an operator of type {type(operator).__qualname__}, expected a LinearOperator. "
            "Wrap a vector-Jacobian product with VJPOperator(vjp, size=n), or a matrix with DenseOperator."
        )
