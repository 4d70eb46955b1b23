"""What a finished model of a number is worth on a cohort that it never saw: measured, written, and said in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member
from brainstage.models.metrics import Estimate, proportion
from brainstage.models.model_description import NumberDescription
from brainstage.models.number_metrics import NumberEvaluation, evaluate_numbers
from brainstage.models.number_predictor import Numbers
from brainstage.pipeline.files import read_json_or_empty, write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import NumberPrediction
from brainstage.workflows.learning.cohort_evaluation import (
    EVALUATE_COMMAND,
    FEW_SCANS,
    NOT_KNOWN,
    SMALLEST_GROUP,
    cohort_words,
)
from brainstage.workflows.learning.labelled_cohort import LabelledScan, numbers_of
from brainstage.workflows.learning.model_card import cell
from brainstage.workflows.learning.model_evaluation import estimate_content
from brainstage.workflows.learning.number_card import MEASURE_WORDS, bias_sentence, percent_cell
from brainstage.workflows.learning.number_evaluation import (
    IntervalEvaluation,
    evaluate_intervals,
    interval_content,
    number_evaluation_content,
    number_prediction_columns,
    number_scan_columns,
    predictions_figure,
)
from brainstage.workflows.reporting.markdown import markdown_environment

_TITLE: Final = "Predictions for another cohort"


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedCohort:
    """What a model of a number says about the scans of a cohort.

    Attributes
    ----------
    scans : tuple of LabelledScan
    predictions : tuple of NumberPrediction
        As ``brainstage run --model`` makes them.
    qc : tuple of str
        Verdict of quality control on each scan.
    """

    scans: tuple[LabelledScan, ...]
    predictions: tuple[NumberPrediction, ...]
    qc: tuple[str, ...]

    @property
    def targets(self) -> Numbers:
        """True values, (N,)."""
        return numbers_of(self.scans)

    @property
    def values(self) -> Numbers:
        """Published, (N,)."""
        return np.array([one.value for one in self.predictions])

    @property
    def participants(self) -> list[str]:
        """Of each scan."""
        return [scan.row.participant_id for scan in self.scans]

    def member(self, name: Member) -> Numbers:
        """Return the values of one member, (N,)."""
        return np.array([one.member_values[name] for one in self.predictions])


@dataclass(frozen=True, kw_only=True)
class NumberGroup:
    """The scans that have one value of a column in common; `not_measured` says why there is no evaluation."""

    scans: int
    evaluation: NumberEvaluation | None = None
    not_measured: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberCohortEvaluation:
    """Every measured property of a model of a number on another cohort.

    Attributes
    ----------
    predictor : NumberEvaluation
        R2 is against the mean of this cohort.
    members : mapping
        Member of the model to what it reaches by itself.
    intervals : IntervalEvaluation
    groups : mapping
        ``by_site``, ``by_sex`` and ``by_qc_status`` to value to group.
    beyond_threshold : Estimate
        Fraction of the scans whose novelty score is above the model's threshold.
    cross_validated : Estimate or None
        Mean absolute error in the model's own cross-validation, where the model directory still tells it.
    """

    predictor: NumberEvaluation
    members: Mapping[Member, NumberEvaluation]
    intervals: IntervalEvaluation
    groups: Mapping[str, Mapping[str, NumberGroup]]
    beyond_threshold: Estimate
    cross_validated: Estimate | None


def evaluate_number_cohort(
    predicted: PredictedCohort,
    members: Sequence[Member],
    cross_validated: Estimate | None,
    *,
    seed: int,
) -> NumberCohortEvaluation:
    """Measure a model on scans that it was not trained on; nothing is fitted here.

    Parameters
    ----------
    predicted : PredictedCohort
    members : sequence of str
        Of the model.
    cross_validated : Estimate or None
        From :func:`read_cross_validated_error`.
    seed : int
        Of the bootstrap.
    """
    targets = predicted.targets
    everyone = np.ones(len(targets), dtype=np.bool_)

    def measured(values: Numbers, chosen: NDArray[np.bool_] = everyone) -> NumberEvaluation:
        people = [name for name, taken in zip(predicted.participants, chosen, strict=True) if taken]
        return evaluate_numbers(values[chosen], targets[chosen], people, seed=seed)

    def grouped(values: Sequence[str | None]) -> dict[str, NumberGroup]:
        return _groups(values, lambda chosen: measured(predicted.values, chosen))

    return NumberCohortEvaluation(
        predictor=measured(predicted.values),
        members={name: measured(predicted.member(name)) for name in members},
        intervals=evaluate_intervals(predicted.predictions, targets),
        groups={
            "by_site": grouped([scan.row.site for scan in predicted.scans]),
            "by_sex": grouped([scan.row.sex for scan in predicted.scans]),
            "by_qc_status": grouped(predicted.qc),
        },
        beyond_threshold=proportion(
            sum(said.ood_score > said.ood_threshold for said in predicted.predictions), len(targets)
        ),
        cross_validated=cross_validated,
    )


def read_cross_validated_error(model_dir: Path) -> Estimate | None:
    """Return the cross-validated mean absolute error that a model directory tells; None where it does not."""
    content: Any = read_json_or_empty(model_dir / "evaluation" / "metrics.json")
    try:
        found = content["cross_validation"]["measures"]["mae"]
        return Estimate(**{name: float(found[name]) for name in ("value", "low", "high")})
    except (KeyError, TypeError, ValueError):
        return None


def write_number_result(
    folder: Path,
    model: NumberDescription,
    predicted: PredictedCohort,
    result: NumberCohortEvaluation,
    *,
    column: str,
    seed: int,
    left_out: Mapping[str, Sequence[str]],
    unknown_files: int,
) -> None:
    """Write all files of a result into an empty folder.

    Parameters
    ----------
    column : str
        Where the true values stood.
    left_out : mapping
        Reason to the keys of the scans that were not predicted.
    unknown_files : int
        Predicted scans whose hash is not known, so that they may be training scans.
    """
    about = {
        "command": EVALUATE_COMMAND,
        "model_id": model.model_id,
        "preprocessing_id": model.preprocessing_id,
        "target": model.label_column,
        "label_column": column,
        "seed": seed,
        "participants": len(set(predicted.participants)),
        "left_out": {reason: len(keys) for reason, keys in left_out.items()},
        "scans_without_known_hash": unknown_files,
    }
    write_json(folder / "metrics.json", about | number_result_content(model, result))
    records: list[dict[str, object]] = [
        {
            **number_scan_columns(scan, column),
            "fold": "none",
            **number_prediction_columns(said),
            "qc_status": qc,
        }
        for scan, said, qc in zip(predicted.scans, predicted.predictions, predicted.qc, strict=True)
    ]
    write_text(folder / "evaluation_predictions.csv", csv_text(tuple(records[0]), records))
    write_bytes(
        folder / "predicted_and_true.png",
        predictions_figure(predicted.predictions, predicted.targets, _TITLE),
    )
    context: dict[str, Any] = {
        "about": about,
        "model": model,
        "column": column,
        "result": result,
        "left_out": left_out,
        "who": cohort_words(predicted.scans),
        "comparison": number_comparison(result),
        "bias": bias_sentence(result.predictor, model.label_column),
        "measures": MEASURE_WORDS,
        "cell": cell,
        "percent": percent_cell,
    }
    template = markdown_environment().get_template("number_evaluation.md.j2")
    write_text(folder / "EVALUATION.md", template.render(context))


def number_result_content(model: NumberDescription, result: NumberCohortEvaluation) -> dict[str, Any]:
    """Return what was measured as JSON values; undefined numbers are null."""
    own = result.cross_validated
    return {
        "overall": number_evaluation_content(result.predictor),
        "members": {name: number_evaluation_content(found) for name, found in result.members.items()},
        "cross_validated_mae": estimate_content(own) if own else None,
        "intervals": interval_content(result.intervals),
        "novelty": {
            "threshold": model.novelty_threshold,
            "beyond_threshold": estimate_content(result.beyond_threshold),
        },
    } | {
        column: {
            value: {"scans": group.scans, "not_measured": group.not_measured}
            if group.evaluation is None
            else number_evaluation_content(group.evaluation)
            for value, group in groups.items()
        }
        for column, groups in result.groups.items()
    }


def number_comparison(result: NumberCohortEvaluation) -> str:
    """Say how the mean absolute error compares with the model's own cross-validation."""
    here, own = result.predictor.measures["mae"], result.cross_validated
    if own is None:
        return "The model directory does not tell the cross-validated error to compare with."
    change = here.value - own.value
    first = (
        f"That is {abs(change):.2f} {'more' if change > 0 else 'less'} than in the model's own cross-validation, "
        f"{own}."
    )
    if here.low <= own.high and own.low <= here.high:
        return f"{first} The two intervals overlap: this cohort does not show a difference."
    return f"{first} The two intervals do not overlap: on scans like these, count on the number found here."


def _groups(
    values: Sequence[str | None], measured: Callable[[NDArray[np.bool_]], NumberEvaluation]
) -> dict[str, NumberGroup]:
    """Return the groups by value in their order, those of unknown value last."""
    found: dict[str, NumberGroup] = {}
    for value in sorted({value for value in values if value}):
        chosen = np.array([other == value for other in values])
        scans = int(chosen.sum())
        found[value] = (
            NumberGroup(scans=scans, not_measured=FEW_SCANS)
            if scans < SMALLEST_GROUP
            else NumberGroup(scans=scans, evaluation=measured(chosen))
        )
    unknown = sum(not value for value in values)
    return found | ({NOT_KNOWN: NumberGroup(scans=unknown, not_measured=NOT_KNOWN)} if unknown else {})
