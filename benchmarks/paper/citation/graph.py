"""A citation network as the networks see it: PCA features, the sum over neighbours, and random splits of the nodes.

Who uses it: every experiment of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix

from benchmarks.paper.data import Citation

__all__ = ["Graph", "Propagate", "Split", "adjacency_matrix", "simple_matrix", "sparse_tensor", "split_nodes"]


@dataclass(frozen=True, eq=False)
class Graph:
    """A network of ``n`` nodes with ``d`` features each.

    Attributes
    ----------
    name : str
        Stands in the key of every record.
    features : float32 tensor, shape (n, d)
    labels : int64 tensor, shape (n,)
    adjacency : sparse CSR float32 tensor, shape (n, n)
        Entry ``(i, j)`` counts how often the edge from ``j`` to ``i`` is listed; symmetric.
    train_share : float
        The share of the nodes that is trained on.
    """

    name: str
    features: torch.Tensor
    labels: torch.Tensor
    adjacency: torch.Tensor
    train_share: float = 0.01

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    def to(self, device: str) -> Graph:
        """Return the same graph on another device."""
        parts = (part.to(device) for part in (self.features, self.labels, self.adjacency))
        return Graph(self.name, *parts, self.train_share)

    def split(self, seed: int) -> Split:
        """Return a random split of the nodes."""
        return split_nodes(len(self.labels), seed, self.train_share)

    @classmethod
    def from_citation(cls, data: Citation, size: int) -> Graph:
        """Return the network with its words reduced to ``size`` numbers a node, as the paper does, on all nodes."""
        from sklearn.decomposition import PCA

        if data.features is None:
            raise ValueError(f"Graph.from_citation: got {data.name} without features, expected a matrix of words.")
        features = PCA(size, random_state=1234).fit_transform(data.features.toarray())
        labels = torch.from_numpy(data.labels).long()
        adjacency = sparse_tensor(adjacency_matrix(data.edges, len(data.labels)))
        return cls(data.name, torch.from_numpy(features.astype(np.float32)), labels, adjacency)


def adjacency_matrix(edges: np.ndarray, n: int) -> csr_matrix:
    """Return the matrix that sums over incoming neighbours; an edge that is listed twice counts twice."""
    matrix = coo_matrix((np.ones(len(edges), np.float32), (edges[:, 1], edges[:, 0])), shape=(n, n)).tocsr()
    if (matrix != matrix.T).nnz:
        raise ValueError("adjacency_matrix: got edges in one direction only, expected each in both.")
    return matrix


def simple_matrix(adjacency: torch.Tensor) -> csr_matrix:
    """Return the matrix of a graph with each edge once, of weight 1."""
    parts = (adjacency.crow_indices(), adjacency.col_indices())
    indptr, indices = (part.cpu().numpy() for part in parts)
    return csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=tuple(adjacency.shape))


def sparse_tensor(matrix: csr_matrix) -> torch.Tensor:
    """Return a SciPy matrix as torch's; its layout is checked here once, and not at each use."""
    indptr, indices, values = (torch.from_numpy(a) for a in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(indptr.long(), indices.long(), values, matrix.shape, check_invariants=True)


class Propagate(torch.autograd.Function):
    """``h -> A h`` for a symmetric sparse ``A``: torch's own backward forms the transpose anew at each call."""

    @staticmethod
    def forward(h: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        return A @ h

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.A = inputs[1]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return Propagate.apply(grad, ctx.A), None


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of nodes, as index tensors."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def split_nodes(n: int, seed: int, train: float = 0.01, validation: float = 0.49) -> Split:
    """Return the paper's random split: 1 % of the nodes to train on, 49 % to validate on, the rest to test on."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    first = int(train * n)
    second = first + int(validation * n)
    return Split(order[:first], order[first:second], order[second:])
