"""One equilibrium whose state no process holds as a whole: a line of cells, cut between two processes.

    z_i = tanh(a (z_{i-1} + z_{i+1}) + x_i)

Run it as ``python docs/examples/sharded_state.py``; it starts two processes on this machine. The map exchanges the
values at the cut with its neighbours, forward and backward. The solver exchanges inner products, and nothing else.
"""

import tempfile

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

import implicitgrad as ig
import implicitgrad.torch as igt
from implicitgrad.torch import Sharded

SIZES = (300, 200)  # how many of the cells each process holds
ADJOINT = ig.GMRES(rtol=1e-12)


class Neighbours(torch.autograd.Function):
    """The local cells with one ghost cell at each end, filled by the ranks next door; zero at the ends of the line.

    Its derivative is the same exchange the other way round: what reaches a ghost belongs to the neighbour's cell.
    """

    @staticmethod
    def forward(ctx, z):
        left, right = exchange(z[:1], z[-1:])
        return torch.cat([left, z, right])

    @staticmethod
    def backward(ctx, g):
        from_left, from_right = exchange(g[:1], g[-1:])
        inner = g[1:-1].clone()
        inner[:1] += from_left
        inner[-1:] += from_right
        return inner


def exchange(to_left: torch.Tensor, to_right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Send a number to each neighbour; return what they have sent."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    from_left, from_right = torch.zeros_like(to_left), torch.zeros_like(to_right)
    steps = []
    if rank > 0:
        steps += [dist.P2POp(dist.isend, to_left.contiguous(), rank - 1), dist.P2POp(dist.irecv, from_left, rank - 1)]
    if rank < ranks - 1:
        steps += [dist.P2POp(dist.isend, to_right.contiguous(), rank + 1), dist.P2POp(dist.irecv, from_right, rank + 1)]
    for work in dist.batch_isend_irecv(steps) if steps else []:
        work.wait()
    return from_left, from_right


def update(z: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    padded = Neighbours.apply(z)
    return torch.tanh(a * (padded[:-2] + padded[2:]) + x)


def update_of_the_whole_line(z: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(z, (1, 1))
    return torch.tanh(a * (padded[:-2] + padded[2:]) + x)


def solve(rank: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=len(SIZES))
    torch.set_default_dtype(torch.float64)
    whole = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(0))
    a = torch.tensor(0.49, requires_grad=True)
    x = whole.split(SIZES)[rank].clone().requires_grad_()

    # Forward and backward, each rank with its own cells; the vectors of both solves are cut as the state is.
    report = igt.Report()
    z = igt.fixed_point(update, torch.zeros_like(x), x, a, adjoint=ADJOINT, group=dist.group.WORLD, report=report)
    gradient_x, gradient_a = torch.autograd.grad(z.square().sum() / 2, (x, a))
    dist.all_reduce(gradient_a)  # every rank has used a for its own cells

    # The same in one process.
    whole_x = whole.clone().requires_grad_()
    z = igt.fixed_point(update_of_the_whole_line, torch.zeros_like(whole_x), whole_x, a, adjoint=ADJOINT)
    expected_x, expected_a = torch.autograd.grad(z.square().sum() / 2, (whole_x, a))
    error = max(
        ((Sharded(gradient_x).gather() - expected_x).norm() / expected_x.norm()).item(),
        (abs(gradient_a - expected_a) / abs(expected_a)).item(),
    )
    if rank == 0:
        print(
            f"a state of {SIZES} cells, {report.forward.num_matvecs} calls and {report.backward.num_matvecs} products: "
            f"gradients equal those of one process to {error:.0e}"
        )
    assert error < 1e-6
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(solve, (f"file://{folder}/meet",), nprocs=len(SIZES))
