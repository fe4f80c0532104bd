"""Training through a fixed point that breaks, and the same training with ``lambda_min_penalty``, which does not.

A small equilibrium network is asked for a function with edges. The cheapest edge is feedback: as a unit's weight on
itself grows, its response steepens, until at a fold the fixed point is no function any more. There ``I - J`` is
singular: on the way ``sigma_min`` falls, gradients grow like ``1 / sigma_min``, and one step throws the weights to
where nothing is left to learn from. The penalty keeps ``sigma_min`` up, and the edges are made of input weights
instead. Run

    python examples/regularized_training.py            # three seeds, three ways; a minute or two
    python examples/regularized_training.py --quick    # one seed, the first 32 steps
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from regularized_picture import Curve, draw

import implicitgrad as ig
import implicitgrad.torch as igt

UNITS, POINTS = 8, 40
RATE, MOMENTUM = 0.1, 0.9
MARGIN, WEIGHT = 0.25, 5.0  # lambda_min that is wanted, so sigma_min >= 0.5; how much the penalty counts
# To the accuracy that a stochastic gradient needs: the pair is right to 1%, and so is the penalty's gradient.
PAIR_TOLERANCE = 1e-2


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x`` and ``y``, ``(POINTS, 1)`` each: a square wave with three edges."""
    x = torch.linspace(-1, 1, POINTS, dtype=torch.float64)[:, None]
    return x, torch.sign(torch.sin(6 * x + 0.4))


class Network(torch.nn.Module):
    """``h = tanh(W h + U x + b)``, read out by ``R h``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(scale * torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.W = normal(UNITS, UNITS, scale=0.5 / UNITS**0.5)
        self.U = normal(UNITS, 1, scale=1.0)
        self.b = normal(UNITS, scale=0.5)
        self.R = normal(1, UNITS, scale=UNITS**-0.5)

    def update(self, h: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        """Return the next state ``(points, units)``: the map whose fixed point is wanted."""
        return torch.tanh(h @ self.W.T + drive)

    def drive(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the input adds in each update."""
        return x @ self.U.T + self.b

    def settle(self, x: torch.Tensor, report: igt.Report | None = None) -> torch.Tensor:
        """Return the fixed point, with its implicit gradient."""
        start = torch.zeros(len(x), UNITS, dtype=x.dtype)
        return igt.fixed_point(
            self.update,
            start,
            self.drive(x),
            solver=igt.Anderson(rtol=1e-6, max_iters=60),
            adjoint=ig.GMRES(rtol=1e-4),
            batch_ndim=1,
            on_failure="return",  # counted below instead
            report=report,
        )


@dataclass
class Run:
    """One training and its diary, an entry a step."""

    name: str
    margin: float | None
    seed: int
    net: Network = field(init=False)
    losses: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of processor time
    plain_seconds: list[float] = field(default_factory=list)  # the same step without the penalty, now and then
    right: int = 0

    def __post_init__(self) -> None:
        self.net = Network(self.seed)

    @property
    def step_time(self) -> float:
        """The median step in milliseconds."""
        return 1e3 * float(np.median(self.seconds))

    @property
    def share(self) -> float:
        """The part of a step that is the penalty's: its value and its gradient."""
        return 1 - float(np.median(self.plain_seconds)) / float(np.mean(self.seconds))


def gradient_of(run: Run, x: torch.Tensor, y: torch.Tensor, weight: float) -> tuple[torch.Tensor, igt.Report, object]:
    """Leave the gradient of loss and penalty in the network; return the loss and what is known of the solves."""
    net, report, spectrum = run.net, igt.Report(), None
    h = net.settle(x, report)
    loss = total = (h @ net.R.T - y).square().mean()
    if weight:
        # h keeps its history, so the penalty sees that the fixed point moves with the weights.
        penalty, spectrum = igt.lambda_min_penalty(
            net.update,
            h,
            net.drive(x),
            margin=run.margin,
            batch_ndim=1,
            rtol=PAIR_TOLERANCE,
            on_failure="return",
            return_result=True,
        )
        total = loss + weight * penalty.mean()
    net.zero_grad()
    total.backward()
    return loss, report, spectrum


def train(run: Run, steps: int, weight: float, every: int = 1) -> None:
    """Train by gradient descent with momentum, and write the diary."""
    x, y = data()
    net = run.net
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    for step in range(steps):
        if run.margin and step % 8 == 0:
            started = time.process_time()
            gradient_of(run, x, y, 0.0)
            run.plain_seconds.append(time.process_time() - started)
        penalized = run.margin is not None and step % every == 0
        started = time.process_time()
        loss, report, spectrum = gradient_of(run, x, y, every * weight if penalized else 0.0)
        run.seconds.append(time.process_time() - started)
        if spectrum is None:  # looked at, not trained with; not part of the time
            with torch.no_grad():
                settings = {"batch_ndim": 1, "rtol": PAIR_TOLERANCE, "on_failure": "return", "return_result": True}
                _, spectrum = igt.lambda_min(net.update, report.forward.x, net.drive(x), **settings)
        run.losses.append(loss.item())
        run.sigmas.append(float(spectrum.value.min()))
        run.gradients.append(float(torch.cat([p.grad.reshape(-1) for p in net.parameters()]).norm()))
        run.failures.append(sum(int((~np.asarray(part.converged)).sum()) for part in (report.forward, report.backward)))
        optimizer.step()
    with torch.no_grad():
        run.right = int(((net.settle(x) @ net.R.T) * y > 0).sum())


def table(groups: Sequence[Sequence[Run]]) -> str:
    """Return a line for each run, seed by seed."""
    lines = [
        f"{'':<22}{'last':>8}{'right of':>11}{'smallest':>11}{'largest':>10}{'failed':>9}{'ms of a':>10}",
        f"{'penalty':<22}{'loss':>8}{POINTS:>11}{'sigma_min':>11}{'gradient':>10}{'solves':>9}{'step':>10}",
        "-" * 81,
    ]
    for group in groups:
        lines += [f"seed {group[0].seed}"] if len(groups) > 1 else []
        lines += [
            f"{run.name:<22}{run.losses[-1]:>8.3f}{run.right:>11}{min(run.sigmas):>11.4f}{max(run.gradients):>10.1f}"
            f"{sum(run.failures):>9}{run.step_time:>10.1f}"
            for run in group
        ]
    return "\n".join(lines)


def worst(groups: Sequence[Sequence[Run]]) -> Sequence[Run]:
    """Return the group whose gradients grew largest without a penalty: the one that is drawn and spoken of."""
    return max(groups, key=lambda group: max(group[0].gradients))


def verdict(groups: Sequence[Sequence[Run]]) -> str:
    """Return what the numbers show, in words; every one of them is taken from the runs."""
    pairs = [(group[0], group[-1]) for group in groups]
    better = sum(ours.losses[-1] < plain.losses[-1] / 2 for plain, ours in pairs)
    plain, ours = worst(groups)[0], worst(groups)[-1]
    same = all(run.losses == group[0].losses for group in groups for run in group if run.margin == 0)
    text = (
        f"In {better} of {len(pairs)} trainings the penalty ends at less than half of the loss without it. For seed "
        f"{plain.seed} sigma_min fell to {min(plain.sigmas):.4f} without and to {min(ours.sigmas):.3f} with it; the "
        f"largest gradient was {max(plain.gradients):.1f} against {max(ours.gradients):.1f}, and "
        f"{sum(plain.failures)} solves against {sum(ours.failures)} did not converge. The penalty takes "
        f"{ours.share:.0%} of a training step of this tiny network, where the call of a product costs more than the "
        "product. "
    )
    return text + (
        "With margin = 0, the paper's penalty max(0, -lambda_min), every loss is the same to the last bit: it is "
        "identically zero."
        if same
        else "With margin = 0 the losses differ from those without a penalty, which should not be."
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    def at_least_one(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"got {text}, expected an integer >= 1")
        return int(text)

    parser = argparse.ArgumentParser(
        description="Train an equilibrium network with and without lambda_min_penalty; print a table, draw a picture."
    )
    parser.add_argument("--steps", type=at_least_one, metavar="N", help="training steps (default 240; quick: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first of them (default 0)")
    parser.add_argument("--seeds", type=at_least_one, metavar="N", help="how many networks (default 3; quick: 1)")
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help="the lambda_min that is wanted (default %(default)s)"
    )
    parser.add_argument("--weight", type=float, default=WEIGHT, help="of the penalty in the loss (default %(default)s)")
    parser.add_argument(
        "--every", type=at_least_one, default=1, metavar="K", help="penalize each K-th step only, K times as strongly"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that everything works")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/regularized_training.png"), metavar="FILE", help="the picture"
    )
    options = parser.parse_args(arguments)
    options.steps = options.steps or (32 if options.quick else 240)
    options.seeds = options.seeds or (1 if options.quick else 3)
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # on products this small a second thread only waits for the first
    groups = []
    try:
        for seed in range(options.seed, options.seed + options.seeds):
            group = [
                Run("none", None, seed),
                Run("margin = 0 (paper)", 0.0, seed),
                Run(f"margin = {options.margin:g}", options.margin, seed),
            ]
            for run in group:
                print(f"seed {seed}, penalty: {run.name} ...", file=sys.stderr, flush=True)
                train(run, options.steps, options.weight, options.every)
            groups.append(group)
    except KeyboardInterrupt:
        print("\nregularized_training: interrupted; nothing was written.", file=sys.stderr)
        return 130
    x, y = data()
    with torch.no_grad():
        curves = [
            Curve(
                run.name, run.losses, run.sigmas, run.gradients, run.failures, (run.net.settle(x) @ run.net.R.T)[:, 0]
            )
            for run in (worst(groups)[0], worst(groups)[-1])
        ]
    draw(curves, x[:, 0].numpy(), y[:, 0].numpy(), options.margin**0.5, options.output)
    print(
        f"{table(groups)}\n\nPicture, of seed {worst(groups)[0].seed}: {options.output}\n\n{fill(verdict(groups), 98)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
