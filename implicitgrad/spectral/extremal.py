"""Extreme eigenvalues of symmetric operators, with certificates, by Lanczos. For Hessians and Hopfield networks.

For ``sigma_min(I - J)`` use ``smallest_singular_value``: the smallest eigenvalue of ``A^H A`` is known to ``eps`` times
the square of ``norm(A)`` only, that is to nothing once ``sigma_min`` is below ``1e-8 norm(A)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.lanczos import Lanczos
from implicitgrad.spectral.report import report
from implicitgrad.spectral.result import SpectralResult, deliver
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host, Space, check_operator_type

__all__ = ["largest_eigenvalue", "smallest_eigenvalue"]


def smallest_eigenvalue(
    A: LinearOperator,
    *,
    start: Array | None = None,
    like: Array | None = None,
    rtol: float | None = None,
    criterion: str = "residual",
    vector_tol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    confidence: float = 0.999,
    known_lower: float | None = None,
    next_value: float | None = None,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``lambda_min(A)`` of a symmetric ``A``, its eigenvector, and bounds with the condition they stand under.

    Parameters
    ----------
    A : LinearOperator, shape (n, n)
        ``A = A^H``. It need not be declared; an operator that is not symmetric ends as ``ADJOINT_MISMATCH``.
    start : array, shape (..., n), optional
        First vector, such as the last training step's ``vector``. None: random, which is what bounds with a probability
        need. A start that turns out to span an invariant space is followed by a random one.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in, where ``start`` does not. Default: ``A.example()``.
    rtol : float, optional
        See ``criterion``. Default ``eps**0.4``: 6e-7 in double precision, 2e-3 in single.
    criterion : {"residual", "gap"}
        What ``CONVERGED`` stands on. ``"residual"``: ``norm(A v - value v) <= rtol * |value|``, so *some* eigenvalue is
        within ``rtol``, whatever the spectrum; the error of the value is quadratic in that and far smaller. ``"gap"``:
        the same, or ``r^2 / D <= rtol * |value|`` with the distance ``D`` to the rest of the spectrum estimated from
        the Ritz values. It saves a third of the products, and errs where two eigenvalues are closer than the search
        could tell. In both, what the rounding of a product hides, ``8 eps norm(A)``, is good enough.
    vector_tol : float, optional
        Go on until the eigenvector, too, is right to this angle, ``r / gap``, in radians. A gradient of the eigenvalue
        has the error of the vector.
    max_iters : int, optional
        Most steps, one product each. None: ``min(10 n, 1000)``.
    memory : int, optional
        Most vectors held. At the cap the better half of the Ritz vectors is kept (thick restart). None: 256, or what
        fits into 64 MiB, at least 32.
    seed : int
        Of the random start.
    confidence : float
        Probability of the bound from the random start, ``0 < confidence < 1``.
    known_lower : float, optional
        A lower bound that you have proved, such as ``gershgorin_lower_bound(A)``; it competes for ``lower``.
    next_value : float, optional
        If you know that only one eigenvalue is below this number, the Kato-Temple bound competes for ``lower``.
    on_failure : {"raise", "warn", "return"}
        What to do where a system does not converge.

    Returns
    -------
    SpectralResult
        ``value = v^H A v`` of the returned unit vector.

    Raises
    ------
    NotConvergedError
        By ``on_failure``; its ``solution`` is the result, with the best vector found.
    MissingProductError, ShapeError, DtypeError, BackendError, SettingError
        Before any product, where the arguments do not fit together.

    Notes
    -----
    Lanczos 1950 with full re-orthogonalization and thick restarts (Wu & Simon 2000). The Ritz value falls to
    ``lambda_min`` from above. Cost a step: one product, and ``4 k`` vector operations with ``k`` vectors in the basis.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.array([[2.0, 1.0], [1.0, 2.0]]), symmetric=True)
    >>> result = ig.smallest_eigenvalue(A)
    >>> round(float(result), 12), result.status.name
    (1.0, 'CONVERGED')
    """
    settings = Settings(
        "smallest_eigenvalue", False, rtol, criterion, vector_tol, max_iters, memory, confidence, on_failure
    )
    return _eigenvalue(settings, A, "smallest", start, like, seed, known_lower, next_value)


def largest_eigenvalue(
    A: LinearOperator,
    *,
    start: Array | None = None,
    like: Array | None = None,
    rtol: float | None = None,
    criterion: str = "residual",
    vector_tol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    confidence: float = 0.999,
    known_upper: float | None = None,
    next_value: float | None = None,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``lambda_max(A)`` of a symmetric ``A``: ``smallest_eigenvalue`` seen from the other end.

    Parameters, results and errors are the same, with ``lower`` the rigorous side, ``known_upper`` an upper bound that
    competes for ``upper``, and ``next_value`` a number that only one eigenvalue is above.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A = ig.DenseOperator(np.array([[2.0, 1.0], [1.0, 2.0]]), symmetric=True)
    >>> round(float(ig.largest_eigenvalue(A)), 12)
    3.0
    """
    settings = Settings(
        "largest_eigenvalue", False, rtol, criterion, vector_tol, max_iters, memory, confidence, on_failure
    )
    return _eigenvalue(settings, A, "largest", start, like, seed, known_upper, next_value)


def _eigenvalue(
    settings: Settings,
    A: Any,
    which: str,
    start: Array | None,
    like: Array | None,
    seed: int,
    known: float | None,
    next_value: float | None,
) -> SpectralResult:
    check_operator_type(settings.name, A)
    if A.shape[0] != A.shape[1]:
        raise ShapeError(
            f"{settings.name}: got an operator of shape {A.shape}, expected a square one. Use smallest_singular_value."
        )
    A = A.H if A.symmetric and not A.has_forward else A
    space = Space(settings.name, A, start, like, seed)

    def recompute(v: Array, _: None) -> tuple[Array, None, Host, Host]:
        v = space.unit(v)
        product = space.matvec(v)
        value = space.host(space.backend.to_host(space.backend.real(space.backend.inner(v, product)))).astype(float)
        rest = space.plus(np.where(np.isfinite(value), -value, 0.0), v, product)
        return v, None, value, space.norms(rest)

    search = Search(space, settings, which)
    search.run(lambda first, most: Lanczos(space, first, most), recompute)
    return deliver(report(search, known, next_value), settings.on_failure, stacklevel=4)
