"""Extreme singular values: ``sigma_min``, with a certificate, and ``norm(A, 2)``, by Golub-Kahan on ``A`` itself.

``sigma_min(I - J)`` decides whether an implicit gradient exists and how far a residual is from an error:
``norm(z - z*) <= norm(r) / sigma_min``. Users: the regularizers, the report on a fixed point, ``Solution.error_bound``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.certify import best_bound, random_start_deficit
from implicitgrad.spectral.golub_kahan import GolubKahan
from implicitgrad.spectral.result import SpectralResult, deliver
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host, Space, check_operator_type
from implicitgrad.status import Status

__all__ = ["operator_norm", "smallest_singular_value"]

_ROUNDING = 8  # how many eps of norm(A) the rounding of a product may hide


class LinearSolver(Protocol):
    """What ``refine`` needs of a solver: ``solver.solve(A, b).x``; every solver of this package has it."""

    def solve(self, operator: LinearOperator, rhs: Array) -> Any:
        """Return a solution with an attribute ``x``."""


def smallest_singular_value(
    A: LinearOperator,
    *,
    start: Array | None = None,
    like: Array | None = None,
    rtol: float | None = None,
    vector_tol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    confidence: float = 0.999,
    known_lower: float | None = None,
    next_value: float | None = None,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``sigma_min(A)``, its singular vectors, and an interval for it with the condition it stands under.

    Parameters
    ----------
    A : LinearOperator, shape (m, n)
        With both products. For an equilibrium, ``identity_minus(J)``.
    start : array, shape (..., n), optional
        First right vector, such as the last training step's ``vector``; for a wide ``A``, ``m < n``, a left one,
        ``(..., m)``, since the search runs on ``A^H``. None: random, which is what bounds with a probability need.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in, where ``start`` does not. Default: ``A.example()``.
    rtol : float, optional
        ``CONVERGED`` when the recomputed residual and the gap put the value within ``rtol * value``. Default by dtype:
        ``sqrt(eps) / 4``. Where the rounding of one product, a few ``eps * norm(A)``, is more than that, it is enough.
    vector_tol : float, optional
        Go on until the singular vectors, too, are right to this angle (radians, by the gap). A gradient of ``sigma``
        has the error of the vectors, which is the square root of that of the value. None: the value alone.
    max_iters : int, optional
        Most steps, one product with ``A`` and one with ``A^H`` each. None: ``min(10 n, 1000)``.
    memory : int, optional
        Most vectors held on each side. At the cap the factorization is restarted from its best few Ritz vectors and
        one of the step before. None: ``min(n, 256)`` or what fits into 64 MiB, at least 32.
    seed : int
        Of the random start.
    confidence : float
        Probability ``p`` of the bound from the random start, ``0 < p < 1``.
    known_lower : float, optional
        A lower bound that you have proved, such as ``1 - norm(J)``; it competes for ``lower``, "unconditional".
    next_value : float, optional
        If you know that only one singular value is below this number, the Kato-Temple bound competes for ``lower``.
    on_failure : {"raise", "warn", "return"}
        What to do where a system does not converge.

    Returns
    -------
    SpectralResult
        ``value = norm(A v)`` of the returned unit vector ``v``, and ``A v = value u``.

    Raises
    ------
    NotConvergedError
        By ``on_failure``; its ``solution`` is the result, with the best vector found.
    MissingProductError, ShapeError, DtypeError, BackendError, SettingError
        ``A`` lacks a product, or the arguments do not fit together; before any product.

    Notes
    -----
    Golub & Kahan 1965 with full re-orthogonalization; after the first restart, Goldenberg, Stathopoulos & Romero 2019.
    The Ritz value is the minimum of ``norm(A v)`` over the space searched, so it falls to ``sigma_min`` from above, and
    at the same number of products no method from the same start can have a smaller one. Error of the value: to first
    order ``residual^2 / (2 gap)``. Cost a step: two products, about ``6 memory`` vector updates.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.0, -0.9], [0.9, 0.0]]))
    >>> result = ig.smallest_singular_value(ig.identity_minus(J))
    >>> round(result.value, 12) == round(1.81**0.5, 12), result.lower <= 1.81**0.5 <= result.upper
    (True, True)
    """
    settings = Settings("smallest_singular_value", rtol, vector_tol, max_iters, memory, confidence, on_failure)
    return _singular(settings, A, "smallest", start, like, seed, known_lower, next_value)


def operator_norm(
    A: LinearOperator,
    *,
    start: Array | None = None,
    like: Array | None = None,
    rtol: float | None = None,
    vector_tol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    confidence: float = 0.999,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``norm(A, 2)``, the largest singular value; parameters and result as in ``smallest_singular_value``.

    ``lower`` is the rigorous side, a Ritz value; ``upper`` stands under ``condition``.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> round(float(ig.operator_norm(ig.DenseOperator(np.array([[0.0, 3.0], [0.0, 0.0]])))), 12)
    3.0
    """
    settings = Settings("operator_norm", rtol, vector_tol, max_iters, memory, confidence, on_failure)
    return _singular(settings, A, "largest", start, like, seed, None, None)


def _singular(
    settings: Settings,
    A: Any,
    which: str,
    start: Array | None,
    like: Array | None,
    seed: int,
    known_lower: float | None,
    next_value: float | None,
) -> SpectralResult:
    check_operator_type(settings.name, A)
    wide = A.shape[0] < A.shape[1]  # its null space is no matter: the smallest of min(m, n) values is that of A^H
    A = A.H if wide else A
    space = Space(settings.name, A, start, like, seed, adjoint=True)
    run = _Run(space, settings, which)
    run.solve()
    result = run.result(known_lower, next_value)
    if wide:
        result = replace(
            result,
            vector=result.left_vector,
            left_vector=result.vector,
            num_matvecs=result.num_rmatvecs,
            num_rmatvecs=result.num_matvecs,
        )
    return deliver(result, settings.on_failure, stacklevel=4)


@dataclass
class _Krylov:
    """The unrestarted part, which the bound from a random start speaks of: dimension and extreme Ritz values."""

    steps: int
    smallest: Host
    largest: Host


class _Run:
    """One computation; the books are host arrays ``(s,)``."""

    def __init__(self, space: Space, settings: Settings, which: str) -> None:
        self.space, self.settings, self.which = space, settings, which
        rows, columns = space.operator.shape
        self.size = min(rows, columns)
        self.rtol = settings.tolerance(space.eps)
        self.max_iters = settings.steps(self.size)
        self.memory = settings.vectors(self.size, columns, space)
        self.status = np.full(space.systems, None, dtype=object)
        self.open = space.finite_start.copy()
        self.status[~self.open] = Status.NONFINITE_INPUT
        self.iters = np.zeros(space.systems, int)
        self.vector = space.domain
        self.gap = np.full(space.systems, np.nan)
        self.ritz = np.full((space.systems, 1), np.nan)
        self.exact = np.zeros(space.systems, bool)
        self.krylov: _Krylov | None = None
        self.value = np.full(space.systems, np.nan)
        self.residual = np.full(space.systems, np.nan)
        self.left = space.range
        self.reason = np.full(space.systems, None, dtype=object)

    # -- the loop ----------------------------------------------------------------------------------------------------
    def solve(self) -> None:
        space = self.space
        self.live = self.open.copy()
        if self.live.any():
            self._cycle(GolubKahan(space, self.memory))
        self._verify()

    def _cycle(self, factorization: GolubKahan) -> None:
        """Run one factorization until every live system has left it."""
        space, f = self.space, factorization
        directed, next_check = False, 1
        previous: Host | None = None
        for step in range(1, self.max_iters + 1):
            f.grow(self.live)
            exhausted = f.count == self.size
            last = step == self.max_iters or exhausted
            check = directed or step >= next_check or last or f.full
            if check:
                p, values, y = f.triplets()
                target = -1 if self.which == "smallest" else 0
            f.look(p[:, :, target] if directed else None)
            self._leave(~np.isfinite(f.residual), Status.NONFINITE_OPERATOR, step)
            self._leave(f.mismatch > space.eps**0.5, Status.ADJOINT_MISMATCH, step)
            if not check:
                if f.broken[self.live].any():
                    p, values, y = f.triplets()
                    target, check = (-1 if self.which == "smallest" else 0), True
                else:
                    continue
            next_check = step + max(1, step // 8)
            residual = f.residual if directed else f.residual * np.abs(p[:, -1, target])
            residual = np.where(exhausted & (self.size == space.operator.shape[1]), 0.0, residual)
            value, other = values[:, target], self._neighbour(values)
            if not directed:
                self.krylov = _Krylov(f.count, values[:, -1], values[:, 0])
            done = self._satisfied(value, residual, other) | f.broken
            if exhausted:
                done = done | True
            self.exact = np.where(self.live, f.broken & (not directed) | exhausted, self.exact)
            leaving = self.live & (done | last)
            if leaving.any():
                self._keep(leaving, f, p[:, :, target], y[:, :, target], values, np.abs(other - value))
                self._leave(leaving & done, "claim", step)
                self._leave(leaving, Status.MAX_ITERS, step)
            if not self.live.any():
                return
            if f.full:
                previous = self._restart(f, y, previous if directed else None)
                directed = True
            elif directed:
                previous = y[:, :, target]

    def _restart(self, f: GolubKahan, y: Host, previous: Host | None) -> Host:
        """Keep the Ritz vectors next to the wanted end, and the best vector of the step before."""
        keep = max(1, f.count // 3)
        order = np.arange(f.count)[::-1][:keep] if self.which == "smallest" else np.arange(keep)
        kept = y[:, :, order]
        if previous is not None:
            padded = np.zeros((*previous.shape[:-1], f.count), previous.dtype)
            padded[:, : previous.shape[-1]] = previous
            kept = np.concatenate([kept, padded[:, :, None]], axis=-1)
        kept = np.linalg.qr(kept)[0]
        f.restart(kept)
        return f.triplets()[2][:, :, -1 if self.which == "smallest" else 0]

    # -- decisions ---------------------------------------------------------------------------------------------------
    def _neighbour(self, values: Host) -> Host:
        if values.shape[-1] < 2:
            return np.full(values.shape[0], np.nan)
        return values[:, -2] if self.which == "smallest" else values[:, 1]

    def _satisfied(self, value: Host, residual: Host, other: Host) -> Host:
        space = self.space
        squares = np.abs(other - value) * (other + value)  # the distance of the squares, without cancellation
        squares = np.where(np.isfinite(squares), squares, 0.0)
        bound = np.fmax(self.rtol * value, _ROUNDING * space.product_eps * space.norm)
        # The second form is value r^2 / squares <= rtol value, divided by the value: for a singular matrix, where that
        # value is rounding, it still asks for vectors.
        satisfied = (residual <= bound) | (residual**2 <= self.rtol * squares)
        if self.settings.vector_tol is not None:
            angle = residual * np.fmax(other, value)
            satisfied &= angle <= self.settings.vector_tol * squares
        return satisfied

    def _leave(self, where: Host, reason: Any, step: int) -> None:
        where = where & self.live
        self.reason[where] = reason
        self.iters[where] = step
        self.live = self.live & ~where

    def _keep(self, where: Host, f: GolubKahan, p: Host, y: Host, values: Host, gap: Host) -> None:
        """Form the Ritz vectors of the systems that leave, and note what the projected problem says."""
        self.vector = self.space.select(where, f.right.combine(y), self.vector)
        self.left = self.space.select(where, f.left.combine(p), self.left)
        self.gap = np.where(where, gap, self.gap)
        width = max(self.ritz.shape[1], values.shape[1])
        ritz = np.full((len(values), width), np.nan)
        ritz[:, : self.ritz.shape[1]] = self.ritz
        ritz[where] = np.nan
        ritz[where, : values.shape[1]] = values[where, ::-1]
        self.ritz = ritz

    def _verify(self) -> None:
        """Recompute the triplets from the vectors: these numbers, and no others, are reported."""
        space = self.space
        norms = space.norms(self.vector)
        found = norms > 0
        if found.any():
            v = space.times(np.where(found, 1.0 / np.where(found, norms, 1.0), 0.0), self.vector)
            av = space.matvec(v)
            value = space.norms(av)
            lengths = space.norms(self.left)
            u = space.times(np.where(lengths > 0, 1.0 / np.where(lengths > 0, lengths, 1.0), 0.0), self.left)
            back = np.where(np.isfinite(value), -value, 0.0)
            miss, rest = space.plus(back, u, av), space.plus(back, v, space.rmatvec(u))
            self.vector, self.left = v, u
            self.value = np.where(found, value, np.nan)
            self.residual = np.where(found, np.hypot(space.norms(rest), space.norms(miss)), np.nan)
        other = self.value + (self.gap if self.which == "smallest" else -self.gap)
        satisfied = self._satisfied(self.value, self.residual, other) | (
            self.residual <= _ROUNDING * space.product_eps * space.norm
        )
        for i in np.flatnonzero(self.open):
            if self.reason[i] == "claim":
                self.status[i] = Status.CONVERGED if satisfied[i] else Status.STAGNATED
            else:
                self.status[i] = self.reason[i]

    # -- the report --------------------------------------------------------------------------------------------------
    def result(self, known_lower: float | None, next_value: float | None) -> SpectralResult:
        space, value, r = self.space, self.value, self.residual
        rounding = _ROUNDING * space.product_eps * space.norm
        confidence = self.settings.confidence
        random = not space.given
        candidates: list[tuple[Any, str]] = []
        if self.which == "smallest":
            candidates.append((0.0, "unconditional: no singular value is negative"))
        if known_lower is not None:
            candidates.append((float(known_lower), "unconditional: the caller's bound"))
        if random and self.krylov is not None:
            k = self.krylov
            lost = random_start_deficit(k.steps, self.size, space.is_complex, confidence, k.largest**2 - k.smallest**2)
            said = f"with probability {confidence:g} over the random start (Kuczynski & Wozniakowski 1992)"
            if self.which == "smallest":
                candidates.append((np.sqrt(np.fmax(k.smallest**2 - lost, 0.0)) - rounding, said))
            else:
                candidates.append((-np.sqrt(k.largest**2 + lost) - rounding, said))
            sign = 1.0 if self.which == "smallest" else -1.0
            sure = np.where(self.exact, sign * value - r - rounding, np.nan)
            candidates.append((sure, "with probability 1 over the random start (the space it spans is invariant)"))
        if next_value is not None:
            distance = (next_value - value) * (next_value + value)
            square = value**2 * (1 - np.where(distance > 0, r**2 / np.where(distance > 0, distance, 1.0), np.inf))
            lower = np.sqrt(np.fmax(square, 0.0)) - rounding
            candidates.append((lower, f"given a gap: one singular value alone is below {next_value:g} (Kato-Temple)"))
        bound, condition = best_bound(candidates, space.systems)
        if self.which == "smallest":
            lower, upper = bound, value + rounding
        else:
            lower, upper = np.fmax(value - rounding, 0.0), -bound
        interval = (space.shaped(np.fmax(value - r - rounding, 0.0)), space.shaped(value + r + rounding))
        names = np.array(condition, dtype=object)
        statuses = self.status
        return SpectralResult(
            value=space.shaped(value),
            vector=space.restored(self.vector),
            left_vector=space.restored(self.left),
            upper=space.shaped(upper),
            lower=space.shaped(lower),
            condition=condition[0] if space.single else names.reshape(space.batch),
            residual_interval=interval,
            residual_norm=space.shaped(r),
            gap=space.shaped(self.gap) if not space.single or math.isfinite(self.gap[0]) else None,
            ritz_values=self.ritz[0] if space.single else self.ritz.reshape(*space.batch, -1),
            status=statuses[0] if space.single else statuses.reshape(space.batch),
            num_iters=space.shaped(self.iters),
            num_matvecs=space.num_matvecs,
            num_rmatvecs=space.num_rmatvecs,
            name=self.settings.name,
        )
