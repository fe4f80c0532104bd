"""Bounded reading of files in one folder: nothing outside it, nothing special, nothing larger than announced."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from .errors import DataError

MIB = 1024 * 1024


def file_in(folder: Path, name: str) -> Path | None:
    """Return the path of the file ``name`` in ``folder``, None where there is none.

    Raises DataError unless ``name`` is a bare file name, and where a link leads out of the folder or to no regular
    file (a pipe would make the reader wait for ever).
    """
    if (
        name in {"", ".", ".."}
        or "\0" in name
        or PurePosixPath(name).name != name
        or PureWindowsPath(name).name != name
    ):
        raise DataError(f"file_in: got the file name {name!r}, expected a bare name without a folder.")
    path = folder / name
    if not os.path.lexists(path):
        return None
    inside, target = folder.resolve(), path.resolve()
    if not target.is_relative_to(inside):
        raise DataError(
            f"file_in: got {path}, a link to {target}, expected a file inside {inside}. Put the file itself there."
        )
    if not target.exists() or not stat.S_ISREG(target.stat().st_mode):
        raise DataError(f"file_in: got {path}, which is no regular file. Put the data file itself there.")
    return target


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of a file of at most ``limit`` bytes; its size is looked at before anything is read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise DataError(
                    f"read_bounded: got {path} of {size} bytes, expected at most {limit}. This is another file than "
                    "the published one; fetch it again."
                )
            return file.read(limit)
    except OSError as error:
        raise DataError(f"read_bounded: got {path}, which cannot be read ({error}). Check its permissions.") from error
