"""An equilibrium layer under DistributedDataParallel: the gradients of one process, on two.

Run it as ``python docs/examples/ddp.py``; it starts two processes on this machine. Nothing in the layer is special:
``igt.fixed_point`` hands the parameters of its map to autograd, and DDP averages what reaches them.
"""

import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn

import implicitgrad as ig
import implicitgrad.torch as igt

RANKS = 2


class Equilibrium(nn.Module):
    """z = tanh(W z + U x), and a linear read-out of z."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():  # the map contracts by 0.8
            self.inner.weight.mul_(0.8 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def cell(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = igt.fixed_point(self.cell, torch.zeros_like(x), x, adjoint=ig.GMRES(rtol=1e-12), batch_ndim=1)
        return self.head(z)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def train(rank: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=RANKS)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)  # the same model and data on all ranks, so that one process can be compared with
    model, x = Equilibrium(16), torch.randn(8, 16)
    alone = [g.clone() for g in gradients(model, x)]

    model.zero_grad()
    together = gradients(nn.parallel.DistributedDataParallel(model), x.chunk(RANKS)[rank])
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(together, alone, strict=True))
    if rank == 0:
        print(f"DDP on {RANKS} processes: gradients equal those of one process to {error:.0e}")
    assert error < 1e-6
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (f"file://{folder}/meet",), nprocs=RANKS)
