"""Captured tensors that reach torch functions by keyword, or in a list: seen and followed like any other."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
X = torch.linspace(-1.0, 1.0, 3, dtype=DOUBLE)

MAPS = {
    "linear(weight=)": lambda z, W: torch.tanh(torch.nn.functional.linear(z, weight=W) + X),
    "matmul(other=)": lambda z, W: torch.tanh(torch.matmul(z, other=W.mT) + X),
    "add(other=, alpha=)": lambda z, W: torch.tanh(torch.add(X, other=W @ z, alpha=1.0)),
    "addmv(mat=, vec=)": lambda z, W: torch.tanh(torch.addmv(X, mat=W, vec=z)),
    "stack(tensors=)": lambda z, W: torch.tanh((torch.stack(tensors=[W, W]).sum(dim=0) / 2) @ z + X),
}


def _gradients(f, theta, captured):
    """Return dL/dtheta and a product with the Hessian, with ``W = W(theta)`` captured, or handed over."""
    W = 0.4 * torch.sin(theta)
    settings = {"solver": igt.Anderson(rtol=1e-14), "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}
    start = torch.zeros(3, dtype=DOUBLE)
    z = igt.fixed_point(lambda z: f(z, W), start, **settings) if captured else igt.fixed_point(f, start, W, **settings)
    (first,) = torch.autograd.grad(z.square().sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), theta)
    return first.detach(), second


@pytest.mark.parametrize("f", MAPS.values(), ids=MAPS.keys())
def test_by_keyword_has_the_derivatives_of_an_argument(f):
    """A stand-in takes its place among the keywords too: else its history would be met twice, or not at all."""
    theta = torch.linspace(-1.0, 2.0, 9, dtype=DOUBLE).reshape(3, 3).requires_grad_()
    for got, expected in zip(_gradients(f, theta, True), _gradients(f, theta, False), strict=True):
        assert torch.linalg.vector_norm(expected) > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
