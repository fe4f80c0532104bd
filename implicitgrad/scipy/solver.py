"""SciPy's iterative solvers under the rules of this package: one call of SciPy is one cycle of the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
from scipy.sparse import linalg

from implicitgrad.backends import Array, backend_of
from implicitgrad.errors import DtypeError, MissingProductError, SettingTypeError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import shifted, split_shift
from implicitgrad.scipy.call import LEAST_SQUARES, MARGIN, NEED_ADJOINT, OURS, PRODUCTS, Call
from implicitgrad.solvers.base import check_settings, check_system, default_max_iters
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.solution import Solution
from implicitgrad.solvers.system import System

__all__ = ["ScipySolver"]


@dataclass(frozen=True)
class ScipySolver(IterativeSolver):
    """``A x = b`` by an iterative solver of ``scipy.sparse.linalg``, under the rules of this package.

    Parameters
    ----------
    method : str
        ``"cg"``, ``"cgs"``, ``"bicg"``, ``"bicgstab"``, ``"gmres"``, ``"lgmres"``, ``"gcrotmk"``, ``"minres"``,
        ``"qmr"``, ``"tfqmr"``, ``"lsqr"`` or ``"lsmr"``. The last two take rectangular operators; these and ``bicg``
        and ``qmr`` need ``A^H``. ``cg`` and ``minres`` are for ``A = A^H``, ``minres`` for real numbers.
    rtol : float, optional
        ``CONVERGED`` when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` SciPy makes ``max_iters`` steps (``TRUNCATED``), or the status
        says why it stopped before.
    max_iters : int, optional
        Most iterations: one product with ``A``, two for ``cgs`` and ``bicgstab``. ``gmres`` counts its inner steps, and
        a product for each restart comes on top; ``lgmres`` and ``gcrotmk`` stop at the last whole cycle that fits.
        None: ``min(10 n, 1000)``.
    options : mapping, or pairs of name and value
        Settings of SciPy's function: ``{"restart": 50}``, ``{"M": preconditioner}``.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Raises
    ------
    SettingTypeError
        SciPy has no such solver; an option is none of its, or is set from the fields above.
    MissingProductError, DtypeError
        In ``solve``, before any product: ``A`` has no adjoint where one is needed; ``minres`` on complex numbers.

    Notes
    -----
    SciPy's ``info`` is not believed. One call of SciPy is one cycle of ``solvers/iteration.py``: the residual is
    recomputed with the operator, and SciPy is called again on that residual while calls deliver. Each call gets a
    residual scaled by a power of two, as SciPy's absolute breakdown thresholds (``eps**2``) need. ``STAGNATED`` says
    that SciPy thought itself done twice, and was not; ``BREAKDOWN``, that it gave up.

    SciPy knows no batches: the systems are solved one after the other. A batched operator takes whole batches only, so
    each vector travels in its own row of a batch of zeros, and a batch of ``B`` costs ``B`` times the calls of one.
    ``history`` repeats the residual norm measured last: SciPy does not tell its own. Vectors on a device travel to the
    host and back.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> J = ig.VJPOperator(lambda u: 0.5 * u[..., ::-1], size=4)
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 2.0, 3.0, 4.0]), solver=igs.ScipySolver("lgmres"))
    >>> sol.status.name, sol.x.round(9), sol.num_matvecs
    ('CONVERGED', array([4.        , 4.66666667, 5.33333333, 6.        ]), 3)
    """

    method: str
    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    options: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()
    final_residual: bool = False

    def __post_init__(self) -> None:
        if self.method not in PRODUCTS:
            raise SettingTypeError(f"ScipySolver: got {self.method!r}, expected one of {', '.join(PRODUCTS)}.")
        check_settings(self)
        try:
            options = tuple(dict(self.options).items())
        except (TypeError, ValueError):
            raise SettingTypeError(
                f"ScipySolver: got options={self.options!r}, expected a mapping such as {{'restart': 50}}."
            ) from None
        object.__setattr__(self, "options", options)  # a tuple, so that solvers can be compared and hashed
        known = [name for name in signature(getattr(linalg, self.method)).parameters if name not in OURS]
        for name, _ in options:
            if name not in known:
                ours = " Tolerances, max_iters and x0 are settings of ours." if name in OURS else ""
                raise SettingTypeError(
                    f"ScipySolver: got the option {name!r}, expected of {self.method} one of {', '.join(known)}.{ours}"
                )

    @property
    def name(self) -> str:
        """The name that reports use."""
        return f"ScipySolver({self.method!r})"

    @property
    def square(self) -> bool:  # type: ignore[override]  # a fact of the method
        """Whether the operator must be square."""
        return self.method not in LEAST_SQUARES

    def solve(self, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> Solution:
        """Solve ``A x = b``; see ``Solver.solve``. A batch is solved one system after the other."""
        check_system(f"{self.name}.solve", operator, rhs, x0, square=self.square)
        if self.method in NEED_ADJOINT and not operator.has_adjoint:
            raise MissingProductError(
                f"{self.name}.solve: got an operator without the adjoint product, expected one that has it. Give the "
                "missing callable (jvp= for adjoint_solve), or use a method that needs matvec only, such as 'gmres'."
            )
        if self.method == "minres" and "complex" in backend_of(rhs).dtype_name(rhs.dtype):
            raise DtypeError(
                f"{self.name}.solve: got rhs of dtype {rhs.dtype}, expected real numbers: SciPy's minres leaves out "
                "the conjugate. Use ig.MINRES()."
            )
        if rhs.ndim == 1 or 0 in rhs.shape[:-1]:
            return super().solve(operator, rhs, x0)
        inner, alpha, beta = split_shift(operator)  # the shift stays outside, as for a single system
        solutions = []
        for index in np.ndindex(*rhs.shape[:-1]):
            row = shifted(alpha, beta, _Row(inner, tuple(rhs.shape[:-1]), index))
            start = None if x0 is None else x0[(*index, ...)]
            solutions.append(super().solve(row, rhs[(*index, ...)], start))
        return _stacked(solutions, rhs)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Let SciPy solve ``A d = r`` from zero; the steps that it made are reported when it is back."""
        backend = system.backend
        x, size = system.zero() if x is None else x, backend.host_norm(r)

        def latest() -> Array:
            return x

        yield size, latest
        budget = default_max_iters(system.operator.shape[1]) if self.max_iters is None else int(self.max_iters)
        left = budget - system.kept.setdefault("made", 0)
        system.kept["calls"] = calls = system.kept.get("calls", 0) + 1
        # SciPy's breakdown thresholds are absolute (eps**2): every call gets a residual scaled to about one.
        exponent = int(np.frexp(backend.max_abs(r))[1])
        values = backend.to_numpy(backend.times_power_of_two(r, -exponent))
        # With a fixed budget SciPy stops at a residual of zero alone: it divides by it.
        target = np.finfo(values.dtype).tiny if system.fixed_budget else np.ldexp(MARGIN * system.threshold, -exponent)
        options: Any = self.options
        call = Call(self.method, options, system, calls, left, float(target), exponent + system.exponent)
        x = x + backend.times_power_of_two(backend.from_numpy(call.run(values), r), exponent)
        system.kept["made"] += call.steps
        for _ in range(call.steps - 1):
            yield size, latest
        if call.status is not None:
            system.break_down(True, call.status)
        while True:  # the claim has x measured; where there is none, the driver runs out of budget
            yield (system.threshold if call.claim else size), latest


class _Row(LinearOperator):
    """One system of a batched operator: its vector stands in its row of a batch of zeros."""

    def __init__(self, operator: LinearOperator, batch: tuple[int, ...], index: tuple[int, ...]) -> None:
        self.operator, self.batch, self.index = operator, batch, index
        self.shape, self.symmetric = operator.shape, operator.symmetric
        self.mask = np.zeros(batch, bool)
        self.mask[index] = True

    def apply(self, x: Array) -> Array:
        """Return ``A x``."""
        return self._through(self.operator.apply, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y``."""
        return self._through(self.operator.apply_adjoint, y)

    def _through(self, product: Callable[[Array], Array], x: Array) -> Array:
        backend = backend_of(x)
        rows = backend.select(self.mask, x, backend.zeros((*self.batch, x.shape[-1]), x))
        return product(rows)[(*self.index, ...)]


def _stacked(solutions: list[Solution], rhs: Array) -> Solution:
    """Return the solutions of the systems of a batch as the solution of the batch."""
    first, batch = solutions[0], tuple(rhs.shape[:-1])
    backend = backend_of(rhs)
    rows = backend.empty_rows(len(solutions), first.x)
    for i, solution in enumerate(solutions):
        rows = backend.set_row(rows, i, solution.x)
    history = np.full((max(len(s.history) for s in solutions), len(solutions)), np.nan)
    for i, solution in enumerate(solutions):
        history[: len(solution.history), i] = solution.history

    def gathered(name: str, dtype: Any = float) -> Any:
        values = np.empty(len(solutions), dtype)
        values[:] = [getattr(solution, name) for solution in solutions]
        return values.reshape(batch)

    measured = all(solution.residual_norm is not None for solution in solutions)
    return replace(
        first,
        x=rows.reshape((*batch, first.x.shape[-1])),
        status=gathered("status", object),
        residual_norm=gathered("residual_norm") if measured else None,
        rhs_norm=gathered("rhs_norm"),
        bound=gathered("bound"),
        num_iters=gathered("num_iters", int),
        num_matvecs=sum(solution.num_matvecs for solution in solutions),
        num_rmatvecs=sum(solution.num_rmatvecs for solution in solutions),
        history=history.reshape(-1, *batch),
    )
