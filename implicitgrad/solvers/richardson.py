"""Richardson iteration: x <- x + (b - A x). For A = (I - J)^H it is the original recurrent back-propagation (RBP)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, pick, quotient
from implicitgrad.operators import identity_minus
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iteration import IterativeSolver
from implicitgrad.solvers.neumann import _PATIENCE
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["Richardson"]


@dataclass(frozen=True, kw_only=True)
class Richardson(IterativeSolver):
    """Richardson iteration for ``A x = b``, from any start: ``x <- (I - A) x + b``.

    For ``A = (I - J)^H`` this is the original RBP, ``z <- J^H z + g`` (Almeida 1987, Pineda 1987; Liao et al. 2018,
    eq. 10 of the appendix). ``K + 1`` steps from zero are ``K``-step Neumann (proposition 3).

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps. 0 returns the start, ``TRUNCATED``. None: 1000.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Notes
    -----
    Converges when the spectral radius of ``I - A`` is below one. Cost a step: one product, two additions, one norm;
    the first step from zero is ``x = b`` and costs no product. Unlike the sum of Neumann's terms, the iteration
    corrects its own rounding; where only that is left to correct, it has ``STAGNATED``.

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

    stationary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Step from ``x``; the residual of an iterate is the step that it takes next."""
        backend = system.backend
        contraction = identity_minus(system.operator)
        b = system.rhs
        size = before = least = backend.host_norm(r)
        yield size, (system.zero() if x is None else x)
        b, r = system.park(b, r)
        x = r if x is None else x + r
        growing = idle = 0
        while True:
            yield size * quotient(size, before), x
            b, x = system.park(b, x)
            system.num_matvecs += 1
            following = contraction.apply(x) + b
            before, size = size, backend.host_norm(following - x)
            x = following
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
