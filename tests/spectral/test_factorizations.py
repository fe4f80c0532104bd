"""The relations that define each factorization, before and after restarts, and that it can be taken up again."""

from itertools import pairwise

import numpy as np
import pytest

import implicitgrad as ig
from implicitgrad.spectral.arnoldi import Arnoldi
from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.golub_kahan import GolubKahan
from implicitgrad.spectral.lanczos import Lanczos
from implicitgrad.spectral.space import Space
from implicitgrad.testing import assert_close, random_matrix

N = 30


@pytest.fixture(params=["float64", "complex128"])
def dtype(request):
    return request.param


def matrix_of(dtype, symmetric, seed=0, batch=None):
    rng = np.random.default_rng(seed)
    draws = [random_matrix(rng, N, dtype == "complex128") for _ in range(batch or 1)]
    draws = [(m + m.conj().T) / 2 if symmetric else m for m in draws]
    return np.stack(draws) if batch else draws[0]


def rows(frame):
    """Return the basis as columns, ``(s, n, k)``."""
    held = frame.basis.to_numpy()
    held = held[None] if held.ndim == 2 else held
    return np.swapaxes(held, -1, -2)


def same(actual, expected, size=10.0):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert_close(actual.ravel(), expected.ravel(), scale=np.full(actual.size, size) / np.sqrt(actual.size), condition=8)


def check_orthonormal(frame):
    assert frame.defect() <= 64 * 2.0**-52  # a recombination at each restart adds a few eps


@pytest.mark.parametrize("batch", [None, 3])
def test_golub_kahan_is_a_bidiagonalization(dtype, batch):
    """A V = U B, with the superdiagonal that A^H U = V B^H + rest has, and orthonormal V and U."""
    A = matrix_of(dtype, False, batch=batch)
    space = Space("test", ig.DenseOperator(A), adjoint=True)
    process = GolubKahan(space, space.start, most=N)
    for _ in range(12):
        process.step()
    V, U, B = rows(process.right), rows(process.left), process.small
    check_orthonormal(process.right)
    check_orthonormal(process.left)
    same(A @ V, U @ B)
    rest = np.swapaxes(A, -1, -2).conj() @ U - V @ np.swapaxes(B, -1, -2).conj()
    same(np.linalg.norm(rest[..., :-1], axis=-2), np.zeros((len(B), 11)))
    same(np.linalg.norm(rest[..., -1], axis=-1), process.residual)
    same(B, np.triu(np.tril(B, 1)))
    assert process.mismatch.max() < 1e-14


def test_lanczos_is_a_tridiagonalization(dtype):
    """A V = V T + rest e_k^H, T Hermitian and tridiagonal."""
    A = matrix_of(dtype, True)
    space = Space("test", ig.DenseOperator(A))
    process = Lanczos(space, space.start, most=N)
    for _ in range(12):
        process.step()
    (V,), (T,) = rows(process.frame), process.small
    check_orthonormal(process.frame)
    rest = A @ V - V @ T
    same(np.linalg.norm(rest[:, :-1], axis=0), np.zeros(11))
    same(np.linalg.norm(rest[:, -1]), process.residual[0])
    same(T, np.triu(np.tril(T, 1), -1))
    same(V.conj().T @ A @ V, T)


def test_arnoldi_is_a_hessenberg_reduction(dtype):
    A = matrix_of(dtype, False)
    space = Space("test", ig.DenseOperator(A))
    process = Arnoldi(space, space.start, most=N)
    for _ in range(12):
        process.step()
    (V,), (H,) = rows(process.frame), process.small
    check_orthonormal(process.frame)
    rest = A @ V - V @ H
    same(np.linalg.norm(rest[:, :-1], axis=0), np.zeros(11))
    same(np.linalg.norm(rest[:, -1]), process.residual[0])
    same(H, np.triu(H, -1))


def grow_to(process, count, which):
    """Grow as the loop does, restarting at the cap, until ``count`` steps are made."""
    live = np.ones(process.space.systems, bool)
    for _ in range(count):
        if process.full:
            process.restart(process.ritz(which))
        process.grow(live)
        process.look(process.ritz(which) if process.directed else None)


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_relations_survive_restarts(dtype, which):
    """After five restarts the products are still those of the vectors held, and the kept Ritz values still there."""
    A, S = matrix_of(dtype, False), matrix_of(dtype, True)
    space = Space("test", ig.DenseOperator(A), adjoint=True)
    process = GolubKahan(space, space.start, most=8)
    grow_to(process, 30, which)
    assert process.restarted
    check_orthonormal(process.right)
    check_orthonormal(process.left)
    same(A @ rows(process.right)[0], rows(process.left)[0] @ process.small[0], size=100)

    space = Space("test", ig.DenseOperator(S))
    lanczos = Lanczos(space, space.start, most=8)
    grow_to(lanczos, 30, which)
    check_orthonormal(lanczos.frame)
    (V,) = rows(lanczos.frame)
    same(V.conj().T @ S @ V, lanczos.small[0], size=100)
    rest = S @ V - V @ lanczos.small[0]
    same(np.linalg.norm(rest), lanczos.residual[0], size=100)
    assert lanczos.mismatch.max() < 1e-13

    space = Space("test", ig.DenseOperator(A))
    arnoldi = Arnoldi(space, space.start, most=9)
    grow_to(arnoldi, 30, "dominant")
    (V,) = rows(arnoldi.frame)
    live = np.linalg.norm(V, axis=0) > 0.5  # a real pair that did not fit leaves a column of zeros
    assert live.sum() >= arnoldi.count - 1
    rest = A @ V - V @ arnoldi.small[0]
    same(np.linalg.norm(rest), arnoldi.residual[0], size=1000)


def test_the_best_value_never_gets_worse_at_a_restart(dtype):
    A = matrix_of(dtype, False)
    space = Space("test", ig.DenseOperator(A), adjoint=True)
    process = GolubKahan(space, space.start, most=6)
    values = []
    for _ in range(40):
        grow_to(process, 1, "smallest")
        values.append(process.ritz("smallest").values[0, 0])
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values))
    assert values[-1] >= np.linalg.svd(A, compute_uv=False)[-1] * (1 - 1e-12)


def test_memory_is_bounded_by_the_cap(dtype):
    A = matrix_of(dtype, False)
    space = Space("test", ig.DenseOperator(A), adjoint=True)
    process = GolubKahan(space, space.start, most=6)
    for _ in range(30):
        grow_to(process, 1, "smallest")
        held = [block.shape[-2] for frame in (process.right, process.left) for block in frame.basis._blocks]
        assert sum(held) <= 2 * 6


def test_a_factorization_is_taken_up_where_it_was_left(dtype):
    A = matrix_of(dtype, True)
    whole, parts = (
        Lanczos(s, s.start, most=N) for s in (Space("a", ig.DenseOperator(A)), Space("b", ig.DenseOperator(A)))
    )
    for _ in range(15):
        whole.step()
    for count in (4, 1, 10):
        for _ in range(count):
            parts.step()
        parts.ritz("smallest")  # looking changes nothing
    assert np.array_equal(whole.small, parts.small)
    assert np.array_equal(rows(whole.frame), rows(parts.frame))


def test_the_second_pass_enters_the_coefficients():
    """x = Q c + rest holds to rounding of x also where the first pass leaves most of the cancellation undone."""
    rng = np.random.default_rng(0)
    space = Space("test", ig.DenseOperator(np.eye(50)))
    frame = Frame(space, space.domain, 10)
    for _ in range(8):
        rest, _, norm, broken = frame.split(rng.standard_normal(50))
        frame.append(frame.normalized(rest, norm, broken))
    basis = rows(frame)[0]
    x = basis @ rng.standard_normal(8) + 1e-9 * rng.standard_normal(50)
    rest, coefficients, norm, broken = frame.split(x)
    assert not broken[0]
    assert_close(basis @ coefficients[0] + rest, x)
    unit = rest / norm[0]
    assert np.abs(basis.T @ unit).max() < 1e-15
    _, _, _, broken = frame.split(basis @ rng.standard_normal(8))
    assert broken[0]
    fresh = frame.fresh()
    assert np.abs(basis.T @ fresh).max() < 1e-15
    assert_close(np.array([np.linalg.norm(fresh)]), np.ones(1))


def test_coefficients_are_those_of_the_vectors_as_they_are():
    """A basis that has lost orthogonality: x = Q c + rest to rounding all the same, for the second pass is in c."""
    space = Space("test", ig.DenseOperator(np.eye(6)))
    frame = Frame(space, space.domain, 4)
    skew = np.array([1e-5, np.sqrt(1 - 1e-10), 0, 0, 0, 0])
    frame.append(np.eye(6)[0])
    frame.append(skew)
    x = np.array([3.0, -2.0, 1e-3, 0.0, 0.0, 0.0])
    rest, coefficients, _, _ = frame.split(x)
    assert_close(coefficients[0] @ np.stack([np.eye(6)[0], skew]) + rest, x)
    assert abs(rest[0]) <= 1e-9


def test_a_breakdown_goes_on_with_a_fresh_orthogonal_vector():
    """From an eigenvector, one step spans an invariant space; the next vector is random, and the rest of T follows."""
    A = np.diag([1.0, 2.0, 3.0, 4.0])
    space = Space("test", ig.DenseOperator(A), start=np.eye(4)[2])
    process = Lanczos(space, space.start, most=4)
    process.step()
    assert process.broken[0]
    for _ in range(3):
        process.step()
    check_orthonormal(process.frame)
    assert_close(process.ritz("smallest").values[0], np.diag(A), condition=4)
