"""A few lines for each kind of fault: scripts that a reader can run, and what they print with the table's versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["reproduced", "scripts"]


def scripts() -> list[Path]:
    """Return the scripts, in the order of their names."""
    return sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def reproduced() -> str:
    """Run each script and return it with its output, in Markdown.

    A script whose library is missing says so; one that fails for another reason is an error.
    """
    parts = ["## A few lines each"]
    for path in scripts():
        source = path.read_text(encoding="utf-8")
        title = source.splitlines()[0].strip('"')
        done = subprocess.run([sys.executable, "-W", "ignore", str(path)], capture_output=True, text=True, timeout=600)
        output = done.stdout.strip()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            if not last.startswith("ModuleNotFoundError"):
                raise RuntimeError(f"{path.name} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
            output = f"not run here: {last}"
        body = "\n".join(source.splitlines()[1:]).strip()
        parts.append(f"{title}\n\n```python\n{body}\n```\n\n```text\n{output}\n```")
    return "\n\n".join(parts)
