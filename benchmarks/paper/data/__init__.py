"""The data of the paper's experiments: MNIST digits and citation networks, from files that nobody has to trust."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .citation import CITATION_FILES, Citation, citation_from_npz
from .errors import DataError
from .files import file_in
from .mnist import MNIST_FILES, mnist_from_npz

__all__ = ["Citation", "DataError", "load_citation", "load_mnist"]


def load_citation(name: str, data_dir: str | Path | None = None) -> Citation:
    """Return the citation network ``name``: ``"cora"``, ``"citeseer"`` or ``"pubmed"``."""
    if name not in CITATION_FILES:
        raise DataError(f"load_citation: got the name {name!r}, expected one of {sorted(CITATION_FILES)}.")
    return citation_from_npz(name, _find("load_citation", data_dir, CITATION_FILES[name]))


def load_mnist(data_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's training ``images``, uint8 ``(N, 28, 28)``, and ``labels``, uint8 ``(N,)``."""
    return mnist_from_npz(_find("load_mnist", data_dir, MNIST_FILES))


def _find(caller: str, data_dir: str | Path | None, names: tuple[str, ...]) -> Path:
    folder = Path(data_dir or os.environ.get("IMPLICITGRAD_DATA_DIR", "."))
    for name in names:
        if (path := file_in(folder, name)) is not None:
            return path
    raise DataError(f"{caller}: got the folder {folder}, expected one of {list(names)} there. Set --data-dir.")
