"""What becomes of a prediction after quality control: reported, flagged or withheld, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.records import (
    Failure,
    Prediction,
    PredictionStatus,
    QcStatus,
    ScanPrediction,
    SubjectOutcome,
)

OUT_OF_DISTRIBUTION: Final = "out_of_distribution"
NOT_ABOVE_CHANCE: Final = "not_above_chance"
NO_CLASS_EXCLUDED: Final = "no_class_excluded"
NO_CLASS_FITS: Final = "no_class_fits"
MEMBERS_DISAGREE: Final = "members_disagree"
SITE_UNKNOWN: Final = "site_unknown"

SEEN_IN_TRAINING: Final = "seen_in_training"
CHOSEN_OF_SESSION: Final = "chosen_of_session"
COVARIATES_MISSING: Final = "covariates_missing"
VOLUMES_MISSING: Final = "volumes_missing"

REVIEW_EXPLANATIONS: Final = {
    "reviewed_pass": "A person looked at the scan and passed it; quality control's own verdict is overruled.",
    "reviewed_fail": "A person looked at the scan and failed it; quality control's own verdict is overruled.",
    "reviewed_unsure": "A person looked at the scan and was not sure of it; a passed scan warns.",
}
"""Code of a decision in ``qc_decisions.tsv`` to the sentence that explains it."""
FLAG_EXPLANATIONS: Final = {
    OUT_OF_DISTRIBUTION: "The scan is unlike the scans that the model was trained on (novelty score above the "
    "threshold that 5 % of the training scans exceed).",
    NOT_ABOVE_CHANCE: "Out of fold the model is not better than chance: none of its predictions means anything.",
    NO_CLASS_EXCLUDED: "The prediction set holds every class: none can be excluded for this scan.",
    NO_CLASS_FITS: "The prediction set is empty: the scan is unlike the training scans of every class.",
    MEMBERS_DISAGREE: "A member of the model that is better than chance by itself says another class. It flags only "
    "where, out of fold, such scans were predicted wrongly more often.",
    SITE_UNKNOWN: "The model takes the differences between the sites of its training out of a scan, and does not know "
    "the site of this one: its values are left as they are.",
    SEEN_IN_TRAINING: "The model was trained on this scan. What is said here comes from the one fold that did not "
    "see it, as in cross-validation; this alone flags nothing.",
    CHOSEN_OF_SESSION: "Of several scans of the session this one stands for it: the best verdict of quality control, "
    "then the highest contrast to noise; this alone flags nothing.",
    COVARIATES_MISSING: "The model looks at covariates such as age besides the image, and not all of this scan's are "
    "known to it; averages of the training scans stand in for them. This alone flags nothing.",
    VOLUMES_MISSING: "The prediction rests on volumes, and not all of this scan's are known: some were withheld, or "
    "the run did not measure them; averages of the training scans stand in for them. This alone flags nothing.",
}
"""Reason code to the sentence that explains it."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is written about a scan.

    Attributes
    ----------
    status : PredictionStatus
    flags : tuple of str
        Why a prediction is flagged, besides what quality control says.
    notes : tuple of str
        What a reader should know, without it being a reason for doubt.
    """

    status: PredictionStatus
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """Flags and notes, for ``prediction_reasons``."""
        return (*self.flags, *self.notes)

    @property
    def shows_probabilities(self) -> bool:
        """Tell whether anything that the model said about the class may be written."""
        return self.status in (PredictionStatus.REPORTED, PredictionStatus.FLAGGED)


def decide(outcome: SubjectOutcome) -> Decision:
    """Decide what becomes of a scan's prediction.

    A failed verdict of quality control withholds it. It is flagged by a warning, by a scan unlike those of the
    training, by a set that excludes no class or every one, by a model that is not above chance, and by members that
    disagree where that has gone with errors.
    """
    if isinstance(outcome, Failure):
        return Decision(status=PredictionStatus.FAILED)
    if outcome.prediction is None:
        return Decision(status=PredictionStatus.NO_MODEL)
    flags = prediction_flags(outcome.prediction)
    if outcome.verdict.status is QcStatus.FAIL:
        return Decision(status=PredictionStatus.WITHHELD)
    prediction = outcome.prediction
    noted = {
        MEMBERS_DISAGREE: isinstance(prediction, Prediction)
        and prediction.members_disagree
        and MEMBERS_DISAGREE not in flags,
        SEEN_IN_TRAINING: prediction.seen_in_training,
        COVARIATES_MISSING: prediction.covariates_missing,
        VOLUMES_MISSING: prediction.volumes_missing,
    }
    notes = tuple(code for code, applies in noted.items() if applies)
    if flags or outcome.verdict.status is QcStatus.WARN:
        return Decision(status=PredictionStatus.FLAGGED, flags=flags, notes=notes)
    return Decision(status=PredictionStatus.REPORTED, notes=notes)


def prediction_flags(prediction: ScanPrediction) -> tuple[str, ...]:
    """Return why a prediction is flagged, whatever quality control says of the scan."""
    of_classes = _flags_of_classes(prediction) if isinstance(prediction, Prediction) else {}
    applies = {
        OUT_OF_DISTRIBUTION: prediction.ood_score > prediction.ood_threshold,
        NOT_ABOVE_CHANCE: not prediction.above_chance,
        SITE_UNKNOWN: prediction.site_unknown,
        **of_classes,
    }
    order = (
        *(OUT_OF_DISTRIBUTION, NOT_ABOVE_CHANCE, NO_CLASS_EXCLUDED, NO_CLASS_FITS),
        *(SITE_UNKNOWN, MEMBERS_DISAGREE),
    )
    return tuple(code for code in order if applies.get(code))


def _flags_of_classes(prediction: Prediction) -> dict[str, bool]:
    in_set, classes = len(prediction.prediction_set), len(prediction.probabilities)
    return {
        NO_CLASS_EXCLUDED: in_set == classes,
        NO_CLASS_FITS: in_set == 0,
        MEMBERS_DISAGREE: prediction.disagreement_flags and prediction.members_disagree,
    }
