"""Every fault of the catalogue that can be run has a test that names its number, and no number is made up."""

import textwrap

import pytest
from catalogue import FAULTS, NOT_RUN
from register import marked, table

ANSWERS = marked()


def test_the_catalogue_counts_from_1_to_114():
    assert list(FAULTS) == list(range(1, 115))
    assert all(sentence.strip() for sentence in (*FAULTS.values(), *NOT_RUN.values()))


def test_every_fault_is_answered_for_by_a_test_or_listed_with_a_reason():
    assert sorted(set(FAULTS) - set(ANSWERS) - set(NOT_RUN)) == []


def test_no_fault_is_both_tested_and_listed_as_not_run():
    assert sorted(set(ANSWERS) & set(NOT_RUN)) == []


def test_every_marked_number_is_in_the_catalogue():
    assert sorted(set(ANSWERS) - set(FAULTS)) == []
    assert sorted(set(NOT_RUN) - set(FAULTS)) == []


def test_the_register_names_each_fault_with_its_tests():
    told = table()
    assert "???" not in told
    assert all(sentence in told for sentence in FAULTS.values())


def test_markers_are_read_wherever_pytest_takes_them(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        textwrap.dedent(
            """
            pytestmark = [pytest.mark.fault(1)]

            @pytest.mark.fault(2, 3)
            @other
            def test_a(): ...

            def no_test(): ...

            @pytest.mark.fault(4)
            class TestB:
                @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault(5)), 2])
                def test_c(self, x): ...

            # @pytest.mark.fault(6)
            @pytest.mark.fault(7)
            def helper(): ...
            """
        )
    )
    a, c = "tests/test_some.py::test_a", "tests/test_some.py::TestB::test_c"
    assert marked(tmp_path / "tests") == {1: [a, c], 2: [a], 3: [a], 4: [c], 5: [c]}


def test_a_number_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "test_some.py").write_text("@pytest.mark.fault(*NUMBERS)\ndef test_a(): ...\n")
    with pytest.raises(ValueError, match=r"test_some\.py:1: fault\(\*NUMBERS\), expected a plain number"):
        marked(tmp_path)
