"""A small graph from scikit-learn's bundled digits, for a run that needs neither data files nor a network."""

from __future__ import annotations

import numpy as np
import torch

from .graph import Graph, adjacency_matrix, sparse_tensor

__all__ = ["digits_graph"]


def digits_graph(n: int = 300, neighbours: int = 4, size: int = 16) -> Graph:
    """Return the first ``n`` digits, each joined to its nearest ones, with ``size`` principal components as features.

    A tenth of the nodes is trained on: 1 % of them would be three digits.
    """
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.neighbors import kneighbors_graph

    digits = load_digits()
    images, labels = digits.data[:n] / 16, digits.target[:n]
    nearest = kneighbors_graph(images, neighbours).tocoo()
    both = np.concatenate([np.stack([nearest.row, nearest.col], 1), np.stack([nearest.col, nearest.row], 1)])
    features = PCA(size, random_state=1234).fit_transform(images).astype(np.float32)
    adjacency = sparse_tensor(adjacency_matrix(np.unique(both, axis=0), n))
    return Graph(f"digits-{n}", torch.from_numpy(features), torch.from_numpy(labels).long(), adjacency, 0.1)
