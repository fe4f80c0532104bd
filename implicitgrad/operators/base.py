"""The interface of a linear map ``A`` of shape ``(m, n)``, known through ``A x`` and perhaps ``A^H y``.

Solvers, the algebra of operators and the adapters all speak this interface; nobody asks for a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from implicitgrad.backends import Array, backend_of, backend_of_dtype
from implicitgrad.errors import MissingProductError, ShapeError
from implicitgrad.operators.foreign import guarded

__all__ = ["LinearOperator"]


class LinearOperator(ABC):
    """A linear map ``A`` from vectors of length ``n`` to vectors of length ``m``.

    Vectors are the last axis of an array; leading axes are independent systems. To make one, wrap callables with
    ``VJPOperator``, wrap an array with ``DenseOperator``, or derive a class and implement ``apply`` (and
    ``apply_adjoint``, if the map has one).

    Attributes
    ----------
    shape : tuple of int
        ``(m, n)``.
    dtype : dtype or None
        The dtype that vectors must have; None where any will do.
    symmetric : bool
        Whether ``A = A^H`` is claimed. ``check_operator`` tests the claim.
    makes_complex : bool
        Whether a complex factor makes complex vectors of real ones, so that only complex systems can be solved.

    Notes
    -----
    ``A.H`` is the adjoint (conjugate transpose); ``A @ B``, ``A + B``, ``A - B``, ``-A`` and ``a * A`` are new
    operators that apply their parts. All of them are lazy.

    What ``apply`` and ``apply_adjoint`` of a derived class return is checked at every product, as it is for callables:
    an array like the input, of the right length, and the input left as it is.
    """

    shape: tuple[int, int]
    dtype: Any = None
    symmetric: bool = False
    makes_complex: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what the products of a user's class return; those of the package are made of checked ones."""
        super().__init_subclass__(**kwargs)
        if cls.__module__.partition(".")[0] != "implicitgrad":
            for axis, name in enumerate(("apply", "apply_adjoint")):
                if name in cls.__dict__:
                    setattr(cls, name, guarded(cls.__dict__[name], axis))

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """Return ``A x`` without checking ``x``: the product that solvers repeat."""

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``A^H y`` without checking ``y``."""
        if self.symmetric:
            return self.apply(y)
        raise MissingProductError(
            f"{type(self).__name__}.rmatvec: got an operator without the adjoint product, expected one that has it. "
            "Give the missing callable, declare symmetric=True if A = A^H, or use a solver that needs matvec only."
        )

    @property
    def has_forward(self) -> bool:
        """Whether ``A x`` can be formed."""
        return True

    @property
    def has_adjoint(self) -> bool:
        """Whether ``A^H y`` can be formed."""
        return self.symmetric or type(self).apply_adjoint is not LinearOperator.apply_adjoint

    def example(self) -> Array:
        """Return zeros of a kind that the operator takes: of its dtype, or NumPy's float64 if it names none."""
        backend = backend_of_dtype(self.dtype)
        name = "float64" if self.dtype is None else backend.dtype_name(self.dtype)
        return backend.zeros_of(self.shape[1], name)

    def matvec(self, x: Array) -> Array:
        """Return ``A x``.

        Parameters
        ----------
        x : array, shape (..., n)
            One vector, or a batch of them.

        Returns
        -------
        array, shape (..., m)

        Raises
        ------
        BackendError
            ``x`` is no array.
        ShapeError
            The last axis of ``x`` is not ``n`` long.
        """
        check_vector(f"{type(self).__name__}.matvec", x, self.shape[1])
        return self.apply(x)

    def rmatvec(self, y: Array) -> Array:
        """Return ``A^H y``; ``y`` has shape ``(..., m)``. Raises like ``matvec``, and where there is no adjoint."""
        check_vector(f"{type(self).__name__}.rmatvec", y, self.shape[0])
        return self.apply_adjoint(y)

    # The algebra stands one file up; it is imported when used so that this file imports nothing of its own floor.
    @property
    def H(self) -> LinearOperator:
        """The adjoint operator, ``A^H``."""
        from implicitgrad.operators.algebra import adjoint

        return adjoint(self)

    def __matmul__(self, other: object) -> LinearOperator:
        """Return ``A B``."""
        from implicitgrad.operators.algebra import product

        return product(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: object) -> LinearOperator:
        """Return ``A + B``."""
        from implicitgrad.operators.algebra import total

        return total(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: object) -> LinearOperator:
        """Return ``A - B``."""
        return self + (-1.0) * other if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: object) -> LinearOperator:
        """Return ``a A``."""
        from implicitgrad.operators.algebra import scaled

        return scaled(factor, self) if isinstance(factor, int | float | complex) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        """Return ``-A``."""
        return (-1.0) * self

    def __repr__(self) -> str:
        """Return the class name and the shape."""
        return f"<{type(self).__name__} of shape {self.shape}>"


def check_vector(name: str, x: Any, length: int) -> None:
    """Raise unless ``x`` is an array whose last axis is ``length`` long; ``name`` opens the message."""
    backend_of(x, name)
    if x.ndim == 0 or x.shape[-1] != length:
        raise ShapeError(
            f"{name}: got an array of shape {tuple(x.shape)}, expected (..., {length}): a vector is the last axis. "
            "Flatten the state with x.reshape(-1), or with x.reshape(batch, -1) for a batch."
        )
