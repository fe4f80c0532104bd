"""What is under test: a map ``f``, its state, and every tensor that a gradient is owed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import optree
import torch

from implicitgrad.testing.layers.names import name_of_captured, names_of_arguments
from implicitgrad.torch.engine.captured import Observed
from implicitgrad.torch.layout import Layout

__all__ = ["Subject", "pulled", "real_vector"]

Host = Any  # a NumPy array, in double precision and real: a complex number counts as two
NAME = "assert_implicit_gradient"


class Subject:
    """A map with its arguments on leaves of our own, so that nobody's ``.grad`` is touched.

    Parameters
    ----------
    f : callable
        ``f(z, *args)``.
    z0 : tensor or nested tensors
        A state.
    args : tuple
        Floating-point tensors in it are replaced by detached copies that want a gradient.

    Attributes
    ----------
    tensors, names : list
        The copies among ``args`` first, then what ``f`` captures; both are complete once ``look`` was called.
    """

    def __init__(self, f: Callable[..., Any], z0: Any, args: tuple[Any, ...]) -> None:
        self.f = f
        self.layout = Layout.of(NAME, z0, 0)
        self.start = self.layout.ravel(z0).detach().clone()
        leaves, treespec = optree.tree_flatten(cast(Any, args))
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []
        own = []
        for leaf, name in zip(leaves, names_of_arguments(args), strict=True):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and _is_number(leaf):
                leaf = leaf.detach().clone().requires_grad_()
                self.tensors.append(leaf)
                self.names.append(name)
            own.append(leaf)
        self.args = cast(tuple[Any, ...], optree.tree_unflatten(treespec, own))
        self._arguments = list(self.tensors)
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """Return ``f`` of a flat state, flat."""
        return self.layout.ravel_output(NAME, self.f(self.layout.unravel(flat), *self.args))

    def look(self, flat: torch.Tensor) -> None:
        """Call ``f`` once to find the tensors that it captures, and the buffers that it writes to."""
        point = flat.detach().clone().requires_grad_()
        seen = Observed([point, *self._arguments])
        with seen:
            image = self(point)
        known = {id(t) for t in self.tensors}
        for t in seen.reached(NAME, image):
            if id(t) not in known and _is_number(t):
                self.tensors.append(t)
                self.names.append(name_of_captured(self.f, t))
        if not self._written:
            self._written = seen.written

    def restore(self) -> None:
        """Put the buffers back that ``f`` has written to: running statistics."""
        with torch.no_grad():
            for t, before in self._written:
                t.copy_(before)

    def solve(self, layer: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's flat output and the flat start that it was given, which wants a gradient too."""
        start = self.start.clone().requires_grad_()
        output = layer(self.f, self.layout.unravel(start.clone()), *self.args)
        leaves, treespec = optree.tree_flatten(output)
        shapes = [tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__ for leaf in leaves]
        expected = [tuple(shape) for shape in self.layout.shapes]
        if treespec != self.layout.treespec or shapes != expected:
            raise AssertionError(
                f"{NAME}: the layer returned {treespec} with leaves {shapes}, expected a state like z0, "
                f"{self.layout.treespec} with leaves {expected}. Take the state out: layer=lambda f, z0, *args: ...[0]"
            )
        return self.layout.ravel(output), start

    def cotangent(self, seed: int) -> torch.Tensor:
        """Return a random flat cotangent of norm one."""
        return self.direction(self.start, seed)

    def direction(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        """Return a random tensor of norm one of the kind of ``like``."""
        draw = self.draw(like.detach(), seed)
        return draw / max(float(torch.linalg.vector_norm(draw)), 1e-300)

    def draw(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        """Return standard normal numbers of the kind of ``like``, drawn on the host: the same on every device."""
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(like.shape)
        if like.is_complex():
            values = values + 1j * rng.standard_normal(like.shape)
        return torch.as_tensor(values).to(dtype=like.dtype, device=like.device)

    @property
    def eps(self) -> float:
        """Spacing at 1 of the state's dtype."""
        return float(torch.finfo(self.layout.dtype).eps)

    def described(self, index: int) -> str:
        """Return name and shape of a tensor."""
        return f"{self.names[index]}, shape {tuple(self.tensors[index].shape)}"


def pulled(
    image: torch.Tensor, inputs: Sequence[torch.Tensor], cotangent: torch.Tensor, create_graph: bool = False
) -> list[torch.Tensor]:
    """Return the gradients of ``<cotangent, image>``, zeros where ``image`` does not depend on an input."""
    if not image.requires_grad or not inputs:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(
        image, list(inputs), cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def real_vector(x: torch.Tensor) -> Host:
    """Return a tensor as a real vector in double precision on the host; a complex number is two entries."""
    x = x.detach()
    parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return parts.reshape(-1).to(device="cpu", dtype=torch.float64).numpy()


def _is_number(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
