"""Reference second derivatives: by two dense Newton steps that are differentiated, or by differences of gradients.

One Newton step ``z - (I - J)^-1 (z - f(z, w))`` from a constant ``z = z*`` has the exact first derivative with respect
to ``w``, a second step from there the exact second one, since Newton's method converges quadratically in the
derivatives too. Nothing in it knows of implicit differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from implicitgrad.testing.layers.differences import moved, step_for
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.subject import Host, Subject, pulled, real_vector

__all__ = ["by_differences", "by_newton", "frozen", "of_layer", "steps_along"]


def of_layer(
    subject: Subject, layer: Callable[..., Any], g: torch.Tensor, directions: Sequence[torch.Tensor]
) -> list[Host]:
    """Return what the layer's graph gives for ``d/dw <gradient, directions>``."""
    flat, _ = subject.solve(layer)
    return _twice(flat, subject.tensors, g, directions)


def by_newton(at: Linearization, g: torch.Tensor, directions: Sequence[torch.Tensor]) -> list[Host]:
    """Return the same by two Newton steps from the fixed point."""
    z = _newton_step(at.subject, at.point.detach().requires_grad_())
    return _twice(_newton_step(at.subject, z), at.subject.tensors, g, directions)


def frozen(at: Linearization, g: torch.Tensor, directions: Sequence[torch.Tensor]) -> list[Host]:
    """Return the usual mistake: fixed point and adjoint are constants, so only ``df/dw`` is differentiated."""
    return _twice(at.subject(at.point.detach()), at.subject.tensors, at.adjoint(g), directions)


def by_differences(
    subject: Subject, layer: Callable[..., Any], g: torch.Tensor, directions: Sequence[torch.Tensor]
) -> tuple[list[Host], list[float]]:
    """Return central differences of the layer's own gradient, one step being ``directions``, and their errors."""

    def gradients(shift: float) -> list[Host]:
        with ExitStack() as stack:
            for t, direction in zip(subject.tensors, directions, strict=True):
                stack.enter_context(moved(t, shift * direction))
            flat, _ = subject.solve(layer)
            return [real_vector(x) for x in pulled(flat, subject.tensors, g)]

    once, twice = ([(a - b) / (2 * h) for a, b in zip(gradients(h), gradients(-h), strict=True)] for h in (1.0, 2.0))
    return once, [float(np.linalg.norm(a - b)) for a, b in zip(once, twice, strict=True)]


def steps_along(at: Linearization, directions: Sequence[torch.Tensor], accuracy: float) -> list[torch.Tensor]:
    """Return the directions with the lengths that suit differences of gradients of this relative accuracy."""
    return [step_for(at, index, d, accuracy) * d for index, d in enumerate(directions)]


def _twice(
    flat: torch.Tensor, tensors: Sequence[torch.Tensor], g: torch.Tensor, directions: Sequence[torch.Tensor]
) -> list[Host]:
    first = pulled(flat, tensors, g, create_graph=True)
    inner = sum((a.conj() * d).real.sum() for a, d in zip(first, directions, strict=True))
    assert isinstance(inner, torch.Tensor)
    if not inner.requires_grad:
        return [0.0 * real_vector(t) for t in tensors]
    return [real_vector(x) for x in pulled(inner, tensors, torch.ones_like(inner))]


def _newton_step(subject: Subject, z: torch.Tensor) -> torch.Tensor:
    """Return ``z - (I - J)^-1 (z - f(z))``, differentiable; in pairs of real numbers for a complex state."""
    image = subject(z)
    gap = _pairs(z - image)
    rows = []
    for i in range(len(gap)):
        unit = torch.zeros_like(gap)
        unit[i] = 1.0
        cotangent = torch.view_as_complex(unit.reshape(-1, 2)) if z.is_complex() else unit
        rows.append(_pairs(pulled(image, [z], cotangent, create_graph=True)[0]))
    matrix = torch.eye(len(gap), dtype=gap.dtype, device=gap.device) - torch.stack(rows)
    step = torch.linalg.solve(matrix, gap)
    return z - (torch.view_as_complex(step.reshape(-1, 2)) if z.is_complex() else step)


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj()).reshape(-1) if x.is_complex() else x
