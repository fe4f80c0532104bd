"""Gershgorin's bound as a loss term: ``max(0, norm(A - I) - 1 + margin)`` for ``A = (I - J)^H (I - J)``.

With ``M = A - I = J^H J - J - J^H``, every eigenvalue of ``A`` lies within ``norm(M)`` of 1, so

    lambda_min(A) >= 1 - norm(M)       for the norms  inf (largest row sum), F (Frobenius)  and  sqrt(n) F,

the last being that of Liao et al. 2018, appendix, eq. 4. No eigenvalue is computed; all there is is ``M e = J^H (J e -
e) - J e``, one JVP and one VJP, for unit vectors or for random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from implicitgrad.errors import SettingError, SettingTypeError
from implicitgrad.torch.regularizers.linearized import Linearized, MapAt
from implicitgrad.torch.regularizers.probes import Probes, unit_vectors
from implicitgrad.torch.regularizers.search import check_number

__all__ = ["gershgorin_penalty"]


def gershgorin_penalty(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    bound: str = "frobenius",
    estimator: str = "exact",
    margin: float = 0.0,
    batch_ndim: int = 0,
    probes: int = 1,
    seed: int = 0,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return ``max(0, margin - b)`` for Gershgorin's lower bound ``b`` on ``lambda_min((I - J)^H (I - J))``.

    Parameters
    ----------
    f, z, *args
        As for ``lambda_min``; gradients flow to ``args``, to what ``f`` captures, and to ``z``.
    bound : {"frobenius", "rows", "paper"}
        ``1 - norm(M, F)``; ``1 - norm(M, inf)``; ``1 - sqrt(n) norm(M, F)``. The first two hold as they stand and
        neither is always the larger: ``rows`` is tight for ``M`` with few entries a row, ``frobenius`` for ``M`` of
        low rank. The paper's is never larger than either, and below 0 unless ``norm(M, F) < 1 / sqrt(n)``.
    estimator : {"exact", "hutchinson"}
        ``exact``: ``n`` JVPs and VJPs, in chunks. ``hutchinson``: ``probes`` of each, for the two Frobenius bounds:
        ``E norm(M e)^2 = norm(M, F)^2`` for random signs ``e``. **The square is unbiased, the norm is not**: by
        Jensen's inequality its mean is too small, so the penalty errs towards letting go, and an estimate proves
        nothing.
    margin : float
        The ``lambda_min`` that is to be proved, ``>= 0``. 0, the paper's: that ``I - J`` is invertible.
    batch_ndim : int
        How many leading axes count independent systems.
    probes : int
        Random vectors of ``hutchinson``. The variance of the square falls as ``1 / probes``.
    seed : int
        Of the probes: the same ones at each call. In a training loop give a ``generator`` instead, or the same few
        directions are penalized for ever.
    generator : torch.Generator, optional
        Draws the probes, and goes on.
    chunk : int, optional
        Unit vectors that go through ``f``'s backward pass at once (by vmap; 1: without it). None: as many as take 32
        MiB themselves. Their intermediate products take a few times more.

    Returns
    -------
    tensor, shape (...)
        One number a system, real.

    Raises
    ------
    SettingError
        Unknown settings; ``hutchinson`` for ``rows``, which has no such estimate. In a backward pass, for
        ``create_graph=True`` with the exact Frobenius norm, whose rows are not kept.

    Notes
    -----
    Memory of ``exact`` is that of a chunk: the rows are formed again in the backward pass, and dropped. Of ``rows``
    only the largest one is differentiated; where two are equal, the first: a subgradient. ``norm(M)`` is 0 for
    ``J = 0``, and the gradient there is 0. ``b`` may be far below 0 for a perfectly invertible ``I - J`` (any rotation
    by more than a right angle): a large penalty is no proof of a bad network.

    Examples
    --------
    >>> import torch
    >>> import implicitgrad.torch as igt
    >>> theta = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    >>> f = lambda z: theta * z  # A = (1 - theta)^2 I, so norm(A - I, inf) = 3
    >>> igt.gershgorin_penalty(f, torch.zeros(4, dtype=torch.float64), bound="rows").item()
    2.0
    >>> igt.gershgorin_penalty(f, torch.zeros(4, dtype=torch.float64), bound="frobenius").item()
    5.0
    """
    name = "gershgorin_penalty"
    if bound not in ("frobenius", "rows", "paper"):
        raise SettingTypeError(f"{name}: got bound={bound!r}, expected 'frobenius', 'rows' or 'paper'.")
    check_number(name, "margin", margin)
    drawn = Probes(name, estimator, probes, seed, generator, chunk)
    if bound == "rows" and estimator == "hutchinson":
        raise SettingError(
            f"{name}: got estimator='hutchinson' with bound='rows', expected 'exact': random vectors "
            "estimate Frobenius norms only."
        )
    function = MapAt(name, f, z, args, batch_ndim)
    if bound == "rows":
        norm = _largest_row_sum(function, drawn)
    else:
        norm = safe_sqrt(drawn.sum_of_squares(function, _difference))
        if bound == "paper":
            norm = norm * function.size**0.5
    return torch.relu(norm - 1 + margin)


def _difference(linearized: Linearized, e: torch.Tensor) -> torch.Tensor:
    """Return ``M e = (A - I) e``."""
    image = linearized.jvp(e)
    return linearized.vjp(image - e) - image


def _largest_row_sum(function: MapAt, drawn: Probes) -> torch.Tensor:
    """Return ``max_i sum_j abs(M_ij)``: all rows by value, then the largest again, with its history."""
    linearized = function.linearized()
    with torch.no_grad():
        sums = [
            _wide(_difference(linearized, e)).abs().sum(dim=-1)
            for e in unit_vectors(linearized.point, drawn.rows(function))
        ]
    largest = torch.cat(sums).argmax(dim=0)  # M is Hermitian: column i is as good as row i
    e = torch.nn.functional.one_hot(largest, function.size).to(linearized.point.dtype)
    return _wide(_difference(linearized, e)).abs().sum(dim=-1)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, in which its sums do not overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def safe_sqrt(square: torch.Tensor) -> torch.Tensor:
    """Return the square root, whose derivative at 0 is taken as 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
