"""Anderson acceleration of a fixed-point map: the last few residuals are combined to the smallest, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.solvers.base import check_settings
from implicitgrad.torch.forward.secant import SecantMethod, Window

__all__ = ["Anderson"]


@dataclass(frozen=True, kw_only=True)
class Anderson(SecantMethod):
    """Anderson acceleration of ``z <- f(z)`` with a window of ``m`` differences.

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
        Differences that are kept. 5 serves most maps; memory is ``2 m + 9`` states.

    Notes
    -----
    Type II of Walker & Ni 2011, SIAM J. Numer. Anal. 49, eq. 2.2, without damping: ``z = f_k - dF g`` with ``g`` the
    minimizer of ``norm(r_k - dR g)``. The small problem is solved in double precision through the Gram matrix of the
    differences, each scaled to norm one, with directions below ``m eps`` of the largest cut off: no absolute ridge, so
    the iteration does not depend on the unit of ``z``. A step that doubles the best residual is taken back, but its
    difference is kept, so maps that expand are solved too as long as the window holds their expanding directions. A
    sample that does not improve for ``3 m`` steps goes on by plain iteration, and back if that does not help. On linear
    maps it is GMRES in disguise (Walker & Ni, theorem 2.2) while the window lasts. Cost a step: one call of ``f``, two
    products with the window.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> slow = lambda z: 0.99 * z + 1.0
    >>> sol = igt.Anderson().solve(slow, torch.zeros(3, dtype=torch.float64))
    >>> sol.num_matvecs < 10, bool(torch.allclose(sol.x, torch.full((3,), 100.0, dtype=torch.float64)))
    (True, True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int = 500
    m: int = 5

    growth: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_settings(self)

    def append(self, window: Window, d_state: Array, d_residual: Array, d_image: Array) -> None:
        """Test with the differences of the residual themselves: ``matrix`` is their Gram matrix."""
        window.push(d_residual, d_image)
        column = window.test_products(d_residual)
        window.matrix[..., : window.count, window.newest] = column
        window.matrix[..., window.newest, : window.count] = column.conj()

    def coefficients(self, window: Window, residual: Array) -> Any:
        """Return the minimizer of ``norm(residual - dR g)``."""
        k, cut = window.count, self.m * window.eps
        gram, rhs = np.nan_to_num(window.matrix[..., :k, :k]), np.nan_to_num(window.test_products(residual))
        scale = np.sqrt(np.abs(np.diagonal(gram, axis1=-2, axis2=-1)).astype(float))
        usable = (scale > 0) & np.isfinite(scale) & window.held[..., :k]
        weight = np.divide(1.0, scale, out=np.zeros_like(scale), where=usable)
        gram = gram * weight[..., :, None] * weight[..., None, :]
        solution = np.linalg.pinv(gram, rcond=cut, hermitian=True) @ (rhs * weight)[..., None]
        return solution[..., 0] * weight
