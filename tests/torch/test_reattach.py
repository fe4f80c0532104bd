"""The engine for maps whose parameters are not their own: the same gradients as ``attach``, first order, no leaks."""

import gc
import weakref

import numpy as np
import pytest
import torch

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.errors import SettingError
from implicitgrad.status import Status
from implicitgrad.torch.engine.derivative import Adjoint
from implicitgrad.torch.engine.reattach import reattach


def _settings(told=None, solver=None):
    return Adjoint(
        "layer",
        ig.GMRES(rtol=1e-13) if solver is None else solver,
        "raise",
        (lambda solution: None) if told is None else told.append,
    )


def _contraction(n=5, batch=()):
    weight = torch.randn(n, n, dtype=torch.float64)
    weight = (0.8 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
    x = torch.randn(*batch, n, dtype=torch.float64, requires_grad=True)
    return weight, x, (lambda z: torch.tanh(z @ weight.T + x))


def _fixed(function, like):
    z = torch.zeros_like(like)
    with torch.no_grad():
        for _ in range(300):
            z = function(z)
    return z


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_gradients_are_those_of_the_limit_of_backpropagation_through_time(batch):
    """(dF/dw)^H (I - J)^-H g, against 300 unrolled steps."""
    weight, x, function = _contraction(batch=batch)
    z = x * 0
    for _ in range(300):
        z = function(z)
    expected = torch.autograd.grad(z.pow(3).sum(), (weight, x))
    told = []
    layer = reattach(function, _fixed(function, x), _settings(told))
    layer.pow(3).sum().backward()
    torch.testing.assert_close((weight.grad, x.grad), expected, rtol=1e-10, atol=1e-12)
    (solution,) = told
    assert {s for s in np.asarray(solution.status, dtype=object).ravel()} == {Status.CONVERGED}


def test_both_engines_agree():
    """attach, with the parameters as inputs, and reattach, which never sees them."""
    weight, x, function = _contraction()
    z = _fixed(function, x)
    one = igt.implicit_gradient(
        lambda z, x: torch.tanh(z @ weight.T + x), z, x, adjoint=_settings().solver, on_failure="return"
    )
    expected = torch.autograd.grad(one.sin().sum(), (weight, x))
    two = reattach(function, z, _settings())
    torch.testing.assert_close(torch.autograd.grad(two.sin().sum(), (weight, x)), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(two, z)


def test_a_computed_tensor_keeps_its_history():
    """A tensor with a past that is no argument: its graph is simply there."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    computed = scale**2
    z = reattach(lambda z: computed * z + 1, torch.tensor([4 / 3], dtype=torch.float64), _settings())
    z.backward(torch.ones_like(z))
    torch.testing.assert_close(scale.grad, torch.tensor(2 * 0.5 / (1 - 0.25) ** 2, dtype=torch.float64))


def test_the_point_receives_no_gradient():
    """The path through the state is in u already; as a gradient of its own it would count twice."""
    points = []

    def function(z):
        points.append(z)
        return 0.5 * z + w

    w = torch.ones(3, requires_grad=True)
    start = torch.full((3,), 2.0, requires_grad=True)
    reattach(function, start, _settings()).sum().backward()
    assert start.grad is None
    (point,) = points
    assert point.grad_fn is not None  # no leaf: nothing is accumulated in it


def test_a_second_derivative_is_refused_in_words():
    weight, x, function = _contraction()
    z = reattach(function, _fixed(function, x), _settings())
    with pytest.raises(SettingError, match=r"layer: got a second derivative .*expected first order only"):
        torch.autograd.grad(z.sum(), weight, create_graph=True)


def test_a_forward_pass_without_a_backward_pass_leaves_nothing_alive():
    """Counted with the cycle collector off: no tensor refers to itself by a detour."""
    _, x, function = _contraction()
    fixed = _fixed(function, x)
    seen = []

    def watched(z):
        image = function(z)
        seen.extend((weakref.ref(z), weakref.ref(image)))
        return image

    gc.collect()
    gc.disable()
    try:
        z = reattach(watched, fixed, _settings())
        seen.append(weakref.ref(z))
        assert all(ref() is not None for ref in seen[2:])
        del z
        assert [ref() for ref in seen] == [None, None, None]
        z = reattach(watched, fixed, _settings())
        z.sum().backward()
        seen.append(weakref.ref(z))
        del z
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_backward_twice_needs_retain_graph_as_ever():
    weight, x, function = _contraction()
    z = reattach(function, _fixed(function, x), _settings()).sum()
    first = torch.autograd.grad(z, (weight, x), retain_graph=True)
    second = torch.autograd.grad(z, (weight, x))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(z, (weight, x))


@pytest.mark.parametrize("which", ["weight", "argument"])
def test_an_edit_in_place_of_what_the_map_needs_raises(which):
    weight, x, function = _contraction()
    factor = torch.full((5,), 0.5, dtype=torch.float64, requires_grad=True)
    fixed = _fixed(lambda z: function(z) * factor, x)
    z = reattach(lambda z: function(z) * factor, fixed, _settings())
    with torch.no_grad():
        (weight if which == "weight" else factor).mul_(0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_an_edit_in_place_of_the_result_is_differentiated():
    """The result is in memory of its own and no product needs it: z.mul_(2) is a step like any other."""
    weight, x, function = _contraction()
    z = reattach(function, _fixed(function, x), _settings())
    expected = torch.autograd.grad(2 * z.sum(), weight, retain_graph=True)
    z.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), weight), expected, rtol=1e-14, atol=0)


def test_one_layer_is_used_many_times_in_one_graph():
    """Gradients of two uses add up, nested ones too."""
    weight, x, function = _contraction()
    fixed = _fixed(function, x)
    once = torch.autograd.grad(reattach(function, fixed, _settings()).sum(), weight)[0]
    twice = reattach(function, fixed, _settings()) + reattach(function, fixed, _settings())
    torch.testing.assert_close(torch.autograd.grad(twice.sum(), weight)[0], 2 * once, rtol=1e-12, atol=0)


def test_without_gradients_it_is_the_point_itself():
    with torch.no_grad():
        assert not reattach(lambda z: 1 / 0, torch.ones(2), _settings()).requires_grad  # and f is not called


def test_a_map_that_ignores_its_state_hands_the_cotangent_through():
    """J = 0: u = g."""
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    reattach(lambda z: w.exp(), w.detach().exp(), _settings()).sum().backward()
    torch.testing.assert_close(w.grad, w.detach().exp())
