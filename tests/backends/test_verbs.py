"""Every verb of every backend against NumPy in double precision, for one system and for a batch."""

import numpy as np
import pytest

from implicitgrad.backends import Basis, backend_of, backend_of_dtype
from implicitgrad.errors import BackendError
from implicitgrad.testing import assert_close, eps_of

DTYPES = ["float32", "float64", "complex64", "complex128"]


def to_numpy_array(x):
    return x


def to_tensor(x):
    return pytest.importorskip("torch").from_numpy(np.ascontiguousarray(x))


def to_strict(x):
    return pytest.importorskip("array_api_strict").asarray(x)


def to_sharded(x):
    """Everything on this process; several are the business of tests/distributed."""
    tensor = to_tensor(x)
    from implicitgrad.backends.sharded import Sharded

    return Sharded(tensor)


@pytest.fixture(
    params=[to_numpy_array, to_tensor, to_strict, to_sharded], ids=["numpy", "torch", "array_api_strict", "sharded"]
)
def convert(request):
    return request.param


@pytest.fixture(params=[(6,), (3, 6), (2, 3, 6)], ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def draw(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if "complex" in dtype else 0)
    return values.astype(dtype)


def wide(x):
    return x.astype(np.result_type(x, np.float64))


def test_reductions_are_those_of_numpy(convert, shape, dtype):
    x, y = draw(shape, dtype, 0), draw(shape, dtype, 1)
    X, Y = convert(x), convert(y)
    backend = backend_of(X)
    single = len(shape) == 1
    inner = backend.inner(X, Y)
    assert isinstance(inner, float | complex) if single else tuple(inner.shape) == (*shape[:-1], 1)
    got = np.asarray(inner) if single else backend.to_numpy(inner)[..., 0]
    expected = (wide(x).conj() * wide(y)).sum(axis=-1)
    size = np.linalg.norm(wide(x), axis=-1) * np.linalg.norm(wide(y), axis=-1)
    assert_close(got[..., None], expected[..., None], eps=eps_of(dtype), scale=size[..., None])
    norms = np.linalg.norm(wide(x), axis=-1)
    host = np.asarray(backend.to_host(backend.norm(X)))
    assert host.shape == shape[:-1]
    assert_close(host[..., None], norms[..., None], eps=eps_of(dtype))
    squares = np.asarray(backend.to_host(backend.real(backend.squared_norm(X))))
    assert_close(squares[..., None], norms[..., None] ** 2, eps=eps_of(dtype))
    assert_close(np.asarray(backend.max_abs(X))[..., None], np.abs(wide(x)).max(-1)[..., None], eps=eps_of(dtype))


@pytest.mark.parametrize("factor", [1e-25, 1e-30, 1e25])
def test_norms_in_single_precision_neither_vanish_nor_overflow(convert, shape, factor):
    """Squares of 1e-25 are below float32's range, and those of 1e25 above it."""
    if convert is to_strict:
        pytest.skip("the system is scaled to 1 before a norm is taken; this backend relies on that")
    x = (draw(shape, "float32", 0) * np.float32(factor)).astype(np.float32)
    X = convert(x)
    backend = backend_of(X)
    norms = np.asarray(backend.to_host(backend.norm(X)))
    assert_close(norms[..., None], np.linalg.norm(wide(x), axis=-1)[..., None], eps=eps_of("float32"))


def test_vectors_keep_their_dtype(convert, shape, dtype):
    """Scalars may be wider than the vectors that they multiply."""
    x, y = draw(shape, dtype, 0), draw(shape, dtype, 1)
    x[..., 0] = 0
    if len(shape) > 1:
        x[0] = 0  # a zero system sends norms through the double-precision path
    X, Y = convert(x), convert(y)
    backend = backend_of(X)
    alpha = backend.norm(X)
    norms = np.linalg.norm(wide(x), axis=-1)[..., None]
    for got, expected in [
        (backend.axpy(alpha, X, Y), norms * x + y),
        (backend.times(alpha, X), norms * x),
        (backend.times(backend.quotient(1.0, alpha), X), x / np.where(norms == 0, 1, norms)),
        (backend.axpy(backend.from_host(np.asarray(norms[..., 0]) if x.ndim > 1 else float(norms[0]), X), X, Y),
         norms * x + y),
    ]:  # fmt: skip
        assert got.dtype == X.dtype
        assert_close(backend.to_numpy(got), expected, eps=eps_of(dtype), scale=np.abs(norms * x) + np.abs(y))


def test_powers_of_two_are_exact_over_the_whole_range(convert, shape, dtype):
    x = draw(shape, dtype, 0)
    X = convert(x)
    backend = backend_of(X)
    for exponent in (-100, -1, 0, 7, 100):
        power = exponent if len(shape) == 1 else np.full(shape[:-1], exponent)
        got = backend.to_numpy(backend.times_power_of_two(X, power))
        assert got.dtype == x.dtype
        assert np.array_equal(got, (wide(x) * 2.0**exponent).astype(dtype))
        assert np.array_equal(backend.to_numpy(backend.times_power_of_two(convert(got), -power)), x)


def test_the_smallest_number_is_lifted_to_one(convert):
    """2**149 is no float32, 2**1074 no float64."""
    for dtype, exponent in (("float32", -149), ("float64", -1074)):
        x = convert(np.ldexp(np.ones(2, dtype), exponent))
        backend = backend_of(x)
        assert np.array_equal(backend.to_numpy(backend.times_power_of_two(x, -exponent)), np.ones(2))


def test_quotients_by_zero_are_zero(convert):
    x = convert(np.array([[3.0, 4.0], [0.0, 0.0]]))
    backend = backend_of(x)
    norms = backend.norm(x)
    assert np.array_equal(backend.to_host(backend.quotient(norms, norms)), [1.0, 0.0])
    assert np.array_equal(backend.to_host(backend.quotient(1.0, norms)), [0.2, 0.0])
    assert backend.quotient(1.0, 0.0) == 0.0


def test_selection_is_bit_for_bit_and_keeps_nan_out(convert):
    x, y = convert(np.array([[1.0, np.nan], [3.0, 4.0]])), convert(np.array([[5.0, 6.0], [7.0, np.nan]]))
    backend = backend_of(x)
    got = backend.to_numpy(backend.select(np.array([False, True]), x, y))
    assert np.array_equal(got, [[5.0, 6.0], [3.0, 4.0]])
    one = backend.select(np.asarray(True), convert(np.array([1.0, 2.0])), convert(np.array([np.nan, 0.0])))
    assert np.array_equal(backend.to_numpy(one), [1.0, 2.0])


def test_rows_are_projected_out(convert, shape, dtype):
    x = draw(shape, dtype, 0)
    X = convert(x)
    backend = backend_of(X)
    basis = Basis(backend, X, most=5)
    q = np.linalg.qr(np.moveaxis(draw((5, *shape), dtype, 3).astype(complex), 0, -1))[0]
    rows = [(q[..., i] if "complex" in dtype else q[..., i].real).astype(dtype) for i in range(5)]
    for row in rows:
        basis.append(convert(np.ascontiguousarray(row)))
    rest, coefficients = basis.project_out(X)
    coefficients = np.asarray(coefficients)  # a list for one system
    expected = np.stack([(wide(r).conj() * wide(x)).sum(-1) for r in rows], axis=-1)
    assert_close(coefficients, expected, eps=eps_of(dtype), scale=np.abs(expected) + np.linalg.norm(x))
    combined = sum(expected[..., i : i + 1] * wide(rows[i]) for i in range(5))
    assert_close(backend.to_numpy(rest), wide(x) - combined, eps=eps_of(dtype), scale=np.abs(wide(x)))
    back = basis.combine(coefficients, rest)
    assert back.dtype == X.dtype
    assert_close(backend.to_numpy(back), wide(x), eps=eps_of(dtype), condition=4)


def test_rows_are_mixed(convert, shape, dtype):
    """sum_i c_ji q_i, for rows and for a basis of several blocks, which is then one block of its own."""
    rows = draw((*shape[:-1], 40, shape[-1]), dtype, 5)
    weights = draw((*shape[:-1], 40, 3), dtype, 6)
    X = convert(rows[..., 0, :].copy())
    backend = backend_of(X)
    expected = np.matmul(np.swapaxes(wide(weights), -1, -2), wide(rows))
    size = (
        np.linalg.norm(wide(weights), axis=-2)[..., None] * np.linalg.norm(wide(rows), axis=(-2, -1))[..., None, None]
    )
    mixed = backend.mix_rows(backend.coefficients(np.swapaxes(weights, -1, -2).copy(), X), convert(rows))
    assert mixed.dtype == X.dtype
    assert_close(backend.to_numpy(mixed), expected, eps=eps_of(dtype), scale=size + 0 * np.abs(expected))
    basis = Basis(backend, X, most=64)
    for i in range(40):
        basis.append(convert(rows[..., i, :].copy()))
    turned = basis.recombined(weights)
    assert (turned.count, len(turned._blocks), basis.count) == (3, 1, 40)
    assert_close(turned.to_numpy(), expected, eps=eps_of(dtype), scale=size + 0 * np.abs(expected))
    turned.append(X)
    assert turned.count == 4
    assert np.array_equal(turned.to_numpy()[..., 3, :], backend.to_numpy(X))


def test_a_basis_grows_in_blocks_and_never_beyond_what_was_asked_for():
    backend = backend_of(np.ones(3))
    basis = Basis(backend, np.ones(3), most=100)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 3))
    for row in rows:
        basis.append(row)
    assert [block.shape[0] for block in basis._blocks] == [16, 16, 32, 36]
    x = rng.standard_normal(3)
    _, coefficients = basis.project_out(x)
    assert_close(np.asarray(coefficients), rows @ x, scale=np.abs(rows @ x) + 1)
    assert_close(basis.combine(rng.standard_normal(0), x), x)
    assert_close(basis.combine(np.ones(70), x), x + rows[:70].sum(0), condition=10)


def test_matrices_and_adjoints(convert, dtype):
    if convert is to_sharded:
        pytest.skip("a matrix is not split, and refused in words: tests/distributed")
    matrix, stack = draw((4, 6), dtype, 0), draw((3, 4, 6), dtype, 1)
    x = draw((3, 6), dtype, 2)
    backend = backend_of(convert(matrix))
    assert_close(backend.to_numpy(backend.apply_matrix(convert(matrix), convert(x))), wide(x) @ wide(matrix).T)
    expected = np.einsum("bij,bj->bi", wide(stack), wide(x))
    assert_close(backend.to_numpy(backend.apply_matrix(convert(stack), convert(x))), expected, condition=4)
    got = backend.to_numpy(backend.conjugate_transpose(convert(matrix)))
    assert np.array_equal(got, matrix.conj().T)


def test_random_numbers_are_the_same_for_the_same_seed(convert, dtype):
    x = convert(np.zeros((2, 50), dtype))
    backend = backend_of(x)
    first, second, other = (backend.random_like(x, seed) for seed in (1, 1, 2))
    assert first.dtype == x.dtype
    assert backend.equal(first, second)
    assert not backend.equal(first, other)


def test_a_foreign_function_gets_no_way_to_harm(convert):
    if convert is to_sharded:
        pytest.skip("what a function does wrong is told at the next reduction, to all ranks: tests/distributed")
    x = convert(np.array([1.0, 2.0]))
    backend = backend_of(x)
    kept = backend.copy(x)
    result, intact = backend.call_foreign(lambda u: 2.0 * u, x)
    assert intact
    assert np.array_equal(backend.to_numpy(result), [2.0, 4.0])

    def spoil(u):
        u += 1.0
        return 2.0 * u

    _, intact = backend.call_foreign(spoil, x)
    assert not intact
    if convert is not to_tensor:  # a tensor is lent, and its version counter tells on the culprit
        assert backend.equal(x, kept)


def test_what_is_no_array_is_refused():
    for wrong in ([1.0], (1.0,), 1.0, None, "x", {"a": 1}, np.float64(1.0)):
        with pytest.raises(BackendError, match="expected an array of NumPy, torch or another"):
            backend_of(wrong)
    assert backend_of(np.ones(2)).name == "numpy"


class Sub(np.ndarray):
    pass


def test_subclasses_and_dtypes_find_their_backend():
    assert backend_of(np.ones(2).view(Sub)).name == "numpy"
    assert backend_of_dtype(np.float32).name == "numpy"
    assert backend_of_dtype(None).name == "numpy"
    torch = pytest.importorskip("torch")
    assert backend_of_dtype(torch.float32).name == "torch"
    assert backend_of(torch.nn.Parameter(torch.ones(2))).name == "torch"


def test_products_with_several_blocks_of_rows_and_the_numbers_that_belong_to_them(convert, shape, dtype):
    """block_products is row_products of each; coefficients bring host numbers back to where the rows are."""
    x, vectors = draw(shape, dtype, 0), [draw(shape, dtype, seed) for seed in range(1, 6)]
    X = convert(x)
    backend, blocks = backend_of(X), []
    for part in (vectors[:2], vectors[2:]):
        rows = backend.empty_rows(len(part), X)
        for index, vector in enumerate(part):
            rows = backend.set_row(rows, index, convert(vector))
        blocks.append(rows)
    hosted = [np.asarray(backend.to_host_list(products)) for products in backend.block_products(blocks, X)]
    expected = np.stack([(wide(v).conj() * wide(x)).sum(axis=-1) for v in vectors], axis=-1)
    sizes = np.stack([np.linalg.norm(wide(v), axis=-1) * np.linalg.norm(wide(x), axis=-1) for v in vectors], axis=-1)
    assert_close(np.concatenate(hosted, axis=-1), expected, eps=eps_of(dtype), scale=sizes)
    numbers = draw((*shape[:-1], 2), dtype, 9)
    left = backend.subtract_rows(X, backend.coefficients(numbers, X), blocks[0])
    wanted = wide(x) - sum(wide(numbers)[..., i : i + 1] * wide(vectors[i]) for i in range(2))
    assert_close(backend.to_numpy(left), wanted, eps=eps_of(dtype), condition=10)
