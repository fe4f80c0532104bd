"""igt.diagnose: the report of a torch map is that of its dense Jacobian, with the residual of the point itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.diagnose import diagnose

DOUBLE = torch.float64


def tanh_map(z, W, x):
    return torch.tanh(z @ W.mT + x)


def problem(n=20, batch=(), scale=0.6):
    W = torch.randn(n, n, dtype=DOUBLE) * scale / n**0.5
    return W.requires_grad_(), torch.randn(*batch, n, dtype=DOUBLE)


def dense(W, x, z):
    slope = 1 - torch.tanh(z @ W.mT + x) ** 2
    return (slope.unsqueeze(-1) * W).detach().numpy()


def test_the_numbers_are_those_of_the_dense_jacobian():
    W, x = problem()
    z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
    d, J = diagnose(tanh_map, z, W, x), dense(W, x, z)
    assert d.fixed_point_residual < 1e-11
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(J)).max(), rel=1e-4)
    assert d.sigma_min == pytest.approx(np.linalg.svd(np.eye(20) - J, compute_uv=False)[-1], rel=1e-3)
    assert d.verdict == "healthy"


def test_a_state_that_is_not_fixed_is_told_by_its_residual():
    W, x = problem()
    z = torch.zeros_like(x)
    d = diagnose(tanh_map, z, W, x)
    image = tanh_map(z, W, x)
    assert d.fixed_point_residual == pytest.approx((torch.norm(image - z) / torch.norm(image)).item())
    assert d.verdict == "sick: this is no fixed point"


def test_a_batch_is_reported_by_its_worst_system():
    W, x = problem(batch=(3,))
    z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, batch_ndim=1)
    d = diagnose(tanh_map, z, W, x, batch_ndim=1)
    sigmas = np.linalg.svd(np.eye(20) - dense(W, x, z), compute_uv=False)[:, -1]
    assert d.systems == 3
    assert d.sigma_min == pytest.approx(sigmas.min(), rel=1e-3)


def test_structured_states_cotangents_of_their_own_and_no_trace_left():
    state = {"a": torch.zeros(2, 3), "b": (torch.zeros(4),)}
    w = torch.tensor(0.5, requires_grad=True)
    f = lambda s: {"a": w * torch.sin(s["a"]), "b": (w * s["b"][0],)}
    d = diagnose(f, state, g={"a": torch.ones(2, 3), "b": (torch.ones(4),)})
    assert d.size == 10
    assert d.radius == pytest.approx(0.5, rel=1e-5)
    assert w.grad is None
    with pytest.raises(ig.ShapeError, match="expected those of z"):
        diagnose(f, state, g={"a": torch.ones(3, 2), "b": (torch.ones(4),)})


def test_the_cotangent_decides_what_truncation_costs():
    """Along a small eigenvalue one product is enough, along a large one it is not."""
    W = torch.diag(torch.tensor([0.9, 0.01], dtype=DOUBLE))
    f, z = lambda z: W @ z, torch.zeros(2, dtype=DOUBLE)
    errors = [diagnose(f, z, g=torch.eye(2, dtype=DOUBLE)[i], steps=(1,)).neumann[0].error for i in range(2)]
    assert errors[0] == pytest.approx(0.81, rel=1e-6)
    assert errors[1] == pytest.approx(1e-4, rel=1e-3)


def test_a_map_that_ignores_its_state_and_one_that_is_singular():
    c = torch.ones(4, dtype=DOUBLE)
    assert diagnose(lambda z: c.clone(), c).radius == 0
    assert diagnose(lambda z: 1.0 * z, c).verdict == "sick: I - J is singular to rounding"


def test_it_works_where_gradients_are_off():
    W, x = problem()
    with torch.no_grad():
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
        assert diagnose(tanh_map, z, W, x).verdict == "healthy"
