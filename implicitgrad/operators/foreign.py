"""Products of foreign code: an operator class of the user's, or a callable, has to return an array like its input.

``base.py`` guards the products of classes that users derive, ``vjp.py`` those of callables; the package's own operators
are made of these and go unchecked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from implicitgrad.backends import Array, Backend, backend_of
from implicitgrad.errors import BackendError, DeviceError, DtypeError, OperatorError, ShapeError

__all__ = ["guarded", "refuse"]

_HINT = "A vector is the last axis of its input: M x is x @ M.T."


def guarded(product: Callable[[Any, Array], Array], axis: int) -> Callable[[Any, Array], Array]:
    """Return the method ``product`` of an operator class with its result checked and its input lent to it privately.

    ``axis`` tells which entry of ``shape`` is the length of the result: 0 for ``apply``, 1 for ``apply_adjoint``.
    Without it a solve went on with whatever came back: a product that wrote into its input had its ``x`` called
    CONVERGED, for the residual was that of the ``x`` before.
    """

    @wraps(product)
    def checked(self: Any, x: Array) -> Array:
        backend = backend_of(x)
        if backend.name == "sharded":  # its own arithmetic tells all ranks what went wrong on one
            return product(self, x)
        y, intact = backend.call_foreign(lambda lent: product(self, lent), x)
        shape = (*x.shape[:-1], self.shape[axis])
        if not (
            intact
            and y.__class__ is x.__class__
            and y.shape == shape
            and y.dtype == x.dtype
            and backend.device(y) == backend.device(x)
        ):
            refuse(type(self).__name__, product.__name__, x, y, shape, intact, backend, _HINT)
        return y

    return checked


def refuse(
    where: str, name: str, x: Array, y: Any, shape: tuple[int, ...], intact: bool, backend: Backend, hint: str
) -> None:
    """Say what is wrong with ``y``, the product of ``x``; a tensor of a subclass is all right after all."""
    if not backend.is_array(y):
        raise BackendError(
            f"{where}: {name} returned an object of type {type(y).__qualname__}, expected an array like its input, "
            f"{type(x).__qualname__} of shape {tuple(x.shape)}. Return the product; where the map ignores the state, "
            "return zeros."
        )
    if tuple(y.shape) != tuple(shape):
        wanted = "the same shape" if tuple(shape) == tuple(x.shape) else f"{tuple(shape)}"
        raise ShapeError(
            f"{where}: {name} returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}, expected "
            f"{wanted}. {hint}"
        )
    if y.dtype != x.dtype:
        raise DtypeError(
            f"{where}: {name} returned {y.dtype} for an input of {x.dtype}, expected the same dtype. Cast inside "
            "the callable, or pass a right-hand side of the map's dtype."
        )
    if backend.device(y) != backend.device(x):
        raise DeviceError(
            f"{where}: {name} returned an array on {backend.device(y)} for an input on {backend.device(x)}, "
            "expected the same device. Move the map or the right-hand side."
        )
    if not intact:
        raise OperatorError(
            f"{where}: {name} changed its input in place, expected it to be left as it is. "
            "Write into a copy, and use x * 2 rather than x *= 2."
        )
