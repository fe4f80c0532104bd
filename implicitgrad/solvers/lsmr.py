"""LSMR: least squares by Golub-Kahan bidiagonalization, for ill-conditioned, singular and rectangular systems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array, Backend, Scalar
from implicitgrad.backends.host import any_true
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["LSMR"]


@dataclass(frozen=True, kw_only=True)
class LSMR(IterativeSolver):
    """``min norm(b - A x)`` for any ``A`` of shape ``(m, n)``, by products with ``A`` and ``A^H``.

    Parameters
    ----------
    rtol : float, optional
        ``CONVERGED`` when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps, one product with ``A`` and one with ``A^H`` each. None: ``min(10 n, 1000)``.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Notes
    -----
    Fong & Saunders 2011, SIAM J. Sci. Comput. 33, letters as in their sec. 5. Equal to MINRES on the normal equations,
    without forming them. It departs from their stopping rule, which is a backward-error test and lets the residual be
    large where ``x`` is. ``LEAST_SQUARES`` is said when ``norm(A^H r) <= 16 eps norm(A) norm(r)``. From zero, the
    answer of a singular system is the shortest one. On the first step ``<A v, u>`` is compared with ``<v, A^H u>``:
    a pair that differs beyond ``sqrt(eps)`` is ``ADJOINT_MISMATCH``. Cost a step: two products, two reductions, five
    vector updates; seven vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    >>> sol = ig.solve(A, np.array([1.0, 4.0, 3.0]), solver=ig.LSMR(), on_failure="return")
    >>> sol.status.name, bool(np.allclose(sol.x, [1, 2])), round(sol.residual_norm, 6)
    ('LEAST_SQUARES', True, 3.0)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False

    square: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Bidiagonalize from ``u = r / norm(r)``, two QR factorizations by rotations, update ``x`` along ``hbar``."""
        backend, eps = system.backend, system.eps
        x = system.zero() if x is None else x
        hbar = system.zero()
        beta = norm_r = backend.norm(r)
        u = backend.times(backend.quotient(1.0, beta), r)
        del r
        v = system.rmatvec(u)
        alpha = backend.norm(v)
        v = backend.times(backend.quotient(1.0, alpha), v)
        h = v
        one, zero = beta * 0.0 + 1.0, beta * 0.0
        alphabar, zetabar = alpha, alpha * beta
        rho = rhobar = cbar = rhodold = one
        sbar = zeta = betad = thetatilde = tautilde = zero
        betadd = beta
        length = backend.to_host(alpha)
        norm_a: Any = max(system.operator_norm, length) if system.single else np.fmax(system.operator_norm, length)
        system.operator_norm = norm_a
        first = True
        if any_true(null := system.among_live(np.asarray(length <= 16 * eps * norm_a))):
            system.break_down(null, Status.LEAST_SQUARES)  # A^H b = 0: x = 0 is the shortest answer
        while True:
            yield backend.to_host(norm_r), x
            u, v, h, hbar = system.park(u, v, h, hbar)
            alpha = system.park_scalar(alpha)  # u meets the operator in this same step
            w = system.matvec(v)
            if first and any_true(wrong := system.among_live(_mismatch(backend, w, u, alpha, eps))):
                system.break_down(wrong, Status.ADJOINT_MISMATCH)
            first = False
            u = backend.axpy(-alpha, u, w)
            del w
            beta = backend.norm(u)
            u = backend.times(backend.quotient(1.0, beta), u)
            column = backend.to_host((alpha * alpha + beta * beta) ** 0.5)
            norm_a = system.operator_norm = max(norm_a, column) if system.single else np.fmax(norm_a, column)
            v = backend.axpy(-beta, v, system.rmatvec(u))
            alpha = backend.norm(v)
            v = backend.times(backend.quotient(1.0, alpha), v)

            rho_old = rho
            c, s, rho = _rotation(backend, alphabar, beta)
            thetanew, alphabar = s * alpha, c * alpha
            rhobar_old, zeta_old = rhobar, zeta
            thetabar = sbar * rho
            cbar, sbar, rhobar = _rotation(backend, cbar * rho, thetanew)
            zeta, zetabar = cbar * zetabar, -sbar * zetabar

            hbar = backend.axpy(-backend.quotient(thetabar * rho, rho_old * rhobar_old), hbar, h)
            x = backend.axpy(backend.quotient(zeta, rho * rhobar), hbar, x)
            h = backend.axpy(-backend.quotient(thetanew, rho), h, v)

            betahat, betadd = c * betadd, -s * betadd
            thetatilde_old = thetatilde
            ctilde, stilde, rhotilde = _rotation(backend, rhodold, thetabar)
            thetatilde, rhodold = stilde * rhobar, ctilde * rhobar
            betad = -stilde * betad + ctilde * betahat
            tautilde = backend.quotient(zeta_old - thetatilde_old * tautilde, rhotilde)
            taud = backend.quotient(zeta - thetatilde * tautilde, rhodold)
            norm_r = ((betad - taud) ** 2 + betadd**2) ** 0.5
            norm_ar, size = backend.to_host(abs(zetabar)), backend.to_host(norm_r)
            if any_true(null := system.among_live(norm_ar <= 16 * eps * norm_a * size)):
                system.break_down(null, Status.LEAST_SQUARES)


def _rotation(backend: Backend, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """Return ``c, s, r`` with ``c a + s b = r`` and ``c b - s a = 0``."""
    r = (a * a + b * b) ** 0.5
    return backend.quotient(a, r), backend.quotient(b, r), r


def _mismatch(backend: Backend, av: Array, u: Array, alpha: Scalar, eps: float) -> Any:
    """Return where ``<u, A v>`` is not ``norm(A^H u)`` for ``v = A^H u / norm(A^H u)``, beyond half of the digits."""
    gap = backend.to_host(abs(backend.inner(u, av) - alpha))
    return gap > eps**0.5 * backend.to_host(backend.norm(av) + alpha)
