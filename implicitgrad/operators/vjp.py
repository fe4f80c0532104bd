"""A Jacobian known through two callables: ``J^H u`` (VJP) and perhaps ``J v`` (JVP). The only foreign code in a solve.

Everything that a user's callable can get wrong is caught here, at the product where it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from implicitgrad.backends import Array, Backend, backend_of, backend_of_dtype
from implicitgrad.errors import DtypeError, MissingProductError, SettingTypeError
from implicitgrad.operators.base import LinearOperator
from implicitgrad.operators.foreign import refuse

__all__ = ["VJPOperator"]


class VJPOperator(LinearOperator):
    """The square Jacobian ``J`` of a map at one point, from its vector-Jacobian product.

    ``rmatvec(u)`` is ``J^H u`` (the VJP: the transpose for real arrays, the conjugate transpose for complex ones, as
    torch has it) and ``matvec(v)`` is ``J v`` (the JVP).

    Parameters
    ----------
    vjp : callable
        ``u -> J^H u`` for arrays of shape ``(..., n)`` of any supported library. It must return a new array of the
        same shape, dtype and device and leave ``u`` as it is.
    size : int
        ``n``, the length of the state.
    jvp : callable, optional
        ``v -> J v``, under the same rules. Needed by ``LSMR``, ``NormalEquations`` and ``tangent_solve``.
    dtype : dtype, optional
        If given, vectors of another dtype are refused before the first product.
    symmetric : bool
        Claims ``J = J^H``; then one product serves both ways.
    batched : bool
        Whether the callables take leading batch axes, ``u @ W`` rather than ``W.T @ u``. If not, say so: they are then
        called once for each vector of a batch. A batch of exactly ``n`` vectors fits ``W.T @ u`` too, as another linear
        map; ``check_operator(J, like=g)`` tells.
    like : array, optional
        A vector, or a batch of them, of the kind that the callables take; ``check_operator`` draws its probes like it.

    Raises
    ------
    SettingTypeError
        ``vjp`` is not callable, or ``size`` is no non-negative integer.
    BackendError, ShapeError, DtypeError, DeviceError, OperatorError
        At a product: a callable returned no array, or one of another shape, dtype or device, or changed its input.
        An exception of the callable itself passes through unchanged.

    Examples
    --------
    >>> import numpy as np
    >>> import implicitgrad as ig
    >>> matrix = np.array([[0.5, 0.2], [0.0, 0.3]])
    >>> J = ig.VJPOperator(lambda u: u @ matrix, size=2)
    >>> J.rmatvec(np.array([1.0, 0.0]))
    array([0.5, 0.2])
    """

    def __init__(
        self,
        vjp: Callable[[Array], Array],
        size: int,
        jvp: Callable[[Array], Array] | None = None,
        dtype: Any = None,
        symmetric: bool = False,
        batched: bool = True,
        like: Array | None = None,
    ) -> None:
        for name, function in (("vjp", vjp), ("jvp", jvp)):
            if not callable(function) and not (name == "jvp" and function is None):
                raise SettingTypeError(
                    f"VJPOperator: got {name} of type {type(function).__qualname__}, expected a callable u -> J^T u. "
                    "To wrap a matrix, use DenseOperator(matrix)."
                )
        if isinstance(size, bool) or not hasattr(size, "__index__") or size.__index__() < 0:
            raise SettingTypeError(
                f"VJPOperator: got size={size!r}, expected the length of the state, an integer >= 0."
            )
        size = size.__index__()
        if dtype is not None and backend_of_dtype(dtype).facts(dtype) is None:
            raise DtypeError(f"VJPOperator: got dtype={dtype}, expected a real or complex floating-point dtype.")
        self.shape = (size, size)
        self.dtype = dtype
        self.symmetric = bool(symmetric)
        self._vjp = vjp
        self._jvp = vjp if jvp is None and symmetric else jvp
        self._batched = bool(batched)
        self._like = like

    @property
    def has_forward(self) -> bool:
        """Whether ``J v`` can be formed: a JVP was given, or symmetry was claimed."""
        return self._jvp is not None

    def example(self) -> Array:
        """Return ``like``, or zeros of the operator's dtype."""
        return super().example() if self._like is None else self._like

    def apply(self, x: Array) -> Array:
        """Return ``J v``, the JVP."""
        if self._jvp is None:
            raise MissingProductError(
                "VJPOperator.matvec: got an operator without a JVP, expected J v. Give VJPOperator(..., jvp=...), "
                "declare symmetric=True if J is, or use a solver that needs the VJP only: GMRES, BiCGSTAB, Neumann."
            )
        return self._product("jvp", self._jvp, x)

    def apply_adjoint(self, y: Array) -> Array:
        """Return ``J^H u``, the VJP."""
        return self._product("vjp", self._vjp, y)

    def _product(self, name: str, function: Callable[[Array], Array], x: Array) -> Array:
        """Return ``function(x)`` once it is known to be an array like ``x`` and to have left ``x`` alone."""
        backend = backend_of(x)
        if not self._batched and x.ndim > 1:
            return self._looped(name, function, x, backend)
        y, intact = backend.call_foreign(function, x)
        if not (
            intact
            and y.__class__ is x.__class__
            and y.shape == x.shape
            and y.dtype == x.dtype
            and backend.device(y) == backend.device(x)
        ):
            hint = "If it takes single vectors only, declare batched=False."
            refuse("VJPOperator", name, x, y, x.shape, intact, backend, hint)
        return y

    def _looped(self, name: str, function: Callable[[Array], Array], x: Array, backend: Backend) -> Array:
        flat = x.reshape((-1, x.shape[-1]))
        rows = backend.empty_rows(flat.shape[0], flat[0, :]) if flat.shape[0] else flat
        for i in range(flat.shape[0]):
            rows = backend.set_row(rows, i, self._product(name, function, flat[i, :]))
        return rows.reshape(tuple(x.shape))
