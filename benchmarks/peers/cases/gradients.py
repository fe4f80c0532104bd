"""Gradients through fixed points that came back wrong: truncated, of the wrong order, or of a part of the system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.cases.case import Case

__all__ = ["GRADIENT_CASES", "GradientProblem"]


@dataclass(frozen=True)
class GradientProblem:
    """A map, a loss and the derivative that is right.

    Parameters
    ----------
    kind : str
        ``"tanh"``: ``z = tanh(W z + x)``, loss ``scale * sum(z)``, derivative for ``W``; ``"twice"``: the sum of that
        loss over two inputs ``x``; ``"second"``: ``z = tanh(z / 2 + b)``, second derivative for ``b``; ``"affine"``:
        ``z = slope z + x`` of a scalar, derivative for ``x``; ``"coupled"``: ``z = M z + x`` with ``z`` in two tensors,
        loss ``g . z``, derivative for ``x``; ``"lambda_min"``: the smallest eigenvalue of ``theta I``, for theta.
    expected : array
        The derivative.
    """

    kind: str
    expected: Any
    W: Any = None
    x: Any = None
    g: Any = None
    slope: float = 0.5
    scale: float = 1.0
    forward_steps: int | None = None
    backward_steps: int | None = None
    split: int = 0
    exact_forward: bool = True  # ask for a forward pass of 1e-10, so that what is seen is the backward pass

    def error(self, value: Any) -> float:
        """Return ``norm(value - expected) / norm(expected)``."""
        value = np.asarray(value, dtype=float)
        if value.shape != np.shape(self.expected):
            return float("inf")
        return float(np.linalg.norm(value - self.expected) / np.linalg.norm(self.expected))


def _weights(n: int, norm: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    W = rng.standard_normal((n, n))
    return W * (norm / np.linalg.norm(W, 2)), rng.standard_normal(n)


def _tanh_gradient(W: Any, x: Any) -> Any:
    """Return d sum(z) / dW by plain iteration to the end and a dense solve."""
    z = np.zeros(len(x))
    for _ in range(5000):
        z = np.tanh(W @ z + x)
    slope = 1 - z**2
    u = np.linalg.solve((np.eye(len(x)) - slope[:, None] * W).T, np.ones(len(x)))
    return np.outer(slope * u, z)


def _tanh(norm: float = 0.9, n: int = 20, scale: float = 1.0, **settings: Any) -> GradientProblem:
    W, x = _weights(n, norm)
    return GradientProblem("tanh", scale * _tanh_gradient(W, x), W, x, scale=scale, **settings)


def _twice() -> GradientProblem:
    W, x = _weights(6, 0.8)
    both = np.stack([x, x[::-1]])
    return GradientProblem("twice", sum(_tanh_gradient(W, row) for row in both), W, both)


def _second() -> GradientProblem:
    """With s = 1 - z^2: z_b = s / (1 - a s) and z_bb = -2 z s / (1 - a s)^3 for a = 1/2."""
    z = 0.0
    for _ in range(200):
        z = np.tanh(0.5 * z + 0.3)
    s = 1 - z * z
    return GradientProblem("second", np.asarray(-2 * z * s / (1 - 0.5 * s) ** 3))


def _coupled() -> GradientProblem:
    rng = np.random.default_rng(4)
    M = rng.standard_normal((5, 5))
    M *= 0.8 / np.linalg.norm(M, 2)
    x, g = rng.standard_normal((2, 5))
    return GradientProblem("coupled", np.linalg.solve((np.eye(5) - M).T, g), M, x, g, split=3)


GRADIENT_CASES = [
    Case("The default gradient is the implicit one", "probe of torchdeq: the one-step gradient, 34 % off",
         "tanh layer, norm(W) = 0.9, n = 20, float64; each library's own defaults",
         "right to 2 %, as far as a default forward pass goes", lambda: _tanh(exact_forward=False), 2e-2),
    Case("A loss scaled by 1e-7 has the same gradient", "fault 38: an absolute tolerance backward",
         "the same layer, loss times 1e-7", "the gradient times 1e-7", lambda: _tanh(scale=1e-7), 1e-2),
    Case("A backward solve cut at two steps is said", "probe of torchdeq: a gradient of exactly zero; jaxopt: 7 %",
         "the same layer with norm(W) = 0.97, at most two steps backward", "say that the adjoint was not reached",
         lambda: _tanh(norm=0.97, backward_steps=2), 1e-3),
    Case("A forward solve stopped after one step is said", "fault 84; probes of jaxopt and Optimistix: 13 % and 28 %",
         "the same layer, one step forward", "say that this is no fixed point", lambda: _tanh(forward_steps=1), 1e-3),
    Case("The second derivative is right, or refused", "fault 75; torchdeq: -1.200 for -3.068",
         "z = tanh(z / 2 + b), b = 0.3: z_bb = -3.067562", "-3.067562, or an error", _second, 1e-5),
    Case("A state of two tensors is one system", "probe of TorchOpt: the diagonal blocks of the Jacobian only",
         "z = M z + x, z in tensors of 3 and 2, norm(M) = 0.8", "the gradient of the whole system", _coupled, 1e-3),
    Case("A scalar state has a gradient", "torchopt#222: maxiter = 10 sum(shape) is 0 for a 0-d tensor",
         "z = z / 2 + x, 0-d: dz/dx = 2", "2", lambda: GradientProblem("affine", np.asarray(2.0)), 1e-3),
    Case("A map that expands is solved, or said not to be", "probe of torchdeq: the one-step gradient",
         "z = 1.3 z + x, 0-d: dz/dx = -10/3", "-10/3, or a report",
         lambda: GradientProblem("affine", np.asarray(-10 / 3), slope=1.3, exact_forward=False), 1e-3),
    Case("One layer may be used twice in a loss", "fault 78: a hook that overwrites the one before",
         "tanh layer, norm(W) = 0.8, two inputs, one loss", "the sum of both gradients", _twice, 1e-3),
    Case("The gradient of lambda_min(theta I) is 1", "probe of matfree: -9.5e31",
         "theta = 1, n = 6, depth 6", "1", lambda: GradientProblem("lambda_min", np.asarray(1.0)), 1e-6),
]  # fmt: skip
