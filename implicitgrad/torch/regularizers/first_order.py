"""Gradients that are taken at frozen vectors have no second derivative: where one is asked for, that is said.

By Hellmann-Feynman ``d lambda = v^H dA v``, at vectors that are constants to autograd. They do depend on the
parameters, so a Hessian through this formula would lack its largest term, without a sound.
"""

from __future__ import annotations

from typing import Any

import torch

from implicitgrad.errors import SettingError

__all__ = ["first_order_only", "refuse_second"]


def first_order_only(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return ``value``; a backward pass with ``create_graph=True`` raises a sentence that begins with ``name``."""
    result: torch.Tensor = _FirstOrder.apply(name, value)
    return result


def refuse_second(name: str) -> None:
    """Raise in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise SettingError(
            f"{name}: got a second derivative (create_graph=True), expected a first one: this gradient is taken at "
            "frozen vectors, and differentiating it again would give a wrong Hessian. Use "
            "lambda_min(..., method='unrolled'), which is differentiable again."
        )


class _FirstOrder(torch.autograd.Function):
    """The identity, once differentiable."""

    @staticmethod
    def forward(name: str, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[None, torch.Tensor]:
        refuse_second(ctx.name)
        return None, g
