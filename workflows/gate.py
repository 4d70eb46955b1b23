"""What becomes of a prediction once quality control, novelty and the baseline have had their word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.records import Completed, Failure, PredictionStatus, QcStatus, SubjectOutcome

OUT_OF_DISTRIBUTION: Final = "out_of_distribution"
BASELINE_DISAGREES: Final = "baseline_disagrees"

SEEN_IN_TRAINING: Final = "seen_in_training"
CHOSEN_OF_SESSION: Final = "chosen_of_session"
COVARIATES_MISSING: Final = "covariates_missing"

REVIEW_EXPLANATIONS: Final = {
    "reviewed_pass": "A person looked at the scan and passed it; quality control's own verdict is overruled.",
    "reviewed_fail": "A person looked at the scan and failed it; quality control's own verdict is overruled.",
    "reviewed_unsure": "A person looked at the scan and was not sure of it; a passed scan warns.",
}
"""Code of a decision in ``qc_decisions.tsv`` to the sentence that explains it."""
FLAG_EXPLANATIONS: Final = {
    OUT_OF_DISTRIBUTION: "The scan is unlike the scans that the model was trained on (novelty score above the "
    "threshold that 5 % of the training scans exceed).",
    BASELINE_DISAGREES: "The linear baseline, trained on the same scans, says another class than the network.",
    SEEN_IN_TRAINING: "The model was trained on this scan. What is said here comes from the one fold that did not "
    "see it, as in cross-validation; this alone flags nothing.",
    CHOSEN_OF_SESSION: "Of several scans of the session this one stands for it: the best verdict of quality control, "
    "then the highest contrast to noise; this alone flags nothing.",
    COVARIATES_MISSING: "The model looks at covariates such as age besides the image, and not all of this scan's are "
    "known to it; averages of the training scans stand in for them. This alone flags nothing.",
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
        """Flags and notes, for ``qc_reasons``."""
        return (*self.flags, *self.notes)

    @property
    def shows_probabilities(self) -> bool:
        """Tell whether anything that the model said about the class may be written."""
        return self.status in (PredictionStatus.REPORTED, PredictionStatus.FLAGGED)


def decide(outcome: SubjectOutcome) -> Decision:
    """Decide what becomes of a scan's prediction.

    A failed verdict of quality control withholds it; a warning, a novel scan, or a disagreement with the
    baseline flags it.
    """
    if isinstance(outcome, Failure):
        return Decision(status=PredictionStatus.FAILED)
    if outcome.prediction is None:
        return Decision(status=PredictionStatus.NO_MODEL)
    flags = _flags(outcome)
    if outcome.verdict.status is QcStatus.FAIL:
        return Decision(status=PredictionStatus.WITHHELD)
    noted = {
        SEEN_IN_TRAINING: outcome.prediction.seen_in_training,
        COVARIATES_MISSING: outcome.prediction.covariates_missing,
    }
    notes = tuple(code for code, applies in noted.items() if applies)
    if flags or outcome.verdict.status is QcStatus.WARN:
        return Decision(status=PredictionStatus.FLAGGED, flags=flags, notes=notes)
    return Decision(status=PredictionStatus.REPORTED, notes=notes)


def _flags(outcome: Completed) -> tuple[str, ...]:
    prediction = outcome.prediction
    if prediction is None:
        return ()
    flags = []
    if prediction.ood_score > prediction.ood_threshold:
        flags.append(OUT_OF_DISTRIBUTION)
    if prediction.baseline_label not in (None, prediction.predicted_label):
        flags.append(BASELINE_DISAGREES)
    return tuple(flags)
