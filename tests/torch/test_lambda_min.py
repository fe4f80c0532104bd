"""lambda_min: three gradients that agree with the dense matrix, at kinks too, and never a silent wrong one."""

import warnings
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from torch.utils._python_dispatch import TorchDispatchMode

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch.regularizers import lambda_min, lambda_min_penalty
from implicitgrad.torch.regularizers.adjoint import SigmaDerivative
from implicitgrad.torch.regularizers.golub_kahan import bidiagonalize
from implicitgrad.torch.regularizers.linearized import MapAt
from implicitgrad.torch.regularizers.ritz import smallest_pair
from implicitgrad.torch.regularizers.streamed import streamed

DOUBLE = torch.float64
METHODS = ("hellmann-feynman", "adjoint", "unrolled")
every_method = pytest.mark.parametrize("method", METHODS)


def tanh_map(z, W, x):
    return torch.tanh(z @ W.mT + x)


def problem(n=12, batch=(), dtype=DOUBLE, scale=0.9):
    W = (torch.randn(n, n, dtype=dtype) * scale / n**0.5).requires_grad_()
    x = torch.randn(*batch, n, dtype=dtype, requires_grad=True)
    return W, x, torch.randn(*batch, n, dtype=dtype, requires_grad=True)


def dense_lambda_min(W, x, z):
    """Of one system, from the matrix and numpy."""
    slope = 1 - torch.tanh(z @ W.mT + x) ** 2
    matrix = (torch.eye(len(z), dtype=W.dtype) - slope[:, None] * W).detach().numpy()
    return np.linalg.svd(matrix, compute_uv=False)[-1] ** 2


def central_difference(function, tensors, directions, step=1e-4):
    """Of a directional derivative, by the five-point formula: its error is the fourth power of the step."""

    def at(h):
        with torch.no_grad():
            return float(function(*(t.detach() + h * d for t, d in zip(tensors, directions, strict=True))))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def directional(gradients, directions):
    return sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))


# -- value and gradient ------------------------------------------------------------------------------------------------
@every_method
@pytest.mark.parametrize("n", [1, 2, 12, 40])
def test_value_and_gradient_are_those_of_the_dense_matrix(method, n):
    """To 1e-8 of central differences of the dense sigma_min^2, for W, x and z."""
    W, x, z = problem(n)
    value, result = lambda_min(tanh_map, z, W, x, method=method, rtol=1e-11, return_result=True)
    assert result.status is ig.Status.CONVERGED
    np.testing.assert_allclose(value.item(), dense_lambda_min(W, x, z), rtol=1e-12)
    gradients = torch.autograd.grad(value, (W, x, z))
    for i in range(3):  # each alone, so that none hides behind another
        directions = [torch.randn_like(t) if j == i else torch.zeros_like(t) for j, t in enumerate((W, x, z))]
        expected = central_difference(dense_lambda_min, (W, x, z), directions)
        assert directional(gradients, directions) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@every_method
def test_a_batch_is_a_loop(method):
    W, x, z = problem(10, (3,))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    together, result = lambda_min(tanh_map, z, W, x, method=method, batch_ndim=1, rtol=1e-11, return_result=True)
    assert together.shape == result.value.shape == (3,)
    assert result.is_good
    alone = torch.stack([lambda_min(tanh_map, z[i], W, x[i], method=method, rtol=1e-11) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    ours = torch.autograd.grad((weights * together).sum(), (W, x, z))
    expected = torch.autograd.grad((weights * alone).sum(), (W, x, z))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_method
def test_float32_is_right_to_three_digits(method):
    W, x, z = problem(30)
    single = [t.detach().float().requires_grad_() for t in (W, x, z)]
    value = lambda_min(tanh_map, single[2], single[0], single[1], method=method)
    assert value.dtype == torch.float32
    exact = lambda_min(tanh_map, z, W, x, method=method)
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    for a, b in zip(torch.autograd.grad(value, single), torch.autograd.grad(exact, (W, x, z)), strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


def test_half_precision_is_for_hellmann_feynman():
    """Its search runs in float32; the other methods say that theirs do not."""
    W, x, z = (t.detach().half().requires_grad_() for t in problem(60))
    value = lambda_min(tanh_map, z, W, x, on_failure="return")
    assert value.item() == pytest.approx(dense_lambda_min(*(t.detach().double() for t in (W, x, z))), rel=1e-2)
    assert torch.isfinite(torch.autograd.grad(value, W)[0]).all()
    for method in ("adjoint", "unrolled"):
        with pytest.raises(ig.DtypeError, match="expected float32 or wider"):
            lambda_min(tanh_map, z, W, x, method=method)


@every_method
@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
def test_rtol_is_the_accuracy_of_the_gradient(method, rtol):
    """Not that of the value, which is right long before; the gap is an estimate, so a factor of three is left."""
    W, x, z = problem(120, scale=0.7)
    value, result = lambda_min(tanh_map, z, W, x, method=method, rtol=rtol, return_result=True)
    assert result.residual_norm <= 2 * rtol * result.gap
    (gradient,) = torch.autograd.grad(value, W)
    slope = 1 - torch.tanh(z @ W.mT + x) ** 2
    exact = torch.autograd.grad(torch.linalg.svdvals(torch.eye(120) - slope[:, None] * W)[-1] ** 2, W)[0]
    assert (gradient - exact).norm() <= 3 * rtol * exact.norm()


@every_method
def test_complex_maps(method):
    """The value is real, and the gradient is that of the dense complex matrix."""
    A = torch.randn(6, 6, dtype=torch.complex128).mul(0.3).requires_grad_()
    value = lambda_min(lambda z: z @ A.mT, torch.zeros(6, dtype=torch.complex128), method=method, rtol=1e-11)
    assert value.dtype == DOUBLE
    dense = torch.linalg.svdvals(torch.eye(6) - A)[-1] ** 2
    torch.testing.assert_close(value, dense)
    torch.testing.assert_close(*(torch.autograd.grad(v, A)[0] for v in (value, dense)), rtol=1e-8, atol=1e-10)


@every_method
def test_structured_states_and_parameters_that_are_captured(method):
    layer = torch.nn.Linear(6, 6).double()
    z = {"a": torch.randn(2, 2, dtype=DOUBLE), "b": (torch.randn(2, dtype=DOUBLE),)}

    def f(z):
        out = torch.tanh(layer(torch.cat((z["a"].reshape(-1), z["b"][0]))))
        return {"a": out[:4].reshape(2, 2), "b": (out[4:],)}

    flat = torch.cat((z["a"].reshape(-1), z["b"][0]))
    ours = torch.autograd.grad(lambda_min(f, z, method=method), [*layer.parameters()])
    slope = 1 - torch.tanh(layer(flat)) ** 2
    dense = torch.linalg.svdvals(torch.eye(6) - slope[:, None] * layer.weight)[-1] ** 2
    for a, b in zip(ours, torch.autograd.grad(dense, [*layer.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_adjoint_process_is_autograd_through_the_loop_at_every_step(steps, dtype):
    """Far from convergence too, where Hellmann-Feynman is not the derivative of the value."""
    W, x, z = problem(8, (2,), dtype)
    settings = {"batch_ndim": 1, "rtol": 0, "max_iters": steps, "return_result": True, "start": torch.randn_like(x)}
    gradients = []
    for method in ("adjoint", "unrolled"):
        value, result = lambda_min(tanh_map, z, W, x, method=method, **settings)
        assert set(result.status) <= {ig.Status.TRUNCATED, ig.Status.CONVERGED}
        gradients.append(torch.autograd.grad(value.sum(), (W, x, z)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_second_part_of_the_adjoint_is_what_hellmann_feynman_lacks():
    """Without it the unconverged gradient is wrong by half: the part is no decoration."""
    W, x, z = problem(8)
    function = MapAt("test", tanh_map, z, (W, x), 0)
    process = bidiagonalize(function.linearized(), torch.ones(8, dtype=DOUBLE), 3, 0.0, torch.Generator(), False)
    pair = smallest_pair(process.alpha, process.beta, process.steps)
    whole = SigmaDerivative(process, pair)
    first = lambda linearized: iter([next(whole(linearized))])
    a, b = (torch.autograd.grad(streamed(function, pair.sigma**2, terms), W)[0] for terms in (whole, first))
    assert (a - b).norm() > 0.1 * a.norm()


@every_method
def test_the_square_of_a_tiny_sigma_keeps_its_digits(method):
    """sigma = 1e-7: of lambda = 1e-14 the eigenvalues of A^H A know nothing, Golub-Kahan knows eight digits."""
    Q, P = (torch.linalg.qr(torch.randn(20, 20, dtype=DOUBLE))[0] for _ in range(2))
    sigma = torch.linspace(0.5, 2, 20, dtype=DOUBLE)
    sigma[0] = 1e-7
    J = torch.eye(20, dtype=DOUBLE) - (Q * sigma) @ P
    value = lambda_min(lambda z: J @ z, torch.zeros(20, dtype=DOUBLE), method=method)
    assert value.item() == pytest.approx(1e-14, rel=1e-7)
    assert abs(torch.linalg.eigvalsh((torch.eye(20) - J).T @ (torch.eye(20) - J))[0].item() - 1e-14) > 1e-17


# -- through the fixed point -------------------------------------------------------------------------------------------
@every_method
def test_the_gradient_of_the_whole_loss_goes_through_the_fixed_point_too(tight, method):
    """loss(h*) + lambda_min(J at h*) against central differences of everything, the solve of h* included."""
    W, x, _ = problem(7, scale=0.6)

    def whole(W, x, through=True):
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, **tight)
        return z.square().sum() + 3 * lambda_min(
            tanh_map, z if through else z.detach(), W, x, method=method, rtol=1e-11
        )

    gradients = torch.autograd.grad(whole(W, x), (W, x))
    directions = [torch.randn_like(W), torch.randn_like(x)]
    expected = central_difference(whole, (W, x), directions)
    assert directional(gradients, directions) == pytest.approx(expected, rel=1e-8)
    without = directional(torch.autograd.grad(whole(W, x, through=False), (W, x)), directions)
    assert abs(without - expected) > 1e-3 * abs(expected)  # the part through h* is not small


@every_method
def test_an_argument_that_was_computed_from_the_state_adds_its_own_path(method):
    """The partial derivative at z is taken, and z and the argument are then added up by autograd."""
    A = torch.randn(4, 4, dtype=DOUBLE) * 0.3
    f = lambda z, y: torch.tanh(z @ A.T * (1 + y.square()))

    def of(z):
        return lambda_min(f, z, torch.sin(z), method=method, rtol=1e-11)

    z = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(of(z), z)
    direction = torch.randn(4, dtype=DOUBLE)
    expected = central_difference(lambda z: of(z.requires_grad_()), (z,), (direction,))
    assert directional((gradient,), (direction,)) == pytest.approx(expected, rel=1e-8)


# -- kinks and invariant subspaces -------------------------------------------------------------------------------------
@pytest.mark.fault(94, 100, 101)
@every_method
@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize("theta", [-1.5, 0.0, 0.5, 2.0])
def test_a_multiple_of_the_identity(method, theta, n):
    """FAULTS 94, 100, 101: (1 - theta)^2 and -2 (1 - theta), though every step breaks down."""
    t = torch.tensor(theta, dtype=DOUBLE, requires_grad=True)
    value, result = lambda_min(lambda z: t * z, torch.zeros(n, dtype=DOUBLE), method=method, return_result=True)
    assert result.converged
    assert value.item() == pytest.approx((1 - theta) ** 2, rel=1e-12)
    assert torch.autograd.grad(value, t)[0].item() == pytest.approx(-2 * (1 - theta), rel=1e-12)


@pytest.mark.fault(100, 101)
@every_method
@pytest.mark.parametrize("copies", [2, 5])
def test_a_repeated_smallest_value_gives_a_subgradient(method, copies):
    """FAULTS 100, 101: of trace -2 sigma, and between the one-sided derivatives along every direction."""
    n, sigma = 9, 0.3
    Q, P = (torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE))[0] for _ in range(2))
    values = torch.cat((torch.full((copies,), sigma, dtype=DOUBLE), torch.linspace(0.5, 1.5, n - copies, dtype=DOUBLE)))
    A = (Q * values) @ P
    J = (torch.eye(n, dtype=DOUBLE) - A).requires_grad_()
    value, result = lambda_min(lambda z: J @ z, torch.zeros(n, dtype=DOUBLE), method=method, return_result=True)
    assert result.converged
    assert value.item() == pytest.approx(sigma**2, rel=1e-10)
    (G,) = torch.autograd.grad(value, J)
    U, V = Q[:, :copies], P[:copies].T
    inner = U.T @ G @ V
    torch.testing.assert_close(torch.linalg.svdvals(G).sum().item(), 2 * sigma, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.trace(inner).item(), -2 * sigma, rtol=1e-7, atol=0)
    for _ in range(5):
        D = torch.randn(n, n, dtype=DOUBLE)
        split = -sigma * (U.T @ D @ V + (U.T @ D @ V).T)  # first-order change of the eigenvalues
        ends = torch.linalg.eigvalsh(split)
        assert ends[0] - 1e-6 <= (G * D).sum() <= ends[-1] + 1e-6


@pytest.mark.fault(97)
@every_method
@pytest.mark.parametrize("which", [0, 3, 9])
def test_an_invariant_start_finds_the_smallest_all_the_same(method, which):
    """FAULTS 97: the start is the singular vector of another value, as that of the training step before may be."""
    n = 10
    Q, P = (torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE))[0] for _ in range(2))
    J = (torch.eye(n, dtype=DOUBLE) - (Q * torch.linspace(0.2, 2, n, dtype=DOUBLE)) @ P).requires_grad_()
    value = lambda_min(lambda z: J @ z, torch.zeros(n, dtype=DOUBLE), method=method, start=P[which], rtol=1e-10)
    assert value.item() == pytest.approx(0.04, rel=1e-12)
    expected = -2 * 0.2 * torch.outer(Q[:, 0], P[0])
    torch.testing.assert_close(torch.autograd.grad(value, J)[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.fault(94, 103)
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_process_that_meets_an_invariant_subspace_goes_on_in_its_complement(differentiable):
    """FAULTS 94, 103: with exactly invariant vectors, three blocks, and no copy of a value that is there once."""
    values = torch.tensor([0.9, 0.8, 0.5, 0.3, 0.2], dtype=DOUBLE)
    J = (torch.eye(5, dtype=DOUBLE) - torch.diag(values)).requires_grad_()
    function = MapAt("test", lambda z: J @ z, torch.zeros(5, dtype=DOUBLE), (), 0)
    start = torch.tensor([1.0, 0, 0, 0, 0], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    process = bidiagonalize(function.linearized(), start, 5, 0.0, generator, differentiable)
    assert process.fresh_v.tolist() == [False, True, False, False, False]
    B = torch.diag(process.alpha) + torch.diag(process.beta[:-1], 1)
    torch.testing.assert_close(torch.linalg.svdvals(B).detach(), values, rtol=1e-12, atol=0)
    for basis in (process.U, process.V):
        torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-14)


@every_method
def test_a_singular_matrix_has_a_zero_and_a_zero_gradient(method):
    J = torch.diag(torch.tensor([1.0, 0.5, 0.2], dtype=DOUBLE)).requires_grad_()
    value = lambda_min(lambda z: J @ z, torch.zeros(3, dtype=DOUBLE), method=method)
    assert value.item() == pytest.approx(0.0, abs=1e-30)
    assert torch.autograd.grad(value, J)[0].abs().max() < 1e-15


@every_method
def test_a_map_that_ignores_its_state(method):
    x = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    value = lambda_min(lambda z, x: torch.sin(x), torch.zeros(4, dtype=DOUBLE), x, method=method)
    assert value.item() == 1.0
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
        assert gradient is None or not gradient.any()


@pytest.mark.fault(102)
@pytest.mark.parametrize("gap", [1e-10, 1e-6])
def test_a_tiny_gap_is_a_cluster_or_is_resolved(gap):
    """FAULTS 102: below half of the digits two values count as one; above, the pair is the right one."""
    n = 8
    values = torch.linspace(0.5, 1.5, n, dtype=DOUBLE)
    values[:2] = torch.tensor([0.1, 0.1 + gap], dtype=DOUBLE)
    J = (torch.eye(n, dtype=DOUBLE) - torch.diag(values)).requires_grad_()
    for method in METHODS:
        value, result = lambda_min(lambda z: J @ z, torch.zeros(n, dtype=DOUBLE), method=method, return_result=True)
        assert result.converged
        assert value.item() == pytest.approx(0.01, rel=3 * gap)
        (G,) = torch.autograd.grad(value, J)
        assert torch.trace(G).item() == pytest.approx(-0.2, rel=1e-6)


# -- no silent gradient ------------------------------------------------------------------------------------------------
@every_method
def test_an_unconverged_pair_warns_raises_or_is_a_status(method):
    W, x, z = problem(60, scale=1.5)
    settings = {"method": method, "max_iters": 6}
    with pytest.warns(ig.ConvergenceWarning, match=r"lambda_min \(.*MAX_ITERS.*gradient may be far off"):
        value = lambda_min(tanh_map, z, W, x, **settings)
    assert value.item() >= dense_lambda_min(W, x, z)  # an upper bound
    with pytest.raises(ig.NotConvergedError, match="MAX_ITERS") as caught:
        lambda_min(tanh_map, z, W, x, on_failure="raise", **settings)
    assert caught.value.solution.status is ig.Status.MAX_ITERS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, result = lambda_min(tanh_map, z, W, x, on_failure="return", return_result=True, **settings)
    assert result.status is ig.Status.MAX_ITERS


@every_method
def test_one_system_of_a_batch_that_fails_is_told_from_its_neighbours(method):
    values = torch.stack((torch.full((60,), 0.5), torch.linspace(-3, 0.9, 60))).double().requires_grad_()
    with pytest.warns(ig.ConvergenceWarning, match="1 of 2 systems: MAX_ITERS"):
        value, result = lambda_min(
            lambda z: values * z,
            torch.zeros(2, 60).double(),
            method=method,
            batch_ndim=1,
            max_iters=8,
            return_result=True,
        )
    assert result.converged.tolist() == [True, False]
    assert value[0].item() == pytest.approx(0.25)
    assert torch.isfinite(torch.autograd.grad(value.sum(), values)[0]).all()


@every_method
def test_a_derivative_that_is_not_finite_is_named(method):
    x = torch.zeros(4, dtype=DOUBLE)
    x[2] = float("nan")
    with pytest.warns(ig.ConvergenceWarning, match="NONFINITE_OPERATOR"):
        value = lambda_min(lambda z: x * z, torch.zeros(4, dtype=DOUBLE), method=method)
    assert torch.isnan(value)


@pytest.mark.parametrize("method", ["hellmann-feynman", "adjoint"])
def test_a_second_derivative_at_frozen_vectors_is_refused_in_words(method):
    W, x, z = problem(5)
    value = lambda_min(tanh_map, z, W, x, method=method)
    with pytest.raises(ig.SettingError, match="method='unrolled'"):
        torch.autograd.grad(value, W, create_graph=True)


def test_the_unrolled_value_is_differentiable_twice():
    W, x, z = problem(4)
    of = lambda W, x, z: lambda_min(tanh_map, z, W, x, method="unrolled")
    assert torch.autograd.gradcheck(of, (W, x, z))
    assert torch.autograd.gradgradcheck(of, (W, x, z))


@every_method
def test_a_tensor_with_a_history_that_is_captured(method):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    computed = w.square()
    value = lambda_min(lambda z: computed * z, torch.zeros(3, dtype=DOUBLE), method=method)
    assert torch.autograd.grad(value, w)[0].item() == pytest.approx(-2 * 0.75 * 1.0)


@every_method
def test_dropout_keeps_one_mask_and_batch_normalization_its_statistics(method):
    """The value is that of some mask, its gradient of the same one; what training has counted is not counted again."""
    layer = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.4)).double()
    z, before = torch.randn(3, 6, dtype=DOUBLE), None
    before = {name: t.clone() for name, t in layer.named_buffers()}
    value = lambda_min(lambda z: 0.5 * layer(z), z, method=method, rtol=1e-11)
    assert all(torch.equal(t, before[name]) for name, t in layer.named_buffers())
    torch.manual_seed(3)
    bias = layer[1].weight

    def again():
        torch.manual_seed(3)
        return lambda_min(lambda z: 0.5 * layer(z), z, method=method, rtol=1e-11)

    (gradient,) = torch.autograd.grad(again(), bias)
    step = 1e-5
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            bias[0] += sign * step
            ends.append(again().item())
            bias[0] -= sign * step
    assert gradient[0].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)
    assert torch.isfinite(value)


def test_a_torch_func_transform_is_refused_in_words():
    W, x, z = problem(4)
    with pytest.raises(ig.SettingTypeError, match=r"lambda_min: got a call inside a torch\.func transform"):
        torch.func.grad(lambda W: lambda_min(tanh_map, z.detach(), W, x.detach()))(W)


@every_method
def test_without_gradients_a_plain_number_comes_back(method):
    W, x, z = problem(5)
    with torch.no_grad():
        value = lambda_min(tanh_map, z, W, x, method=method)
    assert not value.requires_grad
    assert value.item() == pytest.approx(dense_lambda_min(W, x, z), rel=1e-10)


@every_method
def test_nothing_global_is_touched_and_a_seed_decides(method):
    W, x, z = problem(30)
    state = torch.get_rng_state()
    a, b = (lambda_min(tanh_map, z, W, x, method=method, rtol=1e-3, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b)


def test_mistakes_are_refused_in_words():
    W, x, z = problem(5)
    f = tanh_map
    refused = [
        ({"method": "lanczos"}, "expected one of hellmann-feynman, adjoint, unrolled"),
        ({"rtol": -1.0}, "rtol=-1.0, expected a finite number >= 0"),
        ({"rtol": 0}, "method='adjoint' or 'unrolled'"),
        ({"rtol": 0, "method": "adjoint"}, "without max_iters"),
        ({"memory": 8, "method": "unrolled"}, "keep their whole basis"),
        ({"max_iters": 0}, "max_iters=0"),
        ({"on_failure": "explode"}, "expected 'warn', 'raise' or 'return'"),
        ({"start": torch.zeros(5, dtype=DOUBLE)}, "start that is zero"),
        ({"start": torch.ones(4, dtype=DOUBLE)}, r"expected the flat shape \(5,\)"),
        ({"start": [1.0]}, "start of type list"),
    ]
    for settings, sentence in refused:
        with pytest.raises(ig.ImplicitGradError, match=sentence):
            lambda_min(f, z, W, x, **settings)
    with pytest.raises(ig.SettingError, match="margin=-1"):
        lambda_min_penalty(f, z, W, x, margin=-1)
    with pytest.raises(ig.SettingTypeError, match="expected a callable"):
        lambda_min(3, z)
    with pytest.raises(ig.ShapeError, match="empty state"):
        lambda_min(lambda z: z, torch.zeros(0))


def test_a_warm_start_saves_products():
    W, x, z = problem(200, scale=0.7)
    _, cold = lambda_min(tanh_map, z, W, x, return_result=True, rtol=1e-4)
    _, warm = lambda_min(tanh_map, z, W, x, return_result=True, rtol=1e-4, start=cold.vector)
    assert warm.converged
    assert warm.num_matvecs < cold.num_matvecs


# -- memory ------------------------------------------------------------------------------------------------------------
class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once; storages that share memory count once."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_of(method, steps, **settings):
    """Bytes, for value and gradient on a map of 400 units that no search ends on before its steps are spent."""
    torch.manual_seed(0)
    diagonal = torch.linspace(-1, 0.98, 400, dtype=DOUBLE).requires_grad_()
    f = lambda z, d: torch.sin(torch.cos(d * z))
    z = torch.linspace(0.1, 1, 400, dtype=DOUBLE)
    with LiveBytes() as bytes_:
        value, result = lambda_min(
            f,
            z,
            diagonal,
            method=method,
            max_iters=steps,
            rtol=1e-15,
            on_failure="return",
            return_result=True,
            **settings,
        )
        value.backward()
    assert result.num_iters == steps
    return bytes_.peak


def test_the_memory_of_hellmann_feynman_does_not_know_the_number_of_steps():
    """The same number of bytes for 20 and for 200 steps, where unrolling needs five times as many and more."""
    assert peak_of("hellmann-feynman", 20, memory=8) == peak_of("hellmann-feynman", 200, memory=8)
    assert peak_of("unrolled", 100) > 5 * peak_of("unrolled", 20)


def test_the_memory_of_the_adjoint_is_its_basis():
    """Two vectors a step, up to what doubling a buffer leaves over; no graph a step."""
    growth = peak_of("adjoint", 200) - peak_of("adjoint", 20)
    assert growth < 180 * 400 * 8 * 2 * 2.5


# -- the penalty -------------------------------------------------------------------------------------------------------
@every_method
def test_the_penalty_of_the_paper_is_identically_zero(method):
    """max(0, -lambda_min) with lambda_min >= 0, also where I - J is singular: no value, no gradient."""
    for scale in (0.1, 1.0, 3.0):
        W, x, z = problem(8, scale=scale)
        penalty = lambda_min_penalty(tanh_map, z, W, x, margin=0, method=method)
        assert penalty.item() == 0
        assert all(not g.any() for g in torch.autograd.grad(penalty, (W, x, z)))
    t = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    penalty = lambda_min_penalty(lambda z: t * z, torch.zeros(3, dtype=DOUBLE), margin=0, method=method)
    assert penalty.item() == torch.autograd.grad(penalty, t)[0].item() == 0


@every_method
def test_a_margin_moves_sigma_min_until_it_is_reached(method):
    """Gradient descent on the penalty alone lifts lambda_min from 0.0025 to the margin, and stops there."""
    W = torch.diag(torch.tensor([0.95, 0.4, -0.3], dtype=DOUBLE)).requires_grad_()
    seen = []
    for _ in range(100):
        penalty, result = lambda_min_penalty(
            lambda z, W: W @ z, torch.zeros(3, dtype=DOUBLE), W, margin=0.09, method=method, return_result=True
        )
        seen.append(result.value**2)
        (gradient,) = torch.autograd.grad(penalty, W)
        W = (W - 0.05 * gradient).detach().requires_grad_()
    assert seen[0] == pytest.approx(0.0025)
    assert 0.089 < seen[-1] < 0.12
    assert penalty.item() < 1e-3


def test_the_penalty_is_one_number_a_system_and_zero_beyond_the_margin():
    W, x, z = problem(6, (3,))
    values = lambda_min(tanh_map, z, W, x, batch_ndim=1)
    margin = values.median().item()
    penalties = lambda_min_penalty(tanh_map, z, W, x, batch_ndim=1, margin=margin)
    torch.testing.assert_close(penalties, (margin - values).clamp(min=0))
    assert (penalties == 0).sum() >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_products_are_no_mismatch(dtype):
    """<u, J v> and <J^H u, v> of a bfloat16 map differ by its own eps, 8e-3, which was taken for a wrong adjoint."""
    torch.manual_seed(0)
    W = (0.1 * torch.randn(16, 16)).to(dtype)
    exact = torch.linalg.svdvals(torch.eye(16, dtype=torch.float64) - W.double()).min().item()
    value, result = igt.lambda_min(
        lambda z: z @ W.T, torch.zeros(16, dtype=dtype), on_failure="return", return_result=True
    )
    assert result.status is not ig.Status.ADJOINT_MISMATCH
    assert abs(value.item() ** 0.5 - exact) <= 4 * torch.finfo(dtype).eps
