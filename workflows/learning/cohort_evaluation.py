"""What a finished model is worth on a cohort that it never saw: measured, written, and said in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member
from brainstage.models.metrics import Estimate, Evaluation, evaluate, proportion
from brainstage.models.model_description import ModelDescription
from brainstage.pipeline.errors import OutputError
from brainstage.pipeline.files import read_json_or_empty, write_bytes, write_json, write_text
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import Prediction
from brainstage.workflows.learning.labelled_cohort import LabelledScan
from brainstage.workflows.learning.model_card import cell, chance_sentence, level_sentence
from brainstage.workflows.learning.model_evaluation import (
    estimate_content,
    evaluation_content,
    prediction_columns,
    scan_columns,
)
from brainstage.workflows.learning.model_figures import (
    calibration_figure,
    confusion_figure,
    precision_recall_figure,
    roc_figure,
)
from brainstage.workflows.reporting.markdown import markdown_environment

SMALLEST_GROUP: Final = 10
"""With fewer scans an interval spans nearly everything, and its middle would be read all the same."""
FEW_PARTICIPANTS: Final = 5
"""With fewer of a class, drawing them again tells next to nothing about others: the reader is warned."""
FEW_SCANS: Final = f"fewer than {SMALLEST_GROUP} scans"
ONE_CLASS: Final = "all scans are of one class"
NOT_KNOWN: Final = "not known"
RESULT_FILES: Final = frozenset(
    {
        "EVALUATION.md",
        "metrics.json",
        "evaluation_predictions.csv",
        "confusion_matrix.png",
        "roc.png",
        "precision_recall.png",
        "calibration.png",
        "predicted_and_true.png",
    }
)
EVALUATE_COMMAND: Final = "brainstage evaluate"
_TITLE: Final = "Predictions for another cohort"


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedCohort:
    """What a model says about the scans of a cohort.

    Attributes
    ----------
    scans : tuple of LabelledScan
    predictions : tuple of Prediction
        As ``brainstage run --model`` makes them.
    uncalibrated : ndarray, (N, C) float64
        Probabilities without any temperature.
    members : mapping
        Member of the model to its calibrated probabilities, (N, C).
    qc : tuple of str
        Verdict of quality control on each scan.
    """

    scans: tuple[LabelledScan, ...]
    predictions: tuple[Prediction, ...]
    uncalibrated: NDArray[np.float64]
    members: Mapping[Member, NDArray[np.float64]]
    qc: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The model's, in its order."""
        return tuple(self.predictions[0].probabilities)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated, (N, C)."""
        return np.array([list(prediction.probabilities.values()) for prediction in self.predictions])

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of the true class of each scan, (N,)."""
        return np.array([self.classes.index(scan.label) for scan in self.scans], dtype=np.int64)

    @property
    def participants(self) -> list[str]:
        """Of each scan."""
        return [scan.row.participant_id for scan in self.scans]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The scans that have one value of a column in common.

    Attributes
    ----------
    scans : int
    evaluation : Evaluation or None
    not_measured : str
        Why there is none.
    """

    scans: int
    evaluation: Evaluation | None = None
    not_measured: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortEvaluation:
    """Every measured property of a model on another cohort.

    Attributes
    ----------
    predictor, uncalibrated : Evaluation
        Of the published probabilities, and of the same without any temperature.
    members : mapping
        Member of the model to what it reaches by itself.
    groups : mapping
        ``by_site``, ``by_sex`` and ``by_qc_status`` to value to group.
    coverage : mapping
        Class to the part of its scans whose prediction set holds it; the interval takes scans for independent.
    mean_set_size : float
    beyond_threshold : Estimate
        Part of the scans whose novelty score is above the model's threshold.
    cross_validated : Estimate or None
        Balanced accuracy in the model's own cross-validation, where the model directory still tells it.
    """

    predictor: Evaluation
    uncalibrated: Evaluation
    members: Mapping[Member, Evaluation]
    groups: Mapping[str, Mapping[str, Group]]
    coverage: Mapping[str, Estimate]
    mean_set_size: float
    beyond_threshold: Estimate
    cross_validated: Estimate | None

    @property
    def balanced_accuracy(self) -> Estimate:
        """Of the predictor, over the classes that the cohort has scans of."""
        return self.predictor.measures["balanced_accuracy"]

    @property
    def absent(self) -> list[str]:
        """The model's classes that the cohort has no scan of."""
        return [name for name, scans in self.predictor.scans.items() if not scans]

    @property
    def present(self) -> list[str]:
        """The model's classes that the cohort has scans of."""
        return [name for name, scans in self.predictor.scans.items() if scans]


def evaluate_cohort(judged: JudgedCohort, cross_validated: Estimate | None, *, seed: int) -> CohortEvaluation:
    """Measure a model on scans that it was not trained on; nothing is fitted here.

    Parameters
    ----------
    judged : JudgedCohort
    cross_validated : Estimate or None
        From :func:`read_cross_validated`.
    seed : int
        Of the bootstrap.
    """
    targets = judged.targets
    covered = [scan.label in said.prediction_set for scan, said in _pairs(judged)]

    def measured(probabilities: NDArray[np.float64], chosen: NDArray[np.bool_] | None = None) -> Evaluation:
        own = np.ones(len(targets), dtype=bool) if chosen is None else chosen
        people = [name for name, taken in zip(judged.participants, own, strict=True) if taken]
        return evaluate(probabilities[own], targets[own], people, judged.classes, seed=seed)

    def grouped(values: Sequence[str | None]) -> dict[str, Group]:
        return _groups(values, targets, lambda chosen: measured(judged.probabilities, chosen))

    return CohortEvaluation(
        predictor=measured(judged.probabilities),
        uncalibrated=measured(judged.uncalibrated),
        members={name: measured(said) for name, said in judged.members.items()},
        groups={
            "by_site": grouped([scan.row.site for scan in judged.scans]),
            "by_sex": grouped([scan.row.sex for scan in judged.scans]),
            "by_qc_status": grouped(judged.qc),
        },
        coverage={
            name: proportion(int(np.sum(np.array(covered)[targets == c])), int((targets == c).sum()))
            for c, name in enumerate(judged.classes)
        },
        mean_set_size=float(np.mean([len(said.prediction_set) for said in judged.predictions])),
        beyond_threshold=proportion(
            sum(said.ood_score > said.ood_threshold for said in judged.predictions), len(targets)
        ),
        cross_validated=cross_validated,
    )


def read_cross_validated(model_dir: Path) -> Estimate | None:
    """Return the cross-validated balanced accuracy that a model directory tells; None where it does not."""
    content: Any = read_json_or_empty(model_dir / "evaluation" / "metrics.json")
    try:
        found = content["cross_validation"]["measures"]["balanced_accuracy"]
        return Estimate(**{name: float(found[name]) for name in ("value", "low", "high")})
    except (KeyError, TypeError, ValueError):
        return None


def require_replaceable_result(result_dir: Path) -> None:
    """Raise unless `result_dir` is absent, empty, or holds an earlier result and nothing else.

    Raises
    ------
    OutputError
        When it is a file, or holds anything else.
    """
    if not result_dir.exists():
        return
    if not result_dir.is_dir():
        raise OutputError(f"{result_dir.name} is a file: choose a directory for the result")
    found = {path.name for path in result_dir.iterdir()}
    earlier = read_json_or_empty(result_dir / "metrics.json").get("command") == EVALUATE_COMMAND
    if found and not (earlier and found <= RESULT_FILES):
        raise OutputError(
            f"{result_dir.name} holds something else than an earlier result of {EVALUATE_COMMAND}, such as "
            f"{min(found - RESULT_FILES, default='metrics.json')}, so it is not replaced: choose another directory"
        )


def write_result(
    folder: Path,
    model: ModelDescription,
    judged: JudgedCohort,
    result: CohortEvaluation,
    *,
    label_column: str,
    seed: int,
    left_out: Mapping[str, Sequence[str]],
    unknown_files: int,
) -> None:
    """Write all files of a result into an empty folder.

    Parameters
    ----------
    label_column : str
        Where the labels stood.
    left_out : mapping
        Reason to the keys of the scans that were not judged.
    unknown_files : int
        Judged scans whose hash is not known, so that they may be training scans.
    """
    classes, targets, probabilities = judged.classes, judged.targets, judged.probabilities
    about = {
        "command": EVALUATE_COMMAND,
        "model_id": model.model_id,
        "preprocessing_id": model.preprocessing_id,
        "label_column": label_column,
        "seed": seed,
        "participants": len(set(judged.participants)),
        "left_out": {reason: len(keys) for reason, keys in left_out.items()},
        "scans_without_known_hash": unknown_files,
    }
    write_json(folder / "metrics.json", about | result_content(model, result))
    columns, records = _predictions_table(judged)
    write_text(folder / "evaluation_predictions.csv", csv_text(columns, records))
    write_bytes(folder / "confusion_matrix.png", confusion_figure(result.predictor, classes, _TITLE))
    write_bytes(folder / "roc.png", roc_figure(probabilities, targets, result.predictor, classes))
    write_bytes(
        folder / "precision_recall.png",
        precision_recall_figure(probabilities, targets, result.predictor, classes),
    )
    write_bytes(folder / "calibration.png", calibration_figure(judged.uncalibrated, probabilities, targets))
    participants_of = {
        name: len({scan.row.participant_id for scan in judged.scans if scan.label == name})
        for name in classes
    }
    context: dict[str, Any] = {
        "about": about,
        "model": model,
        "result": result,
        "left_out": left_out,
        "who": cohort_words(judged.scans),
        "participants_of": participants_of,
        "few": [name for name, people in participants_of.items() if 0 < people < FEW_PARTICIPANTS],
        "chance_sentence": chance_sentence(result.balanced_accuracy, len(result.present)),
        "comparison": comparison(result),
        "measures": [name for name in result.predictor.measures if name not in ("ece", "brier")],
        "levels": level_sentence(model.conformal),
        "cell": cell,
    }
    write_text(
        folder / "EVALUATION.md", markdown_environment().get_template("evaluation.md.j2").render(context)
    )


def result_content(model: ModelDescription, result: CohortEvaluation) -> dict[str, Any]:
    """Return what was measured as JSON values; undefined numbers are null."""
    own = result.cross_validated
    return {
        "overall": evaluation_content(result.predictor),
        "uncalibrated": evaluation_content(result.uncalibrated),
        "members": {name: evaluation_content(found) for name, found in result.members.items()},
        "cross_validated_balanced_accuracy": estimate_content(own) if own else None,
        "calibration": {
            name: {
                "calibrated": estimate_content(result.predictor.measures[name]),
                "uncalibrated": estimate_content(result.uncalibrated.measures[name]),
            }
            for name in ("ece", "brier")
        },
        "conformal": {
            "levels": model.conformal.levels,
            "coverage": {name: estimate_content(found) for name, found in result.coverage.items()},
            "mean_set_size": round(result.mean_set_size, 6),
        },
        "novelty": {
            "threshold": model.novelty_threshold,
            "beyond_threshold": estimate_content(result.beyond_threshold),
        },
    } | {
        column: {value: _group_content(group) for value, group in groups.items()}
        for column, groups in result.groups.items()
    }


def comparison(result: CohortEvaluation) -> str:
    """Say how the balanced accuracy compares with the model's own cross-validation."""
    here, own = result.balanced_accuracy, result.cross_validated
    if own is None:
        return "The model directory does not tell the cross-validated balanced accuracy to compare with."
    if result.absent:
        return (
            f"It does not compare with the cross-validated balanced accuracy, {own}: the cohort has no scan of "
            f"{', '.join(result.absent)}, and fewer classes are easier to tell apart."
        )
    change = here.value - own.value
    words = f"{abs(change):.2f} {'higher' if change > 0 else 'lower'} than"
    first = f"That is {'the same as' if abs(change) < 0.005 else words} in the model's own cross-validation, {own}."
    if here.low <= own.high and own.low <= here.high:
        return f"{first} The two intervals overlap: this cohort does not show a difference."
    return f"{first} The two intervals do not overlap: on scans like these, count on the number found here."


def member_words(members: Mapping[Member, Evaluation]) -> str:
    """Return the balanced accuracy of each member, on one line."""
    return ", ".join(
        f"{name} {found.measures['balanced_accuracy'].value:.2f}" for name, found in members.items()
    )


def _groups(
    values: Sequence[str | None],
    targets: NDArray[np.int64],
    measured: Callable[[NDArray[np.bool_]], Evaluation],
) -> dict[str, Group]:
    """Return the groups by value in their order, those of unknown value last."""
    found: dict[str, Group] = {}
    for value in sorted({value for value in values if value}):
        chosen = np.array([other == value for other in values])
        scans = int(chosen.sum())
        if scans < SMALLEST_GROUP:
            found[value] = Group(scans=scans, not_measured=FEW_SCANS)
        elif len(np.unique(targets[chosen])) < 2:
            found[value] = Group(scans=scans, not_measured=ONE_CLASS)
        else:
            found[value] = Group(scans=scans, evaluation=measured(chosen))
    unknown = sum(not value for value in values)
    return found | ({NOT_KNOWN: Group(scans=unknown, not_measured=NOT_KNOWN)} if unknown else {})


def _group_content(group: Group) -> dict[str, Any]:
    if group.evaluation is None:
        return {"scans": group.scans, "not_measured": group.not_measured}
    return evaluation_content(group.evaluation)


def _predictions_table(judged: JudgedCohort) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """Return the table of a model's out-of-fold predictions, with the verdict of quality control added."""
    records: list[dict[str, object]] = []
    for (scan, said), qc in zip(_pairs(judged), judged.qc, strict=True):
        records.append(
            {
                **scan_columns(scan),
                "fold": "none",
                **prediction_columns(said),
                "qc_status": qc,
            }
        )
    return tuple(records[0]), records


def _pairs(judged: JudgedCohort) -> list[tuple[LabelledScan, Prediction]]:
    return list(zip(judged.scans, judged.predictions, strict=True))


def cohort_words(scans: Sequence[LabelledScan]) -> str:
    """Say in words whose scans they are, as far as the manifest tells."""
    ages = [scan.row.age for scan in scans if scan.row.age is not None]
    words = []
    if ages:
        words.append(
            f"age {min(ages):.0f} to {max(ages):.0f}, median {np.median(ages):.0f} (known for {len(ages)} scans)"
        )
    for column in ("sex", "site"):
        values = [value for scan in scans if (value := scan.row.value(column))]
        counts = ", ".join(f"{values.count(value)} {value}" for value in sorted(set(values)))
        words += [f"{column} {counts}"] if counts else []
    return "; ".join(words) or "age, sex and site are not known"
