"""The derivative of a map of several tensors, applied forwards and backwards, and differentiable in turn.

Used by the implicit function theorem (``equations.py``, ``implicit.py``), which differentiates its own systems. Plain
tensors go through ``torch.autograd.grad`` on one graph; under a ``torch.func`` transform, where no tensor can be told
to require a gradient, through ``torch.func.vjp``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from implicitgrad.torch.engine.graph import is_transformed

__all__ = ["linearized", "pulled_back", "push_forward"]

PullBack = Callable[[torch.Tensor], tuple[torch.Tensor | None, ...]]


def linearized(function: Callable[..., torch.Tensor], *points: torch.Tensor) -> tuple[torch.Tensor, PullBack]:
    """Return ``function(*points)`` and the map ``u -> (d function / d points)^H u``.

    What the map returns is a differentiable function of ``u``, of the points that require gradients, and of what
    ``function`` depends on besides. Points of integers and bools (indices, masks) have no derivative: None.
    """
    smooth = [t.is_floating_point() or t.is_complex() for t in points]
    variables = [t for t, varies in zip(points, smooth, strict=True) if varies]

    def of_variables(*values: torch.Tensor) -> torch.Tensor:
        given = iter(values)
        return function(*(next(given) if varies else t for t, varies in zip(points, smooth, strict=True)))

    def to_all(pulled: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        given = iter(pulled)
        return tuple(next(given) if varies else None for varies in smooth)

    if is_transformed():
        transformed: Any = torch.func.vjp(of_variables, *variables)
        return transformed[0], lambda u: to_all(transformed[1](u))
    with torch.enable_grad():
        sources = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in variables]
        image = of_variables(*sources)

    def on_graph(u: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pulled = pulled_back(image, sources, u, create_graph=True)
        return to_all([torch.zeros_like(t) if p is None else p for t, p in zip(sources, pulled, strict=True)])

    return image, on_graph


def push_forward(
    function: Callable[..., torch.Tensor], points: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return ``(d function / d points) tangents``, differentiable as ``linearized`` is.

    The transpose of the linear map ``u -> (d function / d points)^H u``. Forward-mode AD would do it too, but costs ten
    times as much (a product with a plain operand pays for a zero tangent), and does not nest.
    """
    with torch.enable_grad():
        image, pull_back = linearized(function, *points)
        paired, transpose = linearized(lambda u: _paired(pull_back(u), tangents), torch.zeros_like(image))
        (pushed,) = transpose(torch.ones_like(paired))  # complex where a tangent is, even if the image is real
    assert pushed is not None
    return pushed


def _paired(pulled: Sequence[torch.Tensor | None], tangents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``sum <tangents, pulled>``: linear in ``u``, with the push-forward as its gradient."""
    total = tangents[0].new_zeros(())
    for p, t in zip(pulled, tangents, strict=True):
        if p is not None:
            total = total + (t.conj() * p).sum()
    return total


def pulled_back(
    image: torch.Tensor, sources: Sequence[torch.Tensor], cotangent: torch.Tensor, create_graph: bool = False
) -> tuple[Any, ...]:
    """Return ``(d image / d sources)^H cotangent`` on the graph of ``image``; None where there is no path."""
    if not image.requires_grad or not sources:
        return (None,) * len(sources)
    pulled: tuple[Any, ...] = torch.autograd.grad(
        image, sources, cotangent, allow_unused=True, create_graph=create_graph
    )
    return pulled
