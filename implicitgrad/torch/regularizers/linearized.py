"""The Jacobian of a map at a point, as products that carry their history: what a loss made of ``J`` is built from.

``J^H u`` and ``J v`` are tensors that depend on the arguments of the map, on what it captures, and on the point ``z``
itself. So the gradient of a loss made of them has both parts: the one through ``J`` and, where ``z = h*(w)`` comes out
of ``fixed_point`` with its history, the one through ``h*``. Used by every regularizer of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.errors import SettingTypeError
from implicitgrad.operators import VJPOperator
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.engine.graph import is_transformed
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Linearized", "MapAt"]


class MapAt:
    """``f`` as one fixed function of flat tensors, and the point where its Jacobian is wanted.

    Parameters
    ----------
    name : str
        Opens the error messages.
    f : callable
        ``f(z, *args)`` returns a state like ``z``. Called once here, to see what it depends on; dropout keeps the mask
        of that call, and batch normalization its statistics.
    z : tensor, or nested tuples, lists and dicts of tensors
        The point.
    args : tuple
        Further arguments of ``f``.
    batch_ndim : int
        How many leading axes count independent systems.

    Attributes
    ----------
    z : tensor, shape (..., n)
        The point, flat, with its history.
    tensors : list of tensor
        What ``f`` depends on besides: tensors among the arguments, and captured ones.
    size : int
        ``n``.
    """

    def __init__(self, name: str, f: Callable[..., Any], z: Any, args: tuple[Any, ...], batch_ndim: int) -> None:
        if is_transformed():
            raise SettingTypeError(
                f"{name}: got a call inside a torch.func transform (grad, vjp, jvp, vmap), expected plain tensors: the "
                "search decides by values that a transform hides. Use torch.autograd.grad, and batch_ndim for a batch."
            )
        layout = Layout.of(name, z, batch_ndim)
        self.name, self.size = name, layout.size
        self._function = FlatFunction(name, f, layout, args)
        self.z = layout.ravel(z)
        image = self._function.observe(self.z)
        self._function.warn_of_other_draws(self.z, image)
        self.tensors = self._function.tensors

    def __call__(self, z: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Return ``f`` of a flat state, with ``tensors`` in the places of ``self.tensors``."""
        return self._function(z, *tensors)

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
