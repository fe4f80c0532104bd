"""Richardson iteration, x <- x + s (b - A x): for A = (I - J)^H and s = 1 the original recurrent back-propagation."""

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
from implicitgrad.solvers.neumann import _PATIENCE
from implicitgrad.solvers.system import System
from implicitgrad.solvers.tail import geometric_tail
from implicitgrad.status import Status

__all__ = ["Richardson"]


@dataclass(frozen=True, kw_only=True)
class Richardson(IterativeSolver):
    """Richardson iteration for ``A x = b``, from any start: ``x <- damping x + (1 - damping) ((I - A) x + b)``.

    For ``A = (I - J)^H`` and no damping this is the original RBP, ``z <- J^H z + g`` (Almeida 1987, Pineda 1987; Liao
    et al. 2018, eq. 10 of the appendix). ``K + 1`` steps from zero are ``K``-step Neumann (proposition 3), with any
    damping.

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps. 0 returns the start with its residual. None: 1000.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.
    damping : float
        The part of the old iterate that is kept, in ``[0, 1)``; the meaning it has for ``Picard``.

    Notes
    -----
    Converges when the spectral radius of ``I - s A``, ``s = 1 - damping``, is below one, so with enough damping also
    where ``J`` has eigenvalues left of -1. ``K`` steps from zero, ``K - 1`` products, are the gradient of ``K``
    unrolled damped steps from the fixed point (phantom gradients, Geng et al. 2021; see ``Neumann``). Cost a step: one
    product, two additions, one norm; three vectors, and the best iterate where there is a tolerance. The first step
    from zero is ``x = s b`` and costs no product. Unlike the sum of Neumann's terms, the iteration corrects its own
    rounding; where only that is left to correct, it has ``STAGNATED``. With a fixed budget ``Solution.bias`` estimates
    what was cut off.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.5]]))
    >>> ig.adjoint_solve(J, np.array([1.0]), solver=ig.Richardson(rtol=0, max_iters=3)).x
    array([1.75])
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    final_residual: bool = False
    damping: float = 0.0

    stationary: ClassVar[bool] = True
    foresees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def bias(self, system: System, residual_norm: Any) -> Any:
        """Return the geometric tail of the steps."""
        return geometric_tail(system.tail, residual_norm, 1.0 - self.damping)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Step from ``x``; the residual of an iterate is the step that it takes next, before the factor ``step``."""
        backend, damping = system.backend, float(self.damping)
        step = 1.0 - damping
        contraction = identity_minus(system.operator)
        b = system.rhs
        size = before = least = backend.host_norm(r)
        yield size, (system.zero() if x is None else x)
        b, r = system.park(b, r)
        part = step * r if damping else r
        x = part if x is None else x + part
        del r, part
        system.tail = size, None
        growing = idle = 0
        while True:
            yield size * quotient(size, before), x
            b, x = system.park(b, x)
            system.num_matvecs += 1
            following = contraction.apply(x)
            following = following + b
            residual = following - x
            before, size = size, backend.host_norm(residual)
            if not system.fixed_budget and any_true(better := size < least):
                system.passed = pick(better, size, math.inf), x
            if damping:
                del following
                residual = step * residual  # in steps of its own: each frees what the one before has used up
                x = x + residual
            else:
                x = following
                del following
            del residual
            system.tail = size, quotient(size, before)
            if system.fixed_budget:
                continue
            growing = (growing + 1) * (size > before)
            idle = (idle + 1) * (size >= least)
            least = pick(size < least, size, least)
            if any_true(lost := growing >= _PATIENCE):
                lost = lost & (system.eps * size > system.threshold)
                if any_true(lost):
                    system.break_down(lost, Status.DIVERGED)
            if any_true(still := idle >= _PATIENCE):
                # Steps of the size of x's own rounding: the iteration corrects that for ever and never stands.
                still = still & (size <= system.eps * (system.rhs_norm + backend.host_norm(x)))
                if any_true(still := system.among_live(still)):
                    system.break_down(still, Status.STAGNATED)
                idle = idle * (idle < _PATIENCE)  # a rotation is always idle: it is asked every fifth step
