"""Why do the recurrent networks of Table A3 stay behind? Questions to untrained networks and to trained ones.

    rho(J)       spectral radius of J at the state after T steps
    size         norm(h^T) / norm(h^0): has the state gone to zero?
    last update  norm(F(h) - h) / norm(F(h)) there: is it a fixed point?
    growth       of a difference of 1e-6 at the start, in float64: below 1 it is forgotten, far above 1 is chaos
    start        norm(h - h') / norm(h^0 - h'^0) for the features of other nodes as initial state: what is left of it
    features     the same for a network all of whose features are those of other nodes
    readable     the accuracy of logistic regression on h^T at the 1 % splits: what of the features can be used

The eight networks are the paper's and its neighbours: sum or symmetric normalization, He's weights or a quarter of
them, features in the initial state alone or in the input of every step.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import implicitgrad as ig
import implicitgrad.torch as igt
from benchmarks.paper.records import Records

from .graph import Graph, Propagate

__all__ = ["Variant", "ask_all", "ask_trained"]


@dataclass(frozen=True)
class Variant:
    """One of the eight networks.

    Attributes
    ----------
    propagation : {"sum", "mean"}
    weights : float
        Factor on He's weights.
    input : bool
        Whether the features enter at every step, beside being the initial state.
    """

    propagation: str
    weights: float
    input: bool

    @property
    def name(self) -> str:
        """As it stands in the records."""
        return f"{self.propagation}, weights x {self.weights:g}, features {'in the map' if self.input else 'at first'}"


VARIANTS = [Variant(*choice) for choice in itertools.product(("sum", "mean"), (1.0, 0.25), (False, True))]


class Network:
    """``F(h, x)``: the paper's cell with an input ``x`` beside the message; zero for the paper's own."""

    def __init__(self, propagation: torch.Tensor, size: int, variant: Variant, generator: torch.Generator) -> None:
        self.propagation, self.variant = propagation, variant
        self.W, self.U, self.V = (
            variant.weights * torch.nn.init.kaiming_normal_(torch.empty(3 * size, size), generator=generator)
            for _ in range(3)
        )
        self.b, self.c = torch.zeros(3 * size), torch.zeros(3 * size)

    def input(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the features add to the gates."""
        return features @ self.V.T if self.variant.input else features.new_zeros(len(features), len(self.V))

    def double(self) -> Network:
        """Return the same network in float64."""
        other = copy.copy(self)
        for name in ("propagation", "W", "U", "V", "b", "c"):
            setattr(other, name, getattr(self, name).double())
        return other

    def __call__(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        k = h.shape[1]
        message = x + Propagate.apply(h, self.propagation) @ self.W.T + self.b
        state = h @ self.U.T + self.c
        r, z = torch.sigmoid(message[:, : 2 * k] + state[:, : 2 * k]).chunk(2, dim=1)
        q = torch.tanh(message[:, 2 * k :] + r * state[:, 2 * k :])
        return torch.lerp(q, h, z)


def ask(network: Network, graph: Graph, steps: int, seeds: range) -> dict[str, Any]:
    """Return the answers of one network."""
    features = graph.features
    others = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
    x, x_others = network.input(features), network.input(others)
    with torch.no_grad():
        h, from_others, of_others = features, others, others
        for _ in range(steps):
            h, from_others, of_others = network(h, x), network(from_others, x), network(of_others, x_others)
        after = network(h, x)
    radius = ig.spectral_radius(igt.vjp_operator(network, h, x), rtol=1e-2, max_iters=100, on_failure="return")
    apart = float((others - features).norm())
    return {
        "radius": float(radius.value),
        "radius_status": radius.status.name,
        "size": float(h.norm() / features.norm()),
        "update": float((after - h).norm() / after.norm()),
        "start": float((from_others - h).norm()) / apart,
        "features": float((of_others - h).norm()) / apart,
        "accuracy": [readable(h, graph, seed) for seed in seeds],
        "growth": growth(network, features, steps),
    }


def growth(network: Network, features: torch.Tensor, steps: int, relative: float = 1e-6) -> float:
    """Return how a small difference of the initial state has grown after ``steps`` updates, in float64."""
    network, h = network.double(), features.double()
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=h.dtype)
    noise *= relative * h.norm() / noise.norm()
    other, x = h + noise, network.input(h)
    with torch.no_grad():
        for _ in range(steps):
            h, other = network(h, x), network(other, x)
    return float((other - h).norm() / noise.norm())


def readable(h: torch.Tensor, graph: Graph, seed: int) -> float:
    """Return the validation accuracy in per cent of logistic regression on a state, at one of the paper's splits."""
    from sklearn.linear_model import LogisticRegression

    split = graph.split(seed)
    X, y = h.double().numpy(), graph.labels.numpy()
    X = X / max(np.abs(X).max(), 1e-300)  # a state of any size: only what is in it counts
    model = LogisticRegression(C=100.0, max_iter=300).fit(X[split.train], y[split.train])
    return 100 * float(model.score(X[split.validation], y[split.validation]))


def ask_all(graph: Graph, S: torch.Tensor, steps: int, seeds: range, records: Records) -> None:
    """Ask each of the eight untrained networks, unless there is a record of it."""
    for variant in tqdm(VARIANTS, desc="why", unit="network"):
        key = {"table": "why", "graph": graph.name, "network": variant.name, "steps": steps}
        if records.find(**key) is None:
            start = time.perf_counter()
            propagation = graph.adjacency if variant.propagation == "sum" else S
            network = Network(propagation, graph.features.shape[1], variant, torch.Generator().manual_seed(0))
            records.add(key, ask(network, graph, steps, seeds), time.perf_counter() - start)


def ask_trained(graph: Graph, folder: Path, method: str, steps: int, records: Records) -> None:
    """Ask the network that a run of Table A3 has trained furthest, where a checkpoint is at hand."""
    key = {"table": "why", "graph": graph.name, "network": f"{method}, trained", "steps": steps}
    checkpoints = sorted(folder.glob(f"{graph.name}-{method}-[0-9]*.pt"))
    if not checkpoints or records.find(**key) is not None:
        return
    state = max((torch.load(checkpoint, weights_only=True) for checkpoint in checkpoints), key=lambda s: s["epoch"])
    start = time.perf_counter()
    network = Network(graph.adjacency, graph.features.shape[1], VARIANTS[0], torch.Generator())
    network.W, network.U, network.b, network.c = state["cell"]
    result = ask(network, graph, steps, range(1)) | {"epoch": state["epoch"]}
    records.add(key, result, time.perf_counter() - start)
