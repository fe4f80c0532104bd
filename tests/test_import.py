"""``import implicitgrad`` loads NumPy and nothing heavier."""

import statistics
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "scipy",
    "array_api_compat",
    "array_api_strict",
    "jax",
    "optree",
    "hypothesis",
    "matplotlib",
    "pandas",
)


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["implicitgrad", "implicitgrad.testing"])
def test_nothing_heavy_is_loaded(module):
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_a_numpy_solve_loads_nothing_heavy_either():
    code = (
        "import sys, numpy as np, implicitgrad as ig; "
        "ig.adjoint_solve(ig.DenseOperator(0.5 * np.eye(2)), np.ones(2)); print(*sys.modules)"
    )
    assert not set(HEAVY) & set(run(code).split())


def test_the_import_costs_less_than_a_third_of_a_second_on_top_of_numpy():
    code = "import time, numpy; t = time.perf_counter(); import implicitgrad; print(time.perf_counter() - t)"
    run(code)  # writes the bytecode
    seconds = statistics.median(float(run(code)) for _ in range(5))
    assert seconds < 0.3, f"{seconds:.3f} s"


def test_every_public_name_is_there():
    import implicitgrad as ig
    import implicitgrad.testing as igtest

    for module in (ig, igtest):
        for name in module.__all__:
            assert getattr(module, name) is not None
