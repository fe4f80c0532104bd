"""Gradients against the truth: which tensor is wrong, by how much, and what its gradient is instead."""

from __future__ import annotations

import numpy as np
import torch

from implicitgrad.testing.layers.differences import along, slope_of_solve
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.premises import SHOWN, assert_decidable, assert_regular
from implicitgrad.testing.layers.subject import NAME, Host, real_vector
from implicitgrad.testing.layers.suspects import Suspects

__all__ = ["Comparison", "cosine"]


class Comparison:
    """The right gradient for one cotangent of norm one, and how far from it a right layer may be.

    Parameters
    ----------
    at : Linearization
        The map at the fixed point.
    g : tensor, shape (n,)
        The cotangent.
    accuracy : float
        Relative residual that forward and backward solve leave, together.
    seed : int
        Of directions.

    Attributes
    ----------
    right : list of ndarray
        The reference gradients. Where ``J`` is too large to be formed they come from an iteration, and serve to name a
        mistake only; the verdict is that of central differences.
    amplified : float
        ``norm((I - J)^-1)``.
    allowed : list of float
        For each tensor, the norm of the largest error of a gradient that is right.
    """

    def __init__(self, at: Linearization, g: torch.Tensor, accuracy: float, seed: int) -> None:
        self.at, self.g, self.accuracy, self.seed = at, g, accuracy, seed
        self.amplified = at.inverse_norm
        assert_regular(self.amplified, at.subject.eps)
        u = at.adjoint(g)
        length = float(torch.linalg.vector_norm(u))
        self.right = at.parameter_vjp(u)
        blur = accuracy + 16 * at.subject.eps * max(1.0, length)  # what rounding of I - J leaves of a residual, too
        assert_decidable(blur, self.amplified, length)
        sizes = at.sizes()
        floor = 64 * at.subject.eps * max(sizes, default=0.0)  # a bias before a normalization: zero, but for rounding
        self.allowed = [4.0 * (size * blur + floor) * self.amplified for size in sizes]

    def assert_right(self, ours: list[torch.Tensor]) -> None:
        """Assert that these are the gradients of all tensors."""
        if self.at.dense:
            said = [self._by_reference(i, real_vector(t), self.right[i], 1.0) for i, t in enumerate(ours)]
        else:
            said = [self._by_differences(i, t) for i, t in enumerate(ours)]
        open_ = [entry for entry in said if entry.startswith("undecided")]
        if open_ and len(open_) == sum(map(bool, said)):
            index = said.index(open_[0])
            raise AssertionError(f"{NAME}: {self.at.subject.described(index)}: {open_[0]}. Check in float64.")
        self._raise(said, ours, "")

    def assert_the_same_when_scaled(self, small: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
        """Assert that the gradients of a small loss, scaled back, are those of the loss itself, which are right."""
        said = [
            self._by_reference(i, real_vector(t), self.right[i] if self.at.dense else real_vector(ours[i]), 2.0)
            for i, t in enumerate(small)
        ]
        self._raise(said, small, " for 2**-23 times the loss, though right for the loss itself")

    def described(self, way: str = "") -> str:
        """Return what was compared, and how."""
        subject = self.at.subject
        kind = str(subject.layout.dtype).removeprefix("torch.")
        return (
            f"n = {subject.start.numel()}, {kind}, norm((I - J)^-1) = {self.amplified:.2g}, norm(f(z) - z) = "
            f"{self.at.residual:.0e} norm(f(z)); by {way or ('a dense solve' if self.at.dense else 'differences')}"
        )

    def _by_reference(self, index: int, mine: Host, right: Host, factor: float) -> str:
        """Return how far a gradient is from the reference, or nothing."""
        if not np.isfinite(mine).all():
            return "holds NaN or Inf"
        off, allowed = float(np.linalg.norm(mine - right)), factor * self.allowed[index]
        if off <= allowed:
            return ""
        size = float(np.linalg.norm(right))
        if size <= allowed:
            return f"norm {np.linalg.norm(mine):.1e}, expected 0 within {allowed:.1e}"
        return (
            f"off by {off / size:.2g} of its norm, expected at most {allowed / size:.1e}; cosine {cosine(mine, right)}"
        )

    def _by_differences(self, index: int, ours: torch.Tensor) -> str:
        """Compare with central differences of the whole solve, along the gradient itself and a random direction."""
        if not bool(torch.isfinite(torch.view_as_real(ours) if ours.is_complex() else ours).all()):
            return "holds NaN or Inf"
        length = float(torch.linalg.vector_norm(ours))
        directions = [self.at.subject.direction(ours, self.seed + 300 + draw) for draw in range(2)]
        if length > 0:
            directions[0] = ours / length
        slopes = [slope_of_solve(self.at, index, d, self.g, self.amplified) for d in directions]
        promised = [along(ours, d) for d in directions]
        size = max(*map(abs, promised), *(abs(s.value) for s in slopes))
        for number, (said, slope) in enumerate(zip(promised, slopes, strict=True)):
            off, allowed = abs(said - slope.value), self.allowed[index] + 10 * slope.error
            if off <= allowed and (allowed <= SHOWN * size or size <= self.allowed[index]):
                continue
            way = "itself" if number == 0 and length > 0 else "a random direction"
            measured = (
                f"along {way} the loss changes by {slope.value:.6g} per unit, by the gradient {said:.6g} (central "
                f"differences of the whole solve, step {slope.step:.1e}, error about {slope.error:.1e})"
            )
            if off <= allowed:
                return f"undecided: {measured}"
            return f"{measured}; cosine {cosine(real_vector(ours), self.right[index])}"
        return ""

    def _raise(self, said: list[str], ours: list[torch.Tensor], which: str) -> None:
        """Raise where something was said of a gradient, with the mistake that explains it."""
        if not any(said):
            return
        subject = self.at.subject
        suspects = Suspects(self.at, self.g, self.right)
        lines, causes = [], dict[str, list[tuple[str, float]]]()
        for index, entry in enumerate(said):
            if entry:
                lines.append(f"  {subject.described(index)}: {entry}")
                cause, distance = suspects.explain(index, real_vector(ours[index]))
                causes.setdefault(cause, []).append((subject.names[index], distance))
        right = [name for name, entry in zip(subject.names, said, strict=True) if not entry]
        lines += [f"  right: {', '.join(right)}"] if right else []
        for cause, members in causes.items():
            worst = max(distance for _, distance in members)
            agreed = f" (it agrees to {worst:.0e})" if worst > 100 * subject.eps else ""
            lines.append(f"  {', '.join(name for name, _ in members)}: this is {cause}{agreed}.")
        if which:
            lines.append("  The backward solve knows the size of the loss: look for an absolute tolerance in it.")
        raise AssertionError(
            f"{NAME}: {sum(map(bool, said))} of {len(said)} gradients are wrong{which} ({self.described()}).\n"
            + "\n".join(lines)
        )


def cosine(a: Host, b: Host) -> str:
    """Return the cosine of two vectors, for a message."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return "undefined" if size == 0 else f"{float(a @ b) / size:.4f}"
