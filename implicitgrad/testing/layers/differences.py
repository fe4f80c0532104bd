"""Central differences: of ``f``, whose own derivative may be wrong, and of the whole solve, for large states.

The step is such that ``f`` changes by ``cbrt(delta) norm(f)``, ``delta`` the relative accuracy of the values that are
subtracted (the spacing of the dtype, or the residual of the solves if that is more): the truncation, of the order of
``delta**(2/3)``, and the noise, ``delta / delta**(1/3)``, are then of one size. The error of a difference is estimated,
never assumed: by the change from one step to twice the step, plus what the measured residuals allow.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from implicitgrad.testing.layers.linearization import Linearization
from implicitgrad.testing.layers.subject import Subject, pulled, real_vector
from implicitgrad.torch import Anderson, NewtonKrylov, fixed_point

__all__ = ["Slope", "along", "moved", "slope_of_map", "slope_of_solve", "step_for", "vjp_along"]


@dataclass(frozen=True)
class Slope:
    """A derivative along a direction by central differences: its value, an estimate of its error, and the step."""

    value: float
    error: float
    step: float


@contextmanager
def moved(tensor: torch.Tensor, shift: torch.Tensor) -> Iterator[None]:
    """Add ``shift`` to a tensor for a while and put its bits back; by ``.data``, so that no version changes."""
    kept = tensor.detach().clone()
    tensor.data.add_(shift)
    try:
        yield
    finally:
        tensor.data.copy_(kept)


def step_for(at: Linearization, index: int | None, direction: torch.Tensor, delta: float) -> float:
    """Return a step along a unit direction that changes ``f`` by ``cbrt(delta)`` of its norm."""
    tensor = at.point if index is None else at.subject.tensors[index]
    size = float(torch.linalg.vector_norm(tensor.detach()))
    trial = float(np.cbrt(at.subject.eps)) * (size if size > 0 else 1.0)
    with torch.no_grad(), moved(tensor, trial * direction):
        change = float(torch.linalg.vector_norm(at.subject(at.point.detach()) - at.image.detach()))
    wanted = float(np.cbrt(delta)) * float(torch.linalg.vector_norm(at.image.detach()))
    if not 0 < change < np.inf or wanted == 0:
        return trial
    return trial * min(max(wanted / change, 1e-3), 1e3)


def slope_of_map(at: Linearization, index: int | None, direction: torch.Tensor, v: torch.Tensor) -> Slope:
    """Return the change of ``<v, f>`` along a unit direction of tensor ``index``, or of the state where it is None."""
    subject = at.subject
    tensor = at.point if index is None else subject.tensors[index]
    step = step_for(at, index, direction, subject.eps)

    def value(shift: float) -> float:
        with torch.no_grad(), moved(tensor, shift * direction):
            return _paired(v, subject(at.point.detach()))

    once, twice = (_central(value(h), value(-h), h) for h in (step, 2 * step))
    noise = subject.eps * float(torch.linalg.vector_norm(at.image.detach())) / step
    return Slope(once, abs(once - twice) + noise, step)


def slope_of_solve(at: Linearization, index: int, direction: torch.Tensor, g: torch.Tensor, amplified: float) -> Slope:
    """Return the change of ``<g, z*>`` along a unit direction of tensor ``index``: four forward solves.

    ``amplified`` is ``norm((I - J)^-1)``: what a residual of a perturbed solve may grow to.
    """
    subject = at.subject
    tensor = subject.tensors[index]
    worst = 0.0

    def value(shift: float) -> float:
        nonlocal worst
        with torch.no_grad(), moved(tensor, shift * direction):
            z, residual = _refined(subject, at.point.detach())
            worst = max(worst, residual)
            return _paired(g, z)

    value(0.0)
    step = step_for(at, index, direction, max(subject.eps, worst))
    once, twice = (_central(value(h), value(-h), h) for h in (step, 2 * step))
    noise = worst * float(torch.linalg.vector_norm(at.point.detach())) * min(amplified, 1e3) / step
    return Slope(once, abs(once - twice) + noise, step)


def _refined(subject: Subject, z: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the fixed point near ``z`` as exactly as the dtype lets it be, and its relative residual."""
    state, rtol = subject.layout.unravel(z), 8 * subject.eps
    best, least = z, np.inf
    for solver in (Anderson(rtol=rtol, max_iters=200), NewtonKrylov(rtol=rtol)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fixed_point(subject.f, state, *subject.args, solver=solver, on_failure="return")
        flat = subject.layout.ravel(found)
        image = subject(flat)
        gap, size = torch.linalg.vector_norm(image - flat), torch.linalg.vector_norm(image)
        residual = float(gap) / max(float(size), 1e-300) if float(gap) > 0 else 0.0
        if residual < least:
            best, least = flat, residual
        if least <= 100 * subject.eps:
            break
    return best, least


def _central(ahead: float, behind: float, step: float) -> float:
    return (ahead - behind) / (2 * step)


def _paired(v: torch.Tensor, x: torch.Tensor) -> float:
    """Return the real part of ``<v, x>``, summed in double precision."""
    return float(real_vector(v) @ real_vector(x))


def along(gradient: torch.Tensor, direction: torch.Tensor) -> float:
    """Return the derivative along a direction that a gradient promises."""
    return _paired(gradient, direction)


def vjp_along(at: Linearization, index: int | None, direction: torch.Tensor, v: torch.Tensor) -> float:
    """Return the change of ``<v, f>`` along a direction that the map's own VJP promises."""
    tensor = at.point if index is None else at.subject.tensors[index]
    return along(pulled(at.image, [tensor], v)[0], direction)
