"""What a series still lacks, guessed from the decay of its last terms: the bias of ``Neumann`` and ``Richardson``.

After ``x_K`` the rest is ``sum_{t > K} step * M^t b`` with ``M = I - step * A``. Were each term ``ratio`` times the one
before, its norm would be at most ``step * next / (1 - ratio)``; terms that alternate or turn cancel, and make it less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from implicitgrad.backends.host import quotient

__all__ = ["geometric_tail"]


def geometric_tail(tail: tuple[Any, Any] | None, residual_norm: Any, step: float) -> Any:
    """Return ``step * next / (1 - ratio)`` of each system; infinite where the terms do not shrink.

    Parameters
    ----------
    tail : (size, ratio) or None
        Norm of the last term before its factor ``step``, and its ratio to the one before (None: there is none before).
    residual_norm : float or None, or array (...)
        The residual of the sum, which is the term that comes next, where it was measured.
    step : float
        The factor of each term in the sum, ``1 - damping``.

    Returns
    -------
    float or None, or array (...)
        None where a decay was never seen: one term, and no residual.
    """
    if tail is None:
        return None
    size, ratio = tail
    if residual_norm is not None:
        following, ratio = residual_norm, quotient(residual_norm, size)
    elif ratio is None:
        return None
    else:
        following = size * ratio
    if not isinstance(following, np.ndarray):
        return step * following / (1.0 - ratio) if ratio < 1 else (0.0 if following == 0 else math.inf)
    with np.errstate(all="ignore"):  # NaN belongs to a system with a status of its own
        shrinking = np.divide(step * following, 1.0 - ratio)
    return np.where(ratio < 1, shrinking, np.where(following == 0, 0.0, math.inf))
