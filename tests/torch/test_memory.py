"""Peak memory of one backward pass: one tracked call of f, one product through it, and the vectors a solver states.

Counted in a process of its own by ``benchmarks/bench_memory.py``: every storage that torch makes, until it is freed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_memory.py"
STATED = {"JFB": 1, "Neumann": 2, "Neumann(5)": 2, "RussianRoulette": 2, "Richardson": 3, "CG": 4}
STATED |= {"NormalEquations": 5, "LSMR": 7, "MINRES": 8, "BiCGSTAB": 8}


@pytest.fixture(scope="module", params=["1", "1e-8"], ids=["a cotangent of norm 1", "of norm 1e-8"])
def rows(request):
    """The cotangent of the second kind is scaled on the way in and out."""
    command = [sys.executable, str(BENCHMARK), "--exact", "--json", "--cotangent", request.param]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.fault(87)
@pytest.mark.parametrize("name", [*STATED, "GMRES"])
def test_a_backward_pass_takes_no_more_than_the_stated_vectors(rows, name):
    row = rows[name]
    stated = row["k"] + 2 if name == "GMRES" else STATED[name]
    assert row["status"] in ("CONVERGED", "TRUNCATED", "SAMPLED")
    assert row["k"] > 1 or name == "JFB"
    assert row["peak"] <= row["call"] + (stated + 0.01) * row["vector"]  # 0.01: the small matrix of GMRES


def test_the_counter_sees_what_an_unrolled_graph_holds(rows):
    """The other side: one state for each unrolled step."""
    for name, steps in (("BPTT(30)", 30), ("TBPTT(20)", 20)):
        assert steps <= rows[name]["peak"] / rows[name]["vector"] <= steps + 4
    assert rows["Neumann"]["call"] == 3 * rows["Neumann"]["vector"]  # tanh, its derivative, and that times a
