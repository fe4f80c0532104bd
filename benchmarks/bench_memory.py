"""How much memory does one backward pass take?

A map with one state-sized tensor in its graph, ``f(z, x) = tanh(a z + x)``, stands at its fixed point; what a backward
pass adds to what the caller holds (the state, ``a``, ``x``, the cotangent) is compared with the promise: one tracked
call of ``f`` with one product through it, plus the vectors that the solver states (k: its steps).

* *vectors measured*: every tensor that torch makes is counted until its storage is freed. The peak, less that of the
  tracked call and its product alone, in vectors; it does not depend on the machine.
* *MB*: peak resident memory less that before the pass, libraries warmed up, in a process of its own for each case
  (Linux; vectors above 32 MB, or malloc keeps what it is given back). *ratio* is that to the promise in MB.

    python benchmarks/bench_memory.py [--megabytes 40] [--cases CG GMRES ...] [--cotangent 1.0] [--exact] [--json]

``--cotangent`` is the norm of the cotangent: one far from 1, as loss gradients have, is scaled by the solver.
``--exact`` leaves out the second; ``--json`` prints one line of JSON a case. ``NormalEquations`` and ``LSMR`` use the
JVP, whose graph their call includes. Beside the solvers stand back-propagation through 30 unrolled steps (BPTT) and
through the last 20 (TBPTT), for which the unrolled graph is counted; they start at the fixed point.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import implicitgrad as ig
import implicitgrad.torch as igt

# Each solver and the vectors that its docstring states, after k steps.
SOLVERS: dict[str, tuple[ig.Solver, Callable[[int], int]]] = {
    "JFB": (ig.Neumann(max_iters=0), lambda k: 1),
    "Neumann": (ig.Neumann(rtol=1e-4), lambda k: 2),
    "Neumann(5)": (ig.Neumann(rtol=0, max_iters=5), lambda k: 2),
    "RussianRoulette": (ig.RussianRoulette(continuation=0.5, rng=np.random.default_rng(0)), lambda k: 2),
    "Richardson": (ig.Richardson(rtol=1e-4), lambda k: 3),
    "CG": (ig.CG(rtol=1e-4), lambda k: 4),
    "NormalEquations": (ig.NormalEquations(ig.CG(rtol=1e-4)), lambda k: 5),
    "LSMR": (ig.LSMR(rtol=1e-4), lambda k: 7),
    "BiCGSTAB": (ig.BiCGSTAB(rtol=1e-4), lambda k: 8),
    "MINRES": (ig.MINRES(rtol=1e-4), lambda k: 8),
    "GMRES": (ig.GMRES(rtol=0, max_iters=7, final_residual=True), lambda k: k + 2),
}
UNROLLED = {"BPTT(30)": 30, "TBPTT(20)": 20}


class Counter(TorchDispatchMode):
    """Bytes of the storages that torch made since it was entered, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}  # views, in-place
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self._known:
                    self._made(storage, storage._cdata, storage.nbytes())
        return result

    def _made(self, storage: Any, key: int, size: int) -> None:
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Case:
    """The map at its fixed point, with what the caller holds."""

    def __init__(self, size: int, cotangent: float = 1.0) -> None:
        torch.manual_seed(0)
        self.a = torch.rand(size).sub_(0.5)  # slopes in (-0.5, 0.5): J is diagonal, so symmetric too
        self.x = torch.randn(size).requires_grad_()
        self.g = torch.randn(size).mul_(cotangent * size**-0.5)
        self.z = torch.zeros(size)
        with torch.no_grad():
            for _ in range(40):
                self.z.mul_(self.a).add_(self.x).tanh_()

    def f(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.a * z + x)

    def tracked_call(self, with_jvp: bool = False) -> None:
        """One call with its graph and a product through it: what any backward pass must pay."""
        if with_jvp:
            J = igt.vjp_operator(self.f, self.z, self.x.detach())
            J.matvec(self.g)
            J.rmatvec(self.g)
            return
        point = self.z.detach().requires_grad_()
        torch.autograd.grad(self.f(point, self.x), point, self.g)

    def implicit(self, solver: ig.Solver) -> tuple[Callable[[], Any], igt.Report]:
        report = igt.Report()
        z = igt.implicit_gradient(self.f, self.z, self.x, adjoint=solver, on_failure="return", report=report)
        report.forward = None
        return (lambda: torch.autograd.grad(z, self.x, self.g)), report

    def unrolled(self, steps: int) -> None:
        z = self.z
        for _ in range(steps):
            z = self.f(z, self.x)
        torch.autograd.grad(z, self.x, self.g)


def peak_of(work: Callable[[], Any]) -> int:
    with Counter() as counter:
        work()
    return counter.peak


def resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def resident_peak_of(work: Callable[[], Any]) -> int:
    """Bytes by which the resident memory rose at most, from now on."""
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # the peak counts from here
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def run_case(name: str, size: int, exact: bool, cotangent: float) -> dict[str, Any]:
    """Measure one case in this process: bytes of the pass, and of the tracked call alone."""
    measure = peak_of if exact else resident_peak_of
    case, warm = Case(size, cotangent), Case(1000, cotangent)
    with_jvp = name in ("NormalEquations", "LSMR")
    warm.tracked_call(with_jvp)  # loads what is loaded late
    steps, stated, status = 0, 0, ""
    if name in UNROLLED:
        warm.unrolled(3)
        peak = measure(lambda: case.unrolled(UNROLLED[name]))
    else:
        solver, vectors = SOLVERS[name]
        warm.implicit(solver)[0]()
        backward, report = case.implicit(solver)
        peak = measure(backward)
        solution = report.backward
        assert solution is not None
        steps, status = int(solution.num_iters), solution.status.name
        stated = vectors(steps)
        report.backward = solution = None
    call = measure(lambda: case.tracked_call(with_jvp))
    return {
        "case": name,
        "k": steps,
        "status": status,
        "stated": stated,
        "peak": peak,
        "call": call,
        "vector": 4 * size,
    }


def in_a_process(name: str, size: int, cotangent: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--size", str(size), "--cotangent", str(cotangent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table_row(name: str, megabytes: int | None, cotangent: float) -> dict[str, Any]:
    """Count tensors in this process and, if a size is given, measure resident memory in another."""
    row = run_case(name, 4096, True, cotangent)
    row["measured"] = (row["peak"] - row["call"]) / row["vector"]
    if megabytes:
        large = in_a_process(name, megabytes * 10**6 // 4, cotangent)
        row["MB"] = large["peak"] / 1e6
        promise = row["call"] / row["vector"] + vectors_of(name, large["k"])
        row["MB_promised"] = promise * large["vector"] / 1e6
    return row


def vectors_of(name: str, steps: int) -> int:
    return SOLVERS[name][1](steps) if name in SOLVERS else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40, help="size of a vector where resident memory is measured")
    parser.add_argument("--cases", nargs="*", choices=[*SOLVERS, *UNROLLED], default=[*SOLVERS, *UNROLLED])
    parser.add_argument("--cotangent", type=float, default=1.0, help="norm of the cotangent")
    parser.add_argument("--exact", action="store_true", help="count tensors only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_case(options.child, options.size, False, options.cotangent)))
        return
    if not options.json:
        print(f"torch {torch.__version__}, vectors of {options.megabytes} MB; beyond what the caller holds")
        print(f"{'method':16} {'k':>3} {'vectors stated':>15} {'measured':>9} {'MB':>6} {'promised':>9} {'ratio':>6}")
    for name in options.cases:
        row = table_row(name, None if options.exact else options.megabytes, options.cotangent)
        if options.json:
            print(json.dumps(row))
            continue
        stated = row["stated"] or "-"
        line = f"{name:16} {row['k'] or '-':>3} {stated:>15} {row['measured']:>9.2f}"
        if not options.exact:
            line += f" {row['MB']:>6.0f}"
            if row["stated"]:
                line += f" {row['MB_promised']:>9.0f} {row['MB'] / row['MB_promised']:>6.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
