"""Classifiers at the paper's random splits: who uses the graph, and who uses it best?

Logistic regression on the PCA features, label propagation without features, a two-layer GCN and the equilibrium
network, also with a penalty and with a truncated gradient, see the same splits. They are judged as the rows of Table A3
are: the best validation accuracy of a run, and the test accuracy where it was reached. Differences are paired, split by
split.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

import implicitgrad as ig
from benchmarks.paper.records import Records

from .equilibrium import EquilibriumNetwork
from .gcn import GCN
from .graph import Graph, Split

__all__ = ["CLASSIFIERS", "compare", "comparison_key", "trained_equilibrium"]

EVERY = 5  # epochs between two looks at the validation nodes
SIZE = 32  # numbers of the state at each node
WEIGHT = 1.0  # of the penalty


def compare(graph: Graph, S: torch.Tensor, names: list[str], seeds: range, epochs: int, records: Records) -> None:
    """Make the runs of this comparison that have no record yet."""
    runs = [(seed, name) for seed in seeds for name in names]
    for seed, name in tqdm(runs, desc="comparison", unit="run"):
        key = comparison_key(graph.name, name, seed, epochs)
        if records.find(**key) is None:
            start = time.perf_counter()
            result = CLASSIFIERS[name](graph, S, graph.split(seed), seed, epochs)
            records.add(key, result, time.perf_counter() - start)


def comparison_key(graph: str, method: str, seed: int, epochs: int) -> dict[str, object]:
    """Return what tells this run from any other."""
    return {"table": "comparison", "graph": graph, "method": method, "seed": seed, "epochs": epochs}


def logistic_regression(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Fit the features of the training nodes, with scikit-learn's own settings."""
    from sklearn.linear_model import LogisticRegression

    X, y = graph.features.numpy(), graph.labels.numpy()
    model = LogisticRegression(max_iter=2000).fit(X[split.train], y[split.train])
    return _judged(torch.from_numpy(model.predict(X)), graph, split)


def label_propagation(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Solve ``F = a S F + (1 - a) Y`` by iteration (Zhou et al. 2004); ``a`` is chosen on the validation nodes."""
    Y = torch.zeros(len(graph.labels), graph.num_classes)
    Y[split.train, graph.labels[split.train]] = 1
    results = []
    for a in (0.5, 0.8, 0.9, 0.95, 0.99):
        F = Y
        for _ in range(300):
            F = a * (S @ F) + (1 - a) * Y
        results.append(_judged(F.argmax(dim=1), graph, split) | {"a": a})
    return max(results, key=lambda result: result["validation"])


def gcn(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Train the two-layer GCN as its paper does, with 64 units; it gets four times the epochs."""
    torch.manual_seed(seed)
    network = GCN(S, graph.features.shape[1], 64, graph.num_classes)
    return _trained(network, graph, split, 4 * epochs, lr=0.01)


def equilibrium(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Train the equilibrium network with a solved adjoint."""
    return trained_equilibrium(graph, S, split, seed, epochs)[1]


def trained_equilibrium(
    graph: Graph,
    S: torch.Tensor,
    split: Split,
    seed: int,
    epochs: int,
    weight: float = 0.0,
    adjoint: ig.Solver | None = None,
) -> tuple[EquilibriumNetwork, dict[str, Any]]:
    """Return the network of the last epoch, and the record; it counts the solves of the loss, not of the penalty.

    ``weight`` is that of the penalty on the norm of the Jacobian.
    """
    torch.manual_seed(seed)
    network = EquilibriumNetwork(S, graph.features.shape[1], SIZE, graph.num_classes, adjoint=adjoint)
    solves = {"forward": Counter(), "backward": Counter(), "calls": 0, "products": 0}

    def penalty(epoch: int) -> torch.Tensor:
        return weight * network.penalty(graph.features, epoch) if weight else torch.zeros(())

    def after_forward() -> None:
        forward = network.report.forward
        solves["forward"][forward.status.name] += 1
        solves["calls"] += forward.num_matvecs

    def after_backward() -> None:
        backward = network.report.backward
        solves["backward"][backward.status.name] += 1
        solves["products"] += backward.num_matvecs + backward.num_rmatvecs

    result = _trained(network, graph, split, epochs, 0.02, penalty, after_forward, after_backward)
    return network, result | solves


def regularized(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Train the equilibrium network with the penalty."""
    return trained_equilibrium(graph, S, split, seed, epochs, WEIGHT)[1]


def truncated(graph: Graph, S: torch.Tensor, split: Split, seed: int, epochs: int) -> dict[str, Any]:
    """Train the equilibrium network with the gradient of the paper's best method."""
    return trained_equilibrium(graph, S, split, seed, epochs, adjoint=ig.Neumann(max_iters=5, rtol=0.0))[1]


def _nothing() -> None:
    pass


def _trained(
    network: torch.nn.Module,
    graph: Graph,
    split: Split,
    epochs: int,
    lr: float,
    penalty: Callable[[int], torch.Tensor] | None = None,
    after_forward: Callable[[], None] = _nothing,
    after_backward: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """Train with Adam on the training nodes, and return the best look at the validation nodes."""
    optimizer = torch.optim.Adam(network.parameter_groups(), lr=lr)
    looks = []
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad()
        scores = network(graph.features)
        after_forward()
        loss = torch.nn.functional.cross_entropy(scores[split.train], graph.labels[split.train])
        loss.backward()
        after_backward()
        if penalty is not None and (extra := penalty(epoch)).requires_grad:
            extra.backward()
        optimizer.step()
        if epoch % EVERY == 0:
            network.eval()
            with torch.no_grad():
                scores = network(graph.features)
            after_forward()
            looks.append({"epoch": epoch, "loss": float(loss.detach())} | _judged(scores.argmax(dim=1), graph, split))
    best = max(looks, key=lambda look: look["validation"])
    return best | {"validation_curve": [round(look["validation"], 2) for look in looks]}


def _judged(predicted: torch.Tensor, graph: Graph, split: Split) -> dict[str, float]:
    """Return the accuracies in per cent."""
    right = 100 * (predicted == graph.labels).double()
    return {"validation": float(right[split.validation].mean()), "test": float(right[split.test].mean())}


CLASSIFIERS = {
    "logistic": logistic_regression,
    "labels": label_propagation,
    "gcn": gcn,
    "equilibrium": equilibrium,
    "regularized": regularized,
    "truncated": truncated,
}
