"""Fetching the public files with pooch: over https, into a cache folder, checksums compared before a file is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch

from .errors import DataError
from .files import PUBLIC_FILE_LIMIT
from .registry import Published

Downloader = Callable[[str, str, Any], None]  # (address, file to write, the pooch that asks)


def default_folder() -> Path:
    """Return the cache folder of the operating system for this project."""
    return Path(pooch.os_cache("implicitgrad"))


def fetch(published: Published, folder: Path, downloader: Downloader | None = None) -> None:
    """See to it that every public file lies in ``folder`` and has its checksum; fetch those that do not.

    pooch writes to a temporary file beside the target, compares its SHA-256 and renames it: an interrupted or a wrong
    download leaves nothing behind.
    """
    scheme = urlsplit(published.url).scheme
    if scheme != "https":
        raise DataError(f"fetch: got the address {published.url}, expected https:// and not {scheme}://.")
    registry = {name: f"sha256:{sha256}" for name, sha256 in published.files.items()}
    store = pooch.create(path=folder, base_url=published.url, registry=registry)
    for name in registry:
        try:
            store.fetch(name, downloader=downloader or download)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(
                f"fetch: got another file than the published {name} from {published.url} ({error}). Nothing was kept; "
                "try again later, or put the file into a folder and name it with --data-dir."
            ) from error
        except OSError as error:  # of requests too: no network, no such host, a status of 404
            raise DataError(
                f"fetch: could not fetch {published.url}{name} into {folder} ({type(error).__name__}: {error}). Check "
                "the network, or put the file into a folder and name it with --data-dir."
            ) from error


def download(url: str, output_file: str, store: Any) -> None:
    """Write what ``url`` serves to ``output_file``, with a progress bar: no redirect, no more than a public file."""
    with open(output_file, "wb") as file:
        get = pooch.HTTPDownloader(progressbar=True, allow_redirects=False, hooks={"response": _refuse_redirect})
        get(url, _Bounded(file, url, PUBLIC_FILE_LIMIT), store)


def _refuse_redirect(response: Any, *_: Any, **__: Any) -> None:
    if response.is_redirect:
        raise DataError(
            f"fetch: {response.url} redirects to {response.headers['location']!r}, expected the file itself: a "
            "redirect could lead off https. Fetch the file by hand and name its folder with --data-dir."
        )


class _Bounded:
    """A file that refuses to grow beyond a limit."""

    def __init__(self, file: Any, url: str, limit: int) -> None:
        self._file, self._url, self._left = file, url, limit

    def write(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            raise DataError(f"fetch: {self._url} sends more than a public file has. Nothing was kept.")
        self._file.write(chunk)

    def flush(self) -> None:
        self._file.flush()
