"""What other libraries got wrong in silence, each as a test of its own: peer, setting, what it returned.

torchdeq 0.1, TorchOpt 0.7, hypertorch, Betty 0.2, jaxopt 0.8 and Optimistix 0.0 were run on these very inputs. None of
the wrong numbers came with a word. Here the answer is right, or a status and a warning say that it is not.
"""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


def contraction(n, norm=0.9, dtype=DOUBLE):
    W = torch.randn(n, n, dtype=dtype)
    return (W * (norm / torch.linalg.matrix_norm(W, 2))).requires_grad_()


def tanh_map(z, W, x):
    return torch.tanh(z @ W.T + x)


def dense_gradient(z, W, g):
    """dL/dW = sum over samples of s u z^T with (I - J)^T u = g, J = diag(s) W, s = 1 - z^2: by dense solves."""
    z, W = z.detach(), W.detach()
    total = torch.zeros_like(W)
    for sample, cotangent in zip(z.reshape(-1, z.shape[-1]), g.reshape(-1, z.shape[-1]), strict=True):
        slope = 1 - sample**2
        jacobian = slope[:, None] * W
        u = torch.linalg.solve((torch.eye(len(sample), dtype=W.dtype) - jacobian).T, cotangent)
        total += torch.outer(slope * u, sample)
    return total


class TestTorchdeq:
    def test_the_default_gradient_is_the_implicit_one(self):
        """P1. torchdeq's defaults return the one-step gradient, 34 % off at norm(W) = 0.9."""
        W, x = contraction(20), torch.randn(4, 20, dtype=DOUBLE)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, batch_ndim=1)
        (ours,) = torch.autograd.grad(z.sum(), W)
        expected = dense_gradient(z, W, torch.ones_like(z))
        assert torch.linalg.norm(ours - expected) <= 1e-6 * torch.linalg.norm(expected)

    @pytest.mark.fault(38)
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
    @pytest.mark.parametrize(
        "adjoint",
        [None, ig.Neumann(), ig.Richardson(), ig.GMRES(), ig.BiCGSTAB(), ig.NormalEquations(), ig.LSMR(), ig.Dense()],
        ids=lambda s: "default" if s is None else s.name,
    )
    def test_a_loss_scaled_by_1e_minus_7_keeps_the_exact_gradient(self, adjoint, dtype):
        """P2, FAULTS 38. An absolute backward tolerance made of it the one-step gradient: 34 % off at 1e-7."""
        W, x = contraction(12, dtype=dtype), torch.randn(2, 12, dtype=dtype)
        reports = igt.Report(), igt.Report()
        solve = lambda report: igt.fixed_point(
            tanh_map, torch.zeros_like(x), W, x, batch_ndim=1, adjoint=adjoint, report=report
        )
        (plain,) = torch.autograd.grad(solve(reports[0]).square().sum(), W)
        (small,) = torch.autograd.grad(solve(reports[1]).square().sum() * 2.0**-23, W)  # 1.2e-7
        assert torch.equal(small * 2.0**23, plain)
        assert reports[0].backward.num_matvecs == reports[1].backward.num_matvecs > 1
        (decimal,) = torch.autograd.grad(solve(igt.Report()).square().sum() * 1e-7, W)
        rounding = 1e-3 if dtype == torch.float32 else 1e-7  # what a default gradient is right to
        assert torch.linalg.norm(decimal / 1e-7 - plain) <= rounding * torch.linalg.norm(plain)

    @pytest.mark.parametrize("cap", [1, 2])
    def test_a_backward_solve_cut_short_says_so(self, cap):
        """P3. Anderson with two steps backward: a gradient of exactly zero."""
        W, x, report = contraction(20), torch.randn(20, dtype=DOUBLE), igt.Report()
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint=ig.GMRES(max_iters=cap), report=report)
        with pytest.warns(ig.ConvergenceWarning, match="fixed_point, backward: GMRES stopped"):
            (gradient,) = torch.autograd.grad(z.sum(), W)
        assert report.status is ig.Status.MAX_ITERS
        assert 0 < report.backward.relative_residual < 1  # better than zero is
        assert gradient.abs().sum() > 0

    @pytest.mark.fault(63)
    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=repr)
    def test_a_sample_that_is_nan_leaves_its_neighbours_alone(self, solver):
        """P4, FAULTS 63. Mixing by ``0 * NaN`` spoiled the neighbour, and max() over NaN ran everybody to the cap."""
        W, x = contraction(5), torch.randn(3, 5, dtype=DOUBLE)
        x[1, 2] = float("nan")
        x.requires_grad_()
        report, settings = igt.Report(), {"solver": solver, "batch_ndim": 1, "on_failure": "return"}
        z = igt.fixed_point(tanh_map, torch.zeros(3, 5, dtype=DOUBLE), W, x, report=report, **settings)
        (gradient,) = torch.autograd.grad(z[[0, 2]].sum(), x)
        assert report.forward.status[1] is ig.Status.NONFINITE_OPERATOR
        assert report.forward.converged.tolist() == [True, False, True]
        assert report.status is ig.Status.FORWARD_NOT_CONVERGED
        healthy = x.detach()[[0, 2]].requires_grad_()
        alone = igt.fixed_point(tanh_map, torch.zeros(2, 5, dtype=DOUBLE), W, healthy, **settings)
        (expected,) = torch.autograd.grad(alone.sum(), healthy)
        torch.testing.assert_close(z[[0, 2]], alone, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(gradient[[0, 2]], expected, rtol=1e-7, atol=1e-9)
        assert report.forward.num_iters[[0, 2]].max() < 100

    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=repr)
    def test_a_forward_solve_that_converges_at_once_keeps_the_implicit_backward(self, solver):
        """P5. Converged before its last index, torchdeq dropped the implicit backward: the gradient of nothing."""
        W, x, report = contraction(10), torch.randn(10, dtype=DOUBLE), igt.Report()
        with torch.no_grad():
            z_star = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, solver=igt.Anderson(rtol=1e-14))
        z = igt.fixed_point(tanh_map, z_star, W, x, solver=solver, report=report)
        (gradient,) = torch.autograd.grad(z.sum(), W)
        assert report.forward.num_iters == 0
        assert report.forward.num_matvecs == 1
        assert report.backward.num_matvecs > 1
        expected = dense_gradient(z, W, torch.ones_like(z))
        assert torch.linalg.norm(gradient - expected) <= 1e-6 * torch.linalg.norm(expected)

    def test_a_map_that_expands_warns_forward_and_backward(self):
        """P6. f = 1.3 z + x: the one-step gradient 1 without a warning; exact is -10/3."""
        x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        f = lambda z, x: 1.3 * z + x
        settings = {"solver": igt.Picard(), "adjoint": ig.Neumann(), "report": report}
        with pytest.warns(ig.ConvergenceWarning, match=r"fixed_point, forward: Picard .*DIVERGED"):
            z = igt.fixed_point(f, torch.zeros(2, dtype=DOUBLE), x, **settings)
        assert report.forward.status is ig.Status.DIVERGED
        with pytest.warns(ig.ConvergenceWarning, match=r"fixed_point, backward: Neumann .*DIVERGED"):
            torch.autograd.grad(z.sum(), x)
        assert report.backward.status is ig.Status.DIVERGED
        assert report.status is ig.Status.FORWARD_NOT_CONVERGED

    def test_a_map_that_expands_is_solved_by_the_defaults(self):
        """The other side of P6: the fixed point of 1.3 z + x exists, and both its derivatives do."""
        x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.fixed_point(lambda z, x: 1.3 * z + x, torch.zeros(2, dtype=DOUBLE), x, report=report)
        torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], torch.full((2,), -10 / 3, dtype=DOUBLE))
        assert report.status is ig.Status.CONVERGED

    def test_fast_growth_never_becomes_nan(self):
        """P6. Slope 10 and 400 steps: z = NaN, gradient NaN, no warning."""
        x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        with pytest.warns(ig.ConvergenceWarning):
            z = igt.fixed_point(
                lambda z, x: 10 * z + x,
                torch.zeros(2, dtype=DOUBLE),
                x,
                solver=igt.Picard(max_iters=400),
                report=report,
            )
        assert torch.isfinite(z).all()
        assert torch.isfinite(torch.autograd.grad(z.sum(), x)[0]).all()
        assert report.status is ig.Status.FORWARD_NOT_CONVERGED

    @pytest.mark.fault(75)
    def test_the_second_derivative_has_the_right_value_and_sign(self, tight):
        """FAULTS 75, P7. z = tanh(0.5 z + b) at b = 0.3: torchdeq's d2z/db2 is -1.200, the true one -3.067562.

        With s = 1 - z^2: z_b = s / (1 - a s) and z_bb = -2 z s / (1 - a s)^3.
        """
        b = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(lambda z, b: torch.tanh(0.5 * z + b), torch.zeros((), dtype=DOUBLE), b, **tight)
        (first,) = torch.autograd.grad(z, b, create_graph=True)
        (second,) = torch.autograd.grad(first, b)
        assert second.item() == pytest.approx(-3.067562, abs=5e-7)
        s = 1 - z.item() ** 2
        assert first.item() == pytest.approx(s / (1 - 0.5 * s), rel=1e-10)
        assert second.item() == pytest.approx(-2 * z.item() * s / (1 - 0.5 * s) ** 3, rel=1e-9)

    @pytest.mark.parametrize("solver", [igt.Anderson(rtol=1e-14), igt.Picard(rtol=1e-14), igt.NewtonKrylov()], ids=repr)
    def test_third_derivatives_go_on_being_right(self, solver):
        """d3z/db3 of the same map, from differentiating z_bb once more by hand."""
        b = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        settings = {"solver": solver, "adjoint": ig.GMRES(rtol=1e-13), "on_failure": "return"}
        z = igt.fixed_point(lambda z, b: torch.tanh(0.5 * z + b), torch.zeros((), dtype=DOUBLE), b, **settings)
        (first,) = torch.autograd.grad(z, b, create_graph=True)
        (second,) = torch.autograd.grad(first, b, create_graph=True)
        (third,) = torch.autograd.grad(second, b)
        v, d = z.item(), first.item()
        s = 1 - v**2
        slope = -2 * v * d  # ds/db
        q = 1 - 0.5 * s
        expected = -2 * (d * s + v * slope) / q**3 - 2 * v * s * 3 * 0.5 * slope / q**4
        assert third.item() == pytest.approx(expected, rel=1e-8)

    @pytest.mark.fault(78)
    def test_one_layer_may_be_used_twice_in_a_loss(self):
        """P9, FAULTS 78. Two calls of one torchdeq layer in one loss: unbounded recursion."""
        cell = torch.nn.Linear(4, 4).double()
        torch.nn.init.orthogonal_(cell.weight, gain=0.6)
        layer = igt.FixedPoint(_Tanh(cell), batch_ndim=1)
        inputs = torch.randn(2, 3, 4, dtype=DOUBLE)
        zeros = torch.zeros(3, 4, dtype=DOUBLE)
        separate = [torch.autograd.grad(layer(zeros, x).square().sum(), cell.weight)[0] for x in inputs]
        together = torch.autograd.grad(sum(layer(zeros, x).square().sum() for x in inputs), cell.weight)[0]
        torch.testing.assert_close(together, separate[0] + separate[1], rtol=1e-9, atol=1e-12)

    @pytest.mark.fault(78)
    @pytest.mark.parametrize("first", [0, 1])
    def test_two_forwards_and_one_backward(self, first):
        """FAULTS 78: whichever pass is differentiated, its own point and inputs count."""
        W, x = contraction(6), torch.randn(2, 6, dtype=DOUBLE)
        states = [igt.fixed_point(tanh_map, torch.zeros_like(x[0]), W, x[i]) for i in (0, 1)]
        (gradient,) = torch.autograd.grad(states[first].sum(), W)
        expected = dense_gradient(states[first], W, torch.ones(6, dtype=DOUBLE))
        assert torch.linalg.norm(gradient - expected) <= 1e-6 * torch.linalg.norm(expected)

    @pytest.mark.fault(76, 77)
    def test_retain_graph_gives_the_same_bits_twice(self):
        """FAULTS 76: the hook had removed itself, 15 % off at the second time. And 77: not retained raises."""
        W, x = contraction(6), torch.randn(6, dtype=DOUBLE)
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x).sum()
        (first,) = torch.autograd.grad(z, W, retain_graph=True)
        (second,) = torch.autograd.grad(z, W)
        assert torch.equal(first, second)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(z, W)

    @pytest.mark.parametrize("training", [True, False])
    def test_eval_mode_keeps_gradients(self, training):
        """P11. torchdeq's layer in eval mode: requires_grad False."""
        cell = torch.nn.Linear(5, 5).double()
        torch.nn.init.orthogonal_(cell.weight, gain=0.6)
        layer = igt.FixedPoint(_Tanh(cell), batch_ndim=1).train(training)
        x = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
        z = layer(torch.zeros(4, 5, dtype=DOUBLE), x)
        weight, bias, data = torch.autograd.grad(z.sum(), (cell.weight, cell.bias, x))
        expected = dense_gradient(z, cell.weight, torch.ones_like(z))
        assert torch.linalg.norm(weight - expected) <= 1e-6 * torch.linalg.norm(expected)
        torch.testing.assert_close(bias, data.sum(0))  # both enter as z W^T + (b + x)

    @pytest.mark.fault(56)
    def test_batch_normalization_counts_one_forward(self):
        """P11, FAULTS 56. num_batches_tracked stood at 31 after one forward, at 32 after backward."""
        norm, cell = torch.nn.BatchNorm1d(4).double(), torch.nn.Linear(4, 4).double()
        torch.nn.init.orthogonal_(cell.weight, gain=0.3)
        x = torch.randn(8, 4, dtype=DOUBLE)
        z = igt.fixed_point(lambda z: 0.3 * torch.tanh(norm(cell(z) + x)), torch.zeros(8, 4, dtype=DOUBLE))
        assert norm.num_batches_tracked.item() == 1
        mean = norm.running_mean.clone()
        z.square().sum().backward()
        assert norm.num_batches_tracked.item() == 1
        assert torch.equal(norm.running_mean, mean)
        torch.testing.assert_close(mean, 0.1 * (cell(z) + x).mean(0).detach())  # momentum 0.1, at the fixed point

    @pytest.mark.fault(61, 62)
    def test_a_slow_batch_mate_costs_a_sample_neither_steps_nor_digits(self):
        """P12, FAULTS 61, 62. Rate 0.1 alone took 10 calls, next to 0.99 500; 0.9 changed its value with its mate."""
        rates = torch.tensor([[0.1], [0.9], [0.99]], dtype=DOUBLE)
        f = lambda z, rate: rate * z + 1.0
        report, alone = igt.Report(), igt.Report()
        picard = igt.Picard(rtol=1e-6, max_iters=3000)
        z = igt.fixed_point(f, torch.zeros(3, 1, dtype=DOUBLE), rates, solver=picard, batch_ndim=1, report=report)
        for i, rate in enumerate(rates):
            single = igt.fixed_point(f, torch.zeros(1, dtype=DOUBLE), rate, solver=picard, report=alone)
            assert torch.equal(single, z[i])
            assert alone.forward.num_iters == report.forward.num_iters[i]
        assert report.forward.num_iters[0] < 8

    def test_damping_does_not_loosen_the_bound(self):
        """P12, and Optimistix's step size. With damping 0.99 a step is 1 % of the residual, which is what is judged."""
        f, report = lambda z: 0.5 * z + 1.0, igt.Report()
        z = igt.fixed_point(
            f,
            torch.zeros(1, dtype=DOUBLE),
            solver=igt.Picard(damping=0.99, rtol=1e-3, max_iters=5000),
            report=report,
        )
        residual = (f(z) - z).abs().item()
        assert report.status is ig.Status.CONVERGED
        assert report.forward.residual_norm == pytest.approx(residual, rel=1e-12)
        assert residual <= 1e-3 * f(z).item()

    @pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
    def test_a_zero_start_is_no_solution_of_any_unit(self, scale):
        """Best iterate x0 with residual 1e8: where nothing got below it, zeros came back."""
        f, report = lambda z: 0.9 * z + scale, igt.Report()
        z = igt.fixed_point(f, torch.zeros(3, dtype=DOUBLE), report=report)
        torch.testing.assert_close(z / scale, torch.full((3,), 10.0, dtype=DOUBLE), rtol=1e-9, atol=0)

    @pytest.mark.fault(72)
    def test_unknown_settings_are_refused(self):
        """P10, FAULTS 72. Unknown keywords were accepted and did nothing."""
        with pytest.raises(ig.SettingTypeError, match="max_iter"):
            igt.Anderson(max_iter=3)
        with pytest.raises(TypeError, match="ift"):
            igt.fixed_point(lambda z: 0.5 * z, torch.zeros(2), ift=True)
        with pytest.raises(TypeError, match="f_tol"):
            igt.FixedPoint(torch.nn.Linear(2, 2), f_tol=1e-3)


class TestTorchOpt:
    def test_blocks_of_a_coupled_state_are_all_kept(self):
        """P13. solve_inv() kept the diagonal blocks of the Jacobian only: error 1.28 on a two-leaf system."""
        n, m = 3, 2
        M = torch.randn(n + m, n + m, dtype=DOUBLE)
        M = M * (0.8 / torch.linalg.matrix_norm(M, 2))
        assert torch.linalg.matrix_norm(M[:n, n:], 2) > 0.1  # the coupling that was dropped
        x = torch.randn(n + m, dtype=DOUBLE, requires_grad=True)

        def f(state, x):
            a, b = state["a"], state["b"]["inner"].reshape(m)
            a, b = M[:n, :n] @ a + M[:n, n:] @ b + x[:n], M[n:, :n] @ a + M[n:, n:] @ b + x[n:]
            return {"a": a, "b": {"inner": b.reshape(m, 1)}}

        zeros = {"a": torch.zeros(n, dtype=DOUBLE), "b": {"inner": torch.zeros(m, 1, dtype=DOUBLE)}}
        g = torch.randn(n + m, dtype=DOUBLE)
        for adjoint in (None, ig.Neumann(), ig.BiCGSTAB(), ig.NormalEquations(), ig.Dense()):
            z = igt.fixed_point(f, zeros, x, adjoint=adjoint)
            loss = z["a"] @ g[:n] + z["b"]["inner"].reshape(m) @ g[n:]
            (ours,) = torch.autograd.grad(loss, x)
            expected = torch.linalg.solve((torch.eye(n + m, dtype=DOUBLE) - M).T, g)
            torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)

    def test_the_inner_optimum_of_two_tensors_is_that_of_the_dense_system(self):
        """P13 for argmin: weight and bias of a ridge regression are coupled through the data."""
        X, y = torch.randn(20, 3, dtype=DOUBLE) + 1.0, torch.randn(20, dtype=DOUBLE)
        penalty = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
        ridge = lambda w, penalty: (
            (X @ w["weight"] + w["bias"] - y).square().sum() + penalty * (w["weight"].square().sum() + w["bias"] ** 2)
        )
        start = {"weight": torch.zeros(3, dtype=DOUBLE), "bias": torch.zeros((), dtype=DOUBLE)}
        w = igt.argmin(ridge, start, penalty)
        design = torch.cat([X, torch.ones(20, 1, dtype=DOUBLE)], dim=1)
        H = design.T @ design + 0.7 * torch.eye(4, dtype=DOUBLE)
        exact = torch.linalg.solve(H, design.T @ y)
        torch.testing.assert_close(torch.cat([w["weight"], w["bias"].reshape(1)]), exact)
        (ours,) = torch.autograd.grad(w["weight"].sum() + 2 * w["bias"], penalty)
        g = torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=DOUBLE)
        torch.testing.assert_close(ours, -g @ torch.linalg.solve(H, exact))

    @pytest.mark.parametrize("loss", [lambda z: z, lambda z: z**2], ids=["linear", "quadratic"])
    def test_second_derivatives_of_both_parameters(self, tight, loss):
        """P14. 0.4427 for 0.2660 and 0.1321 for 0.1901. Here against the derivative of 200 unrolled steps."""
        point = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.7, 0.2)]
        f = lambda z, a, b: torch.tanh(a * z + b)

        def hessian(z):
            firsts = torch.autograd.grad(loss(z), point, create_graph=True)
            return torch.stack([torch.stack(torch.autograd.grad(d, point, retain_graph=True)) for d in firsts])

        z = torch.zeros((), dtype=DOUBLE)
        for _ in range(200):
            z = f(z, *point)
        ours = hessian(igt.fixed_point(f, torch.zeros((), dtype=DOUBLE), *point, **tight))
        torch.testing.assert_close(ours, hessian(z), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(ours, ours.T)

    @pytest.mark.parametrize("which", ["parameter", "argument", "state"])
    def test_an_in_place_change_between_forward_and_backward_raises(self, which):
        """P15. ``.data`` hid it: the gradient was off by 0.63 in silence."""
        W, x = contraction(4), torch.randn(4, dtype=DOUBLE)
        scale = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(lambda z, x: scale * tanh_map(z, W, x), torch.zeros_like(x), x)
        with torch.no_grad():
            {"parameter": W, "argument": x, "state": z}[which].mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()

    def test_cg_cut_short_has_a_status(self):
        """P15. CG stopped by maxiter at relative residual 0.84: no signal."""
        diagonal, report = torch.linspace(0.0, 0.999, 30, dtype=DOUBLE), igt.Report()
        x = torch.randn(30, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(
            lambda z, x: diagonal * z + x,
            torch.zeros_like(x),
            x,
            solver=igt.NewtonKrylov(),
            adjoint=ig.CG(max_iters=2),
            report=report,
        )
        with pytest.warns(ig.ConvergenceWarning, match="CG stopped after"):
            torch.autograd.grad(z.sum(), x)
        assert report.status is ig.Status.MAX_ITERS

    def test_zero_curvature_is_a_status(self):
        """P15. p^T A p = 0: ZeroDivisionError. Here I - J = [[0, 1], [1, 0]] and g = (1, 0)."""
        J = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=DOUBLE)
        x, report = torch.zeros(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.implicit_gradient(
            lambda z, x: J @ z + x,
            torch.zeros(2, dtype=DOUBLE),
            x,
            adjoint=ig.CG(),
            on_failure="return",
            report=report,
        )
        torch.autograd.grad(z[0], x)
        assert report.backward.status is ig.Status.INDEFINITE


class TestHypertorch:
    def test_cg_on_a_map_that_is_not_symmetric_never_passes_for_an_answer(self):
        """P16. Relative error 1.61, no signal."""
        M = torch.tensor([[0.0, 0.9], [-0.2, 0.1]], dtype=DOUBLE)
        x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.fixed_point(lambda z, x: M @ z + x, torch.zeros_like(x), x, adjoint=ig.CG(), report=report)
        with pytest.warns(ig.ConvergenceWarning):
            torch.autograd.grad(z @ torch.tensor([1.0, 2.0], dtype=DOUBLE), x)
        assert not report.status.is_good

    @pytest.mark.fault(6, 17)
    @pytest.mark.parametrize("adjoint", [ig.CG(), ig.NormalEquations(), None], ids=["CG", "normal", "default"])
    def test_an_identity_is_solved_in_one_step_and_not_to_zero(self, adjoint):
        """P16, FAULTS 6 and 17. CG on A = I returned the iterate before the last: zero."""
        x = torch.randn(3, dtype=DOUBLE, requires_grad=True)
        z = igt.fixed_point(lambda z, x: 0 * z + x, torch.zeros_like(x), x, adjoint=adjoint)
        assert torch.equal(torch.autograd.grad(z.sum(), x)[0], torch.ones(3, dtype=DOUBLE))

    @pytest.mark.fault(16)
    @pytest.mark.parametrize("adjoint", [ig.CG(), ig.NormalEquations(), None], ids=["CG", "normal", "default"])
    def test_a_zero_cotangent_gives_zero_and_no_nan(self, adjoint):
        """P16, FAULTS 16. b = 0 gave NaN."""
        x, report = torch.randn(3, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros_like(x), x, adjoint=adjoint, report=report)
        assert torch.equal(torch.autograd.grad(0 * z.sum(), x)[0], torch.zeros(3, dtype=DOUBLE))
        assert report.status is ig.Status.CONVERGED
        assert report.backward.num_matvecs == 0

    def test_the_normal_equations_keep_what_they_promise(self):
        """P17. Relative error 4.7e-4 after a stop at tol 1e-10; every iterate carried a graph."""
        W, x, report = contraction(15), torch.randn(15, dtype=DOUBLE), igt.Report()
        adjoint = ig.NormalEquations(ig.CG(rtol=1e-10))
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint=adjoint, report=report)
        (gradient,) = torch.autograd.grad(z.sum(), W)
        expected = dense_gradient(z, W, torch.ones_like(x))
        assert torch.linalg.norm(gradient - expected) <= 1e-8 * torch.linalg.norm(expected)
        assert report.backward.relative_residual <= 1e-9
        assert not report.backward.x.requires_grad

    def test_a_parameter_that_is_not_used_gets_no_gradient_and_does_no_harm(self):
        """P18. RuntimeError for an unused hyperparameter."""
        x, idle = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        z = igt.fixed_point(lambda z, x, idle: 0.5 * z + x, torch.zeros(2), x, idle, adjoint=ig.Neumann())
        gradient, nothing = torch.autograd.grad(z.sum(), (x, idle), allow_unused=True)
        torch.testing.assert_close(gradient, torch.full((2,), 2.0), rtol=1e-3, atol=0)
        assert nothing is None

    def test_a_neumann_series_that_diverges_is_finite_and_says_so(self):
        """P18 and Betty's P20. rho = 1.5: norm 4e18; eigenvalue 5: norm 1e30; no signal."""
        for rate in (1.5, 5.0):
            x, report = torch.ones(2, dtype=DOUBLE, requires_grad=True), igt.Report()
            point = x.detach() / (1 - rate)
            settings = {"adjoint": ig.Neumann(), "on_failure": "return", "report": report}
            z = igt.implicit_gradient(lambda z, x, rate=rate: rate * z + x, point, x, **settings)
            (gradient,) = torch.autograd.grad(z.sum(), x)
            assert report.status is ig.Status.DIVERGED
            assert torch.linalg.norm(gradient) < 10


class TestBetty:
    @pytest.mark.parametrize("alpha", [2.0**-3, 0.5, 1.0, 64.0])
    def test_the_unit_of_the_inner_loss_does_not_matter(self, alpha):
        """P19. cg_alpha scaled the curvature but not the residual: relative error 22.9 at 0.5."""
        H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
        b = torch.tensor([1.0, -1.0], dtype=DOUBLE, requires_grad=True)
        w = igt.argmin(lambda w, b: alpha * (0.5 * w @ H @ w - b @ w), torch.zeros(2, dtype=DOUBLE), b)
        torch.testing.assert_close(torch.autograd.grad(w.sum(), b)[0], torch.linalg.solve(H, torch.ones(2).double()))


class TestJaxoptAndOptimistix:
    @pytest.mark.fault(70)
    def test_an_adjoint_capped_at_three_steps_says_so(self):
        """P21, FAULTS 70. 7.4 % error, no signal."""
        W, x, report = contraction(30, 0.97), torch.randn(30, dtype=DOUBLE), igt.Report()
        adjoint = ig.NormalEquations(ig.CG(max_iters=3))
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint=adjoint, report=report)
        with pytest.warns(ig.ConvergenceWarning, match="backward"):
            torch.autograd.grad(z.sum(), W)
        assert report.status is ig.Status.MAX_ITERS
        assert report.backward.residual_norm > report.backward.bound

    @pytest.mark.fault(84)
    @pytest.mark.parametrize("solver", [igt.Picard, igt.Anderson, igt.Broyden, igt.NewtonKrylov])
    @pytest.mark.parametrize("cap", [0, 1])
    def test_a_forward_solve_stopped_early_marks_the_gradient(self, solver, cap):
        """P21, P22, FAULTS 84. Gradient 28 % off; the result spoke of the forward pass only, or of nothing."""
        x, report = torch.randn(5, dtype=DOUBLE), igt.Report()
        W = contraction(5)
        with pytest.warns(ig.ConvergenceWarning, match="fixed_point, forward"):
            z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, solver=solver(max_iters=cap), report=report)
        torch.autograd.grad(z.sum(), W)
        assert report.forward.status is ig.Status.MAX_ITERS
        assert report.backward.converged
        assert report.status is ig.Status.FORWARD_NOT_CONVERGED

    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=repr)
    def test_a_map_that_answers_nan_is_not_done_after_one_step(self, solver):
        """P21. NaN > tol is False, so the loop ended as if converged."""
        report, x = igt.Report(), torch.ones(2, dtype=DOUBLE, requires_grad=True)
        with pytest.warns(ig.ConvergenceWarning, match="NONFINITE_OPERATOR"):
            z = igt.fixed_point(
                lambda z, x: torch.log(-1 - x - z * z), torch.zeros_like(x), x, solver=solver, report=report
            )
        assert report.forward.status is ig.Status.NONFINITE_OPERATOR
        assert torch.isfinite(z).all()


class _Tanh(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def chain_of_nodes(n):
    """Normalized adjacency of a path of ``n`` nodes: a signal takes n - 1 products from one end to the other."""
    A = torch.zeros(n, n, dtype=DOUBLE)
    i = torch.arange(n - 1)
    A[i, i + 1] = A[i + 1, i] = 1.0
    return A / A.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def cora():
    """Edges of Cora, from $IMPLICITGRAD_DATA or a folder ``shared/data`` beside one of the repository's parents."""
    folders = [Path(os.environ["IMPLICITGRAD_DATA"])] if "IMPLICITGRAD_DATA" in os.environ else []
    folders += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for folder in folders:
        if (folder / "cora.npz").is_file():
            with np.load(folder / "cora.npz", allow_pickle=False) as data:
                return torch.from_numpy(data["edges"].astype(np.int64)), len(data["labels"])
    pytest.skip("cora.npz was not found: set IMPLICITGRAD_DATA to the folder that holds it.")


class TestGraphs:
    """A state (nodes, features) is one system. Judged by nodes, a row that no signal has reached passes for done."""

    def test_a_signal_reaches_the_far_end_of_a_chain(self):
        """Only node 0 has a cotangent; the gradient at node 39 is that of the dense solve, 39 products away."""
        n, A = 40, chain_of_nodes(40)
        x, report = torch.randn(n, 2, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.fixed_point(lambda z, x: 0.97 * A @ z + x, torch.zeros_like(x), x, report=report)
        (gradient,) = torch.autograd.grad(z[0].sum(), x)
        unit = torch.zeros(n, 2, dtype=DOUBLE)
        unit[0] = 1.0
        expected = torch.linalg.solve((torch.eye(n, dtype=DOUBLE) - 0.97 * A).T, unit)
        assert expected[-1].min() > 1e-4
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
        assert report.status is ig.Status.CONVERGED
        assert isinstance(report.backward.status, ig.Status)  # one system, not one a node

    def test_nodes_taken_for_a_batch_are_never_called_solved(self):
        """The mistake itself, batch_ndim=1 on a node axis: reported per node, and wrong only with a bad status."""
        n, A = 40, chain_of_nodes(40)
        x, report = torch.randn(n, 2, dtype=DOUBLE, requires_grad=True), igt.Report()
        settings = {"batch_ndim": 1, "report": report, "on_failure": "return"}
        z = igt.fixed_point(lambda z, x: 0.97 * A @ z + x, torch.zeros_like(x), x, **settings)
        (gradient,) = torch.autograd.grad(z[0].sum(), x)
        unit = torch.zeros(n, 2, dtype=DOUBLE)
        unit[0] = 1.0
        expected = torch.linalg.solve((torch.eye(n, dtype=DOUBLE) - 0.97 * A).T, unit)
        right = torch.linalg.norm(gradient - expected) <= 1e-5 * torch.linalg.norm(expected)
        assert bool(right) or not report.status.is_good

    def test_a_gru_on_the_graph_of_cora_has_the_gradient_of_bptt(self, cora):
        """2,708 nodes, a read-out at 135 of them: torchdeq's rows without cotangent counted as converged at once."""
        edges, n = cora
        degree = torch.zeros(n, dtype=DOUBLE).index_add(0, edges[:, 1], torch.ones(len(edges), dtype=DOUBLE))
        A = torch.sparse_coo_tensor(edges.T.flip(0), 1 / degree[edges[:, 1]], (n, n), check_invariants=True)
        cell = torch.nn.GRUCell(4, 4).double()
        for parameter in cell.parameters():
            torch.nn.init.uniform_(parameter, -0.4, 0.4)
        x = torch.randn(n, 4, dtype=DOUBLE)
        f = lambda z: cell(torch.sparse.mm(A, z) + x, z)
        seen, report = torch.randperm(n)[:135], igt.Report()
        z = igt.fixed_point(f, torch.zeros(n, 4, dtype=DOUBLE), report=report)
        ours = torch.autograd.grad(z[seen].square().sum(), list(cell.parameters()))
        assert report.status is ig.Status.CONVERGED
        state = z.detach()
        for _ in range(200):
            state = f(state)
        expected = torch.autograd.grad(state[seen].square().sum(), list(cell.parameters()))
        for a, b in zip(ours, expected, strict=True):
            assert torch.linalg.norm(a - b) <= 1e-6 * torch.linalg.norm(b)
