"""``brainstage evaluate``: a stored model on a labelled cohort that it never saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from brainstage.models.features import choose_device
from brainstage.models.model_directory import replaced_directory
from brainstage.models.model_store import (
    Answers,
    AnyModel,
    NumberModel,
    ScanInputs,
    StoredModel,
    load_model,
    scan_inputs,
)
from brainstage.pipeline.errors import UsageError, attributed
from brainstage.pipeline.files import read_json
from brainstage.pipeline.manifest import read_manifest
from brainstage.pipeline.records import Prediction
from brainstage.workflows.learning.cohort_evaluation import (
    CohortEvaluation,
    JudgedCohort,
    comparison,
    evaluate_cohort,
    member_words,
    read_cross_validated,
    require_replaceable_result,
    write_result,
)
from brainstage.workflows.learning.features import cached_features, network_input_key, read_network_input
from brainstage.workflows.learning.labelled_cohort import (
    Cohort,
    LabelledScan,
    measures_of,
    numbers_of,
    read_cohort,
)
from brainstage.workflows.learning.number_cohort_evaluation import (
    NumberCohortEvaluation,
    PredictedCohort,
    evaluate_number_cohort,
    number_comparison,
    read_cross_validated_error,
    write_number_result,
)

TRAINED_ON: Final = "the model was trained on this scan"
TRAINED_ON_PERSON: Final = "the model was trained on another scan of this participant"
UNKNOWN_CLASS: Final = "label is no class of the model"
LEAST_PEOPLE: Final = 3
"""With a number to compare: of fewer, a spread means nothing."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How to evaluate; the options of ``brainstage evaluate``.

    Attributes
    ----------
    label_column : str or None
        Column of the run's ``data_manifest.csv``; None for the one that the model was trained on.
    seed : int
        Of the bootstrap.
    device : str
        ``auto``, ``cpu`` or ``cuda``, for the network.

    Raises
    ------
    UsageError
        For a value that is not allowed.
    """

    label_column: str | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: 0 to {2**31 - 1} are allowed")


def evaluate(
    model_dir: Path, out_dir: Path, result_dir: Path, options: EvaluateOptions, say: Callable[[str], None]
) -> CohortEvaluation | NumberCohortEvaluation:
    """Judge the labelled scans of a finished run and write how well it went, whole or not at all.

    Parameters
    ----------
    model_dir : Path
    out_dir : Path
        The output directory of ``brainstage run`` on a cohort that the model was not trained on.
    result_dir : Path
        Absent, empty, or an earlier result, which is replaced.
    options : EvaluateOptions
    say : callable
        Gets one sentence for each finished step.

    Raises
    ------
    InputMissingError, ManifestError, UsageError
        When the model, the run or its labels are not there, or leave fewer than two classes.
    ModelError
        When the model cannot be used, or not for scans preprocessed like these.
    OutputError
        When `result_dir` holds something else, or cannot be written.
    """
    require_replaceable_result(result_dir)
    model = load_model(model_dir, str(choose_device(options.device)))
    if isinstance(model, NumberModel):
        return _evaluate_number(model, model_dir, out_dir, result_dir, options, say)
    label_column = options.label_column or model.description.label_column
    cohort = read_cohort(
        out_dir, label_column, None, by_split=False, preprocessed=model.description.preprocessing_id
    )
    model.require_preprocessing(cohort.preprocessing_id, cohort.preprocessing_content)
    scans, left_out = unseen_scans(cohort, model.classes, *_known_to(model, out_dir))
    _require_two_classes(scans, left_out, cohort, model.classes, label_column)
    unknown_files = sum(scan.row.sha256 is None for scan in scans)
    labels = [scan.label for scan in scans]
    counts = ", ".join(f"{labels.count(name)} {name}" for name in model.classes)
    _say_cohort(scans, left_out, unknown_files, counts, say)
    judged = judge(model, scans)
    say(f"judged {len(scans)} scans with model {model.model_id}")
    result = evaluate_cohort(judged, read_cross_validated(model_dir), seed=options.seed)
    with replaced_directory(result_dir, require_replaceable_result) as folder:
        write_result(
            folder,
            model.description,
            judged,
            result,
            label_column=label_column,
            seed=options.seed,
            left_out=left_out,
            unknown_files=unknown_files,
        )
    say(
        f"balanced accuracy {result.balanced_accuracy}, chance {1 / len(result.present):.2f}; "
        f"{member_words(result.members)}. {comparison(result)}"
    )
    say(f"written to {result_dir}; read its EVALUATION.md. Research use only, not a diagnosis.")
    return result


def _evaluate_number(
    model: NumberModel,
    model_dir: Path,
    out_dir: Path,
    result_dir: Path,
    options: EvaluateOptions,
    say: Callable[[str], None],
) -> NumberCohortEvaluation:
    """Predict a number for the scans of a finished run where it is known, and write how far off that was."""
    description = model.description
    column = options.label_column or model.column
    cohort = read_cohort(
        out_dir, column, None, by_split=False, preprocessed=description.preprocessing_id, number=True
    )
    model.require_preprocessing(cohort.preprocessing_id, cohort.preprocessing_content)
    scans, left_out = unseen_scans(cohort, None, *_known_to(model, out_dir))
    if len({scan.row.participant_id for scan in scans}) < LEAST_PEOPLE:
        reasons = "; ".join(f"{len(keys)} left out, {reason}" for reason, keys in left_out.items())
        raise UsageError(
            f"scans of at least {LEAST_PEOPLE} people whose {column} is known are needed, and there are {len(scans)} "
            f"scans; {reasons or 'none was left out'}"
        )
    unknown_files = sum(scan.row.sha256 is None for scan in scans)
    numbers = numbers_of(scans)
    _say_cohort(scans, left_out, unknown_files, f"{column} {numbers.min():.4g} to {numbers.max():.4g}", say)
    predicted = predict_numbers(model, scans)
    say(f"predicted {len(scans)} scans with model {model.model_id}")
    result = evaluate_number_cohort(
        predicted, description.members, read_cross_validated_error(model_dir), seed=options.seed
    )
    with replaced_directory(result_dir, require_replaceable_result) as folder:
        write_number_result(
            folder,
            description,
            predicted,
            result,
            column=column,
            seed=options.seed,
            left_out=left_out,
            unknown_files=unknown_files,
        )
    say(
        f"mean absolute error {result.predictor.measures['mae']}, R2 {result.predictor.measures['r2']}. "
        f"{number_comparison(result)}"
    )
    say(f"written to {result_dir}; read its EVALUATION.md. Research use only, not a diagnosis.")
    return result


def _known_to(model: AnyModel, out_dir: Path) -> tuple[AbstractSet[str], AbstractSet[str]]:
    """Return the hashes of the files that a model was trained on, and whom of a run they are of."""
    trained_on = model.description.training_scans.keys()
    rows = read_manifest(out_dir / "data_manifest.csv")
    return trained_on, {row.participant_id for row in rows if row.sha256 in trained_on}


def unseen_scans(
    cohort: Cohort, classes: Sequence[str] | None, trained_on: AbstractSet[str], people: AbstractSet[str]
) -> tuple[list[LabelledScan], dict[str, tuple[str, ...]]]:
    """Return the scans that a model may be measured on, and why the others are left out.

    Parameters
    ----------
    cohort : Cohort
    classes : sequence of str or None
        The model's; None where it predicts a number.
    trained_on : set of str
        Hashes of the files that the model was trained on.
    people : set of str
        Participants of this cohort with such a file: what the model learnt about them it would know again.

    Returns
    -------
    list of LabelledScan
    dict
        Reason to the keys of the scans it applies to, those that the cohort left out among them.
    """
    scans: list[LabelledScan] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for reason, keys in cohort.left_out.items():
        left_out[reason] += keys
    for scan in cohort.scans:
        if scan.row.sha256 in trained_on:
            left_out[TRAINED_ON].append(scan.files.key)
        elif scan.row.participant_id in people:
            left_out[TRAINED_ON_PERSON].append(scan.files.key)
        elif classes is not None and scan.label not in classes:
            left_out[UNKNOWN_CLASS].append(scan.files.key)
        else:
            scans.append(scan)
    return scans, {reason: tuple(keys) for reason, keys in left_out.items()}


def judge(model: StoredModel, scans: Sequence[LabelledScan]) -> JudgedCohort:
    """Let a model look at scans as ``brainstage run --model`` does; features are kept for both.

    Raises
    ------
    InferenceError
        When a scan does not fit the model; it names the scan.
    """
    predictions: list[Prediction] = []
    qc: list[str] = []
    answers: list[Answers] = []
    for scan in scans:
        with attributed(scan.files.key, "prediction"):
            given = _inputs_of(model, scan)
            answers.append(model.answers(given, scan.row.sha256))
            predictions.append(model.prediction_of(answers[-1], given, scan.row.sha256))
        qc.append(_qc_status(scan))
    return JudgedCohort(
        scans=tuple(scans),
        predictions=tuple(predictions),
        uncalibrated=np.stack([one.uncalibrated_probabilities for one in answers]),
        members={
            name: np.stack([one.member_probabilities[name] for one in answers])
            for name in model.description.members
        },
        qc=tuple(qc),
    )


def predict_numbers(model: NumberModel, scans: Sequence[LabelledScan]) -> PredictedCohort:
    """Let a model of a number predict scans as ``brainstage run --model`` does; features are kept for both.

    Raises
    ------
    InferenceError
        When a scan does not fit the model; it names the scan.
    """
    predictions = []
    for scan in scans:
        with attributed(scan.files.key, "prediction"):
            predictions.append(model.predict(_inputs_of(model, scan), scan.row.sha256))
    return PredictedCohort(
        scans=tuple(scans), predictions=tuple(predictions), qc=tuple(map(_qc_status, scans))
    )


def _inputs_of(model: AnyModel, scan: LabelledScan) -> ScanInputs:
    image = read_network_input(scan.files, model.network_grid)
    key = network_input_key(scan.files, model.network_grid)
    features = cached_features(model.extractor, scan.files, image, key)
    known = {name: scan.row.value(name) for name in model.description.columns_read}
    return scan_inputs(features, image, measures_of(scan.files), known)


def _qc_status(scan: LabelledScan) -> str:
    return str(read_json(scan.files.qc_json)["qc_status"])


def _require_two_classes(
    scans: Sequence[LabelledScan],
    left_out: Mapping[str, Sequence[str]],
    cohort: Cohort,
    classes: Sequence[str],
    label_column: str,
) -> None:
    present = sorted({scan.label for scan in scans})
    if len(present) >= 2:
        return
    counts = "; ".join(f"{len(keys)} left out, {reason}" for reason, keys in left_out.items())
    raise UsageError(
        f"scans of at least two classes of the model ({', '.join(classes)}) are needed, and there are scans of "
        f"{present[0] if present else 'none'}; {counts or 'none was left out'}. "
        f"Labels in the column {label_column!r} are {', '.join(cohort.classes)}; --label-column takes another column"
    )


def _say_cohort(
    scans: Sequence[LabelledScan],
    left_out: Mapping[str, Sequence[str]],
    unknown_files: int,
    counts: str,
    say: Callable[[str], None],
) -> None:
    people = len({scan.row.participant_id for scan in scans})
    say(f"{len(scans)} scans of {people} participants: {counts}; the split of the manifest plays no part")
    for reason, keys in left_out.items():
        shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
        say(f"left out, {reason}: {len(keys)} ({shown})")
    if unknown_files:
        say(f"{unknown_files} scans have no hash in the manifest: the model may have been trained on them")
