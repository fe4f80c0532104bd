"""What somebody found who had the documentation only: each was silent, or an obscure error, once."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64


@torch.no_grad()
def without_gradients(z, x):
    return torch.tanh(0.8 * z + x)


@pytest.mark.parametrize("f", [lambda z, x: torch.tanh(0.8 * z.detach() + x), without_gradients])
def test_a_map_without_a_graph_to_its_state_is_refused(f):
    """detach() and no_grad() in f made every gradient that of one step, or none, with the status CONVERGED."""
    x = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    with pytest.raises(ig.SettingError, match="does not lead back to it"):
        igt.fixed_point(f, torch.zeros(3), x)
    igt.fixed_point(f, torch.zeros(3), x, adjoint="jfb")  # where one step is what is asked for
    with torch.no_grad():
        igt.fixed_point(f, torch.zeros(3), x)
    constant = igt.fixed_point(lambda z, x: 2 * x, torch.zeros(3), x)  # ignores its state, and says so by its values
    torch.testing.assert_close(torch.autograd.grad(constant.sum(), x)[0], torch.full((3,), 2.0))


@pytest.mark.parametrize("start", [2.0, 2.0 + 1e-12])
def test_a_broken_graph_is_found_where_the_search_has_nowhere_to_go(start):
    """At a warm start no step is taken, so no step could show that the value changes: 2.0 for 4.0, CONVERGED."""
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    f = lambda z: w * z.detach() + 1
    z0 = torch.full((1,), start, dtype=DOUBLE)
    for found in (
        lambda: igt.fixed_point(f, z0),
        lambda: igt.implicit_gradient(f, z0),
        lambda: igt.rbp(f, 0 * z0, steps=100, truncate=50),
    ):
        with pytest.raises(ig.SettingError, match="does not lead back to it"):
            found()
    for other in (lambda: igt.root(lambda z: w * z.detach() - 1, z0), lambda: igt.argmin(lambda z: z.detach() @ z, z0)):
        with pytest.raises(ig.SettingError, match=r"does not lead back to it.*taken for zero\. Take the detach out"):
            other()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_broken_graph_is_found_in_every_format(dtype, size):
    """A step of a thousandth is none in half precision."""
    w = torch.ones(size, dtype=dtype, requires_grad=True)
    for f in (
        lambda z: 0.5 * z.detach() + w,
        lambda z: torch.tanh(0.5 * z.detach() + w),
        lambda z: 0.1 * z.detach() + w,
    ):
        with pytest.raises(ig.SettingError, match="does not lead back to it"):
            igt.fixed_point(f, torch.zeros(size, dtype=dtype), on_failure="return")


def test_the_calls_that_ask_whether_a_map_is_constant_are_counted():
    calls, report = [], igt.Report()
    w = torch.ones(3, requires_grad=True)
    igt.fixed_point(lambda z: calls.append(1) or 2 * w, torch.zeros(3), report=report)
    assert report.forward.num_matvecs == len(calls)


def test_what_is_constant_around_the_solution_has_a_derivative_of_zero_and_is_not_refused():
    """A mask of the state, as of an active set, is written without a graph and changes nowhere near."""
    x = torch.tensor([0.3, -0.2, 0.5], dtype=DOUBLE, requires_grad=True)
    z = igt.fixed_point(lambda z: x * (z > 0), torch.ones(3, dtype=DOUBLE), on_failure="raise")
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], torch.tensor([1.0, 0.0, 1.0], dtype=DOUBLE))


def test_a_loss_without_a_minimum_is_said_to_have_none():
    """A linear one was told to take the detach out that it had not; a concave one ran to 6e29 and was to go on."""
    a = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    report = igt.Report()
    igt.argmin(lambda w: (a * w).sum(), torch.zeros(3, dtype=DOUBLE), on_failure="return", report=report)
    assert report.forward.status is ig.Status.MAX_ITERS
    igt.argmin(lambda w: a * w.sum() - w @ w, torch.zeros(3, dtype=DOUBLE), on_failure="return", report=report)
    assert report.forward.status is ig.Status.DIVERGED
    assert "no minimum" in report.forward.message


@pytest.mark.parametrize("z0", [0.0, 1.0])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_map_that_writes_into_its_state_is_told_so(z0, wanted):
    """With gradients wanted torch's own words came through, of a leaf that the user has never seen."""

    def f(z):
        z.mul_(0.5)
        return z + 1

    with torch.set_grad_enabled(wanted), pytest.raises(ig.OperatorError, match="f changed its state in place"):
        igt.fixed_point(f, torch.full((3,), z0))


def test_a_map_that_writes_into_a_parameter_gets_torchs_own_words():
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        igt.fixed_point(lambda z: 0.5 * z + weight.mul_(0.5), torch.zeros(3))


def test_rbp_speaks_of_itself():
    """Its warnings named implicit_gradient, and a forward solver that it does not have."""
    x = torch.ones(1, requires_grad=True)
    with pytest.warns(
        ig.ConvergenceWarning, match=r"^rbp, forward: the state after 2 updates .* FORWARD_NOT_CONVERGED"
    ):
        igt.rbp(lambda z: torch.tanh(0.9 * z + x), torch.zeros(1), steps=2, truncate=3)


@pytest.mark.parametrize("term", ["lambda_min", "lambda_min_penalty", "jacobian_norm_penalty", "gershgorin_penalty"])
def test_a_penalty_with_another_mask_than_the_forward_pass_warns(term):
    """The Jacobian at another mask is another map's: 135 % off in one gradient, without a word."""
    torch.manual_seed(0)
    W, x, dropout = 0.3 * torch.randn(6, 6, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE), torch.nn.Dropout(0.5)
    f = lambda z: torch.tanh(W @ dropout(z) + x)
    settings = {"margin": 1.0} if term == "lambda_min_penalty" else {}
    rng = torch.get_rng_state()
    z = igt.fixed_point(f, torch.zeros(6, dtype=DOUBLE))
    with pytest.warns(ig.ConvergenceWarning, match=r"torch\.set_rng_state"):
        getattr(igt, term)(f, z, **settings)
    torch.set_rng_state(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(igt, term)(f, z, **settings)


def test_auto_gets_along_without_a_second_derivative():
    """Fused attention on a CPU has none; the fallback to LSMR took the training run with it."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 6, 64, requires_grad=True)  # more unknowns than Dense takes

    def f(z, x):
        attention = torch.nn.functional.scaled_dot_product_attention(z, z, z)
        return z + attention - z.mean(2, keepdim=True) + 0 * x  # I - J is singular

    report = igt.Report()
    z = igt.fixed_point(f, torch.ones(1, 1, 6, 64), x, on_failure="return", report=report)
    (z * torch.randn(1, 1, 6, 64)).sum().backward()
    assert not report.backward.is_good
    J = igt.vjp_operator(lambda z: torch.nn.functional.scaled_dot_product_attention(z, z, z), x)
    with pytest.raises(ig.MissingProductError, match=r"sdpa_kernel\(SDPBackend\.MATH\)"):
        J.matvec(torch.randn(384))


def test_under_autocast_the_tolerances_are_those_of_the_lower_precision():
    """The state's own were asked for in vain: 501 calls, two warnings."""
    torch.manual_seed(0)
    layer, x, report = torch.nn.Linear(16, 16), torch.randn(8, 16), igt.Report()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = igt.fixed_point(
            lambda z, x: torch.tanh(0.5 * layer(z) + x), torch.zeros(8, 16), x, batch_ndim=1, report=report
        )
        tight = igt.Report()
        igt.fixed_point(
            lambda z, x: torch.tanh(0.5 * layer(z) + x),
            torch.zeros(8, 16),
            x,
            solver=igt.Anderson(rtol=1e-6, max_iters=20),
            on_failure="return",
            report=tight,
        )
    z.sum().backward()
    assert report.status is ig.Status.CONVERGED
    assert report.forward.num_matvecs < 10
    assert tight.forward.bound < 1e-5 * tight.forward.rhs_norm  # a tolerance that is named is kept


def test_a_nan_in_the_forward_pass_is_not_called_a_map_that_changed():
    x = torch.full((3,), float("nan"), requires_grad=True)
    with pytest.warns(ig.ConvergenceWarning, match="NONFINITE_OPERATOR"):
        z = igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(3), x)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        z.sum().backward()
    assert not any("no longer has the fixed point" in str(w.message) for w in told)


def test_a_warning_of_the_backward_pass_names_the_users_line():
    x = torch.ones(20, dtype=DOUBLE, requires_grad=True)
    W = torch.diag(torch.full((19,), 0.9, dtype=DOUBLE), 1)
    z = igt.fixed_point(lambda z, x: torch.tanh(W @ z + x), torch.zeros_like(x), x, adjoint=ig.GMRES(max_iters=1))
    with pytest.warns(ig.ConvergenceWarning) as told:
        z.sum().backward()
    assert told[0].filename == __file__
