"""Each proposition as a measurement on one random network: how far it is from holding, and how far it may be.

A network is ``h = tanh(W h + x)`` with ``norm(W) = 0.9``, 20 units, in double precision, and a loss ``g . h``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import implicitgrad as ig
import implicitgrad.torch as igt

__all__ = ["CHECKS", "Check"]

UNITS, NORM, UPDATES = 20, 0.9, 30
ROUNDING = 1e-12  # relative; sums of up to 60 terms in double precision, and a fixed point known to 1e-15
Measured = dict[str, dict[str, float]]  # of a statement: deviation and allowed; of a figure: value


@dataclass(frozen=True)
class Check:
    """A proposition: its short name, the statements it makes, and how they are measured at a seed."""

    name: str
    statements: dict[str, str]
    measure: Callable[[int, int], Measured]


@dataclass(frozen=True)
class Network:
    """One random network, its fixed point, the Jacobian there, and the implicit gradient by a dense solve."""

    W: torch.Tensor
    x: torch.Tensor
    g: torch.Tensor
    z_star: torch.Tensor
    J: torch.Tensor
    implicit: torch.Tensor

    @staticmethod
    def update(z: torch.Tensor, W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the next state."""
        return torch.tanh(W @ z + x)

    def gradient(self, z: torch.Tensor) -> torch.Tensor:
        """Return dL/dW of the loss on a state that has a history."""
        return torch.autograd.grad(self.g @ z, self.W)[0]


def network(seed: int) -> Network:
    """Return the network of a seed."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(UNITS, UNITS, dtype=torch.float64, generator=generator)
    W = (NORM * W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    x, g = torch.randn(2, UNITS, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        z = torch.zeros(UNITS, dtype=torch.float64)
        for _ in range(1000):
            z = Network.update(z, W, x)
        slope = 1 - z**2
        J = slope[:, None] * W.detach()
        adjoint = torch.linalg.solve((torch.eye(UNITS, dtype=torch.float64) - J).mT, g)
        implicit = torch.outer(slope * adjoint, z)
    return Network(W, x, g, z, J, implicit)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


def _row(deviation: float, allowed: float = ROUNDING) -> dict[str, float]:
    return {"deviation": deviation, "allowed": allowed}


def unrolled_and_neumann(seed: int, _: int) -> Measured:
    """P1: K + 1 updates from the fixed point are Neumann with K products; BPTT tends to the implicit gradient."""
    net, worst, apart = network(seed), 0.0, math.inf
    for K in (0, 1, 2, 5, 10, 20):
        neumann = net.gradient(igt.rbp(net.update, net.z_star, net.W, net.x, steps=0, truncate=K, on_failure="return"))
        unrolled = net.gradient(igt.tbptt(net.update, net.z_star, net.W, net.x, steps=UPDATES, truncate=K + 1))
        worst = max(worst, _relative(unrolled, neumann))
        if K in (1, 2, 5):  # one update fewer is another gradient: the convention is not a matter of taste
            fewer = net.gradient(igt.tbptt(net.update, net.z_star, net.W, net.x, steps=UPDATES, truncate=K))
            apart = min(apart, _relative(fewer, neumann))
    whole = net.gradient(igt.bptt(net.update, torch.zeros_like(net.x), net.W, net.x, steps=400))
    return {
        "equal": _row(worst),
        "apart": _row(1e-4 / apart, 1.0),
        "limit": _row(_relative(whole, net.implicit), 1e-11),
    }


def neumann_bound(seed: int, _: int) -> Measured:
    """P2: the error of K terms is at most norm((I - J)^-1) norm(J)^(K+1), in four norms; exactly -(I-J)^-1 J^(K+1)."""
    J = network(seed).J.numpy()
    eye = np.eye(UNITS)
    inverse, total, power = np.linalg.inv(eye - J), eye.copy(), eye.copy()
    ratio = identity = 0.0
    for K in range(31):
        power = power @ J  # J^(K+1)
        error = total - inverse
        identity = max(identity, float(np.linalg.norm(error + inverse @ power) / np.linalg.norm(inverse)))
        for order in (1, 2, np.inf, "fro"):
            decay = np.linalg.norm(J, order) ** (K + 1)
            if decay > 1e-12:  # below it only rounding is left to compare
                ratio = max(ratio, float(np.linalg.norm(error, order) / (np.linalg.norm(inverse, order) * decay)))
        total = total + power
    return {"bound": _row(ratio, 1 + 1e-3), "identity": _row(identity)}


def rbp_and_neumann(seed: int, _: int) -> Measured:
    """P3: K + 1 steps of RBP from zero are K-step Neumann; from z_0 the difference is (J^T)^(K+1) z_0."""
    net, worst, start_error = network(seed), 0.0, 0.0
    run = lambda **settings: net.gradient(  # noqa: E731
        igt.rbp(net.update, net.z_star, net.W, net.x, steps=0, on_failure="return", **settings)
    )
    slope = 1 - net.z_star**2
    start = torch.rand(UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for K in (0, 1, 2, 5, 10, 20):
        neumann = run(truncate=K)
        worst = max(worst, _relative(run(method="rbp", truncate=K + 1), neumann))
        lag = torch.linalg.matrix_power(net.J.mT, K + 1) @ start
        expected = neumann + torch.outer(slope * lag, net.z_star)
        start_error = max(start_error, _relative(run(method="rbp", truncate=K + 1, start=start), expected))
    return {"equal": _row(worst), "start": _row(start_error)}


def bounds_of_lambda_min(seed: int, _: int) -> Measured:
    """Section 1.2: every form of Gershgorin's bound <= lambda_min <= every Ritz value, for (I - J)^T (I - J)."""
    J = 0.3 * network(seed).J  # near the identity, where the bounds say something
    A = torch.eye(UNITS, dtype=torch.float64) - J
    gram = (A.mT @ A).numpy()
    exact = float(np.linalg.eigvalsh(gram)[0])
    off = gram - np.eye(UNITS)
    paper, rows = 1 - math.sqrt(UNITS) * np.linalg.norm(off), 1 - np.linalg.norm(off, np.inf)
    ritz = ig.smallest_eigenvalue(ig.DenseOperator(gram, symmetric=True)).upper
    return {
        "gershgorin": _row(max(0.0, paper - rows, rows - exact), 1e-13),
        "ritz": _row(max(0.0, exact - float(ritz)), 1e-13),
        "direct": _row(max(0.0, -exact), 1e-13),
    }


def unbiased_truncation(seed: int, draws: int) -> Measured:
    """ARTBP: the mean of the draws lies within four standard errors of BPTT's gradient, as vectors.

    The standard error of a mean of ``n`` vectors is ``sqrt(E norm(G - E G)^2 / n)``. The largest of the 400 components
    is a figure only: the largest of so many is often beyond four, and rare draws with large weights make it more so.
    """
    net = network(seed)
    start = torch.zeros_like(net.x)
    exact = net.gradient(igt.bptt(net.update, start, net.W, net.x, steps=UPDATES)).numpy().ravel()
    rows: Measured = {}
    for name, law in (("uniform", igt.UniformTruncation()), ("poisson", igt.PoissonTruncation())):
        by_draw, exact_mean = _gradients_by_draw(net, law, start)
        generator = torch.Generator().manual_seed(seed)
        drawn = np.bincount([law.sample(UPDATES, generator) for _ in range(draws)], minlength=UPDATES + 1)[1:]
        mean = drawn @ by_draw / draws
        p = law.probabilities(UPDATES).numpy()
        variance = drawn @ (by_draw - mean) ** 2 / (draws - 1)
        rows[name] = _row(float(np.linalg.norm(mean - exact) / np.sqrt(variance.sum() / draws)), 4.0)
        rows[f"{name} component"] = {"value": float(np.max(np.abs(mean - exact) / np.sqrt(variance / draws)))}
        rows[f"{name} exact"] = _row(float(np.linalg.norm(exact_mean - exact) / np.linalg.norm(exact)), 1e-11)
        # A figure, not a claim: E norm(G - E G)^2 / norm(E G)^2, from the whole distribution.
        rows[f"{name} variance"] = {"value": float(p @ ((by_draw - exact) ** 2).sum(1) / (exact**2).sum())}
    return rows


def _gradients_by_draw(net: Network, law: igt.Truncation, start: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of a pass for each number of kept updates, a row each, and their mean under the law.

    A pass is a function of its draw alone, so 1e5 passes are these rows, counted.
    """
    found = []
    for kept in range(1, UPDATES + 1):
        z = igt.artbp(net.update, start, net.W, net.x, steps=UPDATES, distribution=_Decided(law, kept))
        found.append(net.gradient(z).numpy().ravel())
    by_draw = np.stack(found)
    return by_draw, law.probabilities(UPDATES).numpy() @ by_draw


@dataclass(frozen=True)
class _Decided(igt.Truncation):
    """A distribution whose draw has been made, with the weights of the distribution."""

    law: igt.Truncation
    kept: int

    def log_masses(self, steps: int) -> torch.Tensor:
        return self.law.log_masses(steps)

    def sample(self, steps: int, generator: torch.Generator | None = None) -> int:
        return self.kept


CHECKS = [
    Check(
        "P1",
        {
            "equal": "P1  K + 1 updates at h* = Neumann with K products",
            "apart": "P1  K updates are not: 1e-4 / relative difference",
            "limit": "P1  BPTT (400 updates) = implicit gradient",
        },
        unrolled_and_neumann,
    ),
    Check(
        "P2",
        {
            "bound": "P2  error of K terms / bound, K <= 30, four norms",
            "identity": "P2  error = -(I - J)^-1 J^(K+1)",
        },
        neumann_bound,
    ),
    Check(
        "P3",
        {
            "equal": "P3  K + 1 steps of RBP from 0 = Neumann with K",
            "start": "P3  from z0: apart by (J^T)^(K+1) z0",
        },
        rbp_and_neumann,
    ),
    Check(
        "lambda_min",
        {
            "gershgorin": "1.2 paper's bound <= row bound <= lambda_min",
            "ritz": "1.2 lambda_min <= Ritz value",
            "direct": "1.2 the penalty max(0, -lambda_min) is zero",
        },
        bounds_of_lambda_min,
    ),
    Check(
        "ARTBP",
        {
            "uniform": "3.3 uniform ARTBP: norm(mean - BPTT) / standard error",
            "uniform component": "3.3 uniform ARTBP: largest component of that",
            "uniform exact": "3.3 uniform ARTBP: mean of the distribution",
            "uniform variance": "3.3 uniform ARTBP: relative variance",
            "poisson": "3.3 Poisson ARTBP: norm(mean - BPTT) / standard error",
            "poisson component": "3.3 Poisson ARTBP: largest component of that",
            "poisson exact": "3.3 Poisson ARTBP: mean of the distribution",
            "poisson variance": "3.3 Poisson ARTBP: relative variance",
        },
        unbiased_truncation,
    ),
]
