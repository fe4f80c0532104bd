"""Picard and Anderson: per-sample stopping, best iterates, honest counts and statuses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

SOLVERS = [igt.Picard(), igt.Picard(damping=0.3), igt.Anderson(), igt.Anderson(m=1)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converged_means_that_the_residual_is_within_the_bound(solver, dtype):
    """The residual of the returned point, evaluated again, is the one reported, and within the bound."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(8, 8, generator=generator, dtype=dtype)
        W *= 0.9 / torch.linalg.matrix_norm(W, 2)
        b = torch.randn(8, generator=generator, dtype=dtype)
        calls = []

        def f(z, W=W, b=b, calls=calls):
            calls.append(1)
            return torch.tanh(z @ W.T + b)

        sol = solver.solve(f, torch.zeros(8, dtype=dtype))
        assert sol.status is ig.Status.CONVERGED
        assert sol.num_matvecs == len(calls)
        residual = torch.linalg.vector_norm(f(sol.x) - sol.x).item()
        assert residual <= 1.01 * sol.bound + 8 * torch.finfo(dtype).eps * sol.rhs_norm


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_batch_is_a_loop(solver):
    """Slow, fast, diverging and NaN samples side by side: each ends as it does alone."""
    rates = torch.tensor([0.99, 0.1, 3.0, float("nan"), 0.5], dtype=torch.float64)

    def f(z, rates):
        return torch.tanh(rates[..., None] * z) if solver.max_iters == 0 else rates[..., None] * z + 1.0

    z0 = torch.ones(5, 3, dtype=torch.float64)
    batch = solver.solve(lambda z: f(z, rates), z0)
    for i in range(5):
        alone = solver.solve(lambda z, i=i: f(z, rates[i]), z0[i])
        assert batch.status[i] is alone.status
        assert batch.num_iters[i] == alone.num_iters
        torch.testing.assert_close(batch.x[i], alone.x, rtol=1e-9, atol=1e-9)
    assert batch.status[3] is ig.Status.NONFINITE_OPERATOR
    assert torch.isfinite(batch.x).all()


def test_anderson_solves_a_linear_map_of_spectral_radius_above_one():
    """On a linear map Anderson is GMRES in disguise, which a Picard iteration is not."""
    A = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    f = lambda z: z @ A.T + 1.0
    expected = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - A, torch.ones(2, dtype=torch.float64))
    sol = igt.Anderson().solve(f, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(sol.x, expected)
    assert igt.Picard().solve(f, torch.zeros(2, dtype=torch.float64)).status is ig.Status.DIVERGED


def test_anderson_does_not_depend_on_the_unit_of_the_state():
    """f_s(z) = s f(z / s) takes the same steps for every power of two s."""
    W = torch.randn(6, 6, dtype=torch.float64) * 0.3
    for exponent in (-60, 0, 60):
        s = 2.0**exponent
        sol = igt.Anderson().solve(
            lambda z, s=s: s * torch.tanh(z @ W.T / s + 0.5), torch.zeros(6, dtype=torch.float64)
        )
        if exponent == -60:
            steps, x = sol.num_iters, sol.x / s
        assert sol.num_iters == steps
        torch.testing.assert_close(sol.x / s, x, rtol=0, atol=0)


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
    for seed in range(30):
        torch.manual_seed(seed)
        W, x = torch.randn(32, 32) * 0.35, 2 * torch.randn(64, 32)
        f = lambda z, W=W, x=x: torch.tanh(z @ W.T + x)
        plain = igt.Picard().solve(f, torch.zeros(64, 32))
        mixed = igt.Anderson().solve(f, torch.zeros(64, 32))
        assert mixed.converged[plain.converged].all()


class TestStatesThatAreNoOrdinaryOnes:
    """What a review found: each was CONVERGED, or a crash, once."""

    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson()], ids=repr)
    def test_an_infinite_image_is_no_fixed_point(self, solver):
        sol = solver.solve(lambda z: torch.exp(z + 1000), torch.zeros(3))
        assert sol.status is ig.Status.NONFINITE_OPERATOR

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("solver", [igt.Picard(), igt.Anderson()], ids=repr)
    def test_half_precision_runs_in_single(self, solver, dtype):
        sol = solver.solve(lambda z: 0.5 * z + 300, torch.zeros(3, dtype=dtype))
        assert sol.x.dtype == dtype
        assert abs(sol.x.float() - 600).max() <= 8 * 600 * torch.finfo(dtype).eps

    def test_a_map_that_changes_its_state_is_refused(self):
        with pytest.raises(ig.OperatorError, match="changed its state in place"):
            igt.Picard().solve(lambda z: z.mul_(0.5).add_(1), torch.zeros(3))

    def test_an_empty_batch_is_solved(self):
        z = igt.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(0, 3), batch_ndim=1)
        assert z.shape == (0, 3)
