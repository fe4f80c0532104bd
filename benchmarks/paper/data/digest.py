"""SHA-256 of bytes and of arrays, and the comparison with what was published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix

from .errors import DataError


def digest_of(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of arrays in a form that does not depend on the machine.

    Each array counts as one line, ``<dtype> <shape>`` (as in ``<i8 (2708,)``), and its bytes in C order, little end
    first; integers are taken as int64 and floats as float32, so that a file may store them smaller.
    """
    digest = hashlib.sha256()
    for array in arrays:
        kinds = {"i": "<i8", "u": "|u1" if array.dtype == np.uint8 else "<i8", "f": "<f4"}
        canonical = np.ascontiguousarray(array, dtype=kinds[array.dtype.kind])
        digest.update(f"{canonical.dtype.str} {canonical.shape}\n".encode())
        digest.update(canonical.tobytes())
    return digest.hexdigest()


def digest_of_features(features: csr_matrix) -> str:
    """Return the SHA-256 of a sparse matrix whose columns are sorted and whose entries are unique and not zero."""
    return digest_of(np.array(features.shape), features.indptr, features.indices, features.data)


def check_digest(source: str, got: str, expected: str) -> None:
    """Raise DataError unless the two checksums agree."""
    if got != expected:
        raise DataError(
            f"check_digest: got {source} with SHA-256 {got}, expected {expected}. This is not the published data, or "
            "it is damaged. Remove it and fetch it again."
        )


def check_content(source: str, got: Mapping[str, str], published: Mapping[str, str]) -> None:
    """Raise DataError unless each part of the content has its published checksum; a part without one is refused."""
    for part, digest in got.items():
        if part not in published:
            raise DataError(
                f"check_content: got {source} with {part}, for which no checksum is known, so that nothing tells "
                "whether they are the published ones. Take the public files that docs/data.md lists."
            )
        check_digest(f"{source} ({part})", digest, published[part])
