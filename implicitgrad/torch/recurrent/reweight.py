"""The identity whose derivative is a number: what passes back through it is multiplied, the value keeps every bit."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["reweighted"]


class _Reweighted(torch.autograd.Function):
    """``z -> z`` with the Jacobian ``factor I``; linear, so its derivatives of any order are its own formula again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: torch.Tensor, factor: float) -> torch.Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None]:
        return cotangent * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        scaled: torch.Tensor = tangent * ctx.factor
        return scaled


def reweighted(z: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``z``, through which cotangents and tangents are multiplied by ``factor``."""
    reweighted: torch.Tensor = _Reweighted.apply(z, factor)
    return reweighted
