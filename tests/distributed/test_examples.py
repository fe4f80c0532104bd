"""The scripts of docs/examples, as a reader runs them: each compares two processes with one, and says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {"ddp": 1, "fsdp": 2, "sharded_state": 1}


@pytest.mark.parametrize("name", LINES)
def test_an_example_of_the_page_equals_one_process(name):
    """Its last words are an error below 1e-6, which it also asserts."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"gradients equal those of one process to (\S+)$", done.stdout, flags=re.MULTILINE)
    assert len(errors) == LINES[name]
    assert all(float(error) < 1e-6 for error in errors)
