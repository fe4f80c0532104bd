"""Reference second derivatives: by two dense Newton steps that are differentiated, or by differences of gradients.

One Newton step ``z - (I - J)^-1 (z - f(z, w))`` from a constant ``z = z*`` has the exact first derivative with respect
to ``w``, a second step from there the exact second one, since Newton's method converges quadratically in the
derivatives too. Nothing in it knows of implicit differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from implicitgrad.testing.layers.differences import moved, step_for
from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.subject import Host, Subject, pulled, real_vector

__all__ = ["Loss", "by_differences", "by_newton", "frozen", "of_layer", "steps_along"]


@dataclass(frozen=True)
class Loss:
    """``Re <g, z> + norm(z)**2 / (2 size)``: its cotangent moves with ``z``, so no path of a second derivative is idle.

    A linear loss has a constant cotangent, which ``once_differentiable`` lets pass without a word.
    """

    g: torch.Tensor
    size: float

    @classmethod
    def at(cls, at: Linearization, g: torch.Tensor) -> Loss:
        """Return a loss whose two parts have cotangents of norm one at the fixed point."""
        size = float(torch.linalg.vector_norm(at.point.detach()))
        return cls(g, size if size > 0 else 1.0)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Return the loss of a flat state."""
        return (self.g.conj() * z).real.sum() + z.abs().square().sum() / (2 * self.size)

    def cotangent(self, z: torch.Tensor) -> torch.Tensor:
        """Return its gradient with respect to ``z``."""
        return self.g + z.detach() / self.size


def of_layer(
    subject: Subject, layer: Callable[..., Any], loss: Loss, directions: Sequence[torch.Tensor]
) -> tuple[list[Host], bool]:
    """Return what the layer's graph gives for ``d/dw <gradient, directions>``, and whether it holds a refusal.

    ``once_differentiable`` puts an error into the graph, which ``backward()`` meets, but ``torch.autograd.grad`` for
    given inputs steps around: no input lies behind it.
    """
    flat, _ = subject.solve(layer)
    inner = _slope(loss(flat), subject.tensors, directions)
    found = pulled(inner, subject.tensors, torch.ones_like(inner))
    return [real_vector(x) for x in found], any(node.name().endswith("::Error") for node in _nodes(inner))


def by_newton(at: Linearization, loss: Loss, directions: Sequence[torch.Tensor]) -> list[Host]:
    """Return the same by two Newton steps from the fixed point."""
    z = _newton_step(at.subject, at.point.detach().requires_grad_())
    return _along_twice(loss(_newton_step(at.subject, z)), at.subject.tensors, directions)


def frozen(at: Linearization, loss: Loss, directions: Sequence[torch.Tensor]) -> list[Host]:
    """Return the usual mistake: fixed point and adjoint are constants, so only ``df/dw`` is differentiated."""
    z = at.point.detach()
    u = at.adjoint(loss.cotangent(z))
    return _along_twice((u.conj() * at.subject(z)).real.sum(), at.subject.tensors, directions)


def by_differences(
    subject: Subject, layer: Callable[..., Any], loss: Loss, directions: Sequence[torch.Tensor]
) -> tuple[list[Host], list[float]]:
    """Return central differences of the layer's own gradient, one step being ``directions``, and their errors."""

    def gradients(shift: float) -> list[Host]:
        with ExitStack() as stack:
            for t, direction in zip(subject.tensors, directions, strict=True):
                stack.enter_context(moved(t, shift * direction))
            flat, _ = subject.solve(layer)
            return [real_vector(x) for x in pulled(flat, subject.tensors, loss.cotangent(flat))]

    once, twice = ([(a - b) / (2 * h) for a, b in zip(gradients(h), gradients(-h), strict=True)] for h in (1.0, 2.0))
    return once, [float(np.linalg.norm(a - b)) for a, b in zip(once, twice, strict=True)]


def steps_along(at: Linearization, directions: Sequence[torch.Tensor], accuracy: float) -> list[torch.Tensor]:
    """Return the directions with the lengths that suit differences of gradients of this relative accuracy."""
    return [step_for(at, index, d, accuracy) * d for index, d in enumerate(directions)]


def _slope(value: torch.Tensor, tensors: Sequence[torch.Tensor], directions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``<d value/dw, directions>`` with its graph."""
    first = pulled(value, tensors, torch.ones_like(value), create_graph=True)
    return sum(((a.conj() * d).real.sum() for a, d in zip(first, directions, strict=True)), torch.zeros_like(value))


def _along_twice(
    value: torch.Tensor, tensors: Sequence[torch.Tensor], directions: Sequence[torch.Tensor]
) -> list[Host]:
    """Return ``d/dw <d value/dw, directions>``."""
    inner = _slope(value, tensors, directions)
    return [real_vector(x) for x in pulled(inner, tensors, torch.ones_like(inner))]


def _nodes(value: torch.Tensor) -> Iterator[Any]:
    """Yield the nodes of a graph."""
    seen: set[Any] = set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(following for following, _ in node.next_functions)


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
