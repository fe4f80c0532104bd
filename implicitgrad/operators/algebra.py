"""New operators from old ones: adjoint, ``alpha I + beta A``, sum and product. All lazy, all cheap to build.

Two identities are used, because solvers gain from them: the adjoint of an adjoint is the operator itself, and
``I - (I - J)`` is ``J``. So the Neumann solver, which iterates with ``I - A``, gets back the bare ``J^H`` when it is
given ``A = (I - J)^H``, without a subtraction that would be undone at once and its rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from implicitgrad.backends import Array, backend_of_dtype
from implicitgrad.errors import SettingTypeError, ShapeError
from implicitgrad.operators.base import LinearOperator

__all__ = [
    "Adjoint",
    "Product",
    "Shifted",
    "Sum",
    "adjoint",
    "identity_minus",
    "product",
    "scaled",
    "shifted",
    "split_shift",
    "total",
]


class Adjoint(LinearOperator):
    """``A^H``: the two products of ``A`` change places."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype = operator.dtype
        self.makes_complex = operator.makes_complex
        self.symmetric = operator.symmetric

    def apply(self, x: Array) -> Array:
        """Return ``A^H x``."""
        return self.operator.apply_adjoint(x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A y``."""
        return self.operator.apply(y)

    @property
    def has_adjoint(self) -> bool:
        """Whether ``A`` itself can be applied."""
        return self.operator.has_forward

    @property
    def has_forward(self) -> bool:
        """Whether ``A^H`` can be applied."""
        return self.operator.has_adjoint

    def example(self) -> Array:
        """Return a vector of ``A``'s range, which is an example of ``A`` itself where ``A`` is square."""
        if self.shape[0] == self.shape[1]:
            return self.operator.example()
        return super().example()


class Shifted(LinearOperator):
    """``alpha I + beta A`` of a square operator."""

    def __init__(self, alpha: complex, beta: complex, operator: LinearOperator) -> None:
        _require_square("alpha I + beta A", operator)
        self.alpha, self.beta, self.operator = _real_if_it_is(alpha), _real_if_it_is(beta), operator
        self.shape = operator.shape
        turns = isinstance(self.alpha, complex) or isinstance(self.beta, complex)
        self.dtype = _common_dtype(turns, operator)
        self.makes_complex = turns or operator.makes_complex
        self.symmetric = operator.symmetric and not turns

    def apply(self, x: Array) -> Array:
        """Return ``alpha x + beta A x``."""
        return self._combine(x, self.operator.apply(x), self.alpha, self.beta)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``conj(alpha) y + conj(beta) A^H y``."""
        return self._combine(y, self.operator.apply_adjoint(y), _conj(self.alpha), _conj(self.beta))

    @staticmethod
    def _combine(x: Array, ax: Array, alpha: complex, beta: complex) -> Array:
        if alpha == 0:
            return beta * ax
        x = x if alpha == 1 else alpha * x
        return x - ax if beta == -1 else x + beta * ax

    @property
    def has_forward(self) -> bool:
        """Whether the inner operator can be applied."""
        return self.operator.has_forward

    @property
    def has_adjoint(self) -> bool:
        """Whether the inner operator has an adjoint."""
        return self.operator.has_adjoint

    def example(self) -> Array:
        """Return an example of the inner operator, unless a factor has made its dtype another."""
        return self.operator.example() if self.dtype == self.operator.dtype else super().example()


class Sum(LinearOperator):
    """``A + B``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape != right.shape:
            raise ShapeError(f"A + B: got operators of shapes {left.shape} and {right.shape}, expected equal shapes.")
        self.left, self.right = left, right
        self.shape = left.shape
        self.dtype = _common_dtype(False, left, right)
        self.makes_complex = left.makes_complex or right.makes_complex
        self.symmetric = left.symmetric and right.symmetric

    def apply(self, x: Array) -> Array:
        """Return ``A x + B x``."""
        return self.left.apply(x) + self.right.apply(x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y + B^H y``."""
        return self.left.apply_adjoint(y) + self.right.apply_adjoint(y)

    @property
    def has_forward(self) -> bool:
        """Whether both parts can be applied."""
        return self.left.has_forward and self.right.has_forward

    @property
    def has_adjoint(self) -> bool:
        """Whether both parts have an adjoint."""
        return self.left.has_adjoint and self.right.has_adjoint

    def example(self) -> Array:
        """Return an example of the right part, unless the left one has made the dtype another."""
        return self.right.example() if self.dtype == self.right.dtype else super().example()


class Product(LinearOperator):
    """``A B``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape[1] != right.shape[0]:
            raise ShapeError(
                f"A @ B: got operators of shapes {left.shape} and {right.shape}, expected as many columns as rows."
            )
        self.left, self.right = left, right
        self.shape = (left.shape[0], right.shape[1])
        self.dtype = _common_dtype(False, left, right)
        self.makes_complex = left.makes_complex or right.makes_complex
        self.symmetric = isinstance(left, Adjoint) and left.operator is right  # A^H A; other products need not be

    def apply(self, x: Array) -> Array:
        """Return ``A (B x)``."""
        return self.left.apply(self.right.apply(x))

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``B^H (A^H y)``."""
        return self.right.apply_adjoint(self.left.apply_adjoint(y))

    @property
    def has_forward(self) -> bool:
        """Whether both parts can be applied."""
        return self.left.has_forward and self.right.has_forward

    @property
    def has_adjoint(self) -> bool:
        """Whether both parts have an adjoint."""
        return self.left.has_adjoint and self.right.has_adjoint

    def example(self) -> Array:
        """Return an example of the right part, unless the left one has made the dtype another."""
        return self.right.example() if self.dtype == self.right.dtype else super().example()


def adjoint(operator: LinearOperator) -> LinearOperator:
    """Return ``A^H``: for an adjoint, the operator it came from; for ``alpha I + beta A``, a shift again."""
    if isinstance(operator, Adjoint):
        return operator.operator
    if isinstance(operator, Shifted):  # keeps the shift outside, where Krylov methods and Neumann look for it
        return Shifted(_conj(operator.alpha), _conj(operator.beta), adjoint(operator.operator))
    return Adjoint(operator)


def shifted(alpha: complex, beta: complex, operator: LinearOperator) -> LinearOperator:
    """Return ``alpha I + beta A``, folded into the shift that ``A`` has already; ``A`` itself for ``0 I + 1 A``."""
    if isinstance(operator, Shifted):
        alpha, beta, operator = alpha + beta * operator.alpha, beta * operator.beta, operator.operator
    return operator if alpha == 0 and beta == 1 else Shifted(alpha, beta, operator)


def identity_minus(operator: LinearOperator) -> LinearOperator:
    """Return ``I - J``.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        ``J``. If it is itself ``I - K``, the result is ``K``.

    Raises
    ------
    SettingTypeError, ShapeError
        ``operator`` is no ``LinearOperator``, or not square.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> J = ig.DenseOperator(np.array([[0.5, 0.0], [0.0, 0.25]]))
    >>> ig.identity_minus(J).matvec(np.ones(2))
    array([0.5 , 0.75])
    >>> ig.identity_minus(ig.identity_minus(J)) is J
    True
    """
    if not isinstance(operator, LinearOperator):
        raise SettingTypeError(
            f"identity_minus: got an object of type {type(operator).__qualname__}, expected a LinearOperator. "
            "Wrap a vector-Jacobian product with VJPOperator(vjp, size=n), or a matrix with DenseOperator."
        )
    return shifted(1.0, -1.0, operator)


def split_shift(operator: LinearOperator) -> tuple[LinearOperator, complex, complex]:
    """Return ``B, alpha, beta`` with ``A = alpha I + beta B``; ``A, 0, 1`` where ``A`` was not made by shifting."""
    if isinstance(operator, Shifted):
        return operator.operator, operator.alpha, operator.beta
    return operator, 0.0, 1.0


def scaled(factor: Any, operator: LinearOperator) -> LinearOperator:
    """Return ``a A``."""
    if operator.shape[0] == operator.shape[1]:
        return shifted(0.0, factor, operator)
    rows = operator.shape[0]
    return Product(Shifted(0.0, factor, _Identity(rows)), operator)


def total(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """Return ``A + B``."""
    return Sum(left, right)


def product(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """Return ``A B``."""
    return Product(left, right)


class _Identity(LinearOperator):
    """``I``, which lets a rectangular operator be scaled by a square one."""

    symmetric = True

    def __init__(self, size: int) -> None:
        self.shape = (size, size)

    def apply(self, x: Array) -> Array:
        return x


def _common_dtype(makes_complex: bool, *parts: LinearOperator) -> Any:
    """Return the dtype of what the parts make together, by NumPy's rules; None where none of them names one."""
    known = [part.dtype for part in parts if part.dtype is not None]
    if not known:
        return None
    if not makes_complex and all(dtype == known[0] for dtype in known):
        return known[0]
    backend = backend_of_dtype(known[0])
    names = [backend_of_dtype(dtype).dtype_name(dtype) for dtype in known]
    if "bfloat16" in names:  # which NumPy does not know
        return known[0]
    return backend.dtype(np.result_type(*names, *(["complex64"] if makes_complex else [])).name)


def _real_if_it_is(factor: Any) -> Any:
    """Return a complex number without an imaginary part as a real one: it keeps real vectors real."""
    return factor.real if isinstance(factor, complex) and factor.imag == 0 else factor


def _conj(value: complex) -> complex:
    return value.conjugate()


def _require_square(name: str, operator: LinearOperator) -> None:
    if operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"{name}: got an operator of shape {operator.shape}, expected a square one.")
