"""What a person decided about scans is read whole or refused with every fault, and stands over quality control."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.records import (
    Completed,
    QcReport,
    QcStatus,
    QcVerdict,
    Review,
    ReviewDecision,
    T1wScan,
)
from brainstage.pipeline.review import REVIEW_COLUMNS, read_decisions, reviewed

HEADER = "\t".join(REVIEW_COLUMNS)


def written(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "qc_decisions.tsv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def scan(**changes) -> T1wScan:
    values = {"entities": BidsEntities(subject="01"), "path": Path("x"), "t1w_path": "a.nii.gz"}
    return T1wScan(**(values | changes))


def test_decisions_are_read_with_their_notes(tmp_path):
    path = written(
        tmp_path,
        "sub-01\tses-M00\trun-1\ta.nii.gz\tfail\tcut at the vertex",
        "sub-02\t\t\tb.nii.gz\tpass\t'=fine",
        "sub-03\t\t\tc.nii.gz\tn/a\tonly a note",
        "sub-04\t\t\td.nii.gz\t\t",
        "sub-05\t\t\te.nii.gz\tunsure",
    )
    assert read_decisions(path) == {
        "a.nii.gz": Review(decision=ReviewDecision.FAIL, note="cut at the vertex"),
        "b.nii.gz": Review(decision=ReviewDecision.PASS, note="=fine"),
        "e.nii.gz": Review(decision=ReviewDecision.UNSURE),
    }


def test_a_table_by_hand_needs_two_columns_only(tmp_path):
    path = written(tmp_path, "a.nii.gz\tpass", header="t1w_path\tdecision")
    assert read_decisions(path)["a.nii.gz"].decision is ReviewDecision.PASS


def test_every_fault_is_named_with_its_line(tmp_path):
    path = written(
        tmp_path,
        "sub-01\t\t\ta.nii.gz\tgood\t",
        "sub-02\t\t\tb.nii.gz\tpass\t",
        "sub-02\t\t\tb.nii.gz\tfail\t",
        "sub-03\t\t\t\tfail\t",
    )
    with pytest.raises(ManifestError) as caught:
        read_decisions(path)
    text = str(caught.value)
    assert "3 fault(s)" in text
    assert "line 2: decision 'good' is not pass, fail, unsure or empty" in text
    assert "line 4: b.nii.gz stands there already" in text
    assert "line 5: t1w_path is empty" in text


def test_what_is_no_such_table_is_one_sentence(tmp_path):
    with pytest.raises(InputMissingError, match=r"nowhere\.tsv cannot be read"):
        read_decisions(tmp_path / "nowhere.tsv")
    with pytest.raises(ManifestError, match="has no column t1w_path, decision; it needs"):
        read_decisions(written(tmp_path, header="participant_id,decision"))
    (tmp_path / "latin.tsv").write_bytes("t1w_path\tdecision\tnote\na\tpass\tm\xfcde\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_decisions(tmp_path / "latin.tsv")


def test_each_scan_gets_its_own_review():
    given = {"b.nii.gz": Review(decision=ReviewDecision.FAIL)}
    one, other = reviewed([scan(), scan(t1w_path="b.nii.gz")], given)
    assert (one.review, other.review) == (None, given["b.nii.gz"])


@pytest.mark.parametrize("measured", list(QcStatus))
@pytest.mark.parametrize("decision", list(ReviewDecision))
def test_a_person_stands_over_quality_control_whose_reasons_stay(measured, decision):
    qc = QcReport(measures={}, verdict=QcVerdict(status=measured, reasons=("cnr",)))
    outcome = Completed(
        scan=scan(review=Review(decision=decision)), qc=qc, prediction=None, preprocessing_id="x"
    )
    expected = {
        "pass": QcStatus.PASS,
        "fail": QcStatus.FAIL,
        "unsure": QcStatus.FAIL if measured is QcStatus.FAIL else QcStatus.WARN,
    }[decision]
    assert outcome.verdict == QcVerdict(status=expected, reasons=("cnr", f"reviewed_{decision}"))
