"""Broyden with limited memory against dense rank-one updates, on expanding maps, and at its breakdown."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.forward.broyden import Broyden

DOUBLE = torch.float64


def dense_broyden(f, z, m, steps):
    """Return the points of Broyden's method, its model rebuilt from -I with the last ``m`` steps each time."""
    points, pairs = [z], []
    for _ in range(steps):
        r, B = f(z) - z, -np.eye(z.size, dtype=z.dtype)
        for s, y in pairs[-m:]:
            B = B + np.outer(y - B @ s, s.conj()) / np.vdot(s, s)
        old, z = z, z - np.linalg.solve(B, r)
        pairs.append((z - old, (f(z) - z) - r))
        points.append(z)
    return points


@pytest.mark.parametrize("m", [1, 2, 3, 20])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_its_points_are_those_of_rank_one_updates_rebuilt_from_the_last_steps(m, dtype):
    """The compact form, also after the memory was full and the oldest step was dropped."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (
        rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype is np.complex128 else 0)
    )
    W, b = draw(6, 6), draw(6)
    W *= 0.7 / np.linalg.norm(W, 2)
    f = lambda z: W @ np.tanh(z) + b
    expected = dense_broyden(f, np.zeros(6, dtype), m, steps=9)

    def on_tensors(z):
        return torch.from_numpy(np.asarray(f(z.numpy())))

    got = Broyden(m=m, rtol=0.0, max_iters=9).solve(on_tensors, torch.from_numpy(np.zeros(6, dtype)), trajectory=True)
    scale = np.abs(expected[-1]).max()
    for point, other in zip(got.trajectory, expected, strict=True):
        assert np.abs(point.numpy() - other).max() <= 1e-10 * scale


def test_its_first_step_is_that_of_picard():
    f = lambda z: torch.cos(z) + 1.0
    z0 = torch.ones(3, dtype=DOUBLE)
    assert torch.equal(Broyden().solve(f, z0, trajectory=True).trajectory[1], f(z0))


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_a_linear_map_is_solved_in_twice_its_size(n):
    """Gay 1979, SIAM J. Numer. Anal. 16: at most 2 n steps for every regular I - J, unless a step is taken back."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        J = rng.standard_normal((n, n)) / np.sqrt(n)
        b = rng.standard_normal(n)
        sol = Broyden(m=2 * n, rtol=1e-9).solve(
            lambda z, J=J, b=b: z @ torch.from_numpy(J.T) + torch.from_numpy(b), torch.zeros(n, dtype=DOUBLE)
        )
        assert sol.converged
        assert sol.num_iters <= 2 * n
        expected = np.linalg.solve(np.eye(n) - J, b)
        assert np.abs(sol.x.numpy() - expected).max() <= 1e-6 * np.linalg.cond(np.eye(n) - J) * np.abs(expected).max()


def test_expanding_maps_are_solved_where_picard_is_not():
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        M = torch.randn(30, 30, generator=generator, dtype=DOUBLE)
        S = M @ M.T
        S *= 2.5 / torch.linalg.matrix_norm(S, 2)
        b = 0.3 * torch.randn(4, 30, generator=generator, dtype=DOUBLE)
        f = lambda z, S=S, b=b: torch.tanh(b - z @ S)
        z0 = torch.zeros(4, 30, dtype=DOUBLE)
        assert not igt.Picard().solve(f, z0).converged.any()
        sol = Broyden().solve(f, z0)
        assert sol.converged.all()
        assert sol.num_matvecs < 60


def test_a_step_without_a_pivot_is_forgotten():
    """J = I + K with K skew: s^T y = s^T K s = 0, and no rank-one update exists. The neighbour does not notice."""
    K = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)

    def f(z):
        image = 0.5 * z + 1.0
        return torch.stack([z[0] + z[0] @ K.T - 1.0, image[1]])

    sol = Broyden().solve(f, torch.zeros(2, 2, dtype=DOUBLE))
    assert sol.status[0] in (ig.Status.DIVERGED, ig.Status.MAX_ITERS)
    assert sol.status[1] is ig.Status.CONVERGED
    assert torch.isfinite(sol.x).all()
    first = Broyden(max_iters=3).solve(
        lambda z: f(torch.stack([z, z]))[0], torch.zeros(2, dtype=DOUBLE), trajectory=True
    )
    for before, after in zip(first.trajectory[:-1], first.trajectory[1:], strict=True):
        torch.testing.assert_close(after, before + before @ K.T - 1.0)  # plain steps


def test_memory_is_bounded_by_m():
    """Between two steps there are no more numbers in tensors than ``2 m + 9`` states, however long it runs."""
    alive = []

    def f(z):
        alive.append(numbers())
        return torch.cos(3 * z + ramp)

    def numbers():
        return sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() >= 1000)

    ramp, z0 = torch.linspace(0, 6, 1000, dtype=DOUBLE), torch.zeros(1000, dtype=DOUBLE)
    gc.collect()
    before = numbers()
    Broyden(m=4, max_iters=14).solve(f, z0)
    assert len(alive) == 15
    most = max(alive) - before
    assert 2 * 4 * 1000 <= most <= (2 * 4 + 9) * 1000  # it sees the window, and not more than is promised


@pytest.mark.parametrize("settings", [{"m": 0}, {"m": 1.5}, {"memory": 3}])
def test_wrong_settings_get_a_sentence(settings):
    with pytest.raises(ig.SettingError, match="Broyden: got"):
        Broyden(**settings)
