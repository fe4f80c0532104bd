"""``assert_close``: the one place where a tolerance is formed, from dtype, size and conditioning."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import backend_of
from implicitgrad.testing.problem import eps_of, scaled_norm

__all__ = ["assert_close", "beyond_rounding", "on_host"]

# A sum of n products is off by at most n eps, in practice by sqrt(n) eps; this leaves room for some twenty such sums.
_SAFETY = 32.0


def assert_close(
    actual: Any, expected: Any, *, eps: float | None = None, condition: float = 1.0, scale: Any = None
) -> None:
    """Assert that two arrays agree up to rounding, vector by vector: the one place where a tolerance is formed.

    Parameters
    ----------
    actual, expected : array, shape (..., n)
        Of any supported library; compared in double precision.
    eps : float, optional
        Spacing of the format that ``actual`` was computed in. Default: that of its dtype.
    condition : float
        By how much the computation may magnify rounding: a condition number, or a number of steps.
    scale : array, optional
        Vectors, of the shape of ``expected``, whose norms the difference is measured against. Default: ``expected``.

    Raises
    ------
    AssertionError
        ``norm(actual - expected) > 32 sqrt(n) eps condition norm(scale)`` for some vector; the message names the worst
        one of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> assert_close(np.array([0.1 + 0.2]), np.array([0.3]))
    >>> assert_close(np.array([1.0, 0.0]), np.array([1.0, 1e-3]))
    Traceback (most recent call last):
    ...
    AssertionError: differs by 1.000e-03, expected at most 1.005e-14 (eps 2.2e-16, n = 2, condition 1.0e+00)
    """
    eps = eps_of(backend_of(actual).dtype_name(actual.dtype)) if eps is None else eps
    actual, expected = on_host(actual), on_host(expected)
    assert actual.shape == expected.shape, f"got shape {actual.shape}, expected {expected.shape}"
    size = scaled_norm(expected if scale is None else on_host(scale))
    with np.errstate(invalid="ignore"):  # Inf - Inf, which is told below
        gap = np.asarray(scaled_norm(actual - expected))
    tolerance = np.broadcast_to(_tolerance(max(actual.shape[-1], 1), eps, condition) * size, gap.shape)
    assert np.isfinite(gap).all(), "got NaN or Inf"
    excess = np.where(gap > tolerance, gap, 0.0)
    if excess.any():
        worst = np.unravel_index(np.argmax(excess), gap.shape)
        where = f" at vector {', '.join(map(str, worst))} of shape {gap.shape}" if gap.ndim else ""
        raise AssertionError(
            f"differs by {gap[worst]:.3e}{where}, expected at most {tolerance[worst]:.3e}"
            f" (eps {eps:.1e}, n = {actual.shape[-1]}, condition {condition:.1e})"
        )


def beyond_rounding(gap: Any, size: Any, n: int, eps: float, condition: float = 1.0) -> bool:
    """Return whether some ``gap`` is more than the rounding that ``assert_close`` allows for numbers of ``size``."""
    return not bool(np.all(np.asarray(gap) <= _tolerance(n, eps, condition) * np.asarray(size)))


def _tolerance(n: int, eps: float, condition: float) -> float:
    return float(_SAFETY * np.sqrt(n) * eps * condition)


def on_host(x: Any) -> Any:
    """Return ``x`` as a NumPy array, in double precision."""
    values = backend_of(x).to_numpy(x) if not isinstance(x, np.ndarray) else x
    return values.astype(np.result_type(values.dtype, np.float64))
