"""Values and vectors of the extreme ends against dense NumPy, for every kind of matrix, dtype, library and batch."""

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad import Status
from implicitgrad.backends import backend_of
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Space
from implicitgrad.testing import KINDS, assert_close, counted

from .conftest import SYMMETRIC, make_case

DTYPES = ("float64", "complex128", "float32", "complex64")
SINGULAR = {"smallest": ig.smallest_singular_value, "largest": ig.operator_norm}
SYMMETRIC_ENDS = {"smallest": ig.smallest_eigenvalue, "largest": ig.largest_eigenvalue}


def check_value(case, result, true, rtol):
    assert result.converged, f"{case.kind}: {result.message}"
    assert abs(result.value - true) <= rtol * abs(true) + case.rounding, f"{case.kind}: {result.value} for {true}"


@pytest.mark.parametrize("memory", [None, 8])
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_singular_values_are_those_of_the_dense_svd(cases, end, memory):
    """CONVERGED: within rtol of a singular value; with a whole basis, of the extreme one."""
    for case in cases(4, dtypes=DTYPES):
        result = SINGULAR[end](case.operator, memory=memory, on_failure="return")
        true = case.singular_values
        rtol = case.eps**0.4
        if memory is None:
            check_value(case, result, true[-1 if end == "smallest" else 0], rtol)
        elif result.converged:
            assert np.abs(true - result.value).min() <= rtol * result.value + case.rounding
        u, v = result.left_vector, result.vector
        assert_close(np.array([np.linalg.norm(u), np.linalg.norm(v)]), np.ones(2), eps=case.eps)
        assert np.linalg.norm(case.dense @ v - result.value * u) <= result.residual_norm * 1.01 + case.rounding
        assert np.linalg.norm(case.dense.conj().T @ u - result.value * v) <= result.residual_norm * 1.01 + case.rounding


@pytest.mark.parametrize("memory", [None, 8])
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_eigenvalues_are_those_of_the_dense_decomposition(cases, end, memory):
    for case in cases(4, kinds=SYMMETRIC, dtypes=DTYPES):
        result = SYMMETRIC_ENDS[end](case.operator, memory=memory, on_failure="return")
        true, rtol = case.eigenvalues, case.eps**0.4
        if memory is None:
            check_value(case, result, true[0 if end == "smallest" else -1], rtol)
        elif result.converged:
            assert np.abs(true - result.value).min() <= rtol * abs(result.value) + case.rounding
        rest = np.linalg.norm(case.dense @ result.vector - result.value * result.vector)
        assert abs(rest - result.residual_norm) <= 0.01 * rest + case.rounding


@pytest.mark.parametrize("size", [200])
@pytest.mark.parametrize("ratio", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("spread", ["uniform", "geometric"])
def test_sigma_min_is_right_to_1e_minus_6_down_to_1e_minus_8_of_the_norm(size, ratio, spread):
    """Forming ``A^H A`` would leave ``eps norm^2``, which at 1e-8 is all of ``sigma_min^2``."""
    rng = np.random.default_rng(size)
    values = rng.uniform(0.3, 1.0, size) if spread == "uniform" else np.geomspace(ratio, 1.0, size)
    values[0], values[-1] = ratio, 1.0
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    matrix = (left * values) @ right
    result = ig.smallest_singular_value(ig.DenseOperator(matrix))
    assert result.converged
    assert abs(result.value - ratio) <= 1e-6 * ratio


@pytest.mark.parametrize(("memory", "excess"), [(5, 1.25), (12, 1.1)])
@pytest.mark.parametrize("criterion", ["residual", "gap"])
def test_a_restarted_search_finds_what_an_unrestarted_one_does(criterion, memory, excess):
    """Locally optimal restarts cost a tenth of the steps with twelve vectors, a quarter with five."""
    values = np.sqrt(np.concatenate([[0.05], np.linspace(0.06, 4.0, 999)]))
    A = ig.VJPOperator(lambda u: values * u, 1000, jvp=lambda v: values * v)
    whole = ig.smallest_singular_value(A, memory=400, criterion=criterion, rtol=1e-6)
    small = ig.smallest_singular_value(A, memory=memory, criterion=criterion, rtol=1e-6)
    for result in (whole, small):
        assert abs(result.value - values[0]) <= 1e-6 * values[0]
    assert small.num_iters <= excess * whole.num_iters
    assert whole.num_iters < 400


def test_thick_restarts_of_lanczos_lose_few_steps():
    values = np.concatenate([[0.05], np.linspace(0.06, 4.0, 999)])
    A = ig.VJPOperator(lambda u: values * u, 1000, symmetric=True)
    whole, small = (ig.smallest_eigenvalue(A, memory=m, rtol=1e-6) for m in (400, 48))
    assert abs(small.value - 0.05) <= 1e-6 * 0.05
    assert small.num_iters <= 1.25 * whole.num_iters


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (30, 1), (1, 30)])
def test_rectangular_operators_have_min_m_n_singular_values(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    true = np.linalg.svd(matrix, compute_uv=False)
    for result, expected in (
        (ig.smallest_singular_value(ig.DenseOperator(matrix)), true[-1]),
        (ig.operator_norm(ig.DenseOperator(matrix)), true[0]),
    ):
        assert_close(np.array([result.value]), np.array([expected]), condition=10)
        assert (result.vector.shape, result.left_vector.shape) == (shape[1:], shape[:1])
        assert_close(matrix @ result.vector, result.value * result.left_vector, condition=10)


@pytest.mark.parametrize("name", ["smallest_singular_value", "operator_norm", "smallest_eigenvalue", "spectral_radius"])
def test_scaling_the_operator_by_a_power_of_two_scales_every_number_bit_by_bit(name):
    extreme = getattr(ig, name)
    for kind in ("symmetric contraction", "positive definite", "indefinite"):
        matrix = KINDS[kind].make(np.random.default_rng(3), 20, False)
        base = extreme(ig.DenseOperator(matrix, symmetric=True), memory=10, max_iters=60, on_failure="return")
        for power in (-200, -3, 1, 200):
            other = extreme(
                ig.DenseOperator(np.ldexp(matrix, power), symmetric=True), memory=10, max_iters=60, on_failure="return"
            )
            assert (other.status, other.num_iters) == (base.status, base.num_iters)
            assert np.array_equal(other.vector, base.vector)
            for field in ("value", "upper", "lower", "residual_norm", "gap"):
                assert getattr(other, field) == np.ldexp(getattr(base, field), power), field


def test_the_scale_of_a_start_changes_nothing():
    matrix = KINDS["positive definite"].make(np.random.default_rng(3), 20, False)
    start = np.random.default_rng(4).standard_normal(20)
    results = [ig.smallest_eigenvalue(ig.DenseOperator(matrix), start=np.ldexp(start, k)) for k in (0, -900, 900)]
    assert len({(r.value, r.num_iters, r.upper) for r in results}) == 1


@pytest.mark.parametrize("name", ["smallest_singular_value", "operator_norm", "smallest_eigenvalue", "spectral_radius"])
@pytest.mark.parametrize("memory", [None, 8])
def test_counts_are_those_of_an_instrumented_operator(cases, name, memory):
    extreme = getattr(ig, name)
    kinds = SYMMETRIC if "eigen" in name else KINDS
    for case in cases(2, kinds=kinds):
        watched, calls = counted(case.operator)
        result = extreme(watched, memory=memory, on_failure="return")
        assert (result.num_matvecs, result.num_rmatvecs) == calls()
    watched, calls = counted(ig.DenseOperator(np.diag([1.0, 2.0, 3.0, 4.0])))
    result = extreme(watched, start=np.eye(4)[1])  # a second search, from a random start
    assert (result.num_matvecs, result.num_rmatvecs) == calls()


def batch_of(kinds, dtype):
    rng = np.random.default_rng(0)
    stack = [np.asarray(KINDS[kind].make(rng, 15, "complex" in dtype)) for kind in kinds]
    return np.stack(stack).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["smallest_singular_value", "operator_norm", "smallest_eigenvalue", "spectral_radius"])
def test_a_batch_is_what_its_systems_are_alone(name, dtype):
    """Easy and hard systems together: each ends when it ends alone, whatever its neighbours do."""
    extreme = getattr(ig, name)
    stack = batch_of(("J = 0", "symmetric contraction", "indefinite", "J = I", "positive definite"), dtype)
    start = backend_of(stack).random_like(np.zeros((5, 15), dtype), 7)
    together = extreme(ig.DenseOperator(stack), start=start, on_failure="return")
    eps = float(np.finfo(dtype).eps)
    for i in range(5):
        alone = extreme(ig.DenseOperator(stack[i]), start=start[i], on_failure="return")
        assert together.status[i] is alone.status
        assert together.num_iters[i] == alone.num_iters
        assert_close(together.value[i : i + 1], np.array([alone.value]), eps=eps, scale=np.array([10.0]))
        assert together.condition[i] == alone.condition
    assert together.vector.shape == (5, 15)
    with pytest.raises(TypeError, match="batch of shape"):
        float(together)


def test_a_system_with_nan_leaves_its_neighbours_alone():
    stack = batch_of(("positive definite",) * 3, "float64")
    stack[1, 0, 0] = np.nan
    for extreme in (ig.smallest_singular_value, ig.smallest_eigenvalue, ig.spectral_radius):
        result = extreme(ig.DenseOperator(stack), on_failure="return")
        assert [s for s in result.status] == [Status.CONVERGED, Status.NONFINITE_OPERATOR, Status.CONVERGED]
        assert np.isfinite(result.value).tolist() == [True, False, True]


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [False, True])
def test_every_library_finds_the_same(library, dtype, batch):
    xp = pytest.importorskip(library)
    stack = batch_of(("positive definite", "symmetric contraction", "indefinite"), dtype)
    stack = stack if batch else stack[0]
    foreign = xp.from_numpy(stack) if library == "torch" else xp.asarray(stack)
    A = ig.DenseOperator(foreign, symmetric=True)
    for name in ("smallest_singular_value", "operator_norm", "smallest_eigenvalue", "spectral_radius"):
        result = getattr(ig, name)(A, memory=12, on_failure="return")
        expected = getattr(ig, name)(ig.DenseOperator(stack, symmetric=True))
        assert type(result.vector) is type(foreign)
        assert result.vector.dtype == foreign.dtype
        where = np.asarray(result.converged)
        got, true = (
            np.atleast_1d(result.value)[np.atleast_1d(where)],
            np.atleast_1d(expected.value)[np.atleast_1d(where)],
        )
        assert np.allclose(got, true, rtol=2 * float(np.finfo(dtype).eps) ** 0.4)
        assert where.mean() > 0.5


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_searched_in_single(name):
    torch = pytest.importorskip("torch")
    matrix = KINDS["positive definite"].make(np.random.default_rng(0), 12, False)
    half = torch.tensor(matrix, dtype=getattr(torch, name))
    exact = np.linalg.svd(half.double().numpy(), compute_uv=False)
    result = ig.smallest_singular_value(ig.DenseOperator(half), on_failure="return")
    assert result.vector.dtype == half.dtype
    assert result.lower <= exact[-1] <= result.upper


def test_vector_tol_asks_for_the_vectors():
    """A gradient of the value has the error of the vectors, which a converged value does not imply."""
    values = np.sqrt(np.concatenate([[0.05], np.linspace(0.06, 4.0, 999)]))
    A = ig.VJPOperator(lambda u: values * u, 1000, jvp=lambda v: values * v)
    angles, steps = [], []
    for tol in (None, 1e-2, 1e-4, 1e-6):
        result = ig.smallest_singular_value(A, criterion="gap", rtol=1e-3, vector_tol=tol)
        angles.append(max(np.linalg.norm(x[1:]) for x in (result.vector, result.left_vector)))
        steps.append(result.num_iters)
    assert angles[0] > 1e-2
    assert all(angle <= 2 * tol for angle, tol in zip(angles[1:], (1e-2, 1e-4, 1e-6), strict=True))
    assert steps == sorted(steps)


def test_a_start_near_the_answer_saves_steps():
    case = make_case("positive definite", 5, largest=200)
    cold = ig.smallest_eigenvalue(case.operator)
    near = cold.vector + 1e-4 * np.random.default_rng(0).standard_normal(cold.vector.shape)
    warm = ig.smallest_eigenvalue(case.operator, start=near)
    assert warm.num_iters < cold.num_iters
    assert abs(warm.value - cold.value) <= 1e-6 * abs(cold.value)


def test_a_residual_that_stands_still_is_looked_at_again_all_the_same():
    """No rate, no foreseen end: an eighth of the steps made."""
    space = Space("test", ig.DenseOperator(np.eye(50)))
    settings = Settings("test", False, None, "residual", None, None, None, 0.999, "return")
    search = Search(space, settings, "smallest")
    search._begin(np.ones(1, bool))
    assert search._patience(16, np.array([5.0])) == 2
    assert search._patience(32, np.array([5.0])) == 4
    assert search._patience(40, np.array([4.9])) == 5
    assert search._patience(48, np.array([1.1])) == 1


def test_a_torch_jacobian_of_a_batch_is_searched_sample_by_sample():
    torch = pytest.importorskip("torch")
    igt = pytest.importorskip("implicitgrad.torch")
    W = torch.tensor(np.random.default_rng(0).standard_normal((20, 20)) * 0.15)
    z = torch.zeros(3, 20, dtype=torch.float64) + torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    J = igt.vjp_operator(lambda z: torch.tanh(z @ W.T), z, batch_ndim=1)
    result = ig.smallest_singular_value(ig.identity_minus(J))
    slope = 1 - torch.tanh(z @ W.T) ** 2
    true = torch.linalg.svdvals(torch.eye(20, dtype=torch.float64) - slope[:, :, None] * W)[:, -1]
    assert np.allclose(result.value, true.numpy(), rtol=1e-9)
    assert isinstance(result.vector, torch.Tensor)
