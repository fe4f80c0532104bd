"""What a review found by constructing it: each was wrong without a word, once."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
W = torch.tensor([[0.3, 0.1], [0.0, 0.2]], dtype=DOUBLE)
G = torch.tensor([1.0, 2.0], dtype=DOUBLE)


def test_a_tensor_that_is_met_away_from_the_start_only_is_not_lost():
    """A recurrent part that is skipped at z = 0: the output had no history, and its share of the gradient was zero."""
    weight, x = W.clone().requires_grad_(), torch.tensor([1.0, 2.0], dtype=DOUBLE)
    f = lambda z: weight @ z + x if bool(z.any()) else x
    with pytest.raises(ig.SettingError, match="did not use at the start"):
        igt.fixed_point(f, torch.zeros(2, dtype=DOUBLE))
    igt.fixed_point(f, torch.ones(2, dtype=DOUBLE)).sum().backward()  # from another start it is seen
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "adjoint",
    [
        "jfb",
        ig.Neumann(max_iters=0, rtol=0, damping=0.5),
        ig.Richardson(max_iters=0, rtol=0),
        ig.Richardson(max_iters=1, rtol=0),
        ig.GMRES(max_iters=0),
    ],
    ids=str,
)
def test_a_residual_that_is_reported_is_that_of_the_gradient(adjoint):
    """Without a product u need not be g: a zero gradient was reported with the residual and the bias 0."""
    report, x = igt.Report(), torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    z = igt.fixed_point(
        lambda z, x: W @ z + 1 + x, torch.zeros(2, dtype=DOUBLE), x, adjoint=adjoint, on_failure="return", report=report
    )
    (u,) = torch.autograd.grad(z, x, G)
    true = (G - u + W.T @ u).norm().item()
    backward = report.backward
    assert backward.residual_norm is None or backward.residual_norm == pytest.approx(true)
    exact = torch.linalg.solve((torch.eye(2, dtype=DOUBLE) - W).T, G)
    if backward.bias is not None:
        error = (u - exact).norm().item()
        assert error / 3 <= backward.bias <= 3 * error


@pytest.mark.parametrize("adjoint", ["jfb", ig.Neumann(max_iters=1, rtol=0)], ids=str)
def test_a_second_derivative_through_an_approximate_tangent_is_refused(adjoint):
    """Reverse over forward and forward over forward gave the derivative of the approximation."""
    f = lambda a: igt.fixed_point(
        lambda z, a: torch.tanh(a * z + 0.3), torch.zeros((), dtype=DOUBLE), a, adjoint=adjoint, on_failure="return"
    )
    a, one = torch.tensor(0.5, dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    first = lambda a: torch.func.jvp(f, (a,), (one,))[1]
    first(a)  # the approximation itself was asked for
    for second in (torch.func.grad(first), lambda a: torch.func.jvp(first, (a,), (one,))):
        with pytest.raises(ig.SettingError, match="TRUNCATED"):
            second(a)


def test_a_graph_keeps_one_state():
    """The image of the start was held by the graph until backward."""
    x = torch.ones(4099, dtype=DOUBLE, requires_grad=True)
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) and o.numel() == 4099 for o in gc.get_objects())
    z = igt.fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(4099, dtype=DOUBLE), x)
    gc.collect()
    after = sum(isinstance(o, torch.Tensor) and o.numel() == 4099 for o in gc.get_objects())
    assert z.requires_grad
    assert after - before == 1


def test_penalties_of_half_precision_sum_in_single():
    z = torch.zeros(4096, dtype=torch.float16)
    value = igt.jacobian_norm_penalty(lambda z: 5 * z, z)
    assert value.item() == pytest.approx(25.0, rel=1e-2)
    small = torch.zeros(8, dtype=torch.float16)
    assert np.isfinite(igt.gershgorin_penalty(lambda z: 100 * z, small, bound="rows").item())


def test_a_look_leaves_the_generator_where_it_was():
    dropout, x = torch.nn.Dropout(0.5), torch.ones(6, dtype=DOUBLE)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    z = igt.fixed_point(lambda z: 0.3 * dropout(z) + x, torch.zeros(6, dtype=DOUBLE))
    torch.set_rng_state(before)
    igt.diagnose(lambda z: 0.3 * dropout(z) + x, z)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_search_that_was_cut_short_does_not_call_a_map_a_contraction():
    """operator_norm's value is a lower bound: below one after three steps, where the norm is 1.05."""
    values = 1.05 * np.linspace(0.0, 1.0, 400)
    J = ig.VJPOperator(lambda u: values * u, 400, jvp=lambda v: values * v)
    report = ig.diagnose(J, max_iters=3)
    assert report.norm < 1
    assert report.contraction is None
    assert ig.diagnose(ig.DenseOperator(np.diag([0.5, 0.2])), np.zeros(2)).contraction is True
