"""An operator that counts its products: what reported counts are compared with."""

from __future__ import annotations

from collections.abc import Callable

from implicitgrad.backends import Array
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import Adjoint, Shifted

__all__ = ["Counted", "counted"]


class Counted(LinearOperator):
    """An operator that counts: ``forward`` and ``adjoint`` are the products made so far."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.shape = operator.shape
        self.dtype = operator.dtype
        self.symmetric = operator.symmetric
        self.makes_complex = operator.makes_complex
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
