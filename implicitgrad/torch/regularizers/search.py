"""The search for the smallest singular triplet of ``I - J`` behind ``lambda_min``, and its three ways to a gradient.

Settings are checked once; applied to a map, a ``Search`` returns ``sigma_min^2`` with its gradient, and a
``SpectralResult``, in which the residual has been recomputed from the vectors.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from implicitgrad.backends.torch import BACKEND
from implicitgrad.errors import (
    ConvergenceWarning,
    DtypeError,
    NotConvergedError,
    SettingError,
    SettingTypeError,
    ShapeError,
)
from implicitgrad.operators import identity_minus
from implicitgrad.spectral import SpectralResult, smallest_singular_value
from implicitgrad.status import Status
from implicitgrad.torch.regularizers.adjoint import SigmaDerivative
from implicitgrad.torch.regularizers.first_order import first_order_only
from implicitgrad.torch.regularizers.golub_kahan import ROUNDING, Bidiagonalization, bidiagonalize
from implicitgrad.torch.regularizers.linearized import Linearized, MapAt
from implicitgrad.torch.regularizers.ritz import RitzPair, bidiagonal, smallest_pair
from implicitgrad.torch.regularizers.streamed import streamed

__all__ = ["Search", "check_number"]

_METHODS = ("hellmann-feynman", "adjoint", "unrolled")
_MOST_STEPS = 300  # of the methods that keep their basis
_OFF = 1e-2  # how far a given start is moved
_NO_LOWER = "unconditional: no singular value is negative"


@dataclass(frozen=True)
class Search:
    """The settings of one call, checked; applied to a map it returns the value and what is known of it."""

    name: str
    method: str
    rtol: float | None
    max_iters: int | None
    memory: int | None
    start: torch.Tensor | None
    seed: int
    on_failure: str

    def __post_init__(self) -> None:
        """Raise for settings that make no sense."""
        name = self.name
        if self.method not in _METHODS:
            raise SettingTypeError(f"{name}: got method={self.method!r}, expected one of {', '.join(_METHODS)}.")
        if self.on_failure not in ("warn", "raise", "return"):
            raise SettingTypeError(f"{name}: got on_failure={self.on_failure!r}, expected 'warn', 'raise' or 'return'.")
        rtol = self.rtol
        if rtol is not None:
            check_number(name, "rtol", rtol)
        for label, value in (("max_iters", self.max_iters), ("memory", self.memory)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingTypeError(f"{name}: got {label}={value!r}, expected an integer >= 1 or None.")
        if self.method == "hellmann-feynman":
            if rtol == 0:
                raise SettingError(
                    f"{name}: got rtol=0 with method='hellmann-feynman', expected a tolerance: its gradient is that of "
                    "a converged pair. A fixed number of steps is for method='adjoint' or 'unrolled'."
                )
        else:
            if self.memory is not None:
                raise SettingError(
                    f"{name}: got memory={self.memory} with method={self.method!r}, expected None: these methods keep "
                    "their whole basis. Bound it by max_iters."
                )
            if rtol == 0 and self.max_iters is None:
                raise SettingError(f"{name}: got rtol=0 without max_iters, expected the number of steps.")

    def __call__(self, function: MapAt) -> tuple[torch.Tensor, SpectralResult]:
        """Return ``lambda_min`` with its gradient, and the singular triplet; warn or raise by the policy."""
        self._check_dtype(function.z.dtype)
        self._check_start(function)
        linearized = function.linearized()
        find = {"hellmann-feynman": self._frozen, "adjoint": self._adjoint, "unrolled": self._unrolled}[self.method]
        value, result = find(function, linearized, self._first_vector(linearized.point))
        good = np.vectorize(lambda status: status.is_good, otypes=[bool])(np.asarray(result.status, dtype=object))
        if not good.all() and self.on_failure != "return":
            message = f"{self.name} ({self.method}): {result.message}"
            if self.on_failure == "raise":
                raise NotConvergedError(message, result)
            warnings.warn(f"{message} The gradient may be far off.", ConvergenceWarning, stacklevel=3)
        return (value if torch.is_grad_enabled() else value.detach()), result

    def _check_dtype(self, dtype: torch.dtype) -> None:
        if self.method != "hellmann-feynman" and dtype in (torch.float16, torch.bfloat16):
            raise DtypeError(
                f"{self.name}: got a state of {dtype} with method={self.method!r}, expected float32 or wider: the "
                "recurrences of this method run in the dtype of the state. Use method='hellmann-feynman'."
            )

    def _check_start(self, function: MapAt) -> None:
        shape = tuple(function.z.shape)
        if function.size == 0:
            raise ShapeError(f"{self.name}: got an empty state, expected at least one number in each system.")
        start = self.start
        if start is None:
            return
        if not isinstance(start, torch.Tensor):
            raise SettingTypeError(f"{self.name}: got start of type {type(start).__qualname__}, expected a tensor.")
        if tuple(start.shape) != shape or start.dtype != function.z.dtype or start.device != function.z.device:
            raise ShapeError(
                f"{self.name}: got start of shape {tuple(start.shape)}, {start.dtype} on {start.device}, expected the "
                f"flat shape {shape}, {function.z.dtype} on {function.z.device}, as result.vector has."
            )
        if not bool((torch.linalg.vector_norm(start.detach(), dim=-1) > 0).all()):
            raise SettingError(f"{self.name}: got a start that is zero, expected a direction. Leave start=None.")

    def _first_vector(self, point: torch.Tensor) -> torch.Tensor | None:
        """Return the caller's start, a little off, or None.

        The vector of the training step before is all but invariant: from it alone a search ends after two steps at the
        same pair, even where another one has become the smallest. A hundredth of a random vector makes it look around.
        """
        if self.start is None:
            return None
        given = self.start.detach()
        given = given / torch.linalg.vector_norm(given, dim=-1, keepdim=True)
        other = self._random(point, self._generator())
        first: torch.Tensor = given + _OFF * other / torch.linalg.vector_norm(other, dim=-1, keepdim=True)
        return first

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _random(self, point: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(point.shape, dtype=point.dtype, generator=generator).to(point.device)

    # -- three gradients -----------------------------------------------------------------------------------------------
    def _frozen(
        self, function: MapAt, linearized: Linearized, start: torch.Tensor | None
    ) -> tuple[torch.Tensor, SpectralResult]:
        """Hellmann-Feynman: ``norm((I - J)^H u)^2`` at the left vector, by value ``sigma_min^2``."""
        result = smallest_singular_value(
            identity_minus(linearized.operator()),
            start=start,
            like=linearized.point.detach(),
            rtol=self._angle(linearized.point),
            vector_tol=self._angle(linearized.point),
            max_iters=self.max_iters,
            memory=self.memory,
            seed=self.seed,
            on_failure="return",
        )
        u: torch.Tensor = result.left_vector  # type: ignore[assignment]  # a singular pair has one
        image = u - linearized.vjp(u)
        square = (image.real.square() + image.imag.square() if image.is_complex() else image.square()).sum(dim=-1)
        sigma = torch.as_tensor(result.value, dtype=square.dtype, device=square.device)
        # By value the square of the Ritz value, which is the better known: the image has the residual in it.
        value = sigma.square() + (square - square.detach())
        return first_order_only(self.name, value), self._with_clusters(result, linearized.point)

    def _adjoint(
        self, function: MapAt, linearized: Linearized, start: torch.Tensor | None
    ) -> tuple[torch.Tensor, SpectralResult]:
        process = self._process(linearized, start, differentiable=False)
        pair = smallest_pair(process.alpha, process.beta, process.steps)
        value = streamed(function, pair.sigma.square(), SigmaDerivative(process, pair))
        return value, self._result(linearized, process, pair)

    def _unrolled(
        self, function: MapAt, linearized: Linearized, start: torch.Tensor | None
    ) -> tuple[torch.Tensor, SpectralResult]:
        process = self._process(linearized, start, differentiable=torch.is_grad_enabled())
        pair = smallest_pair(process.alpha, process.beta, process.steps)
        return pair.sigma.square(), self._result(linearized, process, pair)

    # -- the search of the two that differentiate it -------------------------------------------------------------------
    def _process(self, linearized: Linearized, start: torch.Tensor | None, differentiable: bool) -> Bidiagonalization:
        point, generator = linearized.point.detach(), self._generator()
        start = self._random(point, generator) if start is None else start
        most = _MOST_STEPS if self.max_iters is None else self.max_iters
        return bidiagonalize(
            linearized, start, min(point.shape[-1], most), self._angle(point), generator, differentiable
        )

    def _angle(self, point: torch.Tensor) -> float:
        return torch.finfo(point.dtype).eps ** 0.5 / 4 if self.rtol is None else float(self.rtol)

    def _result(self, linearized: Linearized, process: Bidiagonalization, pair: RitzPair) -> SpectralResult:
        """Recompute the triplet from its vectors, and say what it is worth."""
        with torch.no_grad():
            point = linearized.point.detach()
            x, y = pair.x.detach().to(point.dtype), pair.y.detach().to(point.dtype)
            v = torch.matmul(x.unsqueeze(-2), process.V.detach()).squeeze(-2)
            u = torch.matmul(y.unsqueeze(-2), process.U.detach()).squeeze(-2)
            image, back = v - linearized.jvp(v), u - linearized.vjp(u)
            sigma = torch.linalg.vector_norm(image, dim=-1)
            misses = (image - sigma.unsqueeze(-1) * u, back - sigma.unsqueeze(-1) * v)
            residual = torch.hypot(*(torch.linalg.vector_norm(miss, dim=-1) for miss in misses))
            B = bidiagonal(process.alpha, process.beta, process.steps)
            ritz = torch.linalg.svdvals(torch.where(torch.isfinite(B), B, 0.0)).flip(-1)
        value, error, gap, norm = (
            np.asarray(BACKEND.to_numpy(t.detach()), dtype=float)
            for t in (sigma, residual, pair.gap, process.beta.maximum(process.alpha).amax(dim=-1))
        )
        rounding = ROUNDING * torch.finfo(point.dtype).eps * np.maximum(norm, 1.0)
        status = np.full(value.shape, Status.MAX_ITERS, dtype=object)
        if self.rtol == 0:
            status[...] = Status.TRUNCATED
        status[error <= np.maximum(self._angle(point) * gap, rounding)] = Status.CONVERGED
        status[~np.isfinite(value)] = Status.NONFINITE_OPERATOR
        single = status.shape == ()
        number = float if single else np.asarray
        return SpectralResult(
            value=number(value),
            vector=v,
            left_vector=u,
            upper=number(value + rounding),
            lower=number(np.zeros_like(value)),
            condition=_NO_LOWER if single else np.full(value.shape, _NO_LOWER, dtype=object),
            residual_interval=(number(np.fmax(value - error - rounding, 0.0)), number(value + error + rounding)),
            residual_norm=number(error),
            gap=number(gap),
            ritz_values=BACKEND.to_numpy(ritz),
            status=status.item() if single else status,
            num_iters=number(BACKEND.to_numpy(process.steps)) if not single else int(process.steps),
            num_matvecs=process.products + 1,
            num_rmatvecs=process.products + 1,
            name=self.name,
        )

    def _with_clusters(self, result: SpectralResult, point: torch.Tensor) -> SpectralResult:
        """Call converged what is so but for values closer than half of the digits, which count as one."""
        ritz = np.nan_to_num(np.asarray(result.ritz_values, dtype=float)).max(axis=-1)
        close = torch.finfo(point.dtype).eps ** 0.5 * ritz
        enough = np.asarray(result.residual_norm) <= self._angle(point) * close
        status = np.array(result.status, dtype=object)
        status[enough & (status == Status.MAX_ITERS)] = Status.CONVERGED
        return replace(result, status=status.item() if status.shape == () else status)


def check_number(name: str, label: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise SettingTypeError(f"{name}: got {label}={value!r}, expected a finite number >= 0.")
    if not 0 <= value < math.inf:
        raise SettingError(f"{name}: got {label}={value!r}, expected a finite number >= 0.")
