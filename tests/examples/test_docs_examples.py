"""The scripts that the PyTorch page names, as a reader runs them; those of several processes: tests/distributed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def output_of(name, *options):
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / name), *options],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()


def test_the_classifier_learns_and_its_solves_converge():
    lines = output_of("equilibrium_classifier.py", "--epochs", "3")
    accuracies = [float(re.search(r"([\d.]+)%", line)[1]) for line in lines[1:]]
    assert len(accuracies) == 3
    assert accuracies[-1] > 80
    assert all(line.endswith("CONVERGED") for line in lines[1:])


def test_tuning_lowers_the_validation_loss():
    lines = output_of("tune_hyperparameters.py", "--steps", "10")
    first, last = (float(line.split()[1]) for line in (lines[1], lines[-1]))
    assert last < 0.7 * first
    assert all(line.endswith("CONVERGED") for line in lines[1:])
