"""What came out for a scan, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.config import PredictionConfig
from brainstage.pipeline.records import (
    Completed,
    Failure,
    Prediction,
    PredictionStatus,
    QcStatus,
    SubjectOutcome,
)
from brainstage.workflows.reporting.pages import percent
from brainstage.workflows.reporting.qc_table import Reason

STAGE_TITLES: Final[Mapping[str, str]] = {
    "ingest": "reading the file",
    "brain_extraction": "finding the brain",
    "bias_field": "correcting the bias field",
    "intensity": "normalising the intensities",
    "registration": "registering to the template",
    "quality": "quality control",
    "prediction": "predicting",
}

_TONES: Final = {QcStatus.PASS: "good", QcStatus.WARN: "warn", QcStatus.FAIL: "bad"}
_VERBS: Final = {QcStatus.PASS: "passed", QcStatus.WARN: "warns", QcStatus.FAIL: "failed"}
_AFTER_FAILURE: Final = (
    "There is no preprocessed volume and no prediction; the other scans of the run are not affected. "
    "When the cause is removed, run the same command again with --retry-failed: finished scans are kept."
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A scan's result in words; `tone` is ``good``, ``warn``, ``bad`` or ``plain``."""

    headline: str
    tone: str
    sentences: tuple[str, ...]


def shown_prediction(outcome: SubjectOutcome, status: PredictionStatus) -> Prediction | None:
    """Return what may be seen of a prediction: nothing unless it is reported or flagged."""
    if isinstance(outcome, Failure) or status not in (PredictionStatus.REPORTED, PredictionStatus.FLAGGED):
        return None
    return outcome.prediction


def verdict_of(
    outcome: SubjectOutcome,
    status: PredictionStatus,
    *,
    reasons: Sequence[Reason] = (),
    remedy: str = "",
    tiers: PredictionConfig | None = None,
) -> Verdict:
    """Say in words what came out: prediction, certainty, quality control, what is withheld and why.

    Parameters
    ----------
    outcome : Completed or Failure
    status : PredictionStatus
    reasons : sequence of Reason
        Of quality control.
    remedy : str
        What to do about a failure, beyond its message.
    tiers : PredictionConfig, optional
        Where the tiers of confidence begin; the built-in ones when absent.
    """
    if isinstance(outcome, Failure):
        return _failure_verdict(outcome, remedy)
    quality = _quality_sentence(outcome, reasons)
    prediction = shown_prediction(outcome, status)
    if status is PredictionStatus.WITHHELD:
        return Verdict(
            headline="Prediction withheld by quality control",
            tone="bad",
            sentences=(
                quality,
                "No prediction is shown: what a model says about such a scan cannot be trusted.",
            ),
        )
    if prediction is None:
        judged = outcome.verdict.status
        sentences = (quality, "The run had no model, so nothing is predicted.")
        return Verdict(
            headline=f"Preprocessed; quality control {_VERBS[judged]}",
            tone=_TONES[judged],
            sentences=sentences,
        )
    headline = set_headline(prediction)
    said = (
        _certainty_sentence(prediction, tiers or PredictionConfig()),
        _set_sentence(prediction),
        quality,
    )
    if status is PredictionStatus.FLAGGED:
        note = "The prediction is flagged: weigh the points below before using it."
        return Verdict(headline=f"{headline}, flagged", tone="warn", sentences=(*said, note))
    return Verdict(headline=headline, tone="good" if is_decided(prediction) else "plain", sentences=said)


def is_decided(prediction: Prediction) -> bool:
    """Tell whether a model above chance leaves one class alone."""
    return prediction.above_chance and prediction.prediction_set == (prediction.predicted_label,)


def set_headline(prediction: Prediction) -> str:
    """Say in a few words what the prediction set leaves possible; the probabilities follow it."""
    if not prediction.above_chance:
        return "No prediction can be made: the model is not above chance"
    members = prediction.prediction_set
    if members and prediction.predicted_label not in members:  # each class has a limit of its own
        members = (prediction.predicted_label, *members)
    if len(members) == len(prediction.probabilities):
        return "No class can be ruled out"
    if not members:
        return "Unlike the training scans of every class"
    if len(members) > 1:
        return f"Undecided between {', '.join(members[:-1])} and {members[-1]}"
    return f"Predicted {members[0]}, {percent(prediction.probabilities[members[0]])}"


def _failure_verdict(failure: Failure, remedy: str) -> Verdict:
    doing = STAGE_TITLES.get(failure.stage, failure.stage)
    message = f"{failure.message[:1].upper()}{failure.message[1:]}".rstrip(".")
    sentences = (f"{message}.", *((remedy,) if remedy else ()), _AFTER_FAILURE)
    return Verdict(headline=f"Failed while {doing} (stage {failure.stage})", tone="bad", sentences=sentences)


def _certainty_sentence(prediction: Prediction, tiers: PredictionConfig) -> str:
    others = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[1:]
    rest = "".join(f"; {name} {percent(value)}" for name, value in others)
    high, review = tiers.high_confidence, tiers.review_confidence
    tier = {
        "high": f"high confidence, above {percent(high)}",
        "review": f"for review, between {percent(review)} and {percent(high)}",
        "low": f"low confidence, below {percent(review)}",
    }.get(prediction.tier, prediction.tier)
    return (
        f"The model's calibrated probability of {prediction.predicted_label} is {percent(prediction.confidence)} "
        f"({tier}){rest}."
    )


def _set_sentence(prediction: Prediction) -> str:
    members, level = prediction.prediction_set, percent(prediction.set_level)
    if not members:
        return f"The {level} prediction set is empty: the scan is unlike every class of the training data."
    if len(members) == 1:
        return f"The {level} prediction set holds {members[0]} alone."
    named = f"{', '.join(members[:-1])} and {members[-1]}"
    return f"The {level} prediction set holds {named}: none of them can be ruled out here."


def _quality_sentence(outcome: Completed, reasons: Sequence[Reason]) -> str:
    verdict = outcome.verdict
    if verdict.status is QcStatus.PASS:
        return "Quality control passed: no measure is out of bounds."
    named = "; ".join(reason.summary or reason.code for reason in reasons) or ", ".join(verdict.reasons)
    return f"Quality control {_VERBS[verdict.status]}: {named or 'no reason was given'}."
