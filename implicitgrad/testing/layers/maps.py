"""Torch maps with known answers: a ``FixedPointMap`` on tensors, its state bare or nested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree
import torch

from implicitgrad.errors import ShapeError
from implicitgrad.testing.layers.subject import Host
from implicitgrad.testing.maps import FixedPointMap
from implicitgrad.torch.layout import Layout

__all__ = ["TorchMap", "torch_map"]


@dataclass(frozen=True)
class TorchMap:
    """A torch map with its known fixed point and gradient.

    Attributes
    ----------
    f : callable
        ``f(z, W, b)``; nested states are flattened inside.
    z0 : tensor or nested tensors
        Zeros: where a solver may start.
    args : tuple of tensor
        ``(W, b)``, which want gradients.
    z_star : tensor or nested tensors
        The fixed point.
    known : FixedPointMap
        The formulas.
    """

    f: Callable[..., Any]
    z0: Any
    args: tuple[torch.Tensor, torch.Tensor]
    z_star: Any
    known: FixedPointMap

    def gradient(self, g: Host) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(dL/dW, dL/db)`` for the flat cotangent ``g``, from the formula."""
        exact = self.known.gradient(g)
        return tuple(torch.as_tensor(exact[name]).to(like) for name, like in zip("Wb", self.args, strict=True))  # type: ignore[return-value]


def torch_map(known: FixedPointMap, like: Any = None, device: Any = None) -> TorchMap:
    """Return ``known`` as a torch map.

    Parameters
    ----------
    known : FixedPointMap
        From ``make_map``, ``map_of`` or the strategy ``fixed_point_maps``.
    like : nested arrays or tensors, optional
        The structure and the shapes of the state, ``known.size`` numbers altogether, as from the strategy ``pytrees``.
        Default: one tensor ``(n,)``.
    device : optional
        Of all tensors.

    Raises
    ------
    ShapeError
        ``like`` holds another count of numbers.

    Examples
    --------
    >>> import numpy as np, implicitgrad.torch as igt, implicitgrad.testing as igtest
    >>> made = torch_map(igtest.make_map("tanh", size=3, seed=0), like={"a": np.zeros(1), "b": np.zeros((2, 1))})
    >>> z = igt.fixed_point(made.f, made.z0, *made.args)
    >>> z["b"].shape
    torch.Size([2, 1])
    >>> torch.allclose(z["b"], made.z_star["b"])
    True
    """
    W, b, star = (torch.as_tensor(x, device=device) for x in (known.W, known.b, known.z_star))
    tree = known.z_star if like is None else like
    leaves, treespec = optree.tree_flatten(tree)
    state = optree.tree_unflatten(treespec, [torch.zeros(tuple(x.shape), dtype=W.dtype, device=device) for x in leaves])
    layout = Layout.of("torch_map", state, 0)
    if layout.size != known.size:
        raise ShapeError(f"torch_map: got a state of {layout.size} numbers, expected {known.size} as the map has.")

    def f(z: Any, W: torch.Tensor, b: torch.Tensor) -> Any:
        inner = W @ layout.ravel(z) + b
        return layout.unravel(torch.tanh(inner) if known.form == "tanh" else inner)

    args = (W.clone().requires_grad_(), b.clone().requires_grad_())
    return TorchMap(f, state, args, layout.unravel(star), known)
