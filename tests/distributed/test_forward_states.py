"""Forward solvers on a state that no process holds as a whole: the point of one process, in the same steps."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.backends.sharded import Sharded

SOLVERS = [igt.Picard(), igt.Picard(damping=0.25), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()]
SIZES = (3, 5, 0)
N = sum(SIZES)


def _map():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(N, N, dtype=torch.float64, generator=generator)
    return 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2), torch.randn(
        2, N, dtype=torch.float64, generator=generator
    )


def _solved(rank, batched):
    matrix, x = _map()
    x = x if batched else x[0]
    start = sum(SIZES[:rank])
    own = slice(start, start + SIZES[rank])
    state = Sharded(torch.zeros_like(x[..., own]))

    def update(z):
        return torch.tanh(state.like(z).gather() @ matrix.T + x)[..., own]

    def linearize(z):
        slope = 1 - torch.tanh(z.gather() @ matrix.T + x) ** 2

        def jvp(v):
            return (slope * (state.like(v).gather() @ matrix.T))[..., own]

        def vjp(u):
            return ((slope * state.like(u).gather()) @ matrix)[..., own]

        return ig.VJPOperator(vjp, size=N, jvp=jvp)

    told = []
    for solver in SOLVERS:
        solution = solver.solve(igt.Equation(update, linearize=linearize), state)
        statuses = np.asarray(solution.status, dtype=object).ravel()
        told.append(
            (
                solution.x.gather().tolist(),
                [status.name for status in statuses],
                (solution.num_matvecs, solution.num_rmatvecs, np.asarray(solution.num_iters).tolist()),
                np.asarray(solution.history).tolist(),
            )
        )
    return told


@pytest.mark.parametrize("batched", [False, True])
def test_every_forward_solver_finds_the_point_on_uneven_shards(three_ranks, batched):
    """z = tanh(W z + x), split 3, 5, 0: within the bound, and the same books on all ranks to the last bit."""
    answers = three_ranks.run(_solved, batched)
    matrix, x = _map()
    x = x if batched else x[0]
    z = torch.zeros_like(x)
    for _ in range(2000):
        z = torch.tanh(z @ matrix.T + x)
    for solver, *told in zip(SOLVERS, *answers, strict=True):
        assert repr(told[0]) == repr(told[1]) == repr(told[2]), solver
        assert set(told[0][1]) == {"CONVERGED"}, solver
        np.testing.assert_allclose(told[0][0], z.numpy(), rtol=1e-9, atol=1e-10, err_msg=solver.name)
