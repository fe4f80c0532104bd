"""The table of planted faults, against today's source: a fault that no longer applies would be counted by nobody."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mutants_script", ROOT / "tests" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the annotations of their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def mutants(script):
    return script.load()


def _without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _defined(path):
    """Return the names of a test file's functions, and those of its classes with their methods."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return names


def test_every_fault_has_one_place_and_leaves_code_that_compiles(mutants):
    """Its old text occurs once, and the program with the new one is another program, not another comment."""
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text()
        planted = mutant.planted(source)  # raises in words where there is not one place
        compile(planted, mutant.file, "exec")
        assert _without_docstrings(planted) != _without_docstrings(source), mutant.name


def test_every_likely_test_is_there(mutants):
    """A test that was renamed would end the run of its mutant as invalid, hours later."""
    for mutant in mutants:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).exists(), f"{mutant.name}: {path}"
            assert not name or name.partition("[")[0] in _defined(ROOT / path), f"{mutant.name}: {test}"


def test_the_table_is_wide_and_says_why(mutants):
    """Names are unique, and faults stand in every room that computes."""
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 40
    assert all(len(mutant.why) > 20 and mutant.why.endswith(".") for mutant in mutants)
    rooms = ["adjoint.py", "solvers", "operators", "backends", "spectral", "diagnose", "scipy", "testing"]
    for room in [*rooms, "torch/engine", "torch/forward", "torch/regularizers"]:
        assert any(mutant.file.startswith(f"implicitgrad/{room}") for mutant in mutants), room


@pytest.mark.parametrize(
    ("code", "printed", "verdict", "test"),
    [
        (0, "12 passed in 1.2s", "survived", ""),
        (1, "FAILED tests/a.py::test_b[x - y] - AssertionError: no\n1 failed", "caught", "tests/a.py::test_b[x - y]"),
        (1, "FAILED implicitgrad/a.py::implicitgrad.a.f\n1 failed", "caught", "implicitgrad/a.py::implicitgrad.a.f"),
        (1, "ERROR tests/a.py::test_b - ValueError: in a fixture", "caught", "tests/a.py::test_b"),
        (1, "FAILED tests/a.py::test_b - Failed: Timeout (>5.0s)", "caught by time", "tests/a.py::test_b"),
        (None, "", "caught by time", ""),
        (2, "ERROR tests/a.py - ImportError: cannot import name 'f'\n1 error", "invalid", ""),
        (4, "ImportError while loading conftest\nE   SyntaxError: invalid syntax", "invalid", ""),
        (5, "no tests ran", "invalid", ""),
    ],
)
def test_only_a_failing_test_catches_a_fault(script, code, printed, verdict, test):
    """Code that cannot be imported is a mistake of the table, a run that finds no test says nothing."""
    found = script.judged(code, printed)
    assert (found.verdict, found.test) == (verdict, test)


def test_a_fault_without_a_place_or_with_two_is_refused(script):
    mutant = script.Mutant("sign", "m.py", "a + b", "a - b", "The sign.", ("tests",))
    assert mutant.planted("x = a + b") == "x = a - b"
    with pytest.raises(ValueError, match="occurs 0 times"):
        mutant.planted("x = b + a")
    with pytest.raises(ValueError, match="occurs 2 times"):
        mutant.planted("x = a + b; y = a + b")
