"""Torch maps with known fixed points and Jacobians, and the settings under which gradients are exact."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tight():
    """Both solves to rounding, so that gradients can be compared with finite differences."""
    return {"solver": igt.Anderson(rtol=1e-14), "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}
