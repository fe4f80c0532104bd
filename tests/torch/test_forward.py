"""What all forward solvers have in common: per-sample stopping, best iterates, honest counts and statuses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.forward.broyden import Broyden
from implicitgrad.torch.forward.equation import Equation
from implicitgrad.torch.forward.newton import NewtonKrylov

SOLVERS = [
    igt.Picard(),
    igt.Picard(damping=0.3),
    igt.Anderson(),
    igt.Anderson(m=1),
    Broyden(),
    Broyden(m=1),
    NewtonKrylov(),
]
SHORT = [igt.Picard(), igt.Anderson(), Broyden(), NewtonKrylov()]
DOUBLE = torch.float64


def name_of(solver):
    return repr(solver).replace("rtol=None, atol=0.0, ", "")


every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name_of)
each_kind = pytest.mark.parametrize("solver", SHORT, ids=lambda s: s.name)


def contraction(seed, n=8, dtype=DOUBLE, norm=0.9):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=generator, dtype=dtype)
    W *= norm / torch.linalg.matrix_norm(W, 2)
    b = torch.randn(n, generator=generator, dtype=dtype)
    return lambda z: torch.tanh(z @ W.mT + b)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converged_means_that_the_residual_is_within_the_bound(solver, dtype):
    """The residual of the returned point, evaluated again, is the one reported, and within the bound."""
    for seed in range(20):
        f, calls = contraction(seed, dtype=dtype), []

        def counted(z, f=f, calls=calls):
            calls.append(1)
            return f(z)

        sol = solver.solve(counted, torch.zeros(8, dtype=dtype))
        assert sol.status is ig.Status.CONVERGED
        assert sol.num_matvecs == len(calls)
        residual = torch.linalg.vector_norm(f(sol.x) - sol.x).item()
        assert sol.residual_norm == pytest.approx(residual, rel=8 * torch.finfo(dtype).eps)
        assert sol.residual_norm <= sol.bound
        bound = torch.finfo(dtype).eps ** 0.75 * torch.linalg.vector_norm(f(sol.x)).item()
        assert sol.bound == pytest.approx(bound, rel=1e-6)
        assert sol.seconds > 0


@every_solver
def test_a_batch_is_a_loop(solver):
    """Slow, fast, diverging, NaN and zero samples side by side: each ends as it does alone."""
    rates = torch.tensor([0.99, 0.1, 3.0, float("nan"), 0.5, 0.0], dtype=DOUBLE)
    shift = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-9, 0.0], dtype=DOUBLE)

    def f(z, rates, shift):
        return rates[..., None] * z + shift[..., None] * torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)

    z0 = torch.ones(6, 3, dtype=DOUBLE)
    z0[5] = 0
    batch = solver.solve(lambda z: f(z, rates, shift), z0)
    for i in range(6):
        alone = solver.solve(lambda z, i=i: f(z, rates[i], shift[i]), z0[i])
        assert batch.status[i] is alone.status
        assert batch.num_iters[i] == alone.num_iters
        torch.testing.assert_close(batch.x[i], alone.x, rtol=1e-9, atol=1e-9)
        assert batch.residual_norm[i] == pytest.approx(alone.residual_norm, rel=1e-3, abs=1e-11, nan_ok=True)
    assert batch.status[3] is ig.Status.NONFINITE_OPERATOR
    assert batch.status[5] is ig.Status.CONVERGED
    assert batch.num_iters[5] == 0
    assert torch.isfinite(batch.x).all()


@each_kind
def test_a_sample_that_has_ended_stands_still_at_its_best_iterate(solver):
    """In every later call of f: a fast, a diverging and a NaN sample next to a slow one."""

    def f(z):
        spoiled = torch.where(z[2:3] < 0.9, float("nan"), 0.5 * z[2:3])
        return torch.cat([0.01 * torch.sin(z[:1]), 1e6 * z[1:2] ** 3 + 1e6, spoiled, torch.cos(2 * z[3:]) + z[3:] / 2])

    sol = solver.solve(f, torch.ones(4, 3, dtype=DOUBLE), trajectory=True)
    assert sol.status[0] is ig.Status.CONVERGED
    late = 0
    for i in range(2 if solver.name == "NewtonKrylov" else 3):  # whose trial points may be NaN before it ends
        for step in np.flatnonzero(np.isnan(sol.history[:, i]))[i == 2 :]:
            assert torch.equal(sol.trajectory[step][i], sol.x[i])
            late += 1
    assert late > 4


@each_kind
@pytest.mark.parametrize("bad", ["nan", "inf", "expanding", "nan at the third call"])
def test_a_bad_sample_changes_no_other_sample_in_any_bit(solver, bad):
    """The same batch with a good and with a bad sample in the middle."""
    generator = torch.Generator().manual_seed(0)
    W = 0.3 * torch.randn(5, 6, 6, generator=generator, dtype=DOUBLE)
    b = torch.randn(5, 6, generator=generator, dtype=DOUBLE)

    def run(spoil):
        calls = []

        def f(z):
            calls.append(1)
            image = torch.tanh(torch.einsum("bij,bj->bi", W, z) + b)
            rows = []
            for i, row in enumerate(image):  # no arithmetic between the samples
                rows.append(spoil(z[i], row, len(calls)) if i == 2 else row)
            return torch.stack(rows)

        return solver.solve(f, torch.zeros(5, 6, dtype=DOUBLE))

    spoil = {
        "nan": lambda z, row, calls: row * float("nan"),
        "inf": lambda z, row, calls: row + float("inf"),
        "expanding": lambda z, row, calls: 1e3 * z**3 + 1.0,
        "nan at the third call": lambda z, row, calls: row * float("nan") if calls > 2 else row,
    }[bad]
    good, spoiled = run(lambda z, row, calls: row), run(spoil)
    others = [0, 1, 3, 4]
    assert good.converged.all()
    assert torch.equal(good.x[others], spoiled.x[others])
    assert (good.status[others] == spoiled.status[others]).all()
    assert (good.num_iters[others] == spoiled.num_iters[others]).all()
    assert torch.isfinite(spoiled.x).all()
    assert bad == "expanding" or spoiled.status[2] is ig.Status.NONFINITE_OPERATOR


def test_anderson_solves_a_linear_map_of_spectral_radius_above_one():
    """On a linear map Anderson is GMRES in disguise, which a Picard iteration is not."""
    A = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    f = lambda z: z @ A.T + 1.0
    expected = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - A, torch.ones(2, dtype=torch.float64))
    sol = igt.Anderson().solve(f, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(sol.x, expected)
    assert igt.Picard().solve(f, torch.zeros(2, dtype=torch.float64)).status is ig.Status.DIVERGED


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_anderson_solves_a_linear_map_in_as_many_steps_as_it_has_unknowns(dtype):
    """Walker & Ni 2011, theorem 2.2: its images are those of the points of GMRES, which ends in n steps."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(6, 6, generator=generator, dtype=dtype) * 0.4
        b = torch.randn(6, generator=generator, dtype=dtype)
        sol = igt.Anderson(m=6, rtol=1e-9).solve(lambda z, W=W, b=b: W @ z + b, torch.zeros(6, dtype=dtype))
        assert sol.converged
        assert sol.num_iters <= 7


@every_solver
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_the_unit_of_the_state_changes_no_bit(solver, batch):
    """f_s(z) = s f(z / s) takes the same steps for every power of two s."""
    f, z0 = contraction(0), torch.zeros(*batch, 8, dtype=DOUBLE)
    known = solver.solve(f, z0)
    assert np.all(known.converged)
    for exponent in (-200, -60, 60, 200):
        s = 2.0**exponent
        sol = solver.solve(lambda z, s=s: s * f(z / s), z0)
        assert np.array_equal(sol.num_iters, known.num_iters)
        assert sol.num_matvecs == known.num_matvecs
        assert torch.equal(sol.x / s, known.x)


@each_kind
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_units_near_the_ends_of_float32_change_no_bit(solver, batch):
    """Squares of 2**-90 and 2**90 are no float32."""
    f, z0 = contraction(0, dtype=torch.float32), torch.zeros(*batch, 8)
    known = solver.solve(f, z0)
    for exponent in (-90, 90):
        s = 2.0**exponent
        sol = solver.solve(lambda z, s=s: s * f(z / s), z0)
        assert np.all(sol.converged)
        assert sol.num_matvecs == known.num_matvecs
        assert torch.equal(sol.x / s, known.x)


@every_solver
def test_a_start_at_the_fixed_point_costs_one_call(solver):
    f = contraction(1)
    z = solver.solve(f, torch.zeros(8, dtype=DOUBLE)).x
    again = solver.solve(f, z)
    assert again.status is ig.Status.CONVERGED
    assert (again.num_matvecs, again.num_rmatvecs, again.num_iters) == (1, 0, 0)
    assert torch.equal(again.x, z)
    assert again.x.data_ptr() != z.data_ptr()


@each_kind
def test_a_first_image_saves_the_first_call_and_nothing_else(solver):
    f, z0 = contraction(2), torch.ones(8, dtype=DOUBLE)
    plain, given = solver.solve(f, z0), solver.solve(f, z0, first=f(z0))
    assert torch.equal(plain.x, given.x)
    assert given.num_matvecs == plain.num_matvecs - 1
    assert np.array_equal(plain.history, given.history)
    at_once = solver.solve(f, plain.x, first=f(plain.x))
    assert at_once.converged
    assert at_once.num_matvecs == 0
    with pytest.raises(ig.ShapeError, match=r"first has shape \(7,\), expected that of the state, \(8,\)"):
        solver.solve(f, z0, first=torch.ones(7, dtype=DOUBLE))
    with pytest.raises(ig.DtypeError, match=r"first has dtype torch\.float32"):
        solver.solve(f, z0, first=torch.ones(8))


@each_kind
def test_the_trajectory_holds_the_points_at_which_f_was_evaluated(solver):
    f, seen = contraction(3), []

    def watched(z):
        if not torch.is_grad_enabled():  # not the calls that linearize
            seen.append(z.clone())
        return f(z)

    with torch.no_grad():
        sol = solver.solve(watched, torch.zeros(8, dtype=DOUBLE), trajectory=True)
    assert len(sol.trajectory) == len(seen) == len(sol.history) > 2
    for point, met, norm in zip(sol.trajectory, seen, sol.history, strict=True):
        assert torch.equal(point, met)
        assert torch.linalg.vector_norm(f(point) - point).item() == pytest.approx(norm, rel=1e-13)
    assert solver.solve(f, torch.zeros(8, dtype=DOUBLE)).trajectory == ()
    # Points that are kept are not written to later.
    first = solver.solve(f, torch.zeros(8, dtype=DOUBLE), first=f(torch.zeros(8, dtype=DOUBLE)), trajectory=True)
    assert [t.tolist() for t in first.trajectory] == [t.tolist() for t in sol.trajectory]


@each_kind
def test_no_steps_measure_the_start(solver):
    solver = type(solver)(max_iters=0)
    sol = solver.solve(lambda z: 0.5 * z, torch.ones(4, dtype=DOUBLE))
    assert sol.status is ig.Status.MAX_ITERS
    assert (sol.num_matvecs, sol.num_rmatvecs, sol.num_iters) == (1, 0, 0)
    assert sol.residual_norm == 1.0
    assert torch.equal(sol.x, torch.ones(4, dtype=DOUBLE))


@each_kind
def test_max_iters_are_steps(solver):
    limited = type(solver)(max_iters=2)
    sol = limited.solve(contraction(0), torch.zeros(8, dtype=DOUBLE))
    assert sol.status is ig.Status.MAX_ITERS
    assert sol.num_iters == 2
    assert sol.residual_norm == np.min(sol.history)


def test_every_ending_has_its_status():
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    assert igt.Picard(max_iters=20).solve(lambda z: z @ rotation.T, ones).status is ig.Status.MAX_ITERS
    assert igt.Picard(damping=0.5).solve(lambda z: z @ rotation.T + 1.0, ones).status is ig.Status.CONVERGED
    assert igt.Picard().solve(lambda z: z * float("nan"), ones).status is ig.Status.NONFINITE_OPERATOR
    assert igt.Picard().solve(lambda z: z, ones * float("inf")).status is ig.Status.NONFINITE_INPUT
    stuck = igt.Picard(rtol=0.0).solve(lambda z: torch.cos(z), ones.float())
    assert stuck.status in (ig.Status.STAGNATED, ig.Status.CONVERGED)  # float32 may hit a fixed point exactly
    assert igt.Picard(max_iters=0).solve(lambda z: 0.5 * z, ones).num_matvecs == 1


def test_the_best_iterate_comes_back_from_a_failure():
    calls = []

    def f(z):
        calls.append(z.clone())
        return 0.1 * z if len(calls) < 4 else -5.0 * z

    sol = igt.Picard(max_iters=30).solve(f, torch.ones(3, dtype=torch.float64))
    assert not sol.converged
    assert sol.residual_norm == pytest.approx(np.nanmin(sol.history))


@each_kind
def test_the_callers_state_is_left_alone(solver):
    z0 = torch.ones(3, dtype=DOUBLE)
    sol = solver.solve(lambda z: 0.5 * z + 1, z0)
    sol.x.zero_()
    assert torch.equal(z0, torch.ones(3, dtype=DOUBLE))


def convolution():
    torch.manual_seed(1)
    norm = torch.nn.GroupNorm(2, 4).double()
    kernel, x = 0.1 * torch.randn(4, 4, 3, 3, dtype=DOUBLE), torch.randn(2, 4, 6, 6, dtype=DOUBLE)

    def f(z):
        hidden = torch.nn.functional.conv2d(z.reshape(2, 4, 6, 6), kernel, padding=1)
        return norm(torch.relu(hidden + x)).reshape(2, -1)

    return f, torch.zeros(2, 144, dtype=DOUBLE)


def gated():
    torch.manual_seed(1)
    cell, x = torch.nn.GRUCell(16, 16).double(), torch.randn(8, 16, dtype=DOUBLE)
    return (lambda z: cell(x, z)), torch.zeros(8, 16, dtype=DOUBLE)


def attention():
    torch.manual_seed(1)
    query, key, value = (0.3 * torch.randn(16, 16, dtype=DOUBLE) for _ in range(3))
    x = torch.randn(10, 16, dtype=DOUBLE)

    def f(z):
        h = torch.nn.functional.layer_norm(z.reshape(10, 16) + x, (16,))
        return (torch.softmax(h @ query @ (h @ key).T / 4, -1) @ (h @ value) + 0.5 * x).reshape(-1)

    return f, torch.zeros(160, dtype=DOUBLE)


@each_kind
@pytest.mark.parametrize("layer", [convolution, gated, attention])
def test_layers_are_solved_by_every_solver_to_one_point(solver, layer):
    f, z0 = layer()
    sol = solver.solve(f, z0)
    assert np.all(sol.converged)
    with torch.no_grad():
        for _ in range(2000):
            z0 = f(z0)
    torch.testing.assert_close(sol.x, z0, rtol=0, atol=1e-9)
    assert sol.num_matvecs <= igt.Picard().solve(f, torch.zeros_like(z0)).num_matvecs


class TestMapsThatMisbehave:
    @each_kind
    def test_an_exception_of_the_map_passes_through(self, solver):
        for error in (ValueError("mine"), KeyboardInterrupt()):
            calls = []

            def f(z, calls=calls, error=error):
                calls.append(1)
                if len(calls) == 3:
                    raise error
                return 0.5 * torch.cos(z)

            with pytest.raises(type(error)) as caught:
                solver.solve(f, torch.zeros(3, dtype=DOUBLE))
            assert caught.value is error
            assert solver.solve(lambda z: 0.5 * torch.cos(z), torch.zeros(3, dtype=DOUBLE)).converged

    @each_kind
    def test_a_random_map_ends_in_a_status(self, solver):
        torch.manual_seed(0)
        f = lambda z: torch.nn.functional.dropout(0.5 * z + 1.0, 0.5)
        sol = solver.solve(f, torch.zeros(4, 16, dtype=DOUBLE))
        assert not any(s is None or s.is_good for s in sol.status)
        assert torch.isfinite(sol.x).all()

    @each_kind
    def test_a_map_that_writes_into_its_state_is_refused(self, solver):
        with pytest.raises(ig.OperatorError, match="changed its state in place"):
            solver.solve(lambda z: z.mul_(0.5).add_(1), torch.zeros(3))

    @each_kind
    def test_a_map_that_keeps_its_buffer_is_believed(self, solver):
        buffer = torch.zeros(3, dtype=DOUBLE)

        def f(z):
            if torch.is_grad_enabled() and z.requires_grad:
                return torch.cos(z)
            return torch.cos(z, out=buffer)

        with torch.no_grad():
            sol = solver.solve(f, torch.zeros(3, dtype=DOUBLE))
        assert sol.converged
        torch.testing.assert_close(sol.x, torch.full((3,), 0.7390851332151607, dtype=DOUBLE))

    @pytest.mark.parametrize(
        ("f", "error", "words"),
        [
            (lambda z: z[:2], ig.ShapeError, r"f has shape \(2,\), expected that of the state, \(3,\)"),
            (lambda z: z.float(), ig.DtypeError, "f has dtype torch.float32, expected that of the state"),
            (lambda z: z.numpy(), ig.BackendError, "f is of type ndarray, expected an array as the state is"),
            (lambda z: None, ig.BackendError, "f is of type NoneType"),
        ],
    )
    def test_a_map_that_returns_no_state_gets_a_sentence(self, f, error, words):
        for solver in SHORT:
            with pytest.raises(error, match=words):
                solver.solve(f, torch.ones(3, dtype=DOUBLE))

    @pytest.mark.parametrize(
        ("z0", "error", "words"),
        [
            (torch.tensor(1.0), ig.ShapeError, r"without axes, expected \(..., n\)"),
            (torch.tensor([1]), ig.DtypeError, "expected floating point"),
            ([1.0], ig.BackendError, "expected an array"),
        ],
    )
    def test_a_start_that_is_no_state_gets_a_sentence(self, z0, error, words):
        for solver in SHORT:
            with pytest.raises(error, match=words):
                solver.solve(lambda z: z, z0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tol": 1e-3}, "unexpected keyword argument 'tol'"),
        ({"rtol": -1.0}, "finite number >= 0"),
        ({"rtol": float("nan")}, "finite number >= 0"),
        ({"max_iters": 1.5}, "integer >= 0"),
        ({"damping": 1.0}, r"\[0, 1\)"),
    ],
)
def test_wrong_settings_get_a_sentence(settings, words):
    with pytest.raises(ig.SettingError, match=words):
        igt.Picard(**settings)


def test_anderson_converges_where_picard_does():
    """Saturated tanh layers, on which mixing alone circled for 500 calls while Picard took 80."""
    for seed in range(5):
        torch.manual_seed(seed)
        W, x = torch.randn(32, 32) * 0.35, 2 * torch.randn(64, 32)
        f = lambda z, W=W, x=x: torch.tanh(z @ W.T + x)
        plain = igt.Picard().solve(f, torch.zeros(64, 32))
        mixed = igt.Anderson().solve(f, torch.zeros(64, 32))
        assert mixed.converged[plain.converged].all()


class TestStatesThatAreNoOrdinaryOnes:
    """What a review found: each was CONVERGED, or a crash, once."""

    @each_kind
    def test_an_infinite_image_is_no_fixed_point(self, solver):
        sol = solver.solve(lambda z: torch.exp(z + 1000), torch.zeros(3))
        assert sol.status is ig.Status.NONFINITE_OPERATOR

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @each_kind
    def test_half_precision_runs_in_single(self, solver, dtype):
        sol = solver.solve(lambda z: 0.5 * z + 300, torch.zeros(3, dtype=dtype))
        assert sol.x.dtype == dtype
        assert abs(sol.x.float() - 600).max() <= 8 * 600 * torch.finfo(dtype).eps

    @each_kind
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_evaluated_at_points_that_it_holds(self, solver, dtype):
        met = []

        def f(z):
            met.append(z.dtype)
            return torch.tanh(0.8 * z + 0.3)

        sol = solver.solve(f, torch.zeros(2, 5, dtype=dtype), trajectory=True)
        assert set(met) == {dtype}
        assert all(point.dtype == dtype for point in sol.trajectory)
        residual = torch.linalg.vector_norm(f(sol.x).float() - sol.x.float(), dim=-1)
        assert np.allclose(residual, sol.residual_norm, rtol=1e-6)
        assert (residual <= 8 * torch.finfo(dtype).eps * torch.linalg.vector_norm(sol.x.float(), dim=-1)).all()

    def test_an_empty_batch_is_solved(self):
        z = igt.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(0, 3), batch_ndim=1)
        assert z.shape == (0, 3)

    @each_kind
    def test_empty_and_small_states_are_solved(self, solver):
        for shape in [(0,), (2, 0), (0, 3), (1,), (2, 1, 1)]:
            sol = solver.solve(lambda z: 0.5 * z + 1, torch.zeros(shape, dtype=DOUBLE))
            assert tuple(sol.x.shape) == shape
            assert np.shape(sol.status) == shape[:-1]
            assert np.all(sol.converged)
            assert torch.allclose(sol.x, torch.full(shape, 2.0, dtype=DOUBLE))

    @each_kind
    def test_complex_states_are_solved(self, solver):
        generator = torch.Generator().manual_seed(0)
        W = torch.randn(3, 6, 6, generator=generator, dtype=torch.complex128)
        W *= 0.8 / torch.linalg.matrix_norm(W, 2, keepdim=True)
        b = torch.randn(3, 6, generator=generator, dtype=torch.complex128)
        f = lambda z: torch.einsum("bij,bj->bi", W, z) + b
        sol = solver.solve(f, torch.zeros(3, 6, dtype=torch.complex128))
        assert sol.converged.all()
        expected = torch.linalg.solve(torch.eye(6) - W, b)
        torch.testing.assert_close(sol.x, expected, rtol=1e-10, atol=1e-10)

    @each_kind
    def test_a_start_with_nan_is_told_and_left_out(self, solver):
        z0 = torch.zeros(3, 4, dtype=DOUBLE)
        z0[1, 2] = float("nan")
        sol = solver.solve(lambda z: 0.5 * z + 1, z0)
        assert [s.name for s in sol.status] == ["CONVERGED", "NONFINITE_INPUT", "CONVERGED"]
        assert torch.isfinite(sol.x).all()


class TestEquations:
    """Parts that only the author of an equation knows."""

    def test_the_scale_is_fresh_where_it_says_converged(self):
        """A scale that falls by 1e6 on the way: the one at the start would stop 1e6 times too early."""
        asked = []

        def scale(z, image):
            asked.append(z.clone())
            assert torch.equal(image, 0.5 * z)
            return torch.linalg.vector_norm(z).item() + 1e-6

        for solver in (igt.Picard(rtol=1e-3), igt.Anderson(rtol=1e-3), Broyden(rtol=1e-3), NewtonKrylov(rtol=1e-3)):
            asked.clear()
            equation = Equation(lambda z: 0.5 * z, scale=scale)
            sol = solver.solve(equation, torch.ones(1, dtype=DOUBLE))
            assert sol.converged
            assert torch.equal(asked[0], torch.ones(1, dtype=DOUBLE))
            assert torch.equal(asked[-1], sol.x)
            assert sol.rhs_norm == pytest.approx(sol.x.abs().item() + 1e-6)
            assert sol.residual_norm <= 1e-3 * sol.rhs_norm == sol.bound
            assert sol.num_matvecs >= len(sol.history) + len(asked)  # an evaluation is counted as a call and a product
            assert sol.num_rmatvecs >= len(asked)

    def test_a_scale_that_never_comes_down_is_seldom_asked_for(self):
        asked = []
        equation = Equation(lambda z: 0.9 * z + 1, scale=lambda z, image: asked.append(1) or 7.0)
        sol = igt.Picard().solve(equation, torch.zeros(2, dtype=DOUBLE))
        assert sol.converged
        assert sol.num_iters > 100
        assert len(asked) == 2  # at the start and at the end
        assert sol.num_matvecs == sol.num_iters + 1 + 2

    @each_kind
    def test_the_scale_of_a_linear_root_is_that_of_the_linear_solvers(self, solver):
        """r(z) = A z - b relative to norm(J_r z - r(z)) = norm(b), whatever the start."""
        A = torch.diag(torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE))
        b = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
        equation = Equation(
            lambda z: z - (A @ z - b),
            residual=lambda z: b - A @ z,
            scale=lambda z, image: torch.linalg.vector_norm(A @ z - (A @ z - b)).item(),
        )
        for start in (0.0, 1e6):
            sol = solver.solve(equation, torch.full((3,), start, dtype=DOUBLE))
            assert sol.converged
            assert sol.rhs_norm == pytest.approx(torch.linalg.vector_norm(b).item())
            assert torch.linalg.vector_norm(b - A @ sol.x).item() <= sol.bound

    @pytest.mark.parametrize("solver", [igt.Anderson(), Broyden(), NewtonKrylov()], ids=lambda s: s.name)
    def test_a_residual_that_is_computed_directly_is_known_better_than_the_difference(self, solver):
        """r(z) = 1e-6 (z - c) has the scale 1e-6 c, of which f(z) - z = -r(z) knows 1e-10 and the bound is 2e-12."""
        c = torch.tensor([0.7, 0.3], dtype=DOUBLE)
        r, scale = lambda z: 1e-6 * (z - c), lambda z, image: 1e-6 * torch.linalg.vector_norm(c).item()
        by_difference = Equation(lambda z: z - r(z), scale=scale)
        directly = Equation(lambda z: z - r(z), residual=lambda z: -r(z), scale=scale)
        sol = solver.solve(directly, torch.zeros(2, dtype=DOUBLE))
        assert sol.converged
        assert torch.linalg.vector_norm(sol.x - c).item() <= 2e-12
        assert sol.num_matvecs < 12
        worse = solver.solve(by_difference, torch.zeros(2, dtype=DOUBLE))
        assert not worse.converged or torch.linalg.vector_norm(worse.x - c).item() > 2e-12

    @each_kind
    def test_an_infinite_scale_holds_nothing(self, solver):
        equation = Equation(lambda z: 0.5 * z + 1, scale=lambda z, image: float("inf"))
        assert not solver.solve(equation, torch.zeros(2, dtype=DOUBLE)).converged

    def test_parts_that_cannot_be_called_get_a_sentence(self):
        with pytest.raises(ig.SettingTypeError, match="got scale of type float, expected a callable"):
            Equation(torch.cos, scale=1.0)
        with pytest.raises(ig.SettingTypeError, match="got function of type NoneType"):
            igt.Picard().solve(None, torch.zeros(1))


@pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson(), igt.Broyden(), igt.NewtonKrylov()], ids=repr)
def test_rows_that_belong_together_are_no_batch(solver):
    """Nodes of a chain handed over as samples: one that was done is moved by its neighbours, and says so."""
    n = 30
    chain = torch.diag(torch.full((n - 1,), 0.9, dtype=torch.float64), -1)  # the signal runs down, node by node
    push = torch.zeros(n, 1, dtype=torch.float64)
    push[0] = 1.0
    sol = solver.solve(lambda z: chain @ z + push, torch.zeros(n, 1, dtype=torch.float64))
    exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - chain, push)
    assert torch.allclose(sol.x, exact) or ig.Status.COUPLED in sol.status
    together = solver.solve(lambda z: (chain @ z[:, None] + push)[:, 0], torch.zeros(n, dtype=torch.float64))
    assert together.status is ig.Status.CONVERGED
