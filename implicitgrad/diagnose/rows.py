"""Are the rows of a batch systems of their own? ``check_operator`` decides; rows that mix are measured as one system.

For rows that mix, a search or a solve that treats each by itself multiplies with one matrix and pairs the results as
if there were many: Ritz values above the norm, adjoints that do not fit. Of the whole batch as one vector all is true.
"""

from __future__ import annotations

from implicitgrad.backends import Array
from implicitgrad.operators import LinearOperator, VJPOperator, check_operator
from implicitgrad.operators.check import OperatorCheck

__all__ = ["as_one_system", "coupling", "repeatable"]

_PAIR = "adjoint identity"


def coupling(J: LinearOperator, g: Array, check: OperatorCheck, eps: float, seed: int) -> float:
    """Return by how much a row's product with ``J`` depends on the other rows of ``g``, relatively; 0.0 if not at all.

    ``check`` is that of ``J`` at ``g``, which exchanges halves of the rows. What stays below its tolerance there
    shows in the adjoint identity, which fails row by row and holds for all rows together.
    """
    if g.ndim < 2 or not repeatable(check):
        return 0.0
    changed = _largest(check, "batch independence")
    if changed > check.tolerance:
        return changed
    # The fourth root of eps: products of a map in half precision pair to a few thousandths at best, mix they or not.
    if (apart := _largest(check, _PAIR)) > eps**0.25:
        whole, flat = as_one_system(J, g)
        together = check_operator(whole, like=flat, seed=seed, raises=False)
        if _largest(together, _PAIR) <= together.tolerance:
            return apart
    return 0.0


def repeatable(check: OperatorCheck) -> bool:
    """Return whether two identical products were the same, as far as rounding tells."""
    return _largest(check, "determinism") <= check.tolerance


def as_one_system(J: LinearOperator, g: Array) -> tuple[LinearOperator, Array]:
    """Return ``J`` on the flat vector of all rows, and ``g`` as that vector."""
    shape = tuple(g.shape)
    flat = g.reshape((-1,))

    def vjp(u: Array) -> Array:
        return J.rmatvec(u.reshape(shape)).reshape((-1,))

    def jvp(v: Array) -> Array:
        return J.matvec(v.reshape(shape)).reshape((-1,))

    size = int(flat.shape[0])
    # batched=False: J takes this one shape and no batch of it.
    whole = VJPOperator(
        vjp, size, jvp=jvp if J.has_forward else None, dtype=J.dtype, symmetric=J.symmetric, batched=False, like=flat
    )
    return whole, flat


def _largest(check: OperatorCheck, name: str) -> float:
    """Return the largest difference under a name that ends so; NaN counts as none, for it is told elsewhere."""
    return max((float(d) for key, d in check.differences.items() if key.endswith(name) and d == d), default=0.0)
