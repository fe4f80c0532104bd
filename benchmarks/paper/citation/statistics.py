"""Table A2: what the citation networks consist of, counted in several ways, since the paper does not say which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.paper.data import Citation

__all__ = ["PAPER", "Counts", "count"]

PAPER = {"cora": (2708, 5429, 7, 1433), "pubmed": (19717, 44338, 3, 500)}  # nodes, edges, classes, features


@dataclass(frozen=True)
class Counts:
    """What was counted.

    Attributes
    ----------
    nodes, classes : int
    links : int
        Half of the rows of the edge list, as published: each link stands there in both directions, and some stand there
        more than once, or join a document with itself.
    edges : int
        Different pairs of different nodes.
    repeated, loops : int
        Links beyond the first between one pair of nodes; links of a node with itself.
    features : int or None
        Words; None where the features are not at hand.
    isolated, unlabelled : int
        Nodes without an edge; nodes without a class.
    """

    nodes: int
    links: float
    edges: int
    repeated: float
    loops: float
    classes: int
    features: int | None
    isolated: int
    unlabelled: int


def count(data: Citation) -> Counts:
    """Count one network."""
    edges = data.edges
    is_loop = edges[:, 0] == edges[:, 1]
    pairs = np.sort(edges[~is_loop], axis=1)
    different = len(np.unique(pairs, axis=0))
    return Counts(
        nodes=len(data.labels),
        links=len(edges) / 2,
        edges=different,
        repeated=len(pairs) / 2 - different,
        loops=is_loop.sum() / 2,
        classes=len(np.unique(data.labels[data.labels >= 0])),
        features=None if data.features is None else data.features.shape[1],
        isolated=len(data.labels) - len(np.unique(pairs)),
        unlabelled=int((data.labels < 0).sum()),
    )
