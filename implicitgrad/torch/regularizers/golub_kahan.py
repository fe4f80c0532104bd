"""Golub-Kahan bidiagonalization of ``A = I - J`` in torch, differentiable step by step.

After ``k`` steps from ``v_1`` there are orthonormal ``V = [v_1 .. v_k]`` and ``U = [u_1 .. u_k]`` with

    A V = U B,    A^H U = V B^T + beta_k v_{k+1} e_k^T,    B upper bidiagonal, diagonal alpha, off-diagonal beta,

and the smallest singular value of ``B`` is an upper bound of that of ``A`` (Golub & Kahan 1965, SIAM J. Numer. Anal. 2,
sec. 3; Bjorck, Numerical Methods for Least Squares Problems, sec. 7.6). ``A^H A`` is never formed: squaring would lose
half of the digits. ``lambda_min`` differentiates through this loop, or through its adjoint (``adjoint.py``). For values
alone, and with memory that does not grow with the steps, there is ``implicitgrad.spectral``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from implicitgrad.torch.regularizers.linearized import Linearized
from implicitgrad.torch.regularizers.ritz import smallest_pair

__all__ = ["ROUNDING", "Bidiagonalization", "bidiagonalize", "project"]

ROUNDING = 64  # a remainder below so many eps of A's parts is all rounding: two passes of Gram-Schmidt leave a few


@dataclass(frozen=True)
class Bidiagonalization:
    """The outcome of the process; ``k`` is the number of steps.

    Attributes
    ----------
    V, U : tensor, shape (..., k, n)
        One row a vector.
    alpha, beta : tensor, shape (..., k)
        Real. ``beta[k - 1]`` belongs to the remainder; where it is 0 the space is invariant.
    remainder : tensor, shape (..., n)
        ``beta_k v_{k+1}``.
    fresh_u, fresh_v : tensor of bool, shape (..., k)
        Where a vector was drawn anew, since nothing was left of the product: ``alpha[j]``, or ``beta[j - 1]``, is 0.
    steps : tensor of int, shape (...)
        The steps that count for each system: a system that has converged takes no notice of those after it.
    products : int
        Products with ``A``; as many with ``A^H``.
    """

    V: torch.Tensor
    U: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor
    remainder: torch.Tensor
    fresh_u: torch.Tensor
    fresh_v: torch.Tensor
    steps: torch.Tensor
    products: int


def bidiagonalize(
    linearized: Linearized,
    start: torch.Tensor,
    steps: int,
    rtol: float,
    generator: torch.Generator,
    differentiable: bool,
) -> Bidiagonalization:
    """Run the process on ``A = I - J`` until the smallest pair of each system has converged, or for ``steps`` steps.

    Parameters
    ----------
    start : tensor, shape (..., n)
        ``v_1`` up to its length, which must not be 0; a constant.
    steps : int
        At most; never more than ``n``, where the process is complete.
    rtol : float
        A pair has converged when its residual is below ``rtol`` times its gap (see ``smallest_pair``); 0: never.
    generator : torch.Generator
        Where vectors are drawn from in an invariant subspace, so that its complement is searched too.
    differentiable : bool
        Keep the history of every operation. Costs ``k^2 / 2`` vectors; without, ``2 k``.

    Notes
    -----
    Full re-orthogonalization, two passes of classical Gram-Schmidt ("twice is enough", Kahan in Parlett, The Symmetric
    Eigenvalue Problem, sec. 6.9). A step costs one JVP, one VJP and ``8 k n`` multiplications.
    """
    point = linearized.point
    tiny = ROUNDING * torch.finfo(point.dtype).eps
    length = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    v = (start / length).detach()
    rows_v, rows_u = _Rows(v, steps, differentiable), _Rows(v, steps, differentiable)
    alphas: list[torch.Tensor] = []
    betas: list[torch.Tensor] = []
    fresh_u: list[torch.Tensor] = []
    fresh_v: list[torch.Tensor] = [torch.zeros(v.shape[:-1], dtype=torch.bool, device=v.device)]
    counted = torch.full(v.shape[:-1], steps, dtype=torch.int64, device=v.device)
    size = torch.ones_like(length.detach())  # of the parts of A: I, and J as far as it has been seen
    with torch.set_grad_enabled(differentiable):
        remainder = v
        for step in range(steps):
            rows_v.append(v)
            w = v - linearized.jvp(v)
            size = torch.maximum(size, _length(w))
            if step:
                w = w - betas[-1].unsqueeze(-1) * rows_u.last
            alpha, u, broken = _normalized(rows_u.orthogonal(w), tiny * size, rows_u, generator)
            rows_u.append(u)
            alphas.append(alpha)
            fresh_u.append(broken)
            w = u - linearized.vjp(u)
            size = torch.maximum(size, _length(w))
            remainder = rows_v.orthogonal(w - alpha.unsqueeze(-1) * v)
            full = step + 1 == point.shape[-1]
            beta, v, broken = _normalized(remainder, tiny * size, None if full else rows_v, generator)
            remainder = beta.unsqueeze(-1) * v
            betas.append(beta)
            fresh_v.append(broken)
            last = step + 1 == steps
            if rtol > 0 and (last or step % 4 == 3):
                pair = smallest_pair(torch.stack(alphas, -1).detach(), torch.stack(betas, -1).detach(), counted)
                done = ~(pair.residual > rtol * pair.gap) & (counted == steps)  # a NaN is done too
                counted = torch.where(done, step + 1, counted)
                if bool((counted < steps).all()):
                    break
    count = len(alphas)
    return Bidiagonalization(
        V=rows_v.stacked(),
        U=rows_u.stacked(),
        alpha=torch.stack(alphas, -1),
        beta=torch.stack(betas, -1),
        remainder=remainder,
        fresh_u=torch.stack(fresh_u, -1),
        fresh_v=torch.stack(fresh_v[:count], -1),
        steps=counted.clamp(max=count),
        products=count,
    )


class _Rows:
    """The vectors of a basis, and what is orthogonal to them; with history a list, without a buffer that doubles."""

    def __init__(self, like: torch.Tensor, capacity: int, differentiable: bool) -> None:
        self._vectors: list[torch.Tensor] | None = [] if differentiable else None
        self._buffer = like.new_empty((*like.shape[:-1], 0 if differentiable else min(capacity, 8), like.shape[-1]))
        self._count = 0

    def append(self, x: torch.Tensor) -> None:
        """Add a vector."""
        if self._vectors is not None:
            self._vectors.append(x)
        else:
            if self._count == self._buffer.shape[-2]:
                self._buffer = torch.cat((self._buffer, torch.empty_like(self._buffer)), dim=-2)
            self._buffer[..., self._count, :] = x
        self._count += 1

    @property
    def last(self) -> torch.Tensor:
        """The last vector."""
        return self._vectors[-1] if self._vectors is not None else self._buffer[..., self._count - 1, :]

    def stacked(self) -> torch.Tensor:
        """Return all vectors, ``(..., k, n)``."""
        return torch.stack(self._vectors, -2) if self._vectors else self._buffer[..., : self._count, :]

    def orthogonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` less its projection on the vectors, by two passes."""
        if self._count:
            rows = self.stacked()
            for _ in range(2):
                x = x - project(rows, x)
        return x


def project(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the projection of ``x (..., n)`` on the span of the orthonormal ``rows (..., k, n)``."""
    coefficients = torch.matmul(rows.conj(), x.unsqueeze(-1))
    projection: torch.Tensor = torch.matmul(coefficients.mT, rows).squeeze(-2)
    return projection


def _normalized(
    w: torch.Tensor, threshold: torch.Tensor, rows: _Rows | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the length of ``w``, ``w`` at length one, and where it was all rounding.

    There the length is 0 and the vector is a new one, orthogonal to ``rows``: a constant, so that no derivative is
    divided by a length that is zero. Without ``rows`` there is no room for one, and it is 0.
    """
    broken = _length(w) <= threshold
    if bool(broken.any()):
        if rows is None:
            w = torch.where(broken, 0.0, w)
        else:
            with torch.no_grad():
                fresh = torch.randn(w.shape, dtype=w.dtype, device=generator.device, generator=generator).to(w.device)
                fresh = rows.orthogonal(fresh)
            w = torch.where(broken, fresh, w)
    length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    unit = w / torch.where(length > 0, length, 1.0)
    return torch.where(broken, 0.0, length).squeeze(-1), unit, broken.squeeze(-1)


def _length(x: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    return length
