"""The frame of the paper's experiments: records that an interruption cannot spoil, tables, the command line."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.options import parse
from benchmarks.paper.records import Records
from benchmarks.paper.table import difference, format_table, mean_and_deviation, pooled_deviation, proportion_interval

ROOT = Path(__file__).resolve().parents[2]


# -- records -----------------------------------------------------------------------------------------------------------
def test_a_record_that_was_added_is_found_by_its_whole_key(tmp_path):
    records = Records(tmp_path / "deep" / "a.jsonl")
    assert records.find(method="rbp", seed=0) is None
    records.add({"method": "rbp", "seed": 0}, {"loss": np.float32(0.5), "curve": np.arange(3)}, seconds=1.25)
    found = records.find(method="rbp", seed=0)
    assert found["result"] == {"loss": 0.5, "curve": [0, 1, 2]}
    assert found["seconds"] == 1.25
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]
    assert found["date"]
    assert records.find(method="rbp") is None
    assert records.find(method="rbp", seed=1) is None
    assert len(records.lines(method="rbp")) == 1


def test_the_last_of_several_records_counts(tmp_path):
    records = Records(tmp_path / "a.jsonl")
    for value in (1, 2):
        records.add({"seed": 0}, {"value": value}, 0.0)
    assert records.find(seed=0)["result"] == {"value": 2}


@given(cut=st.integers(1, 400))
def test_a_line_that_was_cut_off_is_run_again_and_spoils_no_other(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("records") / "a.jsonl"
    records = Records(path)
    records.add({"seed": 0}, {"value": 1}, 0.0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"seed": 0', b'"seed": 1')[: min(cut, len(whole) - 2)])
    assert records.find(seed=1) is None
    records.add({"seed": 1}, {"value": 3}, 0.0)
    assert records.find(seed=0)["result"] == {"value": 1}
    assert records.find(seed=1)["result"] == {"value": 3}


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": {"seed": 0}}\nnot json\n{"key": {"seed": 1}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: got no record"):
        Records(path).lines()


def test_what_is_not_finite_is_null_and_the_file_is_plain_json(tmp_path):
    records = Records(tmp_path / "a.jsonl")
    records.add({"seed": 0}, {"loss": math.nan, "curve": [1.0, math.inf]}, 0.0)
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed["result"] == {"loss": None, "curve": [1.0, None]}


def test_a_fresh_file_forgets(tmp_path):
    Records(tmp_path / "a.jsonl").add({"seed": 0}, {}, 0.0)
    assert Records(tmp_path / "a.jsonl", fresh=True).lines() == []


def test_two_writers_lose_no_line(tmp_path):
    script = (
        "import sys; from pathlib import Path; from benchmarks.paper.records import Records; "
        "records = Records(Path(sys.argv[1])); "
        "[records.add({'writer': sys.argv[2], 'seed': i}, {'x': 'y' * 500}, 0.0) for i in range(50)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path / "a.jsonl", name], cwd=ROOT) for name in ("a", "b")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(Records(tmp_path / "a.jsonl").lines()) == 100


# -- tables ------------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_and_deviation_are_those_of_numpy(values):
    mean, deviation = mean_and_deviation(values)
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(deviation, np.std(values, ddof=1), rtol=1e-6, atol=1e-6)


def test_one_value_has_no_deviation():
    mean, deviation = mean_and_deviation([3.0])
    assert mean == 3.0
    assert math.isnan(deviation)


@given(trials=st.integers(1, 200), data=st.data())
def test_a_proportion_lies_in_its_interval_which_inverts_the_score_test(trials, data):
    """Wilson: the ends are the p for which the observed share is 1.96 standard deviations away."""
    successes = data.draw(st.integers(0, trials))
    low, high = proportion_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            z = abs(share - end) / math.sqrt(end * (1 - end) / trials)
            assert z == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(successes, trials):
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials >= 1"):
        proportion_interval(successes, trials)


def test_a_difference_carries_both_errors():
    assert difference(5.0, 3.0, 9, 4.0, 2.0, 1) == (1.0, pytest.approx(math.sqrt(1 + 4)))


@given(data=st.data())
def test_the_pooled_deviation_is_that_of_the_residuals_of_both_samples(data):
    values = st.lists(st.floats(-100, 100), min_size=1, max_size=6)
    samples = data.draw(st.tuples(values, values).filter(lambda pair: len(pair[0]) + len(pair[1]) > 2))
    squares = math.fsum((v - math.fsum(s) / len(s)) ** 2 for s in samples for v in s)
    (_, one), (_, other) = map(mean_and_deviation, samples)
    pooled = pooled_deviation(one, len(samples[0]), other, len(samples[1]))
    assert pooled == pytest.approx(math.sqrt(squares / (len(samples[0]) + len(samples[1]) - 2)), rel=1e-9, abs=1e-12)


def test_tables_align_and_refuse_ragged_rows():
    text = format_table([["a", "1.0"], ["long name", "12.0"]], ("method", "loss"))
    assert text.splitlines()[0] == "method     loss"
    assert text.splitlines()[2] == "a           1.0"
    markdown = format_table([["a", "1.0"]], ("method", "loss"), markdown=True)
    assert markdown.splitlines()[1] == "|--------|-----:|"
    with pytest.raises(ValueError, match="expected one length"):
        format_table([["a"]], ("method", "loss"))


# -- the command -------------------------------------------------------------------------------------------------------
def test_options_hold_what_was_asked_for_and_leave_the_rest_to_the_experiment(tmp_path):
    options = parse(["citation", "--trials", "3", "--data-dir", str(tmp_path), "--only", "tbptt", "--reverse"])
    assert options.trials == 3
    assert options.data_dir == tmp_path
    assert options.only == ("tbptt",)
    assert options.arguments == ("--reverse",)
    assert options.records_file() == Path("outputs/paper/citation.jsonl")
    assert parse(["hopfield", "--quick"]).records_file().name == "quick-hopfield.jsonl"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnist"], "invalid choice: 'mnist'"),
        (["hopfield", "--trials", "0"], "got 0, expected a number of runs"),
        (["hopfield", "--data-dir", "no/such/folder"], "found no folder no/such/folder"),
    ],
)
def test_a_wrong_command_line_ends_in_a_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_quick_propositions_run_end_to_end_and_hold(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.paper", "propositions", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "NO" not in done.stdout
    for statement in ("P1  K + 1 updates", "P2  error of K terms", "P3  K + 1 steps", "1.2 lambda_min", "3.3 uniform"):
        assert statement in done.stdout
    assert len(Records(tmp_path / "quick-propositions.jsonl").lines()) == 10
