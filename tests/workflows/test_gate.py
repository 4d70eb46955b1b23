"""The gate's truth table: who has the last word about a prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    Completed,
    Failure,
    Prediction,
    PredictionStatus,
    QcReport,
    QcStatus,
    QcVerdict,
    T1wScan,
)
from brainstage.workflows.gate import (
    CHOSEN_OF_SESSION,
    COVARIATES_MISSING,
    FLAG_EXPLANATIONS,
    MEMBERS_DISAGREE,
    NO_CLASS_EXCLUDED,
    NO_CLASS_FITS,
    NOT_ABOVE_CHANCE,
    OUT_OF_DISTRIBUTION,
    SEEN_IN_TRAINING,
    SITE_UNKNOWN,
    VOLUMES_MISSING,
    decide,
    prediction_flags,
)

SCAN = T1wScan(entities=BidsEntities(subject="01"), path=Path("x.nii"), t1w_path="x.nii")
PASS, WARN, FAIL = QcStatus.PASS, QcStatus.WARN, QcStatus.FAIL
REPORTED, FLAGGED, WITHHELD = PredictionStatus.REPORTED, PredictionStatus.FLAGGED, PredictionStatus.WITHHELD


def completed(qc: QcStatus, *, model=True, novel=False, linear="AD", **changes) -> Completed:
    values = {
        "probabilities": {"CN": 0.2, "AD": 0.8},
        "prediction_set": ("AD",),
        "ood_score": 2.5 if novel else 2.0,
        "ood_threshold": 2.0,
        "tier": "review",
        "member_labels": {"volumes": "CN", "linear": linear},
        "compared_members": ("linear",),
        "model_id": "m",
    }
    return Completed(
        scan=SCAN,
        qc=QcReport(measures={}, verdict=QcVerdict(status=qc)),
        prediction=Prediction(**(values | changes)) if model else None,
        preprocessing_id="p",
    )


@pytest.mark.parametrize("qc", [PASS, WARN, FAIL], ids=str)
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        pytest.param({}, (), id="nothing"),
        pytest.param({"novel": True}, (OUT_OF_DISTRIBUTION,), id="novel"),
        pytest.param({"above_chance": False}, (NOT_ABOVE_CHANCE,), id="at chance"),
        pytest.param({"prediction_set": ("CN", "AD")}, (NO_CLASS_EXCLUDED,), id="every class"),
        pytest.param({"prediction_set": ()}, (NO_CLASS_FITS,), id="no class"),
        pytest.param({"linear": "CN", "disagreement_flags": True}, (MEMBERS_DISAGREE,), id="disagree"),
        pytest.param(
            {"novel": True, "above_chance": False, "prediction_set": (), "linear": "CN", "disagreement_flags": True},
            (OUT_OF_DISTRIBUTION, NOT_ABOVE_CHANCE, NO_CLASS_FITS, MEMBERS_DISAGREE),
            id="all of them",
        ),
    ],
)  # fmt: skip
def test_quality_withholds_and_doubt_about_the_prediction_flags(qc, changes, flags):
    outcome = completed(qc, **changes)
    decision = decide(outcome)
    assert prediction_flags(outcome.prediction) == flags
    if qc is FAIL:
        assert (decision.status, decision.codes) == (WITHHELD, ())
    else:
        assert decision.status is (FLAGGED if flags or qc is WARN else REPORTED)
        assert decision.flags == flags
    assert decision.shows_probabilities is (qc is not FAIL)


@pytest.mark.parametrize(
    ("changes", "status", "flags", "notes"),
    [
        pytest.param({"linear": "CN"}, REPORTED, (), (MEMBERS_DISAGREE,), id="as a note"),
        pytest.param({"disagreement_flags": True}, REPORTED, (), (), id="of one that is at chance"),
        pytest.param(
            {"compared_members": ("volumes", "linear"), "disagreement_flags": True},
            FLAGGED, (MEMBERS_DISAGREE,), (), id="of one of several",
        ),
        pytest.param({"linear": "CN", "compared_members": ()}, REPORTED, (), (), id="of none that is able"),
    ],
)  # fmt: skip
def test_disagreement_flags_only_where_it_went_with_errors(changes, status, flags, notes):
    decision = decide(completed(PASS, **changes))
    assert (decision.status, decision.flags, decision.notes) == (status, flags, notes)


def test_a_set_of_some_classes_is_no_reason_to_flag():
    three = {"CN": 0.2, "MCI": 0.3, "AD": 0.5}
    decision = decide(completed(PASS, probabilities=three, prediction_set=("MCI", "AD")))
    assert (decision.status, decision.codes) == (REPORTED, ())


@pytest.mark.parametrize("qc", [PASS, WARN, FAIL], ids=str)
def test_without_a_model_there_is_nothing_to_withhold(qc):
    decision = decide(completed(qc, model=False))
    assert decision.status is PredictionStatus.NO_MODEL
    assert not decision.shows_probabilities


def test_a_failed_scan_is_failed():
    decision = decide(Failure(scan=SCAN, stage="ingest", error="ImageError", message="no good"))
    assert decision.status is PredictionStatus.FAILED
    assert not decision.shows_probabilities


@pytest.mark.parametrize(
    ("qc", "linear", "status", "codes"),
    [
        (PASS, "AD", REPORTED, (SEEN_IN_TRAINING,)),
        (WARN, "AD", FLAGGED, (SEEN_IN_TRAINING,)),
        (PASS, "CN", FLAGGED, (MEMBERS_DISAGREE, SEEN_IN_TRAINING)),
        (FAIL, "CN", WITHHELD, ()),
    ],
)
def test_a_scan_of_the_training_is_noted_and_not_flagged(qc, linear, status, codes):
    decision = decide(completed(qc, linear=linear, disagreement_flags=True, seen_in_training=True))
    assert (decision.status, decision.codes) == (status, codes)


@pytest.mark.parametrize(
    ("field", "code"),
    [("covariates_missing", COVARIATES_MISSING), ("volumes_missing", VOLUMES_MISSING)],
)
def test_what_a_model_misses_is_noted_and_not_flagged(field, code):
    decision = decide(completed(PASS, **{field: True}))
    assert (decision.status, decision.codes) == (REPORTED, (code,))
    both = decide(completed(PASS, seen_in_training=True, **{field: True}))
    assert both.notes == (SEEN_IN_TRAINING, code)


def test_every_flag_is_explained():
    assert set(FLAG_EXPLANATIONS) == {
        OUT_OF_DISTRIBUTION,
        NOT_ABOVE_CHANCE,
        NO_CLASS_EXCLUDED,
        NO_CLASS_FITS,
        MEMBERS_DISAGREE,
        SITE_UNKNOWN,
        SEEN_IN_TRAINING,
        COVARIATES_MISSING,
        VOLUMES_MISSING,
        CHOSEN_OF_SESSION,
    }
    assert all(text.endswith(".") for text in FLAG_EXPLANATIONS.values())
