"""A sum of many terms of one Jacobian whose gradient is collected term by term, so that memory holds the graph of one.

``S(z, w) = sum_k s_k(J(z, w))``: backpropagating through the sum would keep the graphs of all ``s_k``. Here the forward
pass has the value already, and the backward pass linearizes the map once more and pulls the terms back one after the
other. Used by the adjoint of Golub-Kahan (a term a step) and by the exact Frobenius norm (a term a chunk of rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from implicitgrad.torch.regularizers.first_order import refuse_second
from implicitgrad.torch.regularizers.linearized import Linearized, MapAt

__all__ = ["streamed"]

Terms = Callable[[Linearized], Iterator[torch.Tensor]]


def streamed(function: MapAt, value: torch.Tensor, terms: Terms) -> torch.Tensor:
    """Return ``value``, one number a system, with the gradient of the sum of ``terms``.

    Parameters
    ----------
    function : MapAt
        The map, at its point.
    value : tensor, shape (...)
        What the sum comes to, without history.
    terms : callable
        Of a ``Linearized``, yields differentiable tensors ``(...)`` one by one; each is dropped before the next.

    Raises
    ------
    SettingError
        In the backward pass, for ``create_graph=True``: terms that are dropped cannot be differentiated again.
    """
    if not torch.is_grad_enabled():
        return value
    result: torch.Tensor = _Streamed.apply(function, terms, value, function.z, *function.tensors)
    return result


class _Streamed(torch.autograd.Function):
    """Forward: hand the value through. Backward: one linearization, and the terms one after the other."""

    @staticmethod
    def forward(function: MapAt, terms: Terms, value: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        # The function holds the tensors too; they are saved for the check of their versions.
        ctx.function, ctx.terms = inputs[:2]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_second(ctx.function.name)
        z, *tensors = ctx.saved_tensors  # raises torch's version error after an in-place change
        function, wanted = ctx.function, ctx.needs_input_grad[3:]
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            own = [t.detach().requires_grad_(need) for t, need in zip(tensors, wanted[1:], strict=True)]
            linearized = Linearized(point, function(point, *own))
            sources = [t for t, need in zip([point, *own], wanted, strict=True) if need]
            totals: list[torch.Tensor | None] = [None] * len(sources)
            for term in ctx.terms(linearized):
                if term.requires_grad:
                    parts = torch.autograd.grad(term, sources, g, retain_graph=True, allow_unused=True)
                    totals = [_sum(total, part) for total, part in zip(totals, parts, strict=True)]
        found = iter(totals)
        return (None, None, None, *(next(found) if need else None for need in wanted))


def _sum(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    return part if total is None else total if part is None else total + part
