"""A matrix, or one matrix a system, as an operator: the reference that everything else is compared with."""

from __future__ import annotations

from implicitgrad.backends import Array, backend_of
from implicitgrad.errors import BackendError, DtypeError, ShapeError
from implicitgrad.operators.base import LinearOperator

__all__ = ["DenseOperator"]


class DenseOperator(LinearOperator):
    """The operator of an array.

    Parameters
    ----------
    matrix : array, shape (m, n) or (..., m, n)
        One matrix for every vector, or one for each system of a batch ``(..., n)``.
    symmetric : bool
        Claims that the matrix is its own conjugate transpose.

    Raises
    ------
    BackendError, ShapeError, DtypeError
        ``matrix`` is no array, has fewer than two axes, or holds integers.

    Examples
    --------
    >>> import numpy as np
    >>> A = DenseOperator(np.array([[2.0, 1.0], [0.0, 3.0]]))
    >>> A.matvec(np.ones(2)), A.H.matvec(np.ones(2))
    (array([3., 3.]), array([2., 4.]))
    """

    def __init__(self, matrix: Array, symmetric: bool = False) -> None:
        backend = backend_of(matrix, "DenseOperator")
        if matrix.ndim < 2:
            raise ShapeError(f"DenseOperator: got an array of shape {tuple(matrix.shape)}, expected (..., m, n).")
        if backend.facts(matrix.dtype) is None:
            raise DtypeError(f"DenseOperator: got dtype {matrix.dtype}, expected floating point. Cast the matrix.")
        self.shape = (matrix.shape[-2], matrix.shape[-1])
        self.dtype = matrix.dtype
        self.symmetric = bool(symmetric)
        self._backend, self._kind = backend, type(matrix)
        self._matrix = backend.stop_gradient(matrix)
        self._adjoint = backend.conjugate_transpose(self._matrix)

    def apply(self, x: Array) -> Array:
        """Return ``A x``."""
        if type(x) is not self._kind:
            self._refuse_others(x)
        return self._backend.apply_matrix(self._matrix, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y``."""
        if type(y) is not self._kind:
            self._refuse_others(y)
        return self._backend.apply_matrix(self._adjoint, y)

    def _refuse_others(self, x: Array) -> None:
        theirs = backend_of(x)
        if {theirs.name, self._backend.name} == {"numpy", "torch"}:
            raise BackendError(
                f"DenseOperator: got a vector of {theirs.name} for a matrix of {self._backend.name}, expected one "
                "library. Convert one of them."
            )

    def example(self) -> Array:
        """Return a zero vector for each matrix."""
        return self._backend.zeros((*self._matrix.shape[:-2], self.shape[1]), self._matrix)
