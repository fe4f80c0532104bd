"""Build a ``Problem``: of a named kind from a seed, or of a matrix of your own."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.errors import SettingError
from implicitgrad.testing.kinds import KINDS
from implicitgrad.testing.matrices import Matrix
from implicitgrad.testing.problem import Problem, eps_of

__all__ = ["make_problem", "problem_of"]


def make_problem(
    kind: str,
    size: int,
    seed: int,
    dtype: Any = "float64",
    exponent: int = 0,
    rhs: str = "random",
    batch: int | None = None,
) -> Problem:
    """Build one system of a kind.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    size : int
        ``n >= 1``.
    seed : int
        Of everything that is drawn.
    dtype : dtype or str
        ``float32``, ``float64``, ``complex64`` or ``complex128``.
    exponent : int
        ``b`` is scaled by ``2**exponent``.
    rhs : {"random", "one zero", "zero"}
        Whether ``b`` has an exact zero in it, or is zero.
    batch : int, optional
        Make a batch of this many independent systems.

    Returns
    -------
    Problem

    Raises
    ------
    SettingError
        The kind is unknown.

    Examples
    --------
    >>> problem = make_problem("contraction", size=3, seed=0)
    >>> problem.operator.shape, problem.contractive, problem.rhs.shape
    ((3, 3), True, (3,))
    """
    if kind not in KINDS:
        raise SettingError(f"make_problem: got kind={kind!r}, expected one of {', '.join(map(repr, KINDS))}.")
    recipe = KINDS[kind]
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    factor = recipe.factor[eps_of(dtype) < 1e-10]
    draws = [factor * recipe.make(rng, size, dtype.kind == "c") for _ in range(1 if batch is None else batch)]
    matrix, dense = _rounded(draws[0] if batch is None else np.stack(draws), dtype, recipe.shifted)
    b = _right_hand_side(rng, dense, dtype, rhs, exponent, recipe.in_range)
    given = {
        "dtype": (str(dtype), "float64"),
        "exponent": (exponent, 0),
        "rhs": (rhs, "random"),
        "batch": (batch, None),
    }
    more = "".join(f", {name}={value!r}" for name, (value, default) in given.items() if value != default)
    facts = (recipe.shifted, recipe.symmetric, recipe.definite, recipe.contractive, recipe.singular)
    return Problem(kind, dense, b, matrix, *facts, source=f"make_problem({kind!r}, size={size}, seed={seed}{more})")


def problem_of(
    matrix: Matrix,
    seed: int = 0,
    dtype: Any = "float64",
    shifted: bool = True,
    exponent: int = 0,
    rhs: str = "random",
    in_range: bool = False,
    kind: str = "given",
    source: str = "",
) -> Problem:
    """Build a system of a matrix of your own: ``(I - J)^H x = b`` of ``J``, or ``A x = b`` of ``A``.

    Parameters
    ----------
    matrix : ndarray, shape (n, n) or (batch, n, n)
        ``J`` where ``shifted``, else ``A``. Rounded to ``dtype`` first: the oracle knows what the operator applies.
    seed, dtype, exponent, rhs
        Of ``b``, as for ``make_problem``.
    in_range : bool
        Whether ``b`` is ``A y`` of a random ``y``: for a singular ``A``.
    kind, source : str
        What the problem is called, and how it is built again.

    Returns
    -------
    Problem
        ``symmetric``, ``definite``, ``contractive`` and ``singular`` are measured on the dense matrix.

    Examples
    --------
    >>> problem = problem_of(np.array([[0.5, 3.0], [0.0, 0.5]]))
    >>> problem.contractive, problem.symmetric, problem.singular
    (True, False, False)
    """
    dtype = np.dtype(dtype)
    rounded, dense = _rounded(np.asarray(matrix), dtype, shifted)
    b = _right_hand_side(np.random.default_rng(seed), dense, dtype, rhs, exponent, in_range)
    symmetric = bool(np.array_equal(dense, np.swapaxes(dense, -1, -2).conj()))
    values = np.linalg.svd(dense, compute_uv=False)
    radius = np.abs(np.linalg.eigvals(np.eye(dense.shape[-1]) - dense)).max(initial=0.0)
    return Problem(
        kind,
        dense,
        b,
        rounded,
        shifted,
        symmetric,
        symmetric and bool(np.linalg.eigvalsh(dense).min(initial=np.inf) > 0),
        bool(radius < 1),
        bool((values.min(-1, initial=np.inf) <= dense.shape[-1] * eps_of(dtype) * values.max(-1, initial=0.0)).any()),
        source,
    )


def _rounded(matrix: Matrix, dtype: Any, shifted: bool) -> tuple[Matrix, Matrix]:
    """Return the matrix in its dtype, and ``A`` of exactly those numbers in double precision."""
    matrix = matrix.astype(dtype)
    exact = matrix.astype(np.result_type(dtype, np.float64))
    return matrix, np.swapaxes(np.eye(matrix.shape[-1]) - exact, -1, -2).conj() if shifted else exact


def _right_hand_side(
    rng: np.random.Generator, dense: Matrix, dtype: Any, rhs: str, exponent: int, in_range: bool
) -> Matrix:
    if rhs not in ("random", "one zero", "zero"):
        raise SettingError(f"make_problem: got rhs={rhs!r}, expected 'random', 'one zero' or 'zero'.")
    shape = dense.shape[:-1]
    b = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype.kind == "c" else 0)
    if rhs == "one zero":
        b[..., rng.integers(shape[-1])] = 0
    if in_range:
        b = np.matmul(dense, b[..., None])[..., 0]
    if rhs == "zero":
        b = 0 * b
    return (b.astype(dtype) * np.ldexp(dtype.type(1).real, exponent)).astype(dtype)
