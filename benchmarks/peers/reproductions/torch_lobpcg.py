"""**torch.lobpcg**: returns what it has, without a flag."""

import torch

torch.manual_seed(0)
q = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64))[0]
A = (q * torch.logspace(-6, 0, 300, dtype=torch.float64)) @ q.T
value, _ = torch.lobpcg((A + A.T) / 2, k=1, largest=False)
print(f"{value.item():.2e}; the smallest eigenvalue is 1.00e-06")
