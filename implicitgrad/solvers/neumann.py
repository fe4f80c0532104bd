"""Neumann series: solve A x = b by summing (I - A)^t b. Needs A x only, so a bare VJP is enough.

Used by ``adjoint_solve`` as the paper's Neumann-RBP, and as an explicit approximation with a fixed budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, pick, quotient
from implicitgrad.operators import identity_minus
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.solvers.tail import geometric_tail
from implicitgrad.status import Status

__all__ = ["Neumann"]

_PATIENCE = 5  # growing terms in a row before growth counts: a non-normal I - A grows for a while before it decays


@dataclass(frozen=True, kw_only=True)
class Neumann(IterativeSolver):
    """Truncated Neumann series for ``A x = b``: ``x_K = sum_{t=0..K} (I - A)^t b``.

    For ``A = (I - J)^H`` this is the paper's K-step Neumann-RBP, ``sum_t (J^H)^t g``. With ``damping = 1 - s`` it is
    the damped series ``x_K = s sum_{t=0..K} (I - s A)^t b``, which for a fixed budget is a phantom gradient.

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` products are spent, the status is
        ``TRUNCATED`` and the residual is not measured.
    max_iters : int, optional
        Most products to spend on terms. 0 is the one-step gradient, ``x = b``, ``TRUNCATED``.
        None: 1000.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.
    damping : float
        ``1 - s``, the part of the old iterate that a step keeps, in ``[0, 1)``; the meaning it has for ``Picard``.

    Notes
    -----
    Converges when the spectral radius of ``I - s A`` is below one (Saad, Iterative Methods for Sparse Linear Systems,
    2nd ed., sec. 4.2.1), by that factor a step; ``s = 1`` without damping. ``b - A x_K = (I - s A)^(K+1) b`` (Liao et
    al. 2018, eq. 7 of the appendix). Cost: one product, one addition and one norm a term; two vectors. Where
    the check of ``x_K`` fails, the recomputed residual is the next term, and a better sum before it is measured, too,
    with one product more. ``DIVERGED`` is said when
    five terms in a row have grown and their rounding alone exceeds the bound. With a fixed budget ``Solution.bias``
    estimates what was cut off.

    *Damping.* ``K`` products are the gradient of ``K + 1`` unrolled steps ``h <- (1 - s) h + s F(h, w)`` from the fixed
    point: the unrolling-based phantom gradient of Geng et al. 2021, "On training implicit models", NeurIPS, whose
    ``k = K + 1`` and ``lambda = s``. So ``max_iters=0`` is ``s`` times the one-step gradient. For real eigenvalues
    ``mu < 1`` of ``J`` any ``s < 2 / (1 - min mu)`` converges, left of -1 too; an eigenvalue beyond 1 no damping mends.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.5, 0.2], [0.0, 0.25]]))
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 1.0]), solver=ig.Neumann())
    >>> sol.status.name, bool(np.allclose(sol.x, [2.0, 28 / 15]))
    ('CONVERGED', True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False
    damping: float = 0.0

    stationary: ClassVar[bool] = True
    series: ClassVar[bool] = True
    foresees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def bias(self, system: System, residual_norm: Any) -> Any:
        """Return the geometric tail of the terms."""
        return geometric_tail(system.tail, residual_norm, 1.0 - self.damping)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Add the terms that follow ``x``; the residual of a sum is its next term, before the factor ``step``."""
        backend, damping = system.backend, float(self.damping)
        step = 1.0 - damping
        contraction = identity_minus(system.operator)  # J^H itself where A = (I - J)^H: no subtraction to undo
        term, part = r, (step * r if damping else r)
        x = part if x is None else x + part
        del r, part
        size, ratio = backend.host_norm(term), 1.0
        system.tail = size, None

        def sum_before() -> Array:
            """Return the sum without its last term, whose norm is the residual's then; nobody has to keep it."""
            return x - (step * term if damping else term)

        least, growing = size + math.inf, 0  # least: of the residuals that are known
        while True:
            # The next term is not known before it is paid for; by the last ratio it will be about this large.
            yield size * ratio, x
            x, term = system.park(x, term)
            system.num_matvecs += 1
            following = contraction.apply(term)
            if damping:
                following = step * following
                following = following + damping * term
            before, size = size, backend.host_norm(following)
            ratio = quotient(size, before)
            if not system.fixed_budget:
                if system.latest is not None and any_true(turned := (ratio >= 1) & (before < least)):
                    system.passed = pick(turned, before, math.inf), sum_before()
                    least = pick(turned, before, least)
                system.latest = size, sum_before
            term = following
            del following
            x = x + (step * term if damping else term)
            system.tail = size, ratio
            if any_true(grows := ratio > 1):
                growing = (growing + 1) * grows
                lost = (growing >= _PATIENCE) & (system.eps * size > system.threshold)
                if not system.fixed_budget and any_true(lost):
                    system.break_down(lost, Status.DIVERGED)
            else:
                growing = 0
