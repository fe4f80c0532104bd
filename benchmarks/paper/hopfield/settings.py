"""What one trial is trained with, and what the command line says about it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch

from benchmarks.paper.options import Options

from .methods import BPTT, METHODS

__all__ = ["Plan", "Setting", "plan"]


@dataclass(frozen=True)
class Setting:
    """The paper's settings by default: what tells one measurement from another, beside method, truncation and trial."""

    data: str = "mnist"
    pool: int = 1  # pixels of the side of a square that becomes one pixel
    hidden: int = 1024
    scale: float = 1e-3  # standard deviation of the first W
    rate: float = 1e-3  # of Adam
    images_per_step: int = 1
    epochs: int = 1000
    schedule: str = "constant"  # of the rate, as in the paper; "cosine" lets it fall to zero, and needs fewer epochs


@dataclass(frozen=True)
class Plan:
    """Which cells to run, how many trials of each, how many of them in one program, and which figure to draw."""

    setting: Setting
    methods: tuple[str, ...]
    truncations: tuple[int, ...]
    trials: int
    at_once: int
    parts: tuple[str, ...]
    figure_truncation: int


QUICK = Setting(data="digits", hidden=32, scale=1e-2, rate=2e-2, images_per_step=10, epochs=12)


def plan(options: Options) -> Plan:
    """Return what the options ask for; exit with a message where the experiment's own arguments are wrong."""
    gpu = torch.device(options.device).type != "cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper hopfield", add_help=False)
    parser.add_argument("--epochs", type=_count, help="default: 1000 on a GPU, 20 on a CPU")
    parser.add_argument("--images-per-step", type=int, choices=(1, 2, 5, 10), help="1 (default) as the reference code")
    parser.add_argument("--pool", type=_count, help="pool squares of N x N pixels: 1 (default), 2, 4")
    parser.add_argument("--hidden", type=_count, help="hidden units; default 1024")
    parser.add_argument("--rate", type=float, help="of Adam; default 1e-3")
    parser.add_argument("--schedule", choices=("constant", "cosine"), help="of the rate; default constant")
    parser.add_argument("--truncate", type=_count, action="append", metavar="K", help="default: 10, 20 and 30")
    parser.add_argument("--at-once", type=_count, help="trials in one program; default: 100 on a GPU, 1 on a CPU")
    parser.add_argument("--part", choices=("table", "figure"), help="default: both")
    parser.add_argument("--figure-truncation", type=_count, metavar="K", help="default: 20")
    given = parser.parse_args(options.arguments)
    if options.quick:
        base = QUICK if options.data_dir is None else replace(QUICK, data="mnist", pool=4)
        trials, at_once, truncations, figure = 2, 2, (10,), 10
    else:
        base = Setting(epochs=1000 if gpu else 20)
        trials, at_once, truncations, figure = (100, 100, (10, 20, 30), 20) if gpu else (5, 1, (10, 20, 30), 20)
    named = ("epochs", "images_per_step", "pool", "hidden", "rate", "schedule")
    changes = {name: value for name in named if (value := getattr(given, name)) is not None}
    known = (BPTT, *METHODS)
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"--only: got {unknown}, expected some of {list(known)}")
    return Plan(
        setting=replace(base, **changes),
        methods=options.only or known,
        truncations=tuple(given.truncate or truncations),
        trials=options.trials or trials,
        at_once=given.at_once or at_once,
        parts=(given.part,) if given.part else ("table", "figure"),
        figure_truncation=given.figure_truncation or figure,
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number
