"""Conjugate gradients on the normal equations A^H A x = A^H b, without forming them: the paper's CG-RBP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, finite, negate
from implicitgrad.errors import SettingTypeError
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.cg import CG
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["NormalEquations"]


@dataclass(frozen=True)
class NormalEquations(IterativeSolver):
    """CG on ``(A^H A + shift I) x = A^H b``, stopped by the residual of ``A x = b`` itself.

    Parameters
    ----------
    inner : CG
        Its ``rtol``, ``atol``, ``max_iters`` and ``final_residual`` rule here, measured on ``b - A x``.
    shift : float
        ``eta`` of the paper's reference code, in the unit of ``norm(A)**2``. With a positive shift the answer is
        biased: once the shifted system is solved to ``rtol``, the status is ``LEAST_SQUARES`` unless ``b - A x`` is
        small too.

    Raises
    ------
    SettingTypeError
        ``inner`` is no ``CG``. (MINRES on the normal equations is ``LSMR``.)

    Notes
    -----
    CGLS (Hestenes & Stiefel 1952, sec. 10; Bjorck 1996, alg. 7.4.1): the residual of the original system is carried
    along, so nothing is squared that need not be, but the steps still grow with the condition number, not its root.
    On the first step ``<A p, r>`` is compared with ``<p, A^H r>``: a pair that differs beyond ``sqrt(eps)`` is
    ``ADJOINT_MISMATCH``. Cost a step: one product with ``A``, one with ``A^H``, three reductions, three vector updates;
    five vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.0, -3.0], [3.0, 0.0]]))
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 2.0]), solver=ig.NormalEquations(ig.CG(rtol=1e-10)))
    >>> sol.status.name, bool(np.allclose(sol.x, [0.7, -0.1]))
    ('CONVERGED', True)
    """

    inner: CG = field(default_factory=CG)
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, CG):
            raise SettingTypeError(
                f"NormalEquations: got inner of type {type(self.inner).__qualname__}, expected CG. "
                "MINRES on the normal equations is LSMR."
            )
        check_settings(self)

    @property
    def rtol(self) -> float | None:  # type: ignore[override]
        """The inner solver's."""
        return self.inner.rtol

    @property
    def atol(self) -> float:  # type: ignore[override]
        """The inner solver's."""
        return self.inner.atol

    @property
    def max_iters(self) -> int | None:  # type: ignore[override]
        """The inner solver's."""
        return self.inner.max_iters

    @property
    def final_residual(self) -> bool:  # type: ignore[override]
        """The inner solver's."""
        return self.inner.final_residual

    @property
    def regularized(self) -> bool:
        """With a shift."""
        return self.shift != 0

    @property
    def name(self) -> str:
        """The name that reports use."""
        return "NormalEquations(CG)"

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Step along ``A^H A``-conjugate directions ``p``; ``s = A^H r - shift x``."""
        backend, eps, shift = system.backend, system.eps, float(self.shift)
        s = system.rmatvec(r)
        if shift and x is not None:
            s = s - shift * x
        warm, x = x is not None, system.zero() if x is None else x
        # s and p are kept in units of norm(s) at the start: A^H A squares the scale of A, which need not be near one.
        unit = backend.norm(s)
        s = backend.times(backend.quotient(1.0, unit), s)
        p = s
        gamma = backend.squared_norm(s)
        size = backend.norm(r)
        start = backend.to_host(unit)
        if shift and "goal" not in system.kept and warm:  # a guess neither loosens nor tightens what is asked for
            start = backend.host_norm(system.rmatvec(system.rhs))
        goal = system.kept.setdefault("goal", system.rtol * start)
        if any_true(null := system.among_live(backend.to_host(unit) == 0)):
            system.break_down(null, Status.LEAST_SQUARES)  # of A^H b = 0, x = 0 is the shortest answer
        if any_true(lost := system.among_live(negate(finite(start)))):
            system.break_down(lost, Status.NONFINITE_OPERATOR)
        norm_a: Any = system.operator_norm
        first = True
        while True:
            yield backend.to_host(size), x
            r, p, s = system.park(r, p, s)
            q = system.matvec(p)
            if first and not shift:
                gap = backend.to_host(abs(backend.inner(r, q) - gamma * unit))
                bound = eps**0.5 * backend.to_host(backend.norm(q) * size + gamma * unit)
                if any_true(wrong := system.among_live(gap > bound)):
                    system.break_down(wrong, Status.ADJOINT_MISMATCH)
            first = False
            p_squared = backend.squared_norm(p)
            q_squared = backend.squared_norm(q)
            stretch = backend.to_host(backend.quotient(q_squared, p_squared)) ** 0.5
            if any_true(lost := system.among_live(negate(finite(stretch)))):
                system.break_down(lost, Status.NONFINITE_OPERATOR)  # or its square is too large
            norm_a = system.operator_norm = max(norm_a, stretch) if system.single else np.fmax(norm_a, stretch)
            alpha = backend.quotient(gamma * unit, q_squared + shift * p_squared)
            r = backend.axpy(-alpha, q, r)
            del q, s  # before x, whose old value the driver still holds
            x = backend.axpy(alpha, p, x)
            s = system.rmatvec(r)
            if shift:
                s = s - shift * x
            s = backend.times(backend.quotient(1.0, unit), s)
            gamma, before = backend.squared_norm(s), gamma
            size = backend.norm(r)
            slope, length = backend.to_host(gamma**0.5 * unit), backend.to_host(size)
            null = slope <= 16 * eps * norm_a * length
            if shift:
                null = null | (slope <= goal)
            if any_true(null := system.among_live(np.asarray(null))):
                system.break_down(null, Status.LEAST_SQUARES)
            p = backend.axpy(backend.quotient(gamma, before), p, s)
