"""Second derivatives of a layer against a reference that knows nothing of implicit differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from implicitgrad.testing.layers import second
from implicitgrad.testing.layers.comparison import Comparison, cosine
from implicitgrad.testing.layers.subject import NAME

__all__ = ["assert_second_derivatives"]

_DENSE = 128  # numbers of state up to which Newton's steps are differentiated: their graph holds as many VJPs
_SHOWN = 0.3  # wrong second derivatives are off by a large part, so a rough comparison still shows something


def assert_second_derivatives(comparison: Comparison, layer: Callable[..., Any]) -> None:
    """Assert ``d/dw <dL/dw, d>`` of a layer whose first derivatives are right, for random unit ``d`` of each tensor."""
    at, subject = comparison.at, comparison.at.subject
    loss = second.Loss.at(at, comparison.g)
    directions = [subject.direction(t, comparison.seed + 500 + index) for index, t in enumerate(subject.tensors)]
    dense = at.dense and subject.start.numel() <= _DENSE
    accuracy = comparison.accuracy + 64 * subject.eps
    if not dense:
        directions = second.steps_along(at, directions, accuracy)
    try:
        ours, marked = second.of_layer(subject, layer, loss, directions)
    except RuntimeError as error:
        raise AssertionError(
            f"{NAME}: the first derivatives are right, a second one is refused: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if dense:
        right, errors = second.by_newton(at, loss, directions), [0.0] * len(ours)
    else:
        right, errors = second.by_differences(subject, layer, loss, directions)
    total = max((float(np.linalg.norm(x)) for x in right), default=0.0)
    growth = max(comparison.amplified, 1.0) ** 2  # two solves in a row
    frozen = second.frozen(at, loss, directions)
    lines, constant = [], []
    for index, (mine, exact, blur) in enumerate(zip(ours, right, errors, strict=True)):
        size, off = float(np.linalg.norm(exact)), float(np.linalg.norm(mine - exact))
        allowed = 32 * accuracy * growth * max(size, 0.03 * total) + 10 * blur
        if allowed > _SHOWN * total > 0:
            raise AssertionError(
                f"{NAME}: undecided: the second derivatives with respect to {subject.described(index)} are known to "
                f"{allowed / total:.1e} of their norm only, at this accuracy ({accuracy:.1e}). Check in float64, or "
                "tighten the layer and say so with rtol=."
            )
        if off <= allowed:
            continue
        relative = max(size, allowed)
        lines.append(
            f"  {subject.described(index)}: off by {off / relative:.2g} of its norm, expected at most "
            f"{allowed / relative:.1e}; cosine {cosine(mine, exact)}"
        )
        if np.linalg.norm(mine - frozen[index]) <= min(1e-3, 0.03 * off / relative) * np.linalg.norm(mine):
            constant.append(subject.names[index])
    if not lines:
        return
    wrong = len(lines)
    if constant:
        lines.append(
            f"  {', '.join(constant)}: this is the derivative with the fixed point and the adjoint held constant."
        )
    if marked:
        lines.append(
            "  once_differentiable: backward() raises here, but torch.autograd.grad steps around it without a word."
        )
    way = "two dense Newton steps, differentiated" if dense else "differences of the layer's own gradient"
    raise AssertionError(
        f"{NAME}: the first derivatives are right, {wrong} of {len(ours)} second derivatives are wrong "
        f"({comparison.described(way)}).\n" + "\n".join(lines) + "\n  Fixed point and adjoint depend on the "
        "parameters too, so the backward solve needs a graph of its own. Give it one, or raise in backward where "
        "torch.is_grad_enabled()."
    )
