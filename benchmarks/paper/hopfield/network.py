"""The continuous Hopfield network of Liao et al. (2018), many of them at once, with its clamped units eliminated.

The paper's state holds visible, hidden and output units, and is updated by

    s  <-  mask * (sigmoid(s / 2) V) + input,    V = W + W^T less its diagonal,

where the visible units are clamped to the image: mask 0. They never change, so what they send to the others is computed
once, and the state here is the rest, hidden and output units:

    h  <-  sigmoid(h / 2) V_ff + drive,          drive = sigmoid(image / 2) V_cf.

Same iterates, same fixed point, same gradient, less than half of the arithmetic. RBP, Neumann and truncated BPTT are
the same numbers in both forms (rows of J that belong to clamped units are zero); Krylov methods see the smaller system.
Every tensor leads with an axis of trials. Used by ``trials.py``.
"""

from __future__ import annotations

import torch

__all__ = ["drive", "first_couplings", "losses", "settled", "symmetrized", "update"]

_TILE = 256  # a tile of a gradient and its mirror image stay in the cache while they are added


def first_couplings(pixels: int, hidden: int, scale: float, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``V_ff (trials, free, free)`` and ``V_cf (trials, pixels, free)`` of ``W ~ scale N(0, 1)``.

    A seed a trial; ``free = hidden + pixels``: the hidden units first, then the output units.
    """
    free = hidden + pixels
    inner, clamped = torch.empty(len(seeds), free, free), torch.empty(len(seeds), pixels, free)
    for trial, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        weight = scale * torch.randn(free, free, generator=generator)
        inner[trial] = (weight + weight.T).fill_diagonal_(0)
        there, back = scale * torch.randn(2, pixels, free, generator=generator)
        clamped[trial] = there + back
    return inner, clamped


def drive(images: torch.Tensor, clamped: torch.Tensor) -> torch.Tensor:
    """Return what the clamped units send to the others: images ``(trials, m, pixels)`` to ``(trials, m, free)``."""
    return torch.sigmoid(0.5 * images) @ clamped


def update(state: torch.Tensor, inner: torch.Tensor, sent: torch.Tensor) -> torch.Tensor:
    """Return the next state ``(trials, m, free)``: the map whose fixed point is wanted."""
    return torch.sigmoid(0.5 * state) @ inner + sent


def settled(inner: torch.Tensor, sent: torch.Tensor, updates: int) -> tuple[torch.Tensor, int]:
    """Return the state after ``updates`` updates from zero, and how many were computed.

    Once an update has changed no bit of any trial, the remaining ones would not either, and are not computed.
    """
    with torch.no_grad():
        state = torch.zeros_like(sent)
        for made in range(updates):
            following = update(state, inner, sent)
            if torch.equal(following, state):
                return following, made + 1
            state = following
    return state, updates


def losses(state: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the L1 loss of the output units, the mean over the pixels of each image: ``(trials, m)``."""
    return (state[..., -images.shape[-1] :] - images).abs().mean(dim=-1)


def symmetrized(gradient: torch.Tensor) -> torch.Tensor:
    """Turn ``dL/dV_ff`` into ``dL/dW_ff``, in place: ``G + G^T`` without its diagonal.

    Adam on ``W`` with this gradient moves ``V = W + W^T`` as Adam on ``V`` does at twice the rate, number by number:
    the gradient is symmetric, so both copies of a weight move alike. That saves ``W`` and two transpositions a step.
    """
    size = gradient.shape[-1]
    for top in range(0, size, _TILE):
        for left in range(0, top + 1, _TILE):
            below = gradient[:, top : top + _TILE, left : left + _TILE]
            above = gradient[:, left : left + _TILE, top : top + _TILE]
            total = below + above.mT
            below.copy_(total)
            above.copy_(total.mT)
    gradient.diagonal(dim1=-2, dim2=-1).zero_()
    return gradient
