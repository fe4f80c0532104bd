"""The equation of implicit differentiation, (I - J)^H z = g, and its tangent (I - J) z = b.

This is the one place that knows which way the transposition goes. With ``h* = F(h*, w)``, ``J = dF/dh`` at ``h*`` and
a loss ``L``, the adjoint ``z`` of ``g = dL/dh*`` gives ``dL/dw = (dF/dw)^H z`` (Liao et al. 2018, eq. 8), and the
tangent ``z`` of ``b = dF/dw dw`` gives ``dh* = z``. One matvec of the adjoint system is one VJP of ``J``.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from implicitgrad.backends import Array, opened
from implicitgrad.backends.host import pick
from implicitgrad.errors import ConvergenceWarning, MissingProductError, NotConvergedError, SettingTypeError
from implicitgrad.operators import LinearOperator, identity_minus
from implicitgrad.operators.check import mixes_systems
from implicitgrad.solvers.auto import Auto, fall_back
from implicitgrad.solvers.base import Solver, check_system
from implicitgrad.solvers.solution import Solution
from implicitgrad.status import Status

__all__ = ["adjoint_solve", "report_failure", "solve", "tangent_solve"]

# What a method says of a matrix, and would say of products that are of none.
_OF_ONE_MATRIX = {
    Status.MAX_ITERS,
    Status.STAGNATED,
    Status.DIVERGED,
    Status.BREAKDOWN,
    Status.SINGULAR,
    Status.INDEFINITE,
    Status.LEAST_SQUARES,
    Status.ADJOINT_MISMATCH,
}


def adjoint_solve(
    J: LinearOperator, g: Array, solver: Solver | None = None, x0: Array | None = None, on_failure: Any = "raise"
) -> Solution:
    """Solve ``(I - J)^H z = g`` for the adjoint ``z`` of a fixed point.

    Parameters
    ----------
    J : LinearOperator, shape (n, n)
        Jacobian of the update at the fixed point; its ``rmatvec``, the VJP, is what is applied.
    g : array, shape (..., n)
        Incoming cotangent ``dL/dh*``: one, or a batch of independent systems. Floating point, of any scale.
    solver : Solver, optional
        Default ``Auto()``: GMRES first; see the page on choosing a solver.
    x0 : array, shape (..., n), optional
        First guess, such as the adjoint of the last training step. It never loosens or tightens the bound.
    on_failure : {"raise", "warn", "return"} or Solver
        What to do where a system does not converge: raise ``NotConvergedError``, warn with ``ConvergenceWarning`` and
        return, return, or solve the failed systems again with another solver (and raise if that fails too). An
        approximation that was asked for by name (``TRUNCATED``, ``SAMPLED``) is no failure; ``Solution.bias`` says what
        it may be off by.

    Returns
    -------
    Solution
        ``x`` is ``z``; ``num_matvecs`` counts VJPs, ``num_rmatvecs`` JVPs. Where systems of a batch failed, up to five
        products more have been spent to see whether they are systems of their own; if not, they are ``COUPLED``.

    Raises
    ------
    NotConvergedError
        By ``on_failure``; its ``solution`` holds the best iterate.
    BackendError, ShapeError, DtypeError, DeviceError
        ``J``, ``g`` and ``x0`` do not fit together; before any product, or at the first one.
    SettingError, MissingProductError
        Unknown ``on_failure``; a solver that needs the JVP of an operator without one.

    Notes
    -----
    ``z`` carries no history for automatic differentiation; gradients of gradients are the work of
    ``implicitgrad.torch.fixed_point``. For complex arrays the equation is with the conjugate transpose, as torch's VJP
    has it: hand in the VJP that your library computes, and ``g`` as it arrives.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> W = np.array([[0.4, -0.3], [0.2, 0.1]])
    >>> h = np.zeros(2)
    >>> for _ in range(100):
    ...     h = np.tanh(W @ h + 1.0)
    >>> jacobian = (1 - h**2)[:, None] * W
    >>> J = ig.VJPOperator(lambda u: u @ jacobian, size=2)
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 0.0]))
    >>> sol.status.name, bool(np.allclose(sol.x, np.linalg.solve((np.eye(2) - jacobian).T, [1.0, 0.0])))
    ('CONVERGED', True)
    """
    return _solve("adjoint_solve", _identity_minus("adjoint_solve", J).H, g, solver, x0, on_failure)


def tangent_solve(
    J: LinearOperator, b: Array, solver: Solver | None = None, x0: Array | None = None, on_failure: Any = "raise"
) -> Solution:
    """Solve ``(I - J) z = b`` for the tangent ``z`` of a fixed point; one matvec is one JVP of ``J``.

    Parameters, results and errors are those of ``adjoint_solve``; ``J`` must have a JVP.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.0, 1.0], [0.0, 0.0]]))
    >>> ig.tangent_solve(J, np.array([1.0, 1.0])).x.round(12)
    array([2., 1.])
    """
    return _solve("tangent_solve", _identity_minus("tangent_solve", J), b, solver, x0, on_failure)


def solve(
    A: LinearOperator, b: Array, solver: Solver | None = None, x0: Array | None = None, on_failure: Any = "raise"
) -> Solution:
    """Solve ``A x = b`` with any linear operator; rectangular ones with ``LSMR``.

    Parameters, results and errors are those of ``adjoint_solve``, with ``A`` in the place of ``(I - J)^H``.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> ig.solve(ig.DenseOperator(np.array([[2.0, 0.0], [1.0, 4.0]])), np.array([2.0, 5.0])).x.round(12)
    array([1., 1.])
    """
    if not isinstance(A, LinearOperator):
        raise SettingTypeError(
            f"solve: got an operator of type {type(A).__qualname__}, expected a LinearOperator. "
            "Wrap a matrix with DenseOperator, or callables with VJPOperator."
        )
    return _solve("solve", A, b, solver, x0, on_failure)


def report_failure(name: str, solution: Solution, on_failure: str, stacklevel: int = 3) -> None:
    """Raise or warn if ``solution`` is not what was asked for, as the policy says; ``name`` opens the text."""
    if solution.is_good or on_failure == "return":
        return
    message = f"{name}: {solution.message}"
    if on_failure == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel)
    else:
        raise NotConvergedError(message, solution)


def check_policy(name: str, solver: Any, on_failure: Any) -> None:
    """Raise unless ``solver`` is a Solver or None and ``on_failure`` a policy or a Solver."""
    if solver is not None and not isinstance(solver, Solver):
        hint = f" Did you mean {solver.__name__}()?" if isinstance(solver, type) and issubclass(solver, Solver) else ""
        raise SettingTypeError(f"{name}: got solver={solver!r}, expected a Solver such as GMRES(), or None.{hint}")
    policy = isinstance(on_failure, str) and on_failure in ("raise", "warn", "return")  # no == on an array
    if not (policy or isinstance(on_failure, Solver)):
        raise SettingTypeError(
            f"{name}: got on_failure={on_failure!r}, expected 'raise', 'warn', 'return' or a Solver."
        )


def _identity_minus(name: str, J: Any) -> LinearOperator:
    if not isinstance(J, LinearOperator):
        raise SettingTypeError(
            f"{name}: got an operator of type {type(J).__qualname__}, expected a LinearOperator. "
            "Wrap a vector-Jacobian product with VJPOperator(vjp, size=n), or a matrix with DenseOperator."
        )
    return identity_minus(J)


def _solve(
    name: str, operator: LinearOperator, rhs: Array, solver: Solver | None, x0: Array | None, on_failure: Any
) -> Solution:
    check_policy(name, solver, on_failure)
    given, rhs, x0 = rhs, opened(rhs), opened(x0)  # a DTensor is solved on its shards, and x is one again
    check_system(name, operator, rhs, x0, square=False)
    solver = Auto() if solver is None else solver
    try:
        if isinstance(on_failure, Solver):
            solution = fall_back([solver, on_failure], operator, rhs, x0, stop=())
            on_failure = "raise"
        else:
            solution = solver.solve(operator, rhs, x0)
        solution = _told_apart(solution, operator, rhs)
    except MissingProductError as error:
        error.nested = True  # for whoever has asked for this solve inside of a product
        raise
    if rhs is not given:
        solution = replace(solution, x=solution.x.to_dtensor())
    report_failure(name, solution, on_failure, stacklevel=4)
    return solution


def _told_apart(solution: Solution, operator: LinearOperator, rhs: Array) -> Solution:
    """Return ``solution``, with the systems that failed ``COUPLED`` where the rows of the batch are none.

    Of rows that mix a method sees products that are of no matrix, and blames whatever it looks at: the transpose, the
    spectral radius, rounding. A few products more tell, and are spent after a failure only.
    """
    statuses = np.asarray(solution.status, dtype=object)
    if statuses.size < 2 or (statuses == Status.CONVERGED).all() or not operator.shape[1]:
        return solution
    failed = np.array([status in _OF_ONE_MATRIX for status in statuses.ravel()], bool).reshape(statuses.shape)
    if not failed.any():
        return solution
    mixed, spent = mixes_systems(operator, rhs)
    return replace(
        solution,
        status=pick(failed, Status.COUPLED, statuses) if mixed else statuses,
        num_matvecs=solution.num_matvecs + spent,
    )
