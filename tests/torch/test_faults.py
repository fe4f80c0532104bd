"""The list of faults of this field, as far as they can meet an implicit layer: each test names its number.

Systems are put to the layer as ``f(z, x) = J z + x`` at ``z = x = 0``, where the gradient for ``x`` is the adjoint
``u`` of ``(I - J)^H u = g`` itself. Expectations are NumPy's dense solves and the residual that NumPy computes.
"""

import copy
import io
import math
import pickle
import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
S = ig.Status


def adjoint(J, g, **settings):
    """Return u, by the layer at the fixed point 0 of J z + x, and the report."""
    J, g = torch.as_tensor(J), torch.as_tensor(g)
    zero, report = torch.zeros(J.shape[-1], dtype=J.dtype), igt.Report()
    x = zero.clone().requires_grad_()
    z = igt.implicit_gradient(lambda z, x: J @ z + x, zero, x, report=report, on_failure="return", **settings)
    (u,) = torch.autograd.grad(z, x, g)
    return u, report


def simple(x, z0=None, f=lambda z, x: 0.5 * z + x, **settings):
    """Return z = 2 x and the report."""
    report = igt.Report()
    z0 = torch.zeros_like(x) if z0 is None else z0
    return igt.fixed_point(f, z0, x, report=report, on_failure="return", **settings), report


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def with_singular_value(smallest, n=8):
    """Return J such that I - J has that smallest singular value, the others in [0.5, 1]."""
    values = np.linspace(0.5, 1.0, n)
    values[-1] = smallest
    return np.eye(n) - orthogonal(n, 1) @ np.diag(values) @ orthogonal(n, 2).T


def rotation(angle=1.0):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


RNG = np.random.default_rng(3)
SHIFT = np.diag(np.ones(9), 1)
SKEW = RNG.standard_normal((6, 6))
# number and name, J, g (None: drawn), whether it has to converge by default
SYSTEMS = {
    "17 J = 0": (np.zeros((4, 4)), None, True),
    "21 nilpotent": (2 * SHIFT, None, True),
    "22 J = I": (np.eye(4), None, False),
    "23 singular, g in range": (np.diag([1.0, 0.5, 0.2]), np.array([0.0, 1.0, 2.0]), True),
    "24 singular, g out of range": (np.diag([1.0, 0.5, 0.2]), np.array([1.0, 1.0, 2.0]), False),
    "25 orthogonal with eigenvalue 1": (np.kron(np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])), None, False),
    "26 sigma_min = 1e-17": (with_singular_value(1e-17), None, False),
    "27 sigma_min = 1e-8": (with_singular_value(1e-8), None, None),
    "28 cond^2 > 1/eps": (0.5 * np.eye(16) + 2 * np.diag(np.ones(15), 1), None, None),
    "29 Jordan block": (0.9 * np.eye(4) + np.diag(np.ones(3), 1), None, True),
    "30 diagonal similarity": (
        np.diag(np.logspace(-8, 8, 5)) @ (0.1 * RNG.standard_normal((5, 5))) @ np.diag(np.logspace(8, -8, 5)),
        None,
        None,
    ),
    "32 J = -3 Q": (-3 * orthogonal(6), None, True),
    "33 rotation": (np.kron(np.eye(2), rotation()), None, True),
    "34 skew part 20": (20 * (SKEW - SKEW.T), None, True),
    "35 J = -1e8 Q": (-1e8 * orthogonal(6), None, True),
    "36 rho = .999": (0.999 * orthogonal(12, 4), None, True),
    "37 transient growth": (np.array([[0.5, 40.0], [0.0, 0.5]]), None, True),
}


class TestSystems:
    @pytest.mark.fault(17, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32, 33, 34, 35, 36, 37)
    @pytest.mark.parametrize(
        "solver", [None, ig.Neumann(), ig.CG(), ig.NormalEquations(), ig.LSMR(), ig.BiCGSTAB()], ids=repr
    )
    @pytest.mark.parametrize("name", SYSTEMS)
    def test_a_gradient_is_within_its_bound_or_reported(self, name, solver):
        """FAULTS 17 to 37, for the default and for solvers that the system is not made for: never a false success."""
        J, g, solvable = SYSTEMS[name]
        g = np.random.default_rng(7).standard_normal(len(J)) if g is None else g
        u, report = adjoint(J, g, adjoint=solver)
        residual = np.linalg.norm(g - (np.eye(len(J)) - J).T @ u.numpy())
        assert np.isfinite(residual)
        status = report.status
        rounding = 20 * np.finfo(float).eps * (1 + np.linalg.norm(J, 2)) * np.linalg.norm(u.numpy())
        if status is S.CONVERGED:
            assert residual <= 1e-8 * np.linalg.norm(g) + rounding
        else:
            assert residual <= np.linalg.norm(g) * (1 + 1e-12) + rounding or solver in (
                ig.Neumann(),
            )  # no worse than zero
        if solver is None and solvable is not None:
            assert (status is S.CONVERGED) == solvable, status

    @pytest.mark.fault(22, 23, 24, 25, 26)
    @pytest.mark.parametrize("name", [name for name, (_, _, solvable) in SYSTEMS.items() if solvable is False])
    def test_what_has_no_solution_warns_from_the_layer(self, name):
        """FAULTS 22 to 26 with the policy of a layer: one warning, whatever the user does with the number."""
        J, g, _ = SYSTEMS[name]
        g = torch.ones(len(J), dtype=DOUBLE) if g is None else torch.as_tensor(g)
        J, x = torch.as_tensor(J), torch.zeros(len(J), dtype=DOUBLE, requires_grad=True)
        z = igt.implicit_gradient(lambda z, x: J @ z + x, torch.zeros_like(x), x)
        with pytest.warns(ig.ConvergenceWarning, match="implicit_gradient, backward"):
            # the projection on the null space, so that g is out of range for the orthogonal one too
            torch.autograd.grad(z, x, g + 0.3 * torch.linalg.svd(torch.eye(len(J)) - J)[2][-1])


class TestShapesAndDtypes:
    @pytest.mark.fault(1)
    def test_a_cotangent_of_another_shape_is_refused(self):
        """FAULTS 1."""
        z, _ = simple(torch.ones(3, requires_grad=True))
        with pytest.raises(RuntimeError, match="shape"):
            z.backward(torch.ones(4))

    @pytest.mark.fault(2)
    @pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (1, 3), ()])
    def test_a_first_guess_of_another_shape_is_refused_before_any_call(self, shape):
        """FAULTS 2."""
        calls = []
        f = lambda z: calls.append(0) or 0.5 * z
        with pytest.raises(ig.ShapeError, match=r"expected \(3,\)"):
            igt.fixed_point(f, torch.zeros(3), adjoint_x0=torch.zeros(shape))
        assert not calls

    @pytest.mark.fault(3, 4, 14, 15, 19)
    @pytest.mark.parametrize(
        ("output", "error", "words"),
        [
            (lambda z: z[:, None], ig.ShapeError, r"f returned shape \(3, 1\) for a state of shape \(3,\)"),
            (lambda z: z[:-1], ig.ShapeError, r"shape \(2,\)"),
            (lambda z: z.sum(), ig.ShapeError, r"shape \(\)"),
            (lambda z: None, ig.BackendError, "structure"),
            (lambda z: z.tolist(), ig.BackendError, "structure"),
            (lambda z: 1.0, ig.BackendError, "returned a float"),
            (lambda z: z.detach().numpy(), ig.BackendError, "returned a ndarray"),
            (lambda z: z.double(), ig.DtypeError, "torch.float64 for a state of torch.float32"),
            (lambda z: z.long(), ig.DtypeError, "torch.int64"),
            (lambda z: z.to("meta"), ig.DeviceError, "on meta, expected cpu"),
            (lambda z: (z, z), ig.BackendError, "structure"),
            (lambda z: {"z": z}, ig.BackendError, "structure"),
        ],
        ids=["column", "shorter", "sum", "None", "list", "float", "numpy", "double", "long", "meta", "pair", "dict"],
    )
    @pytest.mark.parametrize("entry", [igt.fixed_point, igt.root, igt.implicit_gradient])
    def test_what_is_not_like_the_state_is_refused_by_the_first_call(self, entry, output, error, words):
        """FAULTS 3, 4, 14, 15, 19: TypeError or ValueError, in words, from one call; the start keeps its bits."""
        calls, start = [], torch.arange(3.0)
        with pytest.raises(error, match=words) as caught:
            entry(lambda z: calls.append(0) or output(z), start)
        assert isinstance(caught.value, TypeError | ValueError)
        assert len(calls) == 1
        assert torch.equal(start, torch.arange(3.0))

    @pytest.mark.fault(5, 8)
    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
    @pytest.mark.parametrize("batch_ndim", [0, 1])
    def test_nothing_is_solved_by_nothing(self, shape, batch_ndim):
        """FAULTS 5 and 8."""
        x = torch.zeros(shape, requires_grad=True)
        z, report = simple(x, batch_ndim=batch_ndim)
        (gradient,) = torch.autograd.grad(z.sum(), x)
        assert z.shape == gradient.shape == shape
        assert report.status is S.CONVERGED
        assert report.backward.num_matvecs == 0

    @pytest.mark.fault(6)
    @pytest.mark.parametrize("shape", [(1,), ()])
    @pytest.mark.parametrize("solver", [None, ig.CG(), ig.NormalEquations(), ig.Neumann(), ig.Dense()], ids=repr)
    def test_one_number_is_a_state(self, shape, solver):
        """FAULTS 6: J = .5 and g = 2 give 4, where two peers give 0; also for a state without axes."""
        x = torch.ones(shape, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, adjoint=solver)
        (gradient,) = torch.autograd.grad(z, x, torch.full(shape, 2.0, dtype=DOUBLE))
        torch.testing.assert_close(gradient, torch.full(shape, 4.0, dtype=DOUBLE), rtol=1e-7, atol=0)
        assert report.status is S.CONVERGED

    @pytest.mark.fault(7)
    def test_leaves_of_mixed_shapes_have_one_inner_product(self):
        """FAULTS 7: the same counts and, to rounding, the same gradient as for the flat state."""
        M = torch.as_tensor(0.9 * orthogonal(7))
        x = torch.randn(7, dtype=DOUBLE, requires_grad=True)
        flat, flat_report = simple(x, f=lambda z, x: torch.tanh(M @ z) + x)

        def f(state, x):
            z = torch.tanh(M @ torch.cat([state[0].reshape(-1), state[1], state[2].reshape(1)])) + x
            return [z[:4].reshape(2, 2), z[4:6], z[6]]

        start = [torch.zeros(2, 2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)]
        report = igt.Report()
        nested = igt.fixed_point(f, start, x, report=report)
        ours = torch.autograd.grad(sum(part.sum() for part in nested), x)[0]
        torch.testing.assert_close(ours, torch.autograd.grad(flat.sum(), x)[0], rtol=1e-7, atol=1e-9)
        assert report.forward.num_matvecs == flat_report.forward.num_matvecs
        assert report.backward.num_matvecs == flat_report.backward.num_matvecs

    @pytest.mark.fault(9, 10, 41)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("scale", [1.0, 2.0**-10])
    @pytest.mark.parametrize(
        "solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=lambda s: s.name
    )
    def test_half_precision_is_solved_in_single(self, dtype, scale, solver):
        """FAULTS 9, 10, 41: the answer is within a few units of the last place of the format, in the format."""
        x = torch.tensor([1.0, -0.5], dtype=dtype, requires_grad=True)
        z, report = simple(x, solver=solver)
        (gradient,) = torch.autograd.grad(z, x, torch.full((2,), scale, dtype=dtype))
        assert z.dtype == gradient.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(z.float(), 2 * x.float(), rtol=8 * eps, atol=0)
        torch.testing.assert_close(gradient.float() / scale, torch.full((2,), 2.0), rtol=8 * eps, atol=0)
        assert report.status is S.CONVERGED

    @pytest.mark.fault(11, 12)
    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
    def test_integers_are_no_state(self, dtype):
        """FAULTS 11 and 12."""
        with pytest.raises(ig.DtypeError, match=str(dtype)):
            igt.fixed_point(lambda z: z, torch.zeros(2, dtype=dtype))

    @pytest.mark.fault(12)
    @pytest.mark.parametrize("state", [np.zeros(2), [1.0], "z", None, object()])
    def test_objects_are_no_state(self, state):
        """FAULTS 12."""
        with pytest.raises(ig.BackendError):
            igt.fixed_point(lambda z: z, state)

    @pytest.mark.fault(13)
    def test_a_complex_system_is_solved_with_the_conjugate_transpose(self):
        """FAULTS 13: torch's gradient is that of (I - J)^H u = g; the plain transpose would be far off."""
        rng = np.random.default_rng(4)
        J = 0.4 * (rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))
        g = rng.standard_normal(4) + 1j * rng.standard_normal(4)
        u, report = adjoint(J, g)
        np.testing.assert_allclose(u.numpy(), np.linalg.solve((np.eye(4) - J).conj().T, g), rtol=1e-6)
        assert not np.allclose(u.numpy(), np.linalg.solve((np.eye(4) - J).T, g), rtol=0.05)
        assert report.status is S.CONVERGED


class TestZeroAndConstant:
    @pytest.mark.fault(17, 18)
    @pytest.mark.parametrize("batch_ndim", [0, 1])
    def test_a_map_that_ignores_its_state_is_its_own_gradient(self, batch_ndim):
        """FAULTS 17 and 18: peers stumble over the missing path."""
        x = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=lambda z, x: 3.0 * x, batch_ndim=batch_ndim)
        (gradient,) = torch.autograd.grad(z.sum(), x)
        assert torch.equal(gradient, torch.full((3, 2), 3.0, dtype=DOUBLE))
        assert report.status is S.CONVERGED
        (second,) = torch.autograd.grad(simple(x, f=lambda z, x: x**2)[0].sum(), x, create_graph=True)
        assert torch.equal(torch.autograd.grad(second.sum(), x)[0], torch.full((3, 2), 2.0, dtype=DOUBLE))

    @pytest.mark.fault(18, 19)
    @pytest.mark.parametrize("f", [lambda z, x: torch.ones(2), lambda z, x: 0.5 * z + 1.0], ids=["constant", "no x"])
    def test_a_map_without_a_path_to_the_argument_gives_none(self, f):
        """FAULTS 18 and 19: no gradient is None under allow_unused and an error of torch's without, never a number."""
        x = torch.ones(2, requires_grad=True)
        z, report = simple(x, f=f)
        if z.requires_grad:
            assert torch.autograd.grad(z.sum(), x, allow_unused=True, retain_graph=True)[0] is None
            with pytest.raises(RuntimeError, match="allow_unused"):
                torch.autograd.grad(z.sum(), x)
        assert report.forward.converged

    @pytest.mark.fault(22)
    @pytest.mark.parametrize(
        "f", [lambda z, x: z, lambda z, x: z.clone(), lambda z, x: z + 0 * x], ids=["z", "copy", "sum"]
    )
    def test_the_identity_map_never_has_a_converged_gradient(self, f):
        """FAULTS 22: every point is fixed, and none of them has a derivative."""
        x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=f)
        assert report.forward.converged
        torch.autograd.grad(z.sum(), x, allow_unused=True)
        assert report.backward.status in (S.SINGULAR, S.LEAST_SQUARES)
        assert not report.status.is_good

    @pytest.mark.fault(20)
    def test_an_exact_first_guess_of_the_adjoint_costs_one_product(self):
        """FAULTS 20."""
        x, report = torch.randn(6, dtype=DOUBLE, requires_grad=True), igt.Report()
        J = torch.as_tensor(0.9 * orthogonal(6))
        f = lambda z, x: J @ z + x
        z = igt.fixed_point(f, torch.zeros_like(x), x, report=report, solver=igt.NewtonKrylov())
        (cold,) = torch.autograd.grad(z.sum(), x)
        again = igt.fixed_point(
            f, z.detach(), x, report=report, adjoint_x0=report.backward.x, solver=igt.NewtonKrylov()
        )
        (warm,) = torch.autograd.grad(again.sum(), x)
        assert report.backward.num_matvecs == 1
        torch.testing.assert_close(warm, cold, rtol=1e-12, atol=0)


class TestScaling:
    @pytest.mark.fault(38, 39, 40, 42)
    @pytest.mark.parametrize("solver", [None, ig.Neumann(), ig.BiCGSTAB(), ig.LSMR(), ig.NormalEquations()], ids=repr)
    @pytest.mark.parametrize(
        ("dtype", "exponent"),
        [(DOUBLE, -46), (torch.float32, 66), (torch.float32, -83), (DOUBLE, -664), (DOUBLE, 664)],
        ids=["38 1e-14", "39 1e20 single", "40 1e-25 single", "42 1e-200", "42 1e200"],
    )
    def test_the_unit_of_the_cotangent_changes_no_bit(self, solver, dtype, exponent):
        """FAULTS 38 to 42: norms whose squares under- and overflow."""
        J = torch.as_tensor(0.5 * orthogonal(5)).to(dtype)
        g = torch.as_tensor(np.random.default_rng(5).standard_normal(5)).to(dtype)
        u, _ = adjoint(J, g, adjoint=solver)
        scaled, report = adjoint(J, torch.ldexp(g, torch.tensor(exponent)), adjoint=solver)
        assert torch.equal(torch.ldexp(scaled, torch.tensor(-exponent)), u)
        assert report.status is S.CONVERGED

    @pytest.mark.fault(43)
    @pytest.mark.parametrize("solver", [None, ig.CG(), ig.Neumann(), ig.NormalEquations()], ids=repr)
    def test_a_subnormal_cotangent_gives_no_nan(self, solver):
        """FAULTS 43."""
        u, _ = adjoint(0.5 * np.eye(2), np.array([5e-324, 0.0]), adjoint=solver)
        assert torch.isfinite(u).all()
        assert u.abs().max() <= 1e-322

    @pytest.mark.fault(44)
    def test_products_that_overflow_have_a_status(self):
        """FAULTS 44: entries of 1e300 in J."""
        u, report = adjoint(1e300 * orthogonal(3), np.full(3, 1e30))
        assert not report.status.is_good
        assert torch.isfinite(u).all()


class TestNanAndInf:
    @pytest.mark.fault(45, 46)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("solver", [None, ig.CG(), ig.Neumann(), ig.LSMR(), ig.Dense()], ids=repr)
    def test_a_cotangent_that_is_not_finite_costs_no_product(self, bad, solver):
        """FAULTS 45 and 46."""
        _, report = adjoint(0.5 * np.eye(3), np.array([1.0, bad, 0.0]), adjoint=solver)
        assert report.status is S.NONFINITE_INPUT
        assert report.backward.num_matvecs == 0

    @pytest.mark.fault(45)
    def test_a_cotangent_that_is_not_finite_warns(self):
        """FAULTS 45: and NaN goes through the layer, for a GradScaler to find: zeros would be a step."""
        x = torch.ones(2, requires_grad=True)
        z = igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(2), x)
        with pytest.warns(ig.ConvergenceWarning, match="backward.*NONFINITE_INPUT"):
            (z * math.nan).sum().backward()
        assert torch.isnan(x.grad).all()

    @pytest.mark.fault(45, 46)
    def test_a_row_that_is_not_finite_spoils_no_other_and_no_warm_start(self):
        x = torch.ones(2, 3, dtype=DOUBLE, requires_grad=True)
        report = igt.Report()
        z = igt.fixed_point(
            lambda z, x: 0.5 * z + x, torch.zeros_like(x), x, batch_ndim=1, report=report, on_failure="return"
        )
        z.backward(torch.tensor([[1.0, math.inf, 0.0], [1.0, 2.0, 3.0]], dtype=DOUBLE))
        assert torch.isnan(x.grad[0]).all()
        torch.testing.assert_close(x.grad[1], torch.tensor([2.0, 4.0, 6.0], dtype=DOUBLE))
        assert torch.isfinite(report.backward.x).all()  # the next step may start from it

    @pytest.mark.fault(47)
    def test_a_derivative_that_is_not_finite_has_a_status(self):
        """FAULTS 47: sqrt has none at 0, though its value there is a number."""
        x = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=lambda z, x: torch.sqrt(z.abs()) * 0.1 + x)
        torch.autograd.grad(z.sum(), x)
        assert report.backward.status is S.NONFINITE_OPERATOR
        assert not report.status.is_good

    @pytest.mark.fault(48)
    @pytest.mark.parametrize("last", [1, 2, 3, 5])
    def test_nan_from_a_later_product_on_stops_the_solve_there(self, last):
        """FAULTS 48: the best iterate before it is returned."""
        W = torch.as_tensor(0.95 * orthogonal(12))
        calls = []

        class Linear(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return W @ z

            @staticmethod
            def backward(ctx, g):
                calls.append(0)
                return W.T @ g * (math.nan if len(calls) > last else 1.0)

        x, report = torch.randn(12, dtype=DOUBLE, requires_grad=True), igt.Report()
        z = igt.implicit_gradient(
            lambda z, x: Linear.apply(z) + x,
            torch.zeros(12, dtype=DOUBLE),
            x,
            on_failure="return",
            report=report,
            adjoint=ig.GMRES(),
        )
        torch.autograd.grad(z.sum(), x)
        assert report.backward.status is S.NONFINITE_OPERATOR
        assert torch.isfinite(report.backward.x).all()
        assert len(calls) <= last + 4

    @pytest.mark.fault(49)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize(
        "solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=lambda s: s.name
    )
    def test_a_start_that_is_not_finite_is_not_iterated_on(self, bad, solver):
        """FAULTS 49."""
        x = torch.ones(2, requires_grad=True)
        z, report = simple(x, torch.tensor([bad, 0.0]), solver=solver)
        assert report.forward.status is S.NONFINITE_INPUT
        assert report.status is S.FORWARD_NOT_CONVERGED
        assert torch.isfinite(z).all()


class TestMapsThatMisbehave:
    @pytest.mark.fault(53)
    def test_a_vjp_that_writes_into_its_argument_is_named(self):
        """FAULTS 53: peers returned .30 with info 0, and one overwrote the caller's g."""

        class Halve(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return 0.5 * z

            @staticmethod
            def backward(ctx, g):
                return g.mul_(0.5)

        x, g = torch.ones(3, requires_grad=True), torch.ones(3)
        z, _ = simple(x, f=lambda z, x: Halve.apply(z) + x)
        with pytest.raises(ig.OperatorError, match="in place"):
            torch.autograd.grad(z, x, g)
        assert torch.equal(g, torch.ones(3))

    @pytest.mark.fault(55)
    def test_dropout_is_one_mask_for_a_pass(self):
        """FAULTS 55: probes did not agree, 4 to 10 % off. Here z = mask(0.5 z + x) exactly, and dz/dx to match."""
        x = torch.ones(200, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=lambda z, x: torch.nn.functional.dropout(0.2 * z + x, 0.5))
        (gradient,) = torch.autograd.grad(z.sum(), x)
        assert report.status is S.CONVERGED
        torch.testing.assert_close(gradient, z.detach(), rtol=1e-7, atol=0)  # linear in x, whose entries are 1
        values = sorted({round(v, 6) for v in z.tolist()})
        assert values == [0.0, round(2 / (1 - 0.4), 6)]

    @pytest.mark.fault(57, 58, 85)
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_a_product_passes_through_and_does_no_harm(self, error):
        """FAULTS 57, 58, 85: the same exception comes out, and the next backward is right."""
        fail = [True]

        class Linear(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return 0.5 * z

            @staticmethod
            def backward(ctx, g):
                if fail[0]:
                    raise error("mine")
                return 0.5 * g

        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=lambda z, x: Linear.apply(z) + x)
        with pytest.raises(error, match=r"^mine$"):
            torch.autograd.grad(z.sum(), x, retain_graph=True)
        fail[0] = False
        assert torch.equal(torch.autograd.grad(z.sum(), x)[0], torch.full((3,), 2.0, dtype=DOUBLE))
        assert report.status is S.CONVERGED

    @pytest.mark.fault(60)
    @pytest.mark.parametrize("entry", [igt.fixed_point, igt.implicit_gradient, igt.root])
    @pytest.mark.parametrize("grad", [True, False])
    @pytest.mark.parametrize("hidden", [lambda z: z, torch.detach, lambda z: z.data], ids=["plain", "detach", "data"])
    def test_a_map_that_changes_its_state_in_place_is_an_error(self, entry, grad, hidden):
        """FAULTS 60: torch's own words where it tracks the state, ours where it does not, and z0 keeps its bits.

        Without gradients the first call once worked on z0 itself: its image was the start, so it "converged" at once.
        """
        start = torch.ones(2)
        words = r"in-place operation|f changed its state in place"
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=words):
            entry(lambda z: hidden(z).mul_(0.5).add_(3.0), start)
        assert torch.equal(start, torch.ones(2))

    @pytest.mark.fault(54)
    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden()], ids=lambda s: s.name)
    def test_a_map_may_answer_in_a_buffer_of_its_own(self, solver):
        """FAULTS 54: the buffer was put back to its zeros before they were read, and zero "converged" at once."""
        buffer = torch.zeros(2, dtype=DOUBLE)

        def f(z):
            torch.mul(z, 0.5, out=buffer)
            return buffer.add_(1.0)

        with torch.no_grad():
            z = igt.fixed_point(f, torch.zeros(2, dtype=DOUBLE), solver=solver)
        torch.testing.assert_close(z, torch.full((2,), 2.0, dtype=DOUBLE), rtol=1e-10, atol=0)

    @pytest.mark.fault(54)
    def test_a_graph_that_is_written_into_a_captured_tensor_is_refused(self):
        """FAULTS 54 with gradients: the calls of a pass share the buffer, and its graph what was put back."""
        buffer, x = torch.zeros(2), torch.ones(2, requires_grad=True)
        with pytest.raises(ig.SettingError, match="writes what carries a derivative into a tensor from outside"):
            igt.fixed_point(lambda z, x: buffer.copy_(0.5 * z + x).tanh_(), torch.zeros(2), x)

    @pytest.mark.fault(61, 62, 63)
    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden()], ids=lambda s: s.name)
    def test_one_diverging_sample_of_three(self, solver):
        """FAULTS 61 to 63: the others are right, alone and in the batch, and each has its own status."""
        rate = torch.tensor([[0.5], [0.9], [0.2]], dtype=DOUBLE)
        f = lambda z, x: torch.where(rate == 0.9, 3 * z * z + 1.0, rate * z) + x  # no real fixed point in the middle
        x = torch.ones(3, 1, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, f=f, batch_ndim=1, solver=solver)
        assert report.forward.converged.tolist() == [True, False, True]
        gradient = torch.autograd.grad(z[[0, 2]].sum(), x)[0]
        expected = torch.tensor([[2.0], [1.25]], dtype=DOUBLE)
        torch.testing.assert_close(z.detach()[[0, 2]], expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient[[0, 2]], expected, rtol=1e-7, atol=0)
        assert gradient[1] == 0
        assert report.status is S.FORWARD_NOT_CONVERGED


class _Changing(torch.nn.Module):
    """tanh(scale mask dropout(z) + x), with three things in it that are no parameters."""

    def __init__(self):
        super().__init__()
        self.mask, self.scale, self.dropout = torch.linspace(0.2, 1.0, 20, dtype=DOUBLE), 0.4, torch.nn.Dropout(0.5)
        self.array = np.ones(20)

    def forward(self, z, x):
        return torch.tanh(self.scale * self.mask * self.dropout(z) + torch.from_numpy(self.array) * x)


CHANGES = {
    "buffer": lambda m: m.mask.data.zero_(),
    "attribute": lambda m: setattr(m, "scale", -0.9),
    "mode": lambda m: m.eval(),
    "numpy": lambda m: m.array.fill(2.0),
}


class TestMapsThatChange:
    """The backward pass evaluates the map again: if it is another map by then, the gradient is that of neither."""

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("policy", ["warn", "raise", "return", ig.GMRES()], ids=str)
    def test_a_map_that_changed_before_the_backward_pass_is_told(self, change, policy):
        """What autograd has no version of: buffers without gradient, attributes, train and eval mode, NumPy arrays."""
        torch.manual_seed(0)
        module, x, report = _Changing(), torch.linspace(-1, 1, 20, dtype=DOUBLE).requires_grad_(), igt.Report()
        z = igt.fixed_point(module, torch.zeros(20, dtype=DOUBLE), x, report=report, on_failure=policy)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the healthy twin
            torch.autograd.grad(z.sum(), x, retain_graph=True)
        assert report.status is S.CONVERGED
        change(module)
        words = "f no longer has the fixed point that was found"
        if policy == "raise":
            with pytest.raises(ig.NotConvergedError, match=words):
                torch.autograd.grad(z.sum(), x)
        elif policy == "return":
            torch.autograd.grad(z.sum(), x)
        else:
            with pytest.warns(ig.ConvergenceWarning, match=words):
                torch.autograd.grad(z.sum(), x)
        assert report.backward.status is S.FORWARD_NOT_CONVERGED

    def test_a_buffer_that_autograd_could_see_change_raises(self):
        """Edited in place, not through .data: a version tells, as for the tensors that autograd saves itself."""
        module, x = _Changing(), torch.linspace(-1, 1, 20, dtype=DOUBLE).requires_grad_()
        z = igt.fixed_point(module, torch.zeros(20, dtype=DOUBLE), x, on_failure="return")
        module.mask.zero_()
        with pytest.raises(ig.OperatorError, match="modified by an inplace operation"):
            torch.autograd.grad(z.sum(), x)

    def test_its_second_derivative_is_refused(self):
        module, x = _Changing().eval(), torch.linspace(-1, 1, 20, dtype=DOUBLE).requires_grad_()
        z = igt.fixed_point(module, torch.zeros(20, dtype=DOUBLE), x, on_failure="return")
        torch.autograd.grad(z.sum(), x, create_graph=True)
        module.scale = -0.9
        with pytest.raises(ig.SettingError, match="FORWARD_NOT_CONVERGED"):
            torch.autograd.grad(z.sum(), x, create_graph=True)

    def test_samples_that_are_no_systems_are_told(self):
        """z_i = 0.9 z_{i-1} + x_i with batch_ndim=1: a sample that ended is moved on by its neighbour afterwards."""
        x, report = torch.randn(6, 1, dtype=DOUBLE, requires_grad=True), igt.Report()
        f = lambda z, x: 0.9 * z.roll(1, 0) + x
        with pytest.warns(ig.ConvergenceWarning, match="COUPLED"):
            igt.fixed_point(f, torch.zeros(6, 1, dtype=DOUBLE), x, batch_ndim=1, report=report)
        assert not report.status.is_good

    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("tolerance", [None, 0.0])
    def test_rounding_is_no_change(self, dtype, tolerance):
        """Attention in eval mode takes another kernel without gradients than with them."""
        block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to(dtype).eval()
        x, report = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True), igt.Report()
        f = lambda z, x: 0.2 * torch.tanh(block(z + x))
        settings = {"solver": igt.Picard(rtol=tolerance, max_iters=60), "report": report, "on_failure": "return"}
        z = igt.fixed_point(f, torch.zeros_like(x), x, **settings)
        torch.autograd.grad(z.sum(), x)
        assert report.backward.status is not S.FORWARD_NOT_CONVERGED


class TestHooksAndAliases:
    @pytest.mark.parametrize("captured", [True, False])
    @pytest.mark.parametrize("create_graph", [True, False])
    def test_a_hook_of_a_parameter_runs_once(self, captured, create_graph):
        """A hook that doubles the gradient doubled it twice: inside of the backward solve, and after it."""
        plain, hooked = (torch.tensor(0.5, dtype=DOUBLE, requires_grad=True) for _ in range(2))
        calls = []
        hooked.register_hook(lambda g: calls.append(0) or 2 * g)
        gradients = []
        for w in (plain, hooked):
            f = (lambda z, w=w: torch.tanh(w * z + 0.3)) if captured else (lambda z, w: torch.tanh(w * z + 0.3))
            z = igt.fixed_point(f, torch.zeros(2, dtype=DOUBLE), *(() if captured else (w,)))
            gradients.append(torch.autograd.grad(z.sum(), w, create_graph=create_graph)[0].detach())
        torch.testing.assert_close(gradients[1], 2 * gradients[0])
        assert len(calls) == 1

    def test_a_tensor_may_come_as_an_argument_and_by_capture(self):
        """Both ways count: z = tanh(w z + w), against finite differences."""
        solve = lambda w: igt.fixed_point(
            lambda z, a: torch.tanh(w * z + a),
            torch.zeros(2, dtype=DOUBLE),
            w,
            solver=igt.Picard(rtol=1e-15),
            on_failure="return",
            adjoint=ig.GMRES(rtol=1e-13),
        )
        w = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
        assert torch.autograd.gradcheck(solve, (w,))
        assert torch.autograd.gradgradcheck(solve, (w,))


SOLVERS = [igt.Picard, igt.Anderson, igt.Broyden, igt.NewtonKrylov]


class TestSettings:
    @pytest.mark.fault(64)
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_no_steps_measure_the_start(self, solver):
        """FAULTS 64: never a success by default, and one where the start is the fixed point."""
        x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        z, report = simple(x, solver=solver(max_iters=0))
        assert torch.equal(z, torch.zeros(2, dtype=DOUBLE))
        assert report.status is S.FORWARD_NOT_CONVERGED
        assert report.forward.residual_norm == pytest.approx(2**0.5)
        z, report = simple(x, 2 * x.detach(), solver=solver(max_iters=0))
        assert report.forward.status is S.CONVERGED

    @pytest.mark.fault(65, 67, 68, 69, 72)
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize(
        "settings",
        [
            {"max_iters": -1},
            {"max_iters": 1.5},
            {"max_iters": True},
            {"rtol": math.nan},
            {"rtol": -1e-3},
            {"rtol": math.inf},
            {"rtol": "1e-3"},
            {"atol": math.nan},
            {"atol": -1.0},
            {"atol": math.inf},
            {"tol": 1e-3},
        ],
        ids=repr,
    )
    def test_senseless_settings_are_refused_when_they_are_set(self, solver, settings):
        """FAULTS 65, 67, 68, 69, 72."""
        with pytest.raises(ig.SettingError, match=next(iter(settings))):
            solver(**settings)
        assert solver(max_iters=3, rtol=1e-3, atol=0.0).max_iters == 3  # the healthy twin

    @pytest.mark.fault(66)
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_tolerance_of_zero_ends_with_the_best_there_is(self, solver):
        """FAULTS 66."""
        x = torch.rand(4, dtype=DOUBLE)
        z, report = simple(x, f=lambda z, x: torch.cos(0.7 * z) + x, solver=solver(rtol=0.0, max_iters=200))
        assert report.forward.status in (S.CONVERGED, S.STAGNATED, S.MAX_ITERS)
        residual = torch.linalg.norm(torch.cos(0.7 * z) + x - z)
        assert residual <= 1e-14
        assert report.forward.residual_norm == residual.item()

    @pytest.mark.fault(71)
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("cap", [2**31, 2**40])
    def test_a_huge_cap_is_the_size_of_nothing(self, solver, cap):
        """FAULTS 71."""
        _, report = simple(torch.ones(2, dtype=DOUBLE), solver=solver(max_iters=cap))
        assert report.status is S.CONVERGED


class TestContexts:
    @pytest.mark.fault(73)
    @pytest.mark.parametrize("entry", [igt.fixed_point, igt.root, igt.implicit_gradient, igt.argmin])
    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_every_entry_gives_its_value(self, entry, context):
        """FAULTS 73."""
        x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        f, z0 = {
            igt.fixed_point: (lambda z, x: 0.5 * z + x, torch.zeros(2)),
            igt.implicit_gradient: (lambda z, x: 0.5 * z + x, torch.full((2,), 2.0)),
            igt.root: (lambda z, x: 0.5 * z - x, torch.zeros(2)),
            igt.argmin: (lambda z, x: (0.5 * z - x).square().sum(), torch.zeros(2)),
        }[entry]
        with context():
            z = entry(f, z0.double(), x)
        assert not z.requires_grad
        torch.testing.assert_close(z.clone(), torch.full((2,), 2.0, dtype=DOUBLE))

    @pytest.mark.fault(74)
    def test_nothing_that_requires_a_gradient_gives_an_output_without(self):
        """FAULTS 74."""
        z, _ = simple(torch.ones(2))
        assert not z.requires_grad

    @pytest.mark.fault(79)
    def test_six_threads_share_a_module(self):
        """FAULTS 79: one hook for all, and it recursed."""
        torch.manual_seed(1)
        cell = torch.nn.Linear(6, 6).double()
        torch.nn.init.orthogonal_(cell.weight, gain=0.5)
        inputs = torch.randn(6, 6, dtype=DOUBLE)
        f = lambda z, x: torch.tanh(cell(z) + x)
        gradient = lambda x: torch.autograd.grad(igt.fixed_point(f, torch.zeros_like(x), x).sum(), cell.weight)[0]
        expected, got = [gradient(x) for x in inputs], [[] for _ in inputs]

        def work(i):
            for _ in range(5):
                got[i].append(gradient(inputs[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for results, truth in zip(got, expected, strict=True):
            assert len(results) == 5
            assert all(torch.equal(result, truth) for result in results)

    @pytest.mark.fault(80)
    def test_vmap_of_grad_is_the_loop(self):
        """FAULTS 80."""
        solve = lambda x: simple(x, f=lambda z, x: torch.tanh(0.5 * z + x))[0].sum()
        x = torch.randn(4, 3, dtype=DOUBLE)
        expected = torch.stack([torch.func.grad(solve)(row) for row in x])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(solve))(x), expected, rtol=1e-7, atol=1e-9)

    @pytest.mark.fault(81)
    def test_a_compiled_map_keeps_its_gradient(self):
        """FAULTS 81."""
        x = torch.randn(3, dtype=DOUBLE, requires_grad=True)
        f = lambda z, x: torch.tanh(0.5 * z + x)
        plain, compiled = simple(x, f=f)[0], simple(x, f=torch.compile(f, backend="eager"))[0]
        torch.testing.assert_close(compiled, plain, rtol=1e-11, atol=0)
        for _ in range(2):
            (ours,) = torch.autograd.grad(compiled.sum(), x, retain_graph=True)
            torch.testing.assert_close(ours, torch.autograd.grad(plain.sum(), x, retain_graph=True)[0])

    @pytest.mark.fault(83)
    @pytest.mark.parametrize("layout", ["expanded", "strided", "transposed"])
    def test_the_layout_of_the_cotangent_does_not_matter(self, layout):
        """FAULTS 83."""
        x = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
        z, _ = simple(x)
        g = {
            "expanded": torch.ones((), dtype=DOUBLE).expand(3, 4),
            "strided": torch.randn(6, 4, dtype=DOUBLE)[::2],
            "transposed": torch.randn(4, 3, dtype=DOUBLE).T,
        }[layout]
        torch.testing.assert_close(torch.autograd.grad(z, x, g)[0], 2 * g, rtol=1e-7, atol=0)


class TestCopies:
    @pytest.mark.fault(88)
    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_a_layer_that_has_run_can_be_copied(self, how):
        """FAULTS 88: a local function could not be pickled. The copy has weights, and a report, of its own."""
        layer = igt.FixedPoint(_Cell(), batch_ndim=1, adjoint=ig.GMRES(restart=5), solver=igt.Anderson(m=3))
        zeros, x = torch.zeros(2, 4), torch.randn(2, 4)
        layer(zeros, x).sum().backward()
        twin = {"deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}[how](layer)
        assert torch.equal(twin(zeros, x), layer(zeros, x))
        assert (twin.adjoint, twin.solver, twin.batch_ndim) == (layer.adjoint, layer.solver, 1)
        twin.zero_grad()
        twin(zeros, x).sum().backward()
        layer.zero_grad()
        layer(zeros, x).sum().backward()
        assert torch.equal(twin.module.linear.weight.grad, layer.module.linear.weight.grad)
        assert twin.report is not layer.report
        assert twin.module.linear.weight is not layer.module.linear.weight

    @pytest.mark.fault(88)
    def test_a_report_can_be_pickled(self):
        """FAULTS 88."""
        x = torch.ones(2, requires_grad=True)
        z, report = simple(x)
        z.sum().backward()
        twin = pickle.loads(pickle.dumps(report))
        assert repr(twin) == repr(report)
        assert torch.equal(twin.backward.x, report.backward.x)

    @pytest.mark.fault(89)
    @pytest.mark.parametrize("entry", ["fixed_point", "dropout", "argmin"])
    def test_the_same_seed_gives_the_same_bits(self, entry):
        """FAULTS 89."""

        def once():
            torch.manual_seed(5)
            x = torch.randn(4, requires_grad=True)
            if entry == "argmin":
                z = igt.argmin(lambda w, x: (w - x).square().sum() + 0.1 * w.pow(4).sum(), torch.zeros(4), x)
            else:
                p = 0.5 if entry == "dropout" else 0.0
                z, _ = simple(x, f=lambda z, x: torch.tanh(torch.nn.functional.dropout(0.5 * z, p) + x))
            return z.detach(), torch.autograd.grad(z.sum(), x)[0], torch.rand(1)

        for a, b in zip(once(), once(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.fault(89)
    def test_the_global_generator_is_left_alone(self):
        """FAULTS 89: a pass without dropout draws nothing."""
        x = torch.ones(3, requires_grad=True)
        before = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            simple(x)[0].sum().backward()
        assert torch.equal(torch.get_rng_state(), before)


class _Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        torch.nn.init.orthogonal_(self.linear.weight, gain=0.5)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def _pickled(layer):
    return pickle.loads(pickle.dumps(layer))


def _saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
