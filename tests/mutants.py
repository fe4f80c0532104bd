"""Does the suite turn red? Faults are planted in a copy of the tree, one at a time, and pytest is run there.

The faults stand in ``tests/mutants/*.toml``, a table a room: a file, a text that occurs in it once, what a tired hand
might write instead, why that matters, and the tests most likely to see it. These run first; if they stay green, the
rest of the suite does. A fault is *caught* by a test that fails, *caught by time* where one hangs. It has *survived*
where all stay green: the suite has a hole. It is *invalid* where the planted code cannot be imported, and *undecided*
where a test outside of the likely ones fails that fails without the fault, too, or does not fail again.

    python tests/mutants.py --list
    python tests/mutants.py --only adjoint-not-transposed
    python tests/mutants.py --jobs 2 --likely-only
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
TABLES = Path(__file__).resolve().with_suffix("")
_FEW, _MANY = 3, 60  # a run of few tests may take so many times what one test may, a run of the suite so many
CAUGHT, TIME, SURVIVED, INVALID, UNDECIDED = "caught", "caught by time", "survived", "invalid", "undecided"

# As pytest's short summary has it. A file that cannot be collected is named without "::".
_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>[^\s\[]+::[^\s\[]+(?:\[.*?\])?)(?: - (?P<words>.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A fault: ``new`` in the place of ``old``."""

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    def planted(self, source: str) -> str:
        """Return ``source`` with the fault in it; raise unless there is one place for it."""
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text occurs {count} times in {self.file}, expected once.")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the verdict, the test that gave it, and its words."""

    verdict: str
    test: str = ""
    words: str = ""
    seconds: float = 0.0


def load(folder: Path = TABLES) -> list[Mutant]:
    """Return all mutants of the tables."""
    rows = [row for table in sorted(folder.glob("*.toml")) for row in tomllib.loads(table.read_text())["mutant"]]
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def judged(code: int | None, output: str) -> Outcome:
    """Return what a run of pytest says, by its exit status (None: it ran past its time) and what it printed."""
    if code is None:
        return Outcome(TIME, words="the run did not end")
    if code == 0:
        return Outcome(SURVIVED)
    failed = _FAILED.search(output)
    if code == 1 and failed:
        words = failed["words"] or ""
        return Outcome(TIME if words.startswith("Failed: Timeout") else CAUGHT, failed["test"], words)
    told = [line for line in output.splitlines() if line.startswith(("ERROR", "E  ", "ImportError", "SyntaxError"))]
    return Outcome(INVALID, words=f"pytest ended with {code}: {' '.join(told[:3])[:300]}")


class Copy:
    """A copy of the tree in which pytest runs: all files that git tracks or does not ignore."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        self.folder = folder
        # Before any installed package: .pth files and site-packages come after it.
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        self.environment.pop("PYTEST_ADDOPTS", None)
        if (data := root.parent / "shared" / "data").is_dir():  # where the tests look for it beside the original
            self.environment.setdefault("IMPLICITGRAD_DATA_DIR", str(data))

    def check_import(self, package: str = "implicitgrad") -> None:
        """Raise unless Python finds the package here, wherever it is started."""
        command = [sys.executable, "-P", "-c", f"import {package}; print({package}.__file__)"]
        found = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()
        if not Path(found).is_relative_to(self.folder):
            raise RuntimeError(f"mutants: {package} is imported from {found}, expected the copy in {self.folder}.")

    def pytest(self, arguments: list[str], limit: float, tests: float) -> Outcome:
        """Run pytest up to the first failure, for at most ``limit`` seconds a test and ``limit * tests`` in all."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=short", f"--timeout={max(1, int(limit))}"]
        command = [sys.executable, "-m", "pytest", *options, *arguments]
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as printed:  # no pipe: a child of a test could keep it open
            try:
                run = subprocess.run(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    timeout=limit * tests,
                )
                code: int | None = run.returncode
            except subprocess.TimeoutExpired:
                code = None
            printed.seek(0)
            outcome = judged(code, printed.read())
        return Outcome(outcome.verdict, outcome.test, outcome.words, time.monotonic() - start)

    @contextmanager
    def holding(self, mutant: Mutant) -> Iterator[None]:
        """Surround what is to run with the fault in place."""
        path = self.folder / mutant.file
        source = path.read_text()
        self._write(path, mutant.planted(source))
        try:
            yield
        finally:
            self._write(path, source)

    @staticmethod
    def _write(path: Path, source: str) -> None:
        path.write_text(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()  # it knows its source by second and size, which a short run and a short fault may keep

    def outcome(self, mutant: Mutant, limit: float, likely_only: bool) -> Outcome:
        """Return what becomes of ``mutant``: by its likely tests, then by all others."""
        with self.holding(mutant):
            likely = self.pytest(list(mutant.tests), limit, _FEW)
            if likely.verdict != SURVIVED or likely_only:
                return likely
            others = self.pytest([f"--deselect={test}" for test in mutant.tests], limit, _MANY)
            again = self.pytest([others.test], limit, _FEW).verdict if others.test else others.verdict
        seconds = likely.seconds + others.seconds
        verdict = others.verdict
        # Nobody has seen the rest of the suite green without the fault, and some tests are about time and memory.
        if others.test and not (again == verdict and self.pytest([others.test], limit, _FEW).verdict == SURVIVED):
            verdict = UNDECIDED
        return Outcome(verdict, others.test, others.words, seconds)


def main(arguments: list[str] | None = None) -> int:
    """Plant the faults, print the table; return 0 if all were caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="this mutant; may be given again")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="copies to work in at once (default 1)")
    parser.add_argument("--limit", metavar="S", type=float, default=240, help="seconds a test may take (default 240)")
    parser.add_argument("--likely-only", action="store_true", help="do not go on to the rest of the suite")
    parser.add_argument("--list", action="store_true", help="print the mutants and plant none")
    options = parser.parse_args(arguments)
    mutants = load()
    if unknown := set(options.only or ()) - {mutant.name for mutant in mutants}:
        parser.error(f"got --only {', '.join(sorted(unknown))}, expected a name that --list prints")
    mutants = [mutant for mutant in mutants if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}\n    {mutant.file}: {mutant.why}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return _run(mutants, [Copy(Path(folder) / str(i)) for i in range(options.jobs)], options)


def _run(mutants: list[Mutant], copies: list[Copy], options: argparse.Namespace) -> int:
    likely = sorted({test for mutant in mutants for test in mutant.tests})
    copies[0].check_import()
    print(f"{len(mutants)} mutants. First without any: {len(likely)} likely paths.", flush=True)
    if (clean := copies[0].pytest(likely, options.limit, _MANY)).verdict != SURVIVED:
        print(f"Not green without a fault, so red would mean nothing: {clean.test} {clean.words}")
        return 2
    print(f"Green in {clean.seconds:.0f} s.", flush=True)
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def tried(mutant: Mutant) -> Outcome:
        copy = free.get()
        try:
            return copy.outcome(mutant, options.limit, options.likely_only)
        finally:
            free.put(copy)

    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(len(copies)) as pool:
        futures = {pool.submit(tried, mutant): mutant for mutant in mutants}
        for done in as_completed(futures):
            mutant, found = futures[done], done.result()
            outcomes[mutant.name] = found
            words = found.words if found.verdict in (INVALID, UNDECIDED) else ""
            print(f"[{len(outcomes):>3}/{len(mutants)}] {_row(mutant, found)} {words}".rstrip(), flush=True)
    return _table(mutants, outcomes)


def _row(mutant: Mutant, found: Outcome) -> str:
    return f"{mutant.name:<58} {found.verdict:<14} {found.seconds:6.1f} s  {found.test}".rstrip()


def _table(mutants: list[Mutant], outcomes: dict[str, Outcome]) -> int:
    print(f"\n{'mutant':<58} {'verdict':<14} {'time':>8}  by")
    for mutant in mutants:
        print(_row(mutant, outcomes[mutant.name]))
    score = sum(found.verdict in (CAUGHT, TIME) for found in outcomes.values())
    print(f"\n{score} of {len(mutants)} mutants caught.")
    for mutant in mutants:
        if outcomes[mutant.name].verdict not in (CAUGHT, TIME):
            print(f"  {outcomes[mutant.name].verdict}: {mutant.name} ({mutant.file}). {mutant.why}")
    return 0 if score == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
