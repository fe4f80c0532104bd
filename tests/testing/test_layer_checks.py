"""``assert_implicit_gradient``: passes on right layers, maps and states of many kinds."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
optree = pytest.importorskip("optree")

import broken_layers
from broken_layers import RIGHT, problem

import implicitgrad.torch as igt
from implicitgrad.testing import assert_implicit_gradient
from implicitgrad.testing import strategies as igst
from implicitgrad.testing.layers import torch_map

DOUBLE = torch.float64


# -- what is right passes ----------------------------------------------------------------------------------------------
@settings(max_examples=10)
@given(
    known=igst.fixed_point_maps(norm=st.floats(0.0, 0.6), dtypes=["float64", "complex128", "float32"], max_size=5),
    data=st.data(),
)
def test_our_layer_passes_on_maps_and_states_of_every_shape(known, data):
    """And its gradient is that of the formula."""
    made = torch_map(known, like=data.draw(igst.pytrees(size=known.size, dtype=str(known.W.dtype))))
    assert_implicit_gradient(made.f, made.z0, *made.args, order=2 if known.W.dtype != np.float32 else 1)
    leaves = optree.tree_leaves(igt.fixed_point(made.f, made.z0, *made.args))
    gradients = torch.autograd.grad(sum(leaf.sum().real for leaf in leaves), made.args)
    for ours, exact in zip(gradients, made.gradient(np.ones(known.size, known.W.dtype)), strict=True):
        size = torch.linalg.vector_norm(exact)
        assert torch.linalg.vector_norm(ours - exact) <= 2e-3 * size if exact.dtype == torch.float32 else 1e-6 * size


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_layers_pass(name):
    assert_implicit_gradient(*problem(), layer=RIGHT[name], order=2 if name in ("bptt", "by hand") else 1)


def test_modules_captured_parameters_and_buffers():
    """Parameters are found and named; running statistics are as before; no ``.grad`` is touched."""
    torch.manual_seed(0)
    cell = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh()).double()
    cell[0].weight.data *= 0.3
    x = torch.randn(5, 6, dtype=DOUBLE)
    kept = {name: t.clone() for name, t in cell.state_dict().items()}
    f = lambda z, x: 0.5 * cell(z) + x
    assert_implicit_gradient(f, torch.zeros_like(x), x)  # the bias before the normalization has no effect: zero
    assert all(torch.equal(t, kept[name]) for name, t in cell.state_dict().items())
    assert all(p.grad is None for p in cell.parameters())
    with pytest.raises(AssertionError) as caught:
        assert_implicit_gradient(f, torch.zeros_like(x), x, layer=broken_layers.one_step)
    for name in ("args[0]", "cell.0.weight", "cell.1.weight"):
        assert re.search(rf"\n  {re.escape(name)}, shape \S.*: off by 0\.\d", str(caught.value))


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3).double()

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z) + x)

    def method(self, z, x):
        return self.forward(z, x)


@pytest.mark.parametrize("form", ["module", "method", "partial", "computed"])
def test_captured_tensors_have_names(form):
    torch.manual_seed(0)
    cell, x = Cell(), torch.randn(3, dtype=DOUBLE)
    S = torch.randn(3, 3, dtype=DOUBLE, requires_grad=True)
    W = 0.1 * (S + S.T)  # computed before the call: its gradient is owed to it
    f, name = {
        "module": (cell, "inner.weight"),
        "method": (cell.method, "self.inner.weight"),
        "partial": (
            functools.partial(lambda z, x, weight: torch.tanh(weight @ z + x), weight=S.detach().requires_grad_()),
            "weight",
        ),
        "computed": (lambda z, x: torch.tanh(W @ z + x), "W"),
    }[form]
    assert_implicit_gradient(f, torch.zeros_like(x), x, order=2)
    with pytest.raises(AssertionError, match=rf"\n  {re.escape(name)}, shape \(3, 3\): off by"):
        assert_implicit_gradient(f, torch.zeros_like(x), x, layer=broken_layers.one_step)


def test_maps_that_expand_or_have_kinks_or_few_numbers():
    x = torch.randn(4, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    assert_implicit_gradient(lambda z, x: -1.3 * z + x + 0.1 * torch.sin(z), torch.zeros_like(x), x, order=2)
    _, z0, W, x = problem(16, norm=0.9)
    assert_implicit_gradient(lambda z, W, x: torch.relu(W @ z + x), z0, W, x, order=2)
    assert_implicit_gradient(
        lambda z, a: 0.5 * torch.cos(a * z), torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    )
    assert_implicit_gradient(lambda z, x: x.clone(), z0, x, order=2)  # J = 0
    assert_implicit_gradient(lambda z, x: 0.5 * z + x, z0, x, order=2)  # a second derivative of zero
    assert_implicit_gradient(lambda z: 0.5 * torch.cos(z), z0)  # nothing to differentiate by


def test_a_map_that_is_not_holomorphic_is_taken_as_two_real_ones():
    """BPTT is right there; J is linear over the real numbers only."""
    x = torch.randn(3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    f = lambda z, x: 0.3 * z.conj() * z.abs() / (1 + z.abs()) + x
    layer = lambda f, z, x: broken_layers.unrolled_from_the_start(f, z, x)
    assert_implicit_gradient(f, torch.zeros_like(x), x, layer=layer)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_large_states_are_checked_by_differences_of_the_whole_solve(dtype):
    args = problem(40, dtype)
    assert_implicit_gradient(*args, method="differences", order=2 if dtype == DOUBLE else 1)
    words = r"along itself the loss changes by \d\S+ per unit, by the gradient \d\S+ \(central differences of the whole"
    with pytest.raises(AssertionError, match=rf"args\[0\], shape \(40, 40\): {words}(.|\n)*one-step gradient"):
        assert_implicit_gradient(*args, method="differences", layer=broken_layers.one_step)


def test_above_512_numbers_differences_are_the_default():
    n = 600
    x = torch.linspace(-1, 1, n, dtype=DOUBLE)
    f = lambda z, x: 0.5 * torch.tanh(z.roll(1)) + x
    assert_implicit_gradient(f, torch.zeros_like(x), x)
    with pytest.raises(AssertionError, match=r"n = 600, .* by differences\)(.|\n)*Neumann series cut after K = 3"):
        assert_implicit_gradient(f, torch.zeros_like(x), x, layer=broken_layers.four_steps)


def test_differences_find_wrong_second_derivatives_too():
    with pytest.raises(
        AssertionError, match=r"second derivatives are wrong \(.*differences of the layer's own gradient"
    ):
        assert_implicit_gradient(*problem(12), method="differences", layer=broken_layers.by_hook, order=2)
