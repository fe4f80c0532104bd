"""Nothing in the package and in the benchmarks runs what a file says: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("implicitgrad", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAY_UNPICKLE = ROOT / "benchmarks" / "paper" / "data" / "unpickle.py"  # through stand-ins; see its docstring

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def findings(source):
    """The lines that run what a file or a text says, as (line, what)."""
    tree = ast.parse(source)
    full = {}  # the name in this file -> the name where it was defined
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full.update({name.asname: name.name for name in node.names if name.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            full.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})

    def name_of(node):
        if isinstance(node, ast.Name):
            return full.get(node.id, node.id)
        return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    def keyword(call, name):
        return next((word.value for word in call.keywords if word.arg == name), None)

    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = name_of(node)
            room, _, last = name.rpartition(".")
            if (room in PICKLES and last in {"load", "loads", "Unpickler", "open"}) or name in SHELLS:
                yield node.lineno, name
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in BUILTINS or (name.startswith("builtins.") and name.removeprefix("builtins.") in BUILTINS):
                yield node.lineno, name
            safe = keyword(node, "weights_only")
            if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
                yield node.lineno, "torch.load without weights_only=True"
            for word in ("allow_pickle", "shell"):
                value = keyword(node, word)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    yield node.lineno, f"{word}="


@pytest.mark.fault(108, 109, 114)
def test_no_source_runs_what_a_file_says():
    found = {str(path.relative_to(ROOT)): list(findings(path.read_text("utf-8"))) for path in SOURCES}
    unpickler = found.pop(str(MAY_UNPICKLE.relative_to(ROOT)))
    assert [what for _, what in unpickler] == ["pickle.Unpickler"]
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_there_are_sources():
    assert all(any(path.is_relative_to(ROOT / folder) for path in SOURCES) for folder in FOLDERS)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("import pickle as p\np.loads(b)", "pickle.loads"),
        ("from pickle import loads as read\nread(b)", "pickle.loads"),
        ("import pickle\nread = pickle.load", "pickle.load"),
        ("import pickle\nclass A(pickle.Unpickler): pass", "pickle.Unpickler"),
        ("import joblib\njoblib.load(f)", "joblib.load"),
        ("eval('1')", "eval"),
        ("exec('1')", "exec"),
        ("import builtins\nbuiltins.eval('1')", "builtins.eval"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "allow_pickle="),
        ("import numpy as np\nnp.load(f, allow_pickle=flag)", "allow_pickle="),
        ("import torch\ntorch.load(f)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("from torch import load\nload(f)", "torch.load without weights_only=True"),
        ("import os\nos.system('true')", "os.system"),
        ("from os import system\nsystem('true')", "os.system"),
        ("import subprocess\nsubprocess.run('true', shell=True)", "shell="),
    ],
)
def test_a_source_that_does_is_found(source, what):
    assert [found for _, found in findings(source)] == [what]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.dumps(1)",
        "model.eval()",
        "import re\nre.compile('x')",
        "import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)",
        "import torch\ntorch.load(f, weights_only=True)",
        "import json\njson.load(f)",
        "import subprocess\nsubprocess.run(['true'], shell=False)",
    ],
)
def test_a_source_that_does_not_is_left_alone(source):
    assert list(findings(source)) == []
