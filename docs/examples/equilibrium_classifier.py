"""Train an equilibrium layer on handwritten digits, and read what its solves report.

    python docs/examples/equilibrium_classifier.py [--epochs 8]

The hidden state of each image is the fixed point of ``z = tanh(W z + U x + b)``; nothing is unrolled. After each step W
is projected back to a spectral norm of 0.8, so the map keeps contracting. Dropout acts inside the map, with one mask
for all calls of a pass. Data: scikit-learn's bundled digits.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits

import implicitgrad.torch as igt


class Cell(torch.nn.Module):
    """``z <- tanh(W dropout(z) + U x + b)``."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.state = torch.nn.Linear(hidden, hidden, bias=False)
        self.input = torch.nn.Linear(features, hidden)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.state(self.dropout(z)) + self.input(x))

    @torch.no_grad()
    def project(self, norm: float) -> None:
        """Scale W down to a spectral norm of at most ``norm``."""
        weight = self.state.weight
        weight.mul_((norm / torch.linalg.matrix_norm(weight, 2)).clamp(max=1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)

    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]

    hidden = 64
    layer = igt.FixedPoint(Cell(64, hidden), batch_ndim=1, on_failure="raise")
    readout = torch.nn.Linear(hidden, 10)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=3e-3)

    print("epoch   loss  accuracy  calls of the cell  VJPs  status")
    for epoch in range(options.epochs):
        layer.train()
        for batch in train[torch.randperm(len(train))].split(100):
            z = layer(torch.zeros(len(batch), hidden), x[batch])
            loss = torch.nn.functional.cross_entropy(readout(z), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            layer.module.project(0.8)
        report = layer.report
        layer.eval()
        with torch.no_grad():
            z = layer(torch.zeros(len(test), hidden), x[test])
            accuracy = (readout(z).argmax(1) == y[test]).float().mean()
        print(
            f"{epoch + 1:5}  {loss.item():5.3f}  {accuracy:8.1%}  {report.forward.num_matvecs:17}"
            f"  {report.backward.num_matvecs:4}  {report.status.name}"
        )


if __name__ == "__main__":
    main()
