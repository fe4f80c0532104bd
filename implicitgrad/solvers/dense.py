"""A direct solve of the matrix that n products spell out: the reference for small n."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.host import any_true
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["Dense"]


@dataclass(frozen=True, kw_only=True)
class Dense(IterativeSolver):
    """Form ``A`` column by column and factor it, in double precision on the host.

    Parameters
    ----------
    rtol : float, optional
        ``CONVERGED`` when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``.

    Notes
    -----
    The residual is recomputed with the operator, and iterative refinement goes on while it is above the bound and
    still falls. A matrix whose smallest singular value is below ``n eps`` times its largest is ``SINGULAR``, with the
    shortest least-squares answer, unless that meets the bound. Cost: ``n`` products, one call each for the whole batch,
    ``n^2`` numbers and ``O(n^3)`` operations a system.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.VJPOperator(lambda u: 0.5 * u, size=3)
    >>> sol = ig.adjoint_solve(J, np.ones(3), solver=ig.Dense())
    >>> sol.x, sol.num_matvecs
    (array([2., 2., 2.]), 4)
    """

    rtol: float | None = None
    atol: float = 0.0

    max_iters: ClassVar[None] = None  # type: ignore[misc]  # refinement ends where it no longer helps
    final_residual: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Solve for the residual; the driver recomputes it and comes again if that was not enough."""
        backend = system.backend
        x = system.zero() if x is None else x
        yield backend.host_norm(r), x
        if "matrix" not in system.kept:
            system.kept["matrix"] = _matrix(system)
        matrix, values = system.kept["matrix"]
        n = matrix.shape[-1]
        largest, smallest = values[..., 0], values[..., -1]
        system.operator_norm = np.fmax(system.operator_norm, largest)
        finite = np.isfinite(largest)
        singular = np.asarray(finite & ~(smallest > n * system.eps * largest))
        rhs = backend.to_numpy(r).astype(matrix.dtype)[..., None]
        step = np.linalg.solve(np.where((finite & ~singular)[..., None, None], matrix, np.eye(n)), rhs)
        if any_true(null := system.among_live(singular)):
            step[null] = np.linalg.pinv(matrix[null], rcond=n * system.eps) @ rhs[null]
            system.break_down(null, Status.SINGULAR)
        # A regular matrix leaves whatever rounding left: zero is the claim that has it measured. A singular one is held
        # to what its least-squares answer leaves, so that no claim hides the status; NaN says itself what it is.
        left = np.where(singular, np.linalg.norm(rhs - matrix @ step, axis=(-2, -1)), np.where(finite, 0.0, np.nan))
        estimate = float(left) if system.single else left
        while True:
            yield estimate, x + backend.from_numpy(step[..., 0], r)


def _matrix(system: System) -> tuple[Any, Any]:
    """Return the matrix of each system ``(..., n, n)`` in double precision, and its singular values (NaN for NaN)."""
    backend, n = system.backend, system.operator.shape[1]
    host = backend.to_numpy(system.zero())
    dtype = np.result_type(host.dtype, np.float64)
    columns = []
    for j in range(n):
        unit = np.zeros_like(host)
        unit[..., j] = 1
        columns.append(backend.to_numpy(system.matvec(backend.from_numpy(unit, system.given))).astype(dtype))
    matrix = np.stack(columns, axis=-1)
    finite = np.isfinite(matrix).all(axis=(-2, -1))
    matrix = np.where(finite[..., None, None], matrix, 0)
    values = np.linalg.svd(matrix, compute_uv=False)
    return matrix, np.where(finite[..., None], values, np.nan)
