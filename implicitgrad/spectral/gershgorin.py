"""Gershgorin's lower bounds on the smallest eigenvalue: proved, cheap to differentiate, and often loose.

With ``A = (I - J)^H (I - J)``, condition II of Liao et al. 2018 is ``lambda_min(A) > 0``, and their first remedy is to
keep ``1 - sqrt(n) norm(A - I, F)`` positive. Sharper forms of the same idea cost no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import SettingError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.settings import check_count
from implicitgrad.spectral.space import Host, Space, check_operator_type

__all__ = ["gershgorin_lower_bound"]

_BOUNDS = ("rows", "norm", "frobenius", "paper")


def gershgorin_lower_bound(
    A: LinearOperator, *, bound: str = "rows", like: Array | None = None, chunk_bytes: int = 2**26
) -> Any:
    """Return a lower bound on ``lambda_min(A)`` of a symmetric ``A`` from the entries of its rows.

    Parameters
    ----------
    A : LinearOperator, shape (n, n)
        ``A = A^H``; with ``B = identity_minus(J)``, it is ``B.H @ B``.
    bound : {"rows", "norm", "frobenius", "paper"}
        * ``"rows"``: ``min_i (a_ii - sum_{j != i} |a_ij|)``, Gershgorin's discs. Exact for diagonal ``A``.
        * ``"norm"``: ``1 - norm(A - I, inf)``, the same with the radius taken from 1; never above ``"rows"``.
        * ``"frobenius"``: ``1 - norm(A - I, F)``, by Weyl, since ``norm(A - I, 2) <= norm(A - I, F)``.
        * ``"paper"``: ``1 - sqrt(n) norm(A - I, F)``; never above any of the others.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in. Default: ``A.example()``.
    chunk_bytes : int
        Unit vectors are multiplied in batches of about this size; at least one at a time.

    Returns
    -------
    float, or ndarray, shape (...)
        The bound, negative where ``A`` is not diagonally dominant enough: it is returned as it is, never clipped.

    Raises
    ------
    SettingError, ShapeError, MissingProductError
        Unknown ``bound``; ``A`` is not square; ``A x`` is missing.

    Notes
    -----
    ``rows >= norm >= paper`` and ``frobenius >= paper``; ``rows`` and ``frobenius`` have no order. All ``n`` columns
    are formed: ``n`` products, in memory of one chunk. ``squared_frobenius_norm(A - I)`` estimates the Frobenius form
    from a few products instead. The rounding of the sums is subtracted, that of the products is not.
    Gershgorin 1931; Horn & Johnson, Matrix Analysis, 2nd ed., sec. 6.1.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.array([[2.0, 0.5], [0.5, 1.0]]), symmetric=True)
    >>> ig.gershgorin_lower_bound(A), round(float(ig.smallest_eigenvalue(A)), 4)
    (0.5, 0.7929)
    """
    if bound not in _BOUNDS:
        raise SettingError(f"gershgorin_lower_bound: got bound={bound!r}, expected one of {', '.join(_BOUNDS)}.")
    check_count("gershgorin_lower_bound", "chunk_bytes", chunk_bytes, least=1)
    check_operator_type("gershgorin_lower_bound", A)
    if A.shape[0] != A.shape[1]:
        raise ShapeError(f"gershgorin_lower_bound: got an operator of shape {A.shape}, expected a square one.")
    space = Space("gershgorin_lower_bound", A if A.has_forward or not A.symmetric else A.H, None, like)
    n = A.shape[1]
    rows = np.full(space.systems, np.inf)
    widest, squares = np.zeros(space.systems), np.zeros(space.systems)
    for first, columns in _columns(space, chunk_bytes):
        index = np.arange(columns.shape[1])
        diagonal = columns[:, index, first + index]
        sizes = np.abs(columns)
        sizes[:, index, first + index] = 0.0
        radius = sizes.sum(axis=-1) * (1 + n * 2.0**-53)
        rows = np.fmin(rows, (diagonal.real - radius).min(axis=-1))
        widest = np.fmax(widest, (np.abs(diagonal - 1) + radius).max(axis=-1))
        squares += (sizes**2).sum(axis=(-2, -1)) + (np.abs(diagonal - 1) ** 2).sum(axis=-1)
        bad = ~np.isfinite(columns).all(axis=(-2, -1))
        rows[bad], widest[bad], squares[bad] = np.nan, np.nan, np.nan
    if bound == "rows":
        return space.shaped(rows)
    if bound == "norm":
        return space.shaped(1 - widest)
    return space.shaped(1 - np.sqrt(squares) * (np.sqrt(n) if bound == "paper" else 1.0) * (1 + n * 2.0**-53))


def _columns(space: Space, chunk_bytes: int) -> Any:
    """Yield ``first, columns``: ``A e_i`` for ``i = first ..`` as rows ``(s, c, n)``, in double precision.

    Several at a time for one system; of a batch, one for all of its systems, for an operator made for a batch of a
    certain shape need not take another.
    """
    n = space.operator.shape[1]
    backend = space.backend
    step = max(1, chunk_bytes // (n * 16)) if space.single else 1
    for first in range(0, n, step):
        count = min(step, n - first)
        if space.single:
            unit: Host = np.zeros((count, n), space.dtype)
            unit[np.arange(count), first + np.arange(count)] = 1.0
            columns = backend.to_numpy(space.matvec(backend.from_numpy(unit, space.domain)))[None]
        else:
            unit = np.zeros((*space.batch, n), space.dtype)
            unit[..., first] = 1.0
            columns = backend.to_numpy(space.matvec(backend.from_numpy(unit, space.domain)))
            columns = columns.reshape(space.systems, 1, n)
        yield first, columns.astype(space.dtype)
