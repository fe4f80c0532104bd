"""What has to hold before gradients are compared: one map, a fixed point, a right derivative of the map itself."""

from __future__ import annotations

import torch

from implicitgrad.testing.layers.differences import slope_of_map, vjp_along
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.subject import NAME, Subject

__all__ = [
    "SHOWN",
    "assert_decidable",
    "assert_derivative_of_map",
    "assert_deterministic",
    "assert_fixed",
    "assert_regular",
]

SHOWN = 0.03  # a check whose tolerance is a larger part of the gradient shows nothing


def assert_deterministic(subject: Subject) -> None:
    """Assert that two calls of ``f`` agree."""
    first, again = subject(subject.start), subject(subject.start)
    gap = float(torch.linalg.vector_norm((first - again).detach()))
    if not gap <= 100 * subject.eps * float(torch.linalg.vector_norm(first.detach())):
        raise AssertionError(
            f"{NAME}: f is not one map: two calls at z0 differ by {gap:.1e}. Dropout left on? Call .eval(), or draw "
            "its mask outside and pass it as an argument."
        )


def assert_fixed(at: Linearization, rtol: float) -> None:
    """Assert that the layer's output is a fixed point."""
    if not at.residual <= rtol:
        raise AssertionError(
            f"{NAME}: the layer's output is no fixed point of f: norm(f(z) - z) = {at.residual:.1e} norm(f(z)), at "
            f"most {rtol:.1e} was expected, so there is no implicit gradient to compare with. Iterate longer, "
            "or pass as rtol= the tolerance that it is meant to have."
        )


def assert_derivative_of_map(at: Linearization, seed: int) -> None:
    """Compare the VJP of ``f`` with central differences: no implicit gradient is better than the map's own."""
    subject = at.subject
    v = subject.cotangent(seed + 1)
    for index in [None, *range(len(subject.tensors))]:
        tensor = at.point if index is None else subject.tensors[index]
        for draw in range(2):
            direction = subject.direction(tensor, seed + 100 + draw)
            promised = vjp_along(at, index, direction, v)
            slope = slope_of_map(at, index, direction, v)
            size = max(abs(promised), abs(slope.value))
            if abs(promised - slope.value) <= 10 * slope.error + 10 * subject.eps**0.5 * size:
                continue
            name = "its state z" if index is None else subject.described(index)
            zero = " Is there a detach() or no_grad() in f?" if promised == 0 else ""
            raise AssertionError(
                f"{NAME}: the derivative of f itself is wrong, with respect to {name}: along a random direction <v, f> "
                f"changes by {slope.value:.6g} per unit (central differences, step {slope.step:.1e}, error about "
                f"{slope.error:.1e}), its vjp says {promised:.6g}. No layer can make up for that.{zero} Look for a "
                "backward written by hand, and check f with torch.autograd.gradcheck."
            )


def assert_regular(amplified: float, eps: float) -> None:
    """Assert that ``I - J`` is invertible, as far as the dtype tells."""
    if not amplified * eps <= 1.0:
        raise AssertionError(
            f"{NAME}: I - J is singular at the fixed point (norm((I - J)^-1) = {amplified:.1e}, eps = {eps:.1e}): the "
            "fixed point is not isolated, and there is no implicit gradient to compare with. igt.diagnose says more."
        )


def assert_decidable(accuracy: float, amplified: float, size_of_adjoint: float) -> None:
    """Assert that solves to this accuracy leave little enough of the gradient open."""
    blurred = accuracy * amplified / max(size_of_adjoint, 1e-300)
    if not blurred <= SHOWN:
        raise AssertionError(
            f"{NAME}: undecided: norm((I - J)^-1) is {amplified:.2g}, so solves to a relative residual of "
            f"{accuracy:.1e} leave {100 * blurred:.2g}% of the gradient open, and no smaller mistake would be seen. "
            "Check in float64, or tighten the layer and say so with rtol=."
        )
