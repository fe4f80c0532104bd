"""The verbs that solvers use on arrays, whatever library the arrays come from.

A *vector* is the last axis of an array ``(..., n)``; the leading axes are independent systems. A *scalar* of the
recurrences is one number per system, in one of two forms that obey the same ``+ - * /``:

* one system, ``x`` of shape ``(n,)``: a Python ``float`` or ``complex``. A Python number costs 30 ns where a 0-d array
  costs 1500, and a Krylov step at n = 1000 holds a dozen of them between two products of 80 us;
* a batch: an array ``(..., 1)`` on the device of ``x``, which broadcasts against the vectors. Like a Python number it
  is kept in double precision where the library has it, so that a system takes the same steps alone and in a batch; a
  vector meets it in ``axpy`` and ``times`` only, which keep the vector's dtype.

``to_host`` turns either form into what decisions are made on: a ``float``, or a NumPy array ``(...)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Array", "Backend", "DtypeFacts", "Scalar"]

Array = Any  # an array of any supported library; the libraries share no base class
Scalar = Any  # a Python number, or an array (..., 1): see the module's first lines


@dataclass(frozen=True)
class DtypeFacts:
    """What the numerics must know of a dtype: ``eps`` (spacing at 1), ``is_complex``, and the dtype to compute in."""

    name: str
    eps: float
    is_complex: bool
    is_half: bool


FACTS = {
    "float64": DtypeFacts("float64", 2.0**-52, False, False),
    "float32": DtypeFacts("float32", 2.0**-23, False, False),
    "complex128": DtypeFacts("complex128", 2.0**-52, True, False),
    "complex64": DtypeFacts("complex64", 2.0**-23, True, False),
    "float16": DtypeFacts("float16", 2.0**-10, False, True),
    "bfloat16": DtypeFacts("bfloat16", 2.0**-7, False, True),
}


class Backend(ABC):
    """Arithmetic on the arrays of one library. Stateless; every method returns new arrays and writes into none."""

    name: str
    advice: str = "Convert it first, for example with numpy.asarray(x, dtype=float)."  # to whom is_array has said no
    lends_copies: bool = True  # to foreign functions; False: what they write may go unseen, so a result is watched

    # -- what an array is ------------------------------------------------------------------------------------------
    @abstractmethod
    def is_array(self, x: Any) -> bool:
        """Return whether ``x`` is an array of this library."""

    def facts(self, dtype: Any) -> DtypeFacts | None:
        """Return the facts of a dtype, or None for one that solvers cannot use (integers, booleans, objects)."""
        return FACTS.get(self.dtype_name(dtype))

    @abstractmethod
    def dtype_name(self, dtype: Any) -> str:
        """Return the dtype's short name, such as ``"float32"``."""

    def device(self, x: Array) -> Any:
        """Return the device of ``x``; libraries without devices return None."""
        return getattr(x, "device", None)

    # -- one number a system ---------------------------------------------------------------------------------------
    @abstractmethod
    def inner(self, x: Array, y: Array) -> Scalar:
        """Return ``x^H y`` of each system."""

    @abstractmethod
    def squared_norm(self, x: Array) -> Scalar:
        """Return ``x^H x`` of each system, a real number."""

    @abstractmethod
    def norm(self, x: Array) -> Scalar:
        """Return the Euclidean norm of each system."""

    def host_norm(self, x: Array) -> Any:
        """Return the Euclidean norm of each system on the host."""
        return self.to_host(self.norm(x))

    @abstractmethod
    def max_abs(self, x: Array) -> Any:
        """Return ``max |x_i|`` of each system on the host; NaN where there is one, 0 where ``n = 0``."""

    @abstractmethod
    def to_host(self, scalar: Scalar) -> Any:
        """Return a real scalar as a ``float`` (one system) or a NumPy array ``(...)`` (a batch)."""

    def to_host_list(self, values: Array) -> Any:
        """Return ``k`` numbers a system on the host: a list (one system), or an array ``(..., k)`` in double."""
        hosted = self.to_numpy(values)
        return hosted.tolist() if values.ndim == 1 else hosted.astype(np.result_type(hosted, np.float64))

    @abstractmethod
    def from_host(self, values: Any, like: Array) -> Scalar:
        """Return host values, one a system, as the scalars that broadcast against ``like``."""

    def real(self, scalar: Scalar) -> Scalar:
        """Return the real part of a scalar."""
        return scalar.real

    @abstractmethod
    def quotient(self, numerator: Scalar, denominator: Scalar) -> Scalar:
        """Return the quotient, 0 where the denominator is 0: only a system that has finished holds such a zero."""

    # -- vectors ---------------------------------------------------------------------------------------------------
    @abstractmethod
    def axpy(self, alpha: Scalar, x: Array, y: Array) -> Array:
        """Return ``alpha x + y``."""

    @abstractmethod
    def times(self, alpha: Scalar, x: Array) -> Array:
        """Return ``alpha x``, in the dtype of ``x``."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return zeros of ``shape`` with the dtype and device of ``like``."""

    @abstractmethod
    def zeros_of(self, size: int, dtype_name: str) -> Array:
        """Return one zero vector of this library on its default device."""

    @abstractmethod
    def copy(self, x: Array) -> Array:
        """Return a copy of ``x``."""

    @abstractmethod
    def equal(self, x: Array, y: Array) -> bool:
        """Return whether ``x`` and ``y`` hold the same numbers; NaN differs from itself."""

    @abstractmethod
    def select(self, mask: Any, x: Array, y: Array) -> Array:
        """Return the systems of ``x`` where the host mask holds and those of ``y`` elsewhere, bit for bit."""

    @abstractmethod
    def times_power_of_two(self, x: Array, exponent: Any) -> Array:
        """Return ``x * 2**exponent``, exact; ``exponent`` is an ``int`` or, for a batch, a host array ``(...)``."""

    @abstractmethod
    def random_like(self, x: Array, seed: int) -> Array:
        """Return standard normal numbers of the shape, dtype and device of ``x``, the same for the same seed."""

    @abstractmethod
    def astype(self, x: Array, dtype: Any) -> Array:
        """Return ``x`` in another dtype of this library."""

    @abstractmethod
    def dtype(self, name: str) -> Any:
        """Return this library's dtype of that name."""

    def stop_gradient(self, x: Array) -> Array:
        """Return ``x`` without its history for automatic differentiation."""
        return x

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """Return ``x`` on the host, as a NumPy array."""

    @abstractmethod
    def from_numpy(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        """Return host values as an array of the dtype and device of ``like``."""

    # -- rows of vectors, (..., k, n) --------------------------------------------------------------------------------
    @abstractmethod
    def empty_rows(self, count: int, like: Array) -> Array:
        """Return room for ``count`` vectors like ``like``: ``(..., count, n)``. Rows are read only after set_row."""

    @abstractmethod
    def set_row(self, rows: Array, index: int, x: Array) -> Array:
        """Return ``rows`` with row ``index`` set to ``x``; libraries that can, write in place and return ``rows``."""

    def first_rows(self, rows: Array, count: int) -> Array:
        """Return the first ``count`` rows, without copying them."""
        return rows[..., :count, :]

    @abstractmethod
    def row_products(self, rows: Array, x: Array) -> Array:
        """Return ``rows[i]^H x`` of each row, ``(..., k)``."""

    def block_products(self, blocks: list[Array], x: Array) -> list[Array]:
        """Return ``row_products`` of several sets of rows, which backends that communicate can do in one reduction."""
        return [self.row_products(rows, x) for rows in blocks]

    def coefficients(self, values: np.ndarray[Any, Any], like: Array) -> Array:
        """Return host numbers ``(..., k)``, one a row, as ``subtract_rows`` takes them for vectors like ``like``."""
        return self.from_numpy(values, like)

    @abstractmethod
    def subtract_rows(self, x: Array, coefficients: Array, rows: Array) -> Array:
        """Return ``x - sum_i coefficients[i] rows[i]``."""

    @abstractmethod
    def mix_rows(self, coefficients: Array, rows: Array) -> Array:
        """Return new rows ``(..., m, n)``, ``sum_i coefficients[..., j, i] rows[..., i, :]``."""

    # -- matrices and foreign callables ------------------------------------------------------------------------------
    @abstractmethod
    def apply_matrix(self, matrix: Array, x: Array) -> Array:
        """Return ``matrix x`` for ``matrix`` of shape ``(m, n)`` or ``(..., m, n)`` and ``x`` of shape ``(..., n)``."""

    @abstractmethod
    def conjugate_transpose(self, matrix: Array) -> Array:
        """Return the conjugate transpose over the last two axes."""

    def call_foreign(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, bool]:
        """Call a user's function on a private copy of ``x``; return its result and whether it left its input intact.

        The result is private too: a function may hand back one buffer again and again.
        """
        lent = self.copy(x)
        result = function(lent)
        intact = self.equal(lent, x) or not self.equal(x, x)  # a vector with NaN differs from itself
        return (self.copy(result) if self.is_array(result) else result), intact
