"""``assert_implicit_gradient``: passes on right layers of many kinds, and names each planted fault."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
optree = pytest.importorskip("optree")

import broken_layers
from broken_layers import FAULTS, RIGHT, SECOND

import implicitgrad as ig
import implicitgrad.testing as igtest
import implicitgrad.torch as igt
from implicitgrad.testing import assert_implicit_gradient
from implicitgrad.testing import strategies as igst
from implicitgrad.testing.layers import torch_map

DOUBLE = torch.float64


def tanh_map(z, W, x):
    return torch.tanh(W @ z + x)


def problem(n=8, dtype=DOUBLE, norm=0.6):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, dtype=dtype, generator=generator)
    W = W * (norm / torch.linalg.matrix_norm(W, 2))
    return tanh_map, torch.zeros(n, dtype=dtype), W, torch.randn(n, dtype=dtype, generator=generator)


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


# -- what is wrong is named --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(name):
    layer, words = FAULTS[name]
    with pytest.raises(AssertionError, match=words) as caught:
        assert_implicit_gradient(*problem(), layer=layer)
    assert str(caught.value).startswith("assert_implicit_gradient: ")


@pytest.mark.parametrize("name", SECOND)
def test_a_fault_of_second_order_is_caught_there_alone(name):
    layer, words = SECOND[name]
    assert_implicit_gradient(*problem(), layer=layer)
    with pytest.raises(AssertionError, match=rf"the first derivatives are right, (.|\n)*{words}"):
        assert_implicit_gradient(*problem(), layer=layer, order=2)


def test_a_missing_conjugate_is_named():
    W = 0.2 * torch.randn(4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    args = lambda z, W, x: torch.sin(W @ z + x), torch.zeros(4, dtype=W.dtype), W, 0.3 * W[0]
    assert_implicit_gradient(*args, layer=broken_layers.by_hook)
    with pytest.raises(AssertionError, match=r"\(I - J\)\^T in the place of \(I - J\)\^H: a conjugate is missing"):
        assert_implicit_gradient(*args, layer=broken_layers.conjugate_missing)


def test_dropped_blocks_of_the_jacobian_are_named():
    """TorchOpt: the two tensors of the state are coupled."""
    x = torch.linspace(0.1, 0.5, 3, dtype=DOUBLE)
    f = lambda z, x: (0.4 * torch.tanh(z[1]) + x, 0.5 * torch.sin(z[0]) + 0.2 * z[1].roll(1) * x)
    z0 = (torch.zeros(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    assert_implicit_gradient(f, z0, x, order=2)
    with pytest.raises(AssertionError, match=r"a Jacobian without its off-diagonal blocks"):
        assert_implicit_gradient(f, z0, x, layer=broken_layers.block_diagonal)


class TransposedTanh(torch.autograd.Function):
    """``tanh(W z + x)`` with a backward written by hand, and wrong: ``W`` for ``W^T``."""

    @staticmethod
    def forward(ctx, z, W, x):
        y = torch.tanh(W @ z + x)
        ctx.save_for_backward(z, W, y)
        return y

    @staticmethod
    def backward(ctx, g):
        z, W, y = ctx.saved_tensors
        s = (1 - y**2) * g
        return W @ s, torch.outer(s, z), s


def test_a_wrong_backward_of_the_map_itself_is_not_blamed_on_the_layer():
    _, z0, W, x = problem()
    with pytest.raises(
        AssertionError, match=r"derivative of f itself is wrong, with respect to its state z: .*gradcheck"
    ):
        assert_implicit_gradient(TransposedTanh.apply, z0, W, x)
    with pytest.raises(AssertionError, match=r"with respect to its state z: .* its vjp says 0\..*Is there a detach"):
        assert_implicit_gradient(lambda z, W, x: torch.tanh(W @ z.detach() + x), z0, W, x, layer=broken_layers.one_step)
    with pytest.raises(AssertionError, match=r"with respect to args\[0\], shape \(8, 8\): .* its vjp says 0\."):
        assert_implicit_gradient(lambda z, W, x: torch.tanh(W.detach() @ z + x), z0, W, x)


def test_a_random_map_is_named():
    f, *rest = problem()
    with pytest.raises(AssertionError, match=r"f is not one map: two calls at z0 differ by \d.*Dropout left on"):
        assert_implicit_gradient(lambda *args: torch.nn.functional.dropout(f(*args), 0.2), *rest)


def test_an_ill_conditioned_map_is_undecided_where_the_dtype_cannot_tell():
    """I - J is 1e-6 and known to 6 % in single precision; in double the same map passes."""
    f = lambda z, x: torch.stack([0.5 * z[0] + x[0], (1 - 1e-6) * z[1] + 1e-6 * x[1]])
    x = torch.ones(2, dtype=DOUBLE)
    layer = lambda f, z, x: igt.implicit_gradient(f, torch.stack([2 * x[0], x[1]]).detach(), x, adjoint=ig.Dense())
    assert_implicit_gradient(f, torch.zeros_like(x), x, layer=layer)
    words = r"undecided: norm\(\(I - J\)\^-1\) is (1|9\.\d)e\+0[56], so .*Check in float64"
    with pytest.warns(ig.ConvergenceWarning), pytest.raises(AssertionError, match=words):
        assert_implicit_gradient(f, torch.zeros(2), x.float(), layer=layer)


def test_without_an_isolated_fixed_point_there_is_no_gradient():
    """J = I in the first number: every value of it is a fixed point."""
    f = lambda z, x: torch.stack([z[0], 0.5 * z[1] + x])
    layer = lambda f, z, x: f(torch.stack([z[0], 2 * x]), x)
    with pytest.raises(
        AssertionError, match=r"I - J is singular at the fixed point .*: the fixed point is not isolated"
    ):
        assert_implicit_gradient(f, torch.zeros(2, dtype=DOUBLE), torch.ones((), dtype=DOUBLE), layer=layer)


@pytest.mark.parametrize("norm", [0.5, 0.9])
def test_a_loose_layer_is_checked_with_its_own_tolerance(norm):
    """To 1e-4 forward and backward: refused by default, right with rtol=1e-4, and one step is still seen."""
    f, z0, W, x = problem(norm=norm)
    loose = lambda f, z, W, x: igt.fixed_point(f, z, W, x, solver=igt.Picard(rtol=1e-4), adjoint=ig.Neumann(rtol=1e-4))
    with pytest.raises(AssertionError, match="no fixed point of f"):
        assert_implicit_gradient(f, z0, W, x, layer=loose)
    assert_implicit_gradient(f, z0, W, x, layer=loose, rtol=1e-4)
    with pytest.raises(AssertionError, match="one-step gradient"):
        assert_implicit_gradient(f, z0, W, x, layer=broken_layers.one_step, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_gradient_off_by_ten_times_the_tolerance_is_seen_and_one_of_a_third_is_not(seed):
    """The tolerance is that of the notes: 4 s norm((I - J)^-1) (rtol + r)."""
    f, z0, W, x = problem()

    def off(part):
        def layer(f, z, W, x):
            z = igt.fixed_point(
                f, z, W, x, adjoint=ig.GMRES(rtol=1e-14), solver=igt.Anderson(rtol=1e-14), on_failure="return"
            )
            z.register_hook(lambda g: g + part * g.norm() * torch.linspace(-1, 1, 8, dtype=DOUBLE) / 1.85)
            return z

        return layer

    assert_implicit_gradient(f, z0, W, x, layer=off(1.5e-8 / 3), seed=seed)
    with pytest.raises(AssertionError, match=r"[12] of 2 gradients are wrong"):
        assert_implicit_gradient(f, z0, W, x, layer=off(1.5e-8 * 40), seed=seed)


def test_misuse_is_refused_in_words():
    f, z0, W, x = problem()
    with pytest.raises(ig.SettingTypeError, match=r"got f of type Tensor, expected a callable"):
        assert_implicit_gradient(z0, f, W, x)
    with pytest.raises(ig.SettingError, match=r"got method='exact', expected 'auto', 'dense' or 'differences'"):
        assert_implicit_gradient(f, z0, W, x, method="exact")
    with pytest.raises(ig.SettingError, match=r"got order=3, expected 1 or 2"):
        assert_implicit_gradient(f, z0, W, x, order=3)
    with pytest.raises(ig.SettingError, match=r"got rtol=0, expected a number between 0 and 1"):
        assert_implicit_gradient(f, z0, W, x, rtol=0)
    with pytest.raises(ig.SettingError, match=r"got a state of torch.bfloat16, expected float32"):
        assert_implicit_gradient(f, z0.bfloat16(), W.bfloat16(), x.bfloat16())
    with pytest.raises(ig.ShapeError, match=r"torch_map: got a state of 3 numbers, expected 4"):
        torch_map(igtest.make_map(size=4), like=np.zeros(3))
