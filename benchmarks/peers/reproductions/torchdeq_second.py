"""**torchdeq, TorchOpt**: second derivatives that are wrong; z = tanh(z / 2 + b) has z_bb = -3.067562 at b = 0.3."""

import torch
import torchopt
from torchdeq import get_deq


def second(solve):
    b = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(solve(b).sum(), b, create_graph=True)
    return torch.autograd.grad(first.sum(), b)[0].item()


def with_torchdeq(b):
    deq = get_deq(ift=True, f_tol=1e-12, f_max_iter=200, b_tol=1e-12, b_max_iter=200)
    return deq(lambda z: torch.tanh(0.5 * z + b), torch.zeros_like(b))[0][-1]


@torchopt.diff.implicit.custom_root(lambda z, b: torch.tanh(0.5 * z + b) - z, argnums=1)
def with_torchopt(z, b):
    for _ in range(200):
        z = torch.tanh(0.5 * z + b)
    return z.detach()


print(f"torchdeq {second(with_torchdeq):.3f}, TorchOpt {second(lambda b: with_torchopt(torch.zeros_like(b), b)):.3f}")
