"""Torch maps with known fixed points and Jacobians, and the settings under which gradients are exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")
optree = pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tight():
    """Both solves to rounding, so that gradients can be compared with finite differences."""
    return {"solver": igt.Anderson(rtol=1e-14), "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}


@dataclass(frozen=True)
class Problem:
    """A contractive map ``f(z, *args)``, a start, and arguments that want gradients."""

    f: Callable[..., Any]
    z0: Any
    args: tuple[Any, ...]
    batch_ndim: int = 0

    def layer(self, **settings):
        """Return ``args -> leaves of the fixed point``, as a tuple."""
        tight = {"solver": igt.Anderson(rtol=1e-14), "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}
        settings = {**tight, "batch_ndim": self.batch_ndim, **settings}
        return lambda *args: tuple(optree.tree_leaves(igt.fixed_point(self.f, self.z0, *args, **settings)))

    def unrolled(self, *args, steps=150):
        """Return what ``layer`` does, by iterating: back-propagation through time at its limit."""
        z = self.z0
        for _ in range(steps):
            z = self.f(z, *args)
        return tuple(optree.tree_leaves(z))


def _real(*shape, scale=1.0):
    return (scale * torch.randn(shape, dtype=DOUBLE)).requires_grad_()


def _tanh():
    f = lambda z, W, x: torch.tanh(z @ W.mT + x)
    return Problem(f, torch.zeros(2, 3, dtype=DOUBLE), (_real(3, 3, scale=0.3), _real(2, 3)), batch_ndim=1)


def _gru():
    """A gated recurrent unit run to rest on a constant input, as in the paper's graph networks."""
    rest = [torch.randn(6, 2, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE)]
    f = lambda z, W, x: torch.gru_cell(x, z, rest[0], 0.4 * W, rest[1], rest[2])
    return Problem(f, torch.zeros(1, 2, dtype=DOUBLE), (_real(6, 2), _real(1, 2)), batch_ndim=1)


def _convolution():
    f = lambda z, w, x: 0.4 * torch.nn.functional.group_norm(torch.conv2d(torch.tanh(z), w, padding=1, groups=2) + x, 1)
    return Problem(f, torch.zeros(1, 2, 2, 2, dtype=DOUBLE), (_real(2, 1, 3, 3, scale=0.3), _real(1, 2, 2, 2)))


def _attention():
    def f(z, W, x):
        query, key, value = (z @ W.mT).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.mT / 3**0.5, dim=-1)
        return 0.3 * torch.nn.functional.layer_norm(weights @ value + x, (3,)) + 0.1 * x

    return Problem(f, torch.zeros(1, 2, 3, dtype=DOUBLE), (_real(9, 3, scale=0.4), _real(1, 2, 3)), batch_ndim=1)


def _coupled():
    """Three tensors of different shapes in a dict and a tuple, each a function of the others."""

    def f(z, p):
        a, (b, c) = z["a"], z["bc"]
        return {
            "a": torch.tanh(0.4 * b.sum() + p["p"][0] * (c + 1)),
            "bc": (torch.sin(0.3 * a[:2, None] * p["p"][1]), 0.5 * a.mean() + 0.2 * b.prod() * p["q"]),
        }

    z0 = {"a": torch.zeros(3, dtype=DOUBLE), "bc": (torch.zeros(2, 1, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE))}
    # Arguments of gradcheck are flat; the map gets them nested.
    g = lambda z, p, q, scale: f(z, {"p": [p, scale], "q": q})
    return Problem(g, z0, (_real(3), _real(), _real()))


def _scalar():
    f = lambda z, a, b: torch.cos(a * z) * 0.6 + b
    return Problem(f, torch.zeros((), dtype=DOUBLE), (_real(), _real()))


def _complex():
    """Holomorphic in the state: J is linear over the complex numbers."""
    W = (0.2 * torch.randn(2, 2, dtype=torch.complex128)).requires_grad_()
    b = (0.3 * torch.randn(2, dtype=torch.complex128)).requires_grad_()
    return Problem(lambda z, W, b: torch.sin(z @ W.mT + b), torch.zeros(2, dtype=torch.complex128), (W, b))


MAPS = {
    "tanh": _tanh,
    "gru": _gru,
    "convolution": _convolution,
    "attention": _attention,
    "coupled": _coupled,
    "scalar": _scalar,
    "complex": _complex,
}


@pytest.fixture(params=MAPS)
def problem(request, _seeded):
    """Each of the maps in turn."""
    return MAPS[request.param]()


@pytest.fixture
def maps(_seeded):
    """All of them, as functions by name."""
    return MAPS
