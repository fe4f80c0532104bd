"""What a run of the paper's experiments is told on the command line, the same for each of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXPERIMENTS", "Options", "parse"]

EXPERIMENTS = ("hopfield", "citation", "propositions")


@dataclass(frozen=True)
class Options:
    """Settings of one run.

    Attributes
    ----------
    experiment : str
        One of ``EXPERIMENTS``.
    trials : int or None
        Runs of each method; None: the experiment's own default.
    device : str
        What torch calls it: ``cpu``, ``cuda``, ``cuda:1``.
    data_dir : Path or None
        Where data files lie; None: they are fetched, or what is bundled with scikit-learn stands in for them.
    quick : bool
        Everything end to end within a minute, at a size at which the figures mean nothing.
    out : Path
        Where records, figures and checkpoints go.
    only : tuple of str
        The methods to run; empty: all.
    arguments : tuple of str
        What the frame does not know, for the experiment to parse.
    """

    experiment: str
    trials: int | None
    device: str
    data_dir: Path | None
    quick: bool
    out: Path
    only: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def records_file(self) -> Path:
        """Return where the records of this run stand; a quick run never touches those of a real one."""
        return self.out / f"{'quick-' if self.quick else ''}{self.experiment}.jsonl"


def parse(arguments: list[str] | None = None) -> Options:
    """Return the options of a command line, by default this process's own; exit with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="Run an experiment of Liao et al. 2018 and print its tables beside the paper's numbers.",
        epilog="An interrupted run continues where it stopped: give the same --out again.",
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--trials", type=_count, metavar="N", help="runs of each method")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda: the same code")
    parser.add_argument("--data-dir", type=_folder, metavar="DIR", help="where the data files lie; no network")
    parser.add_argument("--quick", action="store_true", help="end to end in under a minute; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("outputs/paper"), metavar="DIR", help="default: outputs/paper")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD", help="a method; may be repeated")
    known, rest = parser.parse_known_args(arguments)
    return Options(
        experiment=known.experiment,
        trials=known.trials,
        device=known.device,
        data_dir=known.data_dir,
        quick=known.quick,
        out=known.out,
        only=tuple(known.only),
        arguments=tuple(rest),
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of runs, at least 1")
    return number


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"found no folder {text}")
    return path
