"""From a finished run to a model directory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import block_shape
from brainstage.models.bundle import write_bundle
from brainstage.models.cohort_table import association_warnings
from brainstage.models.covariates import chosen_columns
from brainstage.models.duplicates import NearDuplicate, near_duplicates, same_person
from brainstage.models.features import FeatureExtractor, choose_device
from brainstage.models.metrics import Estimate
from brainstage.models.model_directory import replaced_directory, require_replaceable
from brainstage.models.model_store import (
    AnyModel,
    NumberModel,
    ScanInputs,
    StoredModel,
    scan_inputs,
    write_model,
)
from brainstage.models.norms import NORMED_MEASURES, ReferenceClass, fit_reference
from brainstage.models.number_table import number_association_warnings
from brainstage.models.splits import (
    MIN_FOLDS,
    fold_of_numbers,
    fold_of_scans,
    fold_of_sites,
    quantile_groups,
    require_folds,
    require_folds_of_numbers,
)
from brainstage.models.weights import load_weights
from brainstage.pipeline.account import ACCOUNT_FILE
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.errors import BrainstageError, UsageError
from brainstage.pipeline.files import read_json_or_empty, write_text
from brainstage.pipeline.review import read_decisions
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.learning.cohort_evaluation import member_words
from brainstage.workflows.learning.features import TrainingArrays, read_network_input, training_arrays
from brainstage.workflows.learning.fitting import REFERENCE_CLASS, fit, tuning_for
from brainstage.workflows.learning.labelled_cohort import (
    Cohort,
    LabelledScan,
    measures_of,
    read_cohort,
    reference_people,
)
from brainstage.workflows.learning.model_card import (
    harmonised_sentence,
    predictor_sentences,
    recommendation,
    render_card,
)
from brainstage.workflows.learning.model_evaluation import (
    PREDICTOR,
    ModelEvaluation,
    evaluate_model,
    write_evaluation,
)
from brainstage.workflows.learning.number_card import (
    bias_sentence,
    number_recommendation,
    render_number_card,
)
from brainstage.workflows.learning.number_evaluation import (
    NumberModelEvaluation,
    evaluate_number_model,
    write_number_evaluation,
)
from brainstage.workflows.learning.number_fitting import fit_numbers
from brainstage.workflows.learning.training_options import TrainOptions

LEAST_NUMBERS: Final = 3
"""Different values of a number; two are classes."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training came to.

    Attributes
    ----------
    model_dir : Path
    model_id : str
    balanced_accuracy : Estimate or None
        Cross-validated, of a model of classes.
    r2 : Estimate or None
        Cross-validated, of a model of a number.
    warnings : tuple of str
        Signs of leakage.
    """

    model_dir: Path
    model_id: str
    warnings: tuple[str, ...]
    balanced_accuracy: Estimate | None = None
    r2: Estimate | None = None


def train(out_dir: Path, model_dir: Path, options: TrainOptions, say: Callable[[str], None]) -> TrainResult:
    """Train a model on the scans of a finished run and write its directory, whole or not at all.

    Parameters
    ----------
    out_dir : Path
        The output directory of ``brainstage run``.
    model_dir : Path
        Absent, empty, or an earlier model, which is replaced.
    options : TrainOptions
    say : callable
        Gets one sentence for each finished step.

    Raises
    ------
    InputMissingError, ManifestError, UsageError
        When the run or its labels cannot be trained on.
    WeightsMissingError, WeightsError
        When the pretrained weights are absent or altered.
    OutputError
        When `model_dir` holds something else, or cannot be written.
    """
    require_replaceable(model_dir)
    if options.target is not None:
        return _train_number(out_dir, model_dir, options, say)
    cohort = _checked_cohort(out_dir, options, say)
    reference = _reference(cohort, options.reference_class, say)
    extractor, arrays, test_arrays, cohort, duplicates = _prepared(cohort, options, say)
    folds = _folds(cohort, options, say)
    with tuning_for(out_dir, extractor, arrays, cohort, options, say) as tuning:
        model, found, log = fit(extractor, arrays, cohort, folds, options, tuning, reference)
    say(f"trained {model.description.folds} folds, each with its controls")
    test = [model.answers(given).probabilities for given in _test_inputs(model, test_arrays, cohort)]
    description = model.description
    result = evaluate_model(
        found,
        cohort,
        description,
        np.stack(test) if test else None,
        seed=options.seed,
        duplicates=duplicates,
    )
    with replaced_directory(model_dir) as folder:
        write_model(folder, model)
        write_evaluation(folder, found, description, result, cohort, log, duplicates)
        write_bundle(folder / "bundle", model)
        write_text(folder / "MODEL_CARD.md", render_card(model, result, cohort, options))
    if tuning is not None:
        shutil.rmtree(tuning.checkpoints, ignore_errors=True)
    _say_result(result, model, cohort, model_dir, say)
    return TrainResult(
        model_dir=model_dir,
        model_id=model.model_id,
        balanced_accuracy=result.predictor.measures["balanced_accuracy"],
        warnings=result.warnings,
    )


def _train_number(
    out_dir: Path, model_dir: Path, options: TrainOptions, say: Callable[[str], None]
) -> TrainResult:
    """Train a model of a number, with the folds, controls and files of a model of classes."""
    cohort = _checked_cohort(out_dir, options, say)
    extractor, arrays, test_arrays, cohort, duplicates = _prepared(cohort, options, say)
    model, found = fit_numbers(extractor, arrays, cohort, _folds(cohort, options, say), options)
    say(f"trained {model.description.folds} folds, each with its controls")
    test = [model.answers(given).value for given in _test_inputs(model, test_arrays, cohort)]
    result = evaluate_number_model(
        found,
        cohort,
        model.description,
        np.array(test) if test else None,
        seed=options.seed,
        duplicates=duplicates,
    )
    with replaced_directory(model_dir) as folder:
        write_model(folder, model)
        write_number_evaluation(folder, found, model.description, result, cohort, duplicates)
        write_text(folder / "MODEL_CARD.md", render_number_card(model, result, cohort, options))
    _say_number_result(result, model, cohort, model_dir, say)
    return TrainResult(
        model_dir=model_dir,
        model_id=model.model_id,
        r2=result.predictor.measures["r2"],
        warnings=result.warnings,
    )


def _checked_cohort(out_dir: Path, options: TrainOptions, say: Callable[[str], None]) -> Cohort:
    """Return the cohort, after making sure that it can be trained on, before anything takes long."""
    decisions = read_decisions(options.qc_decisions) if options.qc_decisions else {}
    cohort = read_cohort(
        out_dir,
        options.target or options.label_column,
        options.classes,
        decisions=decisions,
        number=options.target is not None,
    )
    account = read_json_or_empty(out_dir / STATE_FOLDER / ACCOUNT_FILE).get("lines")
    for line in account if isinstance(account, list) else ():
        say(str(line))
    if options.target is not None:
        _require_numbers_differ(cohort, options.target)
    if options.folds_by == "site":
        _folds_of_sites(cohort, options)
    else:
        _require_folds(cohort, options)
    _require_sites(cohort, options)
    chosen_columns(options.covariates, cohort.covariates(options.covariates), cohort.columns)
    _say_cohort(cohort, options, say)
    return cohort


_Prepared = tuple[
    FeatureExtractor, list[TrainingArrays], list[TrainingArrays], Cohort, tuple[NearDuplicate, ...]
]


def _prepared(cohort: Cohort, options: TrainOptions, say: Callable[[str], None]) -> _Prepared:
    """Return the network, the arrays of training and test scans, the cohort with doubles joined, and the doubles."""
    extractor = _extractor(options, say)
    arrays = _all_arrays(extractor, cohort.scans, cohort, say)
    test_arrays = _all_arrays(extractor, cohort.test_scans, cohort, say)
    duplicates = _duplicates((*arrays, *test_arrays), cohort)
    return extractor, arrays, test_arrays, _joined(cohort, duplicates, options), duplicates


def _require_numbers_differ(cohort: Cohort, target: str) -> None:
    """Raise where a column holds one number only, or two, which are classes."""
    different = np.unique(cohort.numbers)
    if len(different) < LEAST_NUMBERS:
        listed = " and ".join(f"{value:g}" for value in different)
        raise UsageError(
            f"--target {target}: the column holds {listed} alone, and a number to predict needs at least "
            f"{LEAST_NUMBERS} different values: use --label-column {target} for two classes, or another column"
        )


def _require_folds(cohort: Cohort, options: TrainOptions) -> None:
    if options.target is not None:
        require_folds_of_numbers(cohort.participants, options.folds)
    else:
        require_folds(cohort.labels, cohort.participants, options.folds)


def _folds(cohort: Cohort, options: TrainOptions, say: Callable[[str], None]) -> NDArray[np.int64]:
    if options.folds_by == "site":
        folds, names = _folds_of_sites(cohort, options)
        say(f"folds by site, each left out once: {'; '.join(names)}")
        return folds
    how = {"folds": options.folds, "seed": options.seed}
    if options.target is not None:
        return fold_of_numbers(cohort.numbers, cohort.participants, about=cohort.about, **how)
    return fold_of_scans(cohort.labels, cohort.participants, about=cohort.about, **how)


def _folds_of_sites(cohort: Cohort, options: TrainOptions) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    sites = [scan.row.site for scan in cohort.scans]
    if options.target is None:
        return fold_of_sites(sites, cohort.labels, cohort.participants)
    groups = quantile_groups(cohort.numbers, cohort.participants, folds=MIN_FOLDS)
    return fold_of_sites(sites, groups, cohort.participants, every_class_elsewhere=False)


def _require_sites(cohort: Cohort, options: TrainOptions) -> None:
    """Raise where sites are to be harmonised and no two of them are known."""
    known = {scan.row.site for scan in cohort.scans if scan.row.site}
    if options.harmonise == "site" and len(known) < 2:
        raise UsageError(
            f"--harmonise site needs scans of two or more sites, and the column site has {', '.join(known) or 'none'}: "
            "fill it in participants.tsv and run brainstage run again, or leave the option out"
        )


def _joined(cohort: Cohort, duplicates: Sequence[NearDuplicate], options: TrainOptions) -> Cohort:
    """Count participants who share a picture as one, unless too few would be left to deal to the folds.

    Where so many look alike, the pictures say little about who is who: the pairs are reported, and nobody is joined.
    """
    people = same_person(_all_participants(cohort), _one_sided(duplicates, cohort))
    joined = replace(cohort, same_person=people)
    try:
        _require_folds(joined, options)
    except UsageError:
        return cohort
    return joined


def _test_inputs(model: AnyModel, arrays: Sequence[TrainingArrays], cohort: Cohort) -> Iterator[ScanInputs]:
    """Give what the ensemble is given of each scan kept out, one image in memory at a time."""
    known = cohort.covariates(model.description.columns_read, test=True)
    for scan, array, covariates in zip(cohort.test_scans, arrays, known, strict=True):
        image = read_network_input(scan.files, cohort.network_grid)
        yield scan_inputs(array.features, image, measures_of(scan.files), covariates)


def _reference(cohort: Cohort, asked: str | None, say: Callable[[str], None]) -> ReferenceClass | None:
    """Fit what is usual in the class of reference; None without one, or with too few people in it."""
    label = asked or (REFERENCE_CLASS if REFERENCE_CLASS in cohort.classes else None)
    if label is None:
        return None
    if label not in cohort.classes:
        raise UsageError(
            f"--reference-class {label!r} is none of the classes, which are {', '.join(cohort.classes)}"
        )
    people = reference_people(cohort, label)
    reference = fit_reference(label, people, tuple(NORMED_MEASURES.values()), measured_by=VOLUMES_VERSION)
    if reference is None:
        say(f"too few people of class {label} to say what is usual there: no scan will be compared with it")
    return reference


def _duplicates(arrays: Sequence[TrainingArrays], cohort: Cohort) -> tuple[NearDuplicate, ...]:
    shape = block_shape(cohort.network_grid["shape"])
    blocks = math.prod(shape)
    return near_duplicates(
        [a.values[:blocks] for a in arrays],
        [a.inside[:blocks] for a in arrays],
        shape,
        _all_participants(cohort),
    )


def _all_participants(cohort: Cohort) -> list[str]:
    return [scan.row.participant_id for scan in (*cohort.scans, *cohort.test_scans)]


def _one_sided(duplicates: Sequence[NearDuplicate], cohort: Cohort) -> list[NearDuplicate]:
    """Keep pairs on one side of the split: who is on both stays two, and a warning says so."""
    learnt = len(cohort.scans)
    return [pair for pair in duplicates if (pair.first < learnt) == (pair.second < learnt)]


def _extractor(options: TrainOptions, say: Callable[[str], None]) -> FeatureExtractor:
    device = choose_device(options.device)
    loaded = load_weights(options.weights, seed=options.seed, strides=options.strides)
    say(f"weights: {loaded.source.words}" + (f" ({loaded.report})" if loaded.report else ""))
    return FeatureExtractor(loaded.network, loaded.source, device)


def _all_arrays(
    extractor: FeatureExtractor,
    scans: Sequence[LabelledScan],
    cohort: Cohort,
    say: Callable[[str], None],
) -> list[TrainingArrays]:
    arrays = []
    for scan in scans:
        try:
            arrays.append(training_arrays(extractor, scan.files, cohort.network_grid))
        except BrainstageError as error:
            error.scan = error.scan or scan.files.key
            raise
    if scans:
        say(f"features of {len(scans)} scans, {len(arrays[0].features)} each")
    return arrays


def _say_cohort(cohort: Cohort, options: TrainOptions, say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{cohort.labels.count(name)} {name}" for name in cohort.classes)
    if options.target is not None:
        numbers = cohort.numbers
        counts = f"{options.target} {numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}"
    say(f"{len(cohort.scans)} scans of {len(set(cohort.participants))} participants: {counts}")
    for remark in cohort.remarks:
        say(remark)
    for reason, keys in cohort.left_out.items():
        shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
        say(f"left out, {reason}: {len(keys)} ({shown})")


def _say_result(
    result: ModelEvaluation, model: StoredModel, cohort: Cohort, model_dir: Path, say: Callable[[str], None]
) -> None:
    chance = 1 / len(model.classes)
    random = result.random_labels[PREDICTOR].measures["balanced_accuracy"].value
    for sentence in predictor_sentences(model.description.predictor, model.description.members):
        say(sentence)
    say(
        f"cross-validated balanced accuracy {result.predictor.measures['balanced_accuracy']}, chance {chance:.2f}; "
        f"{member_words(result.members)}, "
        f"mask only {result.mask_only.measures['balanced_accuracy'].value:.2f}, random labels {random:.2f}"
    )
    if sentence := harmonised_sentence(model.description, cohort):
        say(sentence)
    for sentence in association_warnings(result.table):
        say(sentence)
    say(recommendation(model.description, result))
    for warning in result.warnings:
        say(f"leakage warning: {warning}")
    say(
        f"model {model.model_id} written to {model_dir}; read its MODEL_CARD.md. Research use only, not a diagnosis."
    )


def _say_number_result(
    result: NumberModelEvaluation,
    model: NumberModel,
    cohort: Cohort,
    model_dir: Path,
    say: Callable[[str], None],
) -> None:
    for sentence in predictor_sentences(model.description.predictor, model.description.members):
        say(sentence)
    measures = result.predictor.measures
    members = ", ".join(f"{name} {found.measures['r2'].value:.2f}" for name, found in result.members.items())
    say(
        f"cross-validated mean absolute error {measures['mae']}, R2 {measures['r2']}, where the mean has 0; R2 of "
        f"{members}, mask only {result.mask_only.measures['r2'].value:.2f}, random targets "
        f"{result.random_targets[PREDICTOR].measures['r2'].value:.2f}"
    )
    if sentence := harmonised_sentence(model.description, cohort):
        say(sentence)
    for sentence in number_association_warnings(result.table, model.column):
        say(sentence)
    say(bias_sentence(result.predictor, model.column))
    say(number_recommendation(model.description, result))
    for warning in result.warnings:
        say(f"leakage warning: {warning}")
    say(
        f"model {model.model_id} written to {model_dir}; read its MODEL_CARD.md. Research use only, not a diagnosis."
    )
