"""``diagnose`` for a torch map: the report on a fixed point, from the map itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.diagnose import Diagnosis
from implicitgrad.diagnose import diagnose as diagnose_operator
from implicitgrad.errors import ShapeError
from implicitgrad.torch.engine.flat import FlatFunction
from implicitgrad.torch.layout import Layout
from implicitgrad.torch.operators import jacobian_of

__all__ = ["diagnose"]


def diagnose(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    g: Any = None,
    batch_ndim: int = 0,
    rtol: float = 1e-4,
    steps: tuple[int, ...] = (1, 5, 10, 20),
    max_iters: int = 200,
    seed: int = 0,
) -> Diagnosis:
    """Say whether the gradient through the fixed point ``z = f(z, *args)`` is safe, and what to do if it is not.

    Parameters
    ----------
    f : callable or torch.nn.Module
        ``f(z, *args)`` returns a state like ``z``.
    z : tensor, or nested tuples, lists and dicts of tensors
        The point, as a forward solver left it; how far it is from being fixed is part of the report.
    *args
        Further arguments of ``f``.
    g : like ``z``, optional
        The cotangent ``dL/dz`` that the solvers are tried on. Default: random.
    batch_ndim : int
        How many leading axes count independent systems; the report is on the worst of them. Rows that mix, by a
        BatchNorm in training mode or an edge of a graph, are found, and reported as the one system that they are.
    rtol, steps, max_iters, seed
        As for ``implicitgrad.diagnose.diagnose``.

    Returns
    -------
    Diagnosis
        ``print(report)``, ``report.to_dict()``, ``report.plot()``.

    Raises
    ------
    BackendError, ShapeError, DtypeError, DeviceError, SettingError
        ``z`` or ``g`` is no state, ``f`` returned something else than one; settings that make no sense.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> W = torch.tensor([[0.5, 2.0], [0.0, 0.4]], dtype=torch.float64)
    >>> report = igt.diagnose(lambda z: W @ z, torch.zeros(2, dtype=torch.float64))
    >>> round(report.radius, 4), report.contraction, report.verdict
    (0.5, False, 'healthy')
    """
    name = "diagnose"
    layout = Layout.of(name, z, batch_ndim)
    function = FlatFunction(name, f, layout, args)
    with torch.enable_grad(), torch.random.fork_rng(devices=()):  # a look changes nothing, the generator included
        point = layout.ravel(z).detach().clone().requires_grad_()
        first = function.observe(point)  # so that dropout and batch normalization are left as they were
        image = function(point, *function.tensors)
    function.warn_of_other_draws(point.detach(), first)
    if g is not None:
        other = Layout.of(f"{name} (g)", g, batch_ndim)
        if other.shapes != layout.shapes or other.treespec != layout.treespec:
            raise ShapeError(
                f"{name}: got g of shapes {[tuple(s) for s in other.shapes]}, expected those of z, "
                f"{[tuple(s) for s in layout.shapes]}."
            )
    with torch.no_grad():
        miss = torch.linalg.vector_norm(image - point, dim=-1)
        size = torch.linalg.vector_norm(image, dim=-1)
        relative = torch.where(size > 0, miss / size, torch.where(miss > 0, torch.inf, 0.0))
    return diagnose_operator(
        jacobian_of(image, point),
        torch.zeros_like(point).normal_(generator=_generator(point, seed)) if g is None else layout.ravel(g).detach(),
        rtol=rtol,
        steps=steps,
        max_iters=max_iters,
        seed=seed,
        fixed_point_residual=float(relative.max()) if relative.numel() else 0.0,
    )


def _generator(like: torch.Tensor, seed: int) -> torch.Generator:
    return torch.Generator(device=like.device).manual_seed(seed)
