"""A direct solve of the matrix that n products spell out: the reference for small n."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from implicitgrad.backends import Array, Scalar
from implicitgrad.solvers.base import check_settings
from implicitgrad.solvers.iteration import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["Dense"]


@dataclass(frozen=True)
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
    The residual is recomputed with the operator, and up to four steps of iterative refinement are made if it is above
    the bound. A matrix whose smallest singular value is below ``n eps`` times its largest is ``SINGULAR``, with the
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

    max_iters: ClassVar[int] = 4  # type: ignore[misc]  # refinement that has not helped by then will not
    final_residual: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_settings(self)

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Scalar, Any]]:
        """Solve for the residual; the driver recomputes it and comes again if that was not enough."""
        backend = system.backend
        x = system.zero() if x is None else x
        yield backend.norm(r), x
        if "matrix" not in system.kept:
            system.kept["matrix"] = _matrix(system)
        matrix, values = system.kept["matrix"]
        n = matrix.shape[-1]
        system.operator_norm = largest = values[..., 0]
        singular = ~(values[..., -1] > n * system.eps * largest)
        rhs = backend.to_numpy(r).astype(matrix.dtype)[..., None]
        if not np.isfinite(values).all():
            system.break_down(~np.isfinite(values).all(axis=-1), Status.NONFINITE_OPERATOR)
            yield backend.norm(r), x
        if singular.any():
            step = np.linalg.pinv(matrix, rcond=n * system.eps) @ rhs
            system.break_down(singular, Status.SINGULAR)
        else:
            step = np.linalg.solve(matrix, rhs)
        while True:  # the residual is now whatever rounding left: zero is the claim that has it measured
            yield backend.norm(r) * 0.0, x + backend.from_numpy(step[..., 0], r)


def _matrix(system: System) -> tuple[Any, Any]:
    """Return the matrix of each system ``(..., n, n)`` in double precision, and its singular values."""
    backend, n = system.backend, system.operator.shape[1]
    host = backend.to_numpy(system.zero())
    dtype = np.result_type(host.dtype, np.float64)
    columns = []
    for j in range(n):
        unit = np.zeros_like(host)
        unit[..., j] = 1
        columns.append(backend.to_numpy(system.matvec(backend.from_numpy(unit, system.rhs))).astype(dtype))
    matrix = np.stack(columns, axis=-1)
    if not np.isfinite(matrix).all():
        return matrix, np.full(matrix.shape[:-1], np.nan)
    return matrix, np.linalg.svd(matrix, compute_uv=False)
