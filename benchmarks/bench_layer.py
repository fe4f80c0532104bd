"""What does the layer itself cost, beyond the calls and products that it makes?

``igt.fixed_point`` with a fixed number K of Picard steps and K Neumann terms is timed against the same arithmetic by
hand: K + 1 calls of the map without gradients, one linearization, K vector-Jacobian products and one pull-back,
without any check, status, freezing or report. The two are run in turn; the table gives the median of the ratios. The
overhead is split into a part for each pass and a part for each step by the difference between two K. CPU time, one
thread.

    python benchmarks/bench_layer.py [--repeats 15] [--sizes 100 1000] [--batches 1 64] [--profile]

``--profile`` prints where the Python time of a pass without steps goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from threadpoolctl import threadpool_limits

import implicitgrad as ig
import implicitgrad.torch as igt

STEPS = (0, 10, 20)  # few enough that no sample reaches the floor of float32 and ends before the loop by hand does


class Problem:
    """z = tanh(z W^T + x) with W of spectral radius 0.8, a start and a cotangent."""

    def __init__(self, size: int, batch: int) -> None:
        torch.manual_seed(0)
        shape = (size,) if batch == 1 else (batch, size)
        self.weight = (torch.randn(size, size) * (0.8 / size**0.5)).requires_grad_()
        self.x, self.z0, self.g = torch.randn(shape), torch.zeros(shape), torch.randn(shape)
        self.batch_ndim = 0 if batch == 1 else 1

    @staticmethod
    def f(z: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ weight.T + x)

    def layer(self, steps: int, report: igt.Report | None = None) -> tuple[float, float, torch.Tensor]:
        """Return the seconds of the forward and of the backward pass, and the gradient."""
        start = time.process_time()
        z = igt.fixed_point(
            self.f,
            self.z0,
            self.weight,
            self.x,
            solver=igt.Picard(rtol=0.0, atol=0.0, max_iters=steps),
            adjoint=ig.Neumann(rtol=0.0, atol=0.0, max_iters=steps),
            batch_ndim=self.batch_ndim,
            on_failure="return",
            report=report,
        )
        middle = time.process_time()
        (gradient,) = torch.autograd.grad(z, self.weight, self.g)
        return middle - start, time.process_time() - middle, gradient

    def by_hand(self, steps: int) -> tuple[float, float, torch.Tensor]:
        """Return the same for the loop; it makes the calls that the layer makes, its last one included."""
        start = time.process_time()
        z = self.z0
        with torch.no_grad():
            for _ in range(steps + 1):
                before, z = z, self.f(z, self.weight, self.x)
        middle = time.process_time()
        point, weight = before.detach().requires_grad_(), self.weight.detach().requires_grad_()
        image = self.f(point, weight, self.x)
        total, term = self.g, self.g
        for _ in range(steps):
            (term,) = torch.autograd.grad(image, point, term, retain_graph=True)
            total = total + term
        (gradient,) = torch.autograd.grad(image, weight, total)
        return middle - start, time.process_time() - middle, gradient


def measure(problem: Problem, repeats: int, inner: int) -> dict[int, dict[str, list[list[float]]]]:
    """Return seconds per pass, forward and backward, of every repeat, by K and by contender."""
    seconds: dict[int, dict[str, list[list[float]]]] = {k: {"layer": [], "hand": []} for k in STEPS}
    for repeat in range(repeats + 1):
        for k in STEPS:
            for name, run in (("layer", problem.layer), ("hand", problem.by_hand)):
                runs = [run(k)[:2] for _ in range(inner)]
                if repeat:  # the first round warms up
                    seconds[k][name].append([sum(part) / inner for part in zip(*runs, strict=True)])
    return seconds


def spread(values: list[float]) -> tuple[float, float]:
    """Return the median and half the quartile range."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, (high - low) / 2


def profile(problem: Problem) -> None:
    for _ in range(20):
        problem.layer(0)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(200):
        problem.layer(0)
    profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(25)


def table(size: int, batch: int, repeats: int) -> None:
    problem = Problem(size, batch)
    for k in STEPS:  # the same arithmetic, or the ratio means nothing
        report = igt.Report()
        torch.testing.assert_close(problem.layer(k, report)[2], problem.by_hand(k)[2], rtol=1e-4, atol=1e-5)
        assert report.forward is not None
        assert report.backward is not None
        assert (report.forward.num_matvecs, report.backward.num_matvecs) == (k + 1, k), report
    seconds = measure(problem, repeats, 10 if size * batch <= 6400 else 1)
    print(f"\nn = {size}, batch {batch}")
    print(f"  {'K':>4} {'forward':>15} {'backward':>15} {'both':>15} {'hand, both, us':>15} {'overhead, us':>15}")
    part: Callable[[list[float]], float]
    overhead = {}
    for k in STEPS:
        cells = []
        for part in (lambda s: s[0], lambda s: s[1], sum):
            pairs = zip(seconds[k]["layer"], seconds[k]["hand"], strict=True)
            middle, half = spread([part(ours) / part(hand) for ours, hand in pairs])
            cells.append(f"{middle:>7.2f} +- {half:.2f}")
        pairs = zip(seconds[k]["layer"], seconds[k]["hand"], strict=True)
        overhead[k] = statistics.median(sum(ours) - sum(hand) for ours, hand in pairs)
        hand = statistics.median(sum(s) for s in seconds[k]["hand"])
        print(f"  {k:>4} {cells[0]:>15} {cells[1]:>15} {cells[2]:>15} {1e6 * hand:>15.0f} {1e6 * overhead[k]:>15.0f}")
    few, many = STEPS[0], STEPS[-1]
    a_step = (overhead[many] - overhead[few]) / (many - few)
    print(
        f"  overhead: {1e6 * overhead[few]:.0f} us a pass and {1e6 * a_step:.0f} us a step (one call and one product)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        if options.profile:
            profile(Problem(options.sizes[0], options.batches[0]))
            return
        print(f"torch {torch.__version__}, {platform.processor() or 'cpu'}; CPU time on one thread")
        print(f"layer / by hand, median +- half quartile range of {max(options.repeats, 9)} repeats; float32")
        for size in options.sizes:
            for batch in options.batches:
                table(size, batch, max(options.repeats, 9))


if __name__ == "__main__":
    main()
