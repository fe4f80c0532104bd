"""Bounded reading of files in one folder: nothing outside it, nothing special, nothing larger than announced."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from .digest import check_digest
from .errors import DataError

MIB = 1024 * 1024
PUBLIC_FILE_LIMIT = 16 * MIB  # the largest public file, MNIST's images, has 9.5 MiB


def file_in(folder: Path, name: str) -> Path | None:
    """Return the path of the file ``name`` in ``folder``, None where there is none.

    Raises DataError unless ``name`` is a bare file name, and where a link leads out of the folder or to no regular
    file (a pipe would make the reader wait for ever).
    """
    if name in {"", ".."} or "\0" in name or not PurePosixPath(name).name == PureWindowsPath(name).name == name:
        raise DataError(f"file_in: got the file name {name!r}, expected a bare name without a folder.")
    path = folder / name
    if not os.path.lexists(path):
        return None
    try:
        inside, target = folder.resolve(), path.resolve()
        if not target.is_relative_to(inside):
            raise DataError(
                f"file_in: got {path}, a link to {target}, expected a file inside {inside}. Put the file itself there."
            )
        regular = target.exists() and stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: Python 3.11 and 3.12 on links in a circle
        raise DataError(
            f"file_in: got {path}, which cannot be followed ({error}). Put the file itself there."
        ) from error
    if not regular:
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
            return file.read(size)  # not read(limit), which takes that much memory at once
    except OSError as error:
        raise DataError(f"read_bounded: got {path}, which cannot be read ({error}). Check its permissions.") from error


def read_published(folder: Path, name: str, sha256: str) -> bytes:
    """Return the bytes of a public file, read once and compared with their checksum before anybody looks at them."""
    path = file_in(folder, name)
    if path is None:
        raise DataError(f"read_published: got the folder {folder} without {name}. docs/data.md says where to get it.")
    content = read_bounded(path, PUBLIC_FILE_LIMIT)
    check_digest(str(path), hashlib.sha256(content).hexdigest(), sha256)
    return content


def has_published(folder: Path, name: str, sha256: str) -> bool:
    """Say whether the public file lies in the folder and has its checksum."""
    path = file_in(folder, name)
    try:
        return path is not None and hashlib.sha256(read_bounded(path, PUBLIC_FILE_LIMIT)).hexdigest() == sha256
    except DataError:  # too large, or not readable
        return False
