"""The bases behind lambda_min stay orthonormal to rounding, however far the small singular values have converged."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from implicitgrad.torch.regularizers.golub_kahan import bidiagonalize
from implicitgrad.torch.regularizers.linearized import MapAt

DOUBLE = torch.float64


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
def test_both_bases_are_orthonormal_to_rounding(dtype, differentiable):
    """V^H V = I and U^H U = I to a few eps after 40 steps on singular values from 1 to 1e-8."""
    n, generator = 40, torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator))[0] for _ in range(2))
    A = (left * torch.logspace(0, -8, n, dtype=DOUBLE)) @ right
    linearized = MapAt("example", lambda z: z - A @ z, torch.zeros(n, dtype=dtype), (), 0).linearized()
    start = torch.randn(n, dtype=dtype, generator=generator)
    process = bidiagonalize(linearized, start, n, 0.0, generator, differentiable)
    for rows in (process.V.detach(), process.U.detach()):
        assert rows.shape == (n, n)
        defect = (rows.conj() @ rows.mT - torch.eye(n, dtype=dtype)).abs().max().item()
        assert defect <= 64 * torch.finfo(DOUBLE).eps
