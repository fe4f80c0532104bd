"""Systems whose spectrum is given: drawn or set by the caller, then rotated by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from implicitgrad.testing.matrices import (
    Matrix,
    clustered_values,
    contraction,
    jordan_block,
    rotated_spectrum,
    skew,
    with_eigenvalues,
)
from implicitgrad.testing.problem import Problem
from implicitgrad.testing.strategies.systems import DTYPES
from implicitgrad.testing.systems import problem_of

__all__ = ["clustered_systems", "contractions", "jordan_systems", "rotated_spectra", "skew_systems"]

Setting = Any  # a value, or a strategy for it
_SEEDS = st.integers(0, 2**32 - 1)


def contractions(
    norm: Setting = 0.9, dtypes: Sequence[str] = DTYPES, max_size: int = 20, batch: int | None = None
) -> st.SearchStrategy[Problem]:
    """Return systems ``(I - J)^H x = b`` with ``norm(J, 2) = norm``, up to rounding.

    Parameters
    ----------
    norm : float, or a strategy for one
        The largest singular value of ``J``. The others are drawn.
    dtypes, max_size
        Of these dtypes; ``1 <= n <= max_size``.
    batch : int, optional
        Return batches of this many systems.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(problem=contractions(norm=0.5, dtypes=["float64"]))
    ... def test_the_inverse_of_a_contraction_is_bounded(problem):
    ...     assert np.linalg.norm(np.linalg.inv(problem.dense), 2) <= 1 / (1 - 0.5) + 1e-12
    >>> test_the_inverse_of_a_contraction_is_bounded()
    """

    def build(rng: np.random.Generator, n: int, is_complex: bool, q: float) -> Matrix:
        return contraction(rng, n, q, is_complex)

    return _systems("contractions", build, [norm], dtypes, max_size, batch)


def skew_systems(
    norm: Setting = 1.0, dtypes: Sequence[str] = DTYPES, max_size: int = 20, batch: int | None = None
) -> st.SearchStrategy[Problem]:
    """Return systems with ``J = -J^H`` and ``norm(J, 2) = norm``: stationary methods fail where it is above one.

    Examples
    --------
    >>> from hypothesis import find
    >>> J = find(skew_systems(norm=3.0, dtypes=["float64"]), lambda problem: problem.size == 4).matrix
    >>> bool(abs(J + J.T).max() == 0), round(float(np.linalg.norm(J, 2)), 12)
    (True, 3.0)
    """

    def build(rng: np.random.Generator, n: int, is_complex: bool, size: float) -> Matrix:
        return skew(rng, n, size, is_complex)

    return _systems("skew_systems", build, [norm], dtypes, max_size, batch)


def jordan_systems(
    eigenvalue: Setting = 0.5,
    coupling: Setting = 1.0,
    dtypes: Sequence[str] = DTYPES,
    max_size: int = 20,
    batch: int | None = None,
) -> st.SearchStrategy[Problem]:
    """Return systems whose ``J`` is one rotated Jordan block: as far from normal as can be.

    The powers of ``J`` grow for a while, however small its spectral radius, where ``coupling`` is not small.

    Examples
    --------
    >>> from hypothesis import find
    >>> J = find(jordan_systems(0.5, 4.0, dtypes=["float64"]), lambda problem: problem.size == 6).matrix
    >>> bool(np.linalg.norm(np.linalg.matrix_power(J, 3), 2) > 10)
    True
    """

    def build(rng: np.random.Generator, n: int, is_complex: bool, value: float, above: float) -> Matrix:
        block = jordan_block(n, value, above)
        frame = np.linalg.qr(rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if is_complex else 0))[0]
        return frame @ block @ frame.conj().T

    return _systems("jordan_systems", build, [eigenvalue, coupling], dtypes, max_size, batch)


def clustered_systems(
    centres: Setting = (0.0, 0.5, 0.9),
    width: Setting = 1e-3,
    dtypes: Sequence[str] = DTYPES,
    max_size: int = 20,
    batch: int | None = None,
) -> st.SearchStrategy[Problem]:
    """Return symmetric systems whose ``J`` has all its eigenvalues within ``width`` of a few centres.

    Krylov methods need about one step for each cluster; eigensolvers have trouble to tell its members apart.

    Examples
    --------
    >>> from hypothesis import find
    >>> problem = find(clustered_systems(dtypes=["float64"], width=0.0), lambda problem: problem.size == 6)
    >>> np.linalg.eigvalsh(problem.matrix).round(9) + 0
    array([0. , 0. , 0.5, 0.5, 0.9, 0.9])
    """

    def build(rng: np.random.Generator, n: int, is_complex: bool, places: Sequence[float], spread: float) -> Matrix:
        return with_eigenvalues(rng, clustered_values(rng, n, places, spread), is_complex)

    return _systems("clustered_systems", build, [centres, width], dtypes, max_size, batch)


def rotated_spectra(
    eigenvalues: st.SearchStrategy[list[Any]] | Sequence[complex],
    departure: Setting = 0.0,
    dtypes: Sequence[str] = DTYPES,
    batch: int | None = None,
) -> st.SearchStrategy[Problem]:
    """Return systems whose ``J`` has these eigenvalues, rotated; normal, or as far from it as ``departure`` says.

    Parameters
    ----------
    eigenvalues : sequence of complex, or a strategy for one
        In a real dtype each complex one brings its conjugate along.
    departure : float, or a strategy for one
        Frobenius norm of the strictly upper triangle in Schur form.
    dtypes, batch
        As for ``contractions``.

    Examples
    --------
    >>> from hypothesis import given
    >>> from hypothesis import strategies as st
    >>> import implicitgrad as ig
    >>> @given(problem=rotated_spectra(st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=6), dtypes=["float64"]))
    ... def test_neumann_converges_for_every_spectrum_within_the_circle(problem):
    ...     assert ig.Neumann().solve(problem.operator, problem.rhs).converged
    >>> test_neumann_converges_for_every_spectrum_within_the_circle()
    """

    def build(rng: np.random.Generator, n: int, is_complex: bool, values: Sequence[complex], far: float) -> Matrix:
        return rotated_spectrum(rng, values, far, is_complex)

    return _systems("rotated_spectra", build, [eigenvalues, departure], dtypes, 1, batch)


@st.composite
def _systems(
    draw: Any,
    name: str,
    build: Callable[..., Matrix],
    settings: Sequence[Setting],
    dtypes: Sequence[str],
    max_size: int,
    batch: int | None,
) -> Problem:
    """Draw settings, a size and a seed; make the matrix from the seed, and say how in ``source``."""
    values = [draw(setting) if isinstance(setting, st.SearchStrategy) else setting for setting in settings]
    size, seed, dtype = draw(st.integers(1, max_size)), draw(_SEEDS), draw(st.sampled_from(tuple(dtypes)))
    rng = np.random.default_rng(seed)
    is_complex = np.dtype(dtype).kind == "c"
    draws = [build(rng, size, is_complex, *values) for _ in range(1 if batch is None else batch)]
    matrix = draws[0] if batch is None else np.stack(draws)
    given = ", ".join([*map(repr, values), f"size={matrix.shape[-1]}", f"seed={seed}", f"dtype={dtype!r}"])
    kind = f"{name}({', '.join(map(repr, values))})"
    source = f"<{name}: {given}>" if batch is None else f"<{name}: {given}, batch={batch}>"
    return problem_of(matrix, seed, dtype, kind=kind, source=source)
