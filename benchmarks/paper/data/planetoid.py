"""The public files of the citation networks, from Yang, Cohen, Salakhutdinov (ICML 2016, "Planetoid").

``allx`` and ``ally`` hold the words and the classes (one-hot) of the documents that come first, ``tx`` and ``ty`` those
of the test documents in the order of ``test.index``, ``graph`` each document's neighbours. Citeseer leaves 15 numbers
between its test documents out: those have no words and no class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from .citation import Citation, checked_citation, checked_features
from .digest import check_content
from .errors import DataError
from .files import read_published
from .registry import Published
from .unpickle import Array, Neighbours, Sparse, unpickled


def citation_from_public_files(name: str, published: Published, folder: Path) -> Citation:
    """Read the network from its public files; each is compared with its checksum before it is parsed."""
    prefix = f"ind.{name}."
    parts = {
        file.removeprefix(prefix): (file, read_published(folder, file, sha256))
        for file, sha256 in published.files.items()
    }
    test_nodes = _test_index(*parts["test.index"])
    features = _features(*parts["allx"]), _features(*parts["tx"])
    labels = _labels(*parts["ally"]), _labels(*parts["ty"])
    known, n = len(labels[0]), int(test_nodes.max()) + 1
    consistent = (
        features[0].shape[0] == known
        and features[1].shape[0] == len(labels[1]) == len(test_nodes) == len(np.unique(test_nodes))
        and features[0].shape[1] == features[1].shape[1]
        and test_nodes.min() >= known
    )
    if not consistent:
        raise DataError(
            f"citation_from_public_files: got {folder}/{prefix}* with {known} classes, words "
            f"{features[0].shape} and {features[1].shape}, {len(labels[1])} test classes and {len(test_nodes)} test "
            "documents, which do not belong together. Fetch all of them again."
        )
    # Row i of tx describes document test_nodes[i]; a document that neither part describes keeps an empty row.
    where = np.full(n, known + len(test_nodes))
    where[:known] = np.arange(known)
    where[test_nodes] = known + np.arange(len(test_nodes))
    words = vstack([*features, csr_matrix((1, features[0].shape[1]), dtype=np.float32)], format="csr")[where]
    classes = np.concatenate([*labels, [-1]])[where]
    citation = checked_citation(name, str(folder), words, classes, _edges(*parts["graph"]), test_nodes)
    digests = {part: digest for part, digest in citation.digests().items() if part in published.content}
    check_content(f"{folder}/{prefix}*", digests, published.content)
    return citation


def _array(source: str, value: Any, dimensions: int) -> np.ndarray:
    values = getattr(value, "values", None) if isinstance(value, Array) else None
    if values is None or values.ndim != dimensions:
        raise DataError(f"citation_from_public_files: got {source} without the array of {dimensions} dimensions.")
    return values


def _features(source: str, content: bytes) -> csr_matrix:
    value = unpickled(source, content)
    attributes = getattr(value, "attributes", {}) if isinstance(value, Sparse) else {}
    shape = attributes.get("_shape")
    if type(shape) is not tuple or len(shape) != 2 or any(type(length) is not int for length in shape):
        raise DataError(f"citation_from_public_files: got {source}, expected a CSR matrix with its shape.")
    data, indices, indptr = (_array(source, attributes.get(part), 1) for part in ("data", "indices", "indptr"))
    return checked_features(source, data, indices, indptr, shape)


def _labels(source: str, content: bytes) -> np.ndarray:
    one_hot = _array(source, unpickled(source, content), 2)
    if not np.isin(one_hot, (0, 1)).all() or one_hot.shape[1] == 0 or (one_hot.sum(axis=1) > 1).any():
        raise DataError(f"citation_from_public_files: got {source}, expected one 1 or none in each row, else zeros.")
    return np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)


def _edges(source: str, content: bytes) -> np.ndarray:
    graph = unpickled(source, content)
    pairs: list[tuple[int, int]] = []
    if isinstance(graph, Neighbours) and all(type(neighbours) is list for neighbours in graph.values()):
        pairs = [(node, neighbour) for node, neighbours in graph.items() for neighbour in neighbours]
    if not pairs or any(type(end) is not int or not 0 <= end < 2**31 for pair in pairs for end in pair):
        raise DataError(f"citation_from_public_files: got {source}, expected a dictionary of lists of documents.")
    return np.array(pairs, dtype=np.int64)


def _test_index(source: str, content: bytes) -> np.ndarray:
    lines = content.split()
    if not lines or any(not line.isdigit() or len(line) > 9 for line in lines):
        raise DataError(f"citation_from_public_files: got {source}, expected one document's number a line.")
    return np.array([int(line) for line in lines], dtype=np.int64)
