"""Russian roulette: its mean is the solution, its variance is the one that the terms say, and its books are honest."""

import copy
import pickle

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import SettingError, SettingTypeError, Status
from implicitgrad.testing import make_problem

DRAWS = 10_000


def roulette(seed=0, **settings):
    return ig.RussianRoulette(rng=np.random.default_rng(seed), **settings)


def draw(problem, count=DRAWS, seed=0, **settings):
    """Solve ``count`` copies of one system: as many draws."""
    return roulette(seed, **settings).solve(problem.operator, np.tile(problem.rhs, (count, 1)))


@pytest.mark.parametrize("kind", ["contraction", "normal", "symmetric contraction", "non-normal", "jordan"])
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@pytest.mark.parametrize(("q", "terms"), [(0.9, 0), (0.95, 5), (0.7, 12)])
def test_the_mean_of_many_draws_is_the_solution(kind, dtype, q, terms):
    """Within four standard errors in every entry, where rho(J)^2 < continuation."""
    problem = make_problem(kind, 4, 3, dtype)
    assert np.abs(np.linalg.eigvals(np.eye(4) - problem.dense)).max() ** 2 < q
    draws = draw(problem, continuation=q, min_iters=terms)
    off = draws.x.astype(problem.dense.dtype) - problem.x_exact  # first: a mean of 10,000 rounds by more than eps
    rounding = 100 * problem.eps * np.linalg.norm(problem.x_exact)
    for part in (off.real, off.imag):
        assert (np.abs(part.mean(axis=0)) <= 4 * part.std(axis=0) / DRAWS**0.5 + rounding).all()
    assert all(status is Status.SAMPLED for status in draws.status[:100])


def test_a_plain_truncation_of_the_same_length_would_be_seen_to_be_biased():
    """The other side: the weights are what makes it unbiased."""
    problem = make_problem("symmetric contraction", 4, 3)
    draws = draw(problem, continuation=0.7, min_iters=0)
    powers = [problem.rhs]
    for _ in range(int(draws.num_iters.max())):
        powers.append(powers[-1] - problem.dense @ powers[-1])
    plain = np.cumsum(powers, axis=0)[draws.num_iters]
    error = np.abs(plain.mean(axis=0) - problem.x_exact)
    assert (error > 10 * plain.std(axis=0) / DRAWS**0.5).any()


@pytest.mark.parametrize(("mu", "q"), [(0.5, 0.6), (-0.5, 0.6), (0.3, 0.9), (-0.7, 0.8)])
def test_the_variance_of_one_eigenvalue_is_the_closed_form(mu, q):
    """E x^2 = (1 + mu) / (1 - mu) / (1 - mu^2 / q), finite where mu^2 < q."""
    J = ig.DenseOperator(np.array([[mu]]))
    x = ig.adjoint_solve(J, np.ones((100_000, 1)), solver=roulette(continuation=q, min_iters=0)).x
    expected = (1 + mu) / (1 - mu) / (1 - mu**2 / q) - 1 / (1 - mu) ** 2
    assert x.var() == pytest.approx(expected, rel=0.08)


def test_the_variance_falls_with_the_continuation_and_with_the_terms_kept():
    problem = make_problem("normal", 5, 1)

    def spread(q, terms):
        return float(draw(problem, continuation=q, min_iters=terms).x.var(axis=0).sum())

    by_probability = [spread(q, 1) for q in (0.85, 0.9, 0.97)]
    by_terms = [spread(0.9, terms) for terms in (0, 3, 8)]
    assert by_probability[0] > 1.2 * by_probability[1] > 1.44 * by_probability[2] > 0
    assert by_terms[0] > 1.2 * by_terms[1] > 1.44 * by_terms[2] > 0


@pytest.mark.parametrize(("q", "terms"), [(0.5, 0), (0.9, 3)])
def test_the_cost_is_the_one_stated(q, terms):
    """m + q / (1 - q) products in the mean, P(T >= t) = q^(t - m)."""
    draws = draw(make_problem("contraction", 3, 1), continuation=q, min_iters=terms)
    assert draws.num_iters.min() == terms
    assert draws.num_iters.mean() == pytest.approx(terms + q / (1 - q), rel=0.03)
    assert (draws.num_iters >= terms + 2).mean() == pytest.approx(q**2, rel=0.03)
    assert draws.num_matvecs == draws.num_iters.max()


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
def test_counts_are_honest_and_each_system_is_its_own_weighted_sum(batch, final):
    problem = make_problem("contraction", 6, 4)
    calls = 0

    def product(u):
        nonlocal calls
        calls += 1
        return u @ problem.matrix.T

    rhs = np.broadcast_to(problem.rhs, (*batch, 6)).copy()
    solver = roulette(5, continuation=0.6, min_iters=2, final_residual=final)
    solution = solver.solve(ig.identity_minus(ig.VJPOperator(product, 6, jvp=product)), rhs)
    assert solution.num_matvecs == calls == np.max(solution.num_iters) + final
    assert solution.num_rmatvecs == 0
    assert (solution.residual_norm is not None) is final
    for index in np.ndindex(*batch):
        steps = int(np.asarray(solution.num_iters)[index])
        weights = [0.6 ** -max(0, t - 2) for t in range(steps + 1)]
        power, expected = problem.rhs, np.zeros(6)
        for weight in weights:
            expected, power = expected + weight * power, problem.matrix @ power
        assert np.allclose(solution.x[index], expected, rtol=1e-13, atol=1e-14)
        assert not np.any(np.asarray(solution.bias))
        if final:
            true = np.linalg.norm(problem.rhs - solution.x[index] + problem.matrix @ solution.x[index])
            assert np.asarray(solution.residual_norm)[index] == pytest.approx(true, abs=1e-13)


def test_the_systems_of_a_batch_stop_on_their_own():
    draws = draw(make_problem("contraction", 3, 1), count=50, continuation=0.8)
    assert len(set(draws.num_iters.tolist())) > 5


@pytest.mark.parametrize("n", [1, 4])
def test_a_series_that_ends_within_the_kept_terms_is_exact(n):
    """Nilpotent J: nothing is left to the dice."""
    J = ig.DenseOperator(2.0 * np.eye(n, k=1))
    solution = ig.adjoint_solve(J, np.ones((30, n)), solver=roulette(min_iters=n - 1))
    exact = np.linalg.solve(np.eye(n) - 2.0 * np.eye(n, k=-1), np.ones(n))
    assert np.array_equal(solution.x, np.tile(exact, (30, 1)))


def test_an_exact_guess_leaves_nothing_to_sample():
    J = ig.DenseOperator(0.5 * np.eye(3))
    assert np.array_equal(ig.adjoint_solve(J, np.ones(3), solver=roulette(), x0=np.full(3, 2.0)).x, np.full(3, 2.0))


def test_randomness_is_the_generator_that_was_handed_in():
    problem = make_problem("contraction", 5, 1)
    again = [draw(problem, 40, seed=7) for _ in range(2)]
    assert np.array_equal(again[0].x, again[1].x)
    moving = roulette(7)
    first, second = (moving.solve(problem.operator, np.tile(problem.rhs, (40, 1))) for _ in range(2))
    assert np.array_equal(first.x, again[0].x)
    assert not np.array_equal(first.num_iters, second.num_iters)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    fresh = [ig.RussianRoulette().solve(problem.operator, np.tile(problem.rhs, (40, 1))) for _ in range(2)]
    assert not np.array_equal(fresh[0].num_iters, fresh[1].num_iters)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_scaling_by_powers_of_two_changes_no_bit(dtype):
    problem = make_problem("contraction", 6, 2, dtype)
    base = roulette(3).solve(problem.operator, problem.rhs)
    for exponent in (-60, 5, 60):
        factor = problem.rhs.dtype.type(2.0**exponent)
        assert np.array_equal(roulette(3).solve(problem.operator, problem.rhs * factor).x, base.x * factor)
    assert base.x.dtype == problem.rhs.dtype


def test_a_nan_in_one_system_leaves_the_others_alone():
    problem = make_problem("contraction", 5, 1, batch=4)
    rhs, matrix = problem.rhs.copy(), problem.matrix.copy()
    rhs[1, 2], rhs[3] = np.nan, 0
    matrix[0, 1, 1] = np.nan
    solution = roulette(2, min_iters=8).solve(ig.identity_minus(ig.DenseOperator(matrix)), rhs)
    names = [status.name for status in solution.status]
    assert names == ["NONFINITE_OPERATOR", "NONFINITE_INPUT", "SAMPLED", "CONVERGED"]
    assert np.isfinite(solution.x).all()
    assert np.isnan(solution.bias[:2]).all()
    assert not solution.bias[2:].any()
    exact = np.linalg.solve(np.eye(5) - problem.matrix[2], rhs[2])
    assert np.linalg.norm(solution.x[2] - exact) < np.linalg.norm(exact)


def test_a_series_that_does_not_converge_is_not_called_unbiased():
    """The other side: rho(J) >= 1, system by system, each at its own end."""
    J = ig.DenseOperator(np.stack([0.5 * np.eye(2), -1.5 * np.eye(2), 0.9 * np.eye(2)]))
    solution = ig.adjoint_solve(J, np.ones((3, 2)), solver=roulette(min_iters=2))
    assert solution.bias.tolist() == [0.0, np.inf, 0.0]
    assert len(set(solution.num_iters.tolist())) == 3
    assert "bias unbounded" in solution.message
    alone = ig.adjoint_solve(ig.DenseOperator(-1.5 * np.eye(2)), np.ones(2), solver=roulette())
    assert alone.bias == np.inf
    assert "bias unbounded" in alone.message


def test_sampled_is_what_was_asked_for_and_nothing_more():
    J = ig.DenseOperator(0.5 * np.eye(2))
    solution = ig.adjoint_solve(J, np.ones(2), solver=roulette())  # does not raise
    assert solution.status is Status.SAMPLED
    assert solution.is_good
    assert not solution.converged
    assert "unbiased" in solution.message


def test_tensors_and_half_precision():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.tensor([[0.5, 0.25], [0.0, 0.25]], dtype=dtype)
        J = ig.VJPOperator(lambda u, matrix=matrix: u @ matrix, 2)
        x = ig.adjoint_solve(J, torch.ones(DRAWS, 2, dtype=dtype), solver=roulette()).x
        assert x.dtype == dtype
        exact = np.linalg.solve(np.eye(2) - matrix.double().numpy().T, np.ones(2))
        error = np.abs(x.double().mean(dim=0).numpy() - exact)
        assert (error < 4 * x.double().std(dim=0).numpy() / DRAWS**0.5 + torch.finfo(dtype).eps).all()


def test_the_gradient_of_a_layer_is_unbiased():
    """Through fixed_point: the mean over a batch of copies is the exact gradient, one copy is not."""
    torch = pytest.importorskip("torch")
    igt = pytest.importorskip("implicitgrad.torch")
    W = torch.tensor([[0.4, -0.3], [0.5, 0.6]], dtype=torch.float64)

    def gradients(adjoint):
        x = torch.tensor([0.3, -0.2], dtype=torch.float64).repeat(5000, 1).requires_grad_()
        report = igt.Report()
        z = igt.fixed_point(
            lambda z, x: torch.tanh(z @ W.T + x), torch.zeros_like(x), x, adjoint=adjoint, batch_ndim=1, report=report
        )
        z.sum().backward()
        return x.grad.numpy(), report

    exact, _ = gradients(ig.GMRES(rtol=1e-12))
    drawn, report = gradients(roulette(1, min_iters=1))
    assert report.status is Status.SAMPLED
    error, standard_error = np.abs(drawn.mean(axis=0) - exact[0]), drawn.std(axis=0) / 5000**0.5
    assert (error < 4 * standard_error).all()
    assert (standard_error > 0).all()


def test_a_solver_is_compared_copied_and_pickled_with_its_generator():
    solver = roulette(1)
    assert solver == ig.RussianRoulette(rng=solver.rng)
    assert hash(solver) == hash(ig.RussianRoulette(rng=solver.rng))
    A, b = ig.DenseOperator(np.eye(3) / 2), np.ones((20, 3))
    for twin in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert np.array_equal(twin.solve(A, b).num_iters, roulette(1).solve(A, b).num_iters)


MISTAKES = [
    ({"continuation": 0}, SettingError, r"continuation=0, expected a number in \(0, 1\).*Neumann\(max_iters=K"),
    ({"continuation": 1.0}, SettingError, r"would never stop, which is Neumann\(\)"),
    ({"continuation": float("nan")}, SettingError, r"continuation=nan"),
    ({"continuation": "0.5"}, SettingTypeError, r"continuation='0.5'"),
    ({"min_iters": -1}, SettingError, r"min_iters=-1, expected an integer >= 0\."),
    ({"min_iters": None}, SettingTypeError, r"min_iters=None, expected an integer >= 0\."),
    ({"rng": 3}, SettingTypeError, r"rng of type int, expected a numpy.random.Generator.*default_rng"),
    ({"rtol": 1e-3}, SettingTypeError, r"'rtol', expected one of continuation, min_iters, final_residual, rng"),
]


@pytest.mark.parametrize(("settings", "error", "text"), MISTAKES, ids=[str(m[0]) for m in MISTAKES])
def test_a_wrong_setting_says_what_was_expected(settings, error, text):
    with pytest.raises(error, match=text):
        ig.RussianRoulette(**settings)
