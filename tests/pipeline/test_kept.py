"""What the program kept for itself reads back as it was, or counts as not there."""

from __future__ import annotations

import json

import pytest

from brainstage.pipeline.attempt import Attempt
from brainstage.pipeline.kept import as_record, read_record
from brainstage.pipeline.records import QcReport, QcStatus, ReferenceFinding

GOOD = {"stage": "ingest", "key": "", "started": 1.5}


def test_what_was_written_reads_back_as_it_was(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD))
    assert read_record(path, Attempt) == Attempt(stage="ingest", key="", started=1.5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", "{}", "[" * 100_000, '{"a":' * 100_000),
        *(
            json.dumps(GOOD | one)
            for one in ({"later": 1}, {"started": "1"}, {"stage": None}, {"key": ["a"]})
        ),
        *(
            json.dumps(GOOD | one)
            for one in ({"started": float("nan")}, {"started": float("inf")}, {"key": 1})
        ),
        json.dumps(GOOD).replace("1.5", "1e999"),
        json.dumps(GOOD).replace("1.5", "9" * 5000),
        json.dumps(GOOD | {"key": "x"}).replace("x", "\\ud800"),
        json.dumps({"stage": "ingest", "key": ""}),
    ],
)
def test_what_is_damaged_counts_as_none(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_record(path, Attempt) is None


def test_a_file_that_is_absent_counts_as_none(tmp_path):
    assert read_record(tmp_path / "x.json", Attempt) is None
    assert read_record(tmp_path, Attempt) is None


def test_records_inside_records_are_checked_too():
    content = {
        "measures": {"snr": 3.0, "whole": True, "note": None},
        "verdict": {"status": "warn", "reasons": ["snr"]},
    }
    report = as_record(content, QcReport)
    assert report.verdict.status is QcStatus.WARN
    assert report.measures == {"snr": 3.0, "whole": True, "note": None}
    for wrong in (
        {"measures": {"snr": [1]}},
        {"measures": {"snr": {}}},
        {"verdict": {"status": "warn", "reasons": "snr"}},
    ):
        with pytest.raises(ValueError, match=r"validation error|no QcReport"):
            as_record(content | wrong, QcReport)


def test_a_field_that_may_lack_may_lack():
    finding = {"measure": "m", "value": 1.0, "label": "CN", "people": 3, "by": ["age"]}
    assert as_record(finding, ReferenceFinding).by == ("age",)
