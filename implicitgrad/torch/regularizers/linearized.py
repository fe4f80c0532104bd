"""The Jacobian of a map at a point, as products that carry their history: what a loss made of ``J`` is built from.

``J^H u`` and ``J v`` are tensors that depend on the arguments of the map, on what it captures, and on the point ``z``
itself. So the gradient of a loss made of them has both parts: the one through ``J`` and, where ``z = h*(w)`` comes out
of ``fixed_point`` with its history, the one through ``h*``. Used by every regularizer of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import optree
import torch

from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import VJPOperator
from implicitgrad.torch.captured import captured_leaves
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.operators import jacobian_of

__all__ = ["FlatMap", "Linearized"]


class FlatMap:
    """``f`` as a map of a flat state ``(..., n)`` and of the tensors among its arguments.

    Parameters
    ----------
    name : str
        Opens the error messages.
    f : callable
        ``f(z, *args)`` returns a state like ``z``.
    z : tensor, or nested tuples, lists and dicts of tensors
        The point; ``self.z`` is the flat form, with its history.
    args : tuple
        Further arguments of ``f``; ``self.tensors`` are the tensors in them.
    batch_ndim : int
        How many leading axes count independent systems.
    """

    def __init__(self, name: str, f: Callable[..., Any], z: Any, args: tuple[Any, ...], batch_ndim: int) -> None:
        if not callable(f):
            raise SettingTypeError(f"{name}: got f of type {type(f).__qualname__}, expected a callable f(z, *args).")
        self.name = name
        self.layout = layout = Layout.of(name, z, batch_ndim)
        leaves, treespec = optree.tree_flatten(cast(Any, args))
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # The map may be evaluated again in a backward pass, which autograd runs without this call's autocast.
        device = layout.device.type
        cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

        def evaluate(flat: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            arguments = cast(tuple[Any, ...], optree.tree_unflatten(treespec, filled))
            if cast_to is None:
                return layout.ravel_output(name, f(layout.unravel(flat), *arguments))
            with torch.autocast(device, dtype=cast_to, cache_enabled=False):
                return layout.ravel_output(name, f(layout.unravel(flat), *arguments))

        self._evaluate = evaluate
        self.z = layout.ravel(z)

    def __call__(self, flat: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``f`` of a flat state, with ``tensors`` in the places of the tensors among the arguments."""
        return self._evaluate(flat, tensors)

    def captured(self) -> list[torch.Tensor]:
        """Return the leaves that ``f`` depends on besides its arguments, from one more evaluation."""
        with torch.enable_grad():
            point = self.z.detach().requires_grad_()
            marker = point + 0
            own = [t.detach() for t in self.tensors]
            image = self(point, *own)
        return captured_leaves(self.name, image, marker, [point, *own])

    def linearized(self) -> Linearized:
        """Return the Jacobian at ``z`` with everything that it depends on."""
        with torch.enable_grad():
            # A view that only this evaluation sees: derivatives with respect to it are partial ones, even where an
            # argument of f was computed from z, and what arrives at it goes on into the history of z.
            z = self.z
            point = z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
            return Linearized(point, self(point, *self.tensors))


class Linearized:
    """``J = d image / d point`` for two flat tensors ``(..., n)``.

    Products have a history, and are differentiable to any order, where gradients are enabled; vectors have the shape of
    the point, or one more axis in front: then one call serves all.
    """

    def __init__(self, point: torch.Tensor, image: torch.Tensor) -> None:
        self.point, self.image = point, image
        self._pullback: tuple[torch.Tensor, torch.Tensor] | None = None

    def vjp(self, u: torch.Tensor) -> torch.Tensor:
        """Return ``J^H u``, one VJP."""
        return _gradient(self.image, self.point, u)

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """Return ``J v``, as the transpose of ``u -> J^H u``: another VJP on the graph of the first."""
        if self._pullback is None:
            with torch.enable_grad():
                u = torch.zeros_like(self.image, requires_grad=True)
                self._pullback = u, self.vjp(u)
        u, product = self._pullback
        return _gradient(product, u, v)

    def operator(self) -> VJPOperator:
        """Return the same Jacobian as an operator for solvers, whose products carry no history."""
        return jacobian_of(self.image, self.point)


def _gradient(output: torch.Tensor, source: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Return the pull-back of ``cotangent``, or of each of many; 0 where the output does not depend on the source."""
    many = cotangent.ndim > output.ndim
    if many and cotangent.shape[0] == 1:  # without vmap, for which some operators have no rule
        return _gradient(output, source, cotangent[0]).unsqueeze(0)
    if not output.requires_grad:
        return torch.zeros_like(cotangent)
    (product,) = torch.autograd.grad(
        output,
        source,
        cotangent,
        create_graph=torch.is_grad_enabled(),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=many,
    )
    return torch.zeros_like(cotangent) if product is None else product
