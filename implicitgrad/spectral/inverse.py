"""Inverse iteration for ``sigma_min``: ``y = A^{-H} v``, ``x = A^{-1} y``, by any solver that is handed in.

A search from outside sees the smallest singular values last; their inverses are the largest. Each turn multiplies the
error by ``(sigma_1 / sigma_2)^2``, so that an isolated tiny ``sigma_min``, whatever the rest of the spectrum, needs two
or three. The solves need not be exact: what they get wrong most is a part along the wanted vector.

The solver is an argument, because solvers and spectra share a floor and do not know each other; one with a method
``solve(operator, rhs)`` that returns an object with an ``x`` will do, and all of ``implicitgrad.solvers`` have it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.space import Space
from implicitgrad.status import Status

__all__ = ["LinearSolver", "check_solver", "inverse_iteration"]

_TURNS = 10


class LinearSolver(Protocol):
    """What is needed of a solver."""

    def solve(self, operator: LinearOperator, rhs: Array) -> Any:
        """Solve ``A x = b``; the result's ``x`` is used whatever its status."""


class _Watched(LinearOperator):
    """``A`` with its products counted by the space."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.shape = space.operator.shape
        self.symmetric = False

    def apply(self, x: Array) -> Array:
        """Return ``A x``."""
        return self._space.matvec(x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y``."""
        return self._space.rmatvec(y)


def check_solver(name: str, refine: Any) -> None:
    """Raise unless ``refine`` is None or has a method ``solve``."""
    if refine is not None and (isinstance(refine, type) or not callable(getattr(refine, "solve", None))):
        raise SettingTypeError(f"{name}: got refine={refine!r}, expected a solver such as GMRES(), or None.")


def inverse_iteration(search: Search, solver: LinearSolver, recompute: Any) -> None:
    """Improve the triplets that did not meet the bound, for as long as that lowers their residuals.

    Parameters
    ----------
    search : Search
        Finished; its books are updated.
    solver : LinearSolver
        For ``A`` and ``A^H``, square.
    recompute : callable
        The search's own: ``v, u -> v, u, value, residual``.
    """
    space = search.space
    watched = _Watched(space)
    for _ in range(_TURNS):
        unmet = np.array([s in (Status.MAX_ITERS, Status.STAGNATED) for s in search.status], dtype=bool)
        unmet &= np.isfinite(search.residual)
        if not unmet.any():
            return
        y = space.unit(solver.solve(watched.H, space.keep(unmet, search.vector)).x)
        x = space.unit(solver.solve(watched, y).x)
        v, u, value, residual = recompute(x, y)
        better = unmet & (residual < search.residual) & (value <= search.value + search.rounding)
        search.vector = space.select(better, v, search.vector)
        search.left = space.select(better, u, search.left)
        search.value = np.where(better, value, search.value)
        search.residual = np.where(better, residual, search.residual)
        search.iters = search.iters + unmet
        met = better & search.satisfied(search.value, search.residual, search.distance, search.gap)
        search.status[met] = Status.CONVERGED
        if not (better & ~met).any():
            return
