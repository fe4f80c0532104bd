"""The spectral radius ``rho(J)``: whether the fixed-point iteration and the Neumann series converge, and how fast.

A power iteration on a real vector never settles where the dominant eigenvalues are a complex pair, as they are for any
rotation. Arnoldi sees both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.arnoldi import Arnoldi
from implicitgrad.spectral.criterion import scaled
from implicitgrad.spectral.report import report
from implicitgrad.spectral.result import SpectralResult, deliver
from implicitgrad.spectral.search import Search
from implicitgrad.spectral.settings import Settings
from implicitgrad.spectral.space import Host, Space, check_operator_type

__all__ = ["spectral_radius"]

_MOST = 64  # vectors by default: the eigenvalues of H, of all of these, are computed again and again


def spectral_radius(
    J: LinearOperator,
    *,
    start: Array | None = None,
    like: Array | None = None,
    rtol: float | None = None,
    max_iters: int | None = None,
    memory: int | None = None,
    seed: int = 0,
    known_upper: float | None = None,
    on_failure: str = "raise",
) -> SpectralResult:
    """Return ``rho(J)``, the largest modulus of an eigenvalue, for any square ``J``; complex pairs and ``J = 0`` too.

    Parameters
    ----------
    J : LinearOperator, shape (n, n)
        One product is enough: without a JVP the VJP is used, for ``rho(J^H) = rho(J)``.
    start : array, shape (..., n), optional
        First vector. None: random.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in, where ``start`` does not. Default: ``J.example()``.
    rtol : float, optional
        ``CONVERGED`` when ``kappa r <= rtol |lambda|``, with the recomputed residual ``r = norm(J v - lambda v)`` and
        the eigenvalue's condition number ``kappa`` in the projected problem. Default ``eps**0.4``.
    max_iters : int, optional
        Most steps, one product each. None: ``min(10 n, 1000)``.
    memory : int, optional
        Most vectors held; at the cap the search is restarted (Krylov-Schur). None: 64, or what fits into 64 MiB.
    seed : int
        Of the random start.
    known_upper : float, optional
        An upper bound that you have proved, any norm of ``J`` say; it becomes ``upper``.
    on_failure : {"raise", "warn", "return"}
        What to do where a system does not converge.

    Returns
    -------
    SpectralResult
        ``value = |eigenvalue|``, ``eigenvalue`` complex, ``vector`` its unit eigenvector; of a real operator its real
        part, with the imaginary one in ``vector_imag``. ``residual_interval`` is ``value +- kappa r``, first order in
        ``r``. Where ``J`` is declared symmetric, ``lower`` is rigorous; else a Ritz value bounds nothing, ``lower`` is
        zero, and ``upper`` infinite unless a bound was given.

    Raises
    ------
    NotConvergedError
        By ``on_failure``. A nearly defective eigenvalue, as of a nilpotent ``J``, ends as ``STAGNATED``: rounding of
        size ``eps`` moves it by ``eps**(1/m)`` for a Jordan block of size ``m``, and no residual shows that.
    ShapeError, DtypeError, BackendError, SettingError
        Before any product.

    Notes
    -----
    Arnoldi 1951 with two passes of Gram-Schmidt; restarts after Stewart 2001. A spectral radius below one does not make
    ``norm(J^k)`` small early on; ``operator_norm`` and ``smallest_singular_value`` say more about errors.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> rotation = ig.DenseOperator(0.9 * np.array([[0.0, -1.0], [1.0, 0.0]]))
    >>> result = ig.spectral_radius(rotation)
    >>> round(float(result), 12), complex(np.round(result.eigenvalue, 12)) in (0.9j, -0.9j)
    (0.9, True)
    """
    settings = Settings("spectral_radius", False, rtol, "residual", None, max_iters, memory, 0.999, on_failure)
    check_operator_type(settings.name, J)
    if J.shape[0] != J.shape[1]:
        raise ShapeError(f"spectral_radius: got an operator of shape {J.shape}, expected a square one.")
    operator = J if J.has_forward else J.H
    space = Space(settings.name, operator, start, like, seed)
    found = np.zeros(space.systems, complex)

    def recompute(a: Array, b: Array) -> tuple[Array, Array, Host, Host]:
        nonlocal found
        length = np.hypot(space.norms(a), space.norms(b))
        inverse = np.where(length > 0, 1.0 / np.where(length > 0, length, 1.0), 0.0)
        a, b = space.times(inverse, a), space.times(inverse, b)
        found, residual = _rayleigh(space, a, b)
        return a, b, np.abs(found), residual

    search = Search(space, settings, "dominant", most=_MOST)
    search.run(lambda first, most: Arnoldi(space, first, most), recompute)
    if search.cycles > 1 and np.isfinite(search.value).any():
        _, _, search.value, search.residual = recompute(search.vector, search.left)
    result = report(search, known_upper, None)
    rounding = search.rounding
    error = scaled(search.sensitivity, search.residual) + rounding
    rigorous = np.fmax(search.value - rounding, 0.0) if J.symmetric else np.zeros(space.systems)
    result = replace(
        result,
        left_vector=None,
        vector_imag=None if space.is_complex else space.restored(search.left),
        eigenvalue=space.shaped(found if operator is J else found.conj()),
        lower=space.shaped(np.where(np.isnan(search.value), np.nan, rigorous)),
        residual_interval=(space.shaped(np.fmax(search.value - error, 0.0)), space.shaped(search.value + error)),
    )
    return deliver(result, settings.on_failure)


def _rayleigh(space: Space, a: Array, b: Array) -> tuple[Host, Host]:
    """Return ``lambda = x^H A x`` and ``norm(A x - lambda x)`` for ``x = a + i b``, in real arithmetic if ``A`` is."""
    backend = space.backend
    image = space.matvec(a)
    if space.is_complex:
        value = space.host(
            space.backend.to_numpy(backend.inner(a, image)) if not space.single else backend.inner(a, image)
        )
        value = np.where(np.isfinite(value), value, 0.0)
        return value, space.norms(image - space.complex_times(value, a))
    crossed = space.matvec(b) if (space.norms(b) > 0).any() else b
    pairs = ((a, image), (b, crossed), (a, crossed), (b, image))
    aa, bb, ab, ba = (space.host(backend.to_host(backend.inner(x, y))).astype(float) for x, y in pairs)
    real, imag = (np.where(np.isfinite(v), v, 0.0) for v in (aa + bb, ab - ba))
    first = space.plus(-real, a, space.plus(imag, b, image))  # A a = re a - im b
    second = space.plus(-real, b, space.plus(-imag, a, crossed))  # A b = im a + re b
    return real + 1j * imag, np.hypot(space.norms(first), space.norms(second))
