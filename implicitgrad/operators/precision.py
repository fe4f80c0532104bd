"""Half-precision operators applied to float32 vectors: the map runs in its own dtype, the recurrences do not.

float16 holds 3 digits between 6e-5 and 65504. Each vector is therefore scaled by the power of two next to its largest
entry before it is rounded, which costs one reduction and keeps small residuals from vanishing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from implicitgrad.backends import Array, Backend
from implicitgrad.operators.algebra import Adjoint, Shifted
from implicitgrad.operators.base import LinearOperator

__all__ = ["HalfPrecision", "in_half_precision"]


class HalfPrecision(LinearOperator):
    """``A``, applied in ``dtype`` to vectors of float32."""

    def __init__(self, operator: LinearOperator, backend: Backend, dtype: Any) -> None:
        self.operator = operator
        self.shape = operator.shape
        self.symmetric = operator.symmetric
        self._backend = backend
        self._dtype = dtype

    def apply(self, x: Array) -> Array:
        """Return ``A x``."""
        return self._through(self.operator.apply, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y``."""
        return self._through(self.operator.apply_adjoint, y)

    def _through(self, product: Callable[[Array], Array], x: Array) -> Array:
        backend = self._backend
        _, exponent = np.frexp(backend.max_abs(x))
        exponent = int(exponent) if x.ndim == 1 else exponent.astype(int)
        y = product(backend.astype(backend.times_power_of_two(x, -exponent), self._dtype))
        return backend.times_power_of_two(backend.astype(y, x.dtype), exponent)

    @property
    def has_forward(self) -> bool:
        """Whether ``A`` can be applied."""
        return self.operator.has_forward

    @property
    def has_adjoint(self) -> bool:
        """Whether ``A^H`` can be applied."""
        return self.operator.has_adjoint


def in_half_precision(operator: LinearOperator, backend: Backend, dtype: Any) -> LinearOperator:
    """Return ``operator`` for float32 vectors; the shift of ``alpha I + beta A`` stays outside, in float32."""
    if isinstance(operator, Shifted):
        return Shifted(operator.alpha, operator.beta, in_half_precision(operator.operator, backend, dtype))
    if isinstance(operator, Adjoint):
        return Adjoint(HalfPrecision(operator.operator, backend, dtype))
    return HalfPrecision(operator, backend, dtype)
