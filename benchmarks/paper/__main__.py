"""``python -m benchmarks.paper``: parse the command line and run the experiment that it names."""

from __future__ import annotations

import importlib
import sys

from benchmarks.paper.data import DataError
from benchmarks.paper.options import parse


def main(arguments: list[str] | None = None) -> int:
    """Run one experiment; return the exit status."""
    options = parse(arguments)
    experiment = importlib.import_module(f"benchmarks.paper.{options.experiment}")  # a choice of the parser's
    try:
        experiment.run(options)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues where it stopped.", file=sys.stderr)
        return 130
    except DataError as error:
        print(f"{options.experiment}: {error}", file=sys.stderr)
        return 1
    if options.quick:
        print("\n--quick: a toy from end to end; beside the paper's its figures mean nothing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
