"""Our own column of the zoo: in every case that a library answered wrongly, ours is right or says that it is not."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # benchmarks/ is not installed

import implicitgrad as ig
from benchmarks.peers.__main__ import main
from benchmarks.peers.cases import CASES
from benchmarks.peers.cases.gradients import GradientProblem
from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.run import run_library, worker_of
from benchmarks.peers.table import START, cell, write_between
from benchmarks.peers.verdict import Answer, Finding, Verdict, judge
from benchmarks.peers.worker import find

PAGE = ROOT / "docs" / "peers.md"
HAS_TORCH = find_spec("torch") is not None and find_spec("optree") is not None


@pytest.fixture(params=CASES.values(), ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def problem(case):
    problem = case.make()
    if isinstance(problem, GradientProblem) and not HAS_TORCH:
        pytest.skip("a gradient through a layer needs torch")
    return problem


DEFAULTS_THAT_REPORT = {
    "A budget of two steps that is spent is said",
    "No steps allowed is no success",
    "An operator that writes into its argument does no harm, or is refused",
    "An affine operator is no linear one",
    "A forward solve stopped after one step is said",
    "A smallest eigenvalue of 1e-6 is found, or said not to be",  # right to 4e-9, and beyond the default budget
}


def test_ours_is_right_or_says_that_it_is_not(case, problem):
    """Where there is no answer nothing passes for one, and where there is one our default finds it: to report would be
    an easy way through. An exception that is not of this package fails the test, for it is a crash and no report.
    """
    methods = LIBRARIES["ours"].methods(problem)
    found = {method: find(case, problem, call, reports=ig.ImplicitGradError) for method, call in methods.items()}
    assert found
    for method, finding in found.items():
        assert finding.verdict in (Verdict.RIGHT, Verdict.REPORTED), f"{method}: {finding}"
        assert case.solvable or finding.verdict is Verdict.REPORTED, f"{method}: {finding}"
    if case.solvable and case.name not in DEFAULTS_THAT_REPORT:
        for name in ("default", "smallest_eigenvalue", "smallest_singular_value"):
            assert name not in found or found[name].verdict is Verdict.RIGHT, found[name]


@pytest.mark.parametrize("name", [name for name in CASES if "right-hand side of 1e" in name])
def test_every_solver_of_ours_is_right_at_every_scale(name):
    problem = CASES[name].make()
    for method, call in LIBRARIES["ours"].methods(problem).items():
        assert find(CASES[name], problem, call).verdict is Verdict.RIGHT, method


def test_a_warm_start_at_the_solution_costs_one_product():
    case = CASES["A start at the solution is the solution"]
    for call in LIBRARIES["ours"].methods(case.make()).values():
        assert call().words == "CONVERGED, 1 product"


# -- the measuring itself ----------------------------------------------------------------------------------------------
ONES, NAN = np.ones(3), np.array([1.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("error", "answer", "warnings", "verdict"),
    [
        (1e-9, Answer(ONES, True), [], Verdict.RIGHT),
        (1e-9, Answer(ONES, None), [], Verdict.RIGHT),
        (1e-9, Answer(ONES, False), [], Verdict.REPORTED),
        (1e-2, Answer(ONES, True), [], Verdict.SILENT_WRONG),
        (1e-2, Answer(ONES, None), [], Verdict.SILENT_WRONG),
        (1e-2, Answer(ONES, False), [], Verdict.REPORTED),
        (1e-2, Answer(ONES, None), ["ConvergenceWarning"], Verdict.REPORTED),
        (1e-2, Answer(ONES, True), ["RuntimeWarning"], Verdict.WARNED),
        (np.inf, Answer(ONES, True), [], Verdict.SILENT_WRONG),
        (np.nan, Answer(NAN, True), [], Verdict.NAN_SILENT),
        (np.nan, Answer(NAN, False), [], Verdict.REPORTED),
    ],
)
def test_a_verdict_follows_from_the_error_and_from_what_was_said(error, answer, warnings, verdict):
    assert judge(error, 1e-6, answer, warnings).verdict is verdict


def test_the_measure_of_a_linear_case_is_the_true_residual_at_any_scale():
    problem = CASES["A right-hand side of 1e200 in float64 is solved"].make()
    x = np.linalg.solve(problem.matrix, problem.rhs / 1e200)
    assert problem.error(x * 1e200) < 1e-14
    assert problem.error(x * 1.01e200) == pytest.approx(0.01, rel=1e-10)
    assert problem.error(np.zeros(30)) == pytest.approx(1.0)
    assert problem.error(x[:29]) == np.inf


def test_the_expected_gradients_are_those_of_finite_differences():
    """The oracle of the cases is not the code under test, and is checked itself."""
    problem = CASES["A loss scaled by 1e-7 has the same gradient"].make()
    direction = np.random.default_rng(0).standard_normal(problem.W.shape)

    def loss(t):
        z = np.zeros(len(problem.x))
        for _ in range(2000):
            z = np.tanh((problem.W + t * direction) @ z + problem.x)
        return problem.scale * z.sum()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope == pytest.approx(np.sum(problem.expected * direction), rel=1e-7)
    assert CASES["The second derivative is right, or refused"].make().expected == pytest.approx(-3.067562, abs=5e-7)


def stand_in(body):
    """A worker that says what ``benchmarks.peers.worker`` would say of one method, and then does ``body``."""
    program = f"""
import json, os, signal, sys, time
for name in sys.argv[1:]:
    print(json.dumps({{"case": name, "method": "m"}}), flush=True)
    if name == "bad":
        {body}
    print("** a line of Fortran")
    print(json.dumps({{"case": name, "method": "m", "verdict": "RIGHT", "error": 0.0, "words": ""}}), flush=True)
    print(json.dumps({{"case": name, "done": True}}), flush=True)
"""
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("os.abort()", Verdict.CRASH),
        ("sys.exit(3)", Verdict.CRASH),
        ("signal.setitimer(signal.ITIMER_REAL, 0.2); time.sleep(60)", Verdict.HANG),
    ],
)
def test_a_crash_and_a_hang_are_verdicts_and_the_other_cases_go_on(body, verdict):
    findings = run_library(stand_in(body), ["first", "bad", "last"])
    assert [findings[name]["m"].verdict for name in ("first", "bad", "last")] == [Verdict.RIGHT, verdict, Verdict.RIGHT]


def test_a_worker_that_does_not_start_is_an_error():
    with pytest.raises(RuntimeError, match="before any method"):
        run_library([sys.executable, "-c", "raise SystemExit(2)"], ["a"])


def test_the_worker_runs_a_library_in_a_process_of_its_own():
    name = "Zero curvature is no division by zero"
    findings = run_library(worker_of("ours"), [name])
    assert findings[name]["CG"].words == "INDEFINITE, 2 products"
    assert findings[name]["MINRES"].verdict is Verdict.RIGHT


def test_the_cell_is_the_worst_of_its_methods():
    right, wrong = Finding(Verdict.RIGHT, 0.0), Finding(Verdict.SILENT_WRONG, 1.0)
    assert cell({}) == "–"
    assert cell({"a": right}) == "right"
    assert cell({"a": right, "b": wrong}) == "**SILENT WRONG, 1 of 2**"


def test_the_command_prints_the_cases_asked_for_and_returns_nought(capsys):
    assert main(["--library", "ours", "--case", "zero curvature"]) == 0
    printed = capsys.readouterr().out
    assert "1 case." in printed
    assert "| 6. Zero curvature is no division by zero | reported, 1 of 2 |" in printed
    assert "| implicitgrad | CG | reported | 1.0e+00 | INDEFINITE, 2 products |" in printed
    with pytest.raises(SystemExit):
        main(["--write", "--library", "ours"])


# -- the page ----------------------------------------------------------------------------------------------------------
def test_the_page_has_every_case_of_the_zoo_and_no_other():
    """It is generated; a case that is new or renamed wants ``make peers PEERS_ARGS=--write``."""
    titles = [
        line.split(". ", 1)[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")
    ]
    assert titles == list(CASES)


def test_the_page_names_no_silent_answer_of_ours():
    rows = [r for r in PAGE.read_text(encoding="utf-8").splitlines() if r.startswith("| implicitgrad | ")]
    verdicts = {row.split(" | ")[2] for row in rows[1:]}  # the first row is the count
    assert verdicts == {Verdict.RIGHT.value, Verdict.REPORTED.value}


def test_the_page_is_replaced_between_its_marks_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{START}\nold\n<!-- end of what is generated -->\nbelow\n", encoding="utf-8")
    write_between(page, "new")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "new" in text
    assert "old" not in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="expected both"):
        write_between(page, "new")


def test_every_library_has_a_module_and_a_reason_where_it_is_missing():
    for library in LIBRARIES.values():
        assert find_spec(f"benchmarks.peers.libraries.{library.module}")
    assert "not on the package index" in LIBRARIES["with_hypertorch"].missing
    assert importlib.import_module("benchmarks.peers.libraries.with_hypertorch").methods(None) == {}
