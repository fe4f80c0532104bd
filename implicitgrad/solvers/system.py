"""One linear system as the methods see it: scaled, counted, and able to park the systems of a batch that have ended.

*Scaling.* ``b`` is divided by the power of two next to ``max |b|``, unless its norm is near one anyway. Such a division
is exact, so a solve of ``s b`` runs through the same bits as a solve of ``b`` for every power of two ``s``, and squares
of small or large right-hand sides neither underflow nor overflow. There is no absolute threshold after that.

Only the caller's ``b`` is kept; the scaled one is made again where it is wanted, at the check of a result.

*Parking.* A batch is one operator for all its systems, so a system that has ended cannot be taken out. Its search
vectors are set to zero instead: its iterate no longer moves, and whatever made it end (a NaN, say) is gone from the
products that its neighbours need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.backends.host import all_true, any_true, finite, ldexp, pick
from implicitgrad.errors import OperatorError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import split_shift
from implicitgrad.operators.precision import in_half_precision
from implicitgrad.solvers.base import default_rtol
from implicitgrad.status import Status

__all__ = ["System"]

# Norms of b in this range need no scaling: no square in a solve comes near the ends of float32, and a multiplication by
# a power of two that is left out changes no bit.
_UNSCALED = (2.0**-12, 2.0**12)


class System:
    """``A x = b`` after scaling, with counters.

    Parameters
    ----------
    operator : LinearOperator
        ``A``.
    rhs : array, shape (..., m)
        ``b`` as the caller gave it.
    rtol : float or None
        None takes the default of the dtype.
    atol : float
        In the unit of the caller's ``b``.
    budget : int or None
        The caller's ``max_iters``.

    Attributes
    ----------
    given : array
        ``b`` as it was given, without history; in single precision where it came in half.
    rhs_norm, threshold : float, or array (...)
        Norm of the scaled ``b``, and the bound on the scaled residual.
    fixed_budget : bool
        ``rtol = atol = 0`` and a ``max_iters``: no test of convergence is wanted. Without a ``max_iters``, zero
        tolerances ask for as much as the format can give.
    live : array of bool (...)
        The systems that are still running.
    operator_norm : float, or array (...)
        What the rounding of one product is relative to. It starts from ``|alpha|`` for ``A = alpha I + beta B``, whose
        two parts may cancel, and methods raise it to what they see of ``norm(A)``.
    """

    def __init__(
        self, operator: LinearOperator, rhs: Array, rtol: float | None, atol: float, budget: int | None = None
    ) -> None:
        self.backend = backend = backend_of(rhs)
        rhs = backend.stop_gradient(rhs)
        facts = backend.facts(rhs.dtype)
        assert facts is not None  # check_system has seen to it
        self.eps, self.is_complex = facts.eps, facts.is_complex
        self.result_dtype = rhs.dtype
        if facts.is_half:
            operator = in_half_precision(operator, backend, rhs.dtype)
            rhs = backend.astype(rhs, backend.dtype("float32"))
        self.half = facts.is_half
        self.operator = operator
        self.batch = tuple(rhs.shape[:-1])
        self.single = rhs.ndim == 1
        self.num_matvecs = 0
        self.num_rmatvecs = 0
        self.kept: dict[str, Any] = {}  # what a method wants to find again in its next cycle
        self.parking: Any = None
        self.broken: tuple[Any, Status] | None = None
        # Of a method that foresees: residual norms and iterates that were better than what came after them, and those
        # just behind the ones it yields, the latest whose residual is known, with a callable that forms them.
        self.passed: tuple[Any, Array] | None = None
        self.latest: tuple[Any, Callable[[], Array]] | None = None
        self.tail: tuple[Any, Any] | None = None  # of a series: the last term's norm, and its ratio to the one before

        self.finite: Any = True if self.single else np.ones(self.batch, bool)
        self.exponent: Any = 0 if self.single else np.zeros(self.batch, int)
        self.rescaled = facts.is_half
        self.given, self.rhs_norm = rhs, backend.host_norm(rhs)
        self._in_range = all_true((self.rhs_norm > _UNSCALED[0]) & (self.rhs_norm < _UNSCALED[1]))
        if not self._in_range:
            self._scale(rhs)
        self.rtol = rtol = default_rtol(facts) if rtol is None else float(rtol)
        self.threshold: Any = rtol * self.rhs_norm
        if atol:
            scaled = ldexp(np.full(self.batch, atol) if self.batch else float(atol), -self.exponent)
            self.threshold = pick(scaled > self.threshold, scaled, self.threshold)
        self.fixed_budget = rtol == 0 and atol == 0 and budget is not None
        self.live: Any = True if self.single else np.ones(self.batch, bool)
        self.operator_norm: Any = abs(split_shift(operator)[1])

    def _scale(self, rhs: Array) -> None:
        """Divide ``b`` by the power of two next to its largest entry, or set it to zero where that is no number."""
        backend, self.rescaled = self.backend, True
        largest = backend.max_abs(rhs)
        self.finite = finite(largest)
        largest = pick(self.finite, largest, 0.0)
        self.exponent = math.frexp(largest)[1] if self.single else np.frexp(largest)[1].astype(int)
        self.rhs_norm = backend.to_host(backend.norm(self.rhs))

    @property
    def rhs(self) -> Array:
        """The scaled right-hand side; zero for the systems that are not solved (NaN in ``b``).

        A new array where ``b`` needs scaling: a method that keeps it for the length of a solve holds one vector more.
        """
        if self._in_range:
            return self.given
        rhs = self.given if all_true(self.finite) else self.keep(self.finite, self.given)
        return self.backend.times_power_of_two(rhs, -self.exponent)

    def first_residual(self) -> Array:
        """Return ``b - A 0`` in memory of its own: ``b`` itself, which measures, is never lent to the operator."""
        return self.backend.copy(self.given) if self._in_range else self.rhs

    def matvec(self, x: Array) -> Array:
        """Return ``A x`` and count it."""
        self.num_matvecs += 1
        return self.operator.apply(x)

    def rmatvec(self, y: Array) -> Array:
        """Return ``A^H y`` and count it."""
        self.num_rmatvecs += 1
        return self.operator.apply_adjoint(y)

    def residual(self, x: Array) -> Array:
        """Return ``b - A x``, recomputed; raise where the operator has changed ``x``, whose residual it then is not."""
        before = self._seen(x)
        product = self.matvec(x)  # first: a scaled b is in memory for the subtraction alone
        for old, new in zip(before, self._seen(x), strict=True):
            with np.errstate(invalid="ignore"):  # Inf less Inf is told elsewhere
                moved = abs(new - old) > 64 * self.eps * old  # a reduction may round otherwise the second time
            if any_true(moved):
                raise OperatorError(
                    "solve: the operator changed its input in place, behind torch's back (through .numpy() or .data), "
                    "expected it to be left as it is. Write into a copy, and use x * 2 rather than x *= 2."
                )
        return self.rhs - product

    def _seen(self, x: Array) -> tuple[Any, ...]:
        """Return numbers that tell whether ``x`` is what it was; none where the operator only gets a copy of it.

        A check of every product would cost two reductions each; the one that a status is taken from has to be right.
        """
        if self.backend.lends_copies:
            return ()
        sizes = (self.backend.host_norm(x),)
        return (*sizes, self.backend.host_norm(self.given - x)) if x.shape == self.given.shape else sizes

    def zero(self) -> Array:
        """Return ``x = 0``, of the length of the operator's domain."""
        return self.backend.zeros((*self.batch, self.operator.shape[1]), self.given)

    def break_down(self, where: Any, status: Status) -> None:
        """Say that the recurrence cannot go on for the systems in the host mask ``where``; the method yields next."""
        self.broken = (bool(where) if self.single else where, status)

    def among_live(self, where: Any) -> Any:
        """Return a host mask less the systems that have ended, whose scalars are zeros that mean nothing."""
        return bool(where) if self.single else where & self.live

    def without(self, where: Any, scalar: Any) -> Any:
        """Return a scalar set to zero for the systems in the host mask ``where``."""
        if self.single:
            return 0.0 if where else scalar
        return scalar * self.backend.from_host(~where, self.given)

    def park(self, *vectors: Array) -> tuple[Array, ...]:
        """Return the vectors with those systems set to zero that have ended since the last step."""
        if self.parking is None:
            return vectors
        return tuple(self.keep(self.parking, v) for v in vectors)

    def park_scalar(self, scalar: Any) -> Any:
        """Return a real scalar set to zero as ``park`` does with vectors."""
        if self.parking is None:
            return scalar
        return self.backend.from_host(np.where(self.parking, self.backend.to_host(scalar), 0.0), self.given)

    def chosen(self, mask: Any, x: Array, other: Array | None) -> Array:
        """Return ``x`` for the systems in the host mask, ``other`` (None: zero) elsewhere; no copy where it holds."""
        if all_true(mask):
            return x
        other = self.zero() if other is None else other
        return self.backend.select(mask, x, other) if any_true(mask) else other

    def keep(self, mask: Any, x: Array) -> Array:
        """Return ``x`` with the systems outside the host mask set to zero."""
        return self.backend.select(mask, x, self.backend.zeros((1,), x))

    def rounded(self, x: Array) -> Array:
        """Return ``x`` as the caller's dtype can hold it: a check of anything finer would flatter the result."""
        if not self.half:
            return x
        held = self.backend.astype(self.restore(x), self.given.dtype)
        return self.backend.times_power_of_two(held, -self.exponent)

    def restore(self, x: Array) -> Array:
        """Return ``x`` in the caller's scale and dtype, in memory of its own."""
        if any_true(self.exponent != 0):
            x = self.backend.times_power_of_two(x, self.exponent)
        return self.backend.astype(x, self.result_dtype) if self.half else x
