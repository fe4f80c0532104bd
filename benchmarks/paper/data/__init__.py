"""The data of the paper's experiments: MNIST digits and citation networks, from files that nobody has to trust.

Each loader looks into one folder: ``data_dir``, else the folder that the environment variable IMPLICITGRAD_DATA_DIR
names, else the cache folder of the operating system. There it takes

1. the npz archive of the data set (its content is compared with a checksum), else
2. the public files (each is compared with its checksum before it is parsed), else, for Pubmed,
3. the archive of the graph alone.

Where none of them lies there and no ``data_dir`` was given, the public files are fetched with pooch, and those again
that are damaged. Whatever goes
wrong is a ``DataError``, which says what was got, what was expected and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .citation import Citation, citation_from_npz
from .errors import DataError
from .files import file_in, has_published
from .mnist import mnist_from_npz, mnist_from_public_files
from .planetoid import citation_from_public_files
from .registry import CITATION, MNIST, Published

__all__ = ["Citation", "DataError", "load_citation", "load_mnist"]

FOLDER_VARIABLE = "IMPLICITGRAD_DATA_DIR"


def load_citation(
    name: str, data_dir: str | Path | None = None, *, downloader: Callable[[str, str, Any], None] | None = None
) -> Citation:
    """Return a citation network.

    Parameters
    ----------
    name : str
        ``"cora"`` (2,708 documents, 1,433 words, 7 classes), ``"citeseer"`` (3,327, 3,703, 6) or ``"pubmed"`` (19,717,
        500, 3).
    data_dir : path, optional
        The folder to read; nothing is fetched then. Default: the folder of the module's docstring.
    downloader : callable, optional
        What pooch calls to fetch a file, ``downloader(url, output_file, pooch)``. Default: ``fetch.download``.

    Raises
    ------
    DataError
        The name is none of the three, the files are not there or cannot be fetched, or they are not the published
        ones. The checksums of the public files are SHA-256 that others published (``registry.py`` names them); in
        addition the content is compared with a SHA-256 that was computed here, except for Pubmed's features.
    """
    if not isinstance(name, str) or name not in CITATION:
        raise DataError(f"load_citation: got the name {name!r}, expected one of {sorted(CITATION)}.")
    published = CITATION[name]
    found = _find(f"load_citation({name!r})", published, data_dir, downloader)
    if found.is_dir():
        return citation_from_public_files(name, published, found)
    return citation_from_npz(name, published, found)


def load_mnist(
    data_dir: str | Path | None = None, *, downloader: Callable[[str, str, Any], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's training images, uint8 ``(N, 28, 28)``, and their classes, uint8 ``(N,)``.

    ``N`` is 60,000 from the public files and 19,690, the first of them, from the archive. Parameters and errors as
    for ``load_citation``.
    """
    found = _find("load_mnist", MNIST, data_dir, downloader)
    return mnist_from_public_files(MNIST, found) if found.is_dir() else mnist_from_npz(MNIST, found)


def _find(
    caller: str, published: Published, data_dir: str | Path | None, downloader: Callable[[str, str, Any], None] | None
) -> Path:
    """Return the archive to read, or the folder with all the public files."""
    folder = _folder(caller, data_dir)
    if published.archive and (archive := file_in(folder, published.archive)):
        return archive
    missing = [name for name in published.files if file_in(folder, name) is None]
    # What is damaged in a cache is fetched again; in a folder of the user's it is an error, which the reader raises.
    damaged = data_dir is None and not all(has_published(folder, *file) for file in published.files.items())
    if not missing and not damaged:
        return folder
    if published.graph_archive and (archive := file_in(folder, published.graph_archive)):
        return archive
    if data_dir is None:
        _pooch(caller).fetch(published, folder, downloader)
        return folder
    archives = [name for name in (published.archive, published.graph_archive) if name]
    raise DataError(
        f"{caller}: got the folder {folder} without {' or '.join(archives)} and without {', '.join(missing)}. Put the "
        "archive or all the public files there, or leave the folder out to have them fetched (docs/data.md)."
    )


def _folder(caller: str, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        named = os.environ.get(FOLDER_VARIABLE)
        return Path(named).expanduser() if named else _pooch(caller).default_folder()
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"{caller}: got data_dir={str(data_dir)!r}, which is no folder. Name one that holds the files.")
    return folder


def _pooch(caller: str) -> Any:
    """Return the module that fetches; it alone needs pooch."""
    try:
        from . import fetch
    except ImportError as error:
        raise DataError(
            f"{caller}: fetching needs pooch, which is not installed. python -m pip install 'implicitgrad[data]', or "
            "name a folder with the files with --data-dir."
        ) from error
    return fetch
