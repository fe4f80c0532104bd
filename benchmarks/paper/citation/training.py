"""One run of Table A3: one method from one seed, which may be interrupted anywhere and continued, as far as one likes.

Nothing in a run depends on where it is to end, so the first 500 epochs of a run of 2000 are a run of 500. Every 20th
epoch the state of the training pass itself is judged on the validation nodes; the best of the run is the paper's
figure. A checkpoint holds all that the rest of the run depends on: a run which was interrupted ends in the numbers, bit
by bit, of one which was not.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import implicitgrad.torch as igt

from .cell import Update, initial_cell
from .graph import Graph
from .methods import METHODS, Pass

__all__ = ["Setting", "Training"]


@dataclass(frozen=True)
class Setting:
    """The paper's settings, but for the number of epochs; they stand in the key of each record."""

    steps: int = 100
    truncate: int = 5
    every: int = 20


@dataclass
class Curves:
    """What a run has seen so far, plain numbers and lists for the checkpoint."""

    epochs: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)  # norm(F(h) - h) / norm(F(h)) at the last state
    backward: dict[str, int] = field(default_factory=dict)  # how often the adjoint solve ended in each status
    products: int = 0
    seconds: float = 0.0
    lost_at: int | None = None  # the epoch after which the parameters were not finite any more


class Training:
    """A run under way: ``advance`` makes one epoch, ``save`` and ``load`` carry it over an interruption."""

    def __init__(self, graph: Graph, method: str, seed: int, setting: Setting, device: str = "cpu") -> None:
        self.setting, self.method = setting, METHODS[method]
        self.split = graph.split(seed)
        self.graph = graph.to(device)
        self.generator = torch.Generator().manual_seed(seed)
        size = graph.features.shape[1]
        self.cell = initial_cell(size, self.generator, device)
        weight = torch.empty(graph.num_classes, size)
        torch.nn.init.kaiming_normal_(weight, generator=self.generator)
        self.readout = [p.to(device).requires_grad_() for p in (weight, torch.zeros(graph.num_classes))]
        trained = self.readout if self.method.last_state is None else [*self.cell, *self.readout]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self.update = Update(self.graph.adjacency)
        self.report = igt.Report()
        self.epoch, self.curves = 0, Curves()

    def done(self, epochs: int) -> bool:
        """Whether nothing is left to do: that many epochs were made, or the parameters are lost."""
        return self.epoch >= epochs or self.curves.lost_at is not None

    def advance(self) -> None:
        """Make one epoch: one step on the training nodes, and a look at the others if it is time for one."""
        start = time.perf_counter()
        self.epoch += 1
        h = self._last_state()
        logits = torch.nn.functional.linear(h, *self.readout)
        train = self.split.train
        loss = torch.nn.functional.cross_entropy(logits[train], self.graph.labels[train])
        if self.epoch == 1 or self.epoch % self.setting.every == 0:
            self._look(h.detach(), logits.detach(), float(loss.detach()))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if (solution := self.report.backward) is not None:
            name = solution.status.name
            self.curves.backward[name] = self.curves.backward.get(name, 0) + 1
            self.curves.products += solution.num_matvecs + solution.num_rmatvecs
        parameters = self.optimizer.param_groups[0]["params"]
        if not all(bool(p.detach().sum().isfinite()) for p in parameters):
            self._give_up()
        self.curves.seconds += time.perf_counter() - start

    def _last_state(self) -> torch.Tensor:
        features = self.graph.features
        if self.method.last_state is None:
            return features
        setting = self.setting
        this = Pass(self.update, features, self.cell, setting.steps, setting.truncate, self.generator)
        return self.method.last_state(this, self.report)

    def _look(self, h: torch.Tensor, logits: torch.Tensor, loss: float) -> None:
        right = (logits.argmax(dim=1) == self.graph.labels).double()
        curves = self.curves
        curves.epochs.append(self.epoch)
        curves.loss.append(loss)
        curves.validation.append(100 * float(right[self.split.validation].mean()))
        curves.test.append(100 * float(right[self.split.test].mean()))
        if self.method.last_state is not None:
            with torch.no_grad():
                after = self.update(h, *self.cell)
            curves.change.append(float((after - h).norm() / after.norm()))

    def _give_up(self) -> None:
        """Judge the network of NaN, too: it would predict the same for the rest of the run, so there is no rest."""
        self.curves.lost_at = self.epoch
        nan = torch.full((len(self.graph.labels), self.graph.num_classes), torch.nan)
        right = (nan.argmax(dim=1) == self.graph.labels.cpu()).double()
        self.curves.epochs.append(self.epoch + 1)
        self.curves.loss.append(float("nan"))
        self.curves.validation.append(100 * float(right[self.split.validation].mean()))
        self.curves.test.append(100 * float(right[self.split.test].mean()))

    def result(self) -> dict[str, Any]:
        """Return what is recorded: the best validation accuracy, the test accuracy there, and the curves, thinned."""
        curves = self.curves
        best = max(range(len(curves.validation)), key=curves.validation.__getitem__)
        thin = slice(0, None, max(1, len(curves.epochs) // 25))
        return {
            "validation": curves.validation[best],
            "test": curves.test[best],
            "best_epoch": curves.epochs[best],
            "first_validation": curves.validation[0],
            "epochs": curves.epochs[thin],
            "loss": [round(v, 4) for v in curves.loss[thin]],
            "validation_curve": [round(v, 2) for v in curves.validation[thin]],
            "change": [float(f"{v:.3g}") for v in curves.change[thin]],
            "looks": len(curves.change),
            "looks_at_a_fixed_point": sum(v < 1e-5 for v in curves.change),
            "backward": curves.backward,
            "products": curves.products,
            "lost_at": curves.lost_at,
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; at no moment is there half of one."""
        state = {
            "epoch": self.epoch,
            "cell": [p.detach() for p in self.cell],
            "readout": [p.detach() for p in self.readout],
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "curves": asdict(self.curves),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint was written; nothing in it is executed."""
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for mine, saved in zip([*self.cell, *self.readout], [*state["cell"], *state["readout"]], strict=True):
                mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.epoch, self.curves = state["epoch"], Curves(**state["curves"])
