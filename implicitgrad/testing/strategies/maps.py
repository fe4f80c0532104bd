"""Fixed-point maps with a known Jacobian, and nested states: what a layer is tested with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from implicitgrad.testing.maps import FixedPointMap, make_map
from implicitgrad.testing.strategies.systems import DTYPES

__all__ = ["fixed_point_maps", "pytrees"]


@st.composite
def fixed_point_maps(
    draw: Any,
    norm: Any = 0.6,
    forms: Sequence[str] = ("affine", "tanh"),
    dtypes: Sequence[str] = DTYPES,
    max_size: int = 8,
) -> FixedPointMap:
    """Return maps ``f(z, W, b)`` with known ``z_star``, ``J`` there, parameter Jacobian and gradient.

    Parameters
    ----------
    norm : float, or a strategy for one
        ``norm(J, 2)`` at the fixed point.
    forms : sequence of {"affine", "tanh"}
        Of these formulas.
    dtypes, max_size
        Of these dtypes; ``1 <= n <= max_size``.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(map_=fixed_point_maps(dtypes=["float64"]))
    ... def test_iteration_finds_the_fixed_point(map_):
    ...     z = np.zeros(map_.size)
    ...     for _ in range(200):
    ...         z = map_(z)
    ...     assert np.allclose(z, map_.z_star)
    >>> test_iteration_finds_the_fixed_point()
    """
    return make_map(
        form=draw(st.sampled_from(tuple(forms))),
        size=draw(st.integers(1, max_size)),
        seed=draw(st.integers(0, 2**32 - 1)),
        norm=draw(norm) if isinstance(norm, st.SearchStrategy) else norm,
        dtype=draw(st.sampled_from(tuple(dtypes))),
    )


@st.composite
def pytrees(draw: Any, size: Any = None, dtype: str = "float64", max_depth: int = 3) -> Any:
    """Return nested tuples, lists and dicts of NumPy arrays that hold ``size`` numbers altogether.

    Parameters
    ----------
    size : int, or a strategy for one
        How many numbers, at least one. Default: 1 to 12.
    dtype : str
        Of every leaf.
    max_depth : int
        How deep the nesting may go; 0 is a bare array.

    Returns
    -------
    nested arrays
        Zeros. Leaves have 0 to 3 axes, lengths of one among them.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(pytrees(size=3), lambda tree: isinstance(tree, dict) and len(tree) > 1)
    {'a': array(0.), 'b': array([0., 0.])}
    """
    count = st.integers(1, 12) if size is None else size
    total = draw(count) if isinstance(count, st.SearchStrategy) else count
    return _tree(draw, int(total), dtype, max_depth)


def _tree(draw: Any, total: int, dtype: str, depth: int) -> Any:
    node = draw(st.sampled_from(("leaf", "tuple", "list", "dict"))) if depth > 0 else "leaf"
    if node == "leaf":
        return np.zeros(draw(st.sampled_from(_shapes(total))), dtype)
    first = draw(st.integers(1, total))
    sizes = [first] if first == total else [first, total - first]
    children = [_tree(draw, size, dtype, depth - 1) for size in sizes]
    if node == "dict":
        return dict(zip("ab", children, strict=False))
    return tuple(children) if node == "tuple" else children


def _shapes(total: int) -> list[tuple[int, ...]]:
    """Return shapes of ``total`` entries, the plainest first; a scalar where there is one entry."""
    divisor = next((d for d in range(2, total) if total % d == 0), 1)
    shapes: list[tuple[int, ...]] = [(total,), (1, total), (divisor, total // divisor), (divisor, 1, total // divisor)]
    return [(), *shapes] if total == 1 else shapes
