"""The example where the penalty pays: it breaks without, it does not with, and its table says what was measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optree")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    """The script as a module, imported from its own folder as it imports its neighbour."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import regularized_training

        yield regularized_training
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def runs(example):
    """Thirty steps of the first network: without a penalty, with the paper's, with a margin."""
    runs = [example.Run(str(margin), margin, seed=0) for margin in (None, 0.0, 0.25)]
    for run in runs:
        example.train(run, 30, example.WEIGHT)
    return runs


def test_training_breaks_without_the_penalty_and_the_solvers_say_so(runs):
    """sigma_min comes near 0, the loss jumps up by half and more, and solves are reported as not converged."""
    plain = runs[0]
    assert min(plain.sigmas) < 0.05
    assert plain.losses[-1] > 1.5 * min(plain.losses)
    assert sum(plain.failures) > 0


def test_with_a_margin_sigma_min_stays_up_and_training_goes_on(runs):
    ours = runs[2]
    assert min(ours.sigmas) > 0.4
    assert ours.losses[-1] < 0.5 * runs[0].losses[-1]
    assert sum(ours.failures) == 0
    assert max(ours.gradients) < max(runs[0].gradients)
    assert 0 < ours.share < 1


def test_a_margin_of_zero_changes_nothing(runs):
    """The paper's penalty: the same losses to the last bit."""
    assert runs[1].losses == runs[0].losses
    assert runs[1].gradients == runs[0].gradients


def test_the_table_and_the_verdict_are_made_of_the_runs(example, runs):
    lines = example.table([runs]).splitlines()
    assert len(lines) == 3 + len(runs)
    assert f"{runs[2].losses[-1]:.3f}" in lines[-1]
    text = example.verdict([runs])
    assert f"to {min(runs[2].sigmas):.3f} with it" in text
    assert "identically zero" in text


@pytest.mark.timeout(300)
def test_a_quick_run_prints_its_table_and_writes_its_picture(tmp_path):
    """As a user runs it, from another folder."""
    command = [sys.executable, str(EXAMPLES / "regularized_training.py"), "--quick", "--steps", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "regularized_training.png").read_bytes().startswith(b"\x89PNG")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[3:6]] == [
        "none",
        "margin = 0 (paper)",
        "margin = 0.25",
    ]
