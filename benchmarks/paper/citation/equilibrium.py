"""An equilibrium network for the same task: the features enter the map, and the propagation does not expand.

    m = S h,    r = sigmoid(x_r + W_r m + U_r h),    z = sigmoid(x_z + W_z m + U_z h),    q = tanh(x_q + r * m)
    F(h, x) = q + z (h - q),    x = V dropout(features) + b

with ``S = D^(-1/2) (A + I) D^(-1/2)``, whose norm is 1. It is the cell of the paper with these changes: the features
are part of its input at every step; neighbours are averaged, not summed; the reset gate acts on the message, and that
goes in as it is. So ``r`` is what a node takes over from its neighbours, each of its numbers by itself, and with gates
that stand still ``norm(J) < 1``. At the fixed point ``h = q``: the update gate ``z`` says how fast one gets there, not
where. Who uses it: ``comparison.py``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, identity
from torch.nn.functional import dropout, linear

import implicitgrad as ig
import implicitgrad.torch as igt

from .graph import Propagate, sparse_tensor

__all__ = ["EquilibriumNetwork", "normalized_adjacency"]

OPEN = 4.0  # bias of the reset gate: a node begins by taking over 98 % of the mean of its neighbours
SMALL = (
    0.05  # what V_q begins with, relative to Glorot's: the smoothing amplifies it, and tanh is to stay nearly linear
)


def normalized_adjacency(simple: csr_matrix) -> torch.Tensor:
    """Return ``D^(-1/2) (A + I) D^(-1/2)`` of the simple graph (Kipf & Welling 2017), eigenvalues in ``(-1, 1]``."""
    looped = simple + identity(simple.shape[0], dtype=np.float32, format="csr")
    scale = diags(np.asarray(looped.sum(axis=1)).ravel() ** -0.5)
    return sparse_tensor((scale @ looped @ scale).tocsr().astype(np.float32))


class EquilibriumNetwork(torch.nn.Module):
    """Features to fixed point to classes.

    Parameters
    ----------
    S : sparse CSR tensor, shape (n, n)
        Symmetric, of norm 1.
    num_features, size, num_classes : int
        Per node: features, numbers of the state, classes.
    drop : float
        Share of the features, and of the read-out's input, that is dropped in training.
    adjoint : Solver, optional
        Of the backward equation. Default: ``Auto`` to a relative residual of 1e-3.
    generator : torch.Generator, optional
        For the initial weights.
    """

    def __init__(
        self,
        S: torch.Tensor,
        num_features: int,
        size: int,
        num_classes: int,
        drop: float = 0.5,
        adjoint: ig.Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.S, self.drop, self.size = S, drop, size
        self.V_gates = torch.nn.Parameter(torch.zeros(2 * size, num_features))
        self.V_q = torch.nn.Parameter(_glorot(size, num_features, generator))
        self.W = torch.nn.Parameter(torch.zeros(2 * size, size))
        self.U = torch.nn.Parameter(torch.zeros(2 * size, size))
        self.b_gates = torch.nn.Parameter(torch.cat([torch.full((size,), OPEN), torch.zeros(size)]))
        self.b_q = torch.nn.Parameter(torch.zeros(size))
        self.readout = torch.nn.Parameter(_glorot(num_classes, size, generator))
        self.readout_bias = torch.nn.Parameter(torch.zeros(num_classes))
        self.report = igt.Report()
        self.solver = igt.Anderson(rtol=1e-4, max_iters=300)
        self.adjoint = ig.Auto(rtol=1e-3) if adjoint is None else adjoint

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``x``, ``(n, 3 k)``: what the features say to the two gates and to ``q``."""
        kept = dropout(features, self.drop, self.training)
        return torch.cat([linear(kept, self.V_gates, self.b_gates), SMALL * linear(kept, self.V_q, self.b_q)], dim=1)

    def update(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``F(h, x)``, ``(n, k)``."""
        k = self.size
        m = Propagate.apply(h, self.S)
        r, z = torch.sigmoid(x[:, : 2 * k] + linear(m, self.W) + linear(h, self.U)).chunk(2, dim=1)
        return torch.lerp(torch.tanh(x[:, 2 * k :] + r * m), h, z)

    def equilibrium(self, x: torch.Tensor) -> torch.Tensor:
        """Return the fixed point ``h = F(h, x)``, ``(n, k)``; ``report`` says how it was found."""
        return igt.fixed_point(
            self.update,
            x.new_zeros(len(x), self.size),
            x,
            solver=self.solver,
            adjoint=self.adjoint,
            on_failure="return",  # statuses are counted, and stand in the table
            report=self.report,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return a score for each class, ``(n, classes)``."""
        h = self.equilibrium(self.encode(features))
        return linear(dropout(h, self.drop, self.training), self.readout, self.readout_bias)

    def penalty(self, features: torch.Tensor, seed: int) -> torch.Tensor:
        """Return an unbiased estimate of ``norm(J, F)^2 / n`` at the fixed point, differentiable through it.

        ``lambda_min_penalty`` would ask for less, but here its search needs some thousand products: in every isolated
        pair of nodes, and nearly so in every cluster, ``S`` has an eigenvalue 1, so the small singular values of
        ``I - J`` lie close together.
        """
        x = self.encode(features)
        return igt.jacobian_norm_penalty(self.update, self.equilibrium(x), x, seed=seed)

    def parameter_groups(self) -> list[dict]:
        """Return the groups for Adam."""
        return [{"params": list(self.parameters()), "weight_decay": 5e-4}]


def _glorot(rows: int, columns: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.nn.init.xavier_uniform_(torch.empty(rows, columns), generator=generator)
