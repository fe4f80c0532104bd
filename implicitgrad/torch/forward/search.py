"""One forward solve as the methods see it: a map to be evaluated, and books of every sample that nobody else keeps.

A method asks for ``visit(z)``, which evaluates ``f`` at the points ``z`` of all samples and judges each of them:
converged, diverged, not finite, at the floor of the format, out of steps. A sample that has ended is held at its best
iterate, which is finite, in every later call of ``f``, so nothing that went wrong in it reaches its neighbours. Methods
with a line search take ``evaluate`` and ``settle``, the two halves, since a trial point is no iterate yet.

States are touched through the verbs of ``backends/base.py`` alone, and decisions are made on host values, one a sample
(see ``backends/host.py`` for their two forms): a state may be split over processes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from implicitgrad.backends import Array, backend_of
from implicitgrad.backends.host import all_true, any_true, finite, negate, pick
from implicitgrad.errors import BackendError, DeviceError, DtypeError, OperatorError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.precision import in_half_precision
from implicitgrad.solvers.solution import Solution
from implicitgrad.status import Status
from implicitgrad.torch.forward.equation import Equation

__all__ = ["Point", "Search"]


class Point(NamedTuple):
    """``f`` at the points ``z`` of all samples: states ``(..., n)``, and the norm of the residual on the host."""

    z: Array
    image: Array
    residual: Array  # f(z) - z
    size: Any  # norm(f(z) - z)


class Search:
    """The books of one forward solve.

    Parameters
    ----------
    name : str
        The solver's, for messages and the report.
    equation : Equation
        What is solved.
    z0 : array, shape (..., n)
        Where to start; copied.
    rtol, atol, max_iters
        The solver's settings; ``rtol=None`` is ``eps**(3/4)``.
    first : array, optional
        ``f(z0)``, which then takes the place of the first call.
    trajectory : bool
        Keep the points at which ``f`` was evaluated.

    Attributes
    ----------
    start : array
        ``z0`` in the dtype to compute in, zero where it was not finite.
    live : bool, or array of bool (...)
        The samples that are still searched for.
    num_products : int
        Products with the Jacobian so far; a method adds what it spends.
    """

    def __init__(
        self,
        name: str,
        equation: Equation,
        z0: Array,
        rtol: float | None,
        atol: float,
        max_iters: int,
        first: Array | None = None,
        trajectory: bool = False,
    ) -> None:
        self.name, self.equation = name, equation
        self.backend = backend = backend_of(z0, f"{name}.solve")
        if z0.ndim == 0:
            raise ShapeError(f"{name}.solve: got a z0 without axes, expected (..., n): flatten it with z0.reshape(-1).")
        facts = backend.facts(z0.dtype)
        if facts is None:
            raise DtypeError(f"{name}.solve: got z0 of {z0.dtype}, expected floating point. Cast it.")
        if first is not None:
            self._check("first", first, z0)
        # eps^(3/4), 6e-6 and 2e-12: the gradient is taken at this point, so it should be the better known of the two,
        # and finite differences divide its error by 1e-6.
        default = 2 * facts.eps if facts.is_half else facts.eps**0.75
        self.rtol, self.atol, self.max_iters = default if rtol is None else float(rtol), atol, max_iters
        self.eps, self.half, self.dtype = facts.eps, facts.is_half, z0.dtype

        z = backend.copy(backend.stop_gradient(z0))
        if self.half:  # the map runs in its dtype, the search in float32, at points that the dtype can hold
            z = backend.astype(z, backend.dtype("float32"))
        self.batch = tuple(z.shape[:-1])
        single = not self.batch
        self._like = z0
        self._first = first
        self._points: list[Array] | None = [] if trajectory else None
        self._history: list[Any] = []
        self._calls = self.num_products = 0
        self._status: Any = None if single else np.full(self.batch, None, dtype=object)
        self.iters: Any = 0 if single else np.zeros(self.batch, dtype=int)
        self._since_best = self.iters
        self.live: Any = True if single else np.ones(self.batch, dtype=bool)
        self._zeros: Any = 0.0 if single else np.zeros(self.batch)

        sound = finite(backend.max_abs(z))
        self.close(negate(sound), Status.NONFINITE_INPUT)
        self.start = self.best = self.choose(sound, z, backend.zeros(tuple(z.shape), z))
        self.best_norm = self._zeros + math.inf
        self._first_norm: Any = None
        self._reference = self._zeros  # what the residual at the best iterate is relative to
        self._known_scale: Any = None  # the equation's scale at the last point where it was asked for

    @property
    def running(self) -> bool:
        """Whether any sample is still searched for."""
        return any_true(self.live)

    @property
    def floor(self) -> Any:
        """Below how much of a residual there is rounding only, one number a sample."""
        return 8 * self.eps * self._reference

    def choose(self, mask: Any, x: Array, y: Array) -> Array:
        """Return the samples of ``x`` where the host mask holds, of ``y`` elsewhere; no copy if all are of one."""
        return x if all_true(mask) else self.backend.select(mask, x, y) if any_true(mask) else y

    def blend(self, mask: Any, new: Point, old: Point) -> Point:
        """Return the samples of ``new`` where the host mask holds, those of ``old`` elsewhere."""
        if all_true(mask):
            return new
        z, image, residual = (self.choose(mask, x, y) for x, y in zip(new[:3], old[:3], strict=True))
        return Point(z, image, residual, pick(mask, new.size, old.size))

    # -- evaluating --------------------------------------------------------------------------------------------------
    def evaluate(self, z: Array) -> Point:
        """Call ``f`` at ``z``, where samples that have ended are held at their best iterate; judge nothing."""
        backend = self.backend
        z = self.choose(self.live, z, self.best)
        lent = self._lent(z)
        z = backend.astype(lent, z.dtype) if self.half else z
        if self._points is not None:
            self._points.append(lent)
        if self._first is not None:
            image, self._first = backend.stop_gradient(self._first), None
            image = backend.astype(image, z.dtype) if self.half else image
            residual = image - z
        elif self.equation.residual is None:
            image = self._call(self.equation.function, lent, z)
            residual = image - z
        else:
            residual = self._call(self.equation.residual, lent, z)
            image = z + residual
        size = backend.host_norm(residual)
        self._history.append(pick(self.live, size, math.nan) if self.batch else size)
        point = Point(z, image, residual, size)
        if self.batch:
            self._see_coupling(point)
        return point

    def _call(self, function: Any, lent: Array, like: Array) -> Array:
        result, intact = self.backend.call_foreign(function, lent)
        self._calls += 1
        if not intact:
            raise OperatorError(
                f"{self.name}: {self.equation.name} changed its state in place, expected it to be left as it is. "
                "Use z * 2 rather than z.mul_(2), and inplace=False in the first layer."
            )
        self._check(self.equation.name, result, lent)
        return self.backend.astype(result, like.dtype) if self.half else result

    def _check(self, name: str, result: Any, like: Array) -> None:
        """Raise unless ``result`` is a state like ``like``."""
        got, backend = f"{self.name}.solve: {name}", self.backend
        if not backend.is_array(result):
            raise BackendError(f"{got} is of type {type(result).__qualname__}, expected an array as the state is.")
        if tuple(result.shape) != tuple(like.shape):
            raise ShapeError(f"{got} has shape {tuple(result.shape)}, expected that of the state, {tuple(like.shape)}.")
        if result.dtype != like.dtype:
            raise DtypeError(f"{got} has dtype {result.dtype}, expected that of the state, {like.dtype}.")
        if backend.device(result) != backend.device(like):
            raise DeviceError(
                f"{got} is on {backend.device(result)}, expected the state's device, {backend.device(like)}."
            )

    def _lent(self, z: Array) -> Array:
        return self.backend.astype(z, self.dtype) if self.half else z

    def linearize(self, z: Array) -> LinearOperator:
        """Return ``df/dz`` at ``z``, one call of ``f``; who spends products of it adds them to ``num_products``."""
        self._calls += 1
        operator = self.equation.linearize(self._lent(z))
        return in_half_precision(operator, self.backend, self.dtype) if self.half else operator

    def merit(self, z: Array) -> Any:
        """Return the merit of each sample, in double."""
        assert self.equation.merit is not None
        value = self.equation.merit(self._lent(z))
        return np.asarray(value, dtype=float) if self.batch else float(value)

    def _scale(self, z: Array, image: Array) -> Any:
        assert self.equation.scale is not None
        self._calls += 1
        self.num_products += 1
        value = self.equation.scale(self._lent(z), self._lent(image))
        return np.asarray(value, dtype=float) if self.batch else float(value)

    # -- judging -----------------------------------------------------------------------------------------------------
    def visit(self, z: Array) -> Point:
        """Take ``z`` as the next iterate of every live sample: call ``f``, keep the best, and see who ends here."""
        step = 0 if self._first_norm is None else 1
        point = self.evaluate(z)
        self.iters = self.iters + pick(self.live, step, 0)
        if not step:
            self._first_norm = point.size
        self.settle(point, self.live)
        self.judge(point, self.live)
        self.close(self.live & (self._since_best >= 5) & (self.best_norm <= self.floor), Status.STAGNATED)
        self.close(self.live & (self.iters >= self.max_iters), Status.MAX_ITERS)
        return point

    def _see_coupling(self, point: Point) -> None:
        """Find samples that had converged, are held where they were, and whose residual has changed with the others."""
        moved = (self._status == Status.CONVERGED) & (point.size > 2 * self.bound) & (point.size > self.floor)
        if any_true(moved):
            self._status = pick(moved, Status.COUPLED, self._status)
            self.best_norm = pick(moved, point.size, self.best_norm)

    def settle(self, point: Point, where: Any, better: Any = None) -> None:
        """Keep the iterates of ``where`` that are the best so far, and end those whose residual is within the bound.

        ``better`` says which are the best where that is not the smallest residual: the merit of a line search.
        """
        size, image_norm = point.size, self.backend.host_norm(point.image)
        better = where & (size < self.best_norm) if better is None else better
        reached = where & finite(image_norm)  # relative to Inf everything is small
        if self.equation.scale is None:
            reference = image_norm
        else:
            known = self._zeros + math.inf if self._known_scale is None else self._known_scale
            maybe = reached & (size <= self._bound(known))  # at the start, everybody
            if any_true(maybe):
                known = pick(maybe, self._scale(point.z, point.image), known)
                reached = maybe & finite(known)
            self._known_scale = known
            reference = self._known_scale
        reached = reached & (size <= self._bound(reference))
        better = better | reached  # what is certified is what comes back, though its residual may not be the smallest
        self._since_best = pick(better, 0, self._since_best + 1)
        self.best = self.choose(better, point.z, self.best)
        self.best_norm = pick(better, size, self.best_norm)
        self._reference = pick(better, reference, self._reference)
        self.close(reached, Status.CONVERGED)

    def judge(self, point: Point, where: Any) -> None:
        """End the iterates of ``where`` from which there is no way on."""
        # A map that answers NaN or Inf at a finite point is at fault.
        self.close(where & negate(finite(point.size)), Status.NONFINITE_OPERATOR)
        # Growth by 1/eps has lost every digit of z.
        self.close(where & (point.size > self._first_norm / self.eps), Status.DIVERGED)

    def _bound(self, reference: Any) -> Any:
        bound = self.rtol * reference
        return pick(bound > self.atol, bound, self._zeros + self.atol)

    @property
    def bound(self) -> Any:
        """What the residual of the best iterate is to come below."""
        return self._bound(self._reference)

    def close(self, where: Any, status: Status) -> None:
        """End the live samples in ``where`` with ``status``."""
        where = where & self.live
        if any_true(where):
            self._status = pick(where, status, self._status)
            self.live = self.live & negate(where)

    def solution(self, seconds: float) -> Solution:
        """Return the best iterates with the books."""
        number = np.asarray if self.batch else float
        x = self.backend.astype(self.best, self.dtype) if self.half else self.best
        return Solution(
            x=x,
            status=self._status,
            residual_norm=number(pick(finite(self.best_norm), self.best_norm, math.nan)),
            rhs_norm=number(self._reference),
            bound=number(self.bound),
            num_iters=self.iters if self.batch else int(self.iters),
            num_matvecs=self._calls,
            num_rmatvecs=self.num_products,
            history=np.asarray(self._history, dtype=float).reshape(len(self._history), *self.batch),
            solver=self.name,
            seconds=seconds,
            trajectory=tuple(self._points or ()),
        )
