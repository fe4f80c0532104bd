"""Hypothesis strategies for linear systems. Each builds its premise in, so no example is thrown away.

What hypothesis draws is small: a kind, a size, a seed, a scale. The matrix is then made from the seed by
``oracles.make_problem``, so that an example shrinks towards a small system and its repr is enough to build it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.oracles import Problem, make_problem

__all__ = ["batches", "contractive_systems", "definite_systems", "problems", "singular_systems", "symmetric_systems"]

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
        Keys of ``oracles.KINDS``.
    dtypes : sequence of str
        Of these dtypes.
    max_size : int
        ``1 <= n <= max_size``.
    zero : bool
        Whether ``b`` may be zero, beside having one exact zero or none.
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
    """Return batches of one to five independent systems of one kind."""
    return make_problem(
        kind=draw(st.sampled_from(tuple(KINDS) if kinds is None else tuple(kinds))),
        size=draw(st.integers(1, max_size)),
        seed=draw(_SEEDS),
        dtype=draw(st.sampled_from(tuple(dtypes))),
        rhs=draw(st.sampled_from(("random", "one zero"))),
        batch=draw(st.integers(1, 5)),
    )


def contractive_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return systems with the spectral radius of ``I - A`` below one: normal, non-normal, nilpotent, zero."""
    return problems([name for name, kind in KINDS.items() if kind.contractive], dtypes, max_size)


def symmetric_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return Hermitian systems, definite and indefinite, all of them regular."""
    return problems([n for n, kind in KINDS.items() if kind.symmetric and not kind.singular], dtypes, max_size)


def definite_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return Hermitian positive definite systems."""
    return problems([name for name, kind in KINDS.items() if kind.definite], dtypes, max_size)


def singular_systems(dtypes: Sequence[str] = DTYPES, max_size: int = 40) -> st.SearchStrategy[Problem]:
    """Return singular systems, with ``b`` in the range of ``A`` or out of it."""
    return problems([name for name, kind in KINDS.items() if kind.singular], dtypes, max_size)
