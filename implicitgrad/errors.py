"""Every exception and warning of the package. Each derives from the builtin that fits, so ``except`` clauses work.

A *mistake of the caller* (a wrong shape, dtype, device, keyword) raises one of these at once. A *numerical outcome*
(no convergence, a singular system) is no mistake: solvers put it in ``Solution.status`` (see ``implicitgrad.status``),
and only the entry points turn it into ``NotConvergedError`` or ``ConvergenceWarning``, as their ``on_failure`` says.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "ConvergenceWarning",
    "DeviceError",
    "DtypeError",
    "ImplicitGradError",
    "MissingProductError",
    "NotConvergedError",
    "OperatorError",
    "SettingError",
    "SettingTypeError",
    "ShapeError",
]


class ImplicitGradError(Exception):
    """Base of every exception that this package raises."""


class ShapeError(ImplicitGradError, ValueError):
    """An array has the wrong shape; the message names both shapes."""


class DtypeError(ImplicitGradError, TypeError):
    """An array has a dtype that the computation cannot use, or not the one it was given."""


class DeviceError(ImplicitGradError, ValueError):
    """Two arrays that meet live on different devices."""


class BackendError(ImplicitGradError, TypeError):
    """An object is not an array of a known library, or of another library than expected."""


class OperatorError(ImplicitGradError, RuntimeError):
    """An operator broke its contract: it changed its input, or a check of it failed."""


class MissingProductError(OperatorError, NotImplementedError):
    """A method needs a product (``J v`` or ``J^T u``) that the operator was not given.

    ``nested`` tells that it has left a whole solve: where that was made inside of a product, another operator lacks it.
    """

    nested = False


class SettingError(ImplicitGradError, ValueError):
    """A setting has a value that makes no sense: a negative tolerance, an unknown policy."""


class SettingTypeError(SettingError, TypeError):
    """A setting has the wrong type or an unknown name."""


class NotConvergedError(ImplicitGradError, RuntimeError):
    """A solve that was asked to raise did not reach its bound. ``solution`` holds the best iterate and its status."""

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.args[0], self.solution)  # the default would lose the solution between processes


class ConvergenceWarning(UserWarning):
    """A result is handed back although it did not reach its bound; the text says how far it came."""
