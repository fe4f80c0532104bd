"""Extreme singular values: ``sigma_min``, with a certificate, and ``norm(A, 2)``, by Golub-Kahan on ``A`` itself.

``sigma_min(I - J)`` decides whether an implicit gradient exists and how far a residual is from an error:
``norm(z - z*) <= norm(r) / sigma_min``. Users: the regularizers, the report on a fixed point, ``Solution.error_bound``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.golub_kahan import GolubKahan
from implicitgrad.spectral.inverse import LinearSolver, check_solver, inverse_iteration
from implicitgrad.spectral.report import report
from implicitgrad.spectral.result import SpectralResult, deliver
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host, Space, check_operator_type

__all__ = ["operator_norm", "smallest_singular_value"]


def smallest_singular_value(
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
    refine: LinearSolver | None = None,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``sigma_min(A)``, its singular vectors, and an interval for it with the condition it stands under.

    Parameters
    ----------
    A : LinearOperator, shape (m, n)
        With both products. For an equilibrium, ``identity_minus(J)``.
    start : array, shape (..., n), optional
        First right vector, such as the last training step's ``vector``; for a wide ``A``, ``m < n``, a left one,
        ``(..., m)``, since the search runs on ``A^H``. None: random, which is what bounds with a probability need.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in, where ``start`` does not. Default: ``A.example()``.
    rtol : float, optional
        See ``criterion``. Default ``eps**0.4``: 6e-7 in double precision, 2e-3 in single.
    criterion : {"residual", "gap"}
        What ``CONVERGED`` stands on. ``"residual"``: ``norm(A^H u - value v) <= rtol * value``, so *some* singular
        value is within ``rtol``, whatever the spectrum; the error of the value is quadratic in that and far smaller.
        ``"gap"``: the same, or ``r^2 / (2 D) <= rtol`` with the distance ``D`` to the rest of the spectrum estimated
        from the Ritz values. It saves a third of the products, and errs where two singular values are closer than the
        search could tell. In both, what the rounding of a product hides, ``8 eps norm(A)``, is good enough.
    vector_tol : float, optional
        Go on until the singular vectors, too, are right to this angle, by the gap, in radians. A gradient of ``sigma``
        has the error of the vectors.
    max_iters : int, optional
        Most steps, one product with ``A`` and one with ``A^H`` each. None: ``min(10 n, 1000)``.
    memory : int, optional
        Most vectors held on each side. At the cap the search is restarted from the best few Ritz vectors and one of the
        step before, and goes on with 32 vectors or fewer. None: 256, or what fits into 64 MiB, at least 32.
    seed : int
        Of the random start.
    confidence : float
        Probability ``p`` of the bound from the random start, ``0 < p < 1``.
    known_lower : float, optional
        A lower bound that you have proved, such as ``1 - norm(J)``; it competes for ``lower``, "unconditional".
    next_value : float, optional
        If you know that only one singular value is below this number, the Kato-Temple bound competes for ``lower``.
    refine : Solver, optional
        Where the search ends short of its bound, go on by inverse iteration with this solver, such as ``GMRES()``: for
        a tiny ``sigma_min`` below a spectrum that a search takes too long for. Square ``A`` only.
    on_failure : {"raise", "warn", "return"}
        What to do where a system does not converge.

    Returns
    -------
    SpectralResult
        ``value = norm(A v)`` of the returned unit vector ``v``, and ``A v = value u``.

    Raises
    ------
    NotConvergedError
        By ``on_failure``; its ``solution`` is the result, with the best vector found.
    MissingProductError, ShapeError, DtypeError, BackendError, SettingError
        ``A`` lacks a product, or the arguments do not fit together; before any product.

    Notes
    -----
    Golub & Kahan 1965 with full re-orthogonalization; after the first restart, Goldenberg, Stathopoulos & Romero 2019.
    The Ritz value is the minimum of ``norm(A v)`` over the space searched, so it falls to ``sigma_min`` from above, and
    at the same number of products no method from the same start can have a smaller one. Error of the value: to first
    order ``residual^2 / (2 gap)``. Cost a step: two products, about ``6 memory`` vector updates.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.0, -0.9], [0.9, 0.0]]))
    >>> result = ig.smallest_singular_value(ig.identity_minus(J))
    >>> round(result.value, 12) == round(1.81**0.5, 12), result.lower <= 1.81**0.5 <= result.upper
    (True, True)
    """
    settings = Settings(
        "smallest_singular_value", True, rtol, criterion, vector_tol, max_iters, memory, confidence, on_failure
    )
    return _singular(settings, A, "smallest", start, like, seed, known_lower, next_value, refine)


def operator_norm(
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
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``norm(A, 2)``, the largest singular value; parameters and result as in ``smallest_singular_value``.

    ``lower`` is the rigorous side, a Ritz value; ``upper`` stands under ``condition``.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> round(float(ig.operator_norm(ig.DenseOperator(np.array([[0.0, 3.0], [0.0, 0.0]])))), 12)
    3.0
    """
    settings = Settings("operator_norm", True, rtol, criterion, vector_tol, max_iters, memory, confidence, on_failure)
    return _singular(settings, A, "largest", start, like, seed, known_upper, None)


def _singular(
    settings: Settings,
    A: Any,
    which: str,
    start: Array | None,
    like: Array | None,
    seed: int,
    known: float | None,
    next_value: float | None,
    refine: LinearSolver | None = None,
) -> SpectralResult:
    check_operator_type(settings.name, A)
    check_solver(settings.name, refine)
    if refine is not None and A.shape[0] != A.shape[1]:
        raise ShapeError(f"{settings.name}: got refine for an operator of shape {A.shape}, expected a square one.")
    wide = A.shape[0] < A.shape[1]  # its null space is no matter: the smallest of min(m, n) values is that of A^H
    space = Space(settings.name, A.H if wide else A, start, like, seed, adjoint=True)

    def recompute(v: Array, u: Array) -> tuple[Array, Array, Host, Host]:
        v, u = space.unit(v), space.unit(u)
        product = space.matvec(v)
        value = space.norms(product)
        # u is the factorization's own, not A v / value: where the value is rounding, that quotient is noise.
        back = np.where(np.isfinite(value), -value, 0.0)
        forth = space.norms(space.plus(back, u, product))
        return v, u, value, np.hypot(forth, space.norms(space.plus(back, v, space.rmatvec(u))))

    search = Search(space, settings, which)
    search.run(lambda first, most: GolubKahan(space, first, most), recompute)
    if refine is not None:
        inverse_iteration(search, refine, recompute)
    result = report(search, known, next_value)
    if wide:
        result = replace(
            result,
            vector=result.left_vector,
            left_vector=result.vector,
            num_matvecs=result.num_rmatvecs,
            num_rmatvecs=result.num_matvecs,
        )
    return deliver(result, settings.on_failure, stacklevel=4)
