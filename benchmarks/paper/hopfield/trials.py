"""Trials of one cell as one tensor program: a network each, one Adam for all of them, nothing shared between them.

Each trial has its own first weights, order of the images, start of RBP and corruption, drawn from its own number alone,
the same for every method; so a trial gives the same result alone and among others, and one that runs off to NaN stays
alone with it. Used by ``cells.py``.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .digits import Digits, erase_half
from .methods import UPDATES, run_method
from .network import drive, first_couplings, losses, settled, symmetrized
from .settings import Setting

__all__ = ["Trials"]


class Trials:
    """Networks in training, one for each number in ``numbers``, all with one method and one truncation."""

    def __init__(
        self, setting: Setting, method: str, truncate: int, numbers: list[int], digits: Digits, device: str
    ) -> None:
        self.setting, self.method, self.truncate, self.numbers = setting, method, truncate, numbers
        self.digits, self.device = digits, device
        seeds = [_seeds(number) for number in numbers]
        pixels = digits.side**2
        couplings = first_couplings(pixels, setting.hidden, setting.scale, [weights for weights, *_ in seeds])
        self.inner, self.clamped = (block.to(device).requires_grad_() for block in couplings)
        self.optimizer = torch.optim.Adam([self.inner, self.clamped], fused=True)
        self.every = -(-len(digits.images) // setting.images_per_step)  # steps an epoch
        self.orders = [torch.Generator().manual_seed(order) for _, order, *_ in seeds]
        self.starts = [torch.Generator().manual_seed(start) for _, _, start, _ in seeds]
        self.images = torch.from_numpy(digits.flat).to(device)
        erased = np.stack([erase_half(digits.flat, seed) for *_, seed in seeds])
        self.corrupted = torch.from_numpy(erased).to(device)
        self.curve: list[list[float]] = []  # (epochs, trials): the mean of the losses that an epoch met
        self.forward: list[Counter[str]] = [Counter() for _ in numbers]
        self.backward: list[Counter[str]] = [Counter() for _ in numbers]
        self.steps = self.updates = self.products = 0
        self.seconds = 0.0
        self.untrained = self.evaluate()

    @property
    def epoch(self) -> int:
        return len(self.curve)

    @property
    def done(self) -> bool:
        return self.epoch == self.setting.epochs

    def advance(self) -> None:
        """Train for one epoch: each image once, in an order of each trial's own."""
        began = time.perf_counter()
        orders = torch.stack([torch.randperm(len(self.images), generator=order) for order in self.orders])
        parts = orders.to(self.device).split(self.setting.images_per_step, dim=1)
        met = torch.cat([self.step(self.images[part]) for part in parts], dim=1)
        self.curve.append(met.mean(dim=1).tolist())
        self.seconds += time.perf_counter() - began

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """Make one step of Adam for ``images`` ``(trials, m, pixels)``; return their losses before it ``(trials, m)``.

        The loss is summed over the images, so that the adjoint system of an image is that of the reference code, which
        takes one image a step; Adam does not see the factor.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sent = drive(images, self.clamped)
        this = run_method(self.method, self.truncate, self.inner, sent, self.uniform)
        met = losses(this.state, images)
        met.sum().backward()
        symmetrized(self.inner.grad)
        self.optimizer.param_groups[0]["lr"] = 2 * self.rate()  # of V, twice that of W: see ``symmetrized``
        self.optimizer.step()
        self.count(this.report, this.updates)
        return met.detach()

    def rate(self) -> float:
        """Return the rate of the step that comes."""
        if self.setting.schedule == "constant":
            return self.setting.rate
        return self.setting.rate * 0.5 * (1 + math.cos(math.pi * self.steps / (self.setting.epochs * self.every)))

    def uniform(self, shape: torch.Size) -> torch.Tensor:
        """Return RBP's start, from [0, 1): each trial draws its own."""
        return torch.stack([torch.rand(shape[1:], generator=start) for start in self.starts]).to(self.device)

    def count(self, report: Any, updates: int) -> None:
        """Write down how the solves of each trial ended."""
        self.steps += 1
        self.updates += updates
        for told, counters in ((report.forward, self.forward), (report.backward, self.backward)):
            if told is not None:
                for statuses, counter in zip(told.status, counters, strict=True):
                    counter.update(status.name for status in statuses)
        if (solve := report.backward) is not None:
            self.products += solve.num_matvecs + solve.num_rmatvecs

    def recall(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the output units show after 50 updates, ``(trials, 10, pixels)``."""
        with torch.no_grad():
            state, _ = settled(self.inner, drive(images, self.clamped), UPDATES)
        return state[..., -images.shape[-1] :]

    def evaluate(self) -> list[float]:
        """Return the mean loss of the ten images, a number a trial."""
        images = self.images.expand(len(self.numbers), -1, -1)
        return losses(self.recall(images), images).mean(dim=1).tolist()

    def save(self, path: Path) -> None:
        """Write a checkpoint; a file is there whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        torch.save(
            {
                "of": [asdict(self.setting), self.method, self.truncate, self.numbers],
                "couplings": [self.inner.detach(), self.clamped.detach()],
                "optimizer": self.optimizer.state_dict(),
                "generators": [generator.get_state() for generator in (*self.orders, *self.starts)],
                "counts": [[dict(counter) for counter in counters] for counters in (self.forward, self.backward)],
                "totals": [self.steps, self.updates, self.products, self.seconds],
                "curve": self.curve,
            },
            fresh,
        )
        fresh.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; ValueError unless it is of these very trials."""
        kept = torch.load(path, map_location=self.device, weights_only=True)
        of = [asdict(self.setting), self.method, self.truncate, self.numbers]
        if kept["of"] != of:
            raise ValueError(f"{path}: got a checkpoint of {kept['of']}, expected one of {of}. Remove it.")
        with torch.no_grad():
            for block, value in zip((self.inner, self.clamped), kept["couplings"], strict=True):
                block.copy_(value)
        self.optimizer.load_state_dict(kept["optimizer"])
        for generator, state in zip((*self.orders, *self.starts), kept["generators"], strict=True):
            generator.set_state(state.cpu())
        self.forward, self.backward = ([Counter(counts) for counts in part] for part in kept["counts"])
        self.steps, self.updates, self.products, self.seconds = kept["totals"]
        self.curve = kept["curve"]


def _seeds(number: int) -> list[int]:
    """Return independent seeds of the weights, the orders, RBP's starts and the erased pixels of a trial."""
    return np.random.SeedSequence(number).generate_state(4, np.uint32).tolist()
