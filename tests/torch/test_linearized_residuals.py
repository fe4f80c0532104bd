"""The derivative of a map that is known by its residual: df/dz = I + d(f - z)/dz."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad.torch as igt

DOUBLE = torch.float64


def _residual(z):
    return torch.sin(z) @ torch.tensor([[0.5, 0.0, -2.0], [1.0, 3.0, 0.0], [0.0, 0.7, 0.2]], dtype=DOUBLE) - 0.3 * z**2


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_a_residual_and_its_map_have_one_jacobian(shape):
    """Both products of df/dz, by autograd through f(z) - z and through f."""
    torch.manual_seed(0)
    z, v = torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE)
    f = lambda z: z + _residual(z)
    by_residual, by_map = igt.Equation(f, residual=_residual).linearize(z), igt.Equation(f).linearize(z)
    for product in ("matvec", "rmatvec"):
        got, expected = getattr(by_residual, product)(v), getattr(by_map, product)(v)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_newton_takes_exact_steps_on_a_residual():
    """Two unknowns of z^3 = b by NewtonKrylov on the residual alone: as many calls as Newton's method needs."""
    b = torch.tensor([8.0, -27.0], dtype=DOUBLE)
    r = lambda z: z**3 - b
    solution = igt.NewtonKrylov().solve(
        igt.Equation(lambda z: z - r(z), residual=lambda z: -r(z)), torch.tensor([2.5, -2.5], dtype=DOUBLE)
    )
    assert solution.converged
    assert solution.num_iters <= 8
    torch.testing.assert_close(solution.x, torch.tensor([2.0, -3.0], dtype=DOUBLE), rtol=1e-10, atol=0)
