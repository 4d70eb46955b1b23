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
    BASELINE_DISAGREES,
    CHOSEN_OF_SESSION,
    COVARIATES_MISSING,
    FLAG_EXPLANATIONS,
    OUT_OF_DISTRIBUTION,
    SEEN_IN_TRAINING,
    decide,
)

SCAN = T1wScan(entities=BidsEntities(subject="01"), path=Path("x.nii"), t1w_path="x.nii")
PASS, WARN, FAIL = QcStatus.PASS, QcStatus.WARN, QcStatus.FAIL
REPORTED, FLAGGED, WITHHELD = PredictionStatus.REPORTED, PredictionStatus.FLAGGED, PredictionStatus.WITHHELD


def completed(
    qc: QcStatus, *, novel=False, baseline: str | None = "AD", model=True, seen=False, missing=False
) -> Completed:
    prediction = Prediction(
        probabilities={"CN": 0.2, "AD": 0.8},
        prediction_set=("AD",),
        ood_score=2.5 if novel else 2.0,
        ood_threshold=2.0,
        tier="review",
        baseline_label=baseline,
        model_id="m",
        seen_in_training=seen,
        covariates_missing=missing,
    )
    return Completed(
        scan=SCAN,
        qc=QcReport(measures={}, verdict=QcVerdict(status=qc)),
        prediction=prediction if model else None,
        preprocessing_id="p",
    )


@pytest.mark.parametrize(
    ("qc", "novel", "baseline", "status", "flags"),
    [
        (PASS, False, "AD", REPORTED, ()),
        (PASS, False, None, REPORTED, ()),
        (PASS, False, "CN", FLAGGED, (BASELINE_DISAGREES,)),
        (PASS, True, "AD", FLAGGED, (OUT_OF_DISTRIBUTION,)),
        (PASS, True, None, FLAGGED, (OUT_OF_DISTRIBUTION,)),
        (PASS, True, "CN", FLAGGED, (OUT_OF_DISTRIBUTION, BASELINE_DISAGREES)),
        (WARN, False, "AD", FLAGGED, ()),
        (WARN, False, None, FLAGGED, ()),
        (WARN, False, "CN", FLAGGED, (BASELINE_DISAGREES,)),
        (WARN, True, "AD", FLAGGED, (OUT_OF_DISTRIBUTION,)),
        (WARN, True, "CN", FLAGGED, (OUT_OF_DISTRIBUTION, BASELINE_DISAGREES)),
        (FAIL, False, "AD", WITHHELD, ()),
        (FAIL, False, None, WITHHELD, ()),
        (FAIL, False, "CN", WITHHELD, ()),
        (FAIL, True, "AD", WITHHELD, ()),
        (FAIL, True, "CN", WITHHELD, ()),
    ],
)
def test_quality_then_novelty_then_the_baseline_decide(qc, novel, baseline, status, flags):
    decision = decide(completed(qc, novel=novel, baseline=baseline))
    assert (decision.status, decision.flags) == (status, flags)
    assert decision.shows_probabilities is (status is not WITHHELD)


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
    ("qc", "baseline", "status", "codes"),
    [
        (PASS, "AD", REPORTED, (SEEN_IN_TRAINING,)),
        (WARN, "AD", FLAGGED, (SEEN_IN_TRAINING,)),
        (PASS, "CN", FLAGGED, (BASELINE_DISAGREES, SEEN_IN_TRAINING)),
        (FAIL, "CN", WITHHELD, ()),
    ],
)
def test_a_scan_of_the_training_is_noted_and_not_flagged(qc, baseline, status, codes):
    decision = decide(completed(qc, baseline=baseline, seen=True))
    assert (decision.status, decision.codes) == (status, codes)


def test_missing_covariates_are_noted_and_not_flagged():
    decision = decide(completed(PASS, missing=True))
    assert (decision.status, decision.codes) == (REPORTED, (COVARIATES_MISSING,))
    assert decide(completed(PASS, missing=True, seen=True)).notes == (SEEN_IN_TRAINING, COVARIATES_MISSING)


def test_every_flag_is_explained():
    assert set(FLAG_EXPLANATIONS) == {
        OUT_OF_DISTRIBUTION,
        BASELINE_DISAGREES,
        SEEN_IN_TRAINING,
        COVARIATES_MISSING,
        CHOSEN_OF_SESSION,
    }
    assert all(text.endswith(".") for text in FLAG_EXPLANATIONS.values())
