"""Citation networks (Cora, Citeseer, Pubmed): documents, their words, their classes, and who cites whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from .errors import DataError
from .npz import read_npz

CITATION_FILES = {  # the archives that hold each network, the fuller one first
    "cora": ("cora.npz",),
    "citeseer": ("citeseer.npz",),
    "pubmed": ("pubmed.npz", "pubmed-graph-only.npz"),
}
_FEATURES = ("feature_data", "feature_indices", "feature_indptr", "feature_shape")


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


def citation_from_npz(name: str, path: Path) -> Citation:
    """Read the network from an archive; DataError where an array is missing or makes no sense."""
    arrays = read_npz(path, ("labels", "edges", "test_nodes"), _FEATURES)
    features = None
    if present := [part for part in _FEATURES if part in arrays]:
        if len(present) < len(_FEATURES):
            raise DataError(f"citation_from_npz: got {path} with {present}, expected all or none of {_FEATURES}.")
        features = _features(path, len(arrays["labels"]), *(arrays[part] for part in _FEATURES))
    return checked_citation(name, str(path), features, arrays["labels"], arrays["edges"], arrays["test_nodes"])


def _features(path: Path, n: int, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray):
    if shape.shape != (2,) or n not in shape.tolist():
        raise DataError(f"citation_from_npz: got {path} with feature_shape {shape.tolist()}, expected ({n}, d).")
    # An archive may hold the transpose by columns (d, n), which is the matrix by rows: the arrays are the same.
    d = int(shape[1] if shape[0] == n else shape[0])
    try:
        matrix = csr_matrix((data.astype(np.float32), indices, indptr), shape=(n, d))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"citation_from_npz: got {path}, whose features are no ({n}, {d}) CSR matrix: {error}."
        ) from error
    return matrix


def checked_citation(name: str, source: str, features, labels, edges, test_nodes) -> Citation:
    """Return the network in canonical form: int64, edges in lexicographic order, features with sorted columns."""
    n = len(labels)
    for what, array, dimensions, low in (
        ("labels", labels, 1, -1),
        ("edges", edges, 2, 0),
        ("test_nodes", test_nodes, 1, 0),
    ):
        where = f"load_citation({name!r}): got {source}, {what}"
        if array.ndim != dimensions or array.dtype.kind not in "iu" or (dimensions == 2 and array.shape[1] != 2):
            expected = "(m, 2)" if dimensions == 2 else "(k,)"
            raise DataError(f"{where} of dtype {array.dtype} and shape {array.shape}, expected integers {expected}.")
        if array.size and not (low <= array.min() and array.max() < n):
            raise DataError(f"{where} from {array.min()} to {array.max()}, expected {low} <= value < {n}.")
    labels, edges, test_nodes = (array.astype(np.int64) for array in (labels, edges, test_nodes))
    if features is not None:
        features.sum_duplicates()
        features.eliminate_zeros()
    return Citation(
        name=name,
        features=features,
        labels=labels,
        edges=edges[np.lexsort((edges[:, 1], edges[:, 0]))],
        known_nodes=np.flatnonzero(labels >= 0),
        test_nodes=np.sort(test_nodes),
    )
