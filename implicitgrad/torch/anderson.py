"""Anderson acceleration of a fixed-point map: the last few residuals are combined to the smallest, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from implicitgrad.backends.torch import BACKEND
from implicitgrad.solvers.base import check_settings
from implicitgrad.torch.forward import ForwardSolver, Search

__all__ = ["Anderson"]

_WORSE = 2.0  # a residual this many times the best one sends a sample back to its best iterate


@dataclass(frozen=True)
class Anderson(ForwardSolver):
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
        Differences that are kept. 5 serves most maps; memory is ``2 m + 4`` states.

    Notes
    -----
    Type II of Walker & Ni 2011, SIAM J. Numer. Anal. 49, eq. 2.2, without damping: ``z = f_k - dF g`` with ``g`` the
    minimizer of ``norm(r_k - dR g)``. The small problem is solved in double precision through the Gram matrix of the
    differences, each scaled to norm one, with directions below ``m eps`` of the largest cut off: no absolute ridge, so
    the iteration does not depend on the unit of ``z``. A step that doubles the best residual is taken back, but its
    difference is kept, so maps that expand are solved too as long as the window holds their expanding directions. A
    sample that does not improve for ``3 m`` steps goes on by plain iteration, and back if that does not help. On linear
    maps it is GMRES in disguise (Walker & Ni, theorem 2.2) while the window lasts.

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

    def __post_init__(self) -> None:
        check_settings(self)

    def iterates(self, z: torch.Tensor) -> Search:
        """Yield ``f(z)`` first, then accelerated points; ``old`` is the point that differences are taken from."""
        shape = (*z.shape[:-1], self.m, z.shape[-1])
        d_residual, d_image = z.new_zeros(shape), z.new_zeros(shape)
        cut = self.m * torch.finfo(z.dtype).eps
        best_norm: Any = np.inf
        residual_old = image_old = best_residual = best_image = z
        waited: Any = np.zeros(z.shape[:-1], dtype=int)  # steps since the best iterate
        patience: Any = np.full(z.shape[:-1], 3 * self.m)
        plain: Any = np.zeros(z.shape[:-1], dtype=bool)  # samples that take the steps of Picard for now
        for step in count():
            image, size = yield z
            residual = image - z
            if step:
                slot = (step - 1) % self.m
                d_residual[..., slot, :] = residual - residual_old
                d_image[..., slot, :] = image - image_old
            better = np.asarray(size <= best_norm)
            best_norm = np.where(better, size, best_norm)
            best_image, best_residual = _pick(better, image, best_image), _pick(better, residual, best_residual)
            waited = np.where(better, 0, waited + 1)
            # Mixing can circle where the plain iteration converges, and the other way round: who does not improve on
            # the best iterate for long hands it to the other, which is given twice as long.
            stalled = waited > patience
            plain = plain ^ stalled
            waited, patience = np.where(stalled, 0, waited), np.where(stalled, 2 * patience, patience)
            # A rejected step has taught its secant all the same: the next one starts from the best iterate and uses it.
            back = stalled | (~plain & ~np.asarray(size <= _WORSE * best_norm))
            image_old, residual_old = _pick(back, best_image, image), _pick(back, best_residual, residual)
            unmixed = plain | stalled
            if unmixed.any():
                keep = torch.as_tensor(~unmixed, device=z.device)[..., None, None]
                d_residual, d_image = torch.where(keep, d_residual, 0.0), torch.where(keep, d_image, 0.0)
            z = image_old - _combination(d_residual, d_image, residual_old, cut)


def _pick(mask: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the samples of ``x`` where the host mask holds, those of ``y`` elsewhere; no copy if all are of one."""
    return x if mask.all() else y if not mask.any() else BACKEND.select(mask, x, y)


def _combination(d_residual: torch.Tensor, d_image: torch.Tensor, residual: torch.Tensor, cut: float) -> torch.Tensor:
    """Return ``dF g`` with ``g`` the minimizer of ``norm(residual - dR g)``; zero where there are no differences."""
    conj = d_residual.conj() if d_residual.is_complex() else d_residual
    gram = BACKEND.to_numpy(torch.matmul(conj, d_residual.mT))
    rhs = BACKEND.to_numpy(torch.matmul(conj, residual.unsqueeze(-1))).squeeze(-1)
    double = np.result_type(gram.dtype, np.float64)
    scale = np.sqrt(np.abs(np.diagonal(gram, axis1=-2, axis2=-1)).astype(float))
    weight = np.divide(1.0, scale, out=np.zeros_like(scale), where=(scale > 0) & np.isfinite(scale))
    gram = np.nan_to_num(gram.astype(double)) * weight[..., :, None] * weight[..., None, :]
    solution = np.linalg.pinv(gram, rcond=cut, hermitian=True) @ (np.nan_to_num(rhs).astype(double) * weight)[..., None]
    coefficients = torch.as_tensor(solution[..., 0] * weight, device=residual.device).to(residual.dtype)
    return torch.matmul(coefficients.unsqueeze(-2), d_image).squeeze(-2)
