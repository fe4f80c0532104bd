"""JAX's one switch for double precision, set as a user of each problem would have it: off for float32."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["use_precision_of"]


def use_precision_of(problem: Any) -> None:
    """Switch double precision on, or off for a problem in float32."""
    rhs = getattr(problem, "rhs", None)
    jax.config.update("jax_enable_x64", rhs is None or rhs.dtype.itemsize == 8)
