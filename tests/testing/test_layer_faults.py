"""``assert_implicit_gradient`` names each planted fault, and says where it cannot tell."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import broken_layers
from broken_layers import FAULTS, SECOND, problem

import implicitgrad as ig
import implicitgrad.testing as igtest
import implicitgrad.torch as igt
from implicitgrad.testing import assert_implicit_gradient
from implicitgrad.testing.layers import torch_map

DOUBLE = torch.float64


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
