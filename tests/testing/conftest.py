"""The tables of planted faults, ``broken_solvers`` and ``broken_layers``, are imported by name."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Doctests are collected from every module, and this one imports torch.
collect_ignore = [] if find_spec("torch") else ["broken_layers.py"]
