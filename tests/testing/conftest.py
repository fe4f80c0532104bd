"""The tables of planted faults, ``broken_solvers`` and ``broken_layers``, are imported by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
