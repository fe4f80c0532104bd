"""Pools of processes, shared by the tests of this folder; skipped where torch has no gloo."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the processes of a pool import it by name

from rank_pool import Pool


@pytest.fixture(autouse=True, scope="session")
def _gloo():
    dist = pytest.importorskip("torch.distributed")
    pytest.importorskip("optree")
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch.distributed has no gloo on this platform")


@pytest.fixture(scope="session")
def _pools(_gloo, tmp_path_factory):
    pools = {}

    def pool_of(size):
        if size not in pools or pools[size].broken:
            pools[size] = Pool(size, tmp_path_factory.mktemp(f"ranks{size}"))
        return pools[size]

    yield pool_of
    for pool in pools.values():
        pool.close()


@pytest.fixture
def two_ranks(_pools):
    return _pools(2)


@pytest.fixture
def three_ranks(_pools):
    return _pools(3)
