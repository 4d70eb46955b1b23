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
from brainstage.models.metrics import Evaluation, evaluate
from brainstage.models.training import LogRow
from brainstage.pipeline.files import write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan
from brainstage.workflows.learning.model_figures import calibration_figure, confusion_figure, roc_figure


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Predictions of every training scan by the models that never saw its participant.

    Attributes
    ----------
    targets, folds : ndarray, (N,) int64
    logits, baseline_logits, mask_logits : ndarray, (N, C) float64
        Of the network, of the voxel baseline, and of the network fed with the brain mask alone; uncalibrated.
    novelty : ndarray, (N,) float64
    random_labels : ControlRun
    """

    targets: NDArray[np.int64]
    folds: NDArray[np.int64]
    logits: NDArray[np.float64]
    baseline_logits: NDArray[np.float64]
    mask_logits: NDArray[np.float64]
    novelty: NDArray[np.float64]
    random_labels: ControlRun

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
    network, uncalibrated, baseline, combined, mask_only, random_labels : Evaluation
        ``combined`` is the geometric mean of network and baseline; it is measured, and used for no prediction.
    test : Evaluation or None
        Of the fold ensemble on the scans whose split is ``test``, where there are any.
    coverage : dict
        Class to the part of its scans whose conformal set holds it.
    mean_set_size : float
    warnings : tuple of str
        Signs of leakage.
    """

    network: Evaluation
    uncalibrated: Evaluation
    baseline: Evaluation
    combined: Evaluation
    mask_only: Evaluation
    random_labels: Evaluation
    test: Evaluation | None
    coverage: dict[str, float]
    mean_set_size: float
    warnings: tuple[str, ...]


def evaluate_model(
    found: OutOfFold, cohort: Cohort, test_probabilities: NDArray[np.float64] | None, *, seed: int
) -> ModelEvaluation:
    """Measure a model and its controls.

    Parameters
    ----------
    found : OutOfFold
    cohort : Cohort
    test_probabilities : ndarray (M, C) or None
        Of the cohort's test scans.
    """
    classes, participants = cohort.classes, cohort.participants

    def measured(probabilities: NDArray[np.float64]) -> Evaluation:
        return evaluate(probabilities, found.targets, participants, classes, seed=seed)

    network = measured(found.probabilities)
    control = found.random_labels
    random = evaluate(
        calibrated(control.logits, 1.0), control.targets, control.participants, classes, seed=seed
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
        test=_test_evaluation(cohort, test_probabilities, seed),
        coverage={name: float(covered[found.targets == c].mean()) for c, name in enumerate(classes)},
        mean_set_size=float(members.sum(axis=1).mean()),
        warnings=leakage_warnings(
            network.measures["accuracy"], random.measures["balanced_accuracy"], len(classes)
        ),
    )


def write_evaluation(
    folder: Path, found: OutOfFold, result: ModelEvaluation, cohort: Cohort, log: Sequence[LogRow]
) -> None:
    """Write ``evaluation/``, ``splits.csv`` and ``training_log.csv`` into a model directory."""
    classes, probabilities = cohort.classes, found.probabilities
    written = folder / "evaluation"
    write_json(written / "metrics.json", metrics_content(result))
    columns, records = _out_of_fold_table(found, cohort)
    write_text(written / "oof_predictions.csv", csv_text(columns, records))
    write_bytes(written / "confusion_matrix.png", confusion_figure(result.network, classes))
    write_bytes(written / "roc.png", roc_figure(probabilities, found.targets, result.network, classes))
    before = calibrated(found.logits, 1.0)
    write_bytes(written / "calibration.png", calibration_figure(before, probabilities, found.targets))
    splits = [
        *({**_scan_columns(scan), "fold": int(f)} for scan, f in zip(cohort.scans, found.folds, strict=True)),
        *({**_scan_columns(scan), "fold": "test"} for scan in cohort.test_scans),
    ]
    write_text(folder / "splits.csv", csv_text(tuple(splits[0]), splits))
    rows = [asdict(row) for row in log]
    write_text(folder / "training_log.csv", csv_text(tuple(rows[0]), rows))


def metrics_content(result: ModelEvaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values; undefined numbers are null."""
    content: dict[str, Any] = {
        "cross_validation": _evaluation_content(result.network),
        "cross_validation_uncalibrated": _evaluation_content(result.uncalibrated),
        "baseline": _evaluation_content(result.baseline),
        "combined": _evaluation_content(result.combined),
        "control_mask_only": _evaluation_content(result.mask_only),
        "control_random_labels": _evaluation_content(result.random_labels),
        "conformal": {
            "level": LEVEL,
            "coverage": {name: _number(value) for name, value in result.coverage.items()},
            "mean_set_size": _number(result.mean_set_size),
        },
        "warnings": list(result.warnings),
    }
    if result.test is not None:
        content["test_split"] = _evaluation_content(result.test)
    return content


def _evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "measures": {
            name: {"value": _number(m.value), "low": _number(m.low), "high": _number(m.high)}
            for name, m in evaluation.measures.items()
        },
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
    names = [scan.row.participant_id for scan in cohort.test_scans]
    return evaluate(probabilities, targets, names, cohort.classes, seed=seed)


def _out_of_fold_table(found: OutOfFold, cohort: Cohort) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    classes = cohort.classes
    probabilities, members = found.probabilities, found.members
    records: list[dict[str, object]] = []
    for index, scan in enumerate(cohort.scans):
        row: dict[str, object] = {**_scan_columns(scan), "fold": int(found.folds[index])}
        row["predicted_label"] = classes[int(probabilities[index].argmax())]
        row |= {f"p_{name}": float(probabilities[index, c]) for c, name in enumerate(classes)}
        row["prediction_set"] = ";".join(name for c, name in enumerate(classes) if members[index, c])
        row["baseline_label"] = classes[int(found.baseline_logits[index].argmax())]
        row["ood_score"] = float(found.novelty[index])
        records.append(row)
    return tuple(records[0]), records


def _scan_columns(scan: LabelledScan) -> Mapping[str, object]:
    row = scan.row
    return {
        "participant_id": row.participant_id,
        "session_id": row.session_id,
        "run_id": row.run_id,
        "t1w_path": row.t1w_path,
        "label": scan.label,
    }
