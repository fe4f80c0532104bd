"""A linear system that every rank can draw whole, for the tests' sake, and the uneven shards that it is cut into."""

import torch

SIZES = (3, 5, 0)  # the last of three ranks holds nothing
N = sum(SIZES)


def own(rank, x):
    """Return what this rank holds of a vector that, for the test's sake, every rank can draw."""
    start = sum(SIZES[:rank])
    return x[..., start : start + SIZES[rank]].clone()


def problem(dtype=torch.float64, batch=()):
    """A contraction that is far from normal, and right-hand sides."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(N, N, dtype=dtype, generator=generator)
    matrix = 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)
    return matrix, torch.randn(*batch, N, dtype=dtype, generator=generator)
