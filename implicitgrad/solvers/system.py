"""One linear system as the methods see it: scaled, counted, and able to park the systems of a batch that have ended.

*Scaling.* ``b`` is divided by the power of two next to ``max |b|``. Such a division is exact, so a solve of ``s b``
runs through the same bits as a solve of ``b`` for every power of two ``s``, and squares of small or large right-hand
sides neither underflow nor overflow. There is no absolute threshold anywhere after that.

*Parking.* A batch is one operator for all its systems, so a system that has ended cannot be taken out. Its search
vectors are set to zero instead: its iterate no longer moves, and whatever made it end (a NaN, say) is gone from the
products that its neighbours need.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import split_shift
from implicitgrad.operators.precision import in_half_precision
from implicitgrad.solvers.base import default_rtol
from implicitgrad.status import Status

__all__ = ["System"]


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

    Attributes
    ----------
    rhs : array
        The scaled right-hand side; zero for the systems that are not solved (NaN in ``b``).
    rhs_norm, threshold : float, or array (...)
        Norm of the scaled ``b``, and the bound on the scaled residual.
    fixed_budget : bool
        ``rtol = atol = 0``: no test of convergence is wanted.
    live : array of bool (...)
        The systems that are still running.
    operator_norm : float, or array (...)
        A lower estimate of ``norm(A)``, for the floor that rounding sets; methods raise it with what they see.
    """

    def __init__(self, operator: LinearOperator, rhs: Array, rtol: float | None, atol: float) -> None:
        self.backend = backend = backend_of(rhs)
        rhs = backend.stop_gradient(rhs)
        facts = backend.facts(rhs.dtype)
        assert facts is not None  # check_system has seen to it
        self.eps = facts.eps
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

        largest = np.asarray(backend.max_abs(rhs))
        self.finite = np.isfinite(largest)
        _, exponent = np.frexp(np.where(self.finite, largest, 0.0))
        self.exponent = int(exponent) if self.single else exponent.astype(int)
        if not self.finite.all():
            rhs = backend.select(self.finite, rhs, backend.zeros(tuple(rhs.shape), rhs))
        self.rhs = backend.times_power_of_two(rhs, -self.exponent)
        self.rhs_norm = backend.to_host(backend.norm(self.rhs))
        self.rtol = rtol = default_rtol(facts) if rtol is None else float(rtol)
        bound = np.maximum(rtol * np.asarray(self.rhs_norm), np.ldexp(float(atol), -np.asarray(self.exponent)))
        self.threshold: Any = float(bound) if self.single else bound
        self.fixed_budget = rtol == 0 and atol == 0
        self.live = np.ones(self.batch, bool)
        self.operator_norm: Any = abs(split_shift(operator)[1])

    def matvec(self, x: Array) -> Array:
        """Return ``A x`` and count it."""
        self.num_matvecs += 1
        return self.operator.apply(x)

    def rmatvec(self, y: Array) -> Array:
        """Return ``A^H y`` and count it."""
        self.num_rmatvecs += 1
        return self.operator.apply_adjoint(y)

    def residual(self, x: Array) -> Array:
        """Return ``b - A x``, recomputed."""
        return self.rhs - self.matvec(x)

    def zero(self) -> Array:
        """Return ``x = 0``, of the length of the operator's domain."""
        return self.backend.zeros((*self.batch, self.operator.shape[1]), self.rhs)

    def break_down(self, where: Any, status: Status) -> None:
        """Say that the recurrence cannot go on for the systems in the host mask ``where``; the method yields next."""
        self.broken = (where, status)

    def among_live(self, where: Any) -> Any:
        """Return a host mask less the systems that have ended, whose scalars are zeros that mean nothing."""
        return where if self.single else where & self.live

    def without(self, where: Any, scalar: Any) -> Any:
        """Return a scalar set to zero for the systems in the host mask ``where``."""
        if self.single:
            return 0.0 if where else scalar
        return scalar * self.backend.from_host(~where, self.rhs)

    def park(self, *vectors: Array) -> tuple[Array, ...]:
        """Return the vectors with those systems set to zero that have ended since the last step."""
        if self.parking is None:
            return vectors
        return tuple(self.keep(self.parking, v) for v in vectors)

    def keep(self, mask: Any, x: Array) -> Array:
        """Return ``x`` with the systems outside the host mask set to zero."""
        return self.backend.select(mask, x, self.backend.zeros(tuple(x.shape), x))

    def rounded(self, x: Array) -> Array:
        """Return ``x`` as the caller's dtype can hold it: a check of anything finer would flatter the result."""
        if not self.half:
            return x
        held = self.backend.astype(self.restore(x), self.rhs.dtype)
        return self.backend.times_power_of_two(held, -self.exponent)

    def restore(self, x: Array) -> Array:
        """Return ``x`` in the caller's scale and dtype, in memory of its own."""
        x = self.backend.times_power_of_two(x, self.exponent)
        return self.backend.astype(x, self.result_dtype) if self.half else x
