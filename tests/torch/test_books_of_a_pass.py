"""What a pass writes down: every call of the map, and how far a given point is from being fixed, in any unit."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad.torch as igt
from implicitgrad import Status

DOUBLE = torch.float64


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=repr)
def test_num_matvecs_counts_every_call_of_the_map(solver, gradients):
    """The first call, which shows what the map depends on, is one of them; the solver takes its value over."""
    calls = []
    W = torch.tensor([[0.2, -0.3], [0.1, 0.4]], dtype=DOUBLE, requires_grad=True)

    def f(z):
        calls.append(z.shape)
        return torch.tanh(W @ z + 1.0)

    report = igt.Report()
    with torch.set_grad_enabled(gradients):
        igt.fixed_point(f, torch.zeros(2, dtype=DOUBLE), solver=solver, report=report)
    assert report.forward.converged
    assert report.forward.num_matvecs == len(calls)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("off", "status"), [(1e-4, Status.FORWARD_NOT_CONVERGED), (1e-12, Status.CONVERGED)])
def test_a_given_point_is_judged_relative_to_its_image(unit, off, status):
    """z* (1 + off) of f(z) = z / 2 + x has the relative residual off / 2, whatever the unit of the state."""
    x = torch.tensor([unit, -2 * unit], dtype=DOUBLE, requires_grad=True)
    report = igt.Report()
    point = 2 * (1 + off) * x.detach()
    igt.implicit_gradient(lambda z, x: 0.5 * z + x, point, x, on_failure="return", report=report)
    assert report.forward.status is status
    assert report.forward.relative_residual == pytest.approx(off / 2, rel=1e-3)
