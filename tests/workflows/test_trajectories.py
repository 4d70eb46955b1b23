"""Visits in the order of time, the scan that stands for a session, changes, and reversals that cannot be."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    VOLUMES,
    BrainVolumes,
    Completed,
    Covariates,
    Failure,
    Prediction,
    QcReport,
    QcStatus,
    QcVerdict,
    SubjectOutcome,
    T1wScan,
)
from brainstage.workflows.trajectories import (
    best_scan,
    chosen_of_sessions,
    in_time_order,
    is_reversal,
    natural_order,
    trajectories_csv,
)

CLINICAL = ("CN", "MCI", "AD")


def prediction(label="AD", *, tier="high", members=None, classes=CLINICAL) -> Prediction:
    rest = 0.1 / (len(classes) - 1)
    return Prediction(
        probabilities={name: 0.9 if name == label else rest for name in classes},
        prediction_set=(label,) if members is None else tuple(members),
        ood_score=1.0,
        ood_threshold=2.0,
        tier=tier,
        member_labels={"linear": label},
        model_id="m",
    )


def visit(
    session: str | None = "M00",
    label: str | None = "CN",
    *,
    subject="01",
    run=None,
    age=None,
    qc=QcStatus.PASS,
    cnr: float | None = 2.0,
    ml: dict[str, float | None] | None = None,
    preprocessed: str = "p",
    **said,
) -> Completed:
    entities = BidsEntities(subject=subject, session=session, run=run)
    return Completed(
        scan=T1wScan(
            entities=entities, path=Path("x"), t1w_path=f"{entities.key}.nii", covariates=Covariates(age=age)
        ),
        qc=QcReport(measures={"cnr": cnr}, verdict=QcVerdict(status=qc)),
        prediction=prediction(label, **said) if label else None,
        preprocessing_id=preprocessed,
        volumes=BrainVolumes(volumes_ml=ml) if ml else None,
    )


def failed(session: str, subject="01") -> Failure:
    return Failure(scan=visit(session, subject=subject).scan, stage="ingest", error="E", message="torn")


def rows(outcomes: list[SubjectOutcome], classes=CLINICAL) -> list[dict[str, str]]:
    text = trajectories_csv(outcomes, classes)
    assert text is not None
    return list(csv.DictReader(io.StringIO(text)))


def sessions(outcomes: list[SubjectOutcome]) -> list[str | None]:
    return [outcome.scan.entities.session for outcome in in_time_order(outcomes)]


def test_a_participant_with_two_sessions_makes_a_table_of_all():
    found = rows([visit("M00"), visit("M12", "AD"), visit("M00", subject="02")])
    assert [(row["participant_id"], row["session_id"]) for row in found] == [
        ("sub-01", "ses-M00"),
        ("sub-01", "ses-M12"),
        ("sub-02", "ses-M00"),
    ]


@pytest.mark.parametrize(
    ("outcomes", "classes"),
    [
        pytest.param([visit("M00"), visit("M00", run="2"), visit("M00", subject="02")], CLINICAL, id="once"),
        pytest.param([], CLINICAL, id="nothing"),
    ],
)
def test_there_is_no_table_where_it_would_say_nothing(outcomes, classes):
    assert trajectories_csv(outcomes, classes) is None


def test_labels_are_ordered_by_their_numbers():
    assert sessions([visit(name) for name in ("M120", "M06", "M12", "M00", "M6")]) == [
        "M00",
        "M06",
        "M6",
        "M12",
        "M120",
    ]


def test_age_goes_before_the_label_only_where_it_is_known_for_all():
    later_first = [visit("A", age=72.0), visit("B", age=70.5), visit("C", age=71.0)]
    assert sessions(later_first) == ["B", "C", "A"]
    assert sessions([*later_first, visit("D")]) == ["A", "B", "C", "D"]
    assert sessions([visit("M12", age=70.0), visit("M06", age=70.0)]) == ["M06", "M12"]


@given(st.lists(st.text("aB019", max_size=6)), st.lists(st.integers(0, 400)), st.integers(1, 4))
def test_any_labels_can_be_ordered_and_their_numbers_count(labels, months, width):
    assert len(sorted(labels, key=natural_order)) == len(labels)  # text never meets a number
    written = sorted((f"M{month:0{width}d}" for month in months), key=natural_order)
    assert [int(label[1:]) for label in written] == sorted(months)


@pytest.mark.parametrize(
    ("scans", "best"),
    [
        ([visit(run="1", qc=QcStatus.WARN, cnr=9.0), visit(run="2", cnr=1.0)], "2"),
        ([visit(run="1", qc=QcStatus.FAIL), visit(run="2", qc=QcStatus.WARN, cnr=None)], "2"),
        ([visit(run="1", cnr=2.0), visit(run="2", cnr=3.0)], "2"),
        ([visit(run="1", cnr=None), visit(run="2", cnr=0.1)], "2"),
        ([visit(run="2"), visit(run="1")], "1"),
        ([failed("M00"), visit(run="1", qc=QcStatus.FAIL, cnr=None)], "1"),
    ],
    ids=["verdict", "warn before fail", "contrast", "measured", "name", "failed last"],
)
def test_the_best_scan_stands_for_its_session(scans, best):
    assert best_scan(scans).scan.entities.run == best
    assert best_scan(reversed(scans)).scan.entities.run == best


def test_only_a_choice_is_marked():
    outcomes = [visit(run="1"), visit(run="2", cnr=5.0), visit("M12"), visit(subject="02")]
    assert chosen_of_sessions(outcomes) == {"sub-01_ses-M00_run-2"}


def test_the_row_is_about_the_chosen_scan():
    first = rows([visit(run="1"), visit("M00", "AD", run="2", cnr=5.0), visit("M12")])[0]
    assert (first["t1w_path"], first["predicted_label"]) == ("sub-01_ses-M00_run-2.nii", "AD")


def test_changes_are_since_the_previous_session_with_probabilities():
    outcomes = [
        visit("M00", "CN", age=70.0),
        visit("M06", "AD", age=70.5, qc=QcStatus.FAIL),
        failed("M12"),
        visit("M24", "MCI", age=72.0),
    ]
    found = rows(outcomes)
    assert [row["prediction_status"] for row in found] == ["reported", "withheld", "failed", "reported"]
    assert [row["age"] for row in found] == ["70", "70.5", "", "72"]
    assert [row["change_of_p_CN"] for row in found] == ["", "", "", "-0.85"]
    assert [row["change_of_p_MCI"] for row in found] == ["", "", "", "0.85"]
    assert {found[n][name] for n in (1, 2) for name in ("predicted_label", "p_AD", "confidence", "flag")} == {
        ""
    }


@pytest.mark.parametrize(
    ("earlier", "later", "classes", "expected"),
    [
        pytest.param({"label": "AD"}, {"label": "CN"}, CLINICAL, True, id="back"),
        pytest.param({"label": "AD"}, {"label": "MCI", "tier": "review"}, CLINICAL, True, id="one step"),
        pytest.param({"label": "CN"}, {"label": "AD"}, CLINICAL, False, id="forth"),
        pytest.param({"label": "AD"}, {"label": "AD"}, CLINICAL, False, id="stays"),
        pytest.param({"label": "AD", "tier": "low"}, {"label": "CN"}, CLINICAL, False, id="unsure before"),
        pytest.param({"label": "AD"}, {"label": "CN", "tier": "low"}, CLINICAL, False, id="unsure after"),
        pytest.param(
            {"label": "AD", "members": ("MCI", "AD")},
            {"label": "CN", "members": ("CN", "MCI")},
            CLINICAL,
            False,
            id="room",
        ),
        pytest.param({"label": "AD", "members": ()}, {"label": "CN"}, CLINICAL, False, id="empty set"),
        pytest.param({"label": "AD"}, {"label": "CN"}, ("CN", "AD"), True, id="two classes"),
        pytest.param({"label": "AD"}, {"label": "CN"}, ("AD", "MCI", "CN"), False, id="another order"),
        pytest.param({"label": "FTD"}, {"label": "CN"}, ("CN", "AD", "FTD"), False, id="another class"),
    ],
)
def test_a_reversal_is_back_sure_and_without_room(earlier, later, classes, expected):
    first, second = (prediction(**said, classes=classes) for said in (earlier, later))
    assert is_reversal(first, second, classes) is expected


def test_a_reversal_is_flagged_across_visits_that_say_nothing_sure():
    outcomes = [
        visit("M00", "AD"),
        visit("M06", "CN", tier="low"),
        visit("M12", "CN", qc=QcStatus.FAIL),
        visit("M24", "CN", qc=QcStatus.WARN),
        visit("M36", "CN"),
    ]
    assert [row["flag"] for row in rows(outcomes)] == ["", "", "", "implausible_reversal", ""]


def hippocampi(left: float | None, right: float = 3.0) -> dict[str, float | None]:
    return {"intracranial": 1500.0, "hippocampus_left": left, "hippocampus_right": right}


def test_without_a_model_the_table_is_about_volumes_alone():
    found = rows([visit("M00", None, age=70.0), visit("M12", None, age=71.0)], ())
    assert [row["prediction_status"] for row in found] == ["no_model", "no_model"]
    assert not [name for name in found[0] if name.startswith(("p_", "change_of_p_"))]
    assert found[0].keys() >= {f"{name}_change_pct_per_year" for name in VOLUMES}


def test_the_change_of_a_volume_in_a_year_has_its_interval_and_a_word():
    first, second = rows(
        [
            visit("M00", None, age=70.51, ml=hippocampi(3.0)),
            visit("M24", None, age=72.51, ml=hippocampi(2.4, 2.98)),
        ],
        (),
    )
    assert {text for name, text in first.items() if "change" in name or name == "time_from"} == {""}
    assert (second["years_since_previous"], second["time_from"]) == ("2", "age")
    assert second["hippocampus_left_change_pct"] == "-20"
    per_year, low, high = (
        float(second[f"hippocampus_left_change_pct_per_year{end}"]) for end in ("", "_low", "_high")
    )
    assert low < per_year < high < 0
    assert per_year == pytest.approx(-10.557, abs=0.01)
    assert second["hippocampus_left_change"] == "decrease"
    assert second["hippocampus_right_change"] == "within measurement error"
    assert (second["intracranial_change"], second["intracranial_change_pct"]) == (
        "within measurement error",
        "0",
    )
    assert second["csf_change"] == ""


def test_where_the_time_is_not_known_there_is_no_change_in_a_year_and_that_is_said():
    _, second = rows([visit("M00", None, ml=hippocampi(3.0)), visit("M12", None, ml=hippocampi(2.4))], ())
    assert (second["years_since_previous"], second["time_from"]) == ("", "unknown")
    assert (second["hippocampus_left_change_pct"], second["hippocampus_left_change"]) == ("-20", "decrease")
    assert {second[f"hippocampus_left_change_pct_per_year{end}"] for end in ("", "_low", "_high")} == {""}


def test_a_volume_is_compared_with_the_last_visit_that_has_it_and_with_its_time():
    found = rows(
        [
            visit("M00", None, age=70.51, ml=hippocampi(3.0)),
            visit("M12", None, age=71.51, ml=hippocampi(None)),
            visit("M24", None, age=72.51, ml=hippocampi(1.0), qc=QcStatus.FAIL),
            failed("M30"),
            visit("M48", None, age=74.51, ml=hippocampi(2.4)),
        ],
        (),
    )
    # The failed visit has no age here, so the order is that of the labels.
    assert [row["hippocampus_left_change_pct"] for row in found] == ["", "", "", "", "-20"]
    assert float(found[-1]["hippocampus_left_change_pct_per_year"]) == pytest.approx(-5.426, abs=0.01)
    assert [row["hippocampus_right_change_pct"] for row in found] == ["", "0", "", "", "0"]


def test_visits_that_were_preprocessed_otherwise_are_not_compared():
    found = rows(
        [
            visit("M00", None, age=70.51, ml=hippocampi(3.0)),
            visit("M12", None, age=71.51, ml=hippocampi(2.0), preprocessed="other"),
            visit("M24", None, age=72.51, ml=hippocampi(2.97)),
        ],
        (),
    )
    assert [row["hippocampus_left_change_pct"] for row in found] == ["", "", "-1"]
