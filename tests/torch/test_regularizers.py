"""The penalties that are norms: each against the dense matrix, with their kinks, and estimates that are unbiased."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.regularizers import (
    gershgorin_penalty,
    jacobian_norm_penalty,
    lambda_min,
    spectral_radius_penalty,
)

DOUBLE = torch.float64
every_bound = pytest.mark.parametrize("bound", ["rows", "frobenius", "paper"])


def tanh_map(z, W, x):
    return torch.tanh(z @ W.mT + x)


def problem(n=6, batch=(), dtype=DOUBLE, scale=1.2):
    W = (torch.randn(n, n, dtype=dtype) * scale / n**0.5).requires_grad_()
    x = torch.randn(*batch, n, dtype=dtype, requires_grad=True)
    return W, x, torch.randn(*batch, n, dtype=dtype, requires_grad=True)


def jacobian(W, x, z):
    """Of each system, differentiable."""
    slope = 1 - torch.tanh(z @ W.mT + x) ** 2
    return slope.unsqueeze(-1) * W


def dense_norm(J, bound):
    eye = torch.eye(J.shape[-1], dtype=J.dtype)
    M = (eye - J).mH @ (eye - J) - eye
    frobenius = torch.linalg.matrix_norm(M)
    return {
        "rows": M.abs().sum(dim=-1).amax(dim=-1),
        "frobenius": frobenius,
        "paper": J.shape[-1] ** 0.5 * frobenius,
    }[bound]


def assert_same_gradients(ours, expected, tensors):
    gradients = [torch.autograd.grad(value.sum(), tensors, allow_unused=True) for value in (ours, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- Gershgorin --------------------------------------------------------------------------------------------------------
@every_bound
@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
def test_the_exact_penalty_is_that_of_the_dense_matrix(bound, chunk, batch, dtype):
    W, x, z = problem(6, batch, dtype)
    settings = {"bound": bound, "chunk": chunk, "margin": 0.5, "batch_ndim": len(batch)}
    penalty = gershgorin_penalty(tanh_map, z, W, x, **settings)
    expected = torch.relu(dense_norm(jacobian(W, x, z), bound) - 0.5)
    assert penalty.shape == batch
    assert (expected > 0).all()
    torch.testing.assert_close(penalty, expected)
    assert_same_gradients(penalty, expected, (W, x, z))


def test_every_gershgorin_bound_is_below_lambda_min_and_the_paper_s_is_the_lowest():
    """lambda_min >= 1 - norm(M), in every norm, on every draw; with a margin of 1 the penalty is the norm itself."""
    for seed in range(40):
        torch.manual_seed(seed)
        W, x, z = problem(int(torch.randint(1, 9, ())), scale=float(2 * torch.rand(())))
        smallest = lambda_min(tanh_map, z, W, x).item()
        norms = {
            b: gershgorin_penalty(tanh_map, z, W, x, bound=b, margin=1.0).item() for b in ("rows", "frobenius", "paper")
        }
        for norm in norms.values():
            assert 1 - norm <= smallest + 1e-12
        assert norms["paper"] >= max(norms["rows"], norms["frobenius"]) - 1e-12


@pytest.mark.fault(107)
@every_bound
@pytest.mark.parametrize("batch", [(), (2,)])
def test_no_penalty_and_no_nan_where_the_jacobian_is_zero(bound, batch):
    """FAULTS 107: M = 0, where the norms have kinks."""
    x = torch.zeros(*batch, 4, dtype=DOUBLE, requires_grad=True)
    z = torch.ones(*batch, 4, dtype=DOUBLE, requires_grad=True)
    penalty = gershgorin_penalty(lambda z, x: x * z, z, x, bound=bound, batch_ndim=len(batch), margin=1.0)
    assert not penalty.any()
    for gradient in torch.autograd.grad(penalty.sum(), (x, z), allow_unused=True):
        assert gradient is None or (torch.isfinite(gradient).all() and not gradient.any())


@pytest.mark.fault(107)
def test_the_row_sum_at_a_tie_has_a_finite_subgradient():
    """FAULTS 107: all rows of a multiple of the identity are equal, all other entries are kinks; the slope is right."""
    t = torch.tensor(-1.0, dtype=DOUBLE, requires_grad=True)
    penalty = gershgorin_penalty(lambda z: t * z, torch.zeros(4, dtype=DOUBLE), bound="rows")
    assert penalty.item() == 2.0  # (1 - t)^2 - 2
    assert torch.autograd.grad(penalty, t)[0].item() == -4.0


@pytest.mark.fault(107)
def test_a_bound_that_proves_nothing_is_not_clipped():
    """FAULTS 107: a rotation by 170 degrees is as invertible as can be, and its bound is -1.97."""
    angle = torch.tensor(170.0, dtype=DOUBLE).deg2rad()
    R = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    penalty = gershgorin_penalty(lambda z: R @ z, torch.zeros(2, dtype=DOUBLE), bound="rows")
    assert penalty.item() == pytest.approx(1 - 2 * angle.cos().item() - 1)


def test_the_exact_norm_keeps_the_memory_of_a_chunk():
    """No graph of 300 rows: the gradient's graph has the one node that forms them again."""
    W, x, z = problem(30)
    penalty = gershgorin_penalty(tanh_map, z, W, x, chunk=5, margin=1.0)
    names, stack = set(), [penalty.grad_fn]
    while stack:
        node = stack.pop()
        names.add(type(node).__name__)
        stack.extend(n for n, _ in node.next_functions if n is not None)
    assert "_StreamedBackward" in names
    assert not any("Tanh" in name or "Mm" in name for name in names)


def test_the_streamed_norm_refuses_a_second_derivative_and_the_row_does_not():
    W, x, z = problem(4)
    with pytest.raises(ig.SettingError, match="second derivative"):
        torch.autograd.grad(gershgorin_penalty(tanh_map, z, W, x, margin=1.0), W, create_graph=True)
    rows = lambda W: gershgorin_penalty(tanh_map, z.detach(), W, x.detach(), margin=1.0, bound="rows")
    assert torch.autograd.gradgradcheck(rows, (W,))
    estimated = lambda W: gershgorin_penalty(tanh_map, z.detach(), W, x.detach(), margin=1.0, estimator="hutchinson")
    assert torch.autograd.gradgradcheck(estimated, (W,))


# -- estimates ---------------------------------------------------------------------------------------------------------
def test_the_square_of_the_estimate_is_unbiased_and_the_norm_is_too_small():
    """Over 1,500 single probes the mean square is right to three standard errors; the mean norm is below by more."""
    W, x, z = problem(5)
    exact = dense_norm(jacobian(W, x, z), "frobenius").item()
    generator = torch.Generator().manual_seed(0)
    draw = lambda: gershgorin_penalty(tanh_map, z, W, x, estimator="hutchinson", margin=1.0, generator=generator).item()
    with torch.no_grad():
        norms = torch.tensor([draw() for _ in range(1500)], dtype=DOUBLE)
    error = (norms.square().std() / len(norms) ** 0.5).item()
    assert abs(norms.square().mean().item() - exact**2) < 3 * error
    assert norms.mean().item() < exact - 3 * (norms.std() / len(norms) ** 0.5).item()


def test_more_probes_are_nearer_and_enough_of_a_kind_are_exact():
    """Variance falls as 1 / probes; for a diagonal M one vector of signs has the whole norm."""
    W, x, z = problem(8)
    exact = (jacobian(W, x, z) ** 2).sum().item() / 8
    with torch.no_grad():
        spread = [
            torch.tensor([jacobian_norm_penalty(tanh_map, z, W, x, probes=m, seed=s).item() - exact for s in range(60)])
            for m in (1, 16)
        ]
    assert spread[1].square().mean() < spread[0].square().mean() / 4
    d = torch.randn(8, dtype=DOUBLE)
    assert jacobian_norm_penalty(lambda z: d * z, z).item() == pytest.approx((d**2).mean().item())


def test_randomness_is_explicit():
    W, x, z = problem(8)
    of = lambda **settings: jacobian_norm_penalty(tanh_map, z, W, x, **settings).item()
    state = torch.get_rng_state()
    assert of(seed=3) == of(seed=3) != of(seed=4)
    generator = torch.Generator().manual_seed(3)
    first, second = of(generator=generator), of(generator=generator)
    assert first == of(seed=3) != second
    assert torch.equal(torch.get_rng_state(), state)


# -- norm of the Jacobian ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
def test_the_exact_jacobian_norm_is_that_of_the_dense_matrix(batch, dtype):
    W, x, z = problem(5, batch, dtype)
    penalty = jacobian_norm_penalty(tanh_map, z, W, x, estimator="exact", batch_ndim=len(batch), chunk=2)
    expected = jacobian(W, x, z).abs().square().sum(dim=(-2, -1)) / 5
    torch.testing.assert_close(penalty, expected)
    assert_same_gradients(penalty, expected, (W, x, z))


@pytest.mark.parametrize("penalty", [gershgorin_penalty, jacobian_norm_penalty])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_the_gradient_goes_through_the_fixed_point_too(tight, penalty, estimator):
    W, x, _ = problem(5, scale=0.7)
    extra = {"margin": 1.0} if penalty is gershgorin_penalty else {}

    def whole(W, x):
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, **tight)
        return penalty(tanh_map, z, W, x, estimator=estimator, **extra)

    gradients = torch.autograd.grad(whole(W, x), (W, x))
    directions, step = [torch.randn_like(W), torch.randn_like(x)], 1e-5
    with torch.no_grad():
        ends = [whole(*(t + s * step * d for t, d in zip((W, x), directions, strict=True))).item() for s in (1, -1)]
    ours = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert ours == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_mistakes_are_refused_in_words():
    W, x, z = problem(4)
    refused = [
        (gershgorin_penalty, {"bound": "discs"}, "expected 'frobenius', 'rows' or 'paper'"),
        (gershgorin_penalty, {"estimator": "guess"}, "expected 'exact' or 'hutchinson'"),
        (gershgorin_penalty, {"estimator": "hutchinson", "bound": "rows"}, "Frobenius norms only"),
        (gershgorin_penalty, {"margin": float("nan")}, "margin=nan"),
        (jacobian_norm_penalty, {"probes": 0}, "probes=0, expected an integer >= 1"),
        (jacobian_norm_penalty, {"chunk": 1.5}, "chunk=1.5"),
        (jacobian_norm_penalty, {"generator": 3}, "expected a torch.Generator"),
    ]
    for penalty, settings, sentence in refused:
        with pytest.raises(ig.SettingError, match=sentence):
            penalty(tanh_map, z, W, x, **settings)


# -- spectral radius ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_radius_and_its_gradient_are_those_of_the_dense_eigenvalues(dtype, batch):
    """Complex pairs of real matrices among them: of the four draws at least one is a pair."""
    pairs = 0
    for seed in range(4):
        torch.manual_seed(seed)
        W, x, z = problem(6, batch, dtype)
        penalty = spectral_radius_penalty(tanh_map, z, W, x, margin=1.0, batch_ndim=len(batch), rtol=1e-10)
        values = torch.linalg.eigvals(jacobian(W, x, z))
        expected = values.abs().amax(dim=-1)
        pairs += bool((values.imag.abs() > 1e-6).any())
        torch.testing.assert_close(penalty, expected)
        gradients = [torch.autograd.grad(v.sum(), (W, x, z)) for v in (penalty, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert pairs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("values", [[0.9, -0.9, 0.1], [-1.2, 1.2, 0.3], [0.5, 0.2, 0.1]])
def test_two_dominant_eigenvalues_of_one_modulus_give_a_subgradient(values, seed):
    """Also where the search for the left vector meets the other one of the two."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(3, 3, dtype=DOUBLE, generator=generator)
    J = (basis @ torch.diag(torch.tensor(values, dtype=DOUBLE)) @ torch.linalg.inv(basis)).requires_grad_()
    penalty, result = spectral_radius_penalty(
        lambda z: J @ z, torch.zeros(3, dtype=DOUBLE), margin=1.0, seed=seed, return_result=True
    )
    (gradient,) = torch.autograd.grad(penalty, J)
    assert result.converged
    assert penalty.item() == pytest.approx(max(map(abs, values)))
    assert (gradient * J.detach()).sum().item() == pytest.approx(penalty.item(), rel=1e-6)  # Euler: rho is homogeneous
    assert torch.linalg.matrix_rank(gradient, rtol=1e-9) == 1


def test_a_radius_of_zero_and_one_within_the_margin_cost_nothing():
    W, x, z = problem(4, scale=0.2)
    penalty = spectral_radius_penalty(tanh_map, z, W, x, margin=0.1)
    assert penalty.item() == 0
    assert not torch.autograd.grad(penalty, W)[0].any()
    y = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    penalty = spectral_radius_penalty(lambda z: y * z, z.detach(), margin=1.0)
    assert penalty.item() == 0
    assert not torch.autograd.grad(penalty, y)[0].any()


def test_a_radius_that_was_not_found_warns_and_a_second_derivative_is_refused():
    W, x, z = problem(40)
    with pytest.warns(ig.ConvergenceWarning, match="spectral_radius_penalty: .*MAX_ITERS"):
        spectral_radius_penalty(tanh_map, z, W, x, max_iters=3)
    with pytest.raises(ig.NotConvergedError):
        spectral_radius_penalty(tanh_map, z, W, x, max_iters=3, on_failure="raise")
    with pytest.raises(ig.SettingError, match="second derivative"):
        torch.autograd.grad(spectral_radius_penalty(tanh_map, z, W, x, margin=1.0), W, create_graph=True)
