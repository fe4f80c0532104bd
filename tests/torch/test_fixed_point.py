"""fixed_point: gradients that are right, to every order, and a report that says so."""

import gc
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


def contraction(n, rate=0.7):
    W = torch.randn(n, n, dtype=DOUBLE)
    return (W * (rate / torch.linalg.matrix_norm(W, 2))).requires_grad_()


def tanh_map(z, W, x):
    return torch.tanh(z @ W.T + x)


def unrolled(f, z, *args, steps=400):
    for _ in range(steps):
        z = f(z, *args)
    return z


class TestFirstOrder:
    @pytest.mark.parametrize("batch_ndim", [0, 1])
    def test_gradcheck_of_a_tanh_map(self, tight, batch_ndim):
        W, x = contraction(4), torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
        solve = lambda W, x: igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, batch_ndim=batch_ndim, **tight)
        assert torch.autograd.gradcheck(solve, (W, x))

    @pytest.mark.parametrize(
        "solver",
        [
            ig.Neumann(rtol=1e-12),
            ig.Richardson(rtol=1e-12),
            ig.NormalEquations(ig.CG(rtol=1e-12)),
            ig.GMRES(rtol=1e-12),
            ig.BiCGSTAB(rtol=1e-12),
            ig.LSMR(rtol=1e-12),
            ig.Dense(),
            ig.Auto(rtol=1e-12),
        ],
        ids=lambda s: s.name,
    )
    def test_every_adjoint_solver_gives_the_limit_of_bptt(self, solver):
        W, x = contraction(6), torch.randn(2, 6, dtype=DOUBLE, requires_grad=True)
        settings = {"solver": igt.Picard(rtol=1e-14), "batch_ndim": 1, "on_failure": "return"}
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint=solver, **settings)
        ours = torch.autograd.grad(z.square().sum(), (W, x))
        expected = torch.autograd.grad(unrolled(tanh_map, torch.zeros_like(x), W, x).square().sum(), (W, x))
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("training", [True, False])
    def test_parameters_of_a_module_get_gradients_in_train_and_eval_mode(self, tight, training):
        layer = torch.nn.Linear(5, 5).double().train(training)
        torch.nn.init.orthogonal_(layer.weight, gain=0.6)
        x = torch.randn(4, 5, dtype=DOUBLE)
        f = lambda z: torch.tanh(layer(z) + x)
        igt.fixed_point(f, torch.zeros_like(x), batch_ndim=1, **tight).square().sum().backward()
        ours = layer.weight.grad.clone()
        layer.zero_grad()
        unrolled(f, torch.zeros_like(x)).square().sum().backward()
        torch.testing.assert_close(ours, layer.weight.grad)

    def test_a_small_loss_keeps_its_gradient(self):
        """Scaling the loss by 2^-40 scales the gradient by exactly that: no absolute tolerance anywhere."""
        W, x = contraction(5), torch.randn(5, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
        (plain,) = torch.autograd.grad(z.sum(), W, retain_graph=True)
        (small,) = torch.autograd.grad(z.sum() * 2.0**-40, W)
        assert torch.equal(small * 2.0**40, plain)

    def test_the_start_has_zero_gradient(self):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)
        z0 = torch.randn(3, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(tanh_map, z0, W, x)
        grad_z0, grad_W = torch.autograd.grad(z.sum(), (z0, W))
        assert torch.equal(grad_z0, torch.zeros(3, dtype=DOUBLE))
        assert grad_W.abs().sum() > 0

    def test_nested_states_and_nested_arguments(self, tight):
        def f(state, inputs):
            a, b = state["a"], state["b"]
            return {"a": torch.tanh(0.4 * b.sum() + inputs[0]), "b": torch.sin(0.3 * a[:2]) * inputs[1]["w"]}

        state = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.zeros(2, dtype=DOUBLE)}
        p, w = torch.randn(3, dtype=DOUBLE, requires_grad=True), torch.randn((), dtype=DOUBLE, requires_grad=True)

        def solve(p, w):
            z = igt.fixed_point(f, state, (p, {"w": w}), **tight)
            return z["a"], z["b"]

        assert torch.autograd.gradcheck(solve, (p, w))
        assert torch.autograd.gradgradcheck(solve, (p, w))

    def test_one_layer_used_twice_and_nested(self, tight):
        W, x = contraction(3, 0.5), torch.randn(3, dtype=DOUBLE, requires_grad=True)
        layer = lambda W, x: igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, **tight)
        assert torch.autograd.gradcheck(lambda W, x: layer(W, layer(W, x)) + layer(W, 2 * x), (W, x))
        outer = lambda z, x: (
            0.3 * igt.fixed_point(lambda y, z: 0.2 * torch.sin(y) + z, torch.zeros_like(z), z, **tight) + x
        )
        assert torch.autograd.gradcheck(lambda x: igt.fixed_point(outer, torch.zeros_like(x), x, **tight), (x,))

    def test_bring_your_own_forward_solver(self, tight):
        W, x = contraction(4), torch.randn(4, dtype=DOUBLE, requires_grad=True)
        with torch.no_grad():
            z = unrolled(tanh_map, torch.zeros_like(x), W, x)
        grads = torch.autograd.grad(igt.implicit_gradient(tanh_map, z, W, x, adjoint=tight["adjoint"]).sum(), (W, x))
        expected = torch.autograd.grad(unrolled(tanh_map, torch.zeros_like(x), W, x).sum(), (W, x))
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b)


class TestHigherOrder:
    def test_gradgradcheck_and_third_order(self, tight):
        W, x = contraction(3), torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
        solve = lambda W, x: igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, batch_ndim=1, **tight)
        assert torch.autograd.gradgradcheck(solve, (W, x))
        a = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        scalar = lambda a: igt.fixed_point(
            lambda z, a: torch.tanh(a * z + 0.3), torch.zeros((), dtype=DOUBLE), a, **tight
        )
        first = lambda a: torch.autograd.grad(scalar(a), a, create_graph=True)[0]
        assert torch.autograd.gradgradcheck(first, (a,))

    def test_second_derivative_of_captured_parameters(self, tight):
        """Through the weights that a closure reaches, without naming them: equal to BPTT's second derivative."""
        layer = torch.nn.Linear(3, 3).double()
        torch.nn.init.orthogonal_(layer.weight, gain=0.5)
        x = torch.randn(3, dtype=DOUBLE)
        f = lambda z: torch.tanh(layer(z) + x)

        def curvature(z):
            (g,) = torch.autograd.grad(z.pow(3).sum(), layer.weight, create_graph=True)
            return torch.autograd.grad(g.square().sum(), (layer.weight, layer.bias))

        ours = curvature(igt.fixed_point(f, torch.zeros_like(x), **tight))
        expected = curvature(unrolled(f, torch.zeros_like(x), steps=120))
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)

    def test_a_truncated_adjoint_refuses_to_be_differentiated(self):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint="jfb")
        with pytest.raises(ig.SettingError, match="TRUNCATED"):
            torch.autograd.grad(z.sum(), W, create_graph=True)


class TestReports:
    def test_forward_and_backward_are_told(self):
        W, x, report = contraction(4), torch.randn(2, 4, dtype=DOUBLE), igt.Report()
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, batch_ndim=1, report=report)
        assert report.forward.converged.all()
        assert report.backward is None
        z.sum().backward()
        assert report.backward.converged.all()
        assert report.backward.num_matvecs > 0
        assert not report.backward.x.requires_grad
        assert report.status is ig.Status.CONVERGED
        assert "GMRES" in repr(report)

    def test_an_expanding_map_warns_forward(self):
        report = igt.Report()
        x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        with pytest.warns(ig.ConvergenceWarning, match="fixed_point, forward: Picard"):
            z = igt.fixed_point(
                lambda z, x: 1.3 * z + x, torch.zeros(2, dtype=DOUBLE), x, solver=igt.Picard(), report=report
            )
        assert torch.isfinite(z).all()
        assert report.status is ig.Status.FORWARD_NOT_CONVERGED

    def test_backward_obeys_the_policy(self):
        W, x = contraction(20, 0.95), torch.randn(20, dtype=DOUBLE)
        make = lambda policy: igt.fixed_point(
            tanh_map, torch.zeros_like(x), W, x, adjoint=ig.GMRES(max_iters=1), on_failure=policy
        ).sum()
        with pytest.raises(ig.NotConvergedError, match=r"fixed_point, backward: .*GMRES stopped"):
            make("raise").backward()
        with pytest.warns(ig.ConvergenceWarning, match="GMRES stopped"):
            make("warn").backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make("return").backward()
            make(ig.GMRES()).backward()

    def test_a_point_that_is_not_fixed_is_said_to_be_none(self):
        report = igt.Report()
        x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        with pytest.warns(ig.ConvergenceWarning, match="FORWARD_NOT_CONVERGED"):
            igt.implicit_gradient(lambda z, x: 0.5 * z + x, torch.zeros(2, dtype=DOUBLE), x, report=report)
        assert report.forward.status is ig.Status.FORWARD_NOT_CONVERGED

    def test_one_step_gradients_are_asked_for_by_name(self):
        x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros_like(x), x, adjoint="jfb", report=report).sum().backward()
        assert torch.equal(x.grad, torch.ones(2, dtype=DOUBLE))  # the exact gradient is 2
        assert report.backward.status is ig.Status.TRUNCATED


class TestState:
    def test_a_forward_without_backward_leaves_nothing_alive(self):
        gc.disable()
        try:
            W, x, report = contraction(3), torch.randn(3, dtype=DOUBLE), igt.Report()

            def f(z, W, x):
                return tanh_map(z, W, x)

            z = igt.fixed_point(f, torch.zeros_like(x), W, x, report=report)
            dead = weakref.ref(z), weakref.ref(f), weakref.ref(report)  # the graph holds the map and the report
            del z, f, report
            assert all(reference() is None for reference in dead)
        finally:
            gc.enable()

    def test_passes_do_not_accumulate_tensors(self):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)

        def one():
            igt.fixed_point(tanh_map, torch.zeros_like(x), W, x).sum().backward()
            W.grad = None

        def live():
            return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

        one()
        gc.collect()
        gc.disable()
        try:
            before = live()
            for _ in range(50):
                one()
            assert live() <= before
        finally:
            gc.enable()

    def test_an_in_place_change_before_backward_raises(self):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
        with torch.no_grad():
            W.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_the_layer_is_its_forward_solve(self, context):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)
        with context():
            z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
        assert not z.requires_grad
        torch.testing.assert_close(z, tanh_map(z, W.detach(), x))

    def test_nothing_requires_grad(self):
        x = torch.ones(2)
        assert not igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(2), x).requires_grad

    def test_backward_twice(self):
        W, x = contraction(3), torch.randn(3, dtype=DOUBLE)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x).sum()
        (first,) = torch.autograd.grad(z, W, retain_graph=True)
        (second,) = torch.autograd.grad(z, W)
        assert torch.equal(first, second)

    @pytest.mark.fault(82)
    def test_autocast_is_replayed_in_backward(self):
        layer, seen = torch.nn.Linear(4, 4), []
        torch.nn.init.orthogonal_(layer.weight, gain=0.5)

        def f(z, x):
            y = layer(z)
            seen.append(y.dtype)
            return torch.tanh(y + x)

        x = torch.randn(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = igt.fixed_point(f, torch.zeros(4), x, on_failure="return")
        assert z.dtype == torch.float32
        z.sum().backward()
        assert set(seen) == {torch.bfloat16}


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"adjoint": "neumann"}, "expected a Solver, 'jfb' or None"),
            ({"adjoint": ig.GMRES}, r"Did you mean GMRES\(\)"),
            ({"solver": ig.GMRES()}, "expected a forward solver"),
            ({"on_failure": "ignore"}, "expected 'raise', 'warn', 'return' or a Solver"),
            ({"batch_ndim": -1}, "leading batch axes"),
        ],
    )
    def test_wrong_settings_get_a_sentence(self, settings, words):
        with pytest.raises(ig.SettingError, match=words):
            igt.fixed_point(lambda z: 0.5 * z, torch.zeros(2), **settings)

    def test_an_exception_of_the_map_passes_through(self):
        def f(z):
            raise ValueError("mine")

        with pytest.raises(ValueError, match=r"^mine$"):
            igt.fixed_point(f, torch.zeros(2))

    def test_a_report_is_a_report(self):
        with pytest.raises(ig.SettingError, match=r"expected an igt\.Report"):
            igt.fixed_point(lambda z: 0.5 * z, torch.zeros(2), report={})
