"""Systems of the named kinds: what hypothesis draws is a kind, a size, a seed and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.problem import Problem
from implicitgrad.testing.systems import make_problem

__all__ = [
    "DTYPES",
    "batches",
    "contractive_systems",
    "definite_systems",
    "problems",
    "scaled_systems",
    "singular_systems",
    "symmetric_systems",
]

DTYPES = ("float32", "float64", "complex64", "complex128")
_SEEDS = st.integers(0, 2**32 - 1)
_EXPONENTS = st.integers(-60, 60)


@st.composite
def problems(
    draw: Any,
    kinds: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    max_size: int = 40,
    zero: bool = True,
) -> Problem:
    """Return systems of the kinds asked for (default: all), ``b`` scaled by ``2**-60 .. 2**60``.

    Parameters
    ----------
    kinds : sequence of str, optional
        Keys of ``igtest.KINDS``.
    dtypes : sequence of str
        Of these dtypes.
    max_size : int
        ``1 <= n <= max_size``.
    zero : bool
        Whether ``b`` may be zero, beside having one exact zero or none.

    Examples
    --------
    >>> from hypothesis import given
    >>> import implicitgrad as ig
    >>> from implicitgrad.testing import assert_no_false_success
    >>> @given(problem=problems(kinds=["skew", "nearly singular"], max_size=5))
    ... def test_gmres_claims_nothing_that_is_false(problem):
    ...     assert_no_false_success(problem, ig.GMRES().solve(problem.operator, problem.rhs))
    >>> test_gmres_claims_nothing_that_is_false()
    """
    return make_problem(
        kind=draw(st.sampled_from(tuple(KINDS) if kinds is None else tuple(kinds))),
        size=draw(st.integers(1, max_size)),
        seed=draw(_SEEDS),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        exponent=draw(_EXPONENTS),
        rhs=draw(st.sampled_from(("random", "one zero", "zero") if zero else ("random", "one zero"))),
    )


@st.composite
def batches(
    draw: Any, kinds: Sequence[str] | None = None, dtypes: Sequence[str] = DTYPES, max_size: int = 12
) -> Problem:
    """Return batches of one to five independent systems of one kind.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(batches(kinds=["skew"]), lambda problem: problem.rhs.shape == (2, 3)).kind
    'skew'
    """
    return make_problem(
        kind=draw(st.sampled_from(tuple(KINDS) if kinds is None else tuple(kinds))),
        size=draw(st.integers(1, max_size)),
        seed=draw(_SEEDS),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        rhs=draw(st.sampled_from(("random", "one zero"))),
        batch=draw(st.integers(1, 5)),
    )


def contractive_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return systems with the spectral radius of ``I - A`` below one: normal, non-normal, nilpotent, zero.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(contractive_systems(), lambda problem: problem.size == 3).contractive
    True
    """
    return problems([name for name, kind in KINDS.items() if kind.contractive], dtypes, max_size)


def symmetric_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return Hermitian systems, definite and indefinite, all of them regular.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(symmetric_systems(), lambda problem: problem.size == 2).symmetric
    True
    """
    return problems([n for n, kind in KINDS.items() if kind.symmetric and not kind.singular], dtypes, max_size)


def definite_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return Hermitian positive definite systems.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(definite_systems(), lambda problem: problem.size == 2).definite
    True
    """
    return problems([name for name, kind in KINDS.items() if kind.definite], dtypes, max_size)


def singular_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return singular systems, with ``b`` in the range of ``A`` or out of it.

    Examples
    --------
    >>> from hypothesis import find
    >>> problem = find(singular_systems(dtypes=["float64"]), lambda problem: problem.size == 4 and problem.rhs.any())
    >>> bool(abs(problem.dense @ problem.null_space.conj().T).max() < 1e-12)
    True
    """
    return problems([name for name, kind in KINDS.items() if kind.singular], dtypes, max_size)


def scaled_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return regular systems of tiny or huge operators: 1e-9 and 1e9 in single precision, 1e-30 and 1e30 in double.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(scaled_systems(), lambda problem: problem.dtype == "float64").kind
    'tiny'
    """
    return problems(["tiny", "huge"], dtypes, max_size)
