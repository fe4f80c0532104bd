"""What does sigma_min(I - J) cost, how right is it, and how often is what is said of it true?

Three tables, one thread:

* ``peers``: products, CPU time and error beside SciPy's eigsh, lobpcg and svds, on a dense matrix (n = 2000) and on an
  operator of Householder reflections around a diagonal (n = 1e5, relative gap 2.9e-4 of the squares). One product is a
  JVP and a VJP. ``first`` is the product after which the Ritz value of an unrestarted search is within 1e-6: no Krylov
  method from that start can have it sooner.
* ``accuracy``: relative error of sigma_min down to 1e-8 of the norm.
* ``certificates``: generated cases in which the true value lies where it was said to lie.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import scipy.sparse.linalg as sla
from threadpoolctl import threadpool_limits

import implicitgrad as ig
from implicitgrad.spectral.golub_kahan import GolubKahan
from implicitgrad.spectral.space import Space
from implicitgrad.testing import KINDS

GAP = 2.9e-4


class Reflected(ig.LinearOperator):
    """``A = L diag(values) R`` with ``L`` and ``R`` two Householder reflections each: known singular values, O(n)."""

    def __init__(self, values: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.values = values
        self.shape = (len(values), len(values))
        self.dtype = values.dtype
        self.axes = [w / np.linalg.norm(w) for w in rng.standard_normal((4, len(values)))]
        self.forward = self.backward = 0

    def reflect(self, axes: Any, x: Any) -> Any:
        for w in axes:
            x = x - (2 * (x @ w))[..., None] * w
        return x

    def apply(self, x: Any) -> Any:
        self.forward += 1
        return self.reflect(self.axes[2:], self.values * self.reflect(self.axes[:2], x))

    def apply_adjoint(self, y: Any) -> Any:
        self.backward += 1
        return self.reflect(self.axes[1::-1], self.values * self.reflect(self.axes[:1:-1], y))


class Dense(ig.LinearOperator):
    """A dense matrix that counts."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.forward = self.backward = 0

    def apply(self, x: Any) -> Any:
        self.forward += 1
        return x @ self.matrix.T

    def apply_adjoint(self, y: Any) -> Any:
        self.backward += 1
        return y @ self.matrix


def squares(n: int, gap: float, low: float, high: float) -> Any:
    """Return ``n`` eigenvalues of ``A^H A``: the smallest, a relative gap, and the rest evenly spread."""
    return np.concatenate([[low], np.linspace(low + gap * (high - low), high, n - 1)])


def orthogonal(rng: np.random.Generator, n: int) -> Any:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def first_product(operator: Any, true: float, most: int, seed: int = 0) -> int | None:
    """Return after how many products the unrestarted Ritz value is within 1e-6, for the default random start."""
    space = Space("bench", operator, seed=seed, adjoint=True)
    process = GolubKahan(space, space.start, most)
    for _ in range(most):
        process.step()
    values = [process.ritz("smallest", k).values[0, 0] for k in range(1, most + 1)]
    within = [k for k, value in enumerate(values, start=1) if value <= true * (1 + 1e-6)]
    return within[0] if within else None


def ours(**settings: Any) -> Callable[[Any], tuple[float, str]]:
    def run(operator: Any) -> tuple[float, str]:
        result = ig.smallest_singular_value(operator, on_failure="return", **settings)
        return result.value, result.status.name

    return run


def normal(operator: Any) -> Any:
    return sla.LinearOperator(
        operator.shape,
        matvec=lambda v: operator.apply_adjoint(operator.apply(v.ravel())),
        matmat=lambda V: np.stack([operator.apply_adjoint(operator.apply(v)) for v in V.T], axis=1),
        dtype=float,
    )


def eigsh(tol: float) -> Callable[[Any], tuple[float, str]]:
    def run(operator: Any) -> tuple[float, str]:
        v0 = np.random.default_rng(0).standard_normal(operator.shape[1])
        try:
            values = sla.eigsh(normal(operator), k=1, which="SA", ncv=40, tol=tol, v0=v0, return_eigenvectors=False)
        except sla.ArpackNoConvergence as error:
            return float("nan"), str(error)[:30]
        return max(values[0], 0.0) ** 0.5, "returned"

    return run


def lobpcg(tol: float) -> Callable[[Any], tuple[float, str]]:
    def run(operator: Any) -> tuple[float, str]:
        X = np.random.default_rng(0).standard_normal((operator.shape[1], 3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values, _ = sla.lobpcg(normal(operator), X, largest=False, tol=tol, maxiter=500)
        return max(values[0], 0.0) ** 0.5, "warned" if caught else "returned"

    return run


def svds(solver: str, tol: float) -> Callable[[Any], tuple[float, str]]:
    def run(operator: Any) -> tuple[float, str]:
        A = sla.LinearOperator(
            operator.shape,
            matvec=lambda v: operator.apply(v.ravel()),
            rmatvec=lambda u: operator.apply_adjoint(u.ravel()),
            dtype=float,
        )
        options: dict[str, Any] = {"maxiter": 1000} if solver != "lobpcg" else {"maxiter": 300}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                values = sla.svds(
                    A, k=1, which="SM", solver=solver, tol=tol, return_singular_vectors=False, rng=0, **options
                )
            except (sla.ArpackError, np.linalg.LinAlgError) as error:
                return float("nan"), type(error).__name__
        return float(values[0]), "warned" if caught else "returned"

    return run


def peers(n: int, quick: bool) -> None:
    rng = np.random.default_rng(0)
    m = 400 if quick else 2000
    dense_squares = squares(m, 9.9e-4, 0.09, 3.0)
    problems = [
        ("dense", Dense((orthogonal(rng, m) * np.sqrt(dense_squares)) @ orthogonal(rng, m)), dense_squares[0] ** 0.5),
    ]
    for low, high in ((0.05, 4.0), (1.5, 2.5)):
        reflected = squares(n, GAP, low, high)
        problems.append(("Householder", Reflected(np.sqrt(reflected)), low**0.5))
    for name, operator, true in problems:
        first = first_product(operator, true, 330)
        rows: list[tuple[str, Callable[[Any], tuple[float, str]]]] = [
            *[(f"gap, memory {k}", ours(criterion="gap", rtol=1e-6, memory=k)) for k in (5, 6, 8, 12, 32)],
            ("residual, memory 12", ours(rtol=1e-6, memory=12)),
            ("residual, default", ours(rtol=1e-6)),
            ("eigsh SA, ncv 40, 1e-4", eigsh(1e-4)),
            ("eigsh SA, ncv 40, 1e-6", eigsh(1e-6)),
            ("lobpcg, block 3, 1e-4", lobpcg(1e-4)),
        ]
        if name == "dense":
            rows += [(f"svds {solver}", svds(solver, 1e-6)) for solver in ("arpack", "lobpcg", "propack")]
        print(f"\n{name}, n = {operator.shape[0]}, sigma_min = {true:.4f}; first = {first} products")
        print(f"  {'':<24} {'products':>8} {'/ first':>8} {'CPU s':>7} {'error':>9}  said")
        for label, run in rows:
            operator.forward = operator.backward = 0
            start = time.process_time()
            value, said = run(operator)
            seconds = time.process_time() - start
            products = max(operator.forward, operator.backward)
            ratio = f"{products / first:.2f}" if first else "-"
            error = (value - true) / true
            print(f"  {label:<24} {products:>8} {ratio:>8} {seconds:>7.2f} {error:>9.1e}  {said}", flush=True)


def accuracy(sizes: list[int]) -> None:
    print(f"\n  {'n':>5} {'spectrum':<10} {'sigma_min':>9} {'steps':>6} {'error':>8} {'of A^H A':>9}  said")
    for n in sizes:
        rng = np.random.default_rng(n)
        left, right = orthogonal(rng, n), orthogonal(rng, n)
        for spectrum in ("uniform", "clustered", "geometric"):
            for ratio in (1e-2, 1e-4, 1e-6, 1e-8):
                if spectrum == "geometric" and n > 500 and ratio != 1e-8:
                    continue  # the same n steps again
                values = {
                    "uniform": rng.uniform(0.1, 1.0, n),
                    "clustered": 1.0 + 0.1 * rng.standard_normal(n).clip(-3, 3),
                    "geometric": np.geomspace(ratio, 1.0, n),
                }[spectrum]
                values[0] = ratio
                matrix = (left * values) @ right
                # A geometric spectrum crowds at its lower end: only the whole space tells its last two apart.
                whole = {"memory": n, "max_iters": n} if spectrum == "geometric" else {}
                result = ig.smallest_singular_value(ig.DenseOperator(matrix), on_failure="return", **whole)
                error = abs(result.value - ratio) / ratio
                naive = np.linalg.eigvalsh(matrix.T @ matrix)[0]
                squared = "negative" if naive < 0 else f"{abs(naive**0.5 - ratio) / ratio:.1e}"
                print(
                    f"  {n:>5} {spectrum:<10} {ratio:>9.0e} {result.num_iters:>6} {error:>8.1e} {squared:>9}  "
                    f"{result.status.name}",
                    flush=True,
                )


def generated(seed: int) -> tuple[str, Any, ig.LinearOperator]:
    """Return a kind, a dense matrix and its operator, of any kind of the library's own test matrices."""
    rng = np.random.default_rng([seed, 1])
    kind = sorted(KINDS)[seed % len(KINDS)]
    matrix = KINDS[kind].make(rng, int(rng.integers(1, 41)), bool(rng.integers(2)))
    matrix = matrix * KINDS[kind].factor[1]
    J = ig.DenseOperator(matrix, symmetric=KINDS[kind].symmetric)
    if KINDS[kind].shifted:
        return kind, np.eye(len(matrix)) - matrix, ig.identity_minus(J)
    return kind, matrix, J


def certificates(count: int, first: int = 0) -> None:
    """Count, over generated cases with full and with short budgets, what was said and not true."""
    names = ("sigma_min in [lower, upper]", "a value in residual_interval", "sigma_min in residual_interval")
    held = dict.fromkeys(names, 0)
    unconditional = broken = order = symmetric = converged = right = informative = 0
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        kind, dense, A = generated(seed)
        budget = [60, 60, int(rng.integers(1, 15))][seed % 3]  # 60 are enough for a whole basis, not for 8 vectors
        memory = [None, 8][int(rng.integers(2))]
        result = ig.smallest_singular_value(A, max_iters=budget, memory=memory, seed=seed, on_failure="return")
        values = np.linalg.svd(dense, compute_uv=False)
        rounding = 16 * 2.0**-52 * (values[0] + 1.0 * KINDS[kind].shifted)
        lo, hi = result.residual_interval
        held[names[0]] += bool(result.lower - rounding <= values[-1] <= result.upper + rounding)
        held[names[1]] += bool(((values >= lo - rounding) & (values <= hi + rounding)).any())
        held[names[2]] += bool(lo - rounding <= values[-1] <= hi + rounding)
        bad_lower = result.condition.startswith("unconditional") and result.lower > values[-1] + rounding
        unconditional += 1
        informative += bool(result.lower > 0)
        broken += bool(bad_lower or values[-1] > result.upper + rounding)
        converged += result.converged
        right += bool(result.converged and abs(result.value - values[-1]) <= 1e-6 * values[-1] + rounding)
        if KINDS[kind].symmetric:
            symmetric += 1
            low = ig.smallest_eigenvalue(A, max_iters=budget, memory=memory, seed=seed, on_failure="return")
            true = np.linalg.eigvalsh(dense)[0]
            slack = rounding * len(dense) ** 0.5
            bounds = [ig.gershgorin_lower_bound(A, bound=b) for b in ("rows", "norm", "frobenius", "paper")]
            order += bool(max(bounds) <= true + slack and true <= low.upper + slack)
    print(
        f"\n{count} cases generated from seed {first} on, n <= 40, all kinds, real and complex, whole and short budgets"
    )
    for name, hits in held.items():
        print(f"  {name:<34} {hits:>6} of {count}  ({100 * hits / count:.2f} %)")
    print(f"  of these with lower > 0            {informative:>6} of {count}")
    print(f"  unconditional bounds violated      {broken:>6} of {unconditional}")
    print(f"  Gershgorin <= lambda_min <= Ritz   {order:>6} of {symmetric}")
    print(f"  CONVERGED, and sigma_min to 1e-6   {right:>6} of {converged} CONVERGED")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="*", default=["peers", "accuracy", "certificates"])
    parser.add_argument("--size", type=int, default=100_000, help="of the Householder operator")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000], help="of the accuracy table")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--quick", action="store_true", help="small sizes, few cases")
    options = parser.parse_args()
    if options.quick:
        options.size, options.sizes, options.cases = 5000, [100], 300
    print(
        f"numpy {np.__version__}, scipy {scipy.__version__}, {platform.processor() or platform.machine()}, one thread"
    )
    with threadpool_limits(1):
        if "peers" in options.tables:
            peers(options.size, options.quick)
        if "accuracy" in options.tables:
            accuracy(options.sizes)
        if "certificates" in options.tables:
            certificates(options.cases, options.first)


if __name__ == "__main__":
    main()
