"""NewtonKrylov: Newton's points, forcing terms, counts, line search, and minimization that leaves saddles."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.forward.forcing import Forcing
from implicitgrad.torch.forward.newton import NewtonKrylov

DOUBLE = torch.float64


def tanh_layer(seed=0, n=12, norm=0.9):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=generator, dtype=DOUBLE)
    W *= norm / torch.linalg.matrix_norm(W, 2)
    b = torch.randn(n, generator=generator, dtype=DOUBLE)
    return lambda z: torch.tanh(z @ W.mT + b)


def minimization(loss, batch_ndim=0):
    """Return argmin as an equation: f(w) = w - grad, merit = loss, J = I - H, scale norm(H w - grad)."""

    def grad(w):
        with torch.enable_grad():
            point = w if w.requires_grad else w.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(point).sum(), point, create_graph=True)
        return g

    def hessian(w):
        return igt.vjp_operator(grad, w, batch_ndim=batch_ndim, symmetric=True)

    def scale(w, image):
        norm = torch.linalg.vector_norm(hessian(w).matvec(w) - grad(w).detach(), dim=-1)
        return norm.double().numpy() if batch_ndim else norm.item()

    return Equation(
        lambda w: w - grad(w).detach(),
        residual=lambda w: -grad(w).detach(),
        linearize=lambda w: ig.identity_minus(hessian(w)),
        scale=scale,
        merit=lambda w: loss(w).detach().double().numpy() if batch_ndim else loss(w).item(),
    )


class TestConvergence:
    def test_with_exact_inner_solves_its_points_are_newtons(self):
        f, z0 = tanh_layer(), torch.zeros(12, dtype=DOUBLE)
        sol = NewtonKrylov(inner=ig.GMRES(rtol=1e-14)).solve(f, z0, trajectory=True)
        assert sol.converged
        z = z0
        for point in sol.trajectory:
            torch.testing.assert_close(point, z, rtol=0, atol=1e-10)
            J = torch.autograd.functional.jacobian(f, z)
            z = z + torch.linalg.solve(torch.eye(12, dtype=DOUBLE) - J, f(z) - z)

    def test_it_converges_quadratically(self):
        for seed in range(5):
            sol = NewtonKrylov(inner=ig.GMRES(rtol=1e-14)).solve(tanh_layer(seed), torch.zeros(12, dtype=DOUBLE))
            falling = [r for r in sol.history if 1e-13 < r < 0.3]
            assert len(falling) >= 3
            for before, after in pairwise(falling):
                assert after <= 2 * before**2

    def test_forcing_terms_save_products_and_keep_the_order(self):
        f, z0 = tanh_layer(n=60, norm=3.0), torch.zeros(60, dtype=DOUBLE)
        exact = NewtonKrylov(inner=ig.GMRES(rtol=1e-13)).solve(f, z0)
        forced = NewtonKrylov().solve(f, z0)
        assert exact.converged
        assert forced.converged
        assert forced.num_rmatvecs < 0.7 * exact.num_rmatvecs
        assert forced.num_iters <= exact.num_iters + 4

    def test_expanding_maps_are_solved_in_few_steps(self):
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            M = torch.randn(30, 30, generator=generator, dtype=DOUBLE)
            S = M @ M.T
            S *= 2.5 / torch.linalg.matrix_norm(S, 2)
            b = 0.3 * torch.randn(4, 30, generator=generator, dtype=DOUBLE)
            f = lambda z, S=S, b=b: torch.tanh(b - z @ S)
            z0 = torch.zeros(4, 30, dtype=DOUBLE)
            assert not igt.Picard().solve(f, z0).converged.any()
            sol = NewtonKrylov().solve(f, z0)
            assert sol.converged.all()
            assert sol.num_iters.max() <= 7
            assert sol.num_rmatvecs <= 60

    @pytest.mark.parametrize("inner", [ig.BiCGSTAB(), ig.LSMR(), ig.Dense(), ig.Auto(), ig.NormalEquations(ig.CG())])
    def test_any_inner_solver_serves(self, inner):
        f = lambda z: 1.5 * torch.sin(z @ torch.tensor([[0.5, 1.0], [-1.0, 0.5]], dtype=DOUBLE)) + 1.0
        sol = NewtonKrylov(inner=inner).solve(f, torch.zeros(2, dtype=DOUBLE))
        assert sol.converged
        batch = NewtonKrylov(inner=inner).solve(f, torch.tensor([[0.0, 0.0], [0.1, 0.2]], dtype=DOUBLE))
        assert batch.converged.all()


class TestForcing:
    def test_the_terms_are_those_of_eisenstat_and_walker(self):
        forcing = Forcing(most=0.9)
        for size, expected in [
            (1.0, 0.5),
            (0.5, 0.225),  # 0.9 (0.5 / 1)^2; 0.9 * 0.5^2 is above 0.1 and no larger
            (0.4, 0.576),
            (0.04, 0.9 * 0.576**2),  # the safeguard: 0.009 would be too sudden a fall
            (0.004, 0.009),  # 0.9 * 0.2986^2 = 0.08 is below 0.1: no safeguard any more
        ]:
            assert forcing.update(size, 0.0, 2.0**-52) == pytest.approx(expected)

    def test_the_last_step_is_not_solved_beyond_the_bound(self):
        forcing = Forcing(most=0.9)
        forcing.update(1.0, 1e-3, 2.0**-52)
        forcing.update(0.1, 1e-3, 2.0**-52)
        assert forcing.update(2e-3, 1e-3, 2.0**-52) == pytest.approx(0.25)
        assert forcing.update(1e-9, 0.0, 2.0**-23) == 8 * 2.0**-23  # and never beyond rounding

    def test_each_sample_has_its_own(self):
        forcing = Forcing(most=0.9)
        forcing.update([1.0, 1.0], [0.0, 0.0], 2.0**-52)
        assert forcing.update([0.5, np.nan], [0.0, 0.0], 2.0**-52)[0] == pytest.approx(0.225)


class TestCounts:
    def test_calls_and_products_are_those_of_instruments(self):
        f = tanh_layer(3)
        for inner in (ig.GMRES(), ig.BiCGSTAB(), ig.LSMR()):
            calls, products = [], []

            def counted(z, calls=calls):
                calls.append(1)
                return f(z)

            def linearize(z, calls=calls, products=products):
                calls.append(1)
                J = igt.vjp_operator(f, z)
                return ig.VJPOperator(
                    lambda u: (products.append(1), J.rmatvec(u))[1],
                    12,
                    jvp=lambda v: (products.append(1), J.matvec(v))[1],
                )

            sol = NewtonKrylov(inner=inner).solve(Equation(counted, linearize=linearize), torch.zeros(12, dtype=DOUBLE))
            assert sol.converged
            assert (sol.num_matvecs, sol.num_rmatvecs) == (len(calls), len(products))

    def test_autograd_takes_one_call_to_linearize(self):
        calls = []

        def f(z):
            calls.append(torch.is_grad_enabled() and z.requires_grad)
            return tanh_layer()(z)

        with torch.no_grad():
            sol = NewtonKrylov().solve(f, torch.zeros(12, dtype=DOUBLE))
        assert sol.num_matvecs == len(calls)
        assert sum(calls) == sol.num_iters

    def test_the_product_for_steepest_descent_is_counted(self):
        products = []
        loss = lambda w: (0.25 * w**4 - 0.5 * w**2).sum(-1)
        equation = minimization(loss)

        def linearize(w):
            H = igt.vjp_operator(lambda w: w**3 - w, w, symmetric=True)
            counting = ig.VJPOperator(lambda u: (products.append(1), H.rmatvec(u))[1], 3, symmetric=True)
            return ig.identity_minus(counting)

        instrumented = Equation(
            equation.function, residual=equation.residual, merit=equation.merit, linearize=linearize
        )
        sol = NewtonKrylov(inner=ig.CG()).solve(instrumented, torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE))
        assert sol.converged
        assert sol.num_rmatvecs == len(products)


class TestLineSearch:
    def test_a_full_step_that_overshoots_is_cut(self):
        """Newton's method for arctan diverges from 3; the samples next to it take full steps as they do alone."""
        f = lambda z: z - torch.atan(z)
        starts = torch.tensor([[3.0], [0.5], [-20.0]], dtype=DOUBLE)
        sol = NewtonKrylov(atol=1e-12).solve(f, starts)
        assert sol.converged.all()
        assert sol.x.abs().max() <= 1e-10
        for i in range(3):
            alone = NewtonKrylov(atol=1e-12).solve(f, starts[i])
            assert alone.num_iters == sol.num_iters[i]
            assert torch.equal(alone.x, sol.x[i])

    def test_a_trial_point_outside_the_domain_is_no_failure(self):
        """From 5 the full step of log(z) = 0 leads to -3, where it is NaN."""
        sol = NewtonKrylov().solve(lambda z: z - torch.log(z), torch.tensor([5.0], dtype=DOUBLE))
        assert sol.converged
        assert sol.x.item() == pytest.approx(1.0)
        assert np.isnan(sol.history).any()

    def test_without_a_root_it_stops_at_the_fold(self):
        """r(z) = z^2 + 1: the residual norm has a minimum at 0, where J_r is singular."""
        r, z0 = lambda z: z**2 + 1, torch.tensor([2.0], dtype=DOUBLE)
        sol = NewtonKrylov().solve(Equation(lambda z: z - r(z), residual=lambda z: -r(z)), z0)
        assert sol.status is ig.Status.STAGNATED
        assert sol.residual_norm == pytest.approx(1.0, abs=1e-2)
        # As a map it is iterated from there, and has no fixed point to be found.
        sol = NewtonKrylov().solve(lambda z: z - r(z), z0)
        assert sol.status is ig.Status.DIVERGED
        assert sol.residual_norm == pytest.approx(1.0, abs=1e-2)

    def test_plain_steps_lead_away_from_a_fold(self):
        """Saturated layers, on which neither Picard nor descent alone brings all samples to a fixed point."""
        folded = 0
        for seed in (1,):
            generator = torch.Generator().manual_seed(seed)
            W = 0.35 * torch.randn(32, 32, generator=generator, dtype=DOUBLE)
            x = 2 * torch.randn(64, 32, generator=generator, dtype=DOUBLE)
            f = lambda z, W=W, x=x: torch.tanh(z @ W.T + x)
            z0 = torch.zeros(64, 32, dtype=DOUBLE)
            assert not igt.Picard().solve(f, z0).converged.all()
            assert NewtonKrylov().solve(f, z0).converged.all()
            as_root = Equation(f, residual=lambda z, f=f: f(z) - z)  # has no plain step
            folded += (~NewtonKrylov().solve(as_root, z0).converged).sum()
        assert folded >= 5  # 11 when written

    def test_a_singular_jacobian_is_told(self):
        sol = NewtonKrylov().solve(lambda z: z + 1.0, torch.zeros(3, dtype=DOUBLE))
        assert sol.status is ig.Status.SINGULAR
        assert torch.equal(sol.x, torch.zeros(3, dtype=DOUBLE))

    def test_a_jacobian_with_nan_is_told(self):
        f = lambda z: torch.where(z > 10, z, torch.sqrt(z - 1.0).nan_to_num() * 0.1 + 1.0)  # d sqrt at 0 is Inf
        sol = NewtonKrylov().solve(f, torch.tensor([[1.0], [5.0]], dtype=DOUBLE) * torch.tensor([1.0], dtype=DOUBLE))
        assert sol.status[1] is ig.Status.CONVERGED
        assert torch.isfinite(sol.x).all()
        broken = Equation(
            lambda z: 0.5 * z + 1, linearize=lambda z: ig.VJPOperator(lambda u: u * float("nan"), 2, symmetric=True)
        )
        sol = NewtonKrylov().solve(broken, torch.zeros(2, dtype=DOUBLE))
        assert sol.status is ig.Status.NONFINITE_OPERATOR

    def test_an_inner_solve_that_fails_is_used_as_far_as_it_went(self):
        for inner in (ig.GMRES(max_iters=2), ig.GMRES(rtol=0.0, max_iters=3)):
            sol = NewtonKrylov(inner=inner).solve(tanh_layer(), torch.zeros(12, dtype=DOUBLE))
            assert sol.converged
            assert sol.num_iters > NewtonKrylov().solve(tanh_layer(), torch.zeros(12, dtype=DOUBLE)).num_iters


class TestMinimization:
    def test_saddles_are_left(self):
        """w1^4 / 4 - w1^2 / 2 + w2^2 / 2 has a saddle at 0, to which the root finder goes, and minima at (+-1, 0)."""
        loss = lambda w: 0.25 * w[..., 0] ** 4 - 0.5 * w[..., 0] ** 2 + 0.5 * w[..., 1] ** 2
        equation = minimization(loss)
        for start in ([1e-3, 1.0], [-0.2, 0.0], [0.4, -3.0]):
            w0 = torch.tensor(start, dtype=DOUBLE)
            root = NewtonKrylov(inner=ig.GMRES(rtol=1e-12)).solve(
                Equation(equation.function, residual=equation.residual, linearize=equation.linearize), w0
            )
            assert root.converged
            assert root.x.abs().max() < 1e-6  # the other side: without the merit and CG, the saddle is found
            sol = NewtonKrylov(inner=ig.CG()).solve(equation, w0)
            assert sol.converged
            expected = torch.tensor([np.sign(start[0]), 0.0], dtype=DOUBLE)
            torch.testing.assert_close(sol.x, expected, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("inner", [ig.CG(), ig.GMRES(), ig.MINRES()], ids=lambda s: s.name)
    def test_the_loss_falls_from_step_to_step(self, inner):
        """Rosenbrock's valley from ten starts, each as it runs alone."""
        loss = lambda w: (1 - w[..., 0]) ** 2 + 100 * (w[..., 1] - w[..., 0] ** 2) ** 2
        generator = torch.Generator().manual_seed(0)
        starts = 2 * torch.randn(10, 2, generator=generator, dtype=DOUBLE)
        batch = NewtonKrylov(inner=inner, max_iters=100).solve(minimization(loss, 1), starts, trajectory=True)
        assert batch.converged.all()
        torch.testing.assert_close(batch.x, torch.ones(10, 2, dtype=DOUBLE), rtol=0, atol=1e-9)
        for i in range(10):
            alone = NewtonKrylov(inner=inner, max_iters=100).solve(minimization(loss), starts[i])
            assert alone.num_iters == batch.num_iters[i]
            torch.testing.assert_close(alone.x, batch.x[i], rtol=0, atol=1e-9)

    def test_the_unit_of_the_loss_changes_no_bit(self):
        """w* does not depend on it, and neither do the steps: no length of one is assumed anywhere."""

        def loss(w, unit):
            return unit * ((0.25 * w**4 - 0.5 * w**2).sum(-1) + (w[..., 0] * w[..., 1]) ** 2)

        start = torch.tensor([0.1, 0.3, -0.2], dtype=DOUBLE)
        known = NewtonKrylov(inner=ig.CG()).solve(minimization(lambda w: loss(w, 1.0)), start)
        assert known.converged
        for unit in (2.0**-40, 2.0**40):
            sol = NewtonKrylov(inner=ig.CG()).solve(minimization(lambda w, unit=unit: loss(w, unit)), start)
            assert torch.equal(sol.x, known.x)
            assert (sol.num_matvecs, sol.num_rmatvecs) == (known.num_matvecs, known.num_rmatvecs)

    def test_a_loss_that_is_noise_near_the_minimum_does_not_stop_it(self):
        """1e10 (sin^2 + cos^2) is constant but for its rounding, which is all that the loss shows at the end."""
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            A = torch.randn(8, 8, generator=generator, dtype=DOUBLE)
            b = torch.randn(8, generator=generator, dtype=DOUBLE)

            def loss(w, A=A, b=b):
                noise = 1e10 * (torch.sin(w.detach()) ** 2 + torch.cos(w.detach()) ** 2).sum(-1)
                return noise + 0.5 * ((w @ A.T - b) ** 2).sum(-1) + 0.1 * torch.cosh(w).sum(-1)

            sol = NewtonKrylov(inner=ig.CG()).solve(minimization(loss), torch.zeros(8, dtype=DOUBLE))
            assert sol.converged
            assert len(sol.history) <= sol.num_iters + 2  # hardly a trial point is refused

    def test_the_last_good_iterate_comes_back_when_it_is_cut_short(self):
        """From next to a saddle the gradient grows before it falls; the loss tells which iterate is the best."""
        loss = lambda w: (0.25 * w**4 - 0.5 * w**2).sum(-1)
        start = torch.tensor([1e-3, 2e-3], dtype=DOUBLE)
        sol = NewtonKrylov(inner=ig.CG(), max_iters=3).solve(minimization(loss), start)
        assert sol.status is ig.Status.MAX_ITERS
        assert loss(sol.x) < loss(start)


class TestSurroundings:
    def test_it_runs_where_gradients_are_off(self):
        f, z0 = tanh_layer(), torch.zeros(12, dtype=DOUBLE)
        known = NewtonKrylov().solve(f, z0)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                assert torch.equal(NewtonKrylov().solve(f, z0).x, known.x)

    def test_arrays_that_autograd_does_not_know_need_a_derivative(self):
        with pytest.raises(ig.BackendError, match=r"Give Equation.*linearize="):
            NewtonKrylov().solve(lambda z: np.cos(z), np.zeros(2))

    def test_no_graph_is_left(self):
        import gc

        W = torch.randn(4, 4, dtype=DOUBLE, requires_grad=True)
        f = lambda z: torch.tanh(0.3 * z @ W + 1)
        gc.collect()
        gc.disable()
        try:
            count = lambda: sum(type(o) is torch.Tensor for o in gc.get_objects())
            NewtonKrylov().solve(f, torch.zeros(4, dtype=DOUBLE))
            before = count()
            for _ in range(20):
                sol = NewtonKrylov().solve(f, torch.zeros(4, dtype=DOUBLE))
            assert not sol.x.requires_grad
            assert count() - before <= 2
        finally:
            gc.enable()

    def test_wrong_settings_get_a_sentence(self):
        with pytest.raises(ig.SettingTypeError, match=r"got inner=.*expected a Solver such as GMRES"):
            NewtonKrylov(inner=igt.Picard())
        with pytest.raises(ig.SettingTypeError, match=r"unexpected keyword argument 'iner'. .* Did you mean inner"):
            NewtonKrylov(iner=ig.GMRES())
