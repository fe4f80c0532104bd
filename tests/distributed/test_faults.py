"""A callable that goes wrong on one rank: all ranks raise, at the next reduction, and know who it was."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

from sharded_problem import N, own, problem

import implicitgrad as ig
from implicitgrad.backends.sharded import Sharded


class _Fault:
    """A product that goes wrong on rank 1, the third time."""

    def __init__(self, rank, kind):
        self.rank, self.kind, self.calls = rank, kind, 0

    def __call__(self, u):
        self.calls += 1
        if self.rank == 1 and self.calls == 3:
            match self.kind:
                case "raises":
                    raise KeyError("no such weight")
                case "shape":
                    return torch.zeros(2, dtype=u.dtype)
                case "dtype":
                    return u.float()
                case "nothing":
                    return None
                case "in place":
                    return u.mul_(0.5)
        return u * torch.linspace(
            0.1, 0.2 + 0.2 * self.rank, u.shape[-1], dtype=u.dtype
        )  # many eigenvalues: many steps


def _faulty(rank, kind, solver):
    _, g = problem()
    shard = Sharded(own(rank, g))
    told = ""
    try:
        ig.adjoint_solve(ig.VJPOperator(_Fault(rank, kind), size=N), shard, solver=solver)
    except Exception as error:
        told = type(error).__name__, str(error)
    after = ig.adjoint_solve(ig.VJPOperator(lambda u: 0.5 * u, size=N), shard)
    return told, after.x.gather().tolist()


@pytest.mark.fault(91)
@pytest.mark.parametrize(
    ("kind", "own", "words"),
    [
        ("raises", "KeyError", "no such weight"),
        ("shape", "ShapeError", "returned shape (2,) for the shard of rank 1, expected its own shape (5,)"),
        ("dtype", "DtypeError", "returned torch.float32 for the shard of rank 1"),
        ("nothing", "BackendError", "an object of type NoneType for the shard of rank 1"),
        ("in place", "OperatorError", "changed its input in place on rank 1"),
    ],
)
@pytest.mark.parametrize("solver", [ig.Neumann(), ig.GMRES(), ig.MINRES(), ig.Dense()], ids=lambda s: s.name)
def test_a_fault_of_one_rank_is_raised_by_all(three_ranks, kind, own, words, solver):
    """Rank 1 raises its own exception, the others an OperatorError that names it; the group is of use after that."""
    answers = three_ranks.run(_faulty, kind, solver)
    _, g = problem()
    for rank, ((name, text), after) in enumerate(answers):
        assert words in text
        np.testing.assert_allclose(after, 2 * g.numpy())
        if rank == 1:
            assert name == own
        else:
            assert name == "OperatorError"
            assert f"because of rank 1, {own}" in text


def _direct(rank):
    shard = Sharded(torch.ones(2))
    fault = _Fault(rank, "raises")
    fault.calls = 2
    y = ig.VJPOperator(fault, size=shard.shape[-1]).rmatvec(shard)
    try:
        return y.local.tolist()
    except KeyError as error:
        return repr(error)


def test_a_product_that_failed_has_no_shard_to_show(two_ranks):
    """J.rmatvec alone communicates nothing; the exception waits in the array, not zeros that pass for a product."""
    assert two_ranks.run(_direct) == [pytest.approx([0.1, 0.2]), "KeyError('no such weight')"]
