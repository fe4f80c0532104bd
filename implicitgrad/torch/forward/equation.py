"""The equation ``z = f(z)`` as forward solvers see it: the map, and what only its author can know about it.

``fixed_point`` hands over the bare map. ``root`` of ``r(z) = 0`` is the map ``f(z) = z - r(z)`` with a residual that is
computed directly and a scale of its own; ``argmin`` of a loss is ``f(w) = w - grad(w)`` with the loss as merit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch

from implicitgrad.backends import Array
from implicitgrad.errors import BackendError, SettingTypeError
from implicitgrad.operators import LinearOperator
from implicitgrad.operators.algebra import shifted
from implicitgrad.torch.operators import jacobian_of

__all__ = ["Equation", "Map", "equation_of"]

Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Equation:
    """``z = f(z)`` on flat states, with its derivative, scale and merit.

    Parameters
    ----------
    function : callable
        ``f``: an array ``(..., n)`` to one like it, a new array; its argument is left as it is.
    residual : callable, optional
        ``z -> f(z) - z`` computed directly, and called in the place of ``function``. For ``f(z) = z - r(z)`` the
        difference ``f(z) - z`` knows ``r`` to ``eps norm(z)`` only, ``-r(z)`` to its own rounding.
    linearize : callable, optional
        ``z -> J``, the ``LinearOperator`` ``df/dz`` at ``z``; counted as one call of ``f``. Default: torch's autograd
        on one call of ``residual`` or ``function``, with ``J v`` as the transpose of the VJP.
    scale : callable, optional
        ``(z, f(z)) -> host norms`` of shape ``(...)``, a float for one system, that the residual is relative to.
        Default ``norm(f(z))``. For ``r(z) = 0`` the natural one is ``norm(J_r z - r(z))``, the right-hand side of
        Newton's system at ``z``: for ``r(z) = A z - b`` it is ``norm(b)``, as linear solvers have it, and neither the
        start nor a unit is in it. It may be dear (each evaluation is counted as one call of ``f`` and one product), so
        it is asked for at the start and where a residual comes within the bound by the last one.
    merit : callable, optional
        ``z -> host values`` of shape ``(...)``, a float for one system, that a line search has to decrease, with the
        gradient ``z - f(z)``. Default: the residual norm. Only ``NewtonKrylov`` uses it.
    name : str
        What messages call the map.

    Raises
    ------
    SettingTypeError
        A part that is to be called cannot be.

    Examples
    --------
    >>> import torch, implicitgrad.torch as igt
    >>> r = lambda z: z**3 - 8.0
    >>> root = igt.Equation(lambda z: z - r(z), residual=lambda z: -r(z))
    >>> J = root.linearize(torch.tensor([2.0], dtype=torch.float64))
    >>> J.matvec(torch.ones(1, dtype=torch.float64))
    tensor([-11.], dtype=torch.float64)
    """

    function: Map
    _: KW_ONLY
    residual: Map | None = None
    linearize: Callable[[Array], LinearOperator] = None  # type: ignore[assignment]  # None: by autograd
    scale: Callable[[Array, Array], Any] | None = None
    merit: Callable[[Array], Any] | None = None
    name: str = "f"

    def __post_init__(self) -> None:
        for part in ("function", "residual", "linearize", "scale", "merit"):
            value = getattr(self, part)
            if not callable(value) and (value is not None or part == "function"):
                raise SettingTypeError(
                    f"Equation: got {part} of type {type(value).__qualname__}, expected a callable on flat states."
                )
        if self.linearize is None:
            # Not a method of self: a cycle would keep what f holds alive until the collector runs.
            object.__setattr__(self, "linearize", partial(_by_autograd, self.function, self.residual, self.name))


def _by_autograd(function: Map, residual: Map | None, name: str, z: Array) -> LinearOperator:
    """Return ``df/dz`` at ``z`` from the graph of one call."""
    if not isinstance(z, torch.Tensor):
        raise BackendError(
            f"Equation: got a state of type {type(z).__qualname__}, expected a torch.Tensor to differentiate "
            f"{name} by. Give Equation(..., linearize=) for other arrays."
        )
    with torch.inference_mode(False), torch.enable_grad():
        point = z.detach().clone().requires_grad_()
        if residual is None:
            return jacobian_of(function(point), point)
        # I - (I + K) is -K again, without the subtraction: the shift stays outside.
        return shifted(1.0, 1.0, jacobian_of(residual(point), point))


def equation_of(function: Equation | Map) -> Equation:
    """Return a bare map as an equation, and an equation as it is."""
    return function if isinstance(function, Equation) else Equation(function)
