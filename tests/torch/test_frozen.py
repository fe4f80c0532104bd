"""Dropout, batch normalization and other maps with a state: one fixed function for the length of a pass."""

import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from torch.nn.utils import parametrizations

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
N, B = 4, 6
grad = torch.autograd.grad


def unrolled(f, z, steps=120):
    for _ in range(steps):
        z = f(z)
    return z


@pytest.fixture
def linear():
    layer = torch.nn.Linear(N, N).double()
    torch.nn.init.orthogonal_(layer.weight, gain=0.4)
    return layer


@pytest.fixture
def x():
    return torch.randn(B, N, dtype=DOUBLE, requires_grad=True)


@pytest.fixture
def zeros():
    return torch.zeros(B, N, dtype=DOUBLE)


def generator_after(calls_of_dropout):
    for _ in range(calls_of_dropout):
        torch.nn.functional.dropout(torch.ones(B, N, dtype=DOUBLE), 0.5)
    return torch.get_rng_state()


class TestDropout:
    @pytest.fixture
    def f(self, linear, x):
        dropout = torch.nn.Dropout(0.5)
        return lambda z: torch.tanh(dropout(linear(z)) + x)

    def test_the_forward_solve_converges_and_backward_has_the_same_mask(self, tight, linear, x, zeros, f):
        """The gradients are those of the map with the mask written down, which this seed draws."""
        report = igt.Report()
        torch.manual_seed(5)
        z = igt.fixed_point(f, zeros, **tight, report=report)
        torch.rand(7)  # backward does not depend on what is drawn in between
        ours = grad(z.pow(3).sum(), (x, *linear.parameters()))
        assert report.status is ig.Status.CONVERGED
        torch.manual_seed(5)
        mask = torch.nn.functional.dropout(torch.ones(B, N, dtype=DOUBLE), 0.5)
        masked = unrolled(lambda z: torch.tanh(mask * linear(z) + x), zeros)
        torch.testing.assert_close(z, masked)
        for a, b in zip(ours, grad(masked.pow(3).sum(), (x, *linear.parameters())), strict=True):
            torch.testing.assert_close(a, b)

    def test_to_second_order(self, tight, x, zeros, f):
        def second(z):
            (g,) = grad(z.pow(3).sum(), x, create_graph=True)
            return grad(g.square().sum(), x)[0]

        torch.manual_seed(5)
        ours = second(igt.fixed_point(f, zeros, **tight))
        torch.manual_seed(5)
        state = torch.get_rng_state()

        def masked(z):
            torch.set_rng_state(state)
            return f(z)

        torch.testing.assert_close(ours, second(unrolled(masked, zeros)))

    def test_a_seed_decides_the_pass(self, tight, x, zeros, f):
        def one(seed):
            torch.manual_seed(seed)
            z = igt.fixed_point(f, zeros, **tight)
            return z, grad(z.sum(), x)[0]

        (z, g), (again, g_again), (other, _) = one(1), one(1), one(2)
        assert torch.equal(z, again)
        assert torch.equal(g, g_again)
        assert not torch.equal(z, other)

    def test_the_generator_goes_on_by_one_call_and_backward_leaves_it(self, tight, x, zeros, f):
        torch.manual_seed(1)
        z = igt.fixed_point(f, zeros, **tight)
        after = torch.get_rng_state()
        grad(z.sum(), x, create_graph=True)
        assert torch.equal(torch.get_rng_state(), after)
        torch.manual_seed(1)
        assert torch.equal(after, generator_after(1))
        torch.manual_seed(1)
        first, second = (igt.fixed_point(f, zeros, **tight) for _ in range(2))
        assert not torch.equal(first, second)  # each call has a mask of its own
        after = torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(after, generator_after(2))

    def test_eval_mode_draws_nothing(self, tight, x, zeros, linear):
        dropout = torch.nn.Dropout(0.5).eval()
        before = torch.get_rng_state()
        igt.fixed_point(lambda z: torch.tanh(dropout(linear(z)) + x), zeros, **tight).sum().backward()
        assert torch.equal(torch.get_rng_state(), before)

    def test_newton_krylov_and_root_see_one_mask_too(self, x, zeros, f):
        for solve in (
            lambda: igt.fixed_point(f, zeros, solver=igt.NewtonKrylov(), on_failure="raise"),
            lambda: igt.root(lambda z: z - f(z), zeros, on_failure="raise"),
        ):
            torch.manual_seed(1)
            solve().sum().backward()


class TestBatchNorm:
    @pytest.fixture
    def norm(self):
        return torch.nn.BatchNorm1d(N, dtype=DOUBLE)

    @pytest.fixture
    def f(self, linear, norm, x):
        return lambda z: torch.tanh(0.5 * norm(linear(z) + x))

    def test_statistics_move_once_a_pass_at_the_fixed_point(self, tight, linear, norm, x, zeros, f):
        report = igt.Report()
        z = igt.fixed_point(f, zeros, **tight, report=report)
        reference = torch.nn.BatchNorm1d(N, dtype=DOUBLE)
        reference(linear(z) + x)
        z.sum().backward()
        assert report.status is ig.Status.CONVERGED
        assert norm.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_mean, reference.running_mean)
        torch.testing.assert_close(norm.running_var, reference.running_var)

    def test_two_passes_and_then_two_backwards_move_them_twice(self, tight, linear, norm, x, zeros, f):
        """Buffers are left as they are found, by the backward passes too, not as an older pass found them."""
        total = sum(igt.fixed_point(f, zeros, **tight).sum() for _ in range(2))
        moved = norm.running_mean.clone()
        total.backward()
        assert norm.num_batches_tracked == 2
        assert torch.equal(norm.running_mean, moved)
        reference = torch.nn.BatchNorm1d(N, dtype=DOUBLE)
        for _ in range(2):
            reference(linear(unrolled(f, zeros).detach()) + x)
        torch.testing.assert_close(moved, reference.running_mean)

    @pytest.mark.parametrize("training", [True, False])
    def test_gradients_equal_those_of_the_unrolled_map(self, tight, linear, norm, x, zeros, f, training):
        norm.train(training)
        wanted = (x, *norm.parameters(), *linear.parameters())

        def second(z):
            first = grad(z.pow(3).sum() + z.square().sum(), wanted, create_graph=True)
            return first + grad(sum(g.square().sum() for g in first), wanted)

        with torch.no_grad():
            norm.running_mean.uniform_(-1, 1)
        for ours, expected in zip(second(igt.fixed_point(f, zeros, **tight)), second(unrolled(f, zeros)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)

    def test_eval_mode_moves_nothing_and_costs_nothing(self, tight, norm, x, zeros, linear):
        norm.eval()
        calls = []

        def f(z):
            calls.append(None)
            return torch.tanh(0.5 * norm(linear(z) + x))

        report = igt.Report()
        igt.fixed_point(f, zeros, **tight, report=report)
        assert len(calls) == report.forward.num_matvecs
        assert norm.num_batches_tracked == 0

    def test_one_layer_twice_in_a_graph(self, tight, linear, norm, x, zeros, f):
        total = igt.fixed_point(f, zeros, **tight).sum() + igt.fixed_point(f, zeros, **tight).square().sum()
        (ours,) = grad(total, x)
        z = unrolled(f, zeros)
        torch.testing.assert_close(ours, grad(z.sum() + z.square().sum(), x)[0])

    def test_under_no_grad_and_inference_mode(self, tight, norm, zeros, f):
        for count, mode in enumerate((torch.no_grad, torch.inference_mode), start=1):
            with mode():
                igt.fixed_point(f, zeros, **tight)
            assert norm.num_batches_tracked == count


class TestOtherBuffers:
    def test_spectral_norm_in_training_takes_one_power_step_a_pass(self, tight, x, zeros):
        torch.manual_seed(2)
        layer = parametrizations.spectral_norm(torch.nn.Linear(N, N).double())
        torch.manual_seed(2)
        reference = parametrizations.spectral_norm(torch.nn.Linear(N, N).double())
        z = igt.fixed_point(lambda z: torch.tanh(0.5 * layer(z) + x), zeros, **tight)
        (ours,) = grad(z.sum(), layer.parametrizations.weight.original)
        weight = reference.weight  # one access, one step
        for name in ("_u", "_v"):
            moved, once = (getattr(m.parametrizations.weight[0], name) for m in (layer, reference))
            torch.testing.assert_close(moved, once)
        masked = unrolled(lambda z: torch.tanh(0.5 * torch.nn.functional.linear(z, weight, layer.bias) + x), zeros)
        torch.testing.assert_close(ours, grad(masked.sum(), reference.parametrizations.weight.original)[0])

    def test_a_buffer_that_is_written_and_then_used(self, tight, x, zeros):
        """What the graph has saved of it must still be there when products are taken."""
        scale = torch.full((N,), 0.5, dtype=DOUBLE, requires_grad=True)
        buffer = torch.zeros(N, dtype=DOUBLE)

        def f(z):
            buffer.mul_(0.5).add_(0.5 * z.detach().mean(0) + 0.1)
            return torch.tanh(0.3 * z + x + buffer * scale)

        z = igt.fixed_point(f, zeros, **tight)
        average = 0.5 * z.detach().mean(0) + 0.1
        torch.testing.assert_close(buffer, average)
        buffer.fill_(7.0)  # by another pass
        (ours,) = grad(z.pow(3).sum(), scale)
        assert torch.equal(buffer, torch.full_like(buffer, 7.0))
        expected = unrolled(lambda z: torch.tanh(0.3 * z + x + average * scale), zeros)
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close(ours, grad(expected.pow(3).sum(), scale)[0])

    @pytest.mark.parametrize("by", [lambda b: b, lambda b: b[:], lambda b: b.view(-1), lambda b: b.data, lambda b: b.T])
    def test_writes_are_seen_through_views(self, tight, x, zeros, by):
        counter = torch.zeros(2)

        def f(z):
            by(counter).add_(1.0)
            return torch.tanh(0.3 * z + x)

        z = igt.fixed_point(f, zeros, **tight)
        assert counter.tolist() == [1.0, 1.0]
        z.sum().backward()
        assert counter.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize(
        "write",
        [
            lambda b: b.__setitem__(0, b[0] + 1),
            lambda b: b[:1].copy_(b[:1] + 1),
            lambda b: torch.add(b, torch.tensor([1.0, 0.0]), out=b),
            lambda b: b.index_add_(0, torch.tensor([0]), torch.ones(1)),
            lambda b: torch._foreach_add_([b[:1]], 1.0),
        ],
    )
    def test_and_in_any_form(self, tight, x, zeros, write):
        counter = torch.zeros(2)

        def f(z):
            write(counter)
            return torch.tanh(0.3 * z + x)

        igt.fixed_point(f, zeros, **tight).sum().backward()
        assert counter.tolist() == [1.0, 0.0]


class TestExceptions:
    @pytest.mark.parametrize("at", [1, 4])
    def test_leave_buffers_as_they_were_and_the_generator_where_one_call_leaves_it(self, tight, x, zeros, at):
        norm, dropout, calls = torch.nn.BatchNorm1d(N, dtype=DOUBLE), torch.nn.Dropout(0.5), []

        def f(z):
            calls.append(None)
            y = dropout(norm(z + x))
            if len(calls) == at:
                raise ValueError("mine")
            return torch.tanh(0.3 * y)

        torch.manual_seed(1)
        with pytest.raises(ValueError, match=r"^mine$"):
            igt.fixed_point(f, zeros, **tight)
        assert len(calls) == at
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_mean, torch.zeros(N, dtype=DOUBLE))
        after = torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(after, generator_after(1))

    def test_in_backward_too(self, tight, x, zeros):
        norm, broken = torch.nn.BatchNorm1d(N, dtype=DOUBLE), []

        def f(z):
            y = torch.tanh(0.3 * norm(z + x))
            if broken:
                raise ValueError("mine")
            return y

        z = igt.fixed_point(f, zeros, **tight)
        before, state = norm.running_mean.clone(), torch.get_rng_state()
        broken.append(True)
        with pytest.raises(ValueError, match=r"^mine$"):
            z.sum().backward()
        assert torch.equal(norm.running_mean, before)
        assert torch.equal(torch.get_rng_state(), state)


def test_threads_with_maps_of_their_own_keep_their_statistics(tight):
    """Six at once, each with its module: what one freezes is not another's."""
    results = {}

    def work(i):
        norm = torch.nn.BatchNorm1d(N, dtype=DOUBLE)
        x = (torch.arange(B * N, dtype=DOUBLE).reshape(B, N).sin() + i).requires_grad_()
        for _ in range(5):
            z = igt.fixed_point(lambda z: torch.tanh(0.3 * norm(z + x)), torch.zeros(B, N, dtype=DOUBLE), **tight)
            (g,) = grad(z.pow(3).sum(), x)
        results[i] = norm.num_batches_tracked.item(), norm.running_mean, g

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for i in range(6):
        work(i)
        assert together[i][0] == results[i][0] == 5
        torch.testing.assert_close(together[i][1:], results[i][1:])  # sums are parted otherwise in other threads
