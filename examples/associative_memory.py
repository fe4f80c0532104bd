"""Train an associative memory through its fixed point, six ways, and see which gradients can be trusted.

The continuous Hopfield network of Liao et al. (2018, appendix 3.2) stores ten digits; then each is recalled from a copy
of which half is erased. As in the paper the network never sees an erased copy in training. Run

    python examples/associative_memory.py                                    # scikit-learn's 8 x 8 digits, no network
    python examples/associative_memory.py --dataset mnist --data-dir DIR     # the paper's images and sizes, much longer
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path
from textwrap import fill

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures the memory, is chatty

import torch
from hopfield import DataError, Digits, Hopfield, load_digits
from hopfield_gradients import (
    LARGEST_DENSE,
    UPDATES,
    all_methods,
    gradient_error,
    peak_memory,
    reference_gradient,
)
from method_table import SUCCESS, Run, table, verdict
from recall_picture import Row, draw
from tqdm import tqdm

# What each data set is trained with. MNIST has the paper's sizes and rates. The 8 x 8 digits have a fifteenth of its
# units, and a step of Adam changes the sum of a row of weights by (units * rate): their weights start larger, and move
# faster. In both, all ten images make one step, and the rate falls to zero as half a cosine: the L1 loss would keep a
# constant one from settling.
SETTINGS = {
    "digits": {"hidden": 64, "epochs": 600, "quick": 80, "scale": 1e-2, "rate": 2e-2},
    "mnist": {"hidden": 1024, "epochs": 300, "quick": 3, "scale": 1e-3, "rate": 1e-3},
}


def train(run: Run, digits: Digits, epochs: int, rate: float) -> None:
    """Fit the network of ``run`` with its method, and write down what that took."""
    net, method = run.net, run.method
    optimizer = torch.optim.Adam([net.weight], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    run.memory = peak_memory(lambda: method.gradient(net, digits.clean))
    started = time.perf_counter()
    with tqdm(range(epochs), desc=f"{method.name:<11}", unit="epoch", mininterval=0.2, ncols=88) as bar:
        for epoch in bar:
            step = method.gradient(net, digits.clean)
            loss = step.losses.mean().item()
            run.first_loss = run.first_loss or loss
            if run.halved is None and loss < SUCCESS * run.first_loss:
                run.halved, run.halved_at = copy.deepcopy(net), epoch
            run.products += (step.vjps + step.jvps) / epochs
            run.statuses.update(step.statuses)
            net.weight.grad = step.gradient
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss / run.first_loss:7.1%}", refresh=False)
    run.seconds = time.perf_counter() - started
    run.last_loss = net.losses(method.settle(net, digits.clean), digits.clean).mean().item()
    run.wrong = wrong_pixels(recall(run, digits.corrupted), digits.clean)


def wrong_pixels(images: torch.Tensor, clean: torch.Tensor) -> float:
    """Return the share of pixels on the wrong side of one half."""
    return ((images > 0.5) != (clean > 0.5)).float().mean().item()


def recall(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Return what the output units show ``(count, pixels)`` once the network has settled on ``images``."""
    return run.net.output(run.method.settle(run.net, images)).detach()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    def at_least(least: int):
        def number(text: str) -> int:
            if int(text) < least:
                raise argparse.ArgumentTypeError(f"got {text}, expected an integer >= {least}")
            return int(text)

        return number

    parser = argparse.ArgumentParser(
        description="Train an associative memory through its fixed point, six ways; print a table, draw a picture."
    )
    parser.add_argument("--dataset", choices=sorted(SETTINGS), default="digits", help="default: digits, 8 x 8 pixels")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the file of --dataset mnist lies")
    parser.add_argument("--epochs", type=at_least(1), metavar="N", help="default: 600 for digits, 300 for mnist")
    parser.add_argument(
        "--truncate", type=at_least(0), default=20, metavar="K", help="budget of TBPTT and RBP (default 20)"
    )
    parser.add_argument(
        "--hidden", type=at_least(1), metavar="N", help="hidden units; default: 64 for digits, 1024 for mnist"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of weights, erased pixels and RBP (default 0)"
    )
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that everything works")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/associative_memory.png"),
        metavar="FILE",
        help="default: %(default)s",
    )
    options = parser.parse_args(arguments)
    defaults = SETTINGS[options.dataset]
    options.epochs = options.epochs or defaults["quick" if options.quick else "epochs"]
    options.hidden = options.hidden or defaults["hidden"]
    options.scale, options.rate = defaults["scale"], defaults["rate"]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        digits = load_digits(options.dataset, options.data_dir, options.seed)
        report(options, digits)
    except DataError as error:
        print(f"associative_memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nassociative_memory: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def report(options: argparse.Namespace, digits: Digits) -> None:
    """Train with every method, then print the table and draw the picture."""
    start = Hopfield(digits.clean.shape[1], options.hidden, options.scale, options.seed)
    if start.size < 1000:
        torch.set_num_threads(1)  # on products this small a second thread only waits for the first
    print(
        f"Ten digits of {digits.side} x {digits.side} pixels in {start.size} units, {options.hidden} of them hidden; "
        f"{options.epochs} epochs, truncation K = {options.truncate}, seed {options.seed}.\n",
        flush=True,
    )
    runs = [Run(method, copy.deepcopy(start)) for method in all_methods(options.truncate, options.seed)]
    for run in runs:
        train(run, digits, options.epochs, options.rate)
    ours = runs[-1]
    middle, when = ours.halved or ours.net, f"epoch {ours.halved_at}" if ours.halved else "it never did: the last one"
    exact = [(net, reference_gradient(net, digits.clean)) for net in (start, middle)]
    for run in runs:
        run.errors = tuple(gradient_error(run.method, net, digits.clean, known) for net, known in exact)
    reference = "a dense solve" if start.size <= LARGEST_DENSE else "GMRES to 1e-10, a dense solve being too large,"
    notes = (
        f"Final loss: in % of the first. Gradient error: relative to {reference} in float64 at the exact fixed point, "
        f"for the untrained network and when {ours.method.name} had halved its loss ({when}). VJPs + JVPs: of one "
        "gradient, on average. Peak memory: the most that torch's allocator held during one gradient of the untrained "
        f"network. BPTT and TBPTT make {UPDATES} updates; the other rows are igt.fixed_point, solver by solver."
    )
    draw_recalls(runs, digits, options.output)
    print(f"\n{table(runs)}\n\n{fill(notes, 98)}\n\nPicture: {options.output}\n\n{fill(verdict(runs), 98)}")


def draw_recalls(runs: list[Run], digits: Digits, path: Path) -> None:
    """Draw the stored and the corrupted digits above what each method recalls."""

    def row(label: str, images: torch.Tensor, note: str = "", failed: bool = False) -> Row:
        shape = (-1, digits.side, digits.side)
        return Row(
            label, (images > 0.5).reshape(shape).numpy(), digits.clean.reshape(shape).numpy() > 0.5, note, failed
        )

    given = [
        row("stored", digits.clean),
        row("shown", digits.corrupted, f"{wrong_pixels(digits.corrupted, digits.clean):.1%} wrong"),
    ]
    recalled = [
        row(run.method.name, recall(run, digits.corrupted), f"{run.wrong:.1%} wrong", not run.learned) for run in runs
    ]
    title = "An associative memory, trained through its fixed point"
    subtitle = (
        "Half of each stored digit is erased; the network, which was trained on whole ones, is to fill it in. "
        "Pale red: still missing. Red: ink in error."
    )
    draw([given, recalled], title, subtitle, path)


if __name__ == "__main__":
    sys.exit(main())
