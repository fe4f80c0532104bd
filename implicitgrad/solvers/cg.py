"""Conjugate gradients for Hermitian positive definite systems: one product a step and three short recurrences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["CG"]


@dataclass(frozen=True, kw_only=True)
class CG(IterativeSolver):
    """Conjugate gradients for ``A x = b`` with ``A`` Hermitian positive definite.

    For ``A = I - J`` with symmetric ``J`` and ``rho(J) < 1`` (Hopfield networks, Hessians of inner problems).

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
    Hestenes & Stiefel 1952; Saad, Iterative Methods, 2nd ed., alg. 6.18. Minimizes the A-norm of the error. A direction
    ``p`` with ``p^H A p <= eps theta p^H p``, ``theta`` the largest Rayleigh quotient met, proves within rounding that
    ``A`` is not positive definite: ``INDEFINITE``, and the last good iterate. Cost a step: one product, two inner
    products, three vector updates; four vectors. Other peers take the absolute value of the curvature, or skip it.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.diag([1.0, 2.0, 4.0]), symmetric=True)
    >>> sol = ig.solve(A, np.ones(3), solver=ig.CG())
    >>> sol.num_iters, bool(np.allclose(sol.x, [1, 0.5, 0.25]))
    (3, True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Step along A-conjugate directions ``p``; ``rho = r^H r``."""
        backend, eps = system.backend, system.eps
        x = system.zero() if x is None else x
        p = r
        rho = p_squared = backend.squared_norm(r)
        theta: Any = system.operator_norm  # largest Rayleigh quotient so far, on the host
        while True:
            yield backend.to_host(rho) ** 0.5, x
            r, p = system.park(r, p)
            q = system.matvec(p)
            curvature = backend.real(backend.inner(p, q))
            rayleigh = backend.to_host(backend.quotient(curvature, p_squared))
            theta = max(theta, rayleigh) if system.single else np.fmax(theta, rayleigh)
            system.operator_norm = theta
            alpha = backend.quotient(rho, curvature)
            if any_true(flat := system.among_live(rayleigh <= eps * theta)):
                system.break_down(flat, Status.INDEFINITE)
                alpha = system.without(flat, alpha)
            r = backend.axpy(-alpha, q, r)
            del q  # before x, whose old value the driver still holds
            x = backend.axpy(alpha, p, x)
            rho, before = backend.squared_norm(r), rho
            beta = backend.quotient(rho, before)
            p = backend.axpy(beta, p, r)
            p_squared = rho + beta * beta * p_squared  # r is orthogonal to the old p
