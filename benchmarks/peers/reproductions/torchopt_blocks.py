"""**TorchOpt**: blocks off the diagonal are dropped, and a 0-d system gets a budget of 10 * sum(()) = 0 steps."""

import torch
from torchopt.linear_solve import solve_inv, solve_normal_cg

A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])


def matvec(u):
    product = A @ torch.cat(u)
    return product[:1], product[1:]


b = (torch.ones(1), torch.ones(1))
print("solve_inv", [t.item() for t in solve_inv()(matvec, b)], "exact", torch.linalg.solve(A, torch.ones(2)).tolist())
print("scalar 2 x = 1: x =", solve_normal_cg()(lambda u: 2.0 * u, torch.tensor(1.0)).item())
