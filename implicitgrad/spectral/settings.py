"""The settings that all spectral routines share: checked once, with their defaults in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.spectral.result import check_policy
from implicitgrad.spectral.space import Space

__all__ = ["Settings"]

_BYTES = 2**26  # 64 MiB of basis a side by default
_MOST = 256  # beyond, the small problem costs more than a restart loses
_LEAST = 32  # a restarted method with fewer begins to lose steps


@dataclass(frozen=True)
class Settings:
    """What a caller asked for; None is the default of the dtype and the size."""

    name: str
    rtol: Any
    vector_tol: Any
    max_iters: Any
    memory: Any
    confidence: Any
    on_failure: Any

    def __post_init__(self) -> None:
        """Raise for what makes no sense."""
        check_policy(self.name, self.on_failure)
        for label, value in (("rtol", self.rtol), ("vector_tol", self.vector_tol)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise SettingTypeError(f"{self.name}: got {label}={value!r}, expected a finite number > 0.")
            if not 0 < value < math.inf:
                raise SettingError(f"{self.name}: got {label}={value!r}, expected a finite number > 0.")
        for label, value, least in (("max_iters", self.max_iters, 1), ("memory", self.memory, 4)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise SettingTypeError(f"{self.name}: got {label}={value!r}, expected an integer >= {least} or None.")
            if value < least:
                raise SettingError(f"{self.name}: got {label}={value!r}, expected an integer >= {least} or None.")
        p = self.confidence
        if isinstance(p, bool) or not isinstance(p, int | float | np.floating) or not 0 < p < 1:
            raise SettingError(f"{self.name}: got confidence={p!r}, expected a probability, 0 < p < 1.")

    def tolerance(self, eps: float) -> float:
        """Return ``rtol``, by default ``sqrt(eps) / 4``: the accuracy of a default solve."""
        return math.sqrt(eps) / 4 if self.rtol is None else float(self.rtol)

    def steps(self, size: int) -> int:
        """Return ``max_iters``, by default ``min(10 n, 1000)``."""
        return min(10 * size, 1000) if self.max_iters is None else int(self.max_iters)

    def vectors(self, size: int, length: int, space: Space) -> int:
        """Return ``memory``: a whole basis for small systems, then 64 MiB, and never fewer than 32 vectors."""
        if self.memory is not None:
            return min(int(self.memory), size)
        itemsize = 8 * space.eps**0 * (2 if space.is_complex else 1) / (2 if space.eps > 1e-10 else 1)
        fits = int(_BYTES / (itemsize * length * max(space.systems, 1)))
        return min(size, max(_LEAST, min(_MOST, fits)))
