"""MINRES for Hermitian systems, definite or not: the Lanczos process and the smallest residual at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["MINRES"]


@dataclass(frozen=True, kw_only=True)
class MINRES(IterativeSolver):
    """Minimal residual method for ``A x = b`` with ``A`` Hermitian, possibly indefinite.

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps, one product each. None: ``min(10 n, 1000)``.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Notes
    -----
    Paige & Saunders 1975, SIAM J. Numer. Anal. 12, sec. 6, letters as in their MINRES. It departs from their stopping
    rule: the bound is on ``norm(b - A x)`` and not on ``norm(r) / (norm(A) norm(x))``, which calls the least-squares
    answer of a singular system a success. ``norm(A r) <= 16 eps norm(A) norm(r)``, or a dip of that
    ratio below ``sqrt(eps)``, is said to be ``LEAST_SQUARES``, if one more product
    confirms that ``A r`` is small. Cost a step: one product, two reductions, six vector
    updates; eight vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.diag([1.0, -2.0, 4.0]), symmetric=True)
    >>> sol = ig.solve(A, np.ones(3), solver=ig.MINRES())
    >>> sol.status.name, bool(np.allclose(sol.x, [1, -0.5, 0.25]))
    ('CONVERGED', True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False

    measures_minimum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Lanczos vectors ``v``, QR of the tridiagonal matrix by rotations ``(cs, sn)``, directions ``w``."""
        backend, eps = system.backend, system.eps
        x = system.zero() if x is None else x
        v_old = w = w_old = system.zero()
        beta = phibar = backend.norm(r)
        v = backend.times(backend.quotient(1.0, beta), r)
        del r
        beta = beta * 0.0  # the first step has no old vector to subtract
        delta_bar = epsilon = sn = beta
        cs = beta - 1.0
        norm_a: Any = system.operator_norm
        root_old, x_old = norm_a * 0.0 + np.inf, x
        while True:
            yield backend.to_host(phibar), x
            v, v_old, w, w_old = system.park(v, v_old, w, w_old)
            y = system.matvec(v)
            alpha = backend.real(backend.inner(v, y))
            y = backend.axpy(-alpha, v, y)
            y = backend.axpy(-beta, v_old, y)
            beta_old, beta = beta, backend.norm(y)

            epsilon_old = epsilon
            delta = cs * delta_bar + sn * alpha
            gamma_bar = sn * delta_bar - cs * alpha
            epsilon = sn * beta
            delta_bar = -cs * beta
            column = backend.to_host((alpha * alpha + beta_old * beta_old + beta * beta) ** 0.5)
            norm_a = system.operator_norm = max(norm_a, column) if system.single else np.fmax(norm_a, column)
            root = backend.to_host((gamma_bar * gamma_bar + delta_bar * delta_bar) ** 0.5)  # norm(A r) / norm(r)

            gamma = (gamma_bar * gamma_bar + beta * beta) ** 0.5
            cs, sn = backend.quotient(gamma_bar, gamma), backend.quotient(beta, gamma)
            phi, phibar_next = cs * phibar, sn * phibar
            # In exact arithmetic root is 0 at a least-squares answer. In floating point it dips and rises again, when
            # the recurrence begins to amplify the null space; the driver measures whether that was one.
            dip = (root_old <= eps**0.5 * norm_a) & (root > 2 * root_old)
            if any_true(dip := system.among_live(dip)):
                x = backend.select(dip, x_old, x)
                phibar = phibar * (1 - 4 * eps)  # just below the later iterate's, so that this one is kept
            root_old, x_old = root, x
            if any_true(null := system.among_live(root <= 16 * eps * norm_a) | dip):
                system.break_down(null, Status.LEAST_SQUARES)
                phi = system.without(null, phi)
                phibar_next = phibar if system.single else phibar_next + system.without(~null, phibar - phibar_next)
            phibar = phibar_next
            w_new = backend.axpy(-epsilon_old, w_old, v)
            w_new = backend.times(backend.quotient(1.0, gamma), backend.axpy(-delta, w, w_new))
            w_old, w = w, w_new
            del w_new
            x = backend.axpy(phi, w, x)
            v_old, v = v, backend.times(backend.quotient(1.0, beta), y)
            del y
