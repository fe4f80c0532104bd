"""What a root says of itself: solved is solved, forward and backward, far from zero; relative to norm(b)."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad.torch as igt
from implicitgrad import Status


def _linear(dtype=torch.float64):
    matrix = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 4.0]], dtype=dtype)
    return matrix, torch.tensor([10.0, -20.0, 5.0], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("entry", ["root", "argmin"])
def test_a_solution_away_from_zero_is_converged_both_ways(entry):
    """norm(r(z)) says how far a root has moved, norm(f(z) - z) of the map z - r(z) would be norm(z)."""
    A, b = _linear()
    report = igt.Report()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if entry == "root":
            z = igt.root(lambda z: A @ z - b, torch.zeros(3, dtype=A.dtype), report=report)
        else:
            z = igt.argmin(lambda w: 0.5 * w @ A @ w - b @ w, torch.zeros(3, dtype=A.dtype), report=report)
        z.sum().backward()
    assert torch.linalg.vector_norm(z.detach()) > 1
    assert (report.forward.status, report.backward.status) == (Status.CONVERGED, Status.CONVERGED)
    assert torch.allclose(b.grad, torch.linalg.solve(A.mT, torch.ones(3, dtype=A.dtype)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, -3.0])
def test_the_residual_of_a_linear_root_is_relative_to_norm_b_at_every_point(share):
    """norm(J z - r(z)) = norm(b) for r(z) = A z - b: the convention of the linear solvers, without the start in it."""
    A, b = _linear()
    start = share * torch.linalg.solve(A, b.detach())
    report = igt.Report()
    igt.root(lambda z: A @ z - b, start, solver=igt.NewtonKrylov(max_iters=0), on_failure="return", report=report)
    assert report.forward.rhs_norm == pytest.approx(torch.linalg.vector_norm(b).item(), rel=1e-12)
