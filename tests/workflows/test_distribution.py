"""A cohort's distribution is that of its scans, is kept only when it looks different, and reaches every report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import Completed, Failure, QcReport, QcStatus, QcVerdict, T1wScan
from brainstage.workflows.reporting.distribution import (
    LEAST_SCANS,
    distributions_of,
    keep_distributions,
    read_distributions,
)


def outcomes(values, make_scan) -> list[Completed]:
    verdict = QcVerdict(status=QcStatus.PASS, reasons=())
    return [
        Completed(
            scan=make_scan(number),
            qc=QcReport(
                measures={"cnr": value, "skull_stripped_input": True, "header_warnings": "x"}, verdict=verdict
            ),
            prediction=None,
            preprocessing_id="p",
        )
        for number, value in enumerate(values)
    ]


@pytest.fixture
def make_scan(tmp_path):
    def make(number: int) -> T1wScan:
        name = f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        return T1wScan(entities=BidsEntities(subject=f"{number:02d}"), path=tmp_path / name, t1w_path=name)

    return make


def test_numbers_are_spread_and_nothing_else_is(make_scan):
    found = distributions_of(outcomes([3.0, 1.0, 2.0, 5.0, 4.0, None], make_scan))
    assert set(found) == {"cnr"}
    assert found["cnr"].landmarks == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert found["cnr"].scans == 5


def test_a_handful_of_scans_or_failures_has_no_distribution(make_scan):
    assert distributions_of(outcomes([1.0] * (LEAST_SCANS - 1), make_scan)) == {}
    failed = Failure(scan=make_scan(1), stage="ingest", error="ImageError", message="x")
    assert distributions_of([failed] * 9) == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=LEAST_SCANS, max_size=60), st.floats(-2e6, 2e6))
def test_the_place_of_a_value_is_what_its_words_say(values, value):
    (one,) = distributions_of(
        [
            Completed(
                scan=None, qc=QcReport(measures={"m": v}, verdict=None), prediction=None, preprocessing_id=""
            )
            for v in values
        ]
    ).values()
    below, above = np.less(values, value).mean(), np.greater(values, value).mean()
    holds = {
        "lowest": below == 0,
        "highest": above == 0,
        "like all": below == above == 0,
        "lower quarter": below <= 0.25 + 1 / len(values),
        "upper quarter": above <= 0.25 + 1 / len(values),
        "middle half": below <= 0.75 and above <= 0.75,
    }
    assert holds[one.place(value)]


def test_what_is_kept_is_replaced_only_when_it_looks_different(tmp_path, make_scan):
    first = distributions_of(outcomes([1.0, 2.0, 3.0, 4.0, 5.0], make_scan))
    assert keep_distributions(tmp_path, first)
    assert read_distributions(tmp_path).of_measure == first
    assert not keep_distributions(tmp_path, first)
    assert not keep_distributions(tmp_path, {"cnr": replace(first["cnr"], median=3.004, scans=6)})
    key = read_distributions(tmp_path).key
    assert keep_distributions(tmp_path, {"cnr": replace(first["cnr"], highest=9.0)})
    assert read_distributions(tmp_path).of_measure["cnr"].highest == 9.0
    assert read_distributions(tmp_path).key != key


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cnr": {"median": 1}}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / ".brainstage").mkdir()
    (tmp_path / ".brainstage" / "distributions.json").write_text(content)
    assert read_distributions(tmp_path).of_measure == {}
