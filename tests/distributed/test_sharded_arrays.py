"""The array itself: what is refused when it is made, and what can be done with it without asking the other ranks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from sharded_problem import N, problem

import implicitgrad as ig
from implicitgrad.backends.sharded import BACKEND, Sharded
from implicitgrad.errors import BackendError, ShapeError


def _constructed(rank, kind):
    given = {
        "no tensor": torch.ones(2) if rank else [1.0],
        "dtype": torch.ones(2, dtype=torch.float64 if rank else torch.float32),
        "batch": torch.ones(2 + rank, 3),
        "axes": torch.ones(()),
    }[kind]
    try:
        Sharded(given)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("no tensor", "BackendError", "got an object of type list on rank 0"),
        ("dtype", "DtypeError", "got torch.float64 of shape (2,) on rank 1 and torch.float32 of (2,) on rank 0"),
        ("batch", "ShapeError", "of shape (3, 3) on rank 1"),
        ("axes", "ShapeError", "without axes on rank 0"),
    ],
)
def test_shards_that_do_not_fit_are_refused_by_all_ranks_in_the_same_words(two_ranks, kind, name, words):
    """A rank that alone sees its mistake would leave the others waiting."""
    answers = two_ranks.run(_constructed, kind)
    assert answers[0] == answers[1]
    assert answers[0][0] == name
    assert words in answers[0][1]


def test_one_process_needs_no_group():
    """Sharded of everything: the solve of a tensor, with its bits."""
    matrix, g = problem()
    J = ig.VJPOperator(lambda u: u @ matrix, size=N)
    assert torch.equal(ig.adjoint_solve(J, Sharded(g)).x.local, ig.adjoint_solve(J, g).x)


def test_leading_axes_are_indexed_and_reshaped_and_the_last_one_is_not():
    x = Sharded(torch.arange(12.0).reshape(2, 3, 2))
    assert x[1].shape == (3, 2)
    assert x[0, 1].local.tolist() == [2.0, 3.0]
    assert x.reshape((-1, 2))[4].local.tolist() == [8.0, 9.0]
    for mistake in (lambda: x[0, 0, 1], lambda: x.reshape((4, 3)), lambda: x.like(torch.ones(3))):
        with pytest.raises(ShapeError):
            mistake()


def test_numbers_multiply_from_both_sides_and_arrays_of_other_splits_do_not_add():
    x = Sharded(torch.tensor([1.0, 2.0]))
    for y in (2 * x, x * 2, np.float64(2.0) * x, x / 0.5, -(x * -2), x + x):
        assert y.local.tolist() == [2.0, 4.0]
    with pytest.raises(ShapeError, match="expected one split"):
        x + Sharded(torch.ones(3))
    with pytest.raises(TypeError):
        x * x


def test_a_matrix_is_not_split():
    """DenseOperator holds a tensor; its product with shards would be a part of a product."""
    with pytest.raises(BackendError, match="VJPOperator"):
        ig.solve(ig.DenseOperator(torch.eye(2)), Sharded(torch.ones(2)))


def test_numbers_from_the_host_are_a_vector_or_coefficients_and_not_guessed_from_their_count():
    like = Sharded(torch.ones(3))
    assert isinstance(BACKEND.from_numpy(np.ones(3), like), Sharded)
    assert isinstance(BACKEND.coefficients(np.ones(3), like), torch.Tensor)
    with pytest.raises(ShapeError, match="from_numpy"):
        BACKEND.from_numpy(np.ones(2), like)


def test_a_single_zero_stands_for_a_vector_of_them():
    """zeros((1,)) broadcasts, on shards of any length, as it does for tensors; another wrong length is refused."""
    for rows in (torch.arange(6.0).reshape(2, 3), torch.zeros(2, 0), torch.ones(2, 1)):
        x = Sharded(rows)
        kept = BACKEND.select(np.array([True, False]), x, BACKEND.zeros((1,), x))
        assert torch.equal(kept.local, rows * torch.tensor([[1.0], [0.0]]))
        assert kept.shape == x.shape
    with pytest.raises(ShapeError, match="zeros: got a last axis of 2"):
        BACKEND.zeros((2,), Sharded(torch.ones(3)))
