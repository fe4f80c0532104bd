"""Arithmetic on the arrays of one library: ``backend_of(x)`` finds the right one, ``Backend`` says what it can do."""

from implicitgrad.backends.base import Array, Backend, DtypeFacts, Scalar
from implicitgrad.backends.basis import Basis
from implicitgrad.backends.registry import backend_of, backend_of_dtype, opened

__all__ = ["Array", "Backend", "Basis", "DtypeFacts", "Scalar", "backend_of", "backend_of_dtype", "opened"]
