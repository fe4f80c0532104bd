"""Random vectors of shards: each rank draws its own part, and no part is that of another rank."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from implicitgrad.backends.sharded import BACKEND, Sharded


def _draws(rank):
    x = Sharded(torch.zeros(8, dtype=torch.float64))
    return [BACKEND.random_like(x, seed).gather().tolist() for seed in (0, 0, 1)]


def test_shards_of_one_length_do_not_repeat_each_other(two_ranks):
    """A start that is the same on both ranks is orthogonal to all that is not: it would hide half of the space."""
    first, second = two_ranks.run(_draws)
    assert first == second  # the whole vector is the same wherever it is gathered
    whole, again, other = (np.array(draw) for draw in first)
    assert np.array_equal(whole, again)
    assert len(set(whole)) == 16
    assert not np.intersect1d(whole, other).size
