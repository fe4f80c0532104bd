"""Tensors that a map comes by in other ways than as arguments: their gradients are those of arguments, or refused."""

import threading
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
N = 3
grad = torch.autograd.grad
WEIGHT = torch.nn.Parameter(torch.tensor([0.2, -0.5, 0.4], dtype=DOUBLE))  # a global


def unrolled(f, z, *args, steps=120):
    for _ in range(steps):
        z = f(z, *args)
    return z


def first(z, wanted):
    return grad(z.pow(3).sum() + z.sum(), wanted, retain_graph=True)


def second(z, wanted):
    gradients = grad(z.pow(3).sum() + z.sum(), wanted, create_graph=True)
    return grad(sum(g.square().sum() for g in gradients), wanted, retain_graph=True)


def assert_equal(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert b.abs().max() > 1e-6, "a gradient of zero proves nothing"
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.fixture
def x():
    return torch.randn(N, dtype=DOUBLE)


@pytest.fixture
def w():
    return torch.randn(N, dtype=DOUBLE, requires_grad=True)


@pytest.fixture
def zeros():
    return torch.zeros(N, dtype=DOUBLE)


@pytest.fixture
def check(tight, zeros):
    """``check(f, wanted, *args)``: first and second derivatives for ``wanted`` are those of the unrolled map."""

    def run(f, wanted, *args, orders=(first, second)):
        wanted = tuple(wanted)
        for order in orders:
            z = igt.fixed_point(f, zeros, *args, **tight)
            assert_equal(order(z, wanted), order(unrolled(f, zeros, *args), wanted))

    return run


def small(layer):
    """A linear layer whose map contracts."""
    torch.nn.init.orthogonal_(layer.weight, gain=0.5)
    return layer


class TestWhereItIsKept:
    def test_in_a_module_that_is_the_map(self, check, x):
        class Cell(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = small(torch.nn.Linear(N, N).double())

            def forward(self, z, x):
                return torch.tanh(self.linear(z) + x)

        cell = Cell()
        check(cell, cell.parameters(), x)

    def test_in_closures_globals_attributes_and_containers(self, check, w, x):
        class Plain:
            weight = w

            def step(self, z):
                return torch.tanh(0.3 * z * self.weight + x)

        held = [w, {"w": w}]
        check(lambda z: torch.tanh(0.3 * z * w + x), [w])
        check(lambda z: torch.tanh(0.3 * z * WEIGHT + x), [WEIGHT])
        check(Plain().step, [w])
        check(lambda z: torch.tanh(0.3 * z * held[0] + held[1]["w"] + x), [w])
        check(lambda z, w=w: torch.tanh(0.3 * z * w + x), [w])
        check(lambda z, given: torch.tanh(0.3 * z * given.weight + x), [w], Plain())

    def test_as_a_part_of_itself(self, check, w, x):
        """Through indexing, properties, iteration, unpacking: what is captured is ``w``."""
        check(lambda z: torch.tanh(0.3 * z * w[1] + w.T + torch.stack([a * a for a in w]) + x), [w])
        check(lambda z: torch.addcmul(x, torch.tanh(z), w.flip(0), value=0.3).index_select(0, torch.arange(N)), [w])
        check(lambda z: torch.cat([z[:1] * w[:1], 0.2 * z[1:] + w[1:]]).tanh(), [w])

    @pytest.mark.parametrize(
        "parametrized",
        [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm],
        ids=lambda p: p.__name__,
    )
    def test_in_parametrized_modules(self, check, x, parametrized):
        linear = parametrized(torch.nn.Linear(N, N).double()).eval()
        f = lambda z: torch.tanh(0.5 * linear(z) + x)
        check(f, linear.parameters())

    def test_a_frozen_parameter_gets_none(self, tight, zeros, x):
        linear = small(torch.nn.Linear(N, N).double())
        linear.weight.requires_grad_(False)
        igt.fixed_point(lambda z: torch.tanh(linear(z) + x), zeros, **tight).sum().backward()
        assert linear.weight.grad is None
        assert linear.bias.grad.abs().sum() > 0

    def test_an_unused_parameter_gets_none(self, tight, zeros, w, x):
        other = torch.ones(N, dtype=DOUBLE, requires_grad=True)

        def f(z):
            other.square()  # handed to a torch function, and of no consequence
            return torch.tanh(0.3 * z * w + x)

        z = igt.fixed_point(f, zeros, **tight)
        assert grad(z.sum(), (w, other), allow_unused=True)[1] is None

    def test_where_an_energy_is_differentiated_inside_of_the_map(self, check, x):
        """``z = x - grad E(z) / 2``, with the gradient by autograd: views that begin a graph of their own."""
        W = (0.5 * torch.randn(N, N, dtype=DOUBLE)).requires_grad_()

        def f(z, x):
            with torch.enable_grad():
                z = z if z.requires_grad else z.detach().requires_grad_()
                energy = torch.log(torch.cosh(W @ z)).sum() + x.detach().requires_grad_().sum()
                (g,) = torch.autograd.grad(energy, z, create_graph=True)
            return x - 0.5 * g

        check(f, [W], x)

    def test_in_a_scripted_module(self, check, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(small(torch.nn.Linear(N, N).double()))
        check(lambda z: torch.tanh(scripted(z) + x), scripted.parameters(), orders=[first])


class TestHistory:
    def test_a_tensor_with_a_history(self, check, w, x):
        y = torch.sin(w)
        check(lambda z: torch.tanh(0.3 * z * y + x), [w])

    def test_and_the_leaf_it_comes_from(self, check, w, x):
        y = torch.sin(w)
        check(lambda z: torch.tanh(0.3 * z * y + w + x), [w])

    def test_and_one_that_comes_from_the_other(self, check, w, x):
        y = torch.sin(w)
        u = y.square() + w
        check(lambda z: torch.tanh(0.3 * z * y + u + x), [w, y, u])

    @pytest.mark.parametrize("history", [False, True])
    def test_passed_and_captured(self, check, w, x, history):
        y = torch.sin(w) if history else w
        check(lambda z, given: torch.tanh(0.3 * z * y + given.square() + x), [w], y)

    def test_a_start_that_is_captured(self, tight, w, x):
        f = lambda z: torch.tanh(0.3 * z + w * x)
        z = igt.fixed_point(f, w, **tight)
        assert_equal(second(z, [w]), second(unrolled(f, torch.zeros_like(w)), [w]))

    def test_made_by_another_thread(self, check, w, x):
        """Threads count the nodes of their graphs each for itself."""
        made = []

        def make():
            y = w
            for _ in range(2000):
                y = y + 0.0
            made.append(torch.sin(y))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        check(lambda z: torch.tanh(0.3 * z * made[0] + x), [w])

    def test_several_uses_of_one_layer(self, tight, zeros, x):
        linear = small(torch.nn.Linear(N, N).double())
        results = []
        for solve in (lambda *a: igt.fixed_point(*a, **tight), unrolled):
            f = lambda z, y: torch.tanh(linear(z) + y)
            a = solve(f, zeros, x)
            b = solve(f, zeros, a + linear.bias)
            results.append(second(a * b + solve(f, a, b), tuple(linear.parameters())))
        assert_equal(*results)


class TestNested:
    def test_fixed_points_in_fixed_points_to_second_order(self, tight, zeros, w, x):
        inner, outer = small(torch.nn.Linear(N, N).double()), small(torch.nn.Linear(N, N).double())
        y = torch.sin(w)

        def layer(solve):
            inside = lambda h, z: torch.tanh(0.5 * inner(h) + 0.3 * z + y)
            return solve(lambda z, x: torch.tanh(0.5 * outer(solve(inside, zeros, z)) + x + w), zeros, x)

        wanted = [w, *inner.parameters(), *outer.parameters()]
        solvers = (lambda *a: igt.fixed_point(*a, **tight)), (lambda *a: unrolled(*a, steps=30))  # rates of 1/4
        ours, expected = map(layer, solvers)
        assert_equal(first(ours, wanted), first(expected, wanted))
        assert_equal(second(ours, wanted), second(expected, wanted))

    def test_an_inner_optimum_in_a_fixed_point(self, tight, zeros, w, x):
        """The minimum of a quadratic, in closed form beside it."""
        settings = {"solver": igt.NewtonKrylov(inner=ig.CG(), rtol=1e-14), "adjoint": ig.CG(rtol=1e-13)}
        loss = lambda v, z: (0.5 * (1 + w.square()) * v.square()).sum() - (v * z).sum()
        by_argmin = lambda z: igt.argmin(loss, zeros, z, on_failure="return", **settings)
        closed = lambda z: z / (1 + w.square())
        f = lambda solve: lambda z: torch.tanh(0.5 * solve(z) + w + x)
        z = igt.fixed_point(f(by_argmin), zeros, **tight)
        expected = unrolled(f(closed), zeros)
        assert_equal(second(z, [w]), second(expected, [w]))

    def test_checkpoints_inside_of_the_map(self, check, w, x):
        y = torch.sin(w)
        body = lambda z: torch.tanh(0.3 * z * y + w + x)
        f = lambda z: checkpoint(body, z, use_reentrant=False)
        check(f, [w])
        check(f, [y])  # of one of them only

    def test_reentrant_checkpoints_are_refused_by_torch(self, tight, zeros, w, x):
        f = lambda z: checkpoint(lambda z: torch.tanh(0.3 * z * w + x), z, use_reentrant=True) + w
        z = igt.fixed_point(f, zeros, **tight)
        with pytest.raises(RuntimeError, match="use_reentrant"):
            grad(z.sum(), w)


class Square(torch.autograd.Function):
    """What it is handed no torch function shows."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a * a

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class TestWhatCannotBeSeen:
    def test_a_leaf_in_a_custom_function_has_its_first_derivative(self, check, w, x):
        check(lambda z: torch.tanh(0.3 * z + Square.apply(w) + x), [w], orders=[first])

    def test_and_its_second_one_is_refused(self, tight, zeros, w, x):
        z = igt.fixed_point(lambda z: torch.tanh(0.3 * z + Square.apply(w) + x), zeros, **tight)
        with pytest.raises(ig.SettingError, match=r"shape \(3,\) in a way that was not seen.*Pass the tensor"):
            grad(z.sum(), w, create_graph=True)

    def test_as_an_argument_it_has_both(self, check, w, x):
        check(lambda z, w: torch.tanh(0.3 * z + Square.apply(w) + x), [w], w)

    def test_a_history_in_a_custom_function_is_refused(self, tight, zeros, w, x):
        y = torch.sin(w)
        z = igt.fixed_point(lambda z: torch.tanh(0.3 * z + Square.apply(y) + x), zeros, **tight)
        with pytest.raises(ig.SettingError, match="Pass the tensor"):
            grad(z.sum(), w)

    @pytest.mark.parametrize("history", [False, True])
    def test_a_branch_that_reaches_another_tensor_at_the_fixed_point_is_refused(self, tight, zeros, w, x, history):
        late = torch.randn(N, dtype=DOUBLE, requires_grad=True)
        y = torch.sin(late) if history else late
        f = lambda z: torch.tanh(0.3 * z * w + x + (y if z.abs().max() > 0 else 0))
        z = igt.fixed_point(f, zeros, **tight)
        with pytest.raises(ig.SettingError, match="another branch than at the start"):
            grad(z.sum(), w)


class TestEditsInPlace:
    @pytest.mark.parametrize("passed", [False, True])
    @pytest.mark.parametrize("wants_gradient", [False, True])
    def test_between_forward_and_backward_raise(self, tight, zeros, w, x, passed, wants_gradient):
        """Of parameters and of constants, captured or passed; ordinary autograd raises for all four."""
        edited = x.requires_grad_(wants_gradient)
        f = lambda z, given: torch.tanh(0.3 * z * w + (given if passed else edited))
        z = igt.fixed_point(f, zeros, edited if passed else None, **tight)
        with torch.no_grad():
            edited.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grad(z.sum(), w)

    def test_by_the_map_itself_of_its_arguments_are_refused(self, zeros, w, x):
        """It is called many times: they would pile up."""
        f = lambda z, y: torch.tanh(0.3 * z * w + y.view(-1).add_(1.0))
        with pytest.raises(ig.OperatorError, match="f changes a tensor of shape"):
            igt.fixed_point(f, zeros, x)

    def test_of_what_the_map_does_not_use_are_free(self, tight, zeros, w, x):
        other = torch.ones(N)
        z = igt.fixed_point(lambda z: torch.tanh(0.3 * z * w + x), zeros, **tight)
        other.add_(1.0)
        assert grad(z.sum(), w)[0].abs().sum() > 0

    def test_of_a_start_are_free(self, tight, w, x):
        """A warm start that the caller writes the result into."""
        start = torch.zeros(N, dtype=DOUBLE)
        z = igt.fixed_point(lambda z: torch.tanh(0.3 * z * w + x), start, **tight)
        start.copy_(z.detach())
        assert grad(z.sum(), w)[0].abs().sum() > 0


class TestFunctionalCall:
    @pytest.mark.parametrize("trainable", [False, True])
    def test_parameters_that_were_swapped_in_for_the_forward_pass(self, tight, zeros, w, x, trainable):
        """Fast weights, as in meta-learning: the module has its own again when backward runs."""
        linear = small(torch.nn.Linear(N, N).double()).requires_grad_(trainable)

        class Model(torch.nn.Module):
            def __init__(self, solve):
                super().__init__()
                self.linear, self.solve = linear, solve

            def forward(self, x):
                return self.solve(lambda z: torch.tanh(self.linear(z) + x), zeros)

        results = []
        for solve in (lambda f, z: igt.fixed_point(f, z, **tight), unrolled):
            fast = {"linear.bias": w.sin(), "linear.weight": 0.3 * torch.outer(w, w).tanh()}
            results.append(second(torch.func.functional_call(Model(solve), fast, (x,)), [w]))
        assert_equal(*results)
        assert isinstance(linear.weight, torch.nn.Parameter)  # and they stay out afterwards
