"""Newton's method without matrices: (I - J) d = f(z) - z by a linear solver, as exactly as pays, then a line search.

Where the equation has a ``merit`` (``argmin``: the loss), the step has to decrease it, and a direction that does not
descend, or that meets negative curvature, gives way to steepest descent, so saddles are left rather than found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true, finite, negate, pick, quotient
from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import LinearOperator, identity_minus
from implicitgrad.solvers import GMRES, Solver
from implicitgrad.solvers.base import check_settings
from implicitgrad.status import Status
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.forcing import Forcing, solve_inexactly
from implicitgrad.torch.forward.line_search import Step, line_search
from implicitgrad.torch.forward.search import Point, Search

__all__ = ["NewtonKrylov"]

# Of 384 samples of saturated tanh layers 34 ended at a fold without plain steps, and 1 with these two.
_SHORT = 0.1  # a Newton step of which less than this can be taken was not made for this place
_SPELL = 10  # plain steps at the first fold that a sample comes to; twice as many at each later one
# The largest forcing term. To bring a residual down a crude step is as good (Eisenstat & Walker). To bring a loss down
# it is not: in a narrow valley CG has the residual down by ten when it has done nothing but cross it. With 0.9, 0.5,
# 0.1 and 0.01 there were 3, 2, 2 and 0 of 10 starts of Rosenbrock's function that took more than 200 steps.
_MOST_INEXACT, _MOST_INEXACT_BY_MERIT = 0.9, 0.01
# Endings of an inner solve that say more about a Newton step that cannot be had than "no further".
_TELLING = (Status.SINGULAR, Status.INDEFINITE, Status.ADJOINT_MISMATCH, Status.NONFINITE_OPERATOR)


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(ForwardSolver):
    """Inexact Newton method for ``z = f(z)``: few steps, each a linear solve with products ``J v``.

    Parameters
    ----------
    rtol : float, optional
        Stop a sample when ``norm(f(z) - z) <= max(rtol * norm(f(z)), atol)``, or relative to the equation's scale.
        Default by dtype: ``eps**(3/4)``, 6e-6 in float32 and 2e-12 in float64.
    atol : float
        In the unit of ``z``.
    max_iters : int
        Most steps. 0 measures ``z0`` and returns it.
    inner : Solver
        Of ``(I - J) d = f(z) - z``. Where its ``rtol`` is None, it is given the forcing terms of Eisenstat & Walker,
        sample by sample. ``CG()`` for ``argmin``, where ``I - J`` is the Hessian; it needs no more than the VJP if the
        operator is symmetric.

    Notes
    -----
    Converges quadratically near a regular root (superlinearly in the count of products), whatever the spectral radius
    of ``J``. Line search per sample: Armijo's condition on the residual norm, or on the merit where there is one, with
    quadratic interpolation (Dennis & Schnabel 1983, sec. 6.3; Eisenstat & Walker 1994, SIAM J. Optim. 4). An inner
    solve that failed is used as far as it went, if it descends. Descent on the residual norm ends at a fold, where
    ``I - J`` has lost rank, as well as at a root. A map, which has a plain step ``z <- f(z)``, is iterated there: ten
    steps, and twice as many at each later fold of a sample. An equation with a ``residual`` ends there, ``STAGNATED``.

    With a merit (line-search Newton-CG, Nocedal & Wright, 2nd ed., alg. 7.1): where the direction is zero or does not
    descend, as when ``CG`` meets negative curvature in its first step, the step is ``d = c (f(z) - z)``, steepest
    descent, with ``c = norm(r)^2 / |r^H (I - J) r|`` for one product: no unit is in it. A loss is trusted to
    ``64 eps |loss|``; below that the decrease of the gradient decides. Forcing terms are at most 0.01 then.

    Cost a step: one call of ``f`` with gradients, the inner solver's products, and one call of ``f`` for each trial
    point, of which most steps need one. ``num_iters`` counts the steps, plain ones included. Memory: the inner
    solver's, eight states, and the graph of one call of ``f``.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> expanding = lambda z: 3 * torch.sin(z) + 0.5
    >>> sol = igt.NewtonKrylov().solve(expanding, torch.tensor([2.0], dtype=torch.float64))
    >>> sol.status.name, sol.num_iters < 7, round(sol.x.item(), 6)
    ('CONVERGED', True, 2.438877)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int = 100
    inner: Solver = GMRES()  # noqa: RUF009 - frozen settings

    def __post_init__(self) -> None:
        check_settings(self)
        if not isinstance(self.inner, Solver):
            raise SettingTypeError(f"NewtonKrylov: got inner={self.inner!r}, expected a Solver such as GMRES().")

    def iterate(self, search: Search) -> None:
        """Take Newton steps, each accepted by a line search, and plain ones where those end at a fold."""
        here = search.visit(search.start)
        merit, residual = search.equation.merit, search.equation.residual
        value = here.size if merit is None or not search.running else search.merit(here.z)
        forcing = Forcing(_MOST_INEXACT if merit is None else _MOST_INEXACT_BY_MERIT)
        # r(z) = 0 and a loss have no plain step: its length would be that of a unit.
        is_map = merit is None and residual is None
        shortest = _SHORT if is_map else search.eps**0.5
        plain: Any = 0 * search.iters  # plain steps that a sample has left to take
        spell: Any = plain + _SPELL
        while search.running:
            live = search.live
            by_newton = live & (plain == 0)
            eta = forcing.update(here.size, search.bound, search.eps)
            lost: Any = live & negate(live)
            if any_true(by_newton):
                step = self._step(search, here, eta, by_newton)
                here, value, lost = line_search(search, here, value, step, by_newton & search.live, shortest)
                search.judge(here, by_newton)  # a loss without a minimum falls for ever, and its gradient may grow
            search.iters = search.iters + pick(live, 1, 0)
            if is_map:
                plain, spell = pick(lost, spell, pick(plain > 0, plain - 1, 0)), pick(lost, 2 * spell, spell)
                here = _plain_step(search, here, search.live & (lost | negate(by_newton)))
                value = here.size
            else:
                search.close(lost, Status.STAGNATED)
            search.close(search.live & (search.iters >= self.max_iters), Status.MAX_ITERS)

    def _step(self, search: Search, here: Point, eta: Any, where: Any) -> Step:
        """Return directions that descend for the samples in ``where``; one that has none ends here."""
        backend = search.backend
        r = search.choose(where, here.residual, backend.zeros(tuple(here.z.shape), here.z))
        A = identity_minus(search.linearize(here.z))
        d, inner = solve_inexactly(self.inner, A, r, here.size, eta)
        search.num_products += inner.num_matvecs + inner.num_rmatvecs
        if search.equation.merit is not None:
            return self._descent(search, A, r, here.size, d, where)
        # A fixed budget of inner steps does not measure its residual.
        relative = _MOST_INEXACT if inner.residual_norm is None else inner.relative_residual
        # The residual norm falls along d as long as the linear residual is smaller than b.
        useless = where & negate(relative < 1)
        for status in _TELLING:
            search.close(useless & (inner.status == status), status)
        search.close(useless, Status.STAGNATED)
        return Step(d, 1 - relative)

    def _descent(self, search: Search, A: LinearOperator, r: Array, size: Any, d: Array, where: Any) -> Step:
        """Return ``d`` where the merit, whose gradient is ``-r``, falls along it, and steepest descent elsewhere."""
        backend = search.backend
        slope = backend.to_host(backend.real(backend.inner(r, d)))
        uphill = where & negate(slope > 8 * search.eps * size * backend.host_norm(d))
        if any_true(uphill):
            search.num_products += 1
            curvature = abs(backend.to_host(backend.real(backend.inner(r, A.apply(r)))))
            square = size * size
            length = pick((curvature > 0) & finite(curvature), quotient(square, curvature), 1.0)
            d = search.choose(uphill, backend.times(backend.from_host(length, r), r), d)
            slope = pick(uphill, length * square, slope)
        return Step(d, slope)


def _plain_step(search: Search, here: Point, where: Any) -> Point:
    """Move the samples in ``where`` to ``f(z)``, whether the residual falls or not."""
    if not any_true(where):
        return here
    point = search.evaluate(search.choose(where, here.image, here.z))
    search.settle(point, where)
    search.judge(point, where)
    return search.blend(where, point, here)
