"""Nothing stays behind: live tensors and memory over 1,000 passes, forwards without backward, exceptions, interrupts.

Counted with the cycle collector off, so that a tensor which only a reference cycle holds counts as alive.
"""

import gc
import os
import subprocess
import sys
import textwrap
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


def live_tensors():
    """Count the tensors that Python knows of: an isinstance of all objects would import half of torch."""
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.fixture
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Cell(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4).double()
        torch.nn.init.orthogonal_(self.linear.weight, gain=0.5)
        self.dropout = dropout

    def forward(self, z, x):
        return torch.nn.functional.dropout(torch.tanh(self.linear(z) + x), self.dropout)


def through_fixed_point(cell, x):
    return igt.fixed_point(cell, torch.zeros_like(x), x, batch_ndim=1)


def through_captured(cell, x):
    return igt.fixed_point(lambda z: cell(z, x), torch.zeros_like(x), batch_ndim=1)


def through_picard_and_neumann(cell, x):
    return igt.fixed_point(cell, torch.zeros_like(x), x, solver=igt.Picard(), adjoint=ig.Neumann())


def through_newton(cell, x):
    return igt.fixed_point(cell, torch.zeros_like(x), x, solver=igt.NewtonKrylov())


def through_root(cell, x):
    return igt.root(lambda z, x: z - cell(z, x), torch.zeros_like(x), x)


def through_argmin(cell, x):
    return igt.argmin(lambda w, x: (cell.linear(w) - x).square().sum() + w.square().sum(), torch.zeros_like(x), x)


def through_implicit_gradient(cell, x):
    with torch.no_grad():
        z = igt.Picard().solve(lambda z: cell(z, x), torch.zeros_like(x)).x
    return igt.implicit_gradient(cell, z, x)


def through_module(cell, x):
    return igt.FixedPoint(cell, batch_ndim=1)(torch.zeros_like(x), x)


def through_dropout(cell, x):
    cell.dropout = 0.3
    return igt.fixed_point(cell, torch.zeros_like(x), x)


def through_a_nest(cell, x):
    inner = lambda z, x: igt.fixed_point(cell, torch.zeros_like(x), 0.5 * z + x)
    return igt.fixed_point(inner, torch.zeros_like(x), x)


WAYS = [
    through_fixed_point,
    through_captured,
    through_picard_and_neumann,
    through_newton,
    through_root,
    through_argmin,
    through_implicit_gradient,
    through_module,
    through_dropout,
    through_a_nest,
]


def ways(function):
    return pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("through_"))(function)


@ways
def test_a_forward_without_backward_leaves_nothing_alive(way, uncollected):
    """The state, the cell, its weights and the input die with their names; and so does every tensor made on the way."""

    def forward():
        cell, x = Cell(), torch.randn(2, 4, dtype=DOUBLE, requires_grad=True)
        z = way(cell, x)
        assert z.requires_grad
        return [weakref.ref(t) for t in (z, cell, cell.linear.weight, x)]

    forward()  # torch makes some tensors once
    before = live_tensors()
    dead = forward()
    assert [reference() for reference in dead] == [None] * 4
    assert live_tensors() <= before


@ways
@pytest.mark.parametrize("order", ["first", "retained", "second"])
def test_a_backward_pass_leaves_nothing_alive_but_the_gradient(way, order, uncollected):
    """Also where the graph was retained, and where it was differentiated in turn, which is where cycles come from."""

    def forward_and_backward():
        cell, x = Cell(), torch.randn(2, 4, dtype=DOUBLE, requires_grad=True)
        z = way(cell, x)
        sources = (x, cell.linear.weight)
        again = {"first": {}, "retained": {"retain_graph": True}, "second": {"create_graph": True}}[order]
        gradients = torch.autograd.grad(z.square().sum(), sources, **again)
        dead = [weakref.ref(t) for t in (z, cell, *sources, *gradients)]
        if order == "second":
            seconds = torch.autograd.grad(sum(g.square().sum() for g in gradients), sources)
            dead += map(weakref.ref, seconds)
        return dead

    forward_and_backward()
    before = live_tensors()
    dead = forward_and_backward()
    assert [reference() for reference in dead] == [None] * len(dead)
    assert live_tensors() <= before


@ways
def test_an_exception_leaves_nothing_alive(way, uncollected):
    """Raised by the map in its third call, and in the backward pass."""

    def forward(fail_at):
        cell, x = Cell(), torch.randn(2, 4, dtype=DOUBLE, requires_grad=True)
        calls = []

        def failing(module, args):
            calls.append(0)
            if len(calls) == fail_at:
                raise ValueError("mine")

        cell.linear.register_forward_pre_hook(failing)
        dead = [weakref.ref(t) for t in (cell, cell.linear.weight, x)]
        try:
            z = way(cell, x)
            calls.clear()
            fail_at = 1
            z.sum().backward()
        except ValueError as error:
            assert str(error) == "mine"  # noqa: PT017 - the traceback has to go before the count
        else:
            raise AssertionError("nothing was raised")
        return dead

    for fail_at in (2, 10**9):
        forward(fail_at)
        before = live_tensors()
        assert [reference() for reference in forward(fail_at)] == [None] * 3
        assert live_tensors() <= before


@pytest.mark.fault(86)
def test_a_thousand_passes_keep_the_number_of_live_tensors(uncollected):
    """FAULTS 86: 1,000 forward and backward passes, the collector off; the count is not one tensor higher."""
    cell, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    f = lambda z, x: 0.01 * torch.tanh(cell(z)) + x  # a few steps each way

    def one():
        igt.fixed_point(f, torch.zeros_like(x), x, batch_ndim=1).square().sum().backward()
        cell.zero_grad()

    one()
    before = live_tensors()
    objects = len(gc.get_objects())
    for _ in range(1000):
        one()
    assert live_tensors() <= before
    assert len(gc.get_objects()) <= objects + 100  # nor does Python itself keep anything of a pass


SOAK = """
    import gc, os, torch
    import implicitgrad.torch as igt

    torch.set_num_threads(1)
    gc.disable()
    scale = torch.ones(1000, requires_grad=True)
    f = lambda z, x: 0.01 * torch.tanh(scale * z) + x
    x = torch.randn(1000)

    def one():
        igt.fixed_point(f, torch.zeros(1000), x).square().sum().backward()
        scale.grad = None

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range({warm}):
        one()
    before = resident()
    for _ in range({steps}):
        one()
    print((resident() - before) / {steps})
"""


@pytest.mark.fault(86)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident set from /proc")
def test_a_thousand_passes_do_not_grow_the_process():
    """FAULTS 86 and section 3, item 7: below 1 KiB a step, the collector off; one state alone has 4 kB."""
    code = textwrap.dedent(SOAK.format(warm=100, steps=1000))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1024, run.stdout


class Interrupting:
    """0.5 tanh(z) + x, which from call ``k`` on, or in that call alone, does something else."""

    def __init__(self, k, act, once=False):
        self.k, self.act, self.once, self.calls = k, act, once, 0

    def __call__(self, z, x):
        self.calls += 1
        image = 0.5 * torch.tanh(z) + x
        return self.act(image) if self.calls == self.k or (self.calls > self.k and not self.once) else image


def raising(error):
    def act(image):
        raise error

    return act


SOLVERS = [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()]


def arguments():
    z0, x = torch.full((3,), 0.25, dtype=DOUBLE), torch.tensor([0.5, -0.25, 1.0], dtype=DOUBLE, requires_grad=True)
    return z0, x, z0.clone(), x.detach().clone()


def check_the_next_call(z0, x, z0_bits, x_bits):
    """The arguments keep every bit, and the next pass has the right derivative, 1 / (1 - 0.5 (1 - tanh(z)^2))."""
    assert torch.equal(z0, z0_bits)
    assert torch.equal(x, x_bits)
    z = igt.fixed_point(lambda z, x: 0.5 * torch.tanh(z) + x, z0, x)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(gradient, 1 / (0.5 + 0.5 * torch.tanh(z.detach()) ** 2), rtol=1e-7, atol=0)


@pytest.mark.fault(57, 58)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("now"), ValueError("mine"), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_an_exception_of_the_map_comes_out_as_it_is(solver, k, error):
    """FAULTS 57, 58: the same object, whichever call raises it; the next call is right."""
    z0, x, *bits = arguments()
    with pytest.raises(type(error)) as caught:
        igt.fixed_point(Interrupting(k, raising(error), once=True), z0, x, solver=solver)
    assert caught.value is error
    check_the_next_call(z0, x, *bits)


@pytest.mark.fault(58, 85)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("create_graph", [False, True])
def test_an_exception_in_the_backward_pass_comes_out_as_it_is(error, create_graph):
    """FAULTS 58, 85: raised where the map is evaluated again; the same graph can be walked again afterwards."""
    z0, x, *bits = arguments()
    f = Interrupting(10**9, raising(error("now")), once=True)
    z = igt.fixed_point(f, z0, x)
    f.k = f.calls + 1
    with pytest.raises(error, match="now"):
        torch.autograd.grad(z.sum(), x, create_graph=create_graph, retain_graph=True)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(gradient, 1 / (0.5 + 0.5 * torch.tanh(z.detach()) ** 2), rtol=1e-7, atol=0)
    check_the_next_call(z0, x, *bits)


def test_dropout_and_statistics_are_put_back_after_an_exception():
    """A map that fails in its second call has moved neither the generator, beyond its one mask, nor the statistics."""
    norm, x = torch.nn.BatchNorm1d(3).double(), torch.randn(5, 3, dtype=DOUBLE)
    calls = []

    def f(z):
        calls.append(0)
        image = 0.3 * torch.nn.functional.dropout(norm(z + x), 0.5)
        if len(calls) == 2:
            raise ValueError("mine")
        return image

    with pytest.raises(ValueError, match="mine"):
        igt.fixed_point(f, torch.zeros(5, 3, dtype=DOUBLE))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3, dtype=DOUBLE))


BAD_RETURNS = {
    "None": (lambda image: None, ig.BackendError, "the structure PyTreeSpec"),
    "shape": (lambda image: image[:2], ig.ShapeError, r"shape \(2,\)"),
    "dtype": (lambda image: image.float(), ig.DtypeError, "torch.float32 for a state of torch.float64"),
    "device": (lambda image: image.to("meta"), ig.DeviceError, "a tensor on meta, expected cpu"),
    "number": (lambda image: 1.0, ig.BackendError, "a float, expected"),
}


@pytest.mark.fault(3, 4, 15, 19)
@pytest.mark.parametrize("name", BAD_RETURNS)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_wrong_answer_from_call_k_on_is_named(name, solver, k):
    """FAULTS 3, 4, 15, 19 and section 3, item 2: the exact exception, whichever call returns it."""
    act, error, words = BAD_RETURNS[name]
    z0, x, *bits = arguments()
    with pytest.raises(error, match=f"^fixed_point: f returned {words}"):
        igt.fixed_point(Interrupting(k, act), z0, x, solver=solver)
    check_the_next_call(z0, x, *bits)


@pytest.mark.parametrize("name", BAD_RETURNS)
def test_a_wrong_answer_in_the_backward_pass_is_named(name):
    act, error, _ = BAD_RETURNS[name]
    z0, x, *bits = arguments()
    f = Interrupting(10**9, act)
    z = igt.fixed_point(f, z0, x)
    f.k = f.calls + 1
    with pytest.raises(error, match=r"^fixed_point: f returned"):
        torch.autograd.grad(z.sum(), x)
    check_the_next_call(z0, x, *bits)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_an_answer_that_is_not_finite_from_call_k_on_is_a_status(solver, bad, k):
    """The solve ends there with its best finite iterate; the report says so before and after the backward pass."""
    z0, x, *bits = arguments()
    report = igt.Report()
    f = Interrupting(k, lambda image: image * bad)
    z = igt.fixed_point(f, z0, x, solver=solver, report=report, on_failure="return")
    assert torch.isfinite(z).all()
    assert report.forward.status in (ig.Status.NONFINITE_OPERATOR, ig.Status.STAGNATED)
    assert f.calls < 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad(z.sum(), x)
    assert report.status is ig.Status.FORWARD_NOT_CONVERGED
    check_the_next_call(z0, x, *bits)
