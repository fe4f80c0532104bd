"""Tune a weight decay for each feature by the gradient of the validation loss through the inner optimum.

    python docs/examples/tune_hyperparameters.py [--steps 30]

The inner problem is logistic regression on 200 digits, its minimum found by ``argmin``; the outer gradient needs one
linear solve with the Hessian, by conjugate gradients on Hessian-vector products. Data: scikit-learn's bundled digits.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits

import implicitgrad.torch as igt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)

    digits = load_digits()
    x = torch.tensor(digits.data / 16.0)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, validation, test = order[:200], order[200:600], order[600:]

    def loss(w: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
        fit = torch.nn.functional.cross_entropy(x[train] @ w, y[train])
        return fit + (log_decay.exp()[:, None] * w.square()).sum()

    log_decay = torch.full((64,), -6.0, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(64, 10, dtype=torch.float64)
    optimizer = torch.optim.Adam([log_decay], lr=0.2)
    report, u = igt.Report(), None

    print("step  validation loss  test accuracy  Newton steps  HVPs forward  HVPs backward  status")
    for step in range(options.steps + 1):
        # Warm starts: the last minimum, and the last adjoint, are close to the next ones.
        w = igt.argmin(loss, w.detach(), log_decay, report=report, adjoint_x0=u, on_failure="raise")
        outer = torch.nn.functional.cross_entropy(x[validation] @ w, y[validation])
        optimizer.zero_grad()
        outer.backward()
        optimizer.step()
        u = report.backward.x
        if step % 10 == 0:
            accuracy = ((x[test] @ w).argmax(1) == y[test]).double().mean()
            print(
                f"{step:4}  {outer.item():15.4f}  {accuracy:13.1%}  {report.forward.num_iters:12}"
                f"  {report.forward.num_rmatvecs:12}  {report.backward.num_matvecs:13}  {report.status.name}"
            )


if __name__ == "__main__":
    main()
