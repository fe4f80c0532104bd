"""igt.diagnose: the report of a torch map is that of its dense Jacobian, with the residual of the point itself."""

import re

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


def _batch_norm(training):
    layer = torch.nn.BatchNorm1d(6, dtype=DOUBLE)
    layer.train(training)
    return lambda z, W, x: torch.tanh(0.4 * layer(z @ W) + x)


def _graph(z, W, x):
    """Ten nodes in a ring, but for the first, which has no edge: it shows nothing of the others."""
    ring = torch.zeros(10, 10, dtype=DOUBLE)
    ring[0, 0] = 1
    ring[range(1, 10), [*range(2, 10), 1]] = 1
    return torch.tanh(ring @ z @ W + x)


MIXING = {
    "batch normalization": _batch_norm(True),
    "mean": lambda z, W, x: torch.tanh(z @ W + 0.8 * z.mean(0) + x),
    "graph": _graph,
}


@pytest.mark.parametrize("kind", MIXING)
def test_rows_that_mix_are_told_first_and_measured_as_the_one_system_that_they_are(kind):
    f, W, x = MIXING[kind], torch.randn(6, 6, dtype=DOUBLE) / 8, torch.randn(10, 6, dtype=DOUBLE)
    z = igt.fixed_point(f, torch.zeros_like(x), W, x).detach()
    d = diagnose(f, z, W, x, batch_ndim=1)
    assert d.verdict == "sick: the 10 rows are one system (COUPLED)"
    assert d.coupled == 10
    assert d.coupling > 1e-3
    assert d.advice[0].startswith("Treat the 10 rows as one system")
    assert all(word in d.advice[0] for word in ("batch_ndim", "BatchNorm in eval mode", "GroupNorm or LayerNorm"))
    J = torch.autograd.functional.jacobian(lambda z: f(z, W, x), z).reshape(60, 60).numpy()
    assert (d.size, d.systems) == (60, 1)
    assert d.radius == pytest.approx(np.abs(np.linalg.eigvals(J)).max(), rel=1e-4)
    assert d.norm == pytest.approx(np.linalg.norm(J, 2), rel=1e-3)
    assert d.sigma_min == pytest.approx(np.linalg.svd(np.eye(60) - J, compute_uv=False)[-1], rel=1e-3)
    assert "as one system" in str(d).splitlines()[3]


@pytest.mark.parametrize("f", [_batch_norm(False), lambda z, W, x: torch.tanh(torch.layer_norm(z @ W, (6,)) * 0.3 + x)])
def test_rows_of_their_own_are_not_called_coupled(f):
    W, x = torch.randn(6, 6, dtype=DOUBLE) / 8, torch.randn(10, 6, dtype=DOUBLE)
    z = igt.fixed_point(f, torch.zeros_like(x), W, x, batch_ndim=1)
    d = diagnose(f, z, W, x, batch_ndim=1)
    assert (d.coupled, d.coupling, d.systems, d.verdict) == (0, 0.0, 10, "healthy")


def test_rows_of_their_own_in_half_precision_are_not_called_coupled():
    """Their products pair to a few thousandths: no adjoint of each other, which is another fault."""
    W, x = torch.randn(32, 32) / 8, torch.randn(16, 32)

    def f(z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.tanh((z @ W).float() + x)

    z = igt.fixed_point(f, torch.zeros_like(x), batch_ndim=1, on_failure="return")
    d = diagnose(f, z, batch_ndim=1)
    assert d.coupled == 0
    assert d.verdict == "sick: the products with J contradict each other"
    assert "autocast" in d.advice[0]


@pytest.mark.parametrize(
    ("slope", "start", "verdict"),
    [(0.99999, 0.61, "sick: I - J is singular to rounding"), (0.98, 0.985, "slow")],
)
def test_a_small_residual_beside_a_small_singular_value_is_no_small_error(slope, start, verdict):
    """norm(z - h) = norm(F(z) - z) / (1 - a) for F(z) = a z + (1 - a), whose fixed point is 1."""
    z = torch.full((3,), start)
    d = diagnose(lambda z: slope * z + (1 - slope), z)
    assert d.fixed_point_residual < torch.finfo(z.dtype).eps ** 0.5
    assert d.verdict.startswith(verdict)
    (off,) = re.findall(r"The state may be off by (\d+)% of itself\.", d.advice[0])
    assert int(off) == pytest.approx(100 * (1 - start) / start, rel=0.05, abs=0.5)  # 6e-6 was rounded in float32
    there = diagnose(lambda z: slope * z + (1 - slope), torch.ones(3))
    assert "may be off" not in str(there)


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
