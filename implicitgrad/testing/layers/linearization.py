"""The map's derivative at one point, and the reference gradient: by a dense solve, or by an iteration for large n.

``(I - J)^T u = g``, then ``dL/dw = (df/dw)^T u``. Nothing of the layer under test is used. In the dense case nothing of
this package's solvers is either: VJPs make the rows of the matrix, and LAPACK solves. Complex states are taken as pairs
of real numbers, so that maps which are not holomorphic are right too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from implicitgrad.adjoint import adjoint_solve
from implicitgrad.errors import MissingProductError
from implicitgrad.operators import identity_minus
from implicitgrad.solvers import GMRES
from implicitgrad.spectral import smallest_singular_value
from implicitgrad.testing.layers.subject import Host, Subject, pulled, real_vector
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Linearization"]


class Linearization:
    """``f`` at ``z``: its VJPs, and the reference adjoint.

    Parameters
    ----------
    subject : Subject
        The map.
    z : tensor, shape (n,)
        The point.
    dense : bool
        Whether to form ``J``.
    """

    def __init__(self, subject: Subject, z: torch.Tensor, dense: bool) -> None:
        self.subject = subject
        self.point = z.detach().clone().requires_grad_()
        self.image = subject(self.point)
        self.dense = dense

    @property
    def residual(self) -> float:
        """``norm(f(z) - z) / norm(f(z))``: how far the point is from being fixed."""
        image = real_vector(self.image)
        gap = float(np.linalg.norm(image - real_vector(self.point)))
        return gap / max(float(np.linalg.norm(image)), 1e-300) if gap > 0 else gap

    def vjp(self, u: torch.Tensor) -> torch.Tensor:
        """Return ``J^T u``."""
        return pulled(self.image, [self.point], u)[0].detach()

    def parameter_vjp(self, u: torch.Tensor) -> list[Host]:
        """Return ``(df/dw)^T u`` of every tensor, as real vectors on the host."""
        return [real_vector(g) for g in pulled(self.image, self.subject.tensors, u)]

    @cached_property
    def transposed(self) -> Host:
        """``J^T``, real, formed by a VJP for each column; for the dense case only."""
        flat = real_vector(self.point)
        columns = []
        for i in range(len(flat)):
            unit = np.zeros_like(flat)
            unit[i] = 1.0
            columns.append(real_vector(self.vjp(self.vector(unit))))
        return np.stack(columns, axis=1)

    def vector(self, values: Host) -> torch.Tensor:
        """Return a real vector as a flat tensor of the state's kind."""
        tensor = torch.as_tensor(values)
        if self.point.is_complex():
            tensor = torch.view_as_complex(tensor.reshape(-1, 2).contiguous())
        return tensor.to(dtype=self.point.dtype, device=self.point.device)

    def solved(self, matrix: Host, g: torch.Tensor) -> torch.Tensor:
        """Return the solution of a dense real system for the right-hand side ``g``."""
        return self.vector(np.linalg.solve(matrix, real_vector(g)))

    def adjoint(self, g: torch.Tensor) -> torch.Tensor:
        """Return ``u`` with ``(I - J)^T u = g``."""
        if self.dense:
            return self.solved(np.eye(len(self.transposed)) - self.transposed, g)
        J = jacobian_of(self.image, self.point)
        solver = GMRES(rtol=32 * self.subject.eps, max_iters=500)
        u: torch.Tensor = adjoint_solve(J, g, solver=solver, on_failure="return").x
        return u

    @cached_property
    def inverse_norm(self) -> float:
        """``norm((I - J)^-1)``: how much a residual may grow to become an error; an estimate for large ``n``."""
        if self.dense:
            values = np.linalg.svd(np.eye(len(self.transposed)) - self.transposed, compute_uv=False)
            return float(1.0 / max(values[-1], 1e-300))
        try:
            B = identity_minus(jacobian_of(self.image, self.point))
            found = smallest_singular_value(B, rtol=0.1, max_iters=200, on_failure="return")
            return 1.0 / max(float(found.value), 1e-300)
        except MissingProductError:  # f cannot be differentiated twice: take what a random vector grows by, and more
            g = self.subject.cotangent(97)
            return 10.0 * float(torch.linalg.vector_norm(self.adjoint(g)))

    def sizes(self) -> list[float]:
        """Return, for each tensor, how large ``(df/dw)^T v`` is for random unit vectors ``v``: root mean square."""
        squares = np.zeros(len(self.subject.tensors))
        for seed in range(3):
            pieces: Sequence[Host] = self.parameter_vjp(self.subject.cotangent(1000 + seed))
            squares += [float(piece @ piece) for piece in pieces]
        return [float(value) for value in np.sqrt(squares / 3)]
