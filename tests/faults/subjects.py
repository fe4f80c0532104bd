"""A small module with a buffer, the entry points that take it, and what must not change of it."""

import pytest
from world import bits

torch = pytest.importorskip("torch")
pytest.importorskip("optree")

import implicitgrad as ig
import implicitgrad.torch as igt

DOUBLE = torch.float64
ENTRIES = {
    "fixed_point": lambda cell, x: igt.fixed_point(cell, torch.zeros_like(x), x),
    "Picard and Neumann": lambda cell, x: igt.fixed_point(
        cell, torch.zeros_like(x), x, solver=igt.Picard(), adjoint=ig.Neumann()
    ),
    "dropout": lambda cell, x: igt.fixed_point(
        lambda z, x: torch.nn.functional.dropout(cell(z, x), 0.3), torch.zeros_like(x), x
    ),
    "NewtonKrylov": lambda cell, x: igt.fixed_point(cell, torch.zeros_like(x), x, solver=igt.NewtonKrylov()),
    "root": lambda cell, x: igt.root(lambda z, x: z - cell(z, x), torch.zeros_like(x), x),
    "lambda_min": lambda cell, x: igt.lambda_min(cell, 0.1 * x, x),
}


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4).double()
        torch.nn.init.orthogonal_(self.linear.weight, gain=0.5)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, z, x):
        if self.training:
            self.seen += 1
        return torch.tanh(self.linear(z) + x)


def anatomy(cell):
    """Return what must stay the same of a module: its tensors by identity and bits, its hooks, its attributes."""
    tensors = {name: (id(t), bits(t), t.requires_grad, t.grad) for name, t in (*cell.named_parameters(),)}
    parts = {name: {k: id(v) for k, v in vars(part).items()} for name, part in cell.named_modules()}
    return tensors, parts, {name: (id(b), bits(b)) for name, b in cell.named_buffers()}


def gradient(layer, cell, x):
    torch.manual_seed(3)
    return torch.autograd.grad(layer(cell, x).sum(), (x, cell.linear.weight))
