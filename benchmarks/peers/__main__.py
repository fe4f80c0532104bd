"""``python -m benchmarks.peers``: run the zoo and print the table; ``--write`` puts it into ``docs/peers.md``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import date
from pathlib import Path

from benchmarks.peers.cases import CASES
from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.reproductions import reproduced
from benchmarks.peers.run import ROOT, Findings, run_library, worker_of
from benchmarks.peers.table import details, overview, totals, write_between
from benchmarks.peers.verdict import Finding, Verdict

PAGE = ROOT / "docs" / "peers.md"


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; return 1 where one of our own cells is silent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="only this one (repeatable)")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--keep", type=Path, help="keep what was found in this file (JSON); read what it holds already")
    options = parser.parse_args(argv)
    names = [name for name in CASES if options.case.lower() in name.lower()]
    if options.write and (options.library or options.case):
        parser.error("--write puts down the whole table: leave --library and --case out")
    kept = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    results: dict[str, Findings | str] = {}
    for library in options.library or LIBRARIES:
        missing = LIBRARIES[library].missing
        if missing is None:
            started = time.perf_counter()
            results[library] = _run(library, names, kept.setdefault(library, {}))
            print(f"{LIBRARIES[library].title}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            if options.keep:
                options.keep.write_text(json.dumps(kept))
        else:
            results[library] = missing
    titles = {name: LIBRARIES[name].title for name in results}
    text = "\n\n".join((_versions(results, len(names)), overview(results, titles, names), totals(results, titles)))
    print(text if not options.case else f"{text}\n\n{details(results, titles, names)}")
    if options.write:
        write_between(PAGE, f"{text}\n\n{reproduced()}\n\n## Every method\n\n{details(results, titles)}")
    ours = [f.verdict for findings in results.get("ours", {}).values() for f in findings.values()]
    return int(any(verdict not in (Verdict.RIGHT, Verdict.REPORTED) for verdict in ours))


def _run(library: str, names: list[str], kept: dict[str, dict[str, list[object]]]) -> Findings:
    """Return the findings of all cases, those kept from before included."""
    fresh = run_library(worker_of(library), [name for name in names if name not in kept])
    for case, findings in fresh.items():
        kept[case] = {m: [f.verdict.name, f.error, f.words] for m, f in findings.items()}
    return {case: {m: Finding(Verdict[v[0]], *v[1:]) for m, v in kept[case].items()} for case in names if case in kept}


def _versions(results: dict[str, Findings | str], cases: int) -> str:
    lines = [
        f"{date.today().isoformat()}, {platform.system()} {platform.machine()}, Python {platform.python_version()}; "
        f"{cases} case{'s' if cases > 1 else ''}.",
        "",
    ]
    for name, result in results.items():
        library = LIBRARIES[name]
        lines.append(
            f"- {library.title}: " + (f"not installed: {result}" if isinstance(result, str) else library.version)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
