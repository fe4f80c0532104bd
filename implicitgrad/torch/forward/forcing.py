"""How exactly a Newton step is solved for: forcing terms, and one inner solve with a tolerance for each sample.

Far from the solution an exact step is wasted, near it a crude one costs the quadratic convergence. The inner system is
solved to ``norm(b - A d) <= eta norm(b)`` with ``eta`` from the progress of the last step.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from implicitgrad.adjoint import solve
from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers import Solution, Solver

__all__ = ["Forcing", "solve_inexactly"]

# Eisenstat & Walker 1996, SIAM J. Sci. Comput. 17, choice 2: gamma and alpha as recommended there, and the safeguard
# that a term falls no faster than gamma eta^alpha while that is above 0.1.
_GAMMA, _ALPHA, _FIRST = 0.9, 2.0, 0.5


class Forcing:
    """The forcing terms ``eta`` of one forward solve, host values, one a sample.

    Parameters
    ----------
    most : float
        No term is above this.
    """

    def __init__(self, most: float) -> None:
        self.eta: Any = None
        self._most = most
        self._size: Any = None

    def update(self, size: Any, bound: Any, eps: float) -> Any:
        """Return ``eta`` for a step from a residual of norm ``size`` towards ``bound``.

        The term is kept above ``bound / (2 size)``: the last step need not be solved beyond what is asked for (Kelley
        1995, Iterative Methods for Linear and Nonlinear Equations, eq. 6.20); and above rounding.
        """
        size, bound = np.asarray(size, dtype=float), np.asarray(bound, dtype=float)
        with np.errstate(all="ignore"):  # samples that have ended may hold NaN; nobody solves for them
            if self.eta is None:
                eta = np.full(size.shape, _FIRST)
            else:
                eta = _GAMMA * (size / self._size) ** _ALPHA
                slow = _GAMMA * self.eta**_ALPHA
                eta = np.where(slow > 0.1, np.fmax(eta, slow), eta)
            eta = np.fmin(np.fmax(eta, np.fmax(0.5 * bound / size, 8 * eps)), self._most)
        self.eta, self._size = eta, size
        return eta


def solve_inexactly(inner: Solver, A: LinearOperator, rhs: Array, size: Any, eta: Any) -> tuple[Array, Solution]:
    """Solve ``A d = b`` to ``norm(b - A d) <= eta norm(b)``, each sample of a batch with its own ``eta``.

    A solver has one tolerance. Every ``b`` is therefore divided by the largest power of two below ``eta norm(b)``,
    which changes no digit, and solved to an absolute tolerance of one; so a sample takes the same steps alone and in a
    batch.

    Parameters
    ----------
    inner : Solver
        Used as it is if it has an ``rtol`` of its own, or no such settings.
    A : LinearOperator
        ``I - J``.
    rhs : array, shape (..., n)
        ``b``, zero for the samples that are not solved for.
    size, eta : host values
        ``norm(b)`` and the forcing terms.

    Returns
    -------
    array, Solution
        ``d``, and the report of the solve in its own scale; it has not raised or warned.
    """
    if not {"rtol", "atol"} <= {f.name for f in fields(inner)} or inner.rtol is not None:  # type: ignore[arg-type, attr-defined]
        solution = solve(A, rhs, solver=inner, on_failure="return")
        return solution.x, solution
    wanted = np.fmax(np.asarray(eta) * np.asarray(size), inner.atol)  # type: ignore[attr-defined]
    exponents = np.where(np.isfinite(wanted), np.frexp(wanted)[1] - 1, 0)
    exponent: Any = exponents if rhs.ndim > 1 else int(exponents)
    backend = backend_of(rhs)
    scaled = backend.times_power_of_two(rhs, -exponent)
    absolute: Any = replace(inner, rtol=0.0, atol=1.0)  # type: ignore[type-var]
    solution = solve(A, scaled, solver=absolute, on_failure="return")
    return backend.times_power_of_two(solution.x, exponent), solution
