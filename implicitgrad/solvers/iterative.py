"""The interface of the methods that iterate: what one has to say of itself, so that the loop can do the rest.

A method is a generator, ``iterations(system, x, r)``, that starts at an iterate ``x`` with true residual ``r`` and
yields, after each step, its estimate of the residual norm and the iterate. The loop is that of ``iteration.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from implicitgrad.backends import Array
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers.base import Solver, check_system, default_max_iters
from implicitgrad.solvers.iteration import Iteration
from implicitgrad.solvers.solution import Solution
from implicitgrad.solvers.stopped import as_raised
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["IterativeSolver"]


class IterativeSolver(Solver):
    """Interface of the methods that iterate. A finished one is a frozen dataclass with these four settings."""

    rtol: float | None
    atol: float
    max_iters: int | None
    final_residual: bool

    square: ClassVar[bool] = True
    stationary: ClassVar[bool] = False  # x <- (I - A) x + b, which never ends of itself
    series: ClassVar[bool] = False  # its first iterate is b, not 0, so max_iters=0 is a budget
    foresees: ClassVar[bool] = False  # norms are guesses; ``system.passed`` is what turned out to be a good iterate
    measures_minimum: ClassVar[bool] = False  # LEAST_SQUARES is a guess of the recurrence, to be checked with a product
    outcome: ClassVar[Status] = Status.TRUNCATED  # what it is called that a fixed budget was spent as asked

    @property
    def regularized(self) -> bool:
        """Whether what is solved is another system near ``A x = b``, so that the last iterate is wanted, not the best.

        Its residual of ``A x = b`` still decides about ``CONVERGED``.
        """
        return False

    @abstractmethod
    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Yield ``(residual norm, iterate)`` at the start and after each step, from ``x`` with residual ``r``.

        The norm is a host value, for it is there to decide with. ``x`` is None for zero. An iterate may be a callable
        that forms it when asked. After each ``yield``, pass the vectors of the recurrence through ``system.park``.

        A method that learns the residual of an iterate with the product that leads to the next one ``foresees``: what
        it yields is a guess, and it sets ``system.passed`` where an iterate was better than the one after it.
        """

    def cycle_length(self) -> int | None:
        """Return after how many steps a cycle ends of itself; None for never."""
        return None

    def budget(self, size: int, batch: tuple[int, ...]) -> Any:
        """Return the most steps: one number, or an array ``(...)`` with one for each system of a batch."""
        return default_max_iters(size, self.stationary) if self.max_iters is None else int(self.max_iters)

    def bias(self, system: System, residual_norm: Any) -> Any:
        """Return an estimate of ``norm(x* - x)`` after a fixed budget, in the scale of ``system``; None for none.

        ``residual_norm`` is the measured one, None where it was not measured.
        """
        return None

    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``; see ``Solver.solve``."""
        check_system(f"{self.name}.solve", operator, rhs, x0, square=self.square)
        try:
            return Iteration(self, operator, rhs, x0).solution()
        except RuntimeError as caught:
            error = as_raised(caught, Iteration._cycle)
        raise error
