"""Everything of a model, fitted in folds: the network, its controls, and what tells how far to believe it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import BASELINE_VERSION
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
from brainstage.models.features import FeatureExtractor, feature_channels
from brainstage.models.fine_tuning import Images
from brainstage.models.learners import FrozenLearner, Learner, TuningLearner
from brainstage.models.model_description import (
    AGE_AND_SEX,
    BackboneDescription,
    ConformalDescription,
    ModelDescription,
)
from brainstage.models.model_store import StoredModel
from brainstage.models.norms import ReferenceClass
from brainstage.models.novelty import novelty_threshold
from brainstage.models.training import LogRow
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.files import sha256_of_json
from brainstage.workflows.learning.curves import curves
from brainstage.workflows.learning.features import TrainingArrays, network_images
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_evaluation import OutOfFold
from brainstage.workflows.learning.training_options import TrainOptions

RANDOM_LABELLED_SCANS: Final = 300
"""Judged with permuted labels by the baseline, where it takes up to five permutations to come to so many."""
MED3D_COHORTS: Final = ("the 23 segmentation data sets of Med3D (arXiv 1904.00625)",)


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
def tuning_for(
    out_dir: Path,
    extractor: FeatureExtractor,
    arrays: Sequence[TrainingArrays],
    cohort: Cohort,
    options: TrainOptions,
    say: Callable[[str], None],
) -> Iterator[Tuning | None]:
    """Give what tuning needs while its images are open; None where the network is frozen.

    Parameters
    ----------
    out_dir : Path
        The output directory of the run; checkpoints lie in its state folder, by what is trained on what.
    say : callable
        Gets a sentence for each epoch.
    """
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
    network, outline = _learners(arrays, extractor, cohort, options, tuning)
    baseline = partial(
        cross_validate_baseline,
        np.stack([a.values for a in arrays]),
        np.stack([a.inside for a in arrays]),
        classes=classes,
        imbalance=options.imbalance,
    )
    at_random = partial(
        random_label_control,
        labels=cohort.labels,
        participants=cohort.participants,
        classes=cohort.classes,
        folds=options.folds,
        seed=options.seed,
    )
    trained = cross_validate(network, targets, folds, classes=classes, seed=options.seed)
    outlines = cross_validate(
        outline, targets, folds, classes=classes, seed=options.seed, name="brain-mask-only"
    )
    baseline_logits, baselines = baseline(targets, folds, seed=options.seed)
    novelty_scores, novelty = cross_validate_novelty(np.stack([a.features for a in arrays]), folds)
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
            lambda wanted, parts, seed, _: baseline(wanted, parts, seed=seed)[0],
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


def _learners(
    arrays: Sequence[TrainingArrays],
    extractor: FeatureExtractor,
    cohort: Cohort,
    options: TrainOptions,
    tuning: Tuning | None,
) -> tuple[Learner, Learner]:
    """Return what learns from the images, and what learns from their brain masks alone."""
    on_features = partial(
        FrozenLearner,
        participants=cohort.participants,
        classes=len(cohort.classes),
        options=options.head_options,
        head=options.head,
        channel=feature_channels(extractor.source.architecture),
    )
    network = on_features(features=np.stack([a.features for a in arrays]))
    outline = on_features(features=np.stack([a.mask_features for a in arrays]))
    if tuning is None:
        return network, outline
    on_images = partial(
        TuningLearner,
        base=extractor,
        options=options.tune_options,
        checkpoints=tuning.checkpoints,
        log=tuning.log,
    )
    return on_images(frozen=network, images=tuning.images), on_images(frozen=outline, images=tuning.masks)


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
            origin=source.origin,
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
        pretraining_cohorts=MED3D_COHORTS if source.origin in ("published", "vouched") else (),
        fold_of_training_scan={
            scan.row.sha256: int(fold)
            for scan, fold in zip(cohort.scans, found.folds, strict=True)
            if scan.row.sha256
        },
        covariate_experts=experts,
        reference=reference,
    )


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
