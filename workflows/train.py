"""From a finished run to a model directory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.augmentation import DEFAULT_RECIPES, Augmentation
from brainstage.models.baseline import BASELINE_VERSION, LinearBaseline, block_shape
from brainstage.models.bundle import write_bundle
from brainstage.models.calibration import fit_temperature
from brainstage.models.conformal import LEVEL, class_quantiles
from brainstage.models.covariates import Column, CovariateExpert, chosen_columns, cross_validate_covariates
from brainstage.models.cross_validation import (
    RANDOM_LABEL_DRAWS,
    cross_validate,
    cross_validate_baseline,
    cross_validate_novelty,
    judge_of,
    random_label_control,
)
from brainstage.models.duplicates import NearDuplicate, near_duplicates, same_person
from brainstage.models.features import FeatureExtractor, choose_device, feature_channels
from brainstage.models.fine_tuning import Images, Regime, TuneOptions
from brainstage.models.heads import HeadKind
from brainstage.models.imbalance import IMBALANCE
from brainstage.models.learners import FrozenLearner, Learner, TuningLearner
from brainstage.models.med3d import Strides
from brainstage.models.metrics import Estimate
from brainstage.models.model_directory import replaced_directory, require_replaceable
from brainstage.models.model_store import (
    AGE_AND_SEX,
    BackboneDescription,
    ConformalDescription,
    ModelDescription,
    StoredModel,
    TierBounds,
    write_model,
)
from brainstage.models.norms import ReferenceClass, fit_reference
from brainstage.models.novelty import novelty_threshold
from brainstage.models.splits import fold_of_scans, require_folds
from brainstage.models.training import HeadOptions, LogRow
from brainstage.models.weights import MED3D_ASSETS, load_weights
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.errors import BrainstageError, UsageError
from brainstage.pipeline.files import sha256_of_json, write_text
from brainstage.pipeline.review import read_decisions
from brainstage.preprocessing.morphometry import MORPHOMETRY
from brainstage.workflows.learning.curves import curves
from brainstage.workflows.learning.features import (
    TrainingArrays,
    network_images,
    read_network_input,
    training_arrays,
)
from brainstage.workflows.learning.labelled_cohort import (
    Cohort,
    LabelledScan,
    read_cohort,
    reference_people,
)
from brainstage.workflows.learning.model_card import render_card
from brainstage.workflows.learning.model_evaluation import (
    ModelEvaluation,
    OutOfFold,
    evaluate_model,
    write_evaluation,
)

REFERENCE_CLASS: Final = "CN"
RANDOM_LABELLED_SCANS: Final = 300
"""Judged with permuted labels by the baseline, where it takes up to five permutations to come to so many."""
MED3D_COHORTS: Final = ("the 23 segmentation data sets of Med3D (arXiv 1904.00625)",)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the options of ``brainstage train``.

    Attributes
    ----------
    classes : tuple of str or None
        In the order of the probabilities; None takes every label present.
    label_column : str
        Column of the run's ``data_manifest.csv``.
    qc_decisions : Path or None
        What a person decided about scans.
    weights : str
        ``med3d-resnet10`` (18, 34, 50), a path, or ``random``.
    strides : str
        ``med3d``, as the weights were trained, or ``monai``, as MONAI builds the network.
    finetune : str
        ``frozen``: a head on features computed once; ``head+last``: the last stage as well; ``full``: all.
    head : str
        ``linear`` or ``multiscale-attention``.
    augment : tuple of str or None
        Recipes that alter training images; only where the network is trained. None for the usual ones.
    imbalance : str
        ``none``; or so that every class counts the same: ``weights``, ``oversample``, ``undersample``, ``smote``.
    covariates : tuple of str
        Columns of the manifest that the model looks at besides the image.
    folds, seed : int
    epochs, patience : int or None
        None for 300 and 30 where the network is frozen, 30 and 8 otherwise.
    device : str
        ``auto``, ``cpu`` or ``cuda``, for the network.
    tensorboard : Path or None
        Folder for the curves of tuning.
    tiers : TierBounds
        Bounds of the tiers of confidence.
    reference_class : str or None
        The class that measures of the brain are held against; None for CN where it is one of the classes.

    Raises
    ------
    UsageError
        For a value that is not allowed.
    """

    classes: tuple[str, ...] | None = None
    label_column: str = "diagnosis"
    qc_decisions: Path | None = None
    weights: str = "med3d-resnet10"
    strides: Strides = "med3d"
    finetune: Regime = "frozen"
    head: HeadKind = "linear"
    augment: tuple[str, ...] | None = None
    imbalance: str = "weights"
    covariates: tuple[str, ...] = ()
    folds: int = 5
    epochs: int | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    tensorboard: Path | None = None
    tiers: TierBounds = field(default_factory=TierBounds)
    reference_class: str | None = None

    def __post_init__(self) -> None:
        if self.imbalance not in IMBALANCE:
            raise UsageError(f"--imbalance {self.imbalance!r} is unknown: known are {', '.join(IMBALANCE)}")
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: at least 1 is needed")
        if self.finetune == "frozen" and (self.augment or self.tensorboard):
            unused = "--augment" if self.augment else "--tensorboard"
            raise UsageError(
                f"{unused} concerns a network that is trained; with --finetune frozen features are computed once: "
                "choose head+last or full, or leave it out"
            )
        if self.finetune != "frozen" and self.imbalance == "smote":
            raise UsageError(
                "--imbalance smote draws points between features, and --finetune "
                f"{self.finetune} learns from images: choose oversample, undersample or weights, or --finetune frozen"
            )
        Augmentation(self.augment or ())
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: 0 to {2**31 - 1} are allowed")

    @property
    def head_options(self) -> HeadOptions:
        """What concerns the head on frozen features."""
        chosen = {"epochs": self.epochs, "patience": self.patience} if self.finetune == "frozen" else {}
        given = {name: value for name, value in chosen.items() if value is not None}
        return HeadOptions(imbalance=self.imbalance, seed=self.seed, **given)

    @property
    def tune_options(self) -> TuneOptions:
        """What concerns the network."""
        chosen = {"epochs": self.epochs, "patience": self.patience}
        given = {name: value for name, value in chosen.items() if value is not None}
        return TuneOptions(
            regime=self.finetune, imbalance=self.imbalance, augment=self.recipes, seed=self.seed, **given
        )

    @property
    def recipes(self) -> tuple[str, ...]:
        """Of the augmentation."""
        if self.augment is not None:
            return self.augment
        return () if self.finetune == "frozen" else DEFAULT_RECIPES


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training came to.

    Attributes
    ----------
    model_dir : Path
    model_id : str
    balanced_accuracy : Estimate
        Cross-validated by participant.
    warnings : tuple of str
        Signs of leakage.
    """

    model_dir: Path
    model_id: str
    balanced_accuracy: Estimate
    warnings: tuple[str, ...]


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
    decisions = read_decisions(options.qc_decisions) if options.qc_decisions else {}
    cohort = read_cohort(out_dir, options.label_column, options.classes, decisions=decisions)
    require_folds(cohort.labels, cohort.participants, options.folds)
    chosen_columns(options.covariates, cohort.covariates(options.covariates), cohort.columns)
    reference = _reference(cohort, options.reference_class, say)
    _say_cohort(cohort, say)
    extractor = _extractor(options, say)
    arrays = _all_arrays(extractor, cohort.scans, cohort, say)
    test_arrays = _all_arrays(extractor, cohort.test_scans, cohort, say)
    duplicates = _duplicates((*arrays, *test_arrays), cohort)
    cohort = _joined(cohort, duplicates, options.folds)
    folds = fold_of_scans(
        cohort.labels, cohort.participants, folds=options.folds, seed=options.seed, about=cohort.about
    )
    with _tuning(out_dir, extractor, arrays, cohort, options, say) as tuning:
        model, found, log = fit(extractor, arrays, cohort, folds, options, tuning, reference)
    say(f"trained {options.folds} folds, each with its controls")
    test = _test_probabilities(model, test_arrays, cohort)
    result = evaluate_model(found, cohort, test, seed=options.seed, duplicates=duplicates)
    with replaced_directory(model_dir) as folder:
        write_model(folder, model)
        write_evaluation(folder, found, result, cohort, log, duplicates)
        write_bundle(folder / "bundle", model)
        write_text(folder / "MODEL_CARD.md", render_card(model, result, cohort, options))
    if tuning is not None:
        shutil.rmtree(tuning.checkpoints, ignore_errors=True)
    _say_result(result, model, model_dir, say)
    return TrainResult(
        model_dir=model_dir,
        model_id=model.model_id,
        balanced_accuracy=result.network.measures["balanced_accuracy"],
        warnings=result.warnings,
    )


def _joined(cohort: Cohort, duplicates: Sequence[NearDuplicate], folds: int) -> Cohort:
    """Count participants who share a picture as one, unless too few would be left to deal to the folds.

    Where so many look alike, the pictures say little about who is who: the pairs are reported, and nobody is joined.
    """
    people = same_person(_all_participants(cohort), _one_sided(duplicates, cohort))
    joined = replace(cohort, same_person=people)
    try:
        require_folds(joined.labels, joined.participants, folds)
    except UsageError:
        return cohort
    return joined


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """What training the network needs beside what a head needs.

    Attributes
    ----------
    images, masks : Images
        Network inputs of all scans, and their brain masks alone for the control.
    checkpoints : Path
        Folder for states to go on from.
    log : callable
        Hears of each epoch: the run's name and the row.
    """

    images: Images
    masks: Images
    checkpoints: Path
    log: Callable[[str, LogRow], None]


@contextmanager
def _tuning(
    out_dir: Path,
    extractor: FeatureExtractor,
    arrays: Sequence[TrainingArrays],
    cohort: Cohort,
    options: TrainOptions,
    say: Callable[[str], None],
) -> Iterator[Tuning | None]:
    """Give what tuning needs; None where the network is frozen."""
    if options.finetune == "frozen":
        yield None
        return
    content = {
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("device", "tensorboard", "tiers", "qc_decisions", "reference_class")
        },
        "feature_id": extractor.feature_id,
        "scans": [
            (scan.files.key, scan.label, scan.row.participant_id, array.input_key)
            for scan, array in zip(cohort.scans, arrays, strict=True)
        ],
    }
    checkpoints = out_dir / STATE_FOLDER / "training" / sha256_of_json(content)[:16]
    checkpoints.mkdir(parents=True, exist_ok=True)
    if any(checkpoints.iterdir()):
        say("an earlier training with the same options was cut short: it goes on from there")
    files = [scan.files for scan in cohort.scans]
    with network_images(files, cohort.network_grid) as (images, masks), curves(options.tensorboard) as draw:

        def log(name: str, row: LogRow) -> None:
            say(f"{name}, fold {row.fold}, epoch {row.epoch}: validation loss {row.validation_loss:.4f}")
            draw(name, row)

        yield Tuning(images=images, masks=masks, checkpoints=checkpoints, log=log)


def _test_probabilities(
    model: StoredModel, arrays: Sequence[TrainingArrays], cohort: Cohort
) -> NDArray[np.float64] | None:
    """Return what the ensemble says about the scans kept out, one scan in memory at a time."""
    if not arrays:
        return None
    known = cohort.covariates(model.description.covariate_columns, test=True)
    return np.concatenate(
        [
            model.probabilities(
                array.features[None],
                [read_network_input(scan.files, cohort.network_grid)] if model.tuned else [],
                covariates=[covariates],
            )
            for scan, array, covariates in zip(cohort.test_scans, arrays, known, strict=True)
        ]
    )


def fit(
    extractor: FeatureExtractor,
    arrays: Sequence[TrainingArrays],
    cohort: Cohort,
    folds: NDArray[np.int64],
    options: TrainOptions,
    tuning: Tuning | None = None,
    reference: ReferenceClass | None = None,
) -> tuple[StoredModel, OutOfFold, tuple[LogRow, ...]]:
    """Fit everything of a model in the given folds.

    Returns
    -------
    StoredModel
    OutOfFold
        What the folds say about the scans they did not see.
    tuple of LogRow
    """
    classes = len(cohort.classes)
    targets = np.array([cohort.classes.index(label) for label in cohort.labels], dtype=np.int64)
    features = np.stack([a.features for a in arrays])
    mask_features = np.stack([a.mask_features for a in arrays])
    values, inside = np.stack([a.values for a in arrays]), np.stack([a.inside for a in arrays])
    network = _learner(features, tuning.images if tuning else None, extractor, cohort, options, tuning)
    outline = _learner(mask_features, tuning.masks if tuning else None, extractor, cohort, options, tuning)
    trained = cross_validate(network, targets, folds, classes=classes, seed=options.seed)
    outlines = cross_validate(
        outline, targets, folds, classes=classes, seed=options.seed, name="brain-mask-only"
    )
    at_random = partial(
        random_label_control,
        labels=cohort.labels,
        participants=cohort.participants,
        classes=cohort.classes,
        folds=options.folds,
        seed=options.seed,
    )

    def fit_baselines(
        wanted: NDArray[np.int64], parts: NDArray[np.int64], seed: int
    ) -> tuple[NDArray[np.float64], list[LinearBaseline]]:
        return cross_validate_baseline(
            values, inside, wanted, parts, classes=classes, imbalance=options.imbalance, seed=seed
        )

    baseline_logits, baselines = fit_baselines(targets, folds, options.seed)
    novelty_scores, novelty = cross_validate_novelty(features, folds)
    control_columns = _control_columns(cohort, options)
    alone, _, _ = _covariates(control_columns, cohort, targets, folds, options)
    _, evidence, experts = _covariates(options.covariates, cohort, targets, folds, options)
    found = OutOfFold(
        targets=targets,
        folds=folds,
        logits=trained.logits if evidence is None else trained.logits + evidence,
        baseline_logits=baseline_logits,
        mask_logits=outlines.logits,
        novelty=novelty_scores,
        # One permutation where each takes as long as the training itself.
        random_labels=at_random(
            judge_of(network, classes), draws=RANDOM_LABEL_DRAWS if tuning is None else 1
        ),
        baseline_random_labels=at_random(
            lambda wanted, parts, seed, _: fit_baselines(wanted, parts, seed)[0],
            draws=baseline_draws(len(targets)),
        ),
        image_logits=None if evidence is None else trained.logits,
        covariate_logits=alone,
        control_columns=control_columns,
    )
    description = _describe(extractor, found, cohort, options, experts, reference)
    model = StoredModel(description, extractor, trained.models, novelty, baselines)
    return model, found, trained.log


def baseline_draws(scans: int) -> int:
    """Return the permutations of labels that the baseline is tried on: of many scans one says enough, and takes long.

    >>> baseline_draws(48), baseline_draws(150), baseline_draws(1000)
    (5, 2, 1)
    """
    return min(RANDOM_LABEL_DRAWS, -(-RANDOM_LABELLED_SCANS // scans))


def _learner(
    features: NDArray[np.float32],
    images: Images | None,
    extractor: FeatureExtractor,
    cohort: Cohort,
    options: TrainOptions,
    tuning: Tuning | None,
) -> Learner:
    frozen = FrozenLearner(
        features=features,
        participants=cohort.participants,
        classes=len(cohort.classes),
        options=options.head_options,
        head=options.head,
        channel=feature_channels(extractor.source.architecture),
    )
    if tuning is None or images is None:
        return frozen
    return TuningLearner(
        frozen=frozen,
        base=extractor,
        images=images,
        options=options.tune_options,
        checkpoints=tuning.checkpoints,
        log=tuning.log,
    )


def _describe(
    extractor: FeatureExtractor,
    found: OutOfFold,
    cohort: Cohort,
    options: TrainOptions,
    experts: tuple[CovariateExpert, ...],
    reference: ReferenceClass | None,
) -> ModelDescription:
    source = extractor.source
    quantiles = class_quantiles(found.probabilities, found.targets, LEVEL)
    return ModelDescription(
        classes=cohort.classes,
        label_column=options.label_column,
        backbone=BackboneDescription(
            kind=source.kind,
            architecture=source.architecture,
            strides=source.strides,
            sha256=source.sha256,
            words=source.words,
            feature_id=extractor.feature_id,
        ),
        head=options.head,
        finetune=options.finetune,
        augment=options.recipes,
        folds=options.folds,
        network_grid=cohort.network_grid,
        baseline_version=BASELINE_VERSION,
        preprocessing_id=cohort.preprocessing_id,
        preprocessing_content=dict(cohort.preprocessing_content),
        temperature=fit_temperature(found.logits, found.targets),
        conformal=ConformalDescription(
            level=LEVEL,
            quantiles={
                name: None if np.isinf(quantile) else quantile
                for name, quantile in zip(cohort.classes, quantiles, strict=True)
            },
        ),
        novelty_threshold=novelty_threshold(found.novelty),
        tiers=options.tiers,
        seed=options.seed,
        pretraining_cohorts=MED3D_COHORTS if source.kind in MED3D_ASSETS else (),
        fold_of_training_scan={
            scan.row.sha256: int(fold)
            for scan, fold in zip(cohort.scans, found.folds, strict=True)
            if scan.row.sha256
        },
        covariate_experts=experts,
        reference=reference,
    )


def _reference(cohort: Cohort, asked: str | None, say: Callable[[str], None]) -> ReferenceClass | None:
    """Fit what is usual in the class of reference; None without one, or with too few people in it."""
    label = asked or (REFERENCE_CLASS if REFERENCE_CLASS in cohort.classes else None)
    if label is None:
        return None
    if label not in cohort.classes:
        raise UsageError(
            f"--reference-class {label!r} is none of the classes, which are {', '.join(cohort.classes)}"
        )
    reference = fit_reference(label, reference_people(cohort, label), MORPHOMETRY)
    if reference is None:
        say(f"too few people of class {label} to say what is usual there: no scan will be held against it")
    return reference


def _covariates(
    names: Sequence[str],
    cohort: Cohort,
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    options: TrainOptions,
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, tuple[CovariateExpert, ...]]:
    """Return what some columns say out of fold, as log-probabilities and as evidence, and the experts."""
    if not names:
        return None, None, ()
    rows = cohort.covariates(names)
    columns: tuple[Column, ...] = chosen_columns(names, rows, cohort.columns)
    return cross_validate_covariates(
        columns, rows, targets, folds, classes=len(cohort.classes), imbalance=options.imbalance
    )


def _control_columns(cohort: Cohort, options: TrainOptions) -> tuple[str, ...]:
    """Return age and sex where most scans have them, and what was asked for besides."""
    rows = cohort.covariates(AGE_AND_SEX)
    usual = [
        name
        for name in AGE_AND_SEX
        if name in cohort.columns and 2 * sum(row[name] is not None for row in rows) > len(rows)
    ]
    return tuple(dict.fromkeys((*usual, *options.covariates)))


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


def _say_cohort(cohort: Cohort, say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{cohort.labels.count(name)} {name}" for name in cohort.classes)
    say(f"{len(cohort.scans)} scans of {len(set(cohort.participants))} participants: {counts}")
    for reason, keys in cohort.left_out.items():
        shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
        say(f"left out, {reason}: {len(keys)} ({shown})")


def _say_result(
    result: ModelEvaluation, model: StoredModel, model_dir: Path, say: Callable[[str], None]
) -> None:
    chance = 1 / len(model.classes)
    say(
        f"cross-validated balanced accuracy {result.network.measures['balanced_accuracy']}, chance {chance:.2f}; "
        f"voxel baseline {result.baseline.measures['balanced_accuracy'].value:.2f}, "
        f"mask only {result.mask_only.measures['balanced_accuracy'].value:.2f}, "
        f"random labels {result.random_labels.measures['balanced_accuracy'].value:.2f}"
    )
    for warning in result.warnings:
        say(f"leakage warning: {warning}")
    say(
        f"model {model.model_id} written to {model_dir}; read its MODEL_CARD.md. Research use only, not a diagnosis."
    )
