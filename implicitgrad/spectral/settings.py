"""The settings that the searches share: checked once, with their defaults in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.spectral.result import check_policy
from implicitgrad.spectral.space import Space

__all__ = ["Settings", "check_count", "check_number"]

_BYTES = 2**26  # 64 MiB of basis by default
_MOST = 256  # beyond, the projected problem costs more than a restart loses
_FEWEST = 5  # two Ritz vectors, the wanted one of the step before, and two steps to a restart
_LEAST = 32  # with fewer, a thick restart begins to lose steps


@dataclass(frozen=True)
class Settings:
    """What a caller asked for; None is the default of the dtype and the size."""

    name: str
    singular: bool
    rtol: Any
    criterion: Any
    vector_tol: Any
    max_iters: Any
    memory: Any
    confidence: Any
    on_failure: Any

    def __post_init__(self) -> None:
        """Raise for what makes no sense."""
        check_policy(self.name, self.on_failure)
        if self.criterion not in ("residual", "gap"):
            raise SettingError(f"{self.name}: got criterion={self.criterion!r}, expected 'residual' or 'gap'.")
        check_number(self.name, "rtol", self.rtol, optional=True)
        check_number(self.name, "vector_tol", self.vector_tol, optional=True)
        check_count(self.name, "max_iters", self.max_iters, least=1, optional=True)
        check_count(self.name, "memory", self.memory, least=_FEWEST, optional=True)
        check_number(self.name, "confidence", self.confidence, most=1.0)

    def tolerance(self, eps: float) -> float:
        """Return ``rtol``, by default ``eps**0.4``: 6e-7 in double precision, 2e-3 in single.

        The residual meets it; the value, whose error is quadratic in the residual, is mostly right to twice the digits.
        """
        return float(eps**0.4) if self.rtol is None else float(self.rtol)

    def steps(self, size: int) -> int:
        """Return ``max_iters``, by default ``min(10 n, 1000)``."""
        return min(10 * size, 1000) if self.max_iters is None else int(self.max_iters)

    def vectors(self, size: int, length: int, space: Space, most: int | None = None) -> int:
        """Return ``memory``, by default 256 vectors or what fits into 64 MiB, and never fewer than 32."""
        if self.memory is not None:
            return min(int(self.memory), size)
        itemsize = (4 if space.eps > 1e-10 else 8) * (2 if space.is_complex else 1)
        fits = _BYTES // (itemsize * length * max(space.systems, 1))
        return min(size, max(_LEAST, min(most or _MOST, fits)))


def check_number(name: str, label: str, value: Any, most: float = math.inf, optional: bool = False) -> None:
    """Raise unless ``0 < value < most``."""
    if value is None and optional:
        return
    expected = f"a number > 0{'' if most == math.inf else f' and < {most:g}'}{' or None' if optional else ''}"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise SettingTypeError(f"{name}: got {label}={value!r}, expected {expected}.")
    if not 0 < value < most:
        raise SettingError(f"{name}: got {label}={value!r}, expected {expected}.")


def check_count(name: str, label: str, value: Any, least: int, optional: bool = False) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if value is None and optional:
        return
    expected = f"an integer >= {least}{' or None' if optional else ''}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise SettingTypeError(f"{name}: got {label}={value!r}, expected {expected}.")
    if value < least:
        raise SettingError(f"{name}: got {label}={value!r}, expected {expected}.")
