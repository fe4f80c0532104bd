"""MNIST's public files: gzip around IDX, a big-endian header (magic, lengths) and then the bytes."""

from __future__ import annotations

import zlib

import numpy as np

from .errors import DataError
from .files import MIB

INFLATED_LIMIT = 48 * MIB  # 60,000 images of 28 x 28 bytes are 44.9 MiB
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: with a gzip header and its CRC


def inflated(source: str, content: bytes, limit: int = INFLATED_LIMIT) -> bytes:
    """Return what a gzip file of one member holds; never more than ``limit`` bytes are inflated."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        values = inflater.decompress(content, limit + 1)
    except zlib.error as error:
        raise DataError(f"inflated: got {source}, which is no gzip file ({error}). Fetch it again.") from error
    if len(values) > limit:
        raise DataError(f"inflated: got {source}, which inflates to more than {limit} bytes. Do not use this file.")
    if not inflater.eof or inflater.unused_data:
        how = "ends too early" if not inflater.eof else "goes on behind its end"
        raise DataError(f"inflated: got {source}, a gzip file that {how}. Fetch it again.")
    return values


def idx_array(source: str, content: bytes, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an IDX file with so many dimensions.

    The format: bytes 0, 0, 8 (for uint8) and the number of dimensions; then each length as a big-endian uint32.
    """
    header = 4 * (1 + dimensions)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise DataError(
            f"idx_array: got {source} that begins with {content[:4].hex(' ')!r}, expected an IDX file of bytes, "
            f"'00 00 08 {dimensions:02x}'. Fetch it again."
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    expected = header + np.prod(shape, dtype=object)  # object: Python's integers do not overflow
    if len(content) != expected:
        raise DataError(
            f"idx_array: got {source} of {len(content)} bytes, expected {expected} for shape {shape}. Fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
