"""Traces and Frobenius norms from random probes, each with its standard error: Hutchinson, and Hutch++.

``norm(A, F)^2 = E norm(A v)^2`` for probes with ``E v v^H = I``: one product a sample, a VJP or a JVP. The square is
estimated without bias; its root, by Jensen, is too small on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.errors import MissingProductError, SettingError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.spectral.frame import Frame
from implicitgrad.spectral.settings import check_count
from implicitgrad.spectral.space import Host, Space, check_operator_type

__all__ = ["Estimate", "squared_frobenius_norm", "trace"]


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes. For a batch, ``value`` and ``standard_error`` are arrays ``(...)``.

    Attributes
    ----------
    value : float
        Unbiased.
    standard_error : float
        Standard deviation of ``value``, estimated from the samples; infinite for one sample, zero where no sample was
        needed.
    num_samples : int
        Random probes that were averaged.
    num_products : int
        Products with ``A`` (or ``A^H``) in all.
    """

    value: Any
    standard_error: Any
    num_samples: int
    num_products: int


def squared_frobenius_norm(
    A: LinearOperator, *, samples: int = 16, seed: int = 0, like: Array | None = None
) -> Estimate:
    """Estimate ``norm(A, F)^2 = sum |a_ij|^2`` without bias, from ``samples`` products.

    Parameters
    ----------
    A : LinearOperator, shape (m, n)
        With ``A x`` or ``A^H y``; for the Gershgorin form of ``A``, hand in ``A - I``, that is ``-identity_minus(A)``.
    samples : int
        Rademacher probes, one product each.
    seed : int
        Of the probes.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in. Default: ``A.example()``.

    Notes
    -----
    Hutchinson 1990 on ``A^H A``. The variance is ``2 sum_{i != j} |(A^H A)_ij|^2 / samples`` for real ``A``: zero where
    the columns of ``A`` are orthogonal. ``sqrt(value)`` underestimates ``norm(A, F)`` on average.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> estimate = squared_frobenius_norm(ig.DenseOperator(np.diag([1.0, 2.0])))
    >>> float(estimate.value), float(estimate.standard_error)
    (5.0, 0.0)
    """
    name = "squared_frobenius_norm"
    check_count(name, "samples", samples, least=1)
    check_operator_type(name, A)
    space = Space(name, A if A.has_forward else A.H, None, like, seed)
    squares = [space.norms(space.matvec(probe)) ** 2 for probe in _probes(space, samples)]
    return _estimate(space, np.zeros(space.systems), squares)


def trace(
    A: LinearOperator, *, products: int = 30, method: str = "hutch++", seed: int = 0, like: Array | None = None
) -> Estimate:
    """Estimate ``trace(A)`` without bias, from about ``products`` products.

    Parameters
    ----------
    A : LinearOperator, shape (n, n)
        With ``A x``.
    products : int
        How many to spend; ``"hutch++"`` is exact from ``3 n`` on, and earlier where the rank is less than ``n``.
    method : {"hutch++", "hutchinson"}
        ``"hutchinson"``: the mean of ``v^H A v`` over Rademacher probes. ``"hutch++"``: a third of the products finds
        the range of ``A``, a third takes its trace exactly, and a third estimates what is left; the error falls like
        ``1/products`` where eigenvalues decay, rather than ``1/sqrt(products)``.
    seed : int
        Of the probes.
    like : array, shape (..., n), optional
        Says which library, dtype, device and batch to work in. Default: ``A.example()``.

    Notes
    -----
    Hutchinson 1990; Meyer, Musco, Musco & Woodruff 2021 ("Hutch++: optimal stochastic trace estimation", alg. 1).

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> estimate = trace(ig.DenseOperator(np.diag([3.0, 2.0, 1.0])), method="hutchinson")
    >>> float(estimate.value), float(estimate.standard_error), estimate.num_products
    (6.0, 0.0, 30)
    """
    check_count("trace", "products", products, least=1)
    if method not in ("hutch++", "hutchinson"):
        raise SettingError(f"trace: got method={method!r}, expected 'hutch++' or 'hutchinson'.")
    check_operator_type("trace", A)
    n = A.shape[1]
    if A.shape[0] != n:
        raise ShapeError(f"trace: got an operator of shape {A.shape}, expected a square one.")
    if not A.has_forward and not A.symmetric:
        raise MissingProductError("trace: got an operator without A x. Hand in A.H: its trace is the conjugate.")
    space = Space("trace", A if A.has_forward else A.H, None, like, seed)
    frame = Frame(space, space.domain, n)
    exact, found = np.zeros(space.systems), np.zeros(space.systems, int)
    if method == "hutch++" and products >= 3:
        rank = min(max(products // 3, 1), n)
        for probe in _probes(space, rank):
            rest, _, norm, broken = frame.split(space.matvec(probe))
            # A dependent column is left zero: another direction would not be of the range.
            frame.append(space.keep(~broken, frame.normalized(rest, norm, np.zeros(space.systems, bool))))
            found += ~broken
        for i in range(rank):
            unit = np.zeros((space.systems, rank), space.dtype)
            unit[:, i] = 1.0
            q = frame.combine(unit)
            exact = exact + _inner(space, q, space.matvec(q))
    left = products - space.num_matvecs
    samples: list[Host] = []
    if (found < n).any() and left > 0:
        for probe in _probes(space, left):
            probe = frame.basis.project_out(probe)[0] if frame.count else probe
            samples.append(_inner(space, probe, space.matvec(probe)))
    return _estimate(space, exact, samples)


def _probes(space: Space, count: int) -> Any:
    """Yield Rademacher vectors, the same for the same seed on every library."""
    space.draws += 1
    rng = np.random.default_rng([space.seed, space.draws])
    for _ in range(count):
        signs = rng.integers(0, 2, size=tuple(space.domain.shape)) * 2.0 - 1.0
        yield space.backend.from_numpy(signs.astype(space.dtype), space.domain)


def _inner(space: Space, x: Array, y: Array) -> Host:
    """Return ``x^H y`` of each system on the host, complex where the operator is and need not be Hermitian."""
    backend, inner = space.backend, space.backend.inner(x, y)
    real = space.host(backend.to_host(backend.real(inner))).astype(float)
    if not space.is_complex or space.operator.symmetric:
        return real
    return real + 1j * space.host(backend.to_host(backend.real(-1j * inner))).astype(float)


def _estimate(space: Space, exact: Host, samples: list[Host]) -> Estimate:
    count = len(samples)
    value, error = exact, np.zeros(space.systems)
    if count:
        values = np.stack(samples)
        value = exact + values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(space.systems, np.inf)
    return Estimate(space.shaped(value), space.shaped(error), count, space.num_matvecs)
