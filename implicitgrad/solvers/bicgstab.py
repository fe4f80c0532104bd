"""BiCGSTAB for general systems in the memory of eight vectors: two products a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from implicitgrad.backends import Array, Scalar
from implicitgrad.backends.host import any_true
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["BiCGSTAB"]


@dataclass(frozen=True, kw_only=True)
class BiCGSTAB(IterativeSolver):
    """Stabilized bi-conjugate gradients for ``A x = b`` with any invertible ``A``.

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps, two products each. None: ``min(10 n, 1000)``.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Notes
    -----
    van der Vorst 1992, SIAM J. Sci. Stat. Comput. 13; Saad, Iterative Methods, 2nd ed., alg. 7.7. The residual is not
    monotone: the best iterate is kept. The method breaks down when ``r`` becomes orthogonal to the shadow residual or
    to ``A r``; both are tested relative to the norms (SciPy compares with ``eps**2``, which a right-hand side of norm
    1e-8 meets at the start), and the solve goes on from the recomputed residual with a new shadow as long as that
    gains a factor of two. Cost a step: two products, five reductions, six vector updates; eight vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.array([[2.0, 1.0], [-1.0, 3.0]]))
    >>> sol = ig.solve(A, np.array([4.0, 5.0]), solver=ig.BiCGSTAB())
    >>> sol.status.name, bool(np.allclose(sol.x, [1, 2]))
    ('CONVERGED', True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """A BiCG step ``alpha p``, then the step ``omega s`` that makes the residual smallest."""
        backend, eps = system.backend, system.eps
        x = system.zero() if x is None else x
        shadow = p = r
        rho: Scalar = backend.squared_norm(r)
        size = shadow_norm = rho**0.5
        while True:
            yield backend.to_host(size), x
            r, p, shadow = system.park(r, p, shadow)
            v = system.matvec(p)
            alpha = backend.quotient(rho, backend.inner(shadow, v))
            s = backend.axpy(-alpha, v, r)
            del r
            t = system.matvec(s)
            t_s, t_t = backend.inner(t, s), backend.squared_norm(t)
            omega = backend.quotient(t_s, t_t)
            x = backend.axpy(omega, s, backend.axpy(alpha, p, x))
            r = backend.axpy(-omega, t, s)
            del s, t
            rho, before = backend.inner(shadow, r), rho
            size = backend.norm(r)
            # size stands for norm(s) in the second test: where omega is lost, r is s.
            lost = backend.to_host(abs(rho)) <= eps * backend.to_host(shadow_norm * size)
            lost = lost | (backend.to_host(abs(t_s)) <= eps * backend.to_host(t_t**0.5 * size))
            if any_true(lost := system.among_live(lost & (backend.to_host(size) > 0))):
                system.break_down(lost, Status.BREAKDOWN)
            beta = backend.quotient(rho, before) * backend.quotient(alpha, omega)
            p = backend.axpy(beta, backend.axpy(-omega, v, p), r)
            del v
