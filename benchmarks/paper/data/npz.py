"""NumPy archives (npz) from anybody: no pickles, and every size is checked before memory is taken for it.

``numpy.load(allow_pickle=False)`` runs no code, but it allocates whatever a header of 128 bytes declares and inflates
whatever a zip member holds. Here the declared shape must fit the member, and the member the limit.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from .errors import DataError
from .files import MIB, read_bounded

ARCHIVE_LIMIT = 64 * MIB  # the largest archive here, all of MNIST, has 11 MiB
ARRAY_LIMIT = 128 * MIB  # 70,000 images of 28 x 28 bytes are 52 MiB
HEADER_LIMIT = 512  # characters; NumPy writes 118 for every array here
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path, required: Collection[str], optional: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the named arrays of the archive; other members are not opened.

    Raises DataError where the file is no archive, a required array is missing or is not plain numbers, or a size
    exceeds its limit.
    """
    content = read_bounded(path, ARCHIVE_LIMIT)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if missing := sorted(set(required) - set(members)):
                raise DataError(
                    f"read_npz: got {path} with the arrays {sorted(members)}, expected {sorted(required)}; "
                    f"{missing} missing. Take the archive that docs/data.md describes."
                )
            return {name: _array(path, archive, members[name]) for name in (*required, *optional) if name in members}
    except DataError:
        raise
    except Exception as error:  # whatever zipfile, zlib or NumPy trip over in the file is the file's fault
        raise DataError(
            f"read_npz: got {path}, which is no readable npz archive ({type(error).__name__}: {error}). "
            "It is damaged or of another format; fetch it again."
        ) from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    where = f"read_npz: got {path}, array {member.filename!r}"
    if member.file_size > ARRAY_LIMIT:
        raise DataError(f"{where} of {member.file_size} bytes, expected at most {ARRAY_LIMIT}. Do not use this file.")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in _HEADER_READERS:
            raise DataError(f"{where} in npy version {version}, expected 1.0 or 2.0. Save it again with numpy.savez.")
        shape, fortran_order, dtype = _HEADER_READERS[version](stream, max_header_size=HEADER_LIMIT)
        if dtype.kind not in "biuf":
            raise DataError(f"{where} of dtype {dtype}, expected plain numbers. Objects would need a pickle: refused.")
        declared, present = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
        if declared != present or min(shape, default=0) < 0:
            raise DataError(f"{where} declared as {dtype}{shape}, but {present} bytes long. The file is damaged.")
        values = np.frombuffer(stream.read(), dtype=dtype)  # reads to the end, so zipfile compares the CRC
    return values.reshape(shape, order="F" if fortran_order else "C").astype(dtype.newbyteorder("="))
