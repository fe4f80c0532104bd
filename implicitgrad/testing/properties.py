"""What must hold of operators and solvers, as checks: each asserts, returns None, and says by how much it failed.

Users run them on their own maps and solvers, our tests on every solver of the package. The tolerance of every
comparison is formed in ``assert_close``, from the spacing of the dtype, the size and the conditioning, nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.operators import LinearOperator
from implicitgrad.solvers import Solution, Solver
from implicitgrad.status import Status
from implicitgrad.testing.oracles import Problem, counted, eps_of, scaled_norm

__all__ = [
    "assert_adjoint",
    "assert_batch_is_loop",
    "assert_close",
    "assert_honest_counts",
    "assert_linear",
    "assert_no_false_success",
    "assert_scale_equivariant",
]

# A sum of n products is off by at most n eps, in practice by sqrt(n) eps; this leaves room for some twenty such sums.
_SAFETY = 32.0


def assert_close(
    actual: Any, expected: Any, *, eps: float | None = None, condition: float = 1.0, scale: Any = None
) -> None:
    """Assert that two arrays agree up to rounding, vector by vector: the one place where a tolerance is formed.

    Parameters
    ----------
    actual, expected : array, shape (..., n)
        Of any supported library; compared in double precision.
    eps : float, optional
        Spacing of the format that ``actual`` was computed in. Default: that of its dtype.
    condition : float
        By how much the computation may magnify rounding: a condition number, or a number of steps.
    scale : array, optional
        Vectors, of the shape of ``expected``, whose norms the difference is measured against. Default: ``expected``.

    Raises
    ------
    AssertionError
        ``norm(actual - expected) > 32 sqrt(n) eps condition norm(scale)`` for some vector.

    Examples
    --------
    >>> import numpy as np
    >>> assert_close(np.array([0.1 + 0.2]), np.array([0.3]))
    """
    eps = eps_of(backend_of(actual).dtype_name(actual.dtype)) if eps is None else eps
    actual, expected = _wide(actual), _wide(expected)
    assert actual.shape == expected.shape, f"got shape {actual.shape}, expected {expected.shape}"
    size = scaled_norm(expected if scale is None else _wide(scale))
    gap = scaled_norm(actual - expected)
    tolerance = _SAFETY * np.sqrt(max(actual.shape[-1], 1)) * eps * condition * size
    excess = np.where(gap > tolerance, gap, 0.0)
    assert np.isfinite(gap).all(), "got NaN or Inf"
    assert not excess.any(), (
        f"differs by {np.max(excess):.3e}, expected at most {np.min(np.broadcast_to(tolerance, gap.shape)):.3e}"
        f" (eps {eps:.1e}, n = {actual.shape[-1]}, condition {condition:.1e})"
    )


def assert_adjoint(operator: LinearOperator, like: Array | None = None, seed: int = 0) -> None:
    """Assert ``<u, A v> = <A^H u, v>`` for random ``u`` and ``v``, relative to ``norm(u) norm(A v)``.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> assert_adjoint(ig.DenseOperator(np.array([[1.0, 2.0], [3.0, 4.0]])))
    """
    v, u, eps = _probes(operator, like, seed)
    av, ahu = operator.matvec(v), operator.rmatvec(u)
    left = (_wide(u).conj() * _wide(av)).sum(axis=-1, keepdims=True)
    right = (_wide(ahu).conj() * _wide(v)).sum(axis=-1, keepdims=True)
    size = scaled_norm(_wide(u)) * scaled_norm(_wide(av)) + scaled_norm(_wide(ahu)) * scaled_norm(_wide(v))
    assert_close(left, right, eps=eps, condition=max(operator.shape) ** 0.5, scale=size[..., None])


def assert_linear(operator: LinearOperator, like: Array | None = None, seed: int = 0) -> None:
    """Assert ``A (a v + b w) = a A v + b A w`` for random vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> assert_linear(ig.DenseOperator(np.array([[1.0, 2.0], [3.0, 4.0]])))
    """
    v, _, eps = _probes(operator, like, seed)
    w, _, _ = _probes(operator, like, seed + 2)
    a, b = -1.5, 0.75
    av, aw = _wide(operator.matvec(v)), _wide(operator.matvec(w))
    combined = operator.matvec(a * v + b * w)
    assert_close(combined, a * av + b * aw, eps=eps, condition=max(operator.shape) ** 0.5, scale=abs(av) + abs(aw))


def assert_no_false_success(problem: Problem, solution: Solution) -> None:
    """Assert that nothing is claimed which the dense matrix does not confirm.

    ``CONVERGED`` means that the residual of ``x``, recomputed in double precision, is within 1.01 times the bound plus
    the rounding of one product; ``residual_norm`` is that residual, whatever the status; ``x`` is never NaN or Inf.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("nearly singular", size=4, seed=1)
    >>> assert_no_false_success(problem, ig.GMRES().solve(problem.operator, problem.rhs))
    """
    x = np.asarray(solution.x)
    assert np.isfinite(x).all(), f"{problem.kind}: x holds NaN or Inf, status {solution.status}"
    true, rounding = np.asarray(problem.residual_norm(x)), np.asarray(problem.rounding(x))
    converged = np.asarray(solution.converged)
    allowed = 1.01 * np.asarray(solution.bound) + rounding
    false = converged & ~(true <= allowed)
    assert not false.any(), (
        f"{problem.kind}: CONVERGED at a residual of {np.max(true[false]):.3e}, "
        f"expected at most {np.min(allowed[false]):.3e}"
    )
    if solution.residual_norm is not None:
        gap = np.abs(np.asarray(solution.residual_norm) - true)
        assert (gap <= rounding + 1e-3 * true).all(), (
            f"{problem.kind}: residual_norm is off by {np.max(gap):.3e}, expected at most {np.max(rounding):.3e}"
        )


def assert_scale_equivariant(
    solver: Solver, operator: LinearOperator, rhs: Array, exponents: Any = (-60, -7, 1, 33, 60)
) -> None:
    """Assert that ``2**k b`` gives ``2**k x``, bit for bit, by the same steps and with the same status.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("contraction", size=4, seed=1)
    >>> assert_scale_equivariant(ig.GMRES(), problem.operator, problem.rhs)
    """
    backend = backend_of(rhs)
    base = solver.solve(operator, rhs)
    for exponent in exponents:
        power = int(exponent) if rhs.ndim == 1 else np.full(tuple(rhs.shape[:-1]), int(exponent))
        other = solver.solve(operator, backend.times_power_of_two(rhs, power))
        iters, expected = np.asarray(other.num_iters), np.asarray(base.num_iters)
        assert (iters == expected).all(), f"2**{exponent}: {iters} iterations, expected {expected}"
        assert _statuses(other) == _statuses(base), f"2**{exponent}: {other.status}, expected {base.status}"
        scaled = backend.times_power_of_two(base.x, power)
        worst = np.max(np.abs(_wide(other.x) - _wide(scaled)), initial=0.0)
        assert backend.equal(other.x, scaled), f"2**{exponent}: x differs by {worst:.3e}, expected the same bits"


def assert_batch_is_loop(solver: Solver, problem: Problem, condition: float | None = None) -> None:
    """Assert that a batch is solved as its systems are alone: same status, same steps, ``x`` to rounding.

    Values are compared where both solves were good, for an iterate that failed may be all rounding.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> assert_batch_is_loop(ig.CG(), make_problem("positive definite", size=4, seed=1, batch=3))
    """
    together = solver.solve(problem.operator, problem.rhs)
    for i in range(problem.rhs.shape[0]):
        one = problem.one(i)
        alone = solver.solve(one.operator, one.rhs)
        got = (together.status[i], int(together.num_iters[i]))
        assert got == (alone.status, alone.num_iters), f"system {i}: {got}, alone {(alone.status, alone.num_iters)}"
        if alone.is_good:
            # Sums run in another order. MINRES and the normal equations magnify that by the square of the condition,
            # and where orthogonality is lost the last step is known to a part of what the bound leaves open only.
            values = np.linalg.svd(one.dense, compute_uv=False)
            growth = float(values[0] / values[-1]) ** 2 if condition is None else condition
            left_open = alone.bound / values[-1] / max(float(scaled_norm(_wide(alone.x))), 1e-300) / one.eps
            assert_close(together.x[i], alone.x, condition=growth * max(alone.num_iters, 1) + left_open / 100)


def assert_honest_counts(solver: Solver, operator: LinearOperator, rhs: Array, x0: Array | None = None) -> None:
    """Assert that the products reported are those that an instrumented operator counts.

    Examples
    --------
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("contraction", size=4, seed=1)
    >>> assert_honest_counts(ig.Neumann(), problem.operator, problem.rhs)
    """
    watched, calls = counted(operator)
    solution = solver.solve(watched, rhs, x0)
    reported = (solution.num_matvecs, solution.num_rmatvecs)
    assert reported == calls(), f"{solution.solver}: reported {reported} products, counted {calls()}"


def _statuses(solution: Solution) -> list[Status]:
    return list(np.asarray(solution.status, dtype=object).ravel())


def _wide(x: Any) -> Any:
    """Return ``x`` on the host, in double precision."""
    values = backend_of(x).to_numpy(x) if not isinstance(x, np.ndarray) else x
    return values.astype(np.result_type(values.dtype, np.float64))


def _probes(operator: LinearOperator, like: Array | None, seed: int) -> tuple[Array, Array, float]:
    """Return a random vector of the domain, one of the range, and the spacing of their dtype."""
    like = operator.example() if like is None else like
    backend = backend_of(like)
    rows, columns = operator.shape
    domain, range_ = (backend.zeros((*like.shape[:-1], size), like) for size in (columns, rows))
    return (
        backend.random_like(domain, seed),
        backend.random_like(range_, seed + 1),
        eps_of(backend.dtype_name(like.dtype)),
    )
