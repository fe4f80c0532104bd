"""The smallest singular triplet of the bidiagonal matrix ``B`` of Golub-Kahan, and what it is worth for ``A``.

Everything here is arithmetic on the coefficients ``alpha`` and ``beta``, a few numbers a system, with history where
they have one. Used by the process to know when to stop, and by ``search.py`` for the value and its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["RitzPair", "bidiagonal", "smallest_pair"]


@dataclass(frozen=True)
class RitzPair:
    """The smallest singular triplet of ``B``, ``B x = sigma y``, and how good it is for ``A``.

    Attributes
    ----------
    sigma : tensor, shape (...)
    x, y : tensor, shape (..., k)
        Real; zero after the steps that count.
    residual : tensor, shape (...)
        ``norm(A^H u - sigma v) = beta_k abs(y_k)`` for ``u = U^T y``, ``v = V^T x``; ``A v = sigma u`` is exact.
    gap : tensor, shape (...)
        Distance from ``sigma`` to the next singular value of ``B`` that is not the same to half of the digits of
        ``norm(A)``; ``norm(A)`` where there is none. The pair is off by about ``residual / gap``, a cluster that is
        closer counts as one value.
    """

    sigma: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    residual: torch.Tensor
    gap: torch.Tensor


def smallest_pair(alpha: torch.Tensor, beta: torch.Tensor, steps: torch.Tensor) -> RitzPair:
    """Return the smallest singular triplet of the leading ``steps`` columns of ``B``, system by system."""
    B = bidiagonal(alpha, beta, steps)
    finite = torch.isfinite(B).all(dim=-1).all(dim=-1)
    y, values, xh = torch.linalg.svd(torch.where(finite[..., None, None], B, 0.0))
    index = torch.arange(alpha.shape[-1], device=alpha.device)
    counted = index < steps.unsqueeze(-1)
    x, y = torch.where(counted, xh[..., -1, :], 0.0), torch.where(counted, y[..., :, -1], 0.0)
    last = steps.clamp(max=alpha.shape[-1]).unsqueeze(-1) - 1
    residual = (beta.gather(-1, last) * y.gather(-1, last)).squeeze(-1).abs()
    sigma = values[..., -1]
    largest = torch.where(counted, torch.maximum(alpha.abs(), beta.abs()), 0.0).amax(dim=-1)
    distance = values - sigma.unsqueeze(-1)
    apart = distance > torch.finfo(alpha.dtype).eps ** 0.5 * largest.unsqueeze(-1)
    gap = torch.where(apart, distance, largest.unsqueeze(-1)).amin(dim=-1)
    bad = torch.full_like(sigma, torch.nan)
    return RitzPair(
        sigma=torch.where(finite, sigma, bad), x=x, y=y, residual=torch.where(finite, residual, bad), gap=gap
    )


def bidiagonal(alpha: torch.Tensor, beta: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return ``B (..., k, k)``; after the steps that count it goes on as a multiple of I, above all singular values."""
    k = alpha.shape[-1]
    index = torch.arange(k, device=alpha.device)
    counted = index < steps.unsqueeze(-1)
    inside = torch.where(counted, torch.maximum(alpha.abs(), beta.abs()), 0.0).detach()
    above = 2.0 * inside.amax(dim=-1, keepdim=True)  # norm(B) <= max alpha + max beta
    above = torch.where(above > 0, above, 1.0)
    diagonal = torch.where(counted, alpha, above)
    off = torch.where(index[1:] < steps.unsqueeze(-1), beta[..., :-1], 0.0)
    return torch.diag_embed(diagonal) + torch.diag_embed(off, offset=1)
