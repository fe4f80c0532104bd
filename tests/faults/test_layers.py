"""Layers of torch under the same faults: interrupted at any line, re-entered, in threads, with hooks that raise.

``f(z, x) = tanh(W z + x)`` in a module with a buffer, so that there is something to leave in disorder.
"""

import contextlib
import signal
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from interrupts import InterruptAt, spread
from subjects import ENTRIES, Cell, anatomy, gradient
from world import undisturbed

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
SOLVERS = [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()]


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return Cell()


@pytest.fixture
def x():
    return torch.linspace(-1.0, 1.0, 4, dtype=DOUBLE).requires_grad_()


@contextlib.contextmanager
def at_most_drawn(after_a_pass):
    """Assert that torch's generator is as before or as after a whole pass, and let it be as before."""
    before = torch.get_rng_state()
    yield
    now = torch.get_rng_state()
    assert torch.equal(now, before) or torch.equal(now, after_a_pass)
    torch.set_rng_state(before)


@pytest.mark.fault(58, 85)
@pytest.mark.parametrize("name", ENTRIES)
def test_an_interrupt_at_any_line_of_a_pass_changes_nothing(name, cell, x):
    """Forward and backward, at forty lines of the package: the module, torch's modes and generator are as before.

    But for dropout, whose one mask for a pass is drawn by then or is not.
    """
    layer = ENTRIES[name]
    cell.eval()
    expected = gradient(layer, cell, x)
    with InterruptAt() as count:
        gradient(layer, cell, x)
    assert count.lines > 400
    before, after_a_pass = anatomy(cell), torch.get_rng_state()
    torch.manual_seed(3)
    for number in spread(count.lines, 40):
        with (
            undisturbed(x),
            at_most_drawn(after_a_pass),
            pytest.raises(KeyboardInterrupt) as caught,
            InterruptAt(number) as interrupt,
        ):
            gradient(layer, cell, x)
        assert caught.value is interrupt.error
        assert anatomy(cell) == before, interrupt.error
    for ours, truth in zip(gradient(layer, cell, x), expected, strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.fault(58)
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread are POSIX")
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_ctrl_c_ends_a_map_that_sleeps(where, cell, x):
    calls, sleeps = [], False

    def f(z, x):
        calls.append(0)
        if sleeps and len(calls) > 2:
            threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
            time.sleep(30)
        return cell(z, x)

    before, began = signal.signal(signal.SIGINT, signal.default_int_handler), time.perf_counter()

    def one():
        nonlocal sleeps
        z = igt.fixed_point(f, torch.zeros_like(x), x)
        sleeps = True
        torch.autograd.grad(z.sum(), x)

    try:
        sleeps = where == "forward"
        with undisturbed(x), pytest.raises(KeyboardInterrupt):
            one()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - began < 20
    sleeps = False
    assert gradient(ENTRIES["fixed_point"], cell, x)[0].isfinite().all()


@pytest.mark.fault(57)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
@pytest.mark.parametrize("error", [StopIteration, GeneratorExit, MemoryError, RuntimeError, ig.NotConvergedError])
def test_any_exception_of_the_third_call_comes_out_as_it_is(solver, error, cell, x):
    calls, mine = [], error("mine")

    def f(z, x):
        calls.append(0)
        if len(calls) == 3:
            raise mine
        return cell(z, x)

    with undisturbed(x), pytest.raises(error) as caught:
        igt.fixed_point(f, torch.zeros_like(x), x, solver=solver)
    assert caught.value is mine


@pytest.mark.fault(59)
@pytest.mark.parametrize("kind", ["module", "tensor", "cotangent"])
def test_a_hook_that_raises_comes_out_as_it_is(kind, cell, x):
    """The callbacks of torch: of a module in the forward pass, of a tensor in the map, of the cotangent's."""
    mine, armed = ValueError("mine"), [True]

    def hook(*arguments):
        if armed:
            raise mine

    def f(z, x):
        image = cell(z, x)
        if kind == "tensor" and image.requires_grad:
            image.register_hook(hook)
        return image

    def one():
        z = igt.fixed_point(f, torch.zeros_like(x), x)
        if kind == "cotangent":
            z.register_hook(hook)
        return torch.autograd.grad(z.sum(), x)[0]

    handle = cell.linear.register_forward_hook(hook) if kind == "module" else None
    with undisturbed(x), pytest.raises(ValueError, match=r"^mine$") as caught:
        one()
    assert caught.value is mine
    armed.clear()
    if handle is not None:
        handle.remove()
    assert torch.equal(one(), gradient(ENTRIES["fixed_point"], cell, x)[0])


@pytest.mark.fault(79)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_map_may_find_a_fixed_point_with_the_solver_that_asks_for_it(solver, x):
    """z = tanh(y / 4 + x), y = y / 2 + z: so y = 2 z, and dz/dx = c / (1 - c / 2) with c = 1 - z^2, by hand."""

    def f(z, x):
        y = igt.fixed_point(lambda y, z: 0.5 * y + z, torch.zeros_like(z), z, solver=solver)
        return torch.tanh(0.25 * y + x)

    with undisturbed(x):
        z = igt.fixed_point(f, torch.zeros_like(x), x, solver=solver)
        (ours,) = torch.autograd.grad(z.sum(), x)
    slope = 1 - z.detach() ** 2
    torch.testing.assert_close(z.detach(), torch.tanh(0.5 * z.detach() + x.detach()), rtol=0, atol=1e-7)
    torch.testing.assert_close(ours, slope / (1 - slope / 2), rtol=1e-6, atol=0)


@pytest.mark.fault(57, 79, 85)
def test_threads_train_while_one_of_them_fails(cell, x):
    """Six threads share a module and get their own gradients; a seventh raises in its third call all the while."""
    inputs = [(x.detach() + i / 6).requires_grad_() for i in range(6)]
    layer = ENTRIES["fixed_point"]
    plain = lambda x: torch.autograd.grad(layer(cell, x).sum(), (x, cell.linear.weight))
    cell.eval()
    expected, got, raised = [plain(x) for x in inputs], [[] for _ in inputs], []
    start, calls = threading.Barrier(7), []

    def work(i):
        start.wait()
        for _ in range(4):
            got[i].append(plain(inputs[i]))

    def failing(z, x):
        calls.append(0)
        if len(calls) % 3 == 0:
            raise ZeroDivisionError
        return cell(z, x)

    def fail():
        start.wait()
        for _ in range(4):
            try:
                igt.fixed_point(failing, torch.zeros_like(x), x)
            except ZeroDivisionError as error:
                raised.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)] + [threading.Thread(target=fail)]
    with undisturbed(x):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(raised) == 4
    for results, truth in zip(got, expected, strict=True):
        assert len(results) == 4
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, truth, strict=True))


@pytest.mark.fault(54)
@pytest.mark.parametrize("solver", SOLVERS[:3], ids=lambda s: s.name)
@pytest.mark.parametrize("owner", ["numpy", "torch"])
def test_a_map_may_answer_in_a_buffer_that_numpy_writes(solver, owner):
    """No version of torch's tells that it was written; it was its own image in the second call, and CONVERGED."""
    buffer = torch.zeros(3, dtype=DOUBLE) if owner == "torch" else torch.from_numpy(np.zeros(3))
    array = buffer.numpy()

    def f(z):
        np.multiply(z.numpy(), [0.5, 0.25, 0.75], out=array)
        array[...] += 1
        return buffer

    with torch.no_grad():
        z = igt.fixed_point(f, torch.zeros(3, dtype=DOUBLE), solver=solver)
    torch.testing.assert_close(z, torch.tensor([2.0, 4 / 3, 4.0], dtype=DOUBLE), rtol=1e-9, atol=0)
