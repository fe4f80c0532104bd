"""Which backend serves an array: found from the package that its type comes from.

Whoever holds a tensor has its library loaded, so nothing is ever imported on a guess. An array of a library that is
not named here is served through array-api-compat if it speaks the array API standard.

A DTensor is a torch.Tensor that answers ``.item()`` with this rank's part of a sum, and says nothing. No backend takes
it: ``opened`` makes it a ``Sharded`` where a solve begins.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from importlib import import_module
from typing import Any

from implicitgrad.backends.base import Backend
from implicitgrad.errors import BackendError

__all__ = ["backend_of", "backend_of_dtype", "opened"]

_DTENSOR = "torch.distributed.tensor"
_BACKEND_MODULES = {
    "implicitgrad.backends.sharded.array": "implicitgrad.backends.sharded",
    _DTENSOR: "implicitgrad.backends.sharded",  # which refuses it in words
    "numpy": "implicitgrad.backends.numpy",
    "torch": "implicitgrad.backends.torch",
    "array_api_strict": "implicitgrad.backends.array_api",
    "cupy": "implicitgrad.backends.array_api",
    "dask": "implicitgrad.backends.array_api",
    "jax": "implicitgrad.backends.array_api",
    "jaxlib": "implicitgrad.backends.array_api",
}


@cache
def _backend_of_type(kind: Hashable) -> Backend | None:
    assert isinstance(kind, type)  # Hashable above is what the cache asks for
    for cls in kind.__mro__:
        names = (cls.__module__, cls.__module__.partition(".")[0])
        if module := next(filter(None, map(_BACKEND_MODULES.get, names)), None):
            backend: Backend = import_module(module).BACKEND
            return backend
    if hasattr(kind, "__array_namespace__"):
        standard: Backend = import_module("implicitgrad.backends.array_api").BACKEND
        return standard
    return None


def backend_of(x: Any, name: str = "backend_of") -> Backend:
    """Return the backend that serves the array ``x``.

    Parameters
    ----------
    x : array
        An array of NumPy, torch, or a library of the array API standard.
    name : str
        Who asks: the first words of the error message.

    Raises
    ------
    BackendError
        ``x`` is no array: a list, a number, None.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.ones(3)).name
    'numpy'
    """
    kind: Any = type(x)
    backend = _backend_of_type(kind)
    if backend is None or not backend.is_array(x):
        raise BackendError(
            f"{name}: got an object of type {type(x).__qualname__}, expected an array of NumPy, torch or another "
            f"array-API library. {Backend.advice if backend is None else backend.advice}"
        )
    return backend


def opened(x: Any) -> Any:
    """Return a DTensor as the ``Sharded`` of its local shards; anything else as it is."""
    if any(cls.__module__ == _DTENSOR for cls in type(x).__mro__):
        return import_module("implicitgrad.backends.sharded").Sharded(x)
    return x


def backend_of_dtype(dtype: Any) -> Backend:
    """Return the backend that a dtype belongs to: ``torch.float32`` is torch's, anything else NumPy's.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of_dtype(np.float32).name
    'numpy'
    """
    module = _BACKEND_MODULES.get(type(dtype).__module__.partition(".")[0], _BACKEND_MODULES["numpy"])
    backend: Backend = import_module(module).BACKEND
    return backend
