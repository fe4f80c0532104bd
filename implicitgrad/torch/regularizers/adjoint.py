"""The adjoint of Golub-Kahan: the derivative of the smallest singular value of ``B`` as a short sum of products.

Let ``sigma``, ``u = U^T y``, ``v = V^T x`` be the smallest triplet of ``k`` steps (see ``golub_kahan.py``). Perturb
``A``. The value moves with ``A`` at fixed vectors, and with the Krylov space that it is the minimum over:

    d sigma = Re u^H dA v  +  Re sum_j  r^H dv_j y_k x_j,        r = beta_k v_{k+1} the remainder.

The first part is that of Hellmann and Feynman; the second is as large as the residual ``beta_k abs(y_k)`` of the pair,
and vanishes with it. ``dv_j`` obeys the linearized recurrence, whose transpose runs backwards from ``j = k``, with
``p_{k+1} = q_k = 0`` and ``Pi_j`` the projector away from the first ``j`` vectors of ``U``, or ``V``:

    p_j     = Pi_j (A q_j - beta_j p_{j+1}) / alpha_j
    q_{j-1} = Pi_j (A^H p_j - alpha_j q_j + x_j y_k r) / beta_{j-1}

    d sigma = Re u^H dA v + Re sum_j (p_j^H dA v_j + u_j^H dA q_j)

This is the method of Kraemer, Moreno-Munoz, Roy & Hauberg 2024 (Gradients of functions of large matrices, NeurIPS),
whose adjoints are of Lanczos and Arnoldi, carried over to Golub-Kahan, and with the cotangent of ``B`` taken in by the
first part: what is divided by ``alpha`` and ``beta`` is the residual alone, and a converged pair leaves nothing to
divide. The projections are their re-orthogonalization. A vector that was drawn anew is a constant, so the recurrence
ends there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from implicitgrad.torch.regularizers.golub_kahan import ROUNDING, Bidiagonalization, project
from implicitgrad.torch.regularizers.linearized import Linearized
from implicitgrad.torch.regularizers.ritz import RitzPair

__all__ = ["SigmaDerivative"]


@dataclass(frozen=True)
class SigmaDerivative:
    """The terms of ``d sigma^2``, for ``streamed``; all tensors are constants.

    Attributes
    ----------
    process : Bidiagonalization
        Without history.
    pair : RitzPair
        Its smallest triplet.
    """

    process: Bidiagonalization
    pair: RitzPair

    def __call__(self, linearized: Linearized) -> Iterator[torch.Tensor]:
        """Yield ``-2 sigma Re <J^H a, b>`` for each pair ``a, b`` of the sum: the derivative of ``A`` is that of -J."""
        weight = -2.0 * self.pair.sigma

        def term(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            # The constant factor makes the terms of a system vanish together, where sigma is 0.
            return weight * _inner(linearized.vjp(a), b)

        V, U = self.process.V, self.process.U
        x, y = self.pair.x.to(V.dtype), self.pair.y.to(V.dtype)
        yield term(torch.matmul(y.unsqueeze(-2), U).squeeze(-2), torch.matmul(x.unsqueeze(-2), V).squeeze(-2))
        for j, p, q in self._recurrence(linearized):
            yield term(p, V[..., j, :])
            yield term(U[..., j, :], q)

    def _recurrence(self, linearized: Linearized) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield ``j, p_j, q_j`` for ``j = k - 1 .. 0``; a step where both are zero for all systems is left out."""
        process = self.process
        V, U = process.V, process.U
        alpha, beta = process.alpha.unsqueeze(-1), process.beta.unsqueeze(-1)
        with torch.no_grad():
            source = self._source()
            p = q = torch.zeros_like(source)
        for j in reversed(range(V.shape[-2])):
            with torch.no_grad():
                if bool(q.any()):
                    following = beta[..., j, :] * p
                    p = q - linearized.jvp(q) - following
                    p = _divided(p, alpha[..., j, :], process.fresh_u[..., j], U[..., : j + 1, :])
                else:
                    p = torch.zeros_like(p)
            if bool(p.any()) or bool(q.any()):
                yield j, p, q
            if j:
                with torch.no_grad():
                    image = p - linearized.vjp(p) if bool(p.any()) else p
                    numerator = image - alpha[..., j, :] * q + self.pair.x[..., j, None] * source
                    q = _divided(numerator, beta[..., j - 1, :], process.fresh_v[..., j], V[..., : j + 1, :])

    def _source(self) -> torch.Tensor:
        """Return ``y_k r``, and 0 where that is all rounding."""
        process, pair = self.process, self.pair
        count = process.V.shape[-2]
        steps = process.steps.unsqueeze(-1)
        following = (steps.clamp(max=count - 1)).unsqueeze(-1).expand(*steps.shape, process.V.shape[-1])
        next_v = process.V.gather(-2, following).squeeze(-2)
        remainder = torch.where(steps == count, process.remainder, process.beta.gather(-1, steps - 1) * next_v)
        size = torch.maximum(process.alpha, process.beta).amax(dim=-1)
        matters = pair.residual > ROUNDING * torch.finfo(process.alpha.dtype).eps * size
        return torch.where(matters.unsqueeze(-1), pair.y.gather(-1, steps - 1) * remainder, 0.0)


def _divided(numerator: torch.Tensor, divisor: torch.Tensor, fresh: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the part of ``numerator`` orthogonal to ``rows``, divided; 0 where the vector was drawn anew."""
    fresh = fresh.unsqueeze(-1)
    part = numerator - project(rows, numerator)
    return torch.where(fresh, 0.0, part / torch.where(fresh, 1.0, divisor))


def _inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return ``Re x^H y`` of each system."""
    product = (x.conj() * y).sum(dim=-1)
    return product.real if product.is_complex() else product
