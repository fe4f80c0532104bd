"""Broyden's method with limited memory: a model of the Jacobian that grows by one rank a step, and needs no product.

The model ``B`` of the Jacobian of ``r(z) = f(z) - z`` starts as ``-I``, so that the first step ``z - B^-1 r = f(z)`` is
that of Picard, and is corrected to ``B s = y`` for each step ``s`` with residual difference ``y``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.solvers.base import check_settings
from implicitgrad.torch.forward.secant import SecantMethod, Window

__all__ = ["Broyden"]


@dataclass(frozen=True, kw_only=True)
class Broyden(SecantMethod):
    """Broyden's "good" method for ``z = f(z)`` from the last ``m`` steps.

    Parameters
    ----------
    rtol : float, optional
        Stop a sample when ``norm(f(z) - z) <= max(rtol * norm(f(z)), atol)``. Default by dtype: ``eps**(3/4)``, 6e-6 in
        float32 and 2e-12 in float64.
    atol : float
        In the unit of ``z``.
    max_iters : int
        Most steps; ``max_iters + 1`` calls of ``f``.
    m : int
        Steps that are remembered; memory is ``2 m + 9`` states, whatever ``max_iters``.

    Notes
    -----
    Broyden 1965, Math. Comp. 19. With ``S`` and ``dF`` the steps and the differences of ``f``, the oldest first, the
    compact form of the model (Byrd, Nocedal & Schnabel 1994, Math. Programming 63, sec. 7, with ``B_0 = -I``) gives
    ``z - B^-1 r = f(z) - dF g`` where ``K g = S^H r``, ``K_ij = s_i^H y_j`` for ``i <= j`` and ``s_i^H dF_j`` below the
    diagonal. When the memory is full the oldest step is dropped, and the same formula is the model rebuilt from ``-I``
    with the last ``m`` steps, as L-BFGS has it: no factor is left over from a model that is gone.

    The pivots of ``K`` are the denominators of the rank-one updates. One below ``sqrt(eps)`` of both ``norm(s)^2`` and
    ``norm(s) norm(y)`` has lost half of its digits, and its update would make ``B`` singular: that step is forgotten.
    There is no bound on the change of ``det B`` (More & Trangenstein 1976, Math. Comp. 30, keep it above 0.1): it would
    forget steps that are right where ``I - J`` is small, and depend on the unit of a residual. A residual of a hundred
    times the best one sends a sample back to its best iterate, and samples that stall are dealt with as in
    ``Anderson``. Cost a step: one call of ``f``, three products with the window, five reductions.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> expanding = lambda z: torch.tensor([-3.0, 2.0], dtype=torch.float64) * z + 1.0
    >>> sol = igt.Broyden().solve(expanding, torch.zeros(2, dtype=torch.float64))
    >>> sol.status.name, sol.num_matvecs < 10, sol.x
    ('CONVERGED', True, tensor([ 0.2500, -1.0000], dtype=torch.float64))
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int = 500
    m: int = 10

    growth: ClassVar[float] = 100.0  # residuals rise and fall on the way; 2, as in Anderson, lost 3 of 11 maps

    def __post_init__(self) -> None:
        check_settings(self)

    def append(self, window: Window, d_state: Array, d_residual: Array, d_image: Array) -> None:
        """Test with the steps: a column ``S^H y`` down to the diagonal, a row ``s^H dF`` left of it."""
        window.push(d_state, d_image)
        column, row = window.test_products(d_residual), window.image_products(d_state).conj()
        newest, k = window.newest, window.count
        window.matrix[..., newest, :k] = row
        window.matrix[..., :k, newest] = column
        s_squared, y_squared = window.squared_norm(d_state), window.squared_norm(d_residual)
        window.sizes[..., newest] = np.fmin(s_squared, np.sqrt(s_squared) * np.sqrt(y_squared))

    def coefficients(self, window: Window, residual: Array) -> Any:
        """Solve ``K g = S^H r`` by elimination in the order of the steps; a step with too small a pivot is dropped."""
        order = window.order
        matrix = np.nan_to_num(window.matrix)[..., order, :][..., :, order]
        rhs = np.nan_to_num(window.test_products(residual)).astype(window.dtype)[..., order]
        least = window.eps**0.5 * window.sizes[..., order]
        with np.errstate(all="ignore"):  # a sample that has ended may hold NaN, and keeps it to itself
            solution, sound = _eliminate(matrix, rhs, window.held[..., order], least)
        window.held[..., order] = sound
        coefficients = np.zeros_like(solution)
        coefficients[..., order] = solution
        return coefficients


def _eliminate(matrix: Any, rhs: Any, held: Any, least: Any) -> tuple[Any, Any]:
    """Solve small systems ``(..., k, k)`` without their equations and unknowns that are not held, or have no pivot.

    Elimination without exchange of rows, for the pivots are to be those of the updates in their order. Returns the
    solutions, zero for the unknowns left out, and which were kept.
    """
    k, sound = rhs.shape[-1], held.copy()
    for i in range(k):
        pivot = matrix[..., i, i]
        sound[..., i] &= (np.abs(pivot) > least[..., i]) & np.isfinite(pivot)
        keep = sound[..., i]
        matrix[..., i, :] = np.where(keep[..., None], matrix[..., i, :], 0)
        matrix[..., i, i] = np.where(keep, pivot, 1)
        rhs[..., i] = np.where(keep, rhs[..., i], 0)
        factors = matrix[..., i + 1 :, i] / matrix[..., i, i][..., None] * keep[..., None]
        matrix[..., i + 1 :, i:] -= factors[..., None] * matrix[..., i : i + 1, i:]
        rhs[..., i + 1 :] -= factors * rhs[..., i : i + 1]
    for i in reversed(range(k)):
        rhs[..., i] -= (matrix[..., i, i + 1 :] * rhs[..., i + 1 :]).sum(axis=-1)
        rhs[..., i] = np.where(sound[..., i], rhs[..., i] / matrix[..., i, i], 0)
    return rhs, sound
