"""``check_operator`` names the fault, misses none of a thousand, and cries wolf at none of two thousand."""

import itertools

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.errors import OperatorError, SettingTypeError
from implicitgrad.testing import random_matrix

DTYPES = ("float32", "float64", "complex64", "complex128")


def operator(forward, backward, n, dtype, **settings):
    return ig.VJPOperator(lambda u: u @ backward.T, n, jvp=lambda v: v @ forward.T, dtype=np.dtype(dtype), **settings)


def draw(seed):
    rng = np.random.default_rng(seed)
    dtype = DTYPES[seed % 4]
    n = int(rng.integers(2, 30))
    scale = 10.0 ** rng.uniform(-6, 6)
    return rng, (scale * random_matrix(rng, n, dtype.startswith("c"))).astype(dtype), n, dtype


def mutate(rng, matrix, n, how):
    backward = matrix.conj().T.copy()
    if how == "sign":
        return -backward
    if how == "transpose":
        return matrix.copy()
    if how == "conjugate" and np.iscomplexobj(matrix):
        return backward.conj()
    # One entry off by half of the norm of the matrix's rows, at a random place.
    backward[rng.integers(n), rng.integers(n)] += 0.5 * np.linalg.norm(matrix) / np.sqrt(n)
    return backward


def test_a_thousand_mutations_are_caught():
    missed = []
    for seed, how in zip(range(1000), itertools.cycle(["sign", "transpose", "conjugate", "entry"]), strict=False):
        rng, matrix, n, dtype = draw(seed // 4 * 5 + seed % 4)
        check = ig.check_operator(operator(matrix, mutate(rng, matrix, n, how), n, dtype), seed=seed, raises=False)
        if not any("adjoint identity" in fault for fault in check.faults):
            missed.append((seed, how, check.differences))
    assert not missed


def test_two_thousand_sound_operators_pass():
    alarms = []
    for seed in range(2000):
        _, matrix, n, dtype = draw(seed)
        if seed % 3 == 0:
            matrix = matrix + matrix.conj().T
        J = operator(matrix, matrix.conj().T, n, dtype, symmetric=seed % 3 == 0)
        check = ig.check_operator(ig.identity_minus(J) if seed % 2 else J, seed=seed, raises=False)
        if not check.ok:
            alarms.append((seed, check.faults))
    assert not alarms


MATRIX = np.random.default_rng(0).standard_normal((5, 5))
NOISE = np.random.default_rng(1)
FAULTS = [
    ("affine", lambda u: u @ MATRIX + 1.0, {}, "vjp|rmatvec linearity"),
    ("not linear", lambda u: (u @ MATRIX) ** 3, {}, "linearity"),
    ("absolute value", lambda u: np.abs(u @ MATRIX), {}, "linearity"),
    ("dropout", lambda u: (u @ MATRIX) * (NOISE.uniform(size=u.shape) < 0.5), {}, "determinism"),
    ("wrong sign", lambda u: -(u @ MATRIX), {"jvp": lambda v: v @ MATRIX.T}, "adjoint identity"),
    ("symmetry claimed", lambda u: u @ MATRIX, {"symmetric": True}, "symmetry"),
    ("NaN", lambda u: u * np.nan, {}, "finite"),
]


@pytest.mark.fault(50, 51, 52, 55)
@pytest.mark.parametrize(("vjp", "settings", "text"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_named(vjp, settings, text):
    J = ig.VJPOperator(vjp, 5, **settings)
    with pytest.raises(OperatorError, match=text):
        ig.check_operator(J)
    assert not ig.check_operator(J, raises=False).ok


def test_an_operator_that_mixes_the_batch_is_named():
    J = ig.VJPOperator(lambda u: u - u.mean(axis=0) if u.ndim > 1 else u, 5)
    check = ig.check_operator(J, like=np.zeros((3, 5)), raises=False)
    assert any("batch independence" in fault for fault in check.faults)
    assert ig.check_operator(J).ok, "one vector does not show it"


@pytest.mark.parametrize("batch", [(2,), (3,), (4,), (5,), (2, 3), (17,)])
def test_rows_that_change_places_are_found(batch):
    """A reversal maps a half of the rows to itself; any two rows are in different halves of some split."""
    count = int(np.prod(batch))
    for step in range(1, count):
        J = ig.VJPOperator(lambda u, k=step: 0.9 * np.roll(u.reshape(count, 3), k, axis=0).reshape(u.shape), 3)
        check = ig.check_operator(J, like=np.zeros((*batch, 3)), raises=False)
        assert any("batch independence" in fault for fault in check.faults)
    J = ig.VJPOperator(lambda u: 0.9 * u + 0.9 * u[::-1], 3)
    assert any("batch independence" in fault for fault in ig.check_operator(J, np.zeros((4, 3)), raises=False).faults)
    solution = ig.adjoint_solve(J, np.ones((4, 3)), solver=ig.Neumann(), on_failure="return")
    assert all(status is ig.Status.COUPLED for status in solution.status)


def test_one_link_between_two_rows_is_found_in_either_direction():
    """By check_operator in any batch, and after a failed solve in one of up to four."""
    for count in (2, 3, 4, 5, 9):
        for i, j in itertools.permutations(range(count), 2):
            links = 0.5 * np.eye(count)
            links[i, j] = 0.9
            J = ig.VJPOperator(lambda u, links=links: links @ u, 3)
            check = ig.check_operator(J, like=np.zeros((count, 3)), raises=False)
            assert any("batch independence" in fault for fault in check.faults)
            if count <= 4:
                solution = ig.adjoint_solve(J, np.ones((count, 3)), solver=ig.Neumann(max_iters=3), on_failure="return")
                assert all(status is ig.Status.COUPLED for status in solution.status)


@pytest.mark.parametrize("spared", range(4))
def test_rows_that_mix_are_found_whichever_they_leave_alone(spared):
    """Only the first row was exchanged; one without a link to the others hid what they do among themselves."""
    links = np.ones((4, 4)) - np.eye(4)
    links[spared] = links[:, spared] = 0.0
    J = ig.VJPOperator(lambda u: 0.1 * links @ u if u.ndim > 1 else u, 5)
    for like in (np.zeros((4, 5)), np.zeros((1, 4, 5))[0]):
        check = ig.check_operator(J, like=like, raises=False)
        assert any("batch independence" in fault for fault in check.faults)


@pytest.mark.fault(53)
def test_an_operator_that_writes_into_its_input_is_named():
    def vjp(u):
        u *= 0.5
        return u @ MATRIX

    with pytest.raises(OperatorError, match="changed its input in place"):
        ig.check_operator(ig.VJPOperator(vjp, 5))


def test_the_check_is_cheap_and_takes_its_probes_from_like():
    seen = []

    def product(u):
        seen.append((u.shape, u.dtype))
        return u @ MATRIX.astype(u.dtype)

    J = ig.VJPOperator(product, 5, jvp=lambda v: v @ MATRIX.astype(v.dtype).T, like=np.zeros((2, 5), np.float32))
    assert ig.check_operator(J).ok
    assert len(seen) <= 16
    assert set(seen) == {((2, 5), np.dtype(np.float32))}


def test_empty_and_rectangular_operators_are_checked():
    assert ig.check_operator(ig.VJPOperator(lambda u: u, 0)).ok
    assert ig.check_operator(ig.DenseOperator(np.ones((3, 5)))).ok
    with pytest.raises(SettingTypeError, match="type ndarray"):
        ig.check_operator(MATRIX)
