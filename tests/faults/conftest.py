"""The table of solvers, for the tests of this folder, and the folder's own modules by name."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

_spec = importlib.util.spec_from_file_location("solver_table", FOLDER.parent / "solvers" / "conftest.py")
_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_table)
row = _table.row  # the fixture: each solver in turn
