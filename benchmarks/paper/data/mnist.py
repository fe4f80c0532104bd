"""MNIST's training images: handwritten digits of 28 x 28 bytes and their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import DataError
from .npz import read_npz

MNIST_FILES = ("mnist.npz", "mnist-train-19690.npz")


def mnist_from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(images, labels)`` of an archive."""
    arrays = read_npz(path, ("images", "labels"))
    return checked_mnist(str(path), arrays["images"], arrays["labels"])


def checked_mnist(source: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays; DataError unless they are ``uint8``, ``(N, 28, 28)`` and ``(N,)``, classes 0 to 9."""
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise DataError(f"load_mnist: got {source}, images {images.dtype}{images.shape}, expected uint8 (N, 28, 28).")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or (labels.size and labels.max() > 9):
        raise DataError(
            f"load_mnist: got {source}, labels {labels.dtype}{labels.shape}, expected uint8 ({len(images)},) up to 9."
        )
    return images, labels
