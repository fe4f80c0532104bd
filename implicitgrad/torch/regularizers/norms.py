"""The norm of the Jacobian as a loss term, ``norm(J, F)^2 / n``: cheap, and a contraction where it is small.

What Bai, Koltun & Kolter 2021 (Stabilizing equilibrium models by Jacobian regularization, ICML, eq. 5) train with. VJPs
only. It draws all of ``J`` towards 0, where ``lambda_min_penalty`` moves nothing but the direction that is nearly
singular.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.torch.regularizers.linearized import Linearized, MapAt
from implicitgrad.torch.regularizers.probes import Probes

__all__ = ["jacobian_norm_penalty"]


def jacobian_norm_penalty(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    estimator: str = "hutchinson",
    batch_ndim: int = 0,
    probes: int = 1,
    seed: int = 0,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return ``norm(J, F)^2 / n``, the mean of the squared singular values of ``J = df/dz`` at ``z``.

    Parameters
    ----------
    f, z, *args
        As for ``lambda_min``; gradients flow to ``args``, to what ``f`` captures, and to ``z``.
    estimator : {"hutchinson", "exact"}
        ``hutchinson``: the mean of ``norm(J^H e)^2 / n`` over ``probes`` random sign vectors, unbiased. ``exact``: all
        ``n`` rows, in chunks, once differentiable.
    batch_ndim, probes, seed, generator, chunk
        As for ``gershgorin_penalty``.

    Returns
    -------
    tensor, shape (...)
        One number a system, without a unit: ``theta^2`` for ``J = theta I``.

    Raises
    ------
    SettingError
        Unknown settings.

    Notes
    -----
    Cost: ``probes`` VJPs with their graph. ``norm(J, 2)^2 <= n`` times this, so below ``1 / n`` the map contracts.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> theta = torch.tensor(0.5, requires_grad=True)
    >>> penalty = igt.jacobian_norm_penalty(lambda z: theta * z, torch.zeros(4))
    >>> penalty.backward()
    >>> penalty.item(), theta.grad.item()
    (0.25, 1.0)
    """
    name = "jacobian_norm_penalty"
    drawn = Probes(name, estimator, probes, seed, generator, chunk)
    function = MapAt(name, f, z, args, batch_ndim)
    return drawn.sum_of_squares(function, _row) / max(1, function.size)


def _row(linearized: Linearized, e: torch.Tensor) -> torch.Tensor:
    """Return ``J^H e``."""
    return linearized.vjp(e)
