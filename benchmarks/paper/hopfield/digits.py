"""The ten binary images that the network is to store, and copies of which half is erased. Used by ``trials.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paper.data import load_mnist

__all__ = ["Digits", "erase_half", "load_digits"]


@dataclass(frozen=True)
class Digits:
    """Ten binary images ``(10, side, side)``, bool, the first of each class, and where they are from."""

    source: str
    images: np.ndarray

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    @property
    def flat(self) -> np.ndarray:
        """The images as float32 rows ``(10, pixels)``."""
        return self.images.reshape(len(self.images), -1).astype(np.float32)


def load_digits(source: str, pool: int, data_dir: Path | None) -> Digits:
    """Return the first image of each class of ``"mnist"`` (as in the paper) or of scikit-learn's bundled ``"digits"``.

    ``pool`` makes one pixel of ``pool x pool``, on if any of them is.
    """
    if source == "mnist":
        images, labels = load_mnist(data_dir)
        on = images > 0
    else:
        from sklearn.datasets import load_digits as bundled

        bundle = bundled()
        images, labels = bundle.images, bundle.target
        on = images > 7  # grey levels run to 16; half of that keeps most strokes closed and most holes open
    first = np.stack([on[np.flatnonzero(labels == digit)[0]] for digit in range(10)])
    side = first.shape[-1]
    if side % pool:
        raise ValueError(f"load_digits: got pool={pool} for images of {side} x {side}, expected a divisor of {side}.")
    pooled = first.reshape(10, side // pool, pool, side // pool, pool).any(axis=(2, 4))
    return Digits(f"{source} {side // pool}x{side // pool}", pooled)


def erase_half(images: np.ndarray, seed: int) -> np.ndarray:
    """Return binary images ``(count, pixels)`` of which half of the on-pixels, drawn at random, are switched off."""
    rng = np.random.default_rng(seed)
    erased = images.copy()
    for image in erased:
        on = np.flatnonzero(image)
        image[rng.permutation(on)[: len(on) // 2]] = 0
    return erased
