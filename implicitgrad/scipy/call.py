"""One call of SciPy: how the problem is put to it, and what becomes of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import linalg

from implicitgrad.scipy.operators import on_numpy
from implicitgrad.solvers.system import System
from implicitgrad.status import Status

__all__ = ["LEAST_SQUARES", "MARGIN", "NEED_ADJOINT", "OURS", "PRODUCTS", "Call"]


PRODUCTS = dict.fromkeys(
    ("bicg", "bicgstab", "cg", "cgs", "gcrotmk", "gmres", "lgmres", "lsmr", "lsqr", "minres", "qmr", "tfqmr"), 1
) | {"bicgstab": 2, "cgs": 2}
NEED_ADJOINT = ("bicg", "qmr", "lsqr", "lsmr")
LEAST_SQUARES = ("lsqr", "lsmr")
OURS = ("A", "b", "x0", "rtol", "atol", "btol", "maxiter", "iter_lim", "callback", "callback_type", "calc_var")

# Asked of SciPy below the bound, so that the rounding between its residual and the true one costs no second call.
MARGIN = 0.9

# minres stops at rtol * norm(A) norm(x), which is up to cond(A) times rtol * norm(b). Over condition numbers from 3 to
# 1000, 1e-3 loses no system and spends 8 % more products than 1e-2, which does; a second call is sharper by what the
# first one missed.
MINRES = 1e-3


class _NonfiniteProduct(Exception):  # noqa: N818  # a way out of SciPy, never seen outside
    """A product held NaN or Inf, so SciPy would go on to its cap for nothing."""


@dataclass
class Call:
    """One call of SciPy: what goes in, and how it ended."""

    method: str
    options: tuple[tuple[str, Any], ...]
    system: System
    calls: int  # of this solve, this one included
    left: int  # iterations that may still be made
    target: float  # residual norm that is wanted
    exponent: int  # of the power of two between the caller's scale and this one
    steps: int = 1
    claim: bool = False
    status: Status | None = None
    error: BaseException | None = None
    last_finite: Any = None
    caller_errstate: Any = field(default_factory=np.geterr)

    def run(self, r: Any) -> Any:
        """Return SciPy's answer to ``A d = r``, or the last finite iterate that it showed."""
        system, method = self.system, self.method
        d, info = None, 0
        before = system.num_matvecs
        A = linalg.LinearOperator(
            system.operator.shape,
            dtype=r.dtype,
            matvec=self._guarded(on_numpy(system.matvec, system.rhs)),
            rmatvec=self._guarded(on_numpy(system.rmatvec, system.rhs)),
        )
        arguments, given, cycle = self._arguments(r)
        try:
            with np.errstate(all="ignore"):  # 0 / 0 in SciPy's recurrence is told by the status
                d, info, *_ = getattr(linalg, method)(A, r, **arguments)
        except _NonfiniteProduct:
            pass
        if self.error is not None:  # lgmres and gcrotmk swallow a LinAlgError, even one of the user's
            raise self.error
        self.steps = min(max(-(-(system.num_matvecs - before) // PRODUCTS[method]), 1), self.left)
        if self.status is None and (d is None or not self._usable(d)):
            self.status = Status.BREAKDOWN
        if self.status is not None:
            return np.zeros(system.operator.shape[1], r.dtype) if self.last_finite is None else self.last_finite
        if method in LEAST_SQUARES:
            self.claim = info in (0, 1, 4)  # the compatible stops; 2, 5: least squares, 3, 6: cond(A), 7: the limit
            ends = {2: Status.LEAST_SQUARES, 5: Status.LEAST_SQUARES, 3: Status.STAGNATED, 6: Status.STAGNATED}
            self.status = ends.get(info)
        else:
            self.claim = info == 0 or (method == "gmres" and self.steps < self.left)  # it takes a breakdown for the end
            gave_up = Status.STAGNATED if info == given else Status.BREAKDOWN  # cycles that ended early, each of them
            spent = self.left - self.steps < cycle
            self.status = None if self.claim or spent else gave_up
        return d

    def _arguments(self, r: Any) -> tuple[dict[str, Any], int, int]:
        """Return the keywords of the call, the budget in SciPy's unit, and the most products that this unit takes."""
        method, left, cycle = self.method, self.left, 1
        arguments = dict(self.options)
        relative = self.target / float(np.linalg.norm(r))
        if method in LEAST_SQUARES:  # atol=0, conlim=0: stop by the residual, not by the condition number
            limit = "iter_lim" if method == "lsqr" else "maxiter"
            return {"atol": 0.0, "btol": relative, "conlim": 0.0, **arguments, limit: left}, left, cycle
        arguments["callback"] = self._seen
        if method == "minres":
            return {**arguments, "rtol": MINRES * relative**self.calls, "maxiter": left}, left, cycle
        arguments |= {"rtol": 0.0, "atol": self.target}
        if method == "gmres":  # only with this callback does maxiter count inner steps
            arguments |= {"callback_type": "legacy", "callback": lambda _: None}
        elif method == "lgmres":
            inner = arguments["inner_m"] = min(arguments.get("inner_m", 30), left)
            cycle = inner + 1
            left = max(left // cycle, 1)
        elif method == "gcrotmk":  # a cycle takes m + k steps at first, one fewer each time, and m in the end
            m = arguments["m"] = min(arguments.get("m", 20), left)
            k = arguments["k"] = min(m if arguments.get("k") is None else arguments["k"], left - m)
            cycle = m + k + 1
            left = max(left // cycle, (left - k * (k + 1) // 2) // (m + 1), 1)
        return {**arguments, "maxiter": left}, left, cycle

    def _guarded(self, product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``product``: free of charge for zero, its exceptions remembered, NaN and Inf told at once."""

        def apply(v: Any) -> Any:
            v = v.reshape(-1)
            if not v.any():  # lgmres and qmr spend a product on x = 0
                rows, columns = self.system.operator.shape
                return np.zeros(columns if len(v) == rows else rows, v.dtype)
            try:
                with np.errstate(**self.caller_errstate):
                    y = product(v)
            except BaseException as error:
                self.error = error
                raise
            if not np.isfinite(y).all():
                self.status = Status.NONFINITE_OPERATOR if np.isfinite(v).all() else Status.BREAKDOWN
                raise _NonfiniteProduct
            return y

        return apply

    def _seen(self, x: Any) -> None:
        if self._usable(x):
            self.last_finite = x.copy()

    def _usable(self, x: Any) -> bool:
        """Return whether ``x`` is finite, in the caller's scale too; on a singular system it grows until it is not."""
        with np.errstate(over="ignore"):
            largest = np.ldexp(float(np.abs(x).max(initial=0.0)), max(self.exponent, 0) + 1)
        return bool(largest < np.finfo(x.dtype).max)
