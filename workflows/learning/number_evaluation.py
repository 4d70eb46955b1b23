"""What a trained model of a number is worth: everything that is measured out of fold, gathered and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member
from brainstage.models.duplicates import NearDuplicate
from brainstage.models.metrics import Estimate, proportion
from brainstage.models.model_description import NumberDescription
from brainstage.models.number_cross_validation import number_leakage_warnings
from brainstage.models.number_intervals import out_of_fold_intervals
from brainstage.models.number_metrics import NumberEvaluation, evaluate_numbers
from brainstage.models.number_predictor import Numbers
from brainstage.models.number_table import NumberTable, number_table
from brainstage.models.splits import FoldBalance, fold_balance
from brainstage.pipeline.files import write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import NumberPrediction
from brainstage.workflows.gate import prediction_flags
from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan, numbers_of
from brainstage.workflows.learning.model_evaluation import (
    PREDICTOR,
    duplicate_warnings,
    duplicates_csv,
    estimate_content,
    number_content,
    out_of_fold_status,
    scan_columns,
    splits_csv,
)
from brainstage.workflows.learning.model_figures import numbers_figure
from brainstage.workflows.learning.number_fitting import NumbersOutOfFold
from brainstage.workflows.predicted_numbers import member_values_text

THIRDS = ("lowest", "middle", "highest")


@dataclass(frozen=True, kw_only=True)
class TargetGroup:
    """The scans whose true value is in one third of all.

    Attributes
    ----------
    name : str
        ``lowest``, ``middle`` or ``highest``.
    low, high : float
        True values there.
    scans : int
    mean_error : float
        Predicted minus true.
    coverage : Estimate
        Fraction whose interval holds the true value, as if scans were independent.
    """

    name: str
    low: float
    high: float
    scans: int
    mean_error: float
    coverage: Estimate


@dataclass(frozen=True, kw_only=True)
class IntervalEvaluation:
    """What intervals hold.

    Attributes
    ----------
    level : float
        What they are made for.
    coverage : Estimate
        Fraction of the scans whose interval holds the true value, as if scans were independent.
    mean_width : float
    by_target : tuple of TargetGroup
    """

    level: float
    coverage: Estimate
    mean_width: float
    by_target: tuple[TargetGroup, ...]


@dataclass(frozen=True, kw_only=True)
class ErrorSubset:
    """How far off the predictions of some scans are."""

    scans: int
    mean_absolute_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberModelEvaluation:
    """Every measured property of a model of a number.

    Attributes
    ----------
    predictor, mask_only : NumberEvaluation
        Of the published values, and of the network given the mask alone.
    members : mapping
        Member to its evaluation.
    intervals : IntervalEvaluation
    random_targets : mapping
        ``predictor`` and members to their evaluation on permuted targets.
    random_target_draws : int
        Permutations that the control rests on.
    test : NumberEvaluation or None
        Of the fold ensemble on the scans whose split is ``test``, where there are any.
    by_status : mapping
        Status (``reported``, ``flagged``) to how far off such predictions are, out of fold.
    warnings : tuple of str
        Signs of leakage.
    image_only, covariates, site : NumberEvaluation or None
        Without the covariates that the model uses, of covariates without the image, and of the site alone.
    control_columns : tuple of str
        What `covariates` knew.
    balance : FoldBalance
    table : NumberTable
    """

    predictor: NumberEvaluation
    members: Mapping[Member, NumberEvaluation]
    mask_only: NumberEvaluation
    intervals: IntervalEvaluation
    random_targets: Mapping[str, NumberEvaluation]
    random_target_draws: int
    test: NumberEvaluation | None
    by_status: Mapping[str, ErrorSubset]
    warnings: tuple[str, ...]
    image_only: NumberEvaluation | None
    covariates: NumberEvaluation | None
    site: NumberEvaluation | None
    control_columns: tuple[str, ...]
    balance: FoldBalance
    table: NumberTable


def evaluate_number_model(
    found: NumbersOutOfFold,
    cohort: Cohort,
    description: NumberDescription,
    test_values: Numbers | None,
    *,
    seed: int,
    duplicates: Sequence[NearDuplicate] = (),
) -> NumberModelEvaluation:
    """Measure a model and its controls.

    Parameters
    ----------
    found : NumbersOutOfFold
    cohort : Cohort
    description : NumberDescription
        Of the model.
    test_values : ndarray (M,) or None
        Predicted for the cohort's test scans.
    duplicates : sequence of NearDuplicate
        Among the scans to learn from, then the test scans.
    """
    participants = cohort.participants

    def measured(values: Numbers) -> NumberEvaluation:
        return evaluate_numbers(values, found.targets, participants, expected=found.expected, seed=seed)

    def measured_alone(values: Numbers | None) -> NumberEvaluation | None:
        return None if values is None else measured(values)

    predictor = measured(found.values)
    random = {
        name: evaluate_numbers(
            control.values, control.targets, control.participants, expected=control.expected, seed=seed
        )
        for name, control in found.random_targets.items()
    }
    predictions = out_of_fold_numbers(found, description)
    errors = np.abs(found.values - found.targets)
    statuses = [out_of_fold_status(one, scan) for one, scan in zip(predictions, cohort.scans, strict=True)]
    return NumberModelEvaluation(
        predictor=predictor,
        members={name: measured(said) for name, said in found.members.items()},
        mask_only=measured(found.mask_only),
        intervals=evaluate_intervals(predictions, found.targets),
        random_targets=random,
        random_target_draws=found.random_targets[PREDICTOR].draws,
        test=_test_evaluation(cohort, test_values, seed),
        by_status={
            name: ErrorSubset(
                scans=statuses.count(name),
                mean_absolute_error=float(errors[[status == name for status in statuses]].mean()),
            )
            for name in sorted(set(statuses))
        },
        warnings=number_leakage_warnings(
            predictor.measures["correlation"], {name: one.measures["r2"] for name, one in random.items()}
        )
        + duplicate_warnings(duplicates, cohort),
        image_only=measured_alone(found.image_only),
        covariates=measured_alone(found.covariates),
        site=measured_alone(found.site),
        control_columns=found.control_columns,
        balance=fold_balance(found.folds, participants, cohort.about),
        table=number_table(
            found.targets,
            participants,
            sexes=[scan.row.sex if "sex" in cohort.columns else None for scan in cohort.scans],
            sites=[scan.row.site if "site" in cohort.columns else None for scan in cohort.scans],
        ),
    )


def evaluate_intervals(predictions: Sequence[NumberPrediction], targets: Numbers) -> IntervalEvaluation:
    """Measure what the intervals of some predictions hold, over all and by thirds of the true value.

    Parameters
    ----------
    predictions : sequence of NumberPrediction
    targets : ndarray, (N,) float64
    """
    low = np.array([one.interval_low for one in predictions])
    high = np.array([one.interval_high for one in predictions])
    error = np.array([one.value for one in predictions]) - targets
    inside = (low <= targets) & (targets <= high)

    def part_of(chosen: NDArray[np.int64], name: str) -> TargetGroup:
        return TargetGroup(
            name=name,
            low=float(targets[chosen].min()),
            high=float(targets[chosen].max()),
            scans=len(chosen),
            mean_error=float(error[chosen].mean()),
            coverage=proportion(int(inside[chosen].sum()), len(chosen)),
        )

    thirds = np.array_split(np.argsort(targets, kind="stable"), 3)
    return IntervalEvaluation(
        level=predictions[0].level,
        coverage=proportion(int(inside.sum()), len(inside)),
        mean_width=float((high - low).mean()),
        by_target=tuple(
            part_of(chosen, name) for chosen, name in zip(thirds, THIRDS, strict=True) if len(chosen)
        ),
    )


def out_of_fold_numbers(found: NumbersOutOfFold, description: NumberDescription) -> list[NumberPrediction]:
    """Return the prediction of each training scan by the fold that did not learn from its participant."""
    level = description.intervals.level
    intervals = out_of_fold_intervals(found.values, found.residuals, level)
    return [
        NumberPrediction(
            column=description.label_column,
            value=float(value),
            interval_low=float(intervals[n, 0]),
            interval_high=float(intervals[n, 1]),
            level=level,
            ood_score=float(found.novelty[n]),
            ood_threshold=description.novelty_threshold,
            member_values={name: float(found.members[name][n]) for name in description.members},
            model_id=description.model_id,
            seen_in_training=True,
            above_chance=description.predictor.above_chance,
        )
        for n, value in enumerate(found.values)
    ]


def write_number_evaluation(
    folder: Path,
    found: NumbersOutOfFold,
    description: NumberDescription,
    result: NumberModelEvaluation,
    cohort: Cohort,
    duplicates: Sequence[NearDuplicate] = (),
) -> None:
    """Write ``evaluation/`` and ``splits.csv`` into a model directory."""
    written = folder / "evaluation"
    predictions = out_of_fold_numbers(found, description)
    write_json(written / "metrics.json", number_metrics_content(result, description))
    records: list[dict[str, object]] = [
        {
            **number_scan_columns(scan, description.label_column),
            "fold": int(found.folds[n]),
            "prediction_status": out_of_fold_status(said, scan),
            **number_prediction_columns(said),
            "prediction_reasons": ";".join(prediction_flags(said)),
        }
        for n, (scan, said) in enumerate(zip(cohort.scans, predictions, strict=True))
    ]
    write_text(written / "oof_predictions.csv", csv_text(tuple(records[0]), records))
    write_bytes(written / "predicted_and_true.png", predictions_figure(predictions, found.targets))
    if duplicates:
        write_text(written / "near_duplicates.csv", duplicates_csv(duplicates, cohort))
    write_text(folder / "splits.csv", splits_csv(found.folds, cohort))


def predictions_figure(
    predictions: Sequence[NumberPrediction], targets: Numbers, title: str = "Cross-validated predictions"
) -> bytes:
    """Return a PNG of predicted against true numbers."""
    intervals = np.array([[one.interval_low, one.interval_high] for one in predictions])
    values = np.array([one.value for one in predictions])
    return numbers_figure(values, targets, intervals, predictions[0].column, title)


def number_metrics_content(result: NumberModelEvaluation, description: NumberDescription) -> dict[str, Any]:
    """Return an evaluation as JSON values; undefined numbers are null."""
    content: dict[str, Any] = {
        "target": description.label_column,
        "cross_validation": number_evaluation_content(result.predictor),
        "members": {name: number_evaluation_content(one) for name, one in result.members.items()},
        "control_mask_only": number_evaluation_content(result.mask_only),
        "control_random_targets": {
            name: number_evaluation_content(one) for name, one in result.random_targets.items()
        },
        "intervals": interval_content(result.intervals),
        "by_status": {name: asdict(one) for name, one in result.by_status.items()},
        "fold_balance": {
            "age_difference": result.balance.age_difference,
            "sex_spread": result.balance.sex_spread,
        },
        "cohort": asdict(result.table),
        "warnings": list(result.warnings),
    }
    if result.covariates is not None:
        columns = {"columns": list(result.control_columns)}
        content["control_covariates"] = columns | number_evaluation_content(result.covariates)
    for name, found in (
        ("control_site", result.site),
        ("image_only", result.image_only),
        ("test_split", result.test),
    ):
        if found is not None:
            content[name] = number_evaluation_content(found)
    return content


def number_evaluation_content(evaluation: NumberEvaluation) -> dict[str, Any]:
    """Return measures and the number of scans as JSON values."""
    measures = {name: estimate_content(found) for name, found in evaluation.measures.items()}
    return {"measures": measures, "scans": evaluation.scans}


def interval_content(intervals: IntervalEvaluation) -> dict[str, Any]:
    """Return what intervals hold as JSON values."""
    return {
        "level": intervals.level,
        "coverage": estimate_content(intervals.coverage),
        "mean_width": number_content(intervals.mean_width),
        "by_target": [
            asdict(group) | {"coverage": estimate_content(group.coverage)} for group in intervals.by_target
        ],
    }


def number_scan_columns(scan: LabelledScan, column: str) -> dict[str, object]:
    """Return what names a scan in a table, and its true value."""
    identity = {name: value for name, value in scan_columns(scan).items() if name != "label"}
    return identity | {f"true_{column}": float(numbers_of([scan])[0])}


def number_prediction_columns(said: NumberPrediction) -> dict[str, object]:
    """Return what a table of predictions holds of one."""
    return {
        f"predicted_{said.column}": said.value,
        "interval_low": said.interval_low,
        "interval_high": said.interval_high,
        "member_labels": member_values_text(said),
        "ood_score": said.ood_score,
    }


def _test_evaluation(cohort: Cohort, values: Numbers | None, seed: int) -> NumberEvaluation | None:
    if values is None:
        return None
    targets = numbers_of(cohort.test_scans)
    expected = np.full(len(targets), cohort.numbers.mean())
    return evaluate_numbers(values, targets, cohort.test_participants, expected=expected, seed=seed)
