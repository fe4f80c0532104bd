"""One system whose state no process holds as a whole: the answers of one process, the same decisions on all ranks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
import torch.distributed as dist

import implicitgrad as ig
from implicitgrad.backends.sharded import BACKEND, Sharded
from implicitgrad.backends.sharded.ranks import Ranks
from implicitgrad.errors import BackendError, OperatorError, ShapeError

SIZES = (3, 5, 0)  # the last of three ranks holds nothing
N = sum(SIZES)

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


def _own(rank, x):
    """Return what this rank holds of a vector that, for the test's sake, every rank can draw."""
    start = sum(SIZES[:rank])
    return x[..., start : start + SIZES[rank]].clone()


def _problem(dtype=torch.float64, batch=()):
    """A contraction that is far from normal, and right-hand sides."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(N, N, dtype=dtype, generator=generator)
    matrix = 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)
    return matrix, torch.randn(*batch, N, dtype=dtype, generator=generator)


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


# -- the solvers -------------------------------------------------------------------------------------------------------
def _solve_general(rank, dtype):
    matrix, g = _problem(dtype)
    shard = Sharded(_own(rank, g))
    return [_told(ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=solver)) for solver in GENERAL]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
def test_every_solver_finds_the_adjoint_of_one_process_on_uneven_shards(three_ranks, dtype):
    """(I - J)^H z = g on shards of 3, 5 and 0 entries: z, statuses and counts as in one process."""
    answers = three_ranks.run(_solve_general, dtype)
    matrix, g = _problem(dtype)
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
    _, g = _problem()
    shard = Sharded(_own(rank, g))
    J = ig.VJPOperator(_laplacian, size=N, symmetric=True)
    return [_told(ig.adjoint_solve(J, shard, solver=solver)) for solver in SYMMETRIC]


def test_a_map_that_exchanges_halos_is_solved_by_every_solver(three_ranks):
    """J = 0.45 (shift left + shift right): symmetric, so CG and MINRES too; the map talks to its neighbours itself."""
    answers = three_ranks.run(_solve_symmetric)
    _, g = _problem()
    expected = np.linalg.solve(np.eye(N) - _laplacian_matrix().numpy(), g.numpy())
    for solver, *told in zip(SYMMETRIC, *answers, strict=True):
        told = _same_on_all(told)
        assert told["status"] == ["CONVERGED"], solver
        np.testing.assert_allclose(told["x"], expected, rtol=1e-7, atol=1e-7, err_msg=solver.name)


def _solve_batch(rank):
    matrix, g = _problem(batch=(3,))
    g[1, 0] = np.nan  # on rank 0 alone
    shard = Sharded(_own(rank, g))
    solvers = [solver for solver in GENERAL if solver.name != "Dense"]
    return [
        _told(ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=solver, on_failure="return"))
        for solver in solvers
    ]


def test_a_row_with_nan_on_one_rank_ends_on_all_ranks_and_leaves_its_neighbours_alone(three_ranks):
    """Rows 0 and 2 of the batch are solved; row 1 is NONFINITE_INPUT also where its own entries are finite."""
    answers = three_ranks.run(_solve_batch)
    matrix, g = _problem(batch=(3,))
    expected = np.linalg.solve(np.eye(N) - matrix.numpy().T, g.numpy().T).T
    for told in zip(*answers, strict=True):
        told = _same_on_all(told)
        assert told["status"] == ["CONVERGED", "NONFINITE_INPUT", "CONVERGED"]
        np.testing.assert_allclose(told["x"][[0, 2]], expected[[0, 2]], rtol=1e-7, atol=1e-7)


def _scaled(rank, factor):
    matrix, g = _problem(torch.float32)
    shard = Sharded(_own(rank, g * factor))
    solution = ig.adjoint_solve(_dense_operator(shard, matrix), shard, solver=ig.GMRES())
    return _told(solution)


def test_a_tiny_right_hand_side_takes_the_same_steps(three_ranks):
    """solve(s g) = s solve(g), bit for bit for s = 2^-90: squares of its entries underflow in float32."""
    small, plain = (_same_on_all(three_ranks.run(_scaled, factor)) for factor in (2.0**-90, 1.0))
    assert small["counts"] == plain["counts"]
    np.testing.assert_array_equal(small["x"] * np.float32(2.0**90), plain["x"])


def _looped(rank):
    matrix, g = _problem(batch=(2, 2))
    shard = Sharded(_own(rank, g))
    inner = _dense_operator(shard, matrix)
    J = ig.VJPOperator(lambda u: inner._vjp(u) if u.ndim == 1 else None, size=N, batched=False)
    return _told(ig.adjoint_solve(J, shard))


def test_callables_for_single_vectors_are_looped_over_a_batch(three_ranks):
    """batched=False: also on the rank whose shard is empty."""
    told = _same_on_all(three_ranks.run(_looped))
    matrix, g = _problem(batch=(2, 2))
    expected = np.linalg.solve(np.eye(N) - matrix.numpy().T, g.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(told["x"], expected, rtol=1e-7)


def _checked(rank):
    matrix, g = _problem()
    shard = Sharded(_own(rank, g))
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


# -- the reductions ----------------------------------------------------------------------------------------------------
def _sums(rank):
    generator = torch.Generator().manual_seed(rank)
    x = Sharded(torch.randn(SIZES[rank], generator=generator))
    told = []
    for k in (1, 2, 7, 64, 1000):
        values = torch.randn(k, dtype=torch.float64, generator=generator)
        told.append((values.tolist(), x.ranks.sum(values, None).tolist()))
    return told


def test_a_sum_has_the_same_bits_on_all_ranks(three_ranks):
    """What decides is one number, not one a rank that differ in the last bit."""
    for parts in zip(*three_ranks.run(_sums), strict=True):
        sums = [total for _, total in parts]
        assert sums[0] == sums[1] == sums[2]
        np.testing.assert_allclose(sums[0], np.sum([values for values, _ in parts], axis=0), rtol=1e-12)


def _maxima(rank):
    rows = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [0.5, 0.0]])[:, rank : rank + 1]
    x = Sharded(rows)
    return BACKEND.max_abs(x).tolist(), BACKEND.equal(x, x), BACKEND.equal(x[0], x[0]), BACKEND.equal(x[2], -x[2])


def test_maxima_keep_nan_and_flags_hold_where_they_hold_on_all_ranks(two_ranks):
    """max |x| of rows split over two ranks; NaN on one rank is NaN on both, and an equality of one is none."""
    for maxima, with_nan, first, last in two_ranks.run(_maxima):
        assert repr(maxima) == repr([2.0, float("nan"), 0.5])
        assert not with_nan
        assert first
        assert not last


def _rolled(u):
    return 0.5 * u.roll(1, -1)


@pytest.mark.parametrize(
    ("solver", "reductions"),
    [
        (lambda steps: ig.Neumann(max_iters=steps, rtol=0), 1),
        (lambda steps: ig.CG(max_iters=steps, rtol=0), 2),
        (lambda steps: ig.GMRES(max_iters=steps, rtol=0), 2),
    ],
    ids=["Neumann", "CG", "GMRES"],
)
@pytest.mark.parametrize("steps", [5, 40])
def test_a_step_costs_its_inner_products_and_the_watch_over_the_ranks_costs_nothing(
    monkeypatch, solver, reductions, steps
):
    """GMRES sends its k products at once, from all blocks of its basis; to see who has failed costs no message."""
    calls, agreed = [], Ranks._agreed
    monkeypatch.setattr(Ranks, "_agreed", lambda self, *args: calls.append(1) or agreed(self, *args))
    g = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = []
    for most in (steps, steps + 1):
        calls.clear()
        J = ig.VJPOperator(_rolled, size=200)
        ig.adjoint_solve(J, Sharded(g), solver=solver(most), on_failure="return")
        counts.append(len(calls))
    assert counts[1] - counts[0] == reductions


# -- ranks that fail ---------------------------------------------------------------------------------------------------
class _Fault:
    """A product that goes wrong on rank 1, the third time."""

    def __init__(self, rank, kind):
        self.rank, self.kind, self.calls = rank, kind, 0

    def __call__(self, u):
        self.calls += 1
        if self.rank == 1 and self.calls == 3:
            match self.kind:
                case "raises":
                    raise KeyError("no such weight")
                case "shape":
                    return torch.zeros(2, dtype=u.dtype)
                case "dtype":
                    return u.float()
                case "nothing":
                    return None
                case "in place":
                    return u.mul_(0.5)
        return u * torch.linspace(
            0.1, 0.2 + 0.2 * self.rank, u.shape[-1], dtype=u.dtype
        )  # many eigenvalues: many steps


def _faulty(rank, kind, solver):
    _, g = _problem()
    shard = Sharded(_own(rank, g))
    told = ""
    try:
        ig.adjoint_solve(ig.VJPOperator(_Fault(rank, kind), size=N), shard, solver=solver)
    except Exception as error:
        told = type(error).__name__, str(error)
    after = ig.adjoint_solve(ig.VJPOperator(lambda u: 0.5 * u, size=N), shard)
    return told, after.x.gather().tolist()


@pytest.mark.parametrize(
    ("kind", "own", "words"),
    [
        ("raises", "KeyError", "no such weight"),
        ("shape", "ShapeError", "returned shape (2,) for the shard of rank 1, expected its own shape (5,)"),
        ("dtype", "DtypeError", "returned torch.float32 for the shard of rank 1"),
        ("nothing", "BackendError", "an object of type NoneType for the shard of rank 1"),
        ("in place", "OperatorError", "changed its input in place on rank 1"),
    ],
)
@pytest.mark.parametrize("solver", [ig.Neumann(), ig.GMRES(), ig.MINRES(), ig.Dense()], ids=lambda s: s.name)
def test_a_fault_of_one_rank_is_raised_by_all(three_ranks, kind, own, words, solver):
    """Rank 1 raises its own exception, the others an OperatorError that names it; the group is of use after that."""
    answers = three_ranks.run(_faulty, kind, solver)
    _, g = _problem()
    for rank, ((name, text), after) in enumerate(answers):
        assert words in text
        np.testing.assert_allclose(after, 2 * g.numpy())
        if rank == 1:
            assert name == own
        else:
            assert name == "OperatorError"
            assert f"because of rank 1, {own}" in text


def _direct(rank):
    shard = Sharded(torch.ones(2))
    fault = _Fault(rank, "raises")
    fault.calls = 2
    y = ig.VJPOperator(fault, size=shard.shape[-1]).rmatvec(shard)
    try:
        return y.local.tolist()
    except KeyError as error:
        return repr(error)


def test_a_product_that_failed_has_no_shard_to_show(two_ranks):
    """J.rmatvec alone communicates nothing; the exception waits in the array, not zeros that pass for a product."""
    assert two_ranks.run(_direct) == [pytest.approx([0.1, 0.2]), "KeyError('no such weight')"]


# -- construction ------------------------------------------------------------------------------------------------------
def _constructed(rank, kind):
    given = {
        "no tensor": torch.ones(2) if rank else [1.0],
        "dtype": torch.ones(2, dtype=torch.float64 if rank else torch.float32),
        "batch": torch.ones(2 + rank, 3),
        "axes": torch.ones(()),
    }[kind]
    try:
        Sharded(given)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("no tensor", "BackendError", "got an object of type list on rank 0"),
        ("dtype", "DtypeError", "got torch.float64 of shape (2,) on rank 1 and torch.float32 of (2,) on rank 0"),
        ("batch", "ShapeError", "of shape (3, 3) on rank 1"),
        ("axes", "ShapeError", "without axes on rank 0"),
    ],
)
def test_shards_that_do_not_fit_are_refused_by_all_ranks_in_the_same_words(two_ranks, kind, name, words):
    """A rank that alone sees its mistake would leave the others waiting."""
    answers = two_ranks.run(_constructed, kind)
    assert answers[0] == answers[1]
    assert answers[0][0] == name
    assert words in answers[0][1]


def test_one_process_needs_no_group():
    """Sharded of everything: the solve of a tensor, with its bits."""
    matrix, g = _problem()
    shard = Sharded(g)
    J = _dense_operator(shard, matrix)
    plain = ig.adjoint_solve(ig.VJPOperator(lambda u: u @ matrix, size=N), g)
    assert torch.equal(ig.adjoint_solve(J, shard).x.local, plain.x)


def test_leading_axes_are_indexed_and_reshaped_and_the_last_one_is_not():
    x = Sharded(torch.arange(12.0).reshape(2, 3, 2))
    assert x[1].shape == (3, 2)
    assert x[0, 1].local.tolist() == [2.0, 3.0]
    assert x.reshape((-1, 2))[4].local.tolist() == [8.0, 9.0]
    for mistake in (lambda: x[0, 0, 1], lambda: x.reshape((4, 3)), lambda: x.like(torch.ones(3))):
        with pytest.raises(ShapeError):
            mistake()


def test_numbers_multiply_from_both_sides_and_arrays_of_other_splits_do_not_add():
    x = Sharded(torch.tensor([1.0, 2.0]))
    for y in (2 * x, x * 2, np.float64(2.0) * x, x / 0.5, -(x * -2), x + x):
        assert y.local.tolist() == [2.0, 4.0]
    with pytest.raises(ShapeError, match="expected one split"):
        x + Sharded(torch.ones(3))
    with pytest.raises(TypeError):
        x * x


def test_a_matrix_is_not_split():
    """DenseOperator holds a tensor; its product with shards would be a part of a product."""
    with pytest.raises(BackendError, match="VJPOperator"):
        ig.solve(ig.DenseOperator(torch.eye(2)), Sharded(torch.ones(2)))


def test_numbers_from_the_host_are_a_vector_or_coefficients_and_not_guessed_from_their_count():
    like = Sharded(torch.ones(3))
    assert isinstance(BACKEND.from_numpy(np.ones(3), like), Sharded)
    assert isinstance(BACKEND.coefficients(np.ones(3), like), torch.Tensor)
    with pytest.raises(ShapeError, match="from_numpy"):
        BACKEND.from_numpy(np.ones(2), like)


# -- DTensors ----------------------------------------------------------------------------------------------------------
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
