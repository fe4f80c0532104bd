"""A rank that is killed in the middle of a solve, or leaves its part of a map undone: the others end with an error."""

import os
import signal
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
import torch.distributed as dist

import implicitgrad as ig
from implicitgrad.backends.sharded import Sharded
from implicitgrad.backends.sharded import ranks as ranks_module

LIMIT = 30.0  # seconds from the death of a rank to the errors of the others
SOON = 15.0  # less than the timeout of the group, 20: nobody has waited for that.

from rank_pool import Pool


@pytest.fixture
def mortals(tmp_path):
    pool = Pool(2, tmp_path)
    yield pool
    pool.close()


def _solve(rank):
    calls = 0

    def vjp(u):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return u * torch.linspace(0.1, 0.2 + 0.2 * rank, 4)

    shard = Sharded(torch.arange(4.0) + 1)
    ig.adjoint_solve(ig.VJPOperator(vjp, size=8), shard)


@pytest.mark.fault(91)
def test_a_rank_that_is_killed_in_a_solve_ends_the_others_with_an_error(mortals):
    """No hang: OperatorError from the next reduction, in seconds."""
    told = mortals.answers(_solve, limit=LIMIT)
    assert told[1][0] == "gone"
    kind, text, seconds = told[0]
    assert kind == "error"
    assert text.startswith("OperatorError: A reduction over 2 ranks failed")
    assert "look for its own error" in text
    assert seconds < SOON
    print(f"an error after {seconds:.2f} s")


def _leaves_others_waiting(rank):
    ranks_module._PATIENCE = timedelta(seconds=1)

    def vjp(u):
        if rank == 1:
            raise ValueError("before its own communication")
        edge = u[:1].clone()
        dist.broadcast(edge, src=1)
        return 0.5 * u + 0.1 * edge

    try:
        ig.adjoint_solve(ig.VJPOperator(vjp, size=8), Sharded(torch.arange(4.0) + 1))
    finally:
        if rank == 1:  # as a script does whose exception nobody catches
            os._exit(7)


@pytest.mark.fault(91)
def test_a_rank_that_raises_while_the_others_wait_inside_the_map_does_not_wait_for_them(mortals):
    """It gives them its patience, then raises; its process ends, and the others' communication with it."""
    told = mortals.answers(_leaves_others_waiting, limit=LIMIT)
    assert told[1][0] == "gone"
    assert mortals.processes[1].join(5) is None
    assert mortals.processes[1].exitcode == 7
    kind, _, seconds = told[0]
    assert kind == "error"
    assert seconds < SOON
