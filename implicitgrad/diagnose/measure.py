"""What is measured for the report on a fixed point: a few eigenvalues and singular values of ``J``, and test solves.

Everything is a product with ``J`` or ``J^H``; the solves are of ``(I - J)^H z = g``, the equation of the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.diagnose.report import Diagnosis, NeumannError, SolverRun
from implicitgrad.diagnose.rows import as_one_system, coupling, repeatable
from implicitgrad.errors import DtypeError, SettingError, SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator, check_operator, identity_minus
from implicitgrad.solvers import CG, GMRES, LSMR, MINRES, Auto, BiCGSTAB, Neumann, NormalEquations, Solution, Solver
from implicitgrad.spectral import (
    SpectralResult,
    largest_eigenvalue,
    operator_norm,
    smallest_singular_value,
    spectral_radius,
)
from implicitgrad.status import Status

__all__ = ["diagnose"]

_FEW = 30  # Lanczos steps for the departure from normality: a figure to one digit is enough


def diagnose(
    J: LinearOperator,
    g: Array | None = None,
    *,
    rtol: float = 1e-4,
    steps: tuple[int, ...] = (1, 5, 10, 20),
    max_iters: int = 200,
    seed: int = 0,
    fixed_point_residual: float | None = None,
) -> Diagnosis:
    """Measure what decides about the gradient through a fixed point with Jacobian ``J``, and say what to do.

    Parameters
    ----------
    J : LinearOperator, shape (n, n)
        Jacobian of the update at the fixed point. Without a JVP all is told that the VJP can tell: not ``sigma_min``.
    g : array, shape (..., n), optional
        The cotangent that will come in. Default: random, of the kind of ``J.example()``, a batch where that is one.
    rtol : float
        Relative residual for which the solvers are compared. No unit.
    steps : tuple of int
        Numbers of products ``K`` for which the error of the truncated Neumann series is measured.
    max_iters : int
        Most iterations of each solver, and of each search in the spectrum.
    seed : int
        Of everything random.
    fixed_point_residual : float, optional
        ``norm(F(h) - h) / norm(F(h))`` at the point, if you know it.

    Returns
    -------
    Diagnosis
        ``print(report)``, ``report.to_dict()``, ``report.plot()``. For a batch its numbers are those of the worst
        system, each for itself; for rows of one that mix, those of all rows as the one system that they are.

    Raises
    ------
    SettingTypeError, SettingError, ShapeError, DtypeError
        ``J`` is no square LinearOperator, ``g`` does not fit; settings that make no sense. Numerical failure is part of
        the report.

    Notes
    -----
    Cost: some hundred products, most of them for ``sigma_min`` and for solvers that are not the best one. Meant for a
    look now and then, not for each training step; ``lambda_min_penalty(..., return_result=True)`` is cheaper there.

    Departure from normality: ``lambda_max(J^H J - J J^H) / norm(J)^2``, between 0, for normal matrices only, and 1.
    Where it is large, eigenvalues mislead: ``norm(J^k)`` may stay large for long though ``rho(J)`` is small (Trefethen
    & Embree 2005, Spectra and Pseudospectra).

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> from implicitgrad.diagnose import diagnose
    >>> report = diagnose(ig.DenseOperator(np.diag([0.9, 0.5, -0.2])))
    >>> round(report.radius, 6), round(report.sigma_min, 6), report.contraction, report.recommended
    (0.9, 0.1, True, 'GMRES')
    """
    name = "diagnose"
    if not isinstance(J, LinearOperator):
        raise SettingTypeError(f"{name}: got an operator of type {type(J).__qualname__}, expected a LinearOperator.")
    if J.shape[0] != J.shape[1]:
        raise ShapeError(f"{name}: got an operator of shape {J.shape}, expected a square Jacobian.")
    if isinstance(max_iters, bool) or not isinstance(max_iters, int) or max_iters < 1:
        raise SettingTypeError(f"{name}: got max_iters={max_iters!r}, expected an integer >= 1.")
    if not all(isinstance(k, int) and k >= 0 for k in steps):
        raise SettingTypeError(f"{name}: got steps={steps!r}, expected integers >= 0.")
    if not isinstance(rtol, float) or not 0 < rtol < 1:
        raise SettingError(f"{name}: got rtol={rtol!r}, expected a number between 0 and 1.")
    example = J.example() if g is None else g
    backend = backend_of(example, name)
    g = backend.random_like(example, seed) if g is None else backend.stop_gradient(g)
    facts = backend.facts(g.dtype)
    if facts is None:
        raise DtypeError(f"{name}: got g of dtype {g.dtype}, expected floating point. Cast it.")
    J = J if J.has_adjoint else J.H  # the spectrum is the same, and so is what follows, of the transpose
    both = J.has_forward and J.has_adjoint
    check = check_operator(J, like=g, seed=seed, raises=False)
    rows = int(np.prod(g.shape[:-1], dtype=int))
    mixing = coupling(J, g, check, facts.eps, seed)
    if mixing:
        J, g = as_one_system(J, g)

    search: dict[str, Any] = {"like": g, "max_iters": max_iters, "seed": seed, "on_failure": "return"}
    radius = spectral_radius(J, **search)
    norm = operator_norm(J, rtol=1e-4, **search) if both else None
    smallest = smallest_singular_value(identity_minus(J), rtol=1e-4, **search) if both else None
    adjoint = identity_minus(J).H
    runs = tuple(_run(solver, adjoint, g, rtol) for solver in _solvers(J, both, rtol, max_iters))
    searches = [found for found in (radius, norm, smallest) if found is not None]
    return Diagnosis(
        size=J.shape[0],
        systems=int(np.prod(g.shape[:-1], dtype=int)),
        coupled=rows if mixing else 0,
        coupling=mixing,
        repeatable=repeatable(check),
        matched=not any(Status.ADJOINT_MISMATCH in np.ravel(np.asarray(s.status, object)) for s in searches),
        dtype=backend.dtype_name(g.dtype),
        fixed_point_residual=fixed_point_residual,
        radius=_worst(radius.value, np.max),
        radius_converged=radius.is_good,
        norm=None if norm is None else _worst(norm.value, np.max),
        norm_upper=None if norm is None else _worst(norm.upper, np.max),
        norm_converged=norm is not None and norm.is_good,
        sigma_min=None if smallest is None else _worst(smallest.value, np.min),
        sigma_min_interval=None if smallest is None else _interval(smallest),
        sigma_min_condition=None if smallest is None else _condition(smallest),
        sigma_min_residual=None if smallest is None else _worst(smallest.residual_norm, np.max),
        sigma_min_converged=smallest is not None and smallest.is_good,
        departure=None if norm is None else _departure(J, norm.value, search),
        rtol=rtol,
        neumann=_neumann(J, g, steps, None if norm is None else _worst(norm.upper, np.max)),
        solvers=runs,
        eigenvalues=_finite(radius.ritz_values),
        singular_values=np.zeros(0) if smallest is None else _finite(smallest.ritz_values),
        eps=facts.eps,
    )


def _solvers(J: LinearOperator, both: bool, rtol: float, max_iters: int) -> list[Solver]:
    settings: dict[str, Any] = {"rtol": rtol, "max_iters": max_iters}
    solvers: list[Solver] = [Neumann(**settings), GMRES(**settings), BiCGSTAB(**settings)]
    if J.symmetric:
        return [*solvers, CG(**settings), MINRES(**settings)]
    return [*solvers, NormalEquations(CG(**settings)), LSMR(**settings)] if both else solvers


def _run(solver: Solver, operator: LinearOperator, g: Array, rtol: float) -> SolverRun:
    """Solve, and bring the course of the residual to products: a method's iterations cost one or two."""
    solution = solver.solve(operator, g)
    products = solution.num_matvecs + solution.num_rmatvecs
    systems = int(np.prod(np.shape(solution.rhs_norm), dtype=int))  # 1 for one system
    history = np.asarray(solution.history, float).reshape(len(solution.history), systems)
    norms = np.maximum(np.asarray(solution.rhs_norm, float).reshape(-1), np.finfo(float).tiny)
    relative = history / norms
    course = np.nanmax(np.where(np.isnan(relative), -np.inf, relative), axis=1) if relative.size else np.zeros(0)
    at = np.linspace(0, products, len(course) + 1)[1:]
    return SolverRun(
        name=solution.solver or solver.name,
        status="CONVERGED" if np.all(solution.converged) else _first_failure(solution),
        products=products,
        relative_residual=_worst(solution.relative_residual, np.max),
        course=tuple(zip(at.tolist(), course.tolist(), strict=True)),
    )


def _first_failure(solution: Solution) -> str:
    statuses = np.asarray(solution.status, dtype=object).ravel()
    failed = [status.name for status in statuses if not status.is_good]
    return failed[0] if failed else "CONVERGED"


def _neumann(J: LinearOperator, g: Array, steps: tuple[int, ...], norm: float | None) -> tuple[NeumannError, ...]:
    """Return the relative error of ``sum_{t=0..K} (J^H)^t g`` for each ``K``, against a solve to default accuracy."""
    reference = Auto().solve(identity_minus(J).H, g)
    known = bool(np.all(reference.converged))
    backend = backend_of(g)
    length = np.asarray(backend.host_norm(reference.x), float)
    rows, term, total = [], g, g
    for k in range(max(steps, default=0) + 1):
        if k:
            term = J.rmatvec(term)
            total = total + term
        if k in steps:
            gap = np.asarray(backend.host_norm(total - reference.x), float)
            error = np.divide(gap, length, out=np.zeros_like(gap), where=length > 0)
            worst = float(np.max(error)) if known and np.isfinite(error).all() else math.inf
            # z_K - z = (J^H)^(K+1) z, proposition 2
            bound = math.inf if norm is None else _power(norm, k + 1)
            rows.append(NeumannError(k, worst if known else None, bound))
    return tuple(rows)


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf


class _Commutator(LinearOperator):
    """``J^H J - J J^H``: Hermitian, of trace 0, and 0 for normal matrices only."""

    symmetric = True

    def __init__(self, J: LinearOperator) -> None:
        self.J, self.shape, self.dtype = J, J.shape, J.dtype

    def apply(self, x: Array) -> Array:
        """Return the product, for four with ``J`` and ``J^H``."""
        return self.J.rmatvec(self.J.matvec(x)) - self.J.matvec(self.J.rmatvec(x))


def _departure(J: LinearOperator, norm: Any, search: dict[str, Any]) -> float:
    """Return ``lambda_max(J^H J - J J^H) / norm(J)^2``, to a digit."""
    largest = largest_eigenvalue(_Commutator(J), **(search | {"rtol": 0.05, "max_iters": _FEW}))
    square = np.asarray(norm, float) ** 2
    top = np.maximum(np.asarray(largest.value, float), 0.0)
    return float(np.max(np.divide(top, square, out=np.zeros_like(square), where=square > 0)))


def _worst(values: Any, choose: Any) -> float:
    return float(choose(np.asarray(values, float)))


def _interval(result: SpectralResult) -> tuple[float, float]:
    return _worst(result.lower, np.min), _worst(result.upper, np.min)


def _condition(result: SpectralResult) -> str:
    conditions = np.asarray(result.condition, dtype=object).ravel()
    return str(conditions[int(np.argmin(np.asarray(result.lower, float).ravel()))])


def _finite(values: Any) -> Any:
    flat = np.asarray(values).ravel()
    return flat[np.isfinite(flat)]
