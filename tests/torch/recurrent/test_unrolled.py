"""bptt, tbptt and artbp: the iteration differentiated, against sums of terms that are formed one by one."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


def tanh_map(z, W, x):
    return torch.tanh(z @ W.mT + x)


@pytest.fixture
def net():
    """A map, a start, and its arguments: contractive, and far from its fixed point after a few updates."""
    torch.manual_seed(0)
    W = torch.randn(4, 4, dtype=DOUBLE)
    W = (0.8 * W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    return torch.randn(3, 4, dtype=DOUBLE, requires_grad=True), W, torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)


def loss_of(z):
    return (z * torch.arange(1, 1 + z.numel(), dtype=z.dtype).reshape(z.shape).sin()).sum()


def terms(z0, W, x, steps):
    """The terms k = 0 .. steps - 1 of dL/dW, and dL/dz0: every state from a graph of its own, chained by hand."""
    states = [z0.detach()]
    with torch.no_grad():
        for _ in range(steps):
            states.append(tanh_map(states[-1], W, x))
    last = states[-1].clone().requires_grad_()
    (cotangent,) = torch.autograd.grad(loss_of(last), last)
    found = []
    for state in reversed(states[:-1]):
        point = state.clone().requires_grad_()
        in_W, cotangent = torch.autograd.grad(tanh_map(point, W, x), (W, point), cotangent)
        found.append(in_W)
    return found, cotangent


def test_bptt_sums_all_terms_and_reaches_the_start(net):
    z0, W, x = net
    in_W, in_z0 = torch.autograd.grad(loss_of(igt.bptt(tanh_map, z0, W, x, steps=6)), (W, z0))
    expected, at_start = terms(z0, W, x, 6)
    torch.testing.assert_close(in_W, sum(expected))
    torch.testing.assert_close(in_z0, at_start)


@pytest.mark.parametrize("truncate", [1, 2, 5, 6])
def test_tbptt_keeps_as_many_terms_as_it_goes_back_through_updates(net, truncate):
    z0, W, x = net
    z = igt.tbptt(tanh_map, z0, W, x, steps=6, truncate=truncate)
    assert torch.equal(z, igt.bptt(tanh_map, z0, W, x, steps=6))
    in_W, in_z0 = torch.autograd.grad(loss_of(z), (W, z0), allow_unused=True)
    torch.testing.assert_close(in_W, sum(terms(z0, W, x, 6)[0][:truncate]))
    assert (in_z0 is not None) == (truncate == 6)


@pytest.mark.parametrize("products", [0, 1, 2, 7])
def test_at_a_fixed_point_m_updates_are_neumann_with_one_product_less(net, products):
    """P1 at its boundary: truncate = K + 1 is Neumann(max_iters=K); truncate = K is another gradient."""
    z0, W, x = net
    with torch.no_grad():
        z_star = igt.fixed_point(tanh_map, z0, W, x, solver=igt.Anderson(rtol=1e-15), on_failure="return")
    neumann = igt.implicit_gradient(tanh_map, z_star, W, x, adjoint=ig.Neumann(max_iters=products, rtol=0))
    (expected,) = torch.autograd.grad(loss_of(neumann), W)
    unrolled = igt.tbptt(tanh_map, z_star, W, x, steps=10, truncate=products + 1)
    (ours,) = torch.autograd.grad(loss_of(unrolled), W)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
    if products:
        (fewer,) = torch.autograd.grad(loss_of(igt.tbptt(tanh_map, z_star, W, x, steps=10, truncate=products)), W)
        assert torch.linalg.norm(fewer - expected) > 1e-6 * torch.linalg.norm(expected)


def test_bptt_tends_to_the_implicit_gradient(net):
    z0, W, x = net
    z = igt.fixed_point(tanh_map, z0, W, x, solver=igt.Anderson(rtol=1e-15), adjoint=ig.Dense(), on_failure="return")
    (implicit,) = torch.autograd.grad(loss_of(z), W)
    errors = []
    for steps in (5, 10, 20, 160):
        (unrolled,) = torch.autograd.grad(loss_of(igt.bptt(tanh_map, z0, W, x, steps=steps)), W)
        errors.append(float(torch.linalg.norm(unrolled - implicit) / torch.linalg.norm(implicit)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


def test_second_derivatives_go_through_the_updates(net):
    z0, W, x = net
    assert torch.autograd.gradgradcheck(lambda W: igt.bptt(tanh_map, z0.detach(), W, x.detach(), steps=3), (W,))


def saved_bytes(compute):
    """Bytes that the graph of ``compute()`` keeps for the backward pass."""
    kept = {}
    pack = lambda t: (kept.__setitem__((t.data_ptr(), t.numel()), t.numel() * t.element_size()), t)[1]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = compute()
    assert result.requires_grad
    return sum(kept.values())


def test_memory_grows_with_the_differentiated_updates_and_not_with_the_others(net):
    """One state an update: tanh keeps its output, and the next product keeps the same tensor, its input."""
    z0, W, x = net
    state = z0.numel() * z0.element_size()
    at = lambda steps, kept: saved_bytes(lambda: igt.tbptt(tanh_map, z0, W, x, steps=steps, truncate=kept))
    assert at(40, 9) - at(40, 8) == state
    assert at(40, 8) == at(400, 8)
    assert saved_bytes(lambda: igt.bptt(tanh_map, z0, W, x, steps=40)) == at(40, 40) == at(40, 8) + 32 * state
    drawn = _Always(igt.UniformTruncation(), 8)
    assert saved_bytes(lambda: igt.artbp(tanh_map, z0, W, x, steps=40, distribution=drawn)) == at(40, 8)
    rbp = lambda steps: saved_bytes(lambda: igt.rbp(tanh_map, z0, W, x, steps=steps, truncate=9, on_failure="return"))
    assert rbp(40) == rbp(400) < at(40, 5)


# -- random truncation -------------------------------------------------------------------------------------------------
DISTRIBUTIONS = [
    igt.UniformTruncation(),
    igt.PoissonTruncation(),
    igt.PoissonTruncation(rate=0.3),
    igt.PoissonTruncation(40),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_weights_are_those_that_make_the_mean_of_kept_terms_the_whole_sum(distribution, steps):
    """sum over n of P(N = n) [n > k] w_k = 1 for each term k."""
    p, w = distribution.probabilities(steps), distribution.weights(steps)
    assert p.shape == w.shape == (steps,)
    assert w[0] == 1
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=DOUBLE))
    survival = p.flip(0).cumsum(0).flip(0)  # P(N > k)
    torch.testing.assert_close(survival * w, torch.ones(steps, dtype=DOUBLE), rtol=1e-11, atol=0)
    ratios = torch.tensor([1.0, *distribution.ratios(steps)], dtype=DOUBLE)
    torch.testing.assert_close(torch.cumprod(ratios, 0), w, rtol=1e-11, atol=0)


def test_ratios_stay_finite_where_weights_overflow():
    """At 1,000 updates P(N > k) is below 1e-308 for the Poisson distribution; one step more is still a number."""
    distribution = igt.PoissonTruncation(rate=5.0)
    assert np.isinf(distribution.weights(1000).numpy()).any()
    ratios = distribution.ratios(1000)
    assert np.isfinite(ratios).all()
    assert ratios[900] == pytest.approx(902 / 5, rel=0.01)  # P(N > k - 1) / P(N > k), nearly (k + 1) / rate far out


def test_poisson_masses_are_those_of_the_formula():
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.poisson(5.0).pmf(np.arange(1, 101))
    np.testing.assert_allclose(igt.PoissonTruncation(5.0).probabilities(100), expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_draws_follow_the_distribution(distribution):
    """Chi-square over the cells that expect at least five of 4,000 draws; 6 standard deviations."""
    generator = torch.Generator().manual_seed(1)
    draws = np.array([distribution.sample(12, generator) for _ in range(4000)])
    assert draws.min() >= 1
    assert draws.max() <= 12
    expected = 4000 * distribution.probabilities(12).numpy()
    cells = expected >= 5
    counts = np.bincount(draws, minlength=13)[1:]
    chi_square = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    assert chi_square <= cells.sum() + 6 * np.sqrt(2 * cells.sum())


class _Always(igt.Truncation):
    """Draws a number that was decided on, from the distribution of another."""

    def __init__(self, inner, kept):
        self.inner, self.kept = inner, kept

    def log_masses(self, steps):
        return self.inner.log_masses(steps)

    def sample(self, steps, generator=None):
        return self.kept


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[:2], ids=repr)
def test_a_pass_is_the_weighted_sum_of_the_kept_terms(net, distribution):
    z0, W, x = net
    expected, at_start = terms(z0, W, x, 6)
    weights = distribution.weights(6)
    for kept in range(1, 7):
        z = igt.artbp(tanh_map, z0, W, x, steps=6, distribution=_Always(distribution, kept))
        assert torch.equal(z, igt.bptt(tanh_map, z0, W, x, steps=6))
        in_W, in_z0 = torch.autograd.grad(loss_of(z), (W, z0), allow_unused=True)
        torch.testing.assert_close(in_W, sum(w * term for w, term in zip(weights, expected[:kept], strict=False)))
        if kept == 6:
            torch.testing.assert_close(in_z0, weights[-1] * at_start)
        else:
            assert in_z0 is None


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[:2], ids=repr)
def test_the_mean_of_all_draws_is_the_gradient_of_bptt(net, distribution):
    """Exactly, as a sum over the distribution: no sampling error can hide a bias."""
    z0, W, x = net
    (expected,) = torch.autograd.grad(loss_of(igt.bptt(tanh_map, z0, W, x, steps=6)), W)
    mean = torch.zeros_like(W)
    for kept, probability in enumerate(distribution.probabilities(6), start=1):
        z = igt.artbp(tanh_map, z0, W, x, steps=6, distribution=_Always(distribution, kept))
        mean = mean + probability * torch.autograd.grad(loss_of(z), W)[0]
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("name", ["uniform", "poisson"])
def test_a_hundred_thousand_draws_average_to_bptt(net, name):
    """Within four standard errors. A pass depends on its draw alone, so the gradient of each N is computed once."""
    z0, W, x = net
    steps, count, named = 12, 100_000, {"uniform": igt.UniformTruncation(), "poisson": igt.PoissonTruncation()}[name]
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros(steps)
    for _ in range(count):
        counts[named.sample(steps, generator) - 1] += 1
    by_draw = []
    for kept in range(1, steps + 1):
        z = igt.artbp(tanh_map, z0, W, x, steps=steps, distribution=_Always(named, kept))
        by_draw.append(torch.autograd.grad(loss_of(z), W)[0].numpy().ravel())
    by_draw = np.stack(by_draw)
    mean = counts @ by_draw / count
    deviation = np.sqrt(counts @ (by_draw - mean) ** 2 / (count - 1))
    (exact,) = torch.autograd.grad(loss_of(igt.bptt(tanh_map, z0, W, x, steps=steps)), W)
    assert np.all(np.abs(mean - exact.numpy().ravel()) <= 4 * deviation / np.sqrt(count))
    (biased,) = torch.autograd.grad(loss_of(igt.tbptt(tanh_map, z0, W, x, steps=steps, truncate=5)), W)
    assert np.any(np.abs(biased.numpy().ravel() - exact.numpy().ravel()) > 4 * deviation / np.sqrt(count))


def test_a_seeded_generator_repeats_its_gradients_and_leaves_the_global_one_alone(net):
    z0, W, x = net
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        run = [igt.artbp(tanh_map, z0, W, x, steps=9, distribution="poisson", generator=generator) for _ in range(8)]
        runs.append([torch.autograd.grad(loss_of(z), W)[0] for z in run])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len({float(gradient.norm()) for gradient in runs[0]}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_forward_mode_and_transforms_see_the_weights(net):
    """The Jacobian by columns and by rows of torch.func is that of plain autograd; a vmap is the loop."""
    z0, W, x = (tensor.detach() for tensor in net)
    z0, x = z0[0], x[0]
    pass_ = lambda W: igt.artbp(tanh_map, z0, W, x, steps=5, distribution=_Always(igt.UniformTruncation(), 4))
    by_rows = torch.autograd.functional.jacobian(pass_, W)
    plain = torch.autograd.functional.jacobian(lambda W: igt.tbptt(tanh_map, z0, W, x, steps=5, truncate=4), W)
    assert torch.linalg.norm(by_rows - plain) > 0.01 * torch.linalg.norm(plain)
    torch.testing.assert_close(torch.func.jacrev(pass_)(W), by_rows)
    torch.testing.assert_close(torch.func.jacfwd(pass_)(W), by_rows)
    torch.testing.assert_close(torch.func.vmap(pass_)(torch.stack([W, 2 * W]))[1], pass_(2 * W))


# -- states and mistakes -----------------------------------------------------------------------------------------------
ENTRIES = {
    "bptt": lambda f, z, *args: igt.bptt(f, z, *args, steps=3),
    "tbptt": lambda f, z, *args: igt.tbptt(f, z, *args, steps=3, truncate=2),
    "artbp": lambda f, z, *args: igt.artbp(f, z, *args, steps=3),
    "rbp": lambda f, z, *args: igt.rbp(f, z, *args, steps=3, truncate=2, on_failure="return"),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_nested_states_come_back_as_they_went_in(entry):
    w = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    f = lambda z, w: {"a": torch.sin(w * z["b"][0].sum() + z["a"]), "b": (z["b"][0] * w + 0.1,)}
    z = entry(f, {"a": torch.zeros(2, dtype=DOUBLE), "b": (torch.ones(3, dtype=DOUBLE),)}, w)
    assert z["a"].shape == (2,)
    assert z["b"][0].shape == (3,)
    assert torch.autograd.grad(z["a"].sum() + z["b"][0].sum(), w)[0] != 0


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_map_that_returns_another_shape_is_refused_in_words(entry):
    with pytest.raises(ig.ShapeError, match=r"f returned shape \(2, 3\) for a state of shape \(3,\)"):
        entry(lambda z: z.expand(2, 3), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f, z: igt.bptt(f, z, steps=0), ig.SettingError, "got steps=0, expected at least 1"),
        (lambda f, z: igt.bptt(f, z, steps=2.0), ig.SettingTypeError, "got steps=2.0, expected a number of updates"),
        (lambda f, z: igt.bptt(f, z, steps=True), ig.SettingTypeError, "got steps=True"),
        (lambda f, z: igt.tbptt(f, z, steps=3, truncate=4), ig.SettingError, "got truncate=4 with steps=3"),
        (lambda f, z: igt.tbptt(f, z, steps=3, truncate=0), ig.SettingError, "got truncate=0, expected at least 1"),
        (lambda f, z: igt.artbp(f, z, steps=3, distribution="normal"), ig.SettingError, "got distribution='normal'"),
        (
            lambda f, z: igt.artbp(f, z, steps=3, distribution=3),
            ig.SettingTypeError,
            "got distribution=3, expected one of",
        ),
        (lambda f, z: igt.PoissonTruncation(rate=0), ig.SettingError, "got rate=0"),
        (lambda f, z: igt.PoissonTruncation(rate=float("nan")), ig.SettingError, "got rate=nan"),
        (lambda f, z: igt.PoissonTruncation(rate="5"), ig.SettingTypeError, "got rate='5'"),
        (lambda f, z: igt.rbp(f, z, steps=3, truncate=2, method="gmres"), ig.SettingError, "got method='gmres'"),
        (lambda f, z: igt.rbp(f, z, steps=3, truncate=2, eta=1e-5), ig.SettingError, "with method='neumann'"),
        (lambda f, z: igt.rbp(f, z, steps=3, truncate=-1), ig.SettingError, "got truncate=-1, expected at least 0"),
        (lambda f, z: igt.rbp(f, z, steps=3, truncate=1, start="zero"), ig.SettingError, "got start='zero'"),
    ],
)
def test_senseless_settings_are_refused_before_the_map_is_called(call, error, words):
    calls = itertools.count()
    with pytest.raises(error, match=words):
        call(lambda z: (next(calls), z)[1], torch.ones(2))
    assert next(calls) == 0
