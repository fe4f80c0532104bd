"""fixed_point with group=: a state that no process holds as a whole, forward and backward."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

SIZES = (3, 5, 0)
N = sum(SIZES)
FORWARD = {"Picard": igt.Picard, "Anderson": igt.Anderson, "Broyden": igt.Broyden, "NewtonKrylov": igt.NewtonKrylov}


class Gathered(torch.autograd.Function):
    """The whole vector from its shards; its derivative sums what every rank sends back, and keeps the own part.

    It is its own derivative's inverse side: ``Scattered`` is its transpose, and the other way round.
    """

    @staticmethod
    def forward(ctx, shard, own):
        import torch.distributed as dist

        ctx.own = own
        whole = shard.new_zeros((*shard.shape[:-1], N))
        whole[..., own] = shard
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, g):
        return Scattered.apply(g, ctx.own), None


class Scattered(torch.autograd.Function):
    """The own part of the sum over the ranks of vectors that each of them holds as a whole."""

    @staticmethod
    def forward(ctx, part, own):
        import torch.distributed as dist

        ctx.own = own
        total = part.contiguous().clone()
        dist.all_reduce(total)
        return total[..., own].clone()

    @staticmethod
    def backward(ctx, g):
        return Gathered.apply(g, ctx.own), None


def _problem():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(N, N, dtype=torch.float64, generator=generator)
    return 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2), torch.randn(
        2, N, dtype=torch.float64, generator=generator
    )


def _loss(z):
    return z.pow(3).sum()


def _pass(rank, solver, batch_ndim, second):
    import torch.distributed as dist

    matrix, data = _problem()
    data = data if batch_ndim else data[0]
    start = sum(SIZES[:rank])
    own = slice(start, start + SIZES[rank])
    x = data[..., own].clone().requires_grad_()

    def update(z, x):
        return torch.tanh((Gathered.apply(z, own) @ matrix.T)[..., own] + x)

    report = igt.Report(trajectory=True)
    z = igt.fixed_point(
        update,
        torch.zeros_like(x),
        x,
        solver=FORWARD[solver](rtol=1e-14),
        adjoint=ig.GMRES(rtol=1e-13),
        batch_ndim=batch_ndim,
        on_failure="return",
        report=report,
        group=dist.group.WORLD,
    )
    (g,) = torch.autograd.grad(_loss(z), x, create_graph=second)
    if second:
        (g,) = torch.autograd.grad(g.square().sum(), x)
    counts = (report.forward.num_matvecs, report.backward.num_matvecs, len(report.trajectory))
    statuses = [s.name for s in np.atleast_1d(np.asarray(report.backward.status, dtype=object))]
    return z.detach().tolist(), g.tolist(), counts, statuses


def _whole(batch_ndim, second):
    matrix, data = _problem()
    x = (data if batch_ndim else data[0]).clone().requires_grad_()
    z = torch.zeros_like(x)
    for _ in range(200):
        z = torch.tanh(z @ matrix.T + x)
    (g,) = torch.autograd.grad(_loss(z), x, create_graph=second)
    if second:
        (g,) = torch.autograd.grad(g.square().sum(), x)
    return z.detach(), g


@pytest.mark.fault(92, 93)
@pytest.mark.parametrize(
    ("solver", "batch_ndim", "second"),
    [
        ("Picard", 0, False),
        ("Anderson", 1, False),
        ("Broyden", 0, False),
        ("NewtonKrylov", 0, False),
        ("Anderson", 0, True),
    ],
)
def test_shards_have_the_point_and_the_gradient_of_one_process(three_ranks, solver, batch_ndim, second):
    """Uneven shards, one of them empty; the same counts on all ranks; a second derivative through the exchange too."""
    answers = three_ranks.run(_pass, solver, batch_ndim, second)
    z, g = _whole(batch_ndim, second)
    for found, expected in ((0, z), (1, g)):
        whole = torch.cat([torch.tensor(a[found], dtype=torch.float64).reshape(*z.shape[:-1], -1) for a in answers], -1)
        torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-11)
    assert len({a[2] for a in answers}) == 1
    assert answers[0][2][0] == answers[0][2][2] or solver == "NewtonKrylov"  # one state a call
    assert all(set(a[3]) == {"CONVERGED"} for a in answers)


def _transformed(rank):
    import torch.distributed as dist

    layer = lambda x: igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(2), x, group=dist.group.WORLD).sum()
    try:
        torch.func.grad(layer)(torch.ones(2))
    except ig.SettingError as error:
        return str(error)
    return ""


def test_a_transform_of_a_spread_state_is_refused_in_words(two_ranks):
    assert all("spread over processes" in words for words in two_ranks.run(_transformed))
