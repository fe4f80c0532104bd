"""MNIST's training images: handwritten digits of 28 x 28 bytes and their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .digest import check_content, digest_of
from .errors import DataError
from .files import read_published
from .gz import idx_array, inflated
from .npz import read_npz
from .registry import Published


def mnist_from_npz(published: Published, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(images, labels)`` of an archive, whose content must be the published one."""
    arrays = read_npz(path, ("images", "labels"))
    images, labels = _checked(str(path), arrays["images"], arrays["labels"])
    check_content(str(path), {"images and labels": digest_of(images, labels)}, published.content)
    return images, labels


def mnist_from_public_files(published: Published, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(images, labels)`` of the two public files."""
    parts = {}
    for name, sha256 in published.files.items():
        dimensions = 3 if "images" in name else 1
        parts[dimensions] = idx_array(name, inflated(name, read_published(folder, name, sha256)), dimensions)
    return _checked(str(folder), parts[3], parts[1])


def _checked(source: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise DataError(f"load_mnist: got {source}, images {images.dtype}{images.shape}, expected uint8 (N, 28, 28).")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or (labels.size and labels.max() > 9):
        raise DataError(
            f"load_mnist: got {source}, labels {labels.dtype}{labels.shape}, expected uint8 ({len(images)},) up to 9."
        )
    return images, labels
