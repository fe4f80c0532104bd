"""Finding the fixed point z = f(z): the interface of forward solvers, their common books, and the Picard iteration.

Each sample of a batch stops, fails and is reported on its own. A sample that has stopped is held at its best iterate,
which is finite, so nothing that went wrong in it reaches its neighbours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import DtypeError, OperatorError, SettingError
from implicitgrad.solvers.base import Solution, check_settings, refuse_unknown
from implicitgrad.status import Status

__all__ = ["ForwardSolver", "Picard"]

Map = Callable[[torch.Tensor], torch.Tensor]
Search = Generator[torch.Tensor, tuple[torch.Tensor, Any], None]


class ForwardSolver(ABC):
    """Interface of the solvers of ``z = f(z)``. A finished one is a frozen dataclass with these three settings."""

    rtol: float | None
    atol: float
    max_iters: int

    def __new__(cls, *args: Any, **kwargs: Any) -> ForwardSolver:
        """Refuse unknown settings in words."""
        refuse_unknown(cls.__name__, [f.name for f in fields(cls)], kwargs)  # type: ignore[arg-type]
        return super().__new__(cls)

    @abstractmethod
    def iterates(self, z: torch.Tensor) -> Search:
        """Yield the points at which ``f`` is to be evaluated; what is sent back is ``f(z)`` and the residual norms.

        Written as a generator: ``fz, size = yield z``, with ``size`` a host array ``(...)``.
        """

    def solve(self, function: Map, z0: torch.Tensor) -> Solution:
        """Solve ``z = f(z)``.

        Parameters
        ----------
        function : callable
            ``f`` on flat states ``(..., n)``.
        z0 : tensor, shape (..., n)
            Where to start.

        Returns
        -------
        Solution
            ``x`` is the best iterate ``z``, ``residual_norm`` is ``norm(f(z) - z)`` as measured there, ``bound`` is
            ``max(rtol * norm(f(z)), atol)``, ``num_matvecs`` counts calls of ``f``.
        """
        return _Search(self, function, z0).solution()


class _Search:
    """One forward solve. The books are host arrays ``(...)``, one entry a sample; 0-d for one."""

    def __init__(self, method: ForwardSolver, function: Map, z0: torch.Tensor) -> None:
        facts = BACKEND.facts(z0.dtype)
        if facts is None:
            raise DtypeError(f"{type(method).__name__}.solve: got z0 of {z0.dtype}, expected floating point.")
        # eps^(3/4), 6e-6 and 2e-12: the gradient is taken at this point, so it should be the better known of the two,
        # and finite differences divide its error by 1e-6.
        default = 2 * facts.eps if facts.is_half else facts.eps**0.75
        self.rtol = default if method.rtol is None else method.rtol
        self.method, self.eps = method, facts.eps
        self.dtype = z0.dtype
        if facts.is_half:  # the map runs in its dtype, the search in float32, at points that the dtype can hold
            half = function
            z0 = z0.float()

            def function(z: torch.Tensor) -> torch.Tensor:
                return half(z.to(self.dtype)).float()

        shape = tuple(z0.shape[:-1])
        self.status = np.full(shape, None, dtype=object)
        self.iters = np.zeros(shape, dtype=int)
        self.best = z0
        self.best_norm = np.full(shape, np.inf)
        self.image_norm = np.zeros(shape)
        self.since_best = np.zeros(shape, dtype=int)
        self.history: list[Any] = []
        self.calls = 0
        self._run(function, z0)

    def _run(self, function: Map, z: torch.Tensor) -> None:
        finite = np.isfinite(np.asarray(BACKEND.max_abs(z))) | (z.shape[-1] == 0)
        self.status[~finite] = Status.NONFINITE_INPUT
        live = finite.copy()
        if not finite.all():
            z = BACKEND.select(finite, z, torch.zeros_like(z))
        self.best = z
        search = self.method.iterates(z)
        z = next(search)
        first = np.zeros(live.shape)
        step = 0
        while live.any():
            z = z.to(self.dtype).to(z.dtype)
            fz, intact = BACKEND.call_foreign(function, z)
            if not intact:
                raise OperatorError(
                    f"{type(self.method).__name__}: f changed its state in place, expected it to be left as it is. "
                    "Use z * 2 rather than z.mul_(2), and inplace=False in the first layer."
                )
            self.calls += 1
            size = self._norm(fz - z)
            image = self._norm(fz)
            self.history.append(np.where(live, size, np.nan))
            first = size if step == 0 else first
            better = live & (size < self.best_norm)
            if better.all():
                self.best = z
            elif better.any():
                self.best = BACKEND.select(better, z, self.best)
            self.best_norm = np.where(better, size, self.best_norm)
            self.image_norm = np.where(better, image, self.image_norm)
            self.since_best = np.where(better, 0, self.since_best + 1)

            bound = np.maximum(self.rtol * image, self.method.atol)
            self.iters = np.where(live, step, self.iters)
            # A map that answers NaN or Inf at a finite point is at fault, and a bound of Inf holds nothing.
            live = self._close(live & ~(np.isfinite(size) & np.isfinite(image)), Status.NONFINITE_OPERATOR, live)
            live = self._close(live & (size <= bound), Status.CONVERGED, live)
            # Growth by 1/eps has lost every digit of z.
            live = self._close(live & (size > first / self.eps), Status.DIVERGED, live)
            floor = 8 * self.eps * self.image_norm
            live = self._close(live & (self.since_best >= 5) & (self.best_norm <= floor), Status.STAGNATED, live)
            if step >= self.method.max_iters:
                live = self._close(live, Status.MAX_ITERS, live)
            if not live.any():
                return
            z = search.send((fz, size))
            if not live.all():
                z = BACKEND.select(live, z, self.best)
            step += 1

    def _norm(self, x: torch.Tensor) -> Any:
        return np.asarray(BACKEND.to_host(BACKEND.norm(x)), dtype=float)

    def _close(self, where: Any, status: Status, live: Any) -> Any:
        self.status[where] = status
        return live & ~where

    def solution(self) -> Solution:
        single = self.status.shape == ()
        bound = np.maximum(self.rtol * self.image_norm, self.method.atol)
        number = float if single else np.asarray
        return Solution(
            x=self.best.detach().to(self.dtype),
            status=self.status.item() if single else self.status,
            residual_norm=number(np.where(np.isfinite(self.best_norm), self.best_norm, math.nan)),
            rhs_norm=number(self.image_norm),
            bound=number(bound),
            num_iters=int(self.iters) if single else self.iters,
            num_matvecs=self.calls,
            num_rmatvecs=0,
            history=np.asarray(self.history, dtype=float).reshape(len(self.history), *self.status.shape),
            solver=type(self.method).__name__,
        )


@dataclass(frozen=True)
class Picard(ForwardSolver):
    """Fixed-point iteration ``z <- (1 - damping) f(z) + damping z``.

    Parameters
    ----------
    rtol : float, optional
        Stop a sample when ``norm(f(z) - z) <= max(rtol * norm(f(z)), atol)``. Default by dtype: ``eps**(3/4)``, 6e-6 in
        float32 and 2e-12 in float64. The residual is that of ``f``, whatever the damping.
    atol : float
        In the unit of ``z``.
    max_iters : int
        Most steps; ``max_iters + 1`` calls of ``f``. 0 measures ``z0`` and returns it.
    damping : float
        Part of the old iterate that is kept, in ``[0, 1)``. Makes maps converge whose Jacobian has eigenvalues left of
        -1, and slows down the others.

    Notes
    -----
    Converges when the spectral radius of the Jacobian is below one, by that factor a step (Banach). Cost a step: one
    call of ``f``, two reductions; three states.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> sol = igt.Picard().solve(torch.cos, torch.zeros(1, dtype=torch.float64))
    >>> round(sol.x.item(), 9), sol.status.name
    (0.739085133, 'CONVERGED')
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iters: int = 500
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.damping >= 1:
            raise SettingError(
                f"Picard: got damping={self.damping!r}, expected a number in [0, 1); 1 would stand still."
            )

    def iterates(self, z: torch.Tensor) -> Search:
        """Yield the damped iterates."""
        while True:
            fz, _ = yield z
            z = torch.lerp(fz, z, self.damping) if self.damping else fz
