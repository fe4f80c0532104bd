"""What crosses the ranks: sums of the same bits everywhere, maxima that keep NaN, and as few messages as can be."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from sharded_problem import SIZES

import implicitgrad as ig
from implicitgrad.backends.sharded import BACKEND, Sharded
from implicitgrad.backends.sharded.ranks import Ranks


def _sums(rank):
    generator = torch.Generator().manual_seed(rank)
    x = Sharded(torch.randn(SIZES[rank], generator=generator))
    told = []
    for k in (1, 2, 7, 64, 1000):
        values = torch.randn(k, dtype=torch.float64, generator=generator)
        told.append((values.tolist(), x.ranks.sum(values, None).tolist()))
    return told


def test_a_sum_has_the_same_bits_on_all_ranks(three_ranks):
    """What decides is one number, not one a rank that differ in the last bit."""
    for parts in zip(*three_ranks.run(_sums), strict=True):
        sums = [total for _, total in parts]
        assert sums[0] == sums[1] == sums[2]
        np.testing.assert_allclose(sums[0], np.sum([values for values, _ in parts], axis=0), rtol=1e-12)


def _maxima(rank):
    rows = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [0.5, 0.0]])[:, rank : rank + 1]
    x = Sharded(rows)
    return BACKEND.max_abs(x).tolist(), BACKEND.equal(x, x), BACKEND.equal(x[0], x[0]), BACKEND.equal(x[2], -x[2])


def test_maxima_keep_nan_and_flags_hold_where_they_hold_on_all_ranks(two_ranks):
    """max |x| of rows split over two ranks; NaN on one rank is NaN on both, and an equality of one is none."""
    for maxima, with_nan, first, last in two_ranks.run(_maxima):
        assert repr(maxima) == repr([2.0, float("nan"), 0.5])
        assert not with_nan
        assert first
        assert not last


def _rolled(u):
    return 0.5 * u.roll(1, -1)


@pytest.mark.parametrize(
    ("solver", "reductions"),
    [
        (lambda steps: ig.Neumann(max_iters=steps, rtol=0), 1),
        (lambda steps: ig.CG(max_iters=steps, rtol=0), 2),
        (lambda steps: ig.GMRES(max_iters=steps, rtol=0), 2),
    ],
    ids=["Neumann", "CG", "GMRES"],
)
@pytest.mark.parametrize("steps", [5, 40])
def test_a_step_costs_its_inner_products_and_the_watch_over_the_ranks_costs_nothing(
    monkeypatch, solver, reductions, steps
):
    """GMRES sends its k products at once, from all blocks of its basis; to see who has failed costs no message."""
    calls, agreed = [], Ranks._agreed
    monkeypatch.setattr(Ranks, "_agreed", lambda self, *args: calls.append(1) or agreed(self, *args))
    g = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = []
    for most in (steps, steps + 1):
        calls.clear()
        J = ig.VJPOperator(_rolled, size=200)
        ig.adjoint_solve(J, Sharded(g), solver=solver(most), on_failure="return")
        counts.append(len(calls))
    assert counts[1] - counts[0] == reductions
