"""One system whose state no process holds as a whole: the answers of one process, the same decisions on all ranks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
import torch.distributed as dist
from sharded_problem import SIZES, N, own, problem

import implicitgrad as ig
from implicitgrad.backends.sharded import Sharded
from implicitgrad.errors import OperatorError

GENERAL = [
    ig.GMRES(),
    ig.GMRES(restart=3),
    ig.BiCGSTAB(),
    ig.Neumann(),
    ig.Richardson(),
    ig.NormalEquations(),
    ig.LSMR(),
    ig.Dense(),
    ig.Auto(),
]
SYMMETRIC = [ig.CG(), ig.MINRES(), *GENERAL]


def _dense_operator(like, matrix):
    """J as a user writes it who gathers what he needs; each rank returns its own part of the product."""
    span = like.ranks.span

    def vjp(u):
        return (like.like(u).gather() @ matrix.conj())[..., span]

    def jvp(v):
        return (like.like(v).gather() @ matrix.T)[..., span]

    return ig.VJPOperator(vjp, size=like.shape[-1], jvp=jvp, like=like)


def _laplacian(u):
    """0.45 (u_{i-1} + u_{i+1}) on a line of N points: each rank sends its two ends to its neighbours and no more."""
    rank = dist.get_rank()
    if not SIZES[rank]:
        return u.clone()
    holders = [r for r, size in enumerate(SIZES) if size]
    place = holders.index(rank)
    left, right = torch.zeros_like(u[..., :1]), torch.zeros_like(u[..., :1])
    steps = []
    if place > 0:
        steps.append(dist.P2POp(dist.isend, u[..., :1].contiguous(), holders[place - 1]))
        steps.append(dist.P2POp(dist.irecv, left, holders[place - 1]))
    if place + 1 < len(holders):
        steps.append(dist.P2POp(dist.isend, u[..., -1:].contiguous(), holders[place + 1]))
        steps.append(dist.P2POp(dist.irecv, right, holders[place + 1]))
    for work in dist.batch_isend_irecv(steps) if steps else []:
        work.wait()
    padded = torch.cat([left, u, right], dim=-1)
    return 0.45 * (padded[..., :-2] + padded[..., 2:])


def _laplacian_matrix():
    return torch.diag(torch.full((N - 1,), 0.45, dtype=torch.float64), 1) + torch.diag(
        torch.full((N - 1,), 0.45, dtype=torch.float64), -1
    )


def _told(solution):
    statuses = np.asarray(solution.status, dtype=object)
    return {
        "x": solution.x.gather().numpy(),
        "status": [status.name for status in statuses.ravel()],
        "counts": (solution.num_matvecs, solution.num_rmatvecs, np.asarray(solution.num_iters).tolist()),
        "residual": np.asarray(solution.residual_norm).tolist(),
        "history": np.asarray(solution.history).tolist(),
    }


def _same_on_all(answers):
    """Every book of a solve is the same on all ranks, to the last bit."""
    for answer in answers[1:]:
        for name in ("status", "counts", "residual", "history"):
            assert repr(answer[name]) == repr(answers[0][name]), name
    return answers[0]


def _solve_general(rank, dtype):
    matrix, g = problem(dtype)
    shard = Sharded(own(rank, g))
    return [_told(ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=solver)) for solver in GENERAL]


@pytest.mark.fault(92, 93)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
def test_every_solver_finds_the_adjoint_of_one_process_on_uneven_shards(three_ranks, dtype):
    """(I - J)^H z = g on shards of 3, 5 and 0 entries: z, statuses and counts as in one process."""
    answers = three_ranks.run(_solve_general, dtype)
    matrix, g = problem(dtype)
    expected = np.linalg.solve(np.eye(N) - matrix.numpy().conj().T, g.numpy())
    J = ig.VJPOperator(lambda u: u @ matrix.conj(), size=N, jvp=lambda v: v @ matrix.T)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-7
    for solver, *told in zip(GENERAL, *answers, strict=True):
        told = _same_on_all(told)
        alone = ig.adjoint_solve(J, g, solver=solver)
        assert told["status"] == ["CONVERGED"], solver
        assert np.linalg.norm(told["x"] - expected) <= tolerance * np.linalg.norm(expected), solver
        assert told["counts"][:2] == (alone.num_matvecs, alone.num_rmatvecs), solver


def _solve_symmetric(rank):
    _, g = problem()
    shard = Sharded(own(rank, g))
    J = ig.VJPOperator(_laplacian, size=N, symmetric=True)
    return [_told(ig.adjoint_solve(J, shard, solver=solver)) for solver in SYMMETRIC]


def test_a_map_that_exchanges_halos_is_solved_by_every_solver(three_ranks):
    """J = 0.45 (shift left + shift right): symmetric, so CG and MINRES too; the map talks to its neighbours itself."""
    answers = three_ranks.run(_solve_symmetric)
    _, g = problem()
    expected = np.linalg.solve(np.eye(N) - _laplacian_matrix().numpy(), g.numpy())
    for solver, *told in zip(SYMMETRIC, *answers, strict=True):
        told = _same_on_all(told)
        assert told["status"] == ["CONVERGED"], solver
        np.testing.assert_allclose(told["x"], expected, rtol=1e-7, atol=1e-7, err_msg=solver.name)


def _solve_batch(rank):
    matrix, g = problem(batch=(3,))
    g[1, 0] = np.nan  # on rank 0 alone
    shard = Sharded(own(rank, g))
    solvers = [solver for solver in GENERAL if solver.name != "Dense"]
    return [
        _told(ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=solver, on_failure="return"))
        for solver in solvers
    ]


def test_a_row_with_nan_on_one_rank_ends_on_all_ranks_and_leaves_its_neighbours_alone(three_ranks):
    """Rows 0 and 2 of the batch are solved; row 1 is NONFINITE_INPUT also where its own entries are finite."""
    answers = three_ranks.run(_solve_batch)
    matrix, g = problem(batch=(3,))
    expected = np.linalg.solve(np.eye(N) - matrix.numpy().T, g.numpy().T).T
    for told in zip(*answers, strict=True):
        told = _same_on_all(told)
        assert told["status"] == ["CONVERGED", "NONFINITE_INPUT", "CONVERGED"]
        np.testing.assert_allclose(told["x"][[0, 2]], expected[[0, 2]], rtol=1e-7, atol=1e-7)


def _scaled(rank, factor):
    matrix, g = problem(torch.float32)
    shard = Sharded(own(rank, g * factor))
    solution = ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=ig.GMRES())
    return _told(solution)


def test_a_tiny_right_hand_side_takes_the_same_steps(three_ranks):
    """solve(s g) = s solve(g), bit for bit for s = 2^-90: squares of its entries underflow in float32."""
    small, plain = (_same_on_all(three_ranks.run(_scaled, factor)) for factor in (2.0**-90, 1.0))
    assert small["counts"] == plain["counts"]
    np.testing.assert_array_equal(small["x"] * np.float32(2.0**90), plain["x"])


def _looped(rank):
    matrix, g = problem(batch=(2, 2))
    shard = Sharded(own(rank, g))
    inner = _dense_operator(shard, matrix)
    J = ig.VJPOperator(lambda u: inner._vjp(u) if u.ndim == 1 else None, size=N, batched=False)
    return _told(ig.adjoint_solve(J, shard))


def test_callables_for_single_vectors_are_looped_over_a_batch(three_ranks):
    """batched=False: also on the rank whose shard is empty."""
    told = _same_on_all(three_ranks.run(_looped))
    matrix, g = problem(batch=(2, 2))
    expected = np.linalg.solve(np.eye(N) - matrix.numpy().T, g.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(told["x"], expected, rtol=1e-7)


def _checked(rank):
    matrix, g = problem()
    shard = Sharded(own(rank, g))
    good = ig.check_operator(_dense_operator(shard, matrix), like=shard)
    wrong = ig.VJPOperator(_dense_operator(shard, matrix)._vjp, size=N, symmetric=True)
    try:
        ig.check_operator(wrong, like=shard)
    except OperatorError as error:
        return good is not None, str(error)
    return good is not None, ""


def test_an_operator_on_shards_is_checked_like_any_other(three_ranks):
    """The probes are drawn apart on each rank; a false claim of symmetry is found, by all ranks in the same words."""
    answers = three_ranks.run(_checked)
    assert answers[0][0]
    assert answers[0][1]
    assert answers == answers[:1] * 3
