"""The two networks of docs/diagnose.md: prints their reports and draws their pictures beside this file.

python docs/images/make_diagnose.py
"""

from pathlib import Path

import torch

import implicitgrad.torch as igt

UNITS = 100


def network(feedback: float) -> torch.Tensor:
    """Return weights: random ones, of spectral radius 0.6, and ``feedback`` along one direction."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(UNITS, UNITS, generator=generator, dtype=torch.float64) * 0.6 / UNITS**0.5
    u = torch.ones(UNITS, dtype=torch.float64) / UNITS**0.5
    return random + feedback * torch.outer(u, u)


def update(h: torch.Tensor, W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ h + x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    x = 1e-3 * torch.sin(torch.arange(UNITS, dtype=torch.float64))
    for name, feedback in (("healthy", 0.0), ("sick", 1.0725)):
        W = network(feedback)
        h = igt.fixed_point(update, torch.zeros_like(x), W, x)
        report = igt.diagnose(update, h, W, x)
        print(f"{name}\n{report}\n")
        report.plot(Path(__file__).with_name(f"diagnose-{name}.png"))
