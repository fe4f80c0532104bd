"""A DTensor goes in, a DTensor comes out, and no number is read from one in between."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
from implicitgrad.errors import BackendError, ShapeError


def _dtensors(rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    matrix = 0.7 * matrix / torch.linalg.matrix_norm(matrix, 2)
    g, x0 = torch.randn(2, size, dtype=torch.float64, generator=generator)
    split = distribute_tensor(matrix, mesh, [Shard(1)])  # columns: W^T u is split, W v a sum of parts
    rows = distribute_tensor(matrix, mesh, [Shard(0)])
    placements = []

    def vjp(u):
        result = rows.T @ u  # contracts the axis that is split: every rank has a part of the sum
        placements.append(result.placements[0].is_partial())
        return result

    J = ig.VJPOperator(vjp, size=size, jvp=lambda v: split @ v)
    given = distribute_tensor(g, mesh, [Shard(0)])
    told = []
    for solver in (ig.GMRES(), ig.BiCGSTAB(), ig.LSMR()):
        solution = ig.adjoint_solve(J, given, solver=solver, x0=distribute_tensor(x0, mesh, [Shard(0)]))
        told.append(
            (solution.status.name, solution.x.placements == given.placements, solution.x.full_tensor().tolist())
        )
    expected = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - matrix.T, g).tolist()
    refused = []
    for mistake in (
        lambda: ig.adjoint_solve(J, distribute_tensor(g, mesh, [Replicate()])),
        lambda: ig.adjoint_solve(J, distribute_tensor(g.expand(2, -1).contiguous(), mesh, [Shard(0)])),
        lambda: ig.GMRES().solve(J, given),
    ):
        try:
            mistake()
            refused.append("")
        except (ShapeError, BackendError) as error:
            refused.append(str(error))
    return told, expected, all(placements), refused


@pytest.mark.parametrize("size", [8, 7, 1])
def test_a_dtensor_is_solved_on_its_shards_and_comes_back_as_one(two_ranks, size):
    """Products that come back as partial sums are summed; 7 entries lie as 4 and 3, one entry as 1 and 0."""
    for told, expected, partial, refused in two_ranks.run(_dtensors, size):
        assert partial or size == 1
        for status, placed, x in told:
            assert status == "CONVERGED"
            assert placed
            np.testing.assert_allclose(x, expected, rtol=1e-6)
        assert "expected Shard(0), the last axis" in refused[0]
        assert "expected Shard(1), the last axis" in refused[1]
        assert "wrap it: Sharded(x)" in refused[2]
