"""The Picard iteration, plain or damped: what every other forward solver is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from implicitgrad.solvers.base import check_settings
from implicitgrad.torch.forward.base import ForwardSolver
from implicitgrad.torch.forward.search import Search

__all__ = ["Picard"]


@dataclass(frozen=True, kw_only=True)
class Picard(ForwardSolver):
    """Fixed-point iteration ``z <- (1 - damping) f(z) + damping z``.

    Parameters
    ----------
    rtol : float, optional
        Stop a sample when ``norm(f(z) - z) <= max(rtol * norm(f(z)), atol)``. Default by dtype: ``eps**(3/4)``, 6e-6 in
        float32 and 2e-12 in float64. The residual is that of ``f``, whatever the damping.
    atol : float
        In the unit of ``z``.
    max_iters : int
        Most steps; ``max_iters + 1`` calls of ``f``. 0 measures ``z0`` and returns it.
    damping : float
        Part of the old iterate that is kept, in ``[0, 1)``. Makes maps converge whose Jacobian has eigenvalues left of
        -1, and slows down the others.

    Notes
    -----
    Converges when the spectral radius of the Jacobian is below one, by that factor a step (Banach). Cost a step: one
    call of ``f``, two reductions; four states.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> sol = igt.Picard().solve(torch.cos, torch.zeros(1, dtype=torch.float64))
    >>> round(sol.x.item(), 9), sol.status.name
    (0.739085133, 'CONVERGED')
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int = 500
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def iterate(self, search: Search) -> None:
        """Visit the damped iterates."""
        z = search.start
        while search.running:
            point = search.visit(z)
            z = point.image - float(self.damping) * point.residual if self.damping else point.image
