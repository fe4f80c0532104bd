"""torch.func over an implicit layer, forward mode and torch.compile: equal to the unrolled map, or refused in words."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
N, B = 3, 4


def tanh_map(z, W, x):
    return torch.tanh(W @ z + x)


def unrolled(f, z, *args, **_settings):
    for _ in range(100):
        z = f(z, *args)
    return z


def assert_equal(ours, expected):
    ours, expected = tree_leaves(ours), tree_leaves(expected)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.fixture
def W():
    return 0.3 * torch.randn(N, N, dtype=DOUBLE)


@pytest.fixture
def x():
    return torch.randn(N, dtype=DOUBLE)


@pytest.fixture
def X():
    return torch.randn(B, N, dtype=DOUBLE)


@pytest.fixture
def solve(tight):
    """``solve(f, z, *args)``: the implicit layer where ``unrolled`` is the oracle."""
    return lambda f, z, *args, **settings: igt.fixed_point(f, z, *args, **{**tight, **settings})


def with_arguments(solve, W):
    return lambda x: solve(tanh_map, torch.zeros_like(x), W, x)


def with_closure(solve, W):
    return lambda x: solve(lambda z: tanh_map(z, W, x), torch.zeros_like(x))


def with_both(solve, W):
    """The same tensor as the start, as an argument and in the closure."""
    return lambda x: solve(lambda z, y: tanh_map(z, W, x) * y.cos(), x, x)


def loss(layer):
    return lambda x: layer(x).pow(3).sum()


TRANSFORMS = {
    "grad": lambda layer: grad(loss(layer)),
    "vjp": lambda layer: lambda x: vjp(layer, x)[1](torch.ones_like(x)),
    "jvp": lambda layer: lambda x: jvp(layer, (x,), (x + 1,)),
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": lambda layer: hessian(loss(layer)),
    "grad of grad": lambda layer: grad(lambda x: grad(loss(layer))(x).square().sum()),
    "jacrev of jacrev": lambda layer: jacrev(jacrev(loss(layer))),
    "jacrev of jacfwd": lambda layer: jacrev(jacfwd(loss(layer))),
    "jacfwd of jacfwd": lambda layer: jacfwd(jacfwd(loss(layer))),
    "third order": lambda layer: lambda x: jvp(hessian(loss(layer)), (x,), (x + 1,)),
}
MAPPED = {
    "vmap": vmap,
    "vmap of vmap": lambda layer: lambda X: vmap(vmap(layer))(torch.stack([X, 2 * X])),
    "vmap of grad": lambda layer: vmap(grad(loss(layer))),
    "vmap of jvp": lambda layer: vmap(lambda x: jvp(layer, (x,), (x + 1,))),
    "vmap of hessian": lambda layer: vmap(hessian(loss(layer))),
    "grad of vmap": lambda layer: grad(lambda X: vmap(layer)(X).pow(3).sum()),
    "jacrev of vmap": lambda layer: jacrev(lambda X: vmap(layer)(X).sum(0)),
    "hessian of vmap": lambda layer: hessian(lambda X: vmap(layer)(X).pow(3).sum()),
    "out_dims": lambda layer: vmap(layer, out_dims=1),
}


@pytest.mark.parametrize("layer", [with_arguments, with_closure, with_both])
class TestAgainstTheUnrolledMap:
    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_a_transform(self, solve, W, x, transform, layer):
        transform = TRANSFORMS[transform]
        assert_equal(transform(layer(solve, W))(x), transform(layer(unrolled, W))(x))

    @pytest.mark.parametrize("transform", MAPPED)
    def test_a_batched_transform(self, solve, W, X, transform, layer):
        transform = MAPPED[transform]
        assert_equal(transform(layer(solve, W))(X), transform(layer(unrolled, W))(X))

    @pytest.mark.parametrize("transform", ["vmap", "jvp", "grad"])
    def test_under_no_grad(self, solve, W, X, transform, layer):
        """Captured wrappers of a transform are found there too."""
        transform = {**TRANSFORMS, **MAPPED}[transform]
        point = X if transform is vmap else X[0]
        expected = transform(layer(unrolled, W))(point)
        with torch.no_grad():
            assert_equal(transform(layer(solve, W))(point), expected)


class TestWhatIsMapped:
    @pytest.mark.parametrize("in_dims", [(None, 0), (0, None), (0, 0), (1, 0), (2, 1)])
    def test_some_arguments_or_all_at_any_axis(self, solve, W, X, in_dims):
        many = torch.stack([W, 0.5 * W, -W, 0.1 * W], dim=in_dims[0] or 0)
        given = (W if in_dims[0] is None else many, X[0] if in_dims[1] is None else X.movedim(0, in_dims[1]))
        first = lambda solve: lambda W, x: with_arguments(solve, W)(x)
        gradient = lambda solve: grad(lambda W, x: with_arguments(solve, W)(x).pow(3).sum(), argnums=(0, 1))
        for make in (first, gradient):
            ours, expected = (vmap(make(s), in_dims)(*given) for s in (solve, unrolled))
            assert_equal(ours, expected)

    def test_the_start_alone(self, solve, W, x, X):
        assert_equal(vmap(lambda z: solve(tanh_map, z, W, x))(X), with_arguments(unrolled, W)(x).expand(B, N))
        start = lambda z: solve(tanh_map, z, W, x)
        assert torch.equal(grad(lambda z: start(z).sum())(x), torch.zeros_like(x))
        assert torch.equal(jvp(start, (x,), (x,))[1], torch.zeros_like(x))

    def test_a_layer_with_a_batch_of_its_own(self, solve, W, X):
        f = lambda z, x: torch.tanh(z @ W.T + x)
        layer = lambda solve: lambda X: solve(f, torch.zeros_like(X), X, batch_ndim=1)
        for transform in (jacrev, jacfwd, lambda layer: lambda X: vmap(layer)(torch.stack([X, 2 * X]))):
            assert_equal(transform(layer(solve))(X), transform(layer(unrolled))(X))

    def test_a_nested_state(self, solve, X):
        f = lambda z, x: {"a": torch.tanh(0.4 * z["b"].sum() + x), "b": torch.sin(0.3 * z["a"][:2])}
        z0 = {"a": torch.zeros(N, dtype=DOUBLE), "b": torch.zeros(2, dtype=DOUBLE)}
        layer = lambda solve: lambda x: solve(f, z0, x)
        assert_equal(vmap(jacrev(layer(solve)))(X), vmap(jacrev(layer(unrolled)))(X))

    def test_indices_among_the_arguments(self, solve, x):
        order = torch.tensor([2, 0, 1])
        f = lambda z, x, order: torch.tanh(0.4 * z[order] + x)
        layer = lambda solve: lambda x: solve(f, torch.zeros_like(x), x, order)
        for transform in ("grad", "jvp", "jacfwd", "hessian"):
            transform = TRANSFORMS[transform]
            assert_equal(transform(layer(solve))(x), transform(layer(unrolled))(x))

    def test_a_module_called_functionally(self, solve, X):
        """Per-sample gradients for the parameters, and models stacked as an ensemble."""
        cell = torch.nn.Linear(N, N).double()
        torch.nn.init.orthogonal_(cell.weight, gain=0.5)
        weights = {k: p.detach() for k, p in cell.named_parameters()}

        def energy(solve):
            f = lambda z, weights, x: torch.tanh(functional_call(cell, weights, (z,)) + x)
            return lambda weights, x: solve(f, torch.zeros_like(x), weights, x).pow(3).sum()

        per_sample = lambda solve: vmap(grad(energy(solve)), in_dims=(None, 0))(weights, X)
        assert_equal(per_sample(solve), per_sample(unrolled))
        ensemble = {k: torch.stack([p, 0.5 * p]) for k, p in weights.items()}
        per_model = lambda solve: vmap(grad(energy(solve)), in_dims=(0, None))(ensemble, X[0])
        assert_equal(per_model(solve), per_model(unrolled))

        def called(solve):  # the module inside of the map, its parameters swapped from outside
            f = lambda z, x: torch.tanh(cell(z) + x)
            layer = torch.nn.Module()
            layer.cell, layer.forward = cell, lambda x: solve(f, torch.zeros_like(x), x)
            swapped = lambda weights, x: functional_call(layer, {f"cell.{k}": w for k, w in weights.items()}, (x,))
            return grad(lambda weights: swapped(weights, X[0]).pow(3).sum())(weights)

        assert_equal(called(solve), called(unrolled))


class TestTransformsInsideOfTheMap:
    """The map may use torch.func itself."""

    def test_an_energy_by_its_gradient(self, solve, W, x):
        energy = lambda z, W, x: (torch.log(torch.cosh(W @ z)) - x * z).sum()
        f = lambda z, W, x: 0.5 * z - 0.5 * grad(energy)(z, W, x)
        layer = lambda solve: lambda x: solve(f, torch.zeros_like(x), W, x)
        for transform in ("grad", "jvp", "hessian"):
            transform = TRANSFORMS[transform]
            assert_equal(transform(layer(solve))(x), transform(layer(unrolled))(x))

    def test_a_vmap_over_a_captured_tensor(self, solve, x):
        layer = lambda solve: lambda x: solve(lambda z: vmap(lambda z, x: torch.tanh(0.3 * z * x + x))(z, x), 0 * x)
        assert_equal(grad(loss(layer(solve)))(x), grad(loss(layer(unrolled)))(x))
        leaf = x.clone().requires_grad_()
        curvature = lambda z: torch.autograd.grad(
            torch.autograd.grad(z.pow(3).sum(), leaf, create_graph=True)[0].square().sum(), leaf
        )
        assert_equal(curvature(layer(solve)(leaf)), curvature(layer(unrolled)(leaf)))

    def test_a_captured_tensor_handed_to_grad_is_refused_under_another_transform(self, solve, x):
        energy = lambda z, x: (torch.cosh(0.3 * z) + 0.1 * z * x).sum()
        layer = lambda x: solve(lambda z: 0.5 * z - 0.5 * grad(energy)(z, x), torch.zeros_like(x))
        with pytest.raises(ig.SettingError, match="Pass the tensor"):
            grad(loss(layer))(x)


class TestEachSampleForItself:
    def test_a_bad_sample_under_vmap_changes_no_other(self, solve, W, X):
        X[1, 0] = float("nan")
        layer, good = with_arguments(solve, W), [0, 2, 3]
        alone = lambda transform: torch.stack([transform(X[i]) for i in good])
        for transform in (layer, grad(loss(layer))):
            mapped = vmap(transform)(X)
            torch.testing.assert_close(mapped[good], alone(transform), rtol=1e-9, atol=1e-10)

    def test_the_report_tells_each_sample(self, W, X):
        """The third one does not contract: its status is its own."""
        report = igt.Report(trajectory=True)
        rate = torch.tensor([0.3, 0.5, 3.0, 0.1], dtype=DOUBLE)
        f = lambda z, rate, x: rate * z + x
        layer = lambda rate, x: igt.fixed_point(
            f, torch.zeros_like(x), rate, x, solver=igt.Picard(max_iters=60), on_failure="return", report=report
        )
        gradient = vmap(grad(lambda rate, x: layer(rate, x).sum(), argnums=1))(rate, X)
        assert report.forward.status.shape == report.backward.status.shape == (B,)
        assert list(report.forward.converged) == [True, True, False, True]
        assert report.backward.converged.all()
        assert {point.shape for point in report.trajectory} == {(B, N)}
        torch.testing.assert_close(gradient, (1 / (1 - rate))[:, None].expand(B, N))

    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_dropout_under_vmap_keeps_its_masks_for_the_pass(self, solve, W, X, randomness):
        """``z`` is a fixed point of a masked map, and the gradient is that of the same mask."""
        W = 0.4 * W  # a mask doubles what it keeps

        def f(z, x):
            return torch.tanh(torch.nn.functional.dropout(torch.ones_like(z), 0.5) * (W @ z) + x)

        read = lambda x: (solve(f, torch.zeros_like(x), x), torch.nn.functional.dropout(torch.ones_like(x), 0.5))
        torch.manual_seed(3)
        z, _ = vmap(read, randomness=randomness)(X)
        torch.manual_seed(3)
        mask = vmap(lambda x: torch.nn.functional.dropout(torch.ones_like(x), 0.5), randomness=randomness)(X)
        torch.testing.assert_close(z, torch.tanh(mask * (z @ W.T) + X))
        torch.manual_seed(3)
        ours = vmap(grad(lambda x: solve(f, torch.zeros_like(x), x).sum()), randomness=randomness)(X)
        masked = lambda z, x, mask: torch.tanh(mask * (W @ z) + x)
        expected = vmap(grad(lambda x, mask: unrolled(masked, torch.zeros_like(x), x, mask).sum()))(X, mask)
        assert_equal(ours, expected)


class TestForwardMode:
    @pytest.mark.parametrize("layer", [with_arguments, with_closure, with_both])
    def test_dual_numbers(self, solve, W, x, layer):
        pairs = []
        for s in (solve, unrolled):
            with forward_ad.dual_level():
                z = layer(s, W)(forward_ad.make_dual(x, x + 1))
                pairs.append(tuple(forward_ad.unpack_dual(z)))
        assert_equal(*pairs)

    def test_a_real_state_with_a_complex_argument(self, solve, x):
        C, direction = (0.3 * torch.randn(N, N, dtype=torch.complex128) for _ in range(2))
        f = lambda z, C, x: torch.tanh((C @ z.to(C.dtype)).real + x)
        layer = lambda solve: lambda C: solve(f, torch.zeros_like(x), C, x)
        assert_equal(*(jvp(layer(s), (C,), (direction,))[1] for s in (solve, unrolled)))

    def test_a_tangent_that_does_not_converge_obeys_the_policy(self, W, x):
        layer = lambda x: igt.fixed_point(
            tanh_map, torch.zeros_like(x), 3 * W, x, adjoint=ig.GMRES(max_iters=1), on_failure="raise"
        )
        with pytest.raises(ig.NotConvergedError, match=r"fixed_point, forward mode: .*GMRES stopped"):
            jvp(layer, (x,), (x,))


class TestRootAndArgmin:
    def test_of_both_under_transforms(self, X):
        A = torch.randn(N, N, dtype=DOUBLE)
        A = A @ A.T + torch.eye(N, dtype=DOUBLE)
        settings = {"on_failure": "return"}
        by_root = lambda b: igt.root(
            lambda z, b: A @ z - b, torch.zeros(N, dtype=DOUBLE), b, adjoint=ig.GMRES(rtol=1e-13), **settings
        )
        by_argmin = lambda b: igt.argmin(
            lambda z: 0.5 * z @ A @ z - b @ z, torch.zeros(N, dtype=DOUBLE), adjoint=ig.CG(rtol=1e-13), **settings
        )
        inverse = torch.linalg.inv(A)  # vmap of jacfwd of torch.linalg.solve is wrong in torch 2.13
        dense = lambda b: inverse @ b
        for ours in (by_root, by_argmin):
            for transform in (jacrev, jacfwd, TRANSFORMS["hessian"], TRANSFORMS["jvp"]):
                assert_equal(vmap(transform(ours))(X), vmap(transform(dense))(X))


class TestRefusals:
    def test_the_legacy_vmap_of_cotangents(self, W, x):
        x.requires_grad_()
        z = igt.fixed_point(tanh_map, torch.zeros_like(x), W, x)
        eye = torch.eye(N, dtype=DOUBLE)
        with pytest.raises(ig.SettingError, match=r"legacy vmap.*torch\.func\.vmap, jacrev or jacfwd"):
            torch.autograd.grad(z, x, eye, is_grads_batched=True)
        with pytest.raises(ig.SettingError, match="legacy vmap"):
            torch.autograd.functional.jacobian(with_arguments(igt.fixed_point, W), x, vectorize=True)

    def test_a_truncated_adjoint_at_second_order(self, W, x):
        layer = lambda x: igt.fixed_point(tanh_map, torch.zeros_like(x), W, x, adjoint="jfb")
        assert torch.isfinite(grad(loss(layer))(x)).all()  # the first is what was asked for
        with pytest.raises(ig.SettingError, match="TRUNCATED"):
            jacrev(jacrev(loss(layer)))(x)

    def test_traces_have_no_numbers_to_decide_on(self, solve, W, x):
        with pytest.raises(ig.SettingError, match=r"traced.*Use torch\.func\.jvp"):
            linearize(with_arguments(solve, W), x)


class TestCompiledCallers:
    """``torch.compile`` of a function that contains a layer breaks its graph there; the layer runs as ever."""

    def test_a_training_step(self, solve, W, x):
        W.requires_grad_()

        def step(x):
            z = solve(tanh_map, torch.zeros_like(x), W, 2 * x)
            total = z.pow(3).sum()
            total.backward()
            return total.detach()

        results = []
        for function in (step, torch.compile(step, backend="eager")):
            W.grad = None
            results.append((function(x), W.grad))
        assert_equal(*results)

    def test_a_module_around_a_layer(self, tight):
        model = torch.nn.Linear(N, N, dtype=DOUBLE)
        torch.nn.init.orthogonal_(model.weight, gain=0.4)
        inner = igt.FixedPoint(torch.nn.Sequential(model, torch.nn.Tanh()), batch_ndim=1, **tight)
        outer = torch.nn.Sequential(torch.nn.Linear(N, N, dtype=DOUBLE), inner)
        X = torch.randn(B, N, dtype=DOUBLE)
        ours, expected = (
            torch.autograd.grad(m(X).pow(3).sum(), list(outer.parameters()))
            for m in (torch.compile(outer, backend="eager"), outer)
        )
        assert_equal(ours, expected)

    def test_a_full_graph_is_refused_by_torch(self, W, x):
        layer = with_arguments(igt.fixed_point, W)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="fixed_point"):
            torch.compile(layer, backend="eager", fullgraph=True)(x)
