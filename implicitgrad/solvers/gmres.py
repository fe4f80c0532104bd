"""GMRES for general systems: the smallest residual over the Krylov space, so the fewest products with a VJP alone.

The Arnoldi relation is built with the operator inside the shift: the Krylov spaces of ``alpha I + beta J`` and ``J``
are the same (Saad, Iterative Methods, 2nd ed., sec. 6.2), so for ``A = I - J`` the process runs on ``J`` itself and the
Hessenberg matrix is shifted on the host. It saves a subtraction a step, and most second passes of Gram-Schmidt with it:
``J q`` has little of ``q`` in it where ``q - J q`` is nearly parallel to ``q``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array, Basis, Scalar
from implicitgrad.backends.base import any_true
from implicitgrad.operators.algebra import split_shift
from implicitgrad.solvers.base import check_settings, default_max_iters
from implicitgrad.solvers.iteration import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["GMRES"]

_TWICE = 0.5  # 1/sqrt(2) squared: Daniel, Gragg, Kaufman & Stewart 1976 repeat a projection that took more than this


@dataclass(frozen=True)
class GMRES(IterativeSolver):
    """Generalized minimal residual method for ``A x = b`` with any invertible ``A``.

    Parameters
    ----------
    rtol : float, optional
        Stop when ``norm(b - A x) <= max(rtol * norm(b), atol)``. Default by dtype: ``sqrt(eps) / 4``.
    atol : float
        In the unit of ``b``. With ``rtol = atol = 0`` exactly ``max_iters`` steps are made (``TRUNCATED``).
    max_iters : int, optional
        Most steps, one product each, over all restarts. None: ``min(10 n, 1000)``.
    restart : int, optional
        Begin anew after this many steps, to bound the memory. None (default): never; the basis grows as it needs.
    final_residual : bool
        With a fixed budget, spend one product more to measure the residual.

    Notes
    -----
    Saad & Schultz 1986. The stopping test runs after each step, not after each restart: the residual norm is
    ``norm(r_0) / norm(c)`` with ``c_0 = 1`` and ``c^T H = 0`` for the Hessenberg matrix, one inner product on the host
    a step (Ayachour 2003, J. Comput. Appl. Math. 159), and the small least-squares problem is solved once, at the end.
    Classical Gram-Schmidt as two matrix-vector products with the basis, repeated where the first pass took more than
    half of the squared norm. Memory: ``k + 2`` vectors after ``k`` steps. A fixed restart can stagnate for ever where
    the full method needs 200 steps; prefer None, or ``BiCGSTAB`` where memory is short.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.0, -3.0], [3.0, 0.0]]))  # expanding: Neumann diverges
    >>> sol = ig.adjoint_solve(J, np.array([1.0, 2.0]), solver=ig.GMRES())
    >>> sol.status.name, sol.num_matvecs, bool(np.allclose(sol.x, [0.7, -0.1]))
    ('CONVERGED', 3, True)
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int | None = None
    restart: int | None = None
    final_residual: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def cycle_length(self) -> int | None:
        """Return the restart length."""
        return self.restart

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Scalar, Any]]:
        """Grow the Krylov basis by one vector a step; form an iterate only when the driver asks for it."""
        backend, eps = system.backend, system.eps
        operator, alpha, beta = split_shift(system.operator)
        most = default_max_iters(operator.shape[1]) if self.max_iters is None else int(self.max_iters)
        basis = Basis(backend, r, 1 + min(most, self.restart or most))
        r_norm = backend.norm(r)
        start = np.asarray(backend.to_host(r_norm), dtype=float)
        q = r * backend.quotient(1.0, r_norm)
        small = _Hessenberg(system.batch, start, np.result_type(backend.to_numpy(r[..., :0]).dtype, type(beta), float))

        def iterate() -> Array:
            return basis.combine(small.coefficients(), system.zero() if x is None else x)

        estimate = start
        while True:
            yield (float(estimate) if system.single else backend.from_host(estimate, r)), iterate
            (q,) = system.park(q)
            basis.append(q)
            system.num_matvecs += 1
            w = operator.apply(q)
            w, h = basis.project_out(w)
            h = h.astype(small.dtype)
            left = np.asarray(backend.to_host(backend.squared_norm(w)), dtype=float)
            took = (h.real**2 + h.imag**2).sum(axis=-1)
            if (left < _TWICE * (left + took)).any():
                w, correction = basis.project_out(w)
                h = h + correction
                left = np.asarray(backend.to_host(backend.squared_norm(w)), dtype=float)
            left = np.sqrt(left)
            finite = np.isfinite(left)
            size = np.sqrt(left**2 + took)
            # Within rounding of the space: it is invariant, and the answer, if A has one for b, lies in it.
            invariant = finite & (left <= 8 * eps * size)
            running = np.asarray(system.live) & finite
            h = beta * h
            h[..., -1] += alpha
            singular = small.append(h, np.where(invariant, 0.0, beta * left), running, eps)
            estimate = small.residual_norm()
            system.operator_norm = small.norm
            if any_true(gone := np.asarray(system.live & ~finite)):
                system.break_down(gone, Status.NONFINITE_OPERATOR)
            elif any_true(gone := np.asarray(running & singular)):
                system.break_down(gone, Status.SINGULAR)
            scale = np.where(finite & ~invariant & (left > 0), 1 / np.where(left > 0, left, 1), 0.0)
            if system.single:
                q = w * float(scale) if finite else q
            else:
                q = system.keep(finite, w) * backend.from_host(scale, r)


class _Hessenberg:
    """The projected problem ``min norm(beta_0 e_1 - H y)`` of each system, on the host, in double precision."""

    def __init__(self, batch: tuple[int, ...], start: Any, dtype: Any) -> None:
        self.dtype = dtype
        self.start = start
        self.steps = 0
        self.norm = np.zeros(batch)  # largest column norm, a lower bound on norm(A)
        self._h = np.zeros((*batch, 9, 8), dtype)
        self._c = np.zeros((*batch, 9), dtype)  # c^T H = 0, c_0 = 1
        self._c[..., 0] = 1
        self._c_squared = np.ones(batch)
        self._exact = np.zeros(batch, bool)

    def append(self, column: Any, below: Any, running: Any, eps: float) -> Any:
        """Add a column and the entry below it; return where the matrix has become singular in an invariant space.

        Systems that are not ``running`` get a column of the identity instead, which leaves their answer as it is.
        """
        k = self.steps
        if k == self._h.shape[-1]:
            room = ((0, 0),) * (self._h.ndim - 2)
            self._h = np.pad(self._h, (*room, (0, k), (0, k)))
            self._c = np.pad(self._c, (*room, (0, k)))
        running = running & ~self._exact
        self._h[..., : k + 1, k] = np.where(running[..., None], column, 0.0)
        self._h[..., k + 1, k] = below = np.where(running, below, 1.0)
        self.steps = k + 1
        size = np.sqrt((np.abs(self._h[..., : k + 2, k]) ** 2).sum(axis=-1))
        self.norm = np.maximum(self.norm, np.where(running, size, 0.0))
        product = (self._c[..., : k + 1] * self._h[..., : k + 1, k]).sum(axis=-1)
        closed = running & (below == 0)
        self._c[..., k + 1] = following = -product / np.where(below == 0, 1.0, below)
        # In an invariant space c is a left null vector of H, unless the last column has a part along it.
        null = closed & (np.abs(product) <= 8 * (k + 1) * eps * self.norm * np.sqrt(self._c_squared))
        self._c[..., k + 1] = following = np.where(closed, 0.0, following)
        self._c_squared = self._c_squared + np.abs(following) ** 2
        self._exact = self._exact | (closed & ~null)
        return null

    def residual_norm(self) -> Any:
        """Return the norm of the residual that the best ``y`` leaves."""
        return np.where(self._exact, 0.0, self.start / np.sqrt(self._c_squared))

    def coefficients(self) -> Any:
        """Return the minimizer ``y`` of each system, ``(..., steps)``."""
        k = self.steps
        h = self._h[..., : k + 1, :k]
        if k == 0:
            return np.zeros((*h.shape[:-2], 0), self.dtype)
        q, r = np.linalg.qr(h)
        rhs = self.start[..., None] * q[..., 0, :].conj()
        pivots = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
        if (pivots.min(axis=-1) > k * np.finfo(float).eps * pivots.max(axis=-1)).all():
            return np.linalg.solve(r, rhs[..., None])[..., 0]
        # A singular invariant space: the shortest of the least-squares answers.
        return (np.linalg.pinv(r, rcond=k * np.finfo(float).eps) @ rhs[..., None])[..., 0]
