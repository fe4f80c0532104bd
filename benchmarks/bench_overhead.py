"""What does a backward pass cost beyond its products?

For tanh networks ``z = tanh(z W^T + x)`` of several sizes, each solver's backward pass is timed against the bare chain
that any method must pay: one linearization of the map, as many vector-Jacobian products as the solver counted, and one
pull-back to the parameters. The two are run in turn; the table gives the median of the ratios. CPU time, one thread.

    python benchmarks/bench_overhead.py [--repeats 15] [--sizes 100 1000 5000] [--batches 1 64] [--rtol 1e-4]

Beside the solvers of implicitgrad stand a Neumann loop as one writes it by hand, without any check, and SciPy's gmres
and bicgstab on the same torch products.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import scipy.sparse.linalg as sla
import torch
from threadpoolctl import threadpool_limits

import implicitgrad as ig
import implicitgrad.torch as igt


@dataclass
class Problem:
    """A contractive tanh network at its fixed point, with a cotangent."""

    weight: torch.Tensor
    z: torch.Tensor
    x: torch.Tensor
    g: torch.Tensor
    batch_ndim: int

    @classmethod
    def make(cls, size: int, batch: int) -> Problem:
        torch.manual_seed(0)
        weight = torch.randn(size, size) * (0.4 / size**0.5)  # spectral radius 0.4, norm 0.8
        shape = (size,) if batch == 1 else (batch, size)
        x, z = torch.randn(shape), torch.zeros(shape)
        for _ in range(60):
            z = torch.tanh(z @ weight.T + x)
        return cls(weight.requires_grad_(), z, x, torch.randn(shape), 0 if batch == 1 else 1)

    def f(self, z: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ weight.T + x)

    def linearized(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = self.z.detach().requires_grad_()
        weight = self.weight.detach().requires_grad_()
        return z, weight, self.f(z, weight, self.x)

    def bare(self, products: int) -> None:
        z, weight, image = self.linearized()
        u = self.g
        for _ in range(products):
            (u,) = torch.autograd.grad(image, z, u, retain_graph=True)
        torch.autograd.grad(image, weight, u)


Backward = Callable[[Problem, float], int]


def of_solver(make: Callable[[float], ig.Solver]) -> Backward:
    """The backward pass of the layer as a user runs it; the graph is made outside of the timing."""

    def backward(problem: Problem, rtol: float) -> int:
        report = igt.Report()
        z = igt.implicit_gradient(
            problem.f,
            problem.z,
            problem.weight,
            problem.x,
            adjoint=make(rtol),
            batch_ndim=problem.batch_ndim,
            report=report,
        )
        start = time.process_time()
        torch.autograd.grad(z, problem.weight, problem.g)
        backward.seconds = time.process_time() - start  # type: ignore[attr-defined]
        assert report.backward is not None
        assert np.all(report.backward.converged), report
        return report.backward.num_matvecs

    return backward


def timed(run: Callable[[Problem, float], int]) -> Backward:
    def backward(problem: Problem, rtol: float) -> int:
        start = time.process_time()
        products = run(problem, rtol)
        backward.seconds = time.process_time() - start  # type: ignore[attr-defined]
        return products

    return backward


def hand_written_neumann(problem: Problem, rtol: float) -> int:
    z, weight, image = problem.linearized()
    total, term, products = problem.g.clone(), problem.g, 0
    bound = rtol * torch.linalg.vector_norm(problem.g)
    while torch.linalg.vector_norm(term) > bound:
        (term,) = torch.autograd.grad(image, z, term, retain_graph=True)
        total += term
        products += 1
    torch.autograd.grad(image, weight, total)
    return products


def scipy_solver(solve: Callable[..., tuple[np.ndarray, int]], **options: object) -> Callable[[Problem, float], int]:
    def run(problem: Problem, rtol: float) -> int:
        z, weight, image = problem.linearized()
        count = 0

        def matvec(u: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            cotangent = torch.from_numpy(np.ascontiguousarray(u, np.float32)).reshape(z.shape)
            (product,) = torch.autograd.grad(image, z, cotangent, retain_graph=True)
            return u - product.reshape(-1).numpy()

        size = z.numel()
        operator = sla.LinearOperator((size, size), matvec=matvec, dtype=np.float32)
        solution, _ = solve(operator, problem.g.reshape(-1).numpy(), rtol=rtol, atol=0.0, **options)
        torch.autograd.grad(image, weight, torch.from_numpy(solution.astype(np.float32)).reshape(z.shape))
        return count

    return run


CONTENDERS: dict[str, Backward] = {
    "Neumann": of_solver(lambda rtol: ig.Neumann(rtol=rtol)),
    "Richardson": of_solver(lambda rtol: ig.Richardson(rtol=rtol)),
    "BiCGSTAB": of_solver(lambda rtol: ig.BiCGSTAB(rtol=rtol)),
    "GMRES": of_solver(lambda rtol: ig.GMRES(rtol=rtol)),
    "Auto (default)": of_solver(lambda rtol: ig.Auto(rtol=rtol)),
    "Neumann by hand": timed(hand_written_neumann),
    "scipy gmres": timed(scipy_solver(sla.gmres, restart=100)),
    "scipy bicgstab": timed(scipy_solver(sla.bicgstab)),
}


def measure(problem: Problem, rtol: float, repeats: int, inner: int) -> list[tuple[str, int, float, float, float]]:
    """Return name, products, median ms, median ratio and its lower and upper quartile distance, one row a contender."""
    ratios: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    counts: dict[str, int] = {}
    for repeat in range(repeats + 1):
        for name, backward in CONTENDERS.items():
            spent = bare = 0.0
            for _ in range(inner):
                counts[name] = backward(problem, rtol)
                spent += backward.seconds  # type: ignore[attr-defined]
                start = time.process_time()
                problem.bare(counts[name])
                bare += time.process_time() - start
            if repeat:  # the first round warms up
                ratios[name].append(spent / bare)
                seconds[name].append(spent / inner)
    rows = []
    for name in CONTENDERS:
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        rows.append((name, counts[name], 1e3 * statistics.median(seconds[name]), middle, (high - low) / 2))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rtol", type=float, default=1e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, {platform.processor() or 'cpu'}"
    )
    print(
        f"tanh networks, float32, relative residual {options.rtol:g}; CPU time on one thread, {options.repeats} repeats"
    )
    print("ratio = backward pass / (linearization + counted products + pull-back), median +- half quartile range")
    with threadpool_limits(1):
        for size in options.sizes:
            for batch in options.batches:
                inner = 20 if size * batch <= 5000 else 1
                rows = measure(Problem.make(size, batch), options.rtol, max(options.repeats, 9), inner)
                print(f"\nn = {size}, batch {batch}")
                print(f"  {'':<16} {'products':>8} {'CPU ms':>9} {'ratio':>15}")
                for name, products, milliseconds, ratio, spread in rows:
                    print(f"  {name:<16} {products:>8} {milliseconds:>9.2f} {ratio:>8.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
