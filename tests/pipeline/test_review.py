"""What a person decided about scans is read whole or refused with every fault, and stands over quality control."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from brainstage.pipeline.review import (
    REVIEW_COLUMNS,
    read_decisions,
    remarks_of,
    review_remarks,
    reviewed,
)

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
    with pytest.raises(
        ManifestError, match="has no column t1w_path, decision; it needs t1w_path, decision, and may"
    ):
        read_decisions(written(tmp_path, header="participant_id,decision"))
    (tmp_path / "latin.tsv").write_bytes("t1w_path\tdecision\tnote\na\tpass\tm\xfcde\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_decisions(tmp_path / "latin.tsv")


def test_each_scan_gets_its_own_review():
    given = {"b.nii.gz": Review(decision=ReviewDecision.FAIL)}
    one, other = reviewed([scan(), scan(t1w_path="b.nii.gz")], given)
    assert (one.review, other.review) == (None, given["b.nii.gz"])


FULL = "t1w_path\tdecision\tsha256\tpreprocessing_id\treviewer\tdecided_at"


def test_a_decision_says_what_was_looked_at_by_whom_and_when(tmp_path):
    path = written(
        tmp_path,
        f"a.nii.gz\tpass\t{'A1' * 32}\tp01\tKL\t2025-01-31T13:00:00+01:00",
        "b.nii.gz\tpass\tn/a\tn/a\tNA\tn/a",
        header=FULL,
    )
    assert read_decisions(path) == {
        "a.nii.gz": Review(
            decision=ReviewDecision.PASS,
            sha256="a1" * 32,
            preprocessing_id="p01",
            reviewer="KL",
            decided_at="2025-01-31T12:00:00Z",
        ),
        "b.nii.gz": Review(decision=ReviewDecision.PASS, reviewer="NA"),
    }


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (f"{'a1' * 31}\t\t\t", "line 2: sha256 'a1.*is not the 64 digits.*leave it empty"),
        (f"{'g1' * 32}\t\t\t", "sha256"),
        (
            "\t\t\t31.1.2025",
            "line 2: decided_at '31.1.2025' is no date and time such as 2025-01-31T12:00:00Z",
        ),
        ("\t\t\t0001-01-01T00:00:00+05:00", "decided_at"),
    ],
)
def test_an_identity_that_is_none_is_a_fault(tmp_path, cells, says):
    with pytest.raises(ManifestError, match=says):
        read_decisions(written(tmp_path, f"a.nii.gz\tpass\t{cells}", header=FULL))


IDENTITIES = st.sampled_from(["", "a" * 64, "b" * 64])
CHAINS = st.sampled_from(["", "p1", "p2"])


@given(
    asked=st.tuples(IDENTITIES, CHAINS),
    here=st.tuples(IDENTITIES, CHAINS),
    measured=st.sampled_from(QcStatus),
)
def test_a_decision_counts_where_all_that_it_names_is_there_and_nowhere_else(asked, here, measured):
    review = Review(decision=ReviewDecision.PASS, sha256=asked[0], preprocessing_id=asked[1])
    outcome = Completed(
        scan=scan(review=review),
        qc=QcReport(measures={}, verdict=QcVerdict(status=measured, reasons=("cnr",))),
        prediction=None,
        preprocessing_id=here[1],
        source_sha256=here[0],
    )
    counts = all(name in ("", found) for name, found in zip(asked, here, strict=True))
    assert (outcome.review == review) is counts
    assert (outcome.review is None) is (not counts)
    if not counts:
        assert outcome.verdict == outcome.qc.verdict
        [remark] = review_remarks([outcome])
        assert "not applied: sub-01 (" in remark
    else:
        assert outcome.verdict.status is QcStatus.PASS
        assert bool(review_remarks([outcome])) is (asked[0] == "")


def test_of_many_decisions_the_first_are_named():
    decided = [(f"sub-{n:02d}", Review(decision=ReviewDecision.PASS), None) for n in range(12)]
    [remark] = remarks_of(decided)
    assert remark.startswith("12 decision(s)")
    assert remark.endswith("sub-08, sub-09, ...")


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
