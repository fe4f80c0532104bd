"""Operators in both directions: ours for SciPy, and SciPy's, or a sparse matrix, for us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import linalg

from implicitgrad.backends import Array, backend_of, backend_of_dtype
from implicitgrad.errors import DtypeError, MissingProductError, OperatorError, SettingTypeError, ShapeError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.precision import in_half_precision

__all__ = ["FromScipy", "as_linear_operator", "from_linear_operator", "on_numpy"]


def as_linear_operator(A: LinearOperator, like: Array | None = None) -> Any:
    """Return ``A`` as a ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors.

    Parameters
    ----------
    A : LinearOperator, shape (m, n)
        Its vectors may be of any library. For a Jacobian with a VJP alone hand in ``J.H``: SciPy applies ``matvec``.
    like : array, shape (n,), optional
        A vector of the kind that ``A`` takes: its library, dtype and device. None asks ``A.example()``.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (m, n)
        ``dtype`` is that of ``like`` (float32 for half precision). Vectors ``(n,)`` and ``(n, 1)``; ``matmat`` hands
        the ``k`` columns over as one batch ``(k, n)``. ``rmatvec`` is there where ``A`` has an adjoint.

    Raises
    ------
    SettingTypeError, ShapeError
        ``A`` is no ``LinearOperator``; ``like`` is not one vector of length ``n``.
    MissingProductError
        At a product that ``A`` lacks.

    Notes
    -----
    On the CPU a vector is lent to torch without a copy. A product is copied once: SciPy writes into what it is given
    (``gmres`` orthogonalizes in place), and the memory may be the map's own. A real operator is applied to the real and
    the imaginary part of a complex vector in turn.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import eigsh
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> A = ig.VJPOperator(lambda u: np.arange(1.0, 51.0) * u, size=50, symmetric=True)
    >>> round(float(eigsh(igs.as_linear_operator(A), k=1, which="LA", return_eigenvectors=False)[0]), 6)
    50.0
    """
    if not isinstance(A, LinearOperator):
        raise SettingTypeError(
            f"as_linear_operator: got an object of type {type(A).__qualname__}, expected a LinearOperator of "
            "implicitgrad. SciPy's own objects go the other way, through from_linear_operator."
        )
    like = A.example() if like is None else like
    backend = backend_of(like, "as_linear_operator (like)")
    if tuple(like.shape) != (A.shape[1],):
        raise ShapeError(
            f"as_linear_operator: got an operator of shape {A.shape} on vectors of shape {tuple(like.shape)}, expected "
            f"({A.shape[1]},): SciPy knows no batches. Make the operator of one system, or pass like=one vector."
        )
    facts = backend.facts(like.dtype)
    if facts is None:
        raise DtypeError(f"as_linear_operator: got like of dtype {like.dtype}, expected floating point.")
    if facts.is_half:  # NumPy has no bfloat16, and SciPy computes in neither
        A = in_half_precision(A, backend, like.dtype)
        like = backend.astype(like, backend.dtype("float32"))
    forward, adjoint = on_numpy(A.apply, like), on_numpy(A.apply_adjoint, like)
    products: dict[str, Any] = {"matvec": lambda x: forward(x.reshape(-1)), "matmat": lambda X: forward(X.T).T}
    if A.has_adjoint:
        products |= {"rmatvec": lambda y: adjoint(y.reshape(-1)), "rmatmat": lambda Y: adjoint(Y.T).T}
    return linalg.LinearOperator(A.shape, dtype=np.dtype("float32" if facts.is_half else facts.name), **products)


def on_numpy(product: Callable[[Array], Array], like: Array) -> Callable[[Any], Any]:
    """Return ``product`` for NumPy vectors, where its own are like ``like``."""
    backend = backend_of(like)
    is_complex = "complex" in backend.dtype_name(like.dtype)

    def apply(x: Any) -> Any:
        if np.iscomplexobj(x) and not is_complex:
            return apply(x.real) + 1j * apply(x.imag)
        if not x.flags.writeable:  # torch warns of memory that it must not write to
            x = x.copy()
        y = backend.to_numpy(product(backend.from_numpy(x, like)))
        return y if y.flags.owndata else y.copy()  # never lend SciPy the map's memory, nor its own input

    return apply


def from_linear_operator(L: Any, symmetric: bool = False) -> LinearOperator:
    """Return a SciPy operator as a ``LinearOperator``, for vectors of any library.

    Parameters
    ----------
    L : scipy.sparse.linalg.LinearOperator, sparse matrix or array, numpy.ndarray, shape (m, n)
        Whatever ``scipy.sparse.linalg.aslinearoperator`` takes.
    symmetric : bool
        Claims ``L = L^H``; then ``matvec`` serves both ways.

    Returns
    -------
    LinearOperator, shape (m, n)
        Takes vectors of ``L.dtype`` (of any floating dtype where that is an integer); a batch goes through ``matmat``.
        Vectors of other libraries travel to the host and back.

    Raises
    ------
    SettingTypeError
        SciPy does not take ``L`` for an operator.
    DtypeError, OperatorError
        At a product: it was complex for a real vector, or no number; or ``L`` changed its input in place. A wrong shape
        and the exceptions of ``L`` itself are raised as SciPy and ``L`` raise them.
    MissingProductError
        At an adjoint product where SciPy's operator has no ``rmatvec``.

    Notes
    -----
    SciPy does not tell whether an operator has an ``rmatvec``. It is tried here, once, on zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import diags_array
    >>> import implicitgrad as ig
    >>> import implicitgrad.scipy as igs
    >>> J = igs.from_linear_operator(diags_array([0.5, 0.2, 0.0]))
    >>> ig.adjoint_solve(J, np.ones(3)).x.round(12)
    array([2.  , 1.25, 1.  ])
    """
    try:
        operator = linalg.aslinearoperator(L)
    except (TypeError, ValueError) as error:
        raise SettingTypeError(
            f"from_linear_operator: got an object of type {type(L).__qualname__} ({error}), expected a SciPy "
            "LinearOperator, a sparse matrix or a two-dimensional NumPy array. Use VJPOperator for a callable and "
            "DenseOperator for an array of another library."
        ) from error
    return FromScipy(operator, bool(symmetric), own=operator is not L)


class FromScipy(LinearOperator):
    """A SciPy operator as one of ours; made by ``from_linear_operator``."""

    def __init__(self, operator: Any, symmetric: bool, own: bool) -> None:
        self.shape = (int(operator.shape[0]), int(operator.shape[1]))
        known = backend_of_dtype(np.dtype(float)).facts(operator.dtype)
        self.dtype = None if known is None else operator.dtype
        self.symmetric = symmetric
        self._operator = operator
        self._adjoint = own or symmetric
        if not self._adjoint:
            try:
                operator.rmatvec(np.zeros(self.shape[0], self.dtype))
                self._adjoint = True
            except NotImplementedError:
                pass

    @property
    def has_adjoint(self) -> bool:
        """Whether SciPy's operator has an ``rmatvec``, or symmetry was claimed."""
        return self._adjoint

    def apply(self, x: Array) -> Array:
        """Return ``L x``."""
        return self._product("matvec", self._operator.matvec, self._operator.matmat, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``L^H y``."""
        if self.symmetric:
            return self.apply(y)
        if not self._adjoint:
            raise MissingProductError(
                "from_linear_operator: got a SciPy operator without rmatvec, expected L^H y. Give "
                "LinearOperator(..., rmatvec=...), declare symmetric=True if L = L^H, or use a solver that needs "
                "matvec only. adjoint_solve(J, g) applies J^H: to solve (I - L) z = b use tangent_solve."
            )
        return self._product("rmatvec", self._operator.rmatvec, self._operator.rmatmat, y)

    def _product(self, name: str, one: Callable[[Any], Any], many: Callable[[Any], Any], x: Array) -> Array:
        backend, host = backend_of(x), backend_of_dtype(np.dtype(float))
        values = backend.to_numpy(x)
        if 0 in values.shape[:-1]:
            return backend.zeros((*values.shape[:-1], self.shape[name == "rmatvec"]), x)
        if values.ndim == 1:
            y, intact = host.call_foreign(one, values)
        else:
            y, intact = host.call_foreign(lambda rows: many(rows.T).T, values.reshape(-1, values.shape[-1]))
        if not np.can_cast(y.dtype, values.dtype, "same_kind"):
            raise DtypeError(
                f"from_linear_operator: {name} returned {y.dtype} for a vector of {values.dtype}, expected a dtype "
                "that goes back into it. Solve a complex operator with a complex right-hand side."
            )
        if not intact:
            raise OperatorError(
                f"from_linear_operator: {name} changed its input in place, expected it to be left as it is. "
                "Write into a copy, and use x * 2 rather than x *= 2."
            )
        return backend.from_numpy(y.reshape(*values.shape[:-1], y.shape[-1]), x)


# Products with A that an iteration spends; the names are all that ScipySolver takes.
