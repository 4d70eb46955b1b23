"""What a trained model is worth: everything that is measured out of fold, gathered and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainstage.models.calibration import calibrated, combined, cross_calibrated
from brainstage.models.conformal import LEVEL, cross_fitted_members
from brainstage.models.cross_validation import ControlRun, leakage_warnings
from brainstage.models.duplicates import NearDuplicate
from brainstage.models.metrics import Estimate, Evaluation, evaluate
from brainstage.models.splits import FoldBalance, fold_balance
from brainstage.models.training import LogRow
from brainstage.pipeline.files import write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan
from brainstage.workflows.learning.model_figures import (
    calibration_figure,
    confusion_figure,
    precision_recall_figure,
    roc_figure,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Predictions of every training scan by the models that never saw its participant.

    Attributes
    ----------
    targets, folds : ndarray, (N,) int64
    logits, baseline_logits, mask_logits : ndarray, (N, C) float64
        Of the network, of the voxel baseline, and of the network fed with the brain mask alone; uncalibrated.
    novelty : ndarray, (N,) float64
    random_labels, baseline_random_labels : ControlRun
        Of network and of baseline.
    image_logits : ndarray, (N, C) float64 or None
        Of the network alone, where `logits` are of network and covariates together.
    covariate_logits : ndarray, (N, C) float64 or None
        Of covariates alone; None where neither age nor sex is known.
    control_columns : tuple of str
        Which covariates these are.
    """

    targets: NDArray[np.int64]
    folds: NDArray[np.int64]
    logits: NDArray[np.float64]
    baseline_logits: NDArray[np.float64]
    mask_logits: NDArray[np.float64]
    novelty: NDArray[np.float64]
    random_labels: ControlRun
    baseline_random_labels: ControlRun
    image_logits: NDArray[np.float64] | None = None
    covariate_logits: NDArray[np.float64] | None = None
    control_columns: tuple[str, ...] = ()

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated with the temperature of the other folds, (N, C)."""
        return cross_calibrated(self.logits, self.targets, self.folds)

    @property
    def baseline_probabilities(self) -> NDArray[np.float64]:
        """Of the voxel baseline, likewise, (N, C)."""
        return cross_calibrated(self.baseline_logits, self.targets, self.folds)

    @property
    def combined_probabilities(self) -> NDArray[np.float64]:
        """Of network and baseline together, (N, C)."""
        return combined(self.probabilities, self.baseline_probabilities)

    @property
    def members(self) -> NDArray[np.bool_]:
        """Conformal sets under the quantiles of the other folds, (N, C)."""
        return cross_fitted_members(self.probabilities, self.targets, self.folds)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelEvaluation:
    """Every measured property of a model.

    Attributes
    ----------
    network, uncalibrated, baseline, combined, mask_only, random_labels, baseline_random_labels : Evaluation
        ``combined`` is the geometric mean of network and baseline; it is measured, and used for no prediction.
    random_label_draws, baseline_random_label_draws : int
        Permutations that the controls rest on.
    test : Evaluation or None
        Of the fold ensemble on the scans whose split is ``test``, where there are any.
    coverage : dict
        Class to the part of its scans whose conformal set holds it.
    mean_set_size : float
    warnings : tuple of str
        Signs of leakage.
    image_only, covariates : Evaluation or None
        Of the network without the covariates that the model uses, and of covariates without the image.
    control_columns : tuple of str
        What `covariates` knew.
    balance : FoldBalance
        How alike the folds are in age and sex.
    """

    network: Evaluation
    uncalibrated: Evaluation
    baseline: Evaluation
    combined: Evaluation
    mask_only: Evaluation
    random_labels: Evaluation
    random_label_draws: int
    baseline_random_labels: Evaluation
    baseline_random_label_draws: int
    test: Evaluation | None
    coverage: dict[str, float]
    mean_set_size: float
    warnings: tuple[str, ...]
    image_only: Evaluation | None
    covariates: Evaluation | None
    control_columns: tuple[str, ...]
    balance: FoldBalance


def evaluate_model(
    found: OutOfFold,
    cohort: Cohort,
    test_probabilities: NDArray[np.float64] | None,
    *,
    seed: int,
    duplicates: Sequence[NearDuplicate] = (),
) -> ModelEvaluation:
    """Measure a model and its controls.

    Parameters
    ----------
    found : OutOfFold
    cohort : Cohort
    test_probabilities : ndarray (M, C) or None
        Of the cohort's test scans.
    duplicates : sequence of NearDuplicate
        Among the scans to learn from, then the test scans.
    """
    classes, participants = cohort.classes, cohort.participants

    def measured(probabilities: NDArray[np.float64]) -> Evaluation:
        return evaluate(probabilities, found.targets, participants, classes, seed=seed)

    def measured_alone(logits: NDArray[np.float64] | None) -> Evaluation | None:
        return None if logits is None else measured(cross_calibrated(logits, found.targets, found.folds))

    network = measured(found.probabilities)
    random, baseline_random = (
        evaluate(calibrated(control.logits, 1.0), control.targets, control.participants, classes, seed=seed)
        for control in (found.random_labels, found.baseline_random_labels)
    )
    members = found.members
    covered = members[np.arange(len(found.targets)), found.targets]
    return ModelEvaluation(
        network=network,
        uncalibrated=measured(calibrated(found.logits, 1.0)),
        baseline=measured(found.baseline_probabilities),
        combined=measured(found.combined_probabilities),
        mask_only=measured(cross_calibrated(found.mask_logits, found.targets, found.folds)),
        random_labels=random,
        random_label_draws=len(found.random_labels.targets) // len(found.targets),
        baseline_random_labels=baseline_random,
        baseline_random_label_draws=len(found.baseline_random_labels.targets) // len(found.targets),
        test=_test_evaluation(cohort, test_probabilities, seed),
        coverage={name: float(covered[found.targets == c].mean()) for c, name in enumerate(classes)},
        mean_set_size=float(members.sum(axis=1).mean()),
        warnings=leakage_warnings(
            network.measures["accuracy"],
            {
                "network": random.measures["balanced_accuracy"],
                "linear baseline": baseline_random.measures["balanced_accuracy"],
            },
            len(classes),
        )
        + duplicate_warnings(duplicates, cohort),
        image_only=measured_alone(found.image_logits),
        covariates=measured_alone(found.covariate_logits),
        control_columns=found.control_columns,
        balance=fold_balance(found.folds, participants, cohort.about),
    )


def write_evaluation(
    folder: Path,
    found: OutOfFold,
    result: ModelEvaluation,
    cohort: Cohort,
    log: Sequence[LogRow],
    duplicates: Sequence[NearDuplicate] = (),
) -> None:
    """Write ``evaluation/``, ``splits.csv`` and ``training_log.csv`` into a model directory."""
    classes, probabilities = cohort.classes, found.probabilities
    written = folder / "evaluation"
    write_json(written / "metrics.json", metrics_content(result))
    columns, records = _out_of_fold_table(found, cohort)
    write_text(written / "oof_predictions.csv", csv_text(columns, records))
    write_bytes(written / "confusion_matrix.png", confusion_figure(result.network, classes))
    write_bytes(written / "roc.png", roc_figure(probabilities, found.targets, result.network, classes))
    write_bytes(
        written / "precision_recall.png",
        precision_recall_figure(probabilities, found.targets, result.network, classes),
    )
    before = calibrated(found.logits, 1.0)
    write_bytes(written / "calibration.png", calibration_figure(before, probabilities, found.targets))
    if duplicates:
        write_text(written / "near_duplicates.csv", duplicates_csv(duplicates, cohort))
    sides = [*(int(fold) for fold in found.folds), *("test" for _ in cohort.test_scans)]
    splits = [
        {**scan_columns(scan), "age": scan.row.age, "sex": scan.row.sex, "fold": side}
        for scan, side in zip((*cohort.scans, *cohort.test_scans), sides, strict=True)
    ]
    write_text(folder / "splits.csv", csv_text(tuple(splits[0]), splits))
    rows = [asdict(row) for row in log]
    write_text(folder / "training_log.csv", csv_text(tuple(rows[0]), rows))


def duplicate_warnings(duplicates: Sequence[NearDuplicate], cohort: Cohort) -> tuple[str, ...]:
    """Return a sentence about pictures under two participant ids, and one about those on both sides of the split."""
    pairs = {_pair_of(pair, cohort) for pair in duplicates}
    learnt = len(cohort.scans)
    across = {_pair_of(pair, cohort) for pair in duplicates if pair.first < learnt <= pair.second}
    found = []
    if pairs:
        what = (
            "each such group counts as one participant in the folds and intervals"
            if cohort.same_person
            else "they were left apart, since joining them leaves too few participants of a class, and where they are "
            "copies the numbers are too good"
        )
        found.append(
            f"{_people_words(pairs)} have scans that are nearly the same picture (evaluation/near_duplicates.csv): "
            f"{what}; look at them, and remove copies"
        )
    if across:
        found.append(
            f"{_people_words(across)} are on two sides: one is learnt from, the other in the test split, whose "
            "numbers are too good"
        )
    return tuple(found)


def duplicates_csv(duplicates: Sequence[NearDuplicate], cohort: Cohort) -> str:
    """Return ``near_duplicates.csv``: one row for each two scans of different participants that are one picture."""
    scans = (*cohort.scans, *cohort.test_scans)
    rows = []
    for pair in duplicates:
        first, second = scans[pair.first], scans[pair.second]
        sides = ["test" if place >= len(cohort.scans) else "train" for place in (pair.first, pair.second)]
        rows.append(
            {
                **_identity(first),
                **{f"other_{name}": value for name, value in _identity(second).items()},
                "correlation": pair.correlation,
                "correlation_beyond_average": pair.beyond_average,
                "mirrored": pair.mirrored,
                "sides": " and ".join(dict.fromkeys(sides)),
            }
        )
    return csv_text(tuple(rows[0]), rows)


def _pair_of(pair: NearDuplicate, cohort: Cohort) -> tuple[str, str]:
    names = [scan.row.participant_id for scan in (*cohort.scans, *cohort.test_scans)]
    first, second = sorted((names[pair.first], names[pair.second]))
    return first, second


def _people_words(pairs: set[tuple[str, str]]) -> str:
    shown = ", ".join(f"{first} and {second}" for first, second in sorted(pairs)[:5])
    return f"{len(pairs)} pair(s) of participants ({shown}{', ...' if len(pairs) > 5 else ''})"


def metrics_content(result: ModelEvaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values; undefined numbers are null."""
    content: dict[str, Any] = {
        "cross_validation": evaluation_content(result.network),
        "cross_validation_uncalibrated": evaluation_content(result.uncalibrated),
        "baseline": evaluation_content(result.baseline),
        "combined": evaluation_content(result.combined),
        "control_mask_only": evaluation_content(result.mask_only),
        "control_random_labels": evaluation_content(result.random_labels),
        "control_random_labels_baseline": evaluation_content(result.baseline_random_labels),
        "conformal": {
            "level": LEVEL,
            "coverage": {name: _number(value) for name, value in result.coverage.items()},
            "mean_set_size": _number(result.mean_set_size),
        },
        "fold_balance": {
            "age_difference": result.balance.age_difference,
            "sex_spread": result.balance.sex_spread,
        },
        "warnings": list(result.warnings),
    }
    if result.covariates is not None:
        columns = {"columns": list(result.control_columns)}
        content["control_covariates"] = columns | evaluation_content(result.covariates)
    if result.image_only is not None:
        content["image_only"] = evaluation_content(result.image_only)
    if result.test is not None:
        content["test_split"] = evaluation_content(result.test)
    return content


def estimate_content(estimate: Estimate) -> dict[str, float | None]:
    """Return a value and the bounds of its interval as JSON values; undefined numbers are null."""
    return {name: _number(value) for name, value in asdict(estimate).items()}


def evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    """Return measures, confusion matrix and numbers of scans as JSON values."""
    return {
        "measures": {name: estimate_content(found) for name, found in evaluation.measures.items()},
        "confusion_matrix": evaluation.confusion.tolist(),
        "scans": evaluation.scans,
    }


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _test_evaluation(
    cohort: Cohort, probabilities: NDArray[np.float64] | None, seed: int
) -> Evaluation | None:
    if probabilities is None:
        return None
    targets = np.array([cohort.classes.index(scan.label) for scan in cohort.test_scans], dtype=np.int64)
    return evaluate(probabilities, targets, cohort.test_participants, cohort.classes, seed=seed)


def _out_of_fold_table(found: OutOfFold, cohort: Cohort) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    classes = cohort.classes
    probabilities, members = found.probabilities, found.members
    records: list[dict[str, object]] = []
    for index, scan in enumerate(cohort.scans):
        row: dict[str, object] = {**scan_columns(scan), "fold": int(found.folds[index])}
        row["predicted_label"] = classes[int(probabilities[index].argmax())]
        row |= {f"p_{name}": float(probabilities[index, c]) for c, name in enumerate(classes)}
        row["prediction_set"] = ";".join(name for c, name in enumerate(classes) if members[index, c])
        row["baseline_label"] = classes[int(found.baseline_logits[index].argmax())]
        row["ood_score"] = float(found.novelty[index])
        records.append(row)
    return tuple(records[0]), records


def scan_columns(scan: LabelledScan) -> Mapping[str, object]:
    """Return what names a scan in a table, and its label."""
    return {**_identity(scan), "label": scan.label}


def _identity(scan: LabelledScan) -> Mapping[str, object]:
    row = scan.row
    return {
        "participant_id": row.participant_id,
        "session_id": row.session_id,
        "run_id": row.run_id,
        "t1w_path": row.t1w_path,
    }
