"""What came out for a scan, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.config import PredictionConfig
from brainstage.pipeline.records import (
    Completed,
    Failure,
    NumberPrediction,
    Prediction,
    PredictionStatus,
    QcStatus,
    ScanPrediction,
    SubjectOutcome,
)
from brainstage.workflows.reporting.number_verdict import gap_sentence, interval_sentence, number_headline
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
ONE_CLASS: Final = "one class"
UNDECIDED: Final = "undecided"
NO_CLASS_EXCLUDED: Final = "no class ruled out"
NO_CLASS_FITS: Final = "unlike every class"
NOT_ABOVE_CHANCE: Final = "model not above chance"
SET_VERDICTS: Final = (ONE_CLASS, UNDECIDED, NO_CLASS_EXCLUDED, NO_CLASS_FITS, NOT_ABOVE_CHANCE)
"""What a prediction leaves possible, the most decided first."""
_NAMING: Final = (ONE_CLASS, UNDECIDED)
"""Verdicts whose headline names classes; the headlines of the others say why they are flagged."""
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
    """Return what may be seen of the prediction of a class: nothing unless it is reported or flagged."""
    found = _shown(outcome, status)
    return found if isinstance(found, Prediction) else None


def shown_number(outcome: SubjectOutcome, status: PredictionStatus) -> NumberPrediction | None:
    """Return what may be seen of the prediction of a number: nothing unless it is reported or flagged."""
    found = _shown(outcome, status)
    return found if isinstance(found, NumberPrediction) else None


def _shown(outcome: SubjectOutcome, status: PredictionStatus) -> ScanPrediction | None:
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
    number = shown_number(outcome, status)
    if number is not None:
        return _number_verdict(number, outcome, status, quality)
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
        flagged = f"{headline}, flagged" if set_verdict(prediction) in _NAMING else headline
        return Verdict(headline=flagged, tone="warn", sentences=(*said, _flag_sentence(prediction)))
    return Verdict(headline=headline, tone="good" if is_decided(prediction) else "plain", sentences=said)


def _number_verdict(
    number: NumberPrediction, outcome: Completed, status: PredictionStatus, quality: str
) -> Verdict:
    headline = number_headline(number, outcome.scan)
    said = [interval_sentence(number, outcome.scan), gap_sentence(number), quality]
    if status is PredictionStatus.FLAGGED:
        headline += ", flagged" if number.above_chance else ""
        said.append(_flag_sentence(number))
    tone = "warn" if status is PredictionStatus.FLAGGED else "plain"
    return Verdict(headline=headline, tone=tone, sentences=tuple(filter(None, said)))


def is_decided(prediction: Prediction) -> bool:
    """Tell whether a model above chance leaves one class alone: the one with the largest probability."""
    return set_verdict(prediction) == ONE_CLASS


def set_verdict(prediction: Prediction) -> str:
    """Return which of :data:`SET_VERDICTS` applies: what a prediction leaves possible, in two or three words.

    A set that leaves out the class with the largest probability decides nothing: each class has a limit of its own.
    """
    if not prediction.above_chance:
        return NOT_ABOVE_CHANCE
    members = prediction.prediction_set
    if not members:
        return NO_CLASS_FITS
    if len(members) == len(prediction.probabilities):
        return NO_CLASS_EXCLUDED
    return ONE_CLASS if members == (prediction.predicted_label,) else UNDECIDED


def set_headline(prediction: Prediction) -> str:
    """Say in a few words what the prediction set leaves possible; the probabilities follow it."""
    verdict, label = set_verdict(prediction), prediction.predicted_label
    if verdict == UNDECIDED:
        return f"Undecided between {_listed(tuple(dict.fromkeys((label, *prediction.prediction_set))))}"
    return {
        ONE_CLASS: f"Predicted {label}, {percent(prediction.confidence)}",
        NO_CLASS_EXCLUDED: "No class can be ruled out",
        NO_CLASS_FITS: "Unlike the training scans of every class",
        NOT_ABOVE_CHANCE: "No prediction can be made: the model is not above chance",
    }[verdict]


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
    members, label = prediction.prediction_set, prediction.predicted_label
    found = f"The {percent(prediction.set_level)} prediction set"
    if not members:
        return f"{found} is empty: the scan is unlike the training scans of every class."
    named = f"{found} holds {members[0]} alone" if len(members) == 1 else f"{found} holds {_listed(members)}"
    if label not in members:
        return (
            f"{named} and not {label}, though that has the largest probability: each class has its own limit."
        )
    return f"{named}." if len(members) == 1 else f"{named}: none of them can be ruled out here."


def _flag_sentence(prediction: ScanPrediction) -> str:
    if not prediction.above_chance:
        return "The prediction is flagged: out of fold the model does no better than chance. Do not use it."
    return "The prediction is flagged: weigh the points below before using it."


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _quality_sentence(outcome: Completed, reasons: Sequence[Reason]) -> str:
    verdict = outcome.verdict
    if verdict.status is QcStatus.PASS:
        return "Quality control passed: no measure is out of bounds."
    named = "; ".join(reason.summary or reason.code for reason in reasons) or ", ".join(verdict.reasons)
    return f"Quality control {_VERBS[verdict.status]}: {named or 'no reason was given'}."
