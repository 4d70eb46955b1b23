"""What a trained model is worth: everything that is measured out of fold, gathered and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.calibration import cross_calibrated
from brainstage.models.choices import Member
from brainstage.models.cohort_table import CohortTable, cohort_table
from brainstage.models.conformal import out_of_fold_p_values, set_members
from brainstage.models.cross_validation import ControlRun, Predicted, leakage_warnings
from brainstage.models.duplicates import NearDuplicate
from brainstage.models.metrics import Estimate, Evaluation, evaluate, proportion
from brainstage.models.model_description import ModelDescription
from brainstage.models.splits import FoldBalance, fold_balance
from brainstage.models.training import LogRow
from brainstage.pipeline.files import read_json_or_empty, write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import Prediction, PredictionStatus, QcStatus, ScanPrediction
from brainstage.workflows.gate import prediction_flags
from brainstage.workflows.learning.labelled_cohort import Cohort, LabelledScan
from brainstage.workflows.learning.model_figures import (
    calibration_figure,
    confusion_figure,
    precision_recall_figure,
    risk_coverage_figure,
    roc_figure,
)

PREDICTOR: Final = "predictor"
"""Name of the published probabilities beside those of the members."""
COVERAGES: Final = tuple(tenth / 10 for tenth in range(1, 11))
"""Fractions of the scans, the surest first, at which the risk is written."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Predictions of every training scan by the models that never saw its participant.

    Attributes
    ----------
    targets, folds, persons : ndarray, (N,) int64
    predicted : Predicted
        What is published, and how each fold puts it together.
    members : mapping
        Member to uncalibrated logits (N, C).
    evidence : ndarray, (N, C) float64 or None
        Of the covariates that the model uses.
    mask_logits : ndarray, (N, C) float64
        Of the network that is given the brain mask alone; uncalibrated.
    novelty : ndarray, (N,) float64
    random_labels : mapping
        ``predictor`` and members to what they say of permuted labels.
    covariate_logits : ndarray, (N, C) float64 or None
        Of covariates alone; None where neither age nor sex is known.
    control_columns : tuple of str
        Which covariates these are.
    site_logits : ndarray, (N, C) float64 or None
        Of the site alone; None where it is not known, or there is one.
    """

    targets: NDArray[np.int64]
    folds: NDArray[np.int64]
    persons: NDArray[np.int64]
    predicted: Predicted
    members: Mapping[Member, NDArray[np.float64]]
    mask_logits: NDArray[np.float64]
    novelty: NDArray[np.float64]
    random_labels: Mapping[str, ControlRun]
    evidence: NDArray[np.float64] | None = None
    covariate_logits: NDArray[np.float64] | None = None
    control_columns: tuple[str, ...] = ()
    site_logits: NDArray[np.float64] | None = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the predictor, calibrated within the training side of each fold, (N, C)."""
        return np.asarray(np.exp(self.predicted.log_probabilities))

    @cached_property
    def uncalibrated(self) -> NDArray[np.float64]:
        """Of the predictor without any temperature, (N, C)."""
        return self._of_predictors(self.evidence, calibrated=False)

    @cached_property
    def without_covariates(self) -> NDArray[np.float64] | None:
        """Of the predictor without the covariates that it uses, (N, C); None where it uses none."""
        return None if self.evidence is None else self._of_predictors(None)

    @cached_property
    def member_probabilities(self) -> dict[Member, NDArray[np.float64]]:
        """Of each member by itself, calibrated within the training side of each fold, (N, C)."""
        found = {name: np.empty_like(self.mask_logits) for name in self.members}
        for fold, predictor in enumerate(self.predicted.predictors):
            own = self.folds == fold
            logits = {name: logits[own] for name, logits in self.members.items()}
            for name, said in predictor.member_log_probabilities(logits).items():
                found[name][own] = np.exp(said)
        return found

    @cached_property
    def p_values(self) -> NDArray[np.float64]:
        """How usual each scan would be as each class, compared with scans of other persons, (N, C)."""
        return out_of_fold_p_values(self.probabilities, self.targets, self.persons)

    def _of_predictors(
        self, evidence: NDArray[np.float64] | None, *, calibrated: bool = True
    ) -> NDArray[np.float64]:
        found = np.empty_like(self.mask_logits)
        for fold, predictor in enumerate(self.predicted.predictors):
            own = self.folds == fold
            found[own] = np.exp(
                (predictor if calibrated else predictor.uncalibrated).log_probabilities(
                    {name: logits[own] for name, logits in self.members.items()},
                    None if evidence is None else evidence[own],
                )
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Subset:
    """How often the predictions of some scans are right.

    Attributes
    ----------
    scans : int
    accuracy : Estimate
        With its exact interval, as if scans were independent.
    """

    scans: int
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelEvaluation:
    """Every measured property of a model.

    Attributes
    ----------
    predictor, uncalibrated, mask_only : Evaluation
        Of the published probabilities, of the same without temperatures, and of the network given the mask alone.
    members : mapping
        Member to its evaluation.
    random_labels : mapping
        ``predictor`` and members to their evaluation on permuted labels.
    random_label_draws : int
        Permutations that the control rests on.
    test : Evaluation or None
        Of the fold ensemble on the scans whose split is ``test``, where there are any.
    coverage : dict
        Class to the fraction of its scans whose conformal set holds it.
    mean_set_size : float
    one_class_sets : float
        Fraction of the sets that hold one class.
    by_status, by_tier : mapping
        Status (``reported``, ``flagged``) or tier to how often such predictions are right, out of fold.
    risk : tuple of (float, float)
        Fraction of the scans, the surest first, and the fraction of these that is predicted wrongly.
    warnings : tuple of str
        Signs of leakage.
    image_only, covariates, site : Evaluation or None
        Without the covariates that the model uses, of covariates without the image, and of the site alone.
    control_columns : tuple of str
        What `covariates` knew.
    balance : FoldBalance
        How alike the folds are in age and sex.
    table : CohortTable
        Age, sex and site of each class.
    """

    predictor: Evaluation
    uncalibrated: Evaluation
    members: Mapping[Member, Evaluation]
    mask_only: Evaluation
    random_labels: Mapping[str, Evaluation]
    random_label_draws: int
    test: Evaluation | None
    coverage: dict[str, float]
    mean_set_size: float
    one_class_sets: float
    by_status: Mapping[str, Subset]
    by_tier: Mapping[str, Subset]
    risk: tuple[tuple[float, float], ...]
    warnings: tuple[str, ...]
    image_only: Evaluation | None
    covariates: Evaluation | None
    site: Evaluation | None
    control_columns: tuple[str, ...]
    balance: FoldBalance
    table: CohortTable


def evaluate_model(
    found: OutOfFold,
    cohort: Cohort,
    description: ModelDescription,
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
    description : ModelDescription
        Of the model.
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

    predictor = measured(found.probabilities)
    random = {
        name: evaluate(control.probabilities, control.targets, control.participants, classes, seed=seed)
        for name, control in found.random_labels.items()
    }
    predictions = out_of_fold_predictions(found, cohort, description)
    sizes = np.array([len(one.prediction_set) for one in predictions])
    covered = np.array(
        [label in one.prediction_set for label, one in zip(cohort.labels, predictions, strict=True)]
    )
    right = found.probabilities.argmax(axis=1) == found.targets
    statuses = [out_of_fold_status(one, scan) for one, scan in zip(predictions, cohort.scans, strict=True)]
    without = found.without_covariates
    return ModelEvaluation(
        predictor=predictor,
        uncalibrated=measured(found.uncalibrated),
        members={name: measured(said) for name, said in found.member_probabilities.items()},
        mask_only=measured(cross_calibrated(found.mask_logits, found.targets, found.folds)),
        random_labels=random,
        random_label_draws=found.random_labels[PREDICTOR].draws,
        test=_test_evaluation(cohort, test_probabilities, seed),
        coverage={name: float(covered[found.targets == c].mean()) for c, name in enumerate(classes)},
        mean_set_size=float(sizes.mean()),
        one_class_sets=float((sizes == 1).mean()),
        by_status=_subsets(statuses, right),
        by_tier=_subsets([one.tier for one in predictions], right),
        risk=risk_coverage(found.probabilities.max(axis=1), ~right),
        warnings=leakage_warnings(
            predictor.measures["accuracy"],
            {name: found.measures["balanced_accuracy"] for name, found in random.items()},
            len(classes),
        )
        + duplicate_warnings(duplicates, cohort),
        image_only=None if without is None else measured(without),
        covariates=measured_alone(found.covariate_logits),
        site=measured_alone(found.site_logits),
        control_columns=found.control_columns,
        balance=fold_balance(found.folds, participants, cohort.about),
        table=cohort_table(
            cohort.labels,
            participants,
            ages=[scan.row.age if "age" in cohort.columns else None for scan in cohort.scans],
            sexes=[scan.row.sex if "sex" in cohort.columns else None for scan in cohort.scans],
            sites=[scan.row.site if "site" in cohort.columns else None for scan in cohort.scans],
        ),
    )


def out_of_fold_predictions(
    found: OutOfFold, cohort: Cohort, description: ModelDescription
) -> list[Prediction]:
    """Return the prediction of each training scan by the fold that did not learn from its participant."""
    classes = cohort.classes
    in_set = set_members(found.p_values, description.levels)
    answers = {name: said.argmax(axis=1) for name, said in found.member_probabilities.items()}
    return [
        Prediction(
            probabilities=dict(zip(classes, map(float, probabilities), strict=True)),
            prediction_set=tuple(name for name, inside in zip(classes, in_set[n], strict=True) if inside),
            ood_score=float(found.novelty[n]),
            ood_threshold=description.novelty_threshold,
            tier=description.tiers.tier(float(probabilities.max())),
            member_labels={name: classes[int(answers[name][n])] for name in description.members},
            compared_members=description.predictor.compared_members,
            disagreement_flags=description.predictor.disagreement_flags,
            above_chance=description.predictor.above_chance,
            model_id=description.model_id,
            set_level=description.conformal.level,
            seen_in_training=True,
        )
        for n, probabilities in enumerate(found.probabilities)
    ]


def out_of_fold_status(prediction: ScanPrediction, scan: LabelledScan) -> str:
    """Return what becomes of the prediction of a training scan, all of which passed quality control or warned."""
    warned = read_json_or_empty(scan.files.qc_json).get("qc_status") != QcStatus.PASS
    flagged = warned or prediction_flags(prediction)
    return str(PredictionStatus.FLAGGED if flagged else PredictionStatus.REPORTED)


def risk_coverage(
    confidence: NDArray[np.float64], wrong: NDArray[np.bool_]
) -> tuple[tuple[float, float], ...]:
    """Return the risk-coverage curve at :data:`COVERAGES`.

    Parameters
    ----------
    confidence : ndarray, (N,) float64
        The largest probability of each scan.
    wrong : ndarray, (N,) bool

    Returns
    -------
    tuple of (float, float)
        Fraction of the scans, the surest first, and the fraction of these that is predicted wrongly.

    References
    ----------
    El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification", JMLR 11.
    """
    surest = wrong[np.argsort(-confidence, kind="stable")]
    counts = [max(1, round(part * len(surest))) for part in COVERAGES]
    return tuple((part, float(surest[:count].mean())) for part, count in zip(COVERAGES, counts, strict=True))


def _subsets(names: Sequence[str], right: NDArray[np.bool_]) -> dict[str, Subset]:
    found = {}
    for name in sorted(set(names)):
        own = np.array([other == name for other in names])
        accuracy = proportion(int(right[own].sum()), int(own.sum()))
        found[name] = Subset(scans=int(own.sum()), accuracy=accuracy)
    return found


def write_evaluation(
    folder: Path,
    found: OutOfFold,
    description: ModelDescription,
    result: ModelEvaluation,
    cohort: Cohort,
    log: Sequence[LogRow],
    duplicates: Sequence[NearDuplicate] = (),
) -> None:
    """Write ``evaluation/``, ``splits.csv`` and ``training_log.csv`` into a model directory."""
    classes, probabilities = cohort.classes, found.probabilities
    written = folder / "evaluation"
    write_json(written / "metrics.json", metrics_content(result))
    columns, records = _out_of_fold_table(found, cohort, description)
    write_text(written / "oof_predictions.csv", csv_text(columns, records))
    write_bytes(written / "confusion_matrix.png", confusion_figure(result.predictor, classes))
    write_bytes(written / "roc.png", roc_figure(probabilities, found.targets, result.predictor, classes))
    write_bytes(
        written / "precision_recall.png",
        precision_recall_figure(probabilities, found.targets, result.predictor, classes),
    )
    write_bytes(
        written / "calibration.png", calibration_figure(found.uncalibrated, probabilities, found.targets)
    )
    write_bytes(written / "risk_coverage.png", risk_coverage_figure(result.risk))
    if duplicates:
        write_text(written / "near_duplicates.csv", duplicates_csv(duplicates, cohort))
    write_text(folder / "splits.csv", splits_csv(found.folds, cohort))
    rows = [asdict(row) for row in log]
    write_text(folder / "training_log.csv", csv_text(tuple(rows[0]), rows))


def splits_csv(folds: NDArray[np.int64], cohort: Cohort) -> str:
    """Return ``splits.csv``: the fold of each scan to learn from, (N,), and ``test`` for those kept out."""
    sides = [*(int(fold) for fold in folds), *("test" for _ in cohort.test_scans)]
    rows = [
        {**scan_columns(scan), "age": scan.row.age, "sex": scan.row.sex, "fold": side}
        for scan, side in zip((*cohort.scans, *cohort.test_scans), sides, strict=True)
    ]
    return csv_text(tuple(rows[0]), rows)


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
        "cross_validation": evaluation_content(result.predictor),
        "cross_validation_uncalibrated": evaluation_content(result.uncalibrated),
        "members": {name: evaluation_content(one) for name, one in result.members.items()},
        "control_mask_only": evaluation_content(result.mask_only),
        "control_random_labels": {
            name: evaluation_content(one) for name, one in result.random_labels.items()
        },
        "conformal": {
            "coverage": {name: number_content(value) for name, value in result.coverage.items()},
            "mean_set_size": number_content(result.mean_set_size),
            "one_class_sets": number_content(result.one_class_sets),
        },
        "by_status": _subsets_content(result.by_status),
        "by_tier": _subsets_content(result.by_tier),
        "risk_coverage": [{"coverage": part, "risk": number_content(risk)} for part, risk in result.risk],
        "fold_balance": {
            "age_difference": result.balance.age_difference,
            "sex_spread": result.balance.sex_spread,
        },
        "cohort": asdict(result.table),
        "warnings": list(result.warnings),
    }
    if result.covariates is not None:
        columns = {"columns": list(result.control_columns)}
        content["control_covariates"] = columns | evaluation_content(result.covariates)
    if result.site is not None:
        content["control_site"] = evaluation_content(result.site)
    if result.image_only is not None:
        content["image_only"] = evaluation_content(result.image_only)
    if result.test is not None:
        content["test_split"] = evaluation_content(result.test)
    return content


def estimate_content(estimate: Estimate) -> dict[str, float | None]:
    """Return a value and the bounds of its interval as JSON values; undefined numbers are null."""
    return {name: number_content(value) for name, value in asdict(estimate).items()}


def evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    """Return measures, confusion matrix and numbers of scans as JSON values."""
    return {
        "measures": {name: estimate_content(found) for name, found in evaluation.measures.items()},
        "confusion_matrix": evaluation.confusion.tolist(),
        "scans": evaluation.scans,
    }


def _subsets_content(subsets: Mapping[str, Subset]) -> dict[str, Any]:
    return {
        name: {"scans": one.scans, "accuracy": estimate_content(one.accuracy)}
        for name, one in subsets.items()
    }


def number_content(value: float) -> float | None:
    """Return a number as a JSON value; null where it is not defined."""
    return round(value, 6) if math.isfinite(value) else None


def _test_evaluation(
    cohort: Cohort, probabilities: NDArray[np.float64] | None, seed: int
) -> Evaluation | None:
    if probabilities is None:
        return None
    targets = np.array([cohort.classes.index(scan.label) for scan in cohort.test_scans], dtype=np.int64)
    return evaluate(probabilities, targets, cohort.test_participants, cohort.classes, seed=seed)


def _out_of_fold_table(
    found: OutOfFold, cohort: Cohort, description: ModelDescription
) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    records: list[dict[str, object]] = []
    predictions = out_of_fold_predictions(found, cohort, description)
    for n, (scan, said) in enumerate(zip(cohort.scans, predictions, strict=True)):
        records.append(
            {
                **scan_columns(scan),
                "fold": int(found.folds[n]),
                "prediction_status": out_of_fold_status(said, scan),
                **prediction_columns(said),
                "prediction_reasons": ";".join(prediction_flags(said)),
            }
        )
    return tuple(records[0]), records


def prediction_columns(said: Prediction) -> dict[str, object]:
    """Return what a table of predictions holds of one."""
    return {
        "predicted_label": said.predicted_label,
        **{f"p_{name}": value for name, value in said.probabilities.items()},
        "prediction_set": ";".join(said.prediction_set),
        "member_labels": ";".join(f"{name}={label}" for name, label in said.member_labels.items()),
        "ood_score": said.ood_score,
    }


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
