"""The script that plants faults, on a small repository with tests of its own: what it says of faults of every sort."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
SOURCE = """\
def add(a, b):
    return a + b


def loud(a):
    return a.upper()


def unseen(a):
    return 2 * a
"""
FILES = {
    "toy/__init__.py": SOURCE,
    "tests/test_add.py": "import toy\n\n\ndef test_sum():\n    assert toy.add(2, 2) == 4\n",
    "tests/test_loud.py": "import toy\n\n\ndef test_upper():\n    assert toy.loud('a') == 'A'\n",
    "pytest.ini": "[pytest]\ntestpaths = tests\n",
    ".gitignore": "ignored.py\n",
    "ignored.py": "",
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mutants_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def copy(script, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("the script asks git for the files of the tree")
    root = tmp_path / "root"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (tmp_path / "copy").mkdir()
    return script.Copy(tmp_path / "copy", root)


def _fault(script, old, new, *tests):
    return script.Mutant("fault", "toy/__init__.py", old, new, "It is wrong.", tests)


def test_a_fault_is_caught_by_a_likely_test_and_taken_out_again(script, copy):
    fault = _fault(script, "a + b", "a - b", "tests/test_add.py")
    found = copy.outcome(fault, 60, likely_only=False)
    assert (found.verdict, found.test) == ("caught", "tests/test_add.py::test_sum")
    assert (copy.folder / "toy/__init__.py").read_text() == SOURCE
    assert copy.pytest([], 60, 1).verdict == "survived"  # green again: nothing compiled of the fault is left


def test_the_rest_of_the_suite_has_its_say_and_is_not_believed_unseen(script, copy):
    """upper() is tested outside of the likely file; a test that fails without the fault too decides nothing."""
    fault = _fault(script, "a.upper()", "a.lower()", "tests/test_add.py")
    assert copy.outcome(fault, 60, likely_only=True).verdict == "survived"
    found = copy.outcome(fault, 60, likely_only=False)
    assert (found.verdict, found.test) == ("caught", "tests/test_loud.py::test_upper")
    (copy.folder / "tests/test_broken.py").write_text("def test_no():\n    assert False\n")
    assert copy.outcome(fault, 60, likely_only=False).verdict == "undecided"


def test_a_test_that_fails_now_and_then_decides_nothing(script, copy):
    """It fails once, with the fault in place, and then no more."""
    flaky = "from pathlib import Path\n\n\ndef test_once():\n    Path('mark').mkdir(exist_ok=True)\n"
    (copy.folder / "tests/test_a.py").write_text(flaky + "    assert len(list(Path('mark').iterdir())) > 0\n")
    (copy.folder / "tests/conftest.py").write_text(
        "from pathlib import Path\n\n\ndef pytest_unconfigure():\n"
        "    if Path('mark').exists():\n        Path('mark/1').touch()\n"
    )
    fault = _fault(script, "2 * a", "3 * a", "tests/test_add.py")
    found = copy.outcome(fault, 60, likely_only=False)
    assert (found.verdict, found.test) == ("undecided", "tests/test_a.py::test_once")


def test_what_no_test_sees_has_survived_and_what_cannot_be_imported_is_invalid(script, copy):
    unseen = _fault(script, "2 * a", "3 * a", "tests/test_add.py")
    assert copy.outcome(unseen, 60, likely_only=False).verdict == "survived"
    broken = _fault(script, "def add(a, b):", "import toy.nowhere\n\n\ndef add(a, b):", "tests/test_add.py")
    assert copy.outcome(broken, 60, likely_only=False).verdict == "invalid"


def test_a_test_that_hangs_catches_by_time(script, copy):
    endless = _fault(script, "return a + b", "\n    while True: pass", "tests/test_add.py")
    assert copy.outcome(endless, 3, likely_only=False).verdict == "caught by time"


def test_the_package_is_that_of_the_copy(script, copy, tmp_path):
    """What git ignores is not copied, and a package from elsewhere is refused."""
    copy.check_import("toy")
    assert not (copy.folder / "ignored.py").exists()
    copy.environment["PYTHONPATH"] = str(tmp_path / "root")
    with pytest.raises(RuntimeError, match="expected the copy"):
        copy.check_import("toy")
