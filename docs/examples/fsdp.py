"""Equilibrium layers whose parameters are sharded by FSDP2: around the map, and inside it.

Run it as ``python docs/examples/fsdp.py``; it starts two processes on this machine. Where ``fully_shard`` is applied to
the model or to the layer, ``igt.fixed_point`` finds whole parameters when it is called. Where it is applied to the cell
that is solved for, each evaluation gathers the parameters, all ranks have to take part in it, and autograd sees copies
that come and go: ``igt.fixed_point`` notices, keeps the ranks together and leaves the graph to FSDP2.
"""

import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn

import implicitgrad as ig
import implicitgrad.torch as igt

RANKS = 2
FORWARD, ADJOINT = igt.Anderson(rtol=1e-13), ig.GMRES(rtol=1e-12)


class Cell(nn.Module):
    """tanh(W z + U x), contracting by 0.8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        with torch.no_grad():
            self.inner.weight.mul_(0.8 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))


class Equilibrium(nn.Module):
    """The fixed point of a cell, sharded or not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = Cell(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return igt.fixed_point(self.cell, torch.zeros_like(x), x, solver=FORWARD, adjoint=ADJOINT, batch_ndim=1)


def built(shard: str) -> nn.Module:
    """Return the model, whole or sharded in its layers or down to the cell."""
    torch.manual_seed(0)  # the same on all ranks, so that one process can be compared with
    model = nn.Sequential(nn.Linear(16, 16), Equilibrium(16), nn.Linear(16, 1))
    if shard != "nothing":
        mesh = init_device_mesh("cpu", (RANKS,))
        for module in (*model, model) if shard == "layers" else (model[1].cell, model):
            fully_shard(module, mesh=mesh)
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model(x).square().mean().backward()
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]


def train(rank: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=RANKS)
    torch.set_default_dtype(torch.float64)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    alone = gradients(built("nothing"), x)
    for shard in ("layers", "cell"):
        together = gradients(built(shard), x.chunk(RANKS)[rank])
        error = max(((a - b).norm() / b.norm()).item() for a, b in zip(together, alone, strict=True))
        if rank == 0:
            print(f"FSDP2, {shard} sharded over {RANKS} processes: gradients equal those of one process to {error:.0e}")
        assert error < 1e-6
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (f"file://{folder}/meet",), nprocs=RANKS)
