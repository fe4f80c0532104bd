"""The continuous Hopfield network of Liao et al. (2018), and the ten digits that it is to store.

The state ``s`` holds visible, hidden and output units; with ``V = W + W^T`` less its diagonal it is updated by

    s  <-  mask * (sigmoid(s / 2) V) + input,

where the mask is 0 on the visible units: they are clamped to the image. After enough updates the state is a fixed
point, and its output units should show the image as it was stored. Used by ``associative_memory.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MNIST_FILE = "mnist-train-19690.npz"


class DataError(Exception):
    """The images cannot be had; the text says what to do."""


@dataclass(frozen=True)
class Digits:
    """Ten binary images, one a row ``(10, pixels)``: as they are stored, and with half of the on-pixels erased."""

    clean: torch.Tensor
    corrupted: torch.Tensor
    side: int


def load_digits(dataset: str, data_dir: Path | None, seed: int) -> Digits:
    """Return the first image of each class, binarized, and a copy to recall it from."""
    if dataset == "mnist":
        images, labels = _read_mnist(data_dir)
        on = images > 0  # as in the paper
    else:
        from sklearn.datasets import load_digits as load_bundled

        bundle = load_bundled()
        images, labels = bundle.images, bundle.target
        on = images > 7  # grey levels run to 16; half of that keeps most strokes closed and most holes open
    missing = set(range(10)) - set(labels.tolist())
    if missing:
        raise DataError(f"got no image of the digits {sorted(missing)}, expected at least one of each.")
    clean = np.stack([on[np.flatnonzero(labels == digit)[0]].reshape(-1) for digit in range(10)])
    tensors = (torch.from_numpy(image.astype(np.float32)) for image in (clean, erase_half(clean, seed)))
    return Digits(*tensors, side=images.shape[-1])


def erase_half(images: np.ndarray, seed: int) -> np.ndarray:
    """Return binary images ``(count, pixels)`` with half of the on-pixels of each, drawn at random, switched off."""
    rng = np.random.default_rng(seed)
    erased = images.copy()
    for image in erased:
        on = np.flatnonzero(image)
        image[rng.permutation(on)[: len(on) // 2]] = 0
    return erased


def _read_mnist(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    if data_dir is None:
        raise DataError(f"got --dataset mnist alone, expected --data-dir DIR too, the folder that holds {MNIST_FILE}.")
    path = data_dir / MNIST_FILE
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError:
        raise DataError(f"found no file {path}. Name the folder that holds {MNIST_FILE} with --data-dir.") from None
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; expected the arrays 'images' and 'labels'.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an .npz archive: {error}") from None
    if images.ndim != 3 or images.shape[1] != images.shape[2] or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: got images of shape {images.shape} and labels of {labels.shape}, "
            "expected (count, side, side) and (count,)."
        )
    return images, labels


class Hopfield(torch.nn.Module):
    """The network; ``weight`` is ``W``.

    Parameters
    ----------
    pixels : int
        Number of visible units, and of output units.
    hidden : int
        Number of hidden units.
    scale : float
        Standard deviation of the first weights.
    seed : int
        Where the first weights come from.
    """

    def __init__(self, pixels: int, hidden: int, scale: float, seed: int) -> None:
        super().__init__()
        self.pixels, self.size = pixels, 2 * pixels + hidden
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(scale * torch.randn(self.size, self.size, generator=generator))
        self.register_buffer("mask", (torch.arange(self.size) >= pixels).to(self.weight.dtype))

    def coupling(self) -> torch.Tensor:
        """Return ``V = W + W^T`` without its diagonal, once for all updates of a pass."""
        return (self.weight + self.weight.T).fill_diagonal_(0)

    def clamp(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input ``(count, size)`` that holds the images ``(count, pixels)`` on the visible units."""
        return torch.nn.functional.pad(images.to(self.weight.dtype), (0, self.size - self.pixels))

    def update(self, state: torch.Tensor, coupling: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Return the next state ``(count, size)``: the map whose fixed point is wanted."""
        return self.mask * (torch.sigmoid(0.5 * state) @ coupling) + shown

    def run(self, state: torch.Tensor, coupling: torch.Tensor, shown: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the state after ``steps`` updates."""
        for _ in range(steps):
            state = self.update(state, coupling, shown)
        return state

    def output(self, state: torch.Tensor) -> torch.Tensor:
        """Return what the output units show, ``(count, pixels)``."""
        return state[..., -self.pixels :]

    def losses(self, state: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Return the L1 loss of each image ``(count,)``."""
        return (self.output(state) - clean).abs().mean(dim=-1)
