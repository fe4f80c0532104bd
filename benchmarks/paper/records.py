"""Results as JSON lines: one line a trial, written the moment it is done, so that an interrupted run continues.

A line holds what was asked for (``key``), what came out (``result``), how long it took, and on what: versions, machine,
date. Nothing is executed on reading. Two processes may write to one file: each holds a lock for the length of a line.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Records", "machine", "versions"]

_PACKAGES = ("implicitgrad", "torch", "numpy", "scipy", "scikit-learn")


class Records:
    """The records in ``path``; the file and its folder are made by the first ``add``.

    Parameters
    ----------
    path : Path
        A ``.jsonl`` file.
    fresh : bool
        Start anew: what stands there is removed.
    device : str
        Written into each line.
    """

    def __init__(self, path: Path, *, fresh: bool = False, device: str = "cpu") -> None:
        self.path, self.device = Path(path), device
        if fresh:
            self.path.unlink(missing_ok=True)

    def lines(self, **part: Any) -> list[dict[str, Any]]:
        """Return the records whose key has these entries, in the order in which they were written.

        A last line that was cut off (the process was killed in the middle of it) is passed over; any other line that is
        no record raises ``ValueError``.
        """
        if not self.path.exists():
            return []
        text = self.path.read_text()
        records = []
        for number, line in enumerate(whole := text.splitlines(), start=1):
            try:
                record = json.loads(line)
                matches = all(record["key"].get(name) == value for name, value in part.items())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(whole) and not text.endswith("\n"):
                    break
                raise ValueError(f"{self.path}:{number}: got no record ({error}). Remove that line.") from None
            if matches:
                records.append(record)
        return records

    def find(self, **key: Any) -> dict[str, Any] | None:
        """Return the last record with exactly this key, or None: the trial is still to be run."""
        return next((record for record in reversed(self.lines(**key)) if record["key"] == key), None)

    def add(self, key: Mapping[str, Any], result: Mapping[str, Any], seconds: float) -> None:
        """Append one record; a number that is not finite stands as ``null``."""
        record = {
            "key": dict(key),
            "result": _plain(dict(result)),
            "seconds": round(seconds, 3),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "machine": machine(self.device),
            "versions": versions(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.path, "ab+") as file, _locked(file):
            _remove_cut_off_line(file)
            file.write(line.encode())


@contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Keep other processes from writing to ``file``, until what was written here has left the buffer."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
        file.flush()
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _remove_cut_off_line(file: BinaryIO) -> None:
    """Remove what a process that was killed in the middle of a line has left behind."""
    file.seek(0)
    text = file.read()
    if not text.endswith(b"\n"):
        file.truncate(text.rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and value - value != 0:
        return None
    return value


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def machine(device: str = "cpu") -> str:
    """Return what did the work, in words: the processor, its cores, or the accelerator's name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{name}, {os.cpu_count()} cores, {threads} thread{'' if threads == '1' else 's'}"
