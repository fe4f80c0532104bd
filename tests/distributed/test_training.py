"""Training on two processes: DistributedDataParallel and FSDP2 give the gradients of one process."""

from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
from torch import nn

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.backends.sharded import ranks as ranks_module
from implicitgrad.errors import SettingError
from implicitgrad.torch.engine.derivative import Adjoint
from implicitgrad.torch.engine.distributed import Lockstep, gathering_group
from implicitgrad.torch.engine.reattach import reattach

ROWS, WIDTH = 6, 8
FORWARD, ADJOINT = igt.Anderson(rtol=1e-15), ig.GMRES(rtol=1e-13)
SERIES = ig.Neumann(rtol=1e-13)  # whose number of terms depends on the data, as GMRES's does where n is not 8


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.outer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.mul_(0.8 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


class Equilibrium(nn.Module):
    """The layer as users write it, by either engine."""

    def __init__(self, engine):
        super().__init__()
        self.cell, self.engine = Cell(), engine
        self.told = []
        self.adjoint, self.on_failure = SERIES, "return"
        self.gathered = None

    def forward(self, x):
        start = torch.zeros_like(x)
        if self.engine == "attach":
            return igt.fixed_point(
                self.cell, start, x, solver=FORWARD, adjoint=ADJOINT, batch_ndim=1, on_failure="return"
            )
        # One evaluation with gradients tells whether the map gathers parameters, and from whom.
        point = start.clone().requires_grad_() + 0
        group = gathering_group(self.cell(point, x), point)
        self.gathered = group is not None
        with torch.no_grad(), Lockstep(group, lambda: self.cell(start, x)) as ranks:
            z = FORWARD.solve(ranks.together(lambda z: self.cell(z, x)), start).x
        return reattach(lambda z: self.cell(z, x), z, Adjoint("layer", self.adjoint, self.on_failure, self.told.append))


class Model(nn.Module):
    def __init__(self, engine="attach", unused=False):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.layer = Equilibrium(engine)
        self.head = nn.Linear(WIDTH, 1, dtype=torch.float64)
        if unused:
            self.unused = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.layer(torch.tanh(self.encoder(x))))


def _data():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)
    x[: ROWS // 2] *= 8  # tanh saturates: rank 0 is done sooner
    return x


def _loss(model, x):
    return model(x).square().mean()


def _alone():
    model = Model()
    _loss(model, _data()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _error(gradients):
    """Return the largest relative error of the gradients by name; names of wrappers do not count."""
    expected = _alone()
    found = {name.removeprefix("module."): g for name, g in gradients.items()}
    return max(((found[name] - g).norm() / g.norm()).item() for name, g in expected.items())


# -- data parallel -----------------------------------------------------------------------------------------------------
def _ddp(rank, engine, options, passes):
    model = Model(engine, unused="find_unused_parameters" in options)
    parallel = nn.parallel.DistributedDataParallel(model, **options)
    half = _data().chunk(2)[rank]
    for _ in range(passes):
        parallel.zero_grad()
        _loss(parallel, half).backward()
    return _error({name: p.grad for name, p in parallel.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("engine", ["attach", "reattach"])
@pytest.mark.parametrize(
    "options",
    [{}, {"static_graph": True}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_ddp_averages_the_implicit_gradients_of_both_ranks(two_ranks, engine, options):
    """Half of the batch each, three passes: the gradients of the whole batch in one process."""
    for error in two_ranks.run(_ddp, engine, options, 3):
        assert error < 1e-10


# -- fully sharded -----------------------------------------------------------------------------------------------------
def _sharded(kind, engine):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = Model(engine), init_device_mesh("cpu", (2,))
    parts = {"root": [], "layer": [model.encoder, model.layer, model.head], "cell": [model.layer.cell]}[kind]
    for part in [*parts, model]:
        fully_shard(part, mesh=mesh)
    return model


def _fsdp(rank, kind, engine, passes):
    model = _sharded(kind, engine)
    half = _data().chunk(2)[rank]
    for _ in range(passes):
        model.zero_grad()
        _loss(model, half).backward()
    error = _error({name: p.grad.full_tensor() for name, p in model.named_parameters()})
    return error, [solution.num_matvecs for solution in model.layer.told], model.layer.gathered


@pytest.mark.parametrize("kind", ["root", "layer", "cell"])
def test_fsdp_through_reattach_gives_the_gradients_of_one_process(two_ranks, kind):
    """fully_shard on the model, on each of its layers, on the cell that is solved for: three passes each."""
    answers = two_ranks.run(_fsdp, kind, "reattach", 3)
    assert answers[0][1] != answers[1][1]  # each rank spends what its own samples need
    for error, products, gathered in answers:
        assert error < 1e-10
        assert len(products) == 3
        assert gathered == (kind == "cell")  # the other modules lie around the map, not in it


@pytest.mark.parametrize("kind", ["root", "layer", "cell"])
def test_fixed_point_alone_gives_the_gradients_of_one_process(two_ranks, kind):
    """It notices a cell that is sharded inside the map; parameters gathered before it is called are like any other."""
    for error, _, _ in two_ranks.run(_fsdp, kind, "attach", 3):
        assert error < 1e-10


def _evaluated(rank):
    model = _sharded("cell", "attach")
    with torch.no_grad():
        z = model(_data().chunk(2)[rank])
    return (z - Model()(_data()).chunk(2)[rank]).abs().max().item(), z.requires_grad


def test_a_sharded_cell_is_evaluated_without_gradients(two_ranks):
    """The ranks stay together there too, although their samples take different numbers of calls."""
    for error, wants_gradient in two_ranks.run(_evaluated):
        assert error < 1e-12
        assert not wants_gradient


def _second(rank):
    model = _sharded("cell", "reattach")
    loss = _loss(model, _data())
    try:
        loss.backward(create_graph=True)
    except SettingError as error:
        return str(error)
    return ""


def test_a_second_derivative_of_a_sharded_cell_is_refused(two_ranks):
    assert all("got a second derivative" in text for text in two_ranks.run(_second))


def _one_rank_fails(rank):
    model = _sharded("cell", "reattach")
    model.layer.adjoint = (SERIES, ig.Neumann(rtol=1e-13, max_iters=2))[rank]
    model.layer.on_failure = "raise"
    loss = _loss(model, _data().chunk(2)[rank])
    patience, ranks_module._PATIENCE = ranks_module._PATIENCE, timedelta(seconds=300)  # nobody may need any
    try:
        loss.backward()
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        ranks_module._PATIENCE = patience
    return "", ""


def test_a_backward_solve_that_raises_on_one_rank_raises_on_all(two_ranks):
    """NotConvergedError where the solve failed, OperatorError with its words where products were still wanted."""
    answers = two_ranks.run(_one_rank_fails)
    assert answers[1][0] == "NotConvergedError"
    assert answers[0][0] == "OperatorError"
    assert "because of rank 1, NotConvergedError: layer, backward: Neumann stopped after" in answers[0][1]


def _two_groups(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    cell = Cell()
    for part, size in ((cell.inner, (2,)), (cell.outer, (1, 2))):
        mesh = init_device_mesh("cpu", size, mesh_dim_names=("a", "b")[-len(size) :])
        fully_shard(part, mesh=mesh if len(size) == 1 else mesh["a"])
    point = torch.zeros(3, WIDTH, dtype=torch.float64).requires_grad_() + 0
    try:
        gathering_group(cell(point, point), point)
    except SettingError as error:
        return str(error)
    return ""


def test_modules_of_two_meshes_inside_one_map_are_refused(two_ranks):
    """A group keeps its own ranks together and no others."""
    assert all("sharded over 2 process groups" in text for text in two_ranks.run(_two_groups))
