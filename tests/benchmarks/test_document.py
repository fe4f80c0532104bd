"""docs/reproduction.md says what the records say."""

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from benchmarks.paper.document import PAGE, RESULTS, provenance, rendered
from benchmarks.paper.records import Records


def test_the_page_is_what_the_records_make_of_it():
    """If this fails: python -m benchmarks.paper.document."""
    page = PAGE.read_text()
    assert rendered(page) == page
    blocks = re.findall(r"<!-- ([a-z0-9-]+) -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert len(blocks) >= 9
    assert all(text.strip() for _, text in blocks)


def test_other_records_make_another_page(tmp_path):
    """The check can fail: one record less, and it does."""
    for path in RESULTS.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        (tmp_path / path.name).write_text("".join(lines[:-1] if path.stem == "propositions" else lines))
    page = PAGE.read_text()
    assert rendered(page, tmp_path) != page


def test_a_block_that_no_experiment_knows_is_an_error():
    with pytest.raises(KeyError, match="no-such-block"):
        rendered("<!-- no-such-block -->\n<!-- end -->")


def test_where_records_come_from_is_said(tmp_path):
    records = Records(tmp_path / "a.jsonl")
    assert provenance(records) == "Not run yet."
    records.add({"seed": 0}, {}, seconds=3600)
    text = provenance(records)
    assert text.startswith("1 records, ")
    assert "torch" in text
