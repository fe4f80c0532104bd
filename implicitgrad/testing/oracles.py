"""Linear systems whose answer is known: dense matrices of many kinds, in double precision, behind counted callables.

Every expectation of the tests comes from here, from NumPy's dense linear algebra, never from the code under test. A
``Problem`` holds the matrix of ``A``, the operator that a solver sees, the right-hand side, and what is true of ``A``
(symmetric, definite, contractive, singular), so that a test can choose what to expect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from implicitgrad.backends import Array
from implicitgrad.backends.base import FACTS
from implicitgrad.operators import LinearOperator, VJPOperator, identity_minus
from implicitgrad.operators.algebra import Adjoint, Shifted
from implicitgrad.testing.kinds import KINDS

__all__ = ["Counted", "Problem", "counted", "eps_of", "make_problem", "operator_of", "scaled_norm"]

Matrix = Any  # a NumPy array; much of numpy.linalg is typed no more narrowly


class Counted(LinearOperator):
    """An operator that counts: ``forward`` and ``adjoint`` are the products made so far."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.shape = operator.shape
        self.dtype = operator.dtype
        self.symmetric = operator.symmetric
        self.forward = 0
        self.adjoint = 0

    def apply(self, x: Array) -> Array:
        """Return ``A x`` and count it."""
        self.forward += 1
        return self.operator.apply(x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y`` and count it."""
        self.adjoint += 1
        return self.operator.apply_adjoint(y)

    @property
    def has_forward(self) -> bool:
        """Whether the inner operator can be applied."""
        return self.operator.has_forward

    @property
    def has_adjoint(self) -> bool:
        """Whether the inner operator has an adjoint."""
        return self.operator.has_adjoint

    def example(self) -> Array:
        """Return an example of the inner operator."""
        return self.operator.example()


def counted(operator: LinearOperator) -> tuple[LinearOperator, Callable[[], tuple[int, int]]]:
    """Return an equal operator that counts, and a function that tells ``(matvecs, rmatvecs)`` so far.

    The counter goes under the shift of ``I - J``, because solvers look for the shift and apply ``J`` itself.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> A, calls = counted(ig.identity_minus(ig.DenseOperator(np.array([[0.5]]))).H)
    >>> _ = ig.Neumann(rtol=0, max_iters=3).solve(A, np.ones(1))
    >>> calls()
    (3, 0)
    """
    if isinstance(operator, Shifted):
        inner, calls = counted(operator.operator)
        return Shifted(operator.alpha, operator.beta, inner), calls
    if isinstance(operator, Adjoint):
        inner, calls = counted(operator.operator)
        return Adjoint(inner), lambda: calls()[::-1]
    wrapped = Counted(operator)
    return wrapped, lambda: (wrapped.forward, wrapped.adjoint)


def eps_of(dtype: Any) -> float:
    """Return the spacing of a dtype's numbers at 1."""
    return FACTS[str(dtype).rpartition(".")[-1]].eps


@dataclass(frozen=True, eq=False)
class Problem:
    """A system ``A x = b`` with everything that is known about it.

    Attributes
    ----------
    kind : str
        A key of ``KINDS``.
    dense : ndarray, shape (n, n) or (batch, n, n)
        The matrix of ``A``, in double precision; exactly what the operator applies, but for its rounding.
    rhs : ndarray, shape (n,) or (batch, n)
        ``b``, in the dtype of the problem.
    matrix : ndarray
        What the callables multiply with: ``J`` where ``shifted``, so that ``A = (I - J)^H``, else ``A``.
    shifted : bool
        Whether ``A`` was given as ``(I - J)^H`` of a VJP, or as two callables of its own.
    symmetric, definite, contractive, singular : bool
        What holds of ``A`` by construction; ``contractive``: the spectral radius of ``I - A`` is below one.
    operator : LinearOperator
        ``A``, over plain callables.
    """

    kind: str
    dense: Matrix
    rhs: Matrix
    matrix: Matrix
    shifted: bool
    symmetric: bool = False
    definite: bool = False
    contractive: bool = False
    singular: bool = False
    operator: LinearOperator = field(init=False)

    def __post_init__(self) -> None:
        """Build the operator."""
        object.__setattr__(self, "operator", operator_of(self.matrix, self.shifted, self.symmetric))

    @property
    def size(self) -> int:
        """``n``."""
        return int(self.dense.shape[-1])

    @property
    def dtype(self) -> Any:
        """The dtype of the right-hand side."""
        return self.rhs.dtype

    @property
    def eps(self) -> float:
        """Spacing of the dtype's numbers at 1."""
        return eps_of(self.dtype)

    @cached_property
    def x_exact(self) -> Matrix:
        """The solution in double precision; the shortest least-squares solution where ``A`` is singular."""
        rhs = self.rhs.astype(self.dense.dtype)[..., None]
        if self.singular:
            return (np.linalg.pinv(self.dense, rcond=1e-6) @ rhs)[..., 0]
        return np.linalg.solve(self.dense, rhs)[..., 0]

    @cached_property
    def condition(self) -> float:
        """The largest ratio of singular values over the batch."""
        return float(np.max(np.linalg.cond(self.dense)))

    @cached_property
    def applied_norm(self) -> Any:
        """The size that the rounding of one product ``A x`` is relative to: ``1 + norm(J)``, or ``norm(A)``."""
        norms = np.linalg.norm(self.matrix.astype(self.dense.dtype), ord=2, axis=(-2, -1))
        return norms + 1.0 if self.shifted else norms

    def residual_norm(self, x: Matrix) -> Any:
        """Return ``norm(b - A x)``, recomputed in double precision from the dense matrix."""
        x = np.asarray(x).astype(self.dense.dtype)
        residual = self.rhs.astype(self.dense.dtype) - np.matmul(self.dense, x[..., None])[..., 0]
        return scaled_norm(residual)

    def rounding(self, x: Matrix) -> Any:
        """Return how far a residual norm computed in the problem's dtype may lie from the true one."""
        size = self.applied_norm * scaled_norm(np.asarray(x).astype(self.dense.dtype))
        return self.size * self.eps * (size + scaled_norm(self.rhs.astype(self.dense.dtype)))

    def one(self, index: int) -> Problem:
        """Return one system of a batch."""
        return Problem(
            self.kind,
            self.dense[index],
            self.rhs[index],
            self.matrix[index],
            self.shifted,
            self.symmetric,
            self.definite,
            self.contractive,
            self.singular,
        )

    def with_rhs(self, rhs: Matrix) -> Problem:
        """Return the same operator with another right-hand side."""
        return Problem(
            self.kind,
            self.dense,
            rhs,
            self.matrix,
            self.shifted,
            self.symmetric,
            self.definite,
            self.contractive,
            self.singular,
        )


def scaled_norm(x: Matrix) -> Any:
    """Return the norm over the last axis without overflow or underflow."""
    largest = np.abs(x).max(axis=-1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return np.linalg.norm(x / scale[..., None], axis=-1) * scale


def operator_of(matrix: Matrix, shifted: bool, symmetric: bool = False) -> LinearOperator:
    """Return ``(I - J)^H`` of the matrix of ``J``, or ``A`` of its own matrix, over two plain callables."""
    adjoint = np.swapaxes(matrix, -1, -2).conj()

    def forward(v: Matrix) -> Matrix:
        return np.matmul(matrix, v[..., None])[..., 0]

    def backward(u: Matrix) -> Matrix:
        return np.matmul(adjoint, u[..., None])[..., 0]

    J = VJPOperator(backward, size=matrix.shape[-1], jvp=forward, dtype=matrix.dtype, symmetric=symmetric)
    return identity_minus(J).H if shifted else J


# -- kinds of matrices: (rng, n, is_complex) -> the matrix of J, or of A -----------------------------------------------
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

    Examples
    --------
    >>> problem = make_problem("contraction", size=3, seed=0)
    >>> problem.operator.shape, problem.contractive, problem.rhs.shape
    ((3, 3), True, (3,))
    """
    recipe = KINDS[kind]
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    is_complex = dtype.kind == "c"
    wide = np.result_type(dtype, np.float64)
    factor = recipe.factor[eps_of(dtype) < 1e-10]
    draws = [factor * recipe.make(rng, size, is_complex) for _ in range(1 if batch is None else batch)]
    matrix = (draws[0] if batch is None else np.stack(draws)).astype(dtype)
    exact = matrix.astype(wide)
    dense = np.swapaxes(np.eye(size) - exact, -1, -2).conj() if recipe.shifted else exact

    b = rng.standard_normal(matrix.shape[:-1]) + (1j * rng.standard_normal(matrix.shape[:-1]) if is_complex else 0)
    if rhs == "one zero":
        b[..., rng.integers(size)] = 0
    if recipe.in_range:
        b = np.matmul(dense, b[..., None])[..., 0]
    if rhs == "zero":
        b = 0 * b
    b = (b.astype(dtype) * np.ldexp(dtype.type(1).real, exponent)).astype(dtype)
    return Problem(
        kind, dense, b, matrix, recipe.shifted, recipe.symmetric, recipe.definite, recipe.contractive, recipe.singular
    )
