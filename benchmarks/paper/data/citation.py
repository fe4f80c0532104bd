"""Citation networks (Cora, Citeseer, Pubmed): documents, their words, their classes, and who cites whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from .digest import check_content, digest_of, digest_of_features
from .errors import DataError
from .npz import read_npz
from .registry import Published

_FEATURES = ("feature_data", "feature_indices", "feature_indptr", "feature_shape")
SIZE_LIMIT = 10_000_000  # documents, words: far above every network here, far below what fills the memory


@dataclass(frozen=True, eq=False)
class Citation:
    """A citation network of ``n`` documents.

    Attributes
    ----------
    name : str
        One of ``"cora"``, ``"citeseer"``, ``"pubmed"``.
    features : scipy.sparse.csr_matrix of float32, shape (n, d), or None
        The words of each document, as published (not normalized); None where only the graph is at hand.
    labels : int64 array, shape (n,)
        The class of each document, -1 where it is not known.
    edges : int64 array, shape (m, 2)
        Citations as pairs (from, to), each in both directions, in lexicographic order. A pair that is listed several
        times in the published file stays so: Cora's 10,858 rows are the 5,429 links of the paper.
    known_nodes, test_nodes : int64 arrays
        The documents with a class, and the 1,000 of the public split, ascending.
    """

    name: str
    features: csr_matrix | None
    labels: np.ndarray
    edges: np.ndarray
    known_nodes: np.ndarray
    test_nodes: np.ndarray

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of ``graph`` (labels, edges, test nodes) and, where they are there, of ``features``."""
        digests = {"graph": digest_of(self.labels, self.edges, self.test_nodes)}
        if self.features is not None:
            digests["features"] = digest_of_features(self.features)
        return digests


def citation_from_npz(name: str, published: Published, path: Path) -> Citation:
    """Read the network from an archive; each of its parts must have its published content."""
    arrays = read_npz(path, ("labels", "edges", "test_nodes"), _FEATURES)
    present = [part for part in _FEATURES if part in arrays]
    features = None
    if present:
        if len(present) < len(_FEATURES):
            raise DataError(f"citation_from_npz: got {path} with {present}, expected all of {_FEATURES} or none.")
        data, indices, indptr, shape = (arrays[part] for part in _FEATURES)
        lengths = shape.ravel().tolist()
        if lengths[:1] != [arrays["labels"].size]:
            lengths.reverse()  # the transpose (d, n) by columns, as some archives have it, has the same three arrays
        features = checked_features(str(path), data, indices, indptr, lengths)
    citation = checked_citation(name, str(path), features, arrays["labels"], arrays["edges"], arrays["test_nodes"])
    check_content(str(path), citation.digests(), published.content)
    return citation


def checked_features(
    source: str, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: Sequence[int]
) -> csr_matrix:
    """Return the CSR matrix of float32 with sorted columns, or raise DataError where the arrays make none."""
    fits = (
        len(shape) == 2
        and all(type(length) is int and 0 < length <= SIZE_LIMIT for length in shape)
        and data.ndim == indices.ndim == indptr.ndim == 1
        and data.dtype.kind in "iuf"
        and indices.dtype.kind == indptr.dtype.kind == "i"
        and len(data) == len(indices)
        and len(indptr) == shape[0] + 1
        and indptr[0] == 0
        and indptr[-1] == len(data)
        and bool((np.diff(indptr) >= 0).all())
        and (len(indices) == 0 or (indices.min() >= 0 and indices.max() < shape[1]))
        and bool(np.isfinite(data).all())
    )
    if not fits:
        raise DataError(
            f"checked_features: got {source} with {data.dtype}{data.shape} values, {indices.dtype}{indices.shape} "
            f"columns and {indptr.dtype}{indptr.shape} row starts, which are no CSR matrix of shape {tuple(shape)}."
        )
    with np.errstate(over="ignore"):
        matrix = csr_matrix((data.astype(np.float32), indices, indptr), shape=tuple(shape))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def checked_citation(
    name: str,
    source: str,
    features: csr_matrix | None,
    labels: np.ndarray,
    edges: np.ndarray,
    test_nodes: np.ndarray,
) -> Citation:
    """Return the network in canonical form (int64, edges and test nodes in order), or raise DataError."""
    labels = _integers(name, source, "labels", labels, (None,), -1, 1000)
    n = len(labels)
    edges = _integers(name, source, "edges", edges, (None, 2), 0, n)
    test_nodes = _integers(name, source, "test_nodes", test_nodes, (None,), 0, n)
    if features is not None and features.shape[0] != n:
        raise DataError(
            f"load_citation({name!r}): got {source}, words of {features.shape[0]} documents and {n} labels."
        )
    return Citation(
        name=name,
        features=features,
        labels=labels,
        edges=edges[np.lexsort((edges[:, 1], edges[:, 0]))],
        known_nodes=np.flatnonzero(labels >= 0),
        test_nodes=np.sort(test_nodes),
    )


def _integers(
    name: str, source: str, what: str, array: np.ndarray, shape: tuple[int | None, ...], low: int, high: int
) -> np.ndarray:
    """Return the array as int64; its lengths must be those of ``shape`` (None: any), its values in [low, high)."""
    where = f"load_citation({name!r}): got {source}, {what}"
    lengths = zip(array.shape, shape, strict=False)
    if (
        array.ndim != len(shape)
        or any(want not in (None, got) for got, want in lengths)
        or array.dtype.kind not in "iu"
    ):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise DataError(f"{where} of dtype {array.dtype} and shape {array.shape}, expected integers ({expected}).")
    if array.size and not (low <= array.min() and array.max() < high):
        raise DataError(f"{where} from {array.min()} to {array.max()}, expected {low} <= value < {high}.")
    return array.astype(np.int64)
