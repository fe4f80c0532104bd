"""``igt.diagnose`` on four networks: the paper's, two that contract, and the equilibrium network once it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm import tqdm

import implicitgrad.torch as igt
from benchmarks.paper.records import Records

from .comparison import trained_equilibrium
from .graph import Graph
from .why import Network, Variant

__all__ = ["diagnose_all"]

MAX_ITERS = 60  # products a solver may spend: of 173,312 numbers, more would be a matter of minutes
DIAGNOSED = (Variant("sum", 1.0, False), Variant("mean", 0.25, False), Variant("mean", 0.25, True))


def diagnose_all(graph: Graph, S: torch.Tensor, steps: int, epochs: int, records: Records) -> None:
    """Write a report on each network, unless there is one."""
    networks: dict[str, Callable[[], tuple[Any, torch.Tensor, torch.Tensor]]] = {
        variant.name: lambda variant=variant: _after(variant, graph, S, steps) for variant in DIAGNOSED
    }
    networks[f"equilibrium network, {epochs} epochs"] = lambda: _trained(graph, S, epochs)
    for name, make in tqdm(list(_without_record(networks, graph, steps, records)), desc="diagnoses", unit="network"):
        start = time.perf_counter()
        update, h, x = make()
        report = igt.diagnose(update, h, x, max_iters=MAX_ITERS, rtol=1e-3)
        result = {"verdict": report.verdict, "page": str(report)}
        records.add(_key(graph, name, steps), result, time.perf_counter() - start)


def _without_record(networks: dict[str, Any], graph: Graph, steps: int, records: Records) -> Iterator[tuple[str, Any]]:
    return ((name, make) for name, make in networks.items() if records.find(**_key(graph, name, steps)) is None)


def _key(graph: Graph, name: str, steps: int) -> dict[str, object]:
    return {"table": "diagnosis", "graph": graph.name, "network": name, "steps": steps}


def _after(
    variant: Variant, graph: Graph, S: torch.Tensor, steps: int
) -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return an untrained network, its last state, and what the features add to its gates."""
    propagation = graph.adjacency if variant.propagation == "sum" else S
    network = Network(propagation, graph.features.shape[1], variant, torch.Generator().manual_seed(0))
    x, h = network.input(graph.features), graph.features
    with torch.no_grad():
        for _ in range(steps):
            h = network(h, x)
    return network, h, x


def _trained(
    graph: Graph, S: torch.Tensor, epochs: int
) -> tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the equilibrium network of the first split, its fixed point, and its encoded features."""
    network, _ = trained_equilibrium(graph, S, graph.split(0), 0, epochs)
    network.eval()
    with torch.no_grad():
        x = network.encode(graph.features)
        return network.update, network.equilibrium(x), x
