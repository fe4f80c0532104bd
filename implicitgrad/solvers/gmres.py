"""GMRES for general systems: the smallest residual over the Krylov space, so the fewest products with a VJP alone.

The Arnoldi relation is built with the operator inside the shift: the Krylov spaces of ``alpha I + beta J`` and ``J``
are the same (Saad, Iterative Methods, 2nd ed., sec. 6.2), so for ``A = I - J`` the process runs on ``J`` itself and the
Hessenberg matrix is shifted on the host. It saves a subtraction a step, and most second passes of Gram-Schmidt with it:
``J q`` has little of ``q`` in it where ``q - J q`` is nearly parallel to ``q``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array, Basis
from implicitgrad.backends.host import all_true, any_true, dot, finite, negate, pick, square, squared_norm
from implicitgrad.operators.algebra import split_shift
from implicitgrad.solvers.base import check_settings, default_max_iters
from implicitgrad.solvers.iterative import IterativeSolver
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["GMRES"]

_TWICE = 0.5  # 1/sqrt(2) squared: Daniel, Gragg, Kaufman & Stewart 1976 repeat a projection that took more than this


@dataclass(frozen=True, kw_only=True)
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

    def iterations(self, system: System, x: Array | None, r: Array) -> Iterator[tuple[Any, Any]]:
        """Grow the Krylov basis by one vector a step; form an iterate only when the driver asks for it."""
        backend, eps = system.backend, system.eps
        operator, alpha, beta = split_shift(system.operator)
        most = default_max_iters(operator.shape[1]) if self.max_iters is None else int(self.max_iters)
        basis = Basis(backend, system.given, 1 + min(most, self.restart or most))
        r_norm = backend.norm(r)
        q = backend.times(backend.quotient(1.0, r_norm), r)
        del r
        small = _Hessenberg(backend.to_host(r_norm), system.operator_norm, alpha, beta, system.batch)

        def iterate() -> Array:
            y = small.coefficients(complex if system.is_complex else float)
            return basis.combine(y, system.zero() if x is None else x)

        while True:
            yield small.residual_norm, iterate
            (q,) = system.park(q)
            basis.append(q)
            system.num_matvecs += 1
            w, h = basis.project_out(operator.apply(q))
            left, took = backend.to_host(backend.squared_norm(w)), squared_norm(h)
            if any_true(left < _TWICE * (left + took)):
                w, correction = basis.project_out(w)
                h = [a + b for a, b in zip(h, correction, strict=True)] if system.single else h + correction
                left = backend.to_host(backend.squared_norm(w))
            if not all_true(sound := finite(left)):
                system.break_down(system.live & negate(sound), Status.NONFINITE_OPERATOR)
                if system.single:
                    yield math.nan, iterate  # the last good basis still has its iterate
                w, h = system.keep(sound, w), np.where(sound[..., None], h, 0)
            # Within rounding of the space: it is invariant, and the answer, if A has one for b, lies in it.
            left = pick(left <= (8 * eps) ** 2 * (left + took), 0.0, left**0.5)
            singular = small.append(h, took, left, system.live & sound, eps)
            system.operator_norm = small.norm
            if any_true(singular):
                system.break_down(singular, Status.SINGULAR)
            q = backend.times(backend.quotient(1.0, backend.from_host(left, w)), w)
            del w


class _Hessenberg:
    """The projected problem ``min norm(beta_0 e_1 - H y)`` of each system, on the host, in double precision.

    Attributes
    ----------
    residual_norm : float, or array (...)
        Norm of the residual that the best ``y`` leaves.
    norm : float, or array (...)
        Largest column norm, at least what it started from: what the rounding of a product is relative to.

    Notes
    -----
    ``H = alpha I + beta H_B`` where ``H_B`` is the matrix of the Arnoldi process with ``B``. For one system a column is
    a list of Python numbers, which at 10 to 30 entries cost less than one call of NumPy.
    """

    def __init__(self, start: Any, norm: Any, alpha: complex, beta: complex, batch: tuple[int, ...]) -> None:
        self.residual_norm = self._start = start
        self.norm = norm
        self._alpha, self._beta = alpha, beta
        self._batch = batch
        self._columns: list[tuple[Any, Any]] = []  # of H_B, and of H below the diagonal
        self._c: Any = np.ones((*batch, 1)) if batch else [1.0]  # c^T H = 0, c_0 = 1
        self._c_squared: Any = 1.0
        self._exact: Any = np.zeros(batch, bool) if batch else False

    def append(self, h: Any, took: Any, left: Any, running: Any, eps: float) -> Any:
        """Add a column of ``H_B``, its squared norm ``took`` and the entry ``left`` below it.

        Systems that are not ``running`` get a column that leaves their answer as it is: zero but for a one below the
        diagonal. Returns where ``H`` has become singular in an invariant space.
        """
        alpha, beta, k = self._alpha, self._beta, len(self._columns)
        running = running & negate(self._exact)
        below = beta * left
        if not all_true(running):
            if not self._batch:
                h, took = [0.0] * k + [-alpha / beta], 0.0
            else:
                h = np.where(running[..., None], h, 0.0)
                h[..., -1] = np.where(running, h[..., -1], -alpha / beta)
            below = pick(running, below, 1.0)
        self._columns.append((h, below))
        diagonal, c_last = (h[-1], self._c[-1]) if not self._batch else (h[..., -1], self._c[..., -1])
        rest = square(beta) * (took - square(diagonal))  # of the column, without its diagonal entry
        size = abs(rest + square(alpha + beta * diagonal) + square(below)) ** 0.5
        self.norm = pick(running & (size > self.norm), size, self.norm)
        product = beta * dot(self._c, h) + alpha * c_last
        closed = running & (below == 0)
        following = pick(closed, 0.0, -product / pick(below == 0, 1.0, below))
        # In an invariant space c is a left null vector of H, unless the last column has a part along it.
        null = closed & (abs(product) <= 8 * (k + 1) * eps * self.norm * self._c_squared**0.5)
        if self._batch:
            self._c = np.concatenate([self._c, following[..., None]], axis=-1)
        else:
            self._c.append(following)
        self._c_squared = self._c_squared + square(following)
        self._exact = self._exact | (closed & negate(null))
        self.residual_norm = pick(self._exact, 0.0, self._start / self._c_squared**0.5)
        return null

    def coefficients(self, dtype: Any) -> Any:
        """Return the minimizer ``y`` of each system, ``(..., k)``."""
        k = len(self._columns)
        matrix = np.zeros((*self._batch, k + 1, k), dtype)
        if k == 0:
            return matrix[..., 0, :]
        for j, (h, below) in enumerate(self._columns):
            matrix[..., : j + 1, j] = h
            matrix[..., : j + 1, j] *= self._beta
            matrix[..., j, j] += self._alpha
            matrix[..., j + 1, j] = below
        q, r = np.linalg.qr(matrix)
        rhs = np.asarray(self._start)[..., None] * q[..., 0, :].conj()
        pivots = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
        if (pivots.min(axis=-1) > k * np.finfo(float).eps * pivots.max(axis=-1)).all():
            return np.linalg.solve(r, rhs[..., None])[..., 0]
        # A singular invariant space: the shortest of the least-squares answers.
        return (np.linalg.pinv(r, rcond=k * np.finfo(float).eps) @ rhs[..., None])[..., 0]
