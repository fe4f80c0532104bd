"""What do value and gradient of lambda_min cost, by each of the three methods, beside one training gradient?

An equilibrium network ``h = tanh(W h + x)`` of ``n`` units, spectral radius 0.7, float64, one thread. Unit of time: one
gradient through ``fixed_point`` at its default tolerances. MiB: the most that tensors held at once. Error: that of the
gradient for ``W``, against autograd through the dense singular values.

    python benchmarks/bench_regularizers.py [n ...]
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import implicitgrad.torch as igt
from implicitgrad.torch.regularizers import (
    gershgorin_penalty,
    jacobian_norm_penalty,
    lambda_min,
    spectral_radius_penalty,
)

REPEATS = 3


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once; storages that are shared count once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


class Problem:
    """The network at its fixed point."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.W = (torch.randn(n, n, generator=generator, dtype=torch.float64) * 0.7 / n**0.5).requires_grad_()
        self.x = 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            self.h = igt.fixed_point(self.update, torch.zeros_like(self.x), self.W, self.x)

    def update(self, h: torch.Tensor, W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(W @ h + x)

    def dense(self) -> torch.Tensor:
        slope = 1 - torch.tanh(self.W @ self.h + self.x) ** 2
        A = torch.eye(len(self.h), dtype=torch.float64) - slope[:, None] * self.W
        return torch.autograd.grad(torch.linalg.svdvals(A)[-1] ** 2, self.W)[0]

    def train(self) -> None:
        igt.fixed_point(self.update, torch.zeros_like(self.x), self.W, self.x).square().sum().backward()
        self.W.grad = None


def milliseconds(work: Callable[[], object]) -> float:
    """Return the least processor time of a few runs, after one that is not counted."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return 1e3 * min(times)


def lambda_rows(problem: Problem, unit: float) -> None:
    exact = problem.dense()
    for method in ("hellmann-feynman", "adjoint", "unrolled"):
        for rtol in (1e-2, None):

            def work(method=method, rtol=rtol):
                value, result = lambda_min(
                    problem.update, problem.h, problem.W, problem.x, method=method, rtol=rtol, return_result=True
                )
                return torch.autograd.grad(value, problem.W)[0], result

            gradient, result = work()
            with PeakBytes() as memory:
                work()
            error = ((gradient - exact).norm() / exact.norm()).item()
            spent = milliseconds(work)
            name = f"lambda_min, {method}, rtol {'default' if rtol is None else rtol}"
            print(
                f"{len(problem.h):>6}  {name:<44}{result.num_iters:>6}{spent:>9.1f}{spent / unit:>8.1f}"
                f"{memory.peak / 2**20:>9.2f}{error:>10.0e}  {result.status.name}"
            )


def other_rows(problem: Problem, unit: float) -> None:
    ways = {
        "gershgorin, exact": lambda *a: gershgorin_penalty(*a, margin=1.0),
        "gershgorin, hutchinson": lambda *a: gershgorin_penalty(*a, margin=1.0, estimator="hutchinson"),
        "jacobian norm, hutchinson": jacobian_norm_penalty,
        "spectral radius": lambda *a: spectral_radius_penalty(*a, margin=1.0, on_failure="return"),
    }
    for name, penalty in ways.items():

        def work(penalty=penalty):
            return torch.autograd.grad(penalty(problem.update, problem.h, problem.W, problem.x), problem.W)[0]

        work()
        with PeakBytes() as memory:
            work()
        spent = milliseconds(work)
        print(f"{len(problem.h):>6}  {name:<44}{'':>6}{spent:>9.1f}{spent / unit:>8.1f}{memory.peak / 2**20:>9.2f}")


def main() -> None:
    torch.set_num_threads(1)
    sizes = [int(text) for text in sys.argv[1:]] or [100, 400]
    head = "loss term, value and gradient"
    print(f"{'n':>6}  {head:<44}{'steps':>6}{'ms':>9}{'ratio':>8}{'MiB':>9}{'error':>10}  status")
    for n in sizes:
        problem = Problem(n)
        unit = milliseconds(problem.train)
        print(f"{n:>6}  {'one gradient through fixed_point':<44}{'':>6}{unit:>9.1f}{1:>8.1f}")
        lambda_rows(problem, unit)
        other_rows(problem, unit)


if __name__ == "__main__":
    main()
