"""A linear system whose answer is known: a dense matrix in double precision behind plain callables.

Every expectation of the tests comes from here, from NumPy's dense linear algebra, never from the code under test. A
``Problem`` holds the matrix of ``A``, the operator that a solver sees, the right-hand side, and what is true of ``A``
(symmetric, definite, contractive, singular), so that a test can choose what to expect. ``systems.py`` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from implicitgrad.backends.base import FACTS
from implicitgrad.errors import ShapeError
from implicitgrad.operators import LinearOperator, VJPOperator, identity_minus

__all__ = ["Problem", "eps_of", "operator_of", "scaled_norm"]

Matrix = Any  # a NumPy array; much of numpy.linalg is typed no more narrowly


_RANK = (
    1e-6  # singular values below this part of the largest count as zero; those of the singular kinds are 0 or >= 1/4
)


def eps_of(dtype: Any) -> float:
    """Return the spacing of a dtype's numbers at 1.

    Examples
    --------
    >>> eps_of("float64") == 2.0**-52
    True
    """
    return FACTS[str(dtype).rpartition(".")[-1]].eps


@dataclass(frozen=True, eq=False, repr=False)
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
    source : str
        The line that builds the problem again; its ``repr``, and what the assertions print.
    operator : LinearOperator
        ``A``, over plain callables.

    Examples
    --------
    >>> from implicitgrad.testing import make_problem
    >>> problem = make_problem("singular, b in range", size=3, seed=0)
    >>> problem
    make_problem('singular, b in range', size=3, seed=0)
    >>> (null,) = problem.null_space  # of one dimension here
    >>> bool(np.linalg.norm(problem.dense @ null) < 1e-14)
    True
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
    source: str = ""
    operator: LinearOperator = field(init=False)

    def __post_init__(self) -> None:
        """Build the operator."""
        object.__setattr__(self, "operator", operator_of(self.matrix, self.shifted, self.symmetric))

    def __repr__(self) -> str:
        """Return the line that builds the problem again."""
        return self.source or f"<Problem {self.kind!r} of size {self.size}, {self.dtype}>"

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
            return (np.linalg.pinv(self.dense, rcond=_RANK) @ rhs)[..., 0]
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

    @cached_property
    def null_space(self) -> Matrix:
        """Orthonormal rows ``(k, n)`` with ``A row = 0`` up to rounding; none of them where ``A`` is regular."""
        if self.dense.ndim > 2:
            raise ShapeError(
                f"Problem.null_space: got a batch of shape {self.dense.shape[:-2]}, expected one system, since each "
                "has a null space of its own. Use problem.one(i).null_space."
            )
        _, values, rows = np.linalg.svd(self.dense)
        zero = values <= self.size * self.eps * values.max(initial=0.0)
        return rows[zero].conj() if self.singular else rows[:0]

    def one(self, index: int) -> Problem:
        """Return one system of a batch."""
        parts = {"dense": self.dense[index], "rhs": self.rhs[index], "matrix": self.matrix[index]}
        return replace(self, source=f"{self!r}.one({index})", **parts)

    def with_rhs(self, rhs: Matrix) -> Problem:
        """Return the same operator with another right-hand side."""
        return replace(self, rhs=rhs, source=f"{self!r}.with_rhs(...)")


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
