"""**torchdeq**: the default gradient is that of one step, and so is the implicit one where the loss is small."""

import torch
from torchdeq import get_deq

torch.manual_seed(0)
W = torch.randn(20, 20, dtype=torch.float64)
W, x = W * (0.9 / torch.linalg.matrix_norm(W, 2)), torch.randn(1, 20, dtype=torch.float64)


def gradient(scale, **settings):
    weight = W.clone().requires_grad_()
    z, _ = get_deq(f_tol=1e-12, f_max_iter=500, **settings)(lambda z: torch.tanh(z @ weight.T + x), torch.zeros_like(x))
    (scale * z[-1].sum()).backward()
    return weight.grad / scale


def error(gradient):
    return f"{torch.linalg.norm(gradient - exact) / torch.linalg.norm(exact):.0e}"


exact = gradient(1.0, ift=True, b_tol=1e-13, b_max_iter=500)
print("defaults:", error(gradient(1.0)))
print("ift=True:", error(gradient(1.0, ift=True)))
print("ift=True, loss times 1e-7:", error(gradient(1e-7, ift=True)))
print("ift=True, b_solver='anderson', b_max_iter=2:", error(gradient(1.0, ift=True, b_solver="anderson", b_max_iter=2)))
