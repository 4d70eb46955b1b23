"""Everything of a model, fitted in folds: its members, the predictor over them, and their controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import BASELINE_VERSION
from brainstage.models.choices import MEMBERS, Member
from brainstage.models.conformal import attainable_level, class_scores
from brainstage.models.covariates import MAX_LEVELS, Column, CovariateExpert, chosen_columns
from brainstage.models.cross_validation import (
    RANDOM_LABEL_DRAWS,
    Nested,
    Predicted,
    cross_validate,
    cross_validate_novelty,
    cross_validate_predictor,
    member_probabilities,
    random_label_control,
)
from brainstage.models.features import FeatureExtractor, feature_channels
from brainstage.models.fine_tuning import Images
from brainstage.models.learners import FrozenLearner, Learner, TuningLearner
from brainstage.models.member_learners import (
    CovariateLearner,
    Harmonised,
    HarmonisedLearner,
    LinearLearner,
    VolumesLearner,
)
from brainstage.models.metrics import evaluate
from brainstage.models.model_description import (
    AGE_AND_SEX,
    BackboneDescription,
    ConformalDescription,
    ModelDescription,
    PredictorDescription,
)
from brainstage.models.model_store import HarmonisedPlaces, StoredModel
from brainstage.models.norms import ReferenceClass
from brainstage.models.novelty import novelty_threshold
from brainstage.models.predictor import disagreement_goes_with_errors
from brainstage.models.training import LogRow
from brainstage.models.volume_model import MEASURES, ScanVolumes, log_measures, with_log_measures
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.files import sha256_of_json
from brainstage.workflows.learning.curves import curves
from brainstage.workflows.learning.features import TrainingArrays, network_images
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_evaluation import PREDICTOR, OutOfFold
from brainstage.workflows.learning.training_options import TrainOptions

RANDOM_LABELLED_SCANS: Final = 300
"""Predicted with permuted labels, where it takes up to five permutations to come to so many."""
SITE: Final = ("site",)
REFERENCE_CLASS: Final = "CN"
"""What volumes and sites are compared by, where it is one of the classes and no other is asked for."""
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
    persons = np.unique(cohort.participants, return_inverse=True)[1].astype(np.int64)
    members, outline = _learners(arrays, extractor, cohort, options, tuning)
    asked = _covariate_learner(options.covariates, cohort, options)
    pairs = options.predictor in ("auto", "stack")

    def fitted(
        wanted: NDArray[np.int64], parts: NDArray[np.int64], seed: int, name: str = ""
    ) -> tuple[dict[Member, Nested[Any]], Nested[CovariateExpert] | None, Predicted]:
        """Cross-validate the members, covariates, and the predictor over them; `name` for another labelling."""
        run = partial(cross_validate, targets=wanted, folds=parts, classes=classes, seed=seed)
        nested: dict[Member, Nested[Any]] = {
            member: run(
                learner,
                name=f"{name}-{member}" if name else member,
                # a network that is trained is not trained fifteen times for a control
                pairs=pairs and not (name and member == "network" and tuning is not None),
            )
            for member, learner in members.items()
        }
        columns = run(asked, pairs=pairs) if asked else None
        evidence = columns.nested_logits if columns else None
        return (
            nested,
            columns,
            cross_validate_predictor(nested, wanted, parts, persons, options.predictor, evidence),
        )

    def refit(
        wanted: NDArray[np.int64], parts: NDArray[np.int64], seed: int, name: str
    ) -> dict[str, NDArray[np.float64]]:
        nested, _, predicted = fitted(wanted, parts, seed, name)
        said: dict[str, NDArray[np.float64]] = {PREDICTOR: np.exp(predicted.log_probabilities)}
        of_members = member_probabilities(nested, predicted.predictors)
        return said | {str(member): one for member, one in of_members.items()}

    nested, columns, predicted = fitted(targets, folds, options.seed)
    outlines = cross_validate(
        outline, targets, folds, classes=classes, seed=options.seed, name="brain-mask-only"
    )
    novelty_scores, novelty = cross_validate_novelty(np.stack([a.features for a in arrays]), folds)
    control_columns = usual_columns(cohort, options)
    alone = partial(_columns_alone, cohort=cohort, targets=targets, folds=folds, options=options)
    found = OutOfFold(
        targets=targets,
        folds=folds,
        persons=persons,
        predicted=predicted,
        members={name: one.logits for name, one in nested.items()},
        evidence=columns.logits if columns else None,
        mask_logits=outlines.logits,
        novelty=novelty_scores,
        random_labels=random_label_control(
            refit,
            cohort.labels,
            cohort.participants,
            cohort.classes,
            folds=options.folds,
            seed=options.seed,
            fixed_folds=folds if options.folds_by == "site" else None,
            # One permutation where each takes as long as the training itself.
            draws=control_draws(len(targets)) if tuning is None else 1,
        ),
        covariate_logits=alone(control_columns),
        control_columns=control_columns,
        site_logits=alone(SITE) if sites_known(cohort) else None,
    )
    experts = columns.models if columns else ()
    description = _describe(extractor, found, cohort, options, nested, experts, reference)
    model = StoredModel(
        description,
        extractor,
        models_of_folds(nested["network"]),
        novelty,
        models_of_folds(nested["linear"]),
        harmonisations_of_folds(nested),
    )
    return model, found, nested["network"].log


def models_of_folds(nested: Nested[Any]) -> tuple[Any, ...]:
    """Return the models of the folds, without what is taken out of their values."""
    return tuple(model.model if isinstance(model, Harmonised) else model for model in nested.models)


def harmonisations_of_folds(nested: Mapping[Member, Nested[Any]]) -> list[dict[Member, HarmonisedPlaces]]:
    """Return what is taken out of each member's values in each fold, where a model looks; nothing without it."""
    found: list[dict[Member, HarmonisedPlaces]] = []
    folds = len(next(iter(nested.values())).models)
    for fold in range(folds):
        of_members: dict[Member, HarmonisedPlaces] = {}
        for member, one in nested.items():
            model = one.models[fold]
            if not isinstance(model, Harmonised):
                return []
            places = np.arange(len(model.harmonisation.centre))
            if member == "linear":
                places = np.flatnonzero(model.model.weight.any(axis=0))
            of_members[member] = HarmonisedPlaces(
                harmonisation=model.harmonisation.at(places), places=places.astype(np.int64)
            )
        found.append(of_members)
    return found


def control_draws(scans: int) -> int:
    """Return the permutations of labels that controls rest on: of many scans one says enough, and takes long.

    >>> control_draws(48), control_draws(150), control_draws(1000)
    (5, 2, 1)
    """
    return min(RANDOM_LABEL_DRAWS, -(-RANDOM_LABELLED_SCANS // scans))


def _learners(
    arrays: Sequence[TrainingArrays],
    extractor: FeatureExtractor,
    cohort: Cohort,
    options: TrainOptions,
    tuning: Tuning | None,
) -> tuple[dict[Member, Learner[Any]], Learner[Any]]:
    """Return what learns of each member, and what learns from the brain masks alone."""
    classes = len(cohort.classes)
    on_features = partial(
        FrozenLearner,
        participants=cohort.participants,
        classes=classes,
        options=options.head_options,
        head=options.head,
        channel=feature_channels(extractor.source.architecture),
    )
    frozen = on_features(features=np.stack([a.features for a in arrays]))
    frozen_outline = on_features(features=np.stack([a.mask_features for a in arrays]))
    network: Learner[Any] = frozen
    outline: Learner[Any] = frozen_outline
    if tuning is not None:
        on_images = partial(
            TuningLearner,
            base=extractor,
            options=options.tune_options,
            checkpoints=tuning.checkpoints,
            log=tuning.log,
        )
        network = on_images(frozen=frozen, images=tuning.images)
        outline = on_images(frozen=frozen_outline, images=tuning.masks)
    members: dict[Member, Learner[Any]] = {
        "network": network,
        "linear": LinearLearner(
            values=np.stack([a.values for a in arrays]),
            inside=np.stack([a.inside for a in arrays]),
            classes=classes,
            imbalance=options.imbalance,
        ),
    }
    volumes = cohort.volumes()
    if volumes_known(volumes, options):
        members["volumes"] = VolumesLearner(scans=volumes, classes=classes, imbalance=options.imbalance)
    if options.harmonise == "site":
        members = _harmonised_members(members, frozen, arrays, volumes, cohort, options)
    return members, outline


def volumes_known(volumes: Sequence[ScanVolumes], options: TrainOptions) -> bool:
    """Tell whether half of the scans or more have volumes.

    Raises
    ------
    UsageError
        Where they have not, and the predictor is to be the member on volumes.
    """
    known = 2 * sum(any(one.measures.get(name) for name in MEASURES) for one in volumes) >= len(volumes)
    if not known and options.predictor == "volumes":
        raise UsageError(
            "--predictor volumes: fewer than half of the scans have volumes; run brainstage run again, which measures "
            "them"
        )
    return known


def _harmonised_members(
    members: Mapping[Member, Learner[Any]],
    frozen: FrozenLearner,
    arrays: Sequence[TrainingArrays],
    volumes: Sequence[ScanVolumes],
    cohort: Cohort,
    options: TrainOptions,
) -> dict[Member, Learner[Any]]:
    """Return what learns of each member from values without the location and scale of their site."""
    on_sites = partial(
        HarmonisedLearner,
        sites=[scan.row.site for scan in cohort.scans],
        reference=reference_scans(cohort, options.reference_class),
    )
    inside = np.stack([a.inside for a in arrays])
    linear = partial(LinearLearner, classes=len(cohort.classes), imbalance=options.imbalance)
    on_volumes = partial(VolumesLearner, classes=len(cohort.classes), imbalance=options.imbalance)
    names = np.asarray(cohort.participants)
    found: dict[Member, Learner[Any]] = {
        "network": on_sites(
            values=frozen.features,
            build=lambda values, chosen: replace(
                frozen, features=values, participants=names[chosen].tolist()
            ),
        ),
        "linear": on_sites(
            values=np.stack([a.values for a in arrays]),
            build=lambda values, chosen: linear(values=values, inside=inside[chosen]),
        ),
        "volumes": on_sites(
            values=log_measures(volumes),
            build=lambda values, chosen: on_volumes(
                scans=with_log_measures([volumes[place] for place in np.flatnonzero(chosen)], values)
            ),
        ),
    }
    return {member: learner for member, learner in found.items() if member in members}


def reference_scans(cohort: Cohort, asked: str | None) -> NDArray[np.bool_]:
    """Return which scans sites are compared by, (N,) bool: the first of each participant of the reference class.

    Without such a class, the first scan of every participant.
    """
    label = asked or (REFERENCE_CLASS if REFERENCE_CLASS in cohort.classes else None)
    chosen = np.zeros(len(cohort.scans), dtype=np.bool_)
    seen: set[str] = set()
    for place, (scan, person) in enumerate(zip(cohort.scans, cohort.participants, strict=True)):
        if (label is None or scan.label == label) and person not in seen:
            chosen[place] = True
            seen.add(person)
    return chosen


def _describe(
    extractor: FeatureExtractor,
    found: OutOfFold,
    cohort: Cohort,
    options: TrainOptions,
    nested: Mapping[Member, Nested[Any]],
    experts: tuple[CovariateExpert, ...],
    reference: ReferenceClass | None,
) -> ModelDescription:
    scores = class_scores(found.probabilities, found.targets, found.folds, found.persons)
    return ModelDescription(
        **common_fields(extractor, cohort, options, nested, found.folds, found.persons),
        classes=cohort.classes,
        label_column=options.label_column,
        predictor=_describe_predictor(found, cohort, options),
        conformal=ConformalDescription(
            levels={
                name: attainable_level(known.person)
                for name, known in zip(cohort.classes, scores, strict=True)
            },
            scores={
                name: tuple(
                    zip(known.score.tolist(), known.fold.tolist(), known.person.tolist(), strict=True)
                )
                for name, known in zip(cohort.classes, scores, strict=True)
            },
        ),
        novelty_threshold=novelty_threshold(found.novelty),
        tiers=options.tiers,
        covariate_experts=experts,
        reference=reference,
    )


def common_fields(
    extractor: FeatureExtractor,
    cohort: Cohort,
    options: TrainOptions,
    nested: Mapping[Member, Nested[Any]],
    folds: NDArray[np.int64],
    persons: NDArray[np.int64],
) -> dict[str, Any]:
    """Return what the descriptions of models of either kind have in common, by the names of their fields."""
    source = extractor.source
    return {
        "backbone": BackboneDescription(
            kind=source.kind,
            architecture=source.architecture,
            strides=source.strides,
            sha256=source.sha256,
            words=source.words,
            origin=source.origin,
            feature_id=extractor.feature_id,
        ),
        "head": options.head,
        "finetune": options.finetune,
        "augment": options.recipes,
        "folds": int(folds.max()) + 1,
        "network_grid": cohort.network_grid,
        "baseline_version": BASELINE_VERSION,
        "preprocessing_id": cohort.preprocessing_id,
        "preprocessing_content": dict(cohort.preprocessing_content),
        "members": tuple(name for name in MEMBERS if name in nested),
        "seed": options.seed,
        "pretraining_cohorts": MED3D_COHORTS if source.origin in ("published", "vouched") else (),
        "training_scans": {
            scan.row.sha256: (int(fold), int(person))
            for scan, fold, person in zip(cohort.scans, folds, persons, strict=True)
            if scan.row.sha256
        },
        "volume_models": models_of_folds(nested["volumes"]) if "volumes" in nested else (),
        "harmonised_sites": tuple(
            {member: known.harmonisation.sites for member, known in of_members.items()}
            for of_members in harmonisations_of_folds(nested)
        ),
    }


def _describe_predictor(found: OutOfFold, cohort: Cohort, options: TrainOptions) -> PredictorDescription:
    """Say how the published probabilities came about, and what out-of-fold errors say about them."""
    chance = 1 / len(cohort.classes)

    def above_chance(probabilities: NDArray[np.float64]) -> bool:
        measures = evaluate(
            probabilities, found.targets, cohort.participants, cohort.classes, seed=options.seed
        ).measures
        return measures["balanced_accuracy"].low > chance

    members = found.member_probabilities
    compared = tuple(name for name in MEMBERS if name in members and above_chance(members[name]))
    predicted = found.probabilities.argmax(axis=1)
    disagreeing = np.zeros(len(predicted), dtype=np.bool_)
    for name in compared:
        disagreeing |= members[name].argmax(axis=1) != predicted
    return PredictorDescription(
        choice=options.predictor,
        folds=found.predicted.predictors,
        above_chance=above_chance(found.probabilities),
        compared_members=compared,
        disagreement_flags=disagreement_goes_with_errors(disagreeing, predicted != found.targets),
    )


def _covariate_learner(
    names: Sequence[str], cohort: Cohort, options: TrainOptions
) -> CovariateLearner | None:
    """Return what learns from some columns; None where there is none."""
    if not names:
        return None
    rows = cohort.covariates(names)
    columns: tuple[Column, ...] = chosen_columns(names, rows, cohort.columns)
    return CovariateLearner(
        columns=columns, rows=rows, classes=len(cohort.classes), imbalance=options.imbalance
    )


def _columns_alone(
    names: Sequence[str],
    *,
    cohort: Cohort,
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    options: TrainOptions,
) -> NDArray[np.float64] | None:
    """Return what some columns say out of fold without any image, as log-probabilities (N, C)."""
    learner = _covariate_learner(names, cohort, options)
    if learner is None:
        return None
    nested = cross_validate(learner, targets, folds, classes=len(cohort.classes), seed=options.seed)
    priors = np.array([model.log_prior for model in nested.models])
    return np.asarray(nested.logits + priors[folds])


def usual_columns(cohort: Cohort, options: TrainOptions) -> tuple[str, ...]:
    """Return age and sex where most scans have them, and what was asked for besides."""
    rows = cohort.covariates(AGE_AND_SEX)
    usual = [
        name
        for name in AGE_AND_SEX
        if name in cohort.columns and 2 * sum(row[name] is not None for row in rows) > len(rows)
    ]
    return tuple(dict.fromkeys((*usual, *options.covariates)))


def sites_known(cohort: Cohort) -> bool:
    """Tell whether most scans have a site, of which there are several, and not too many to learn."""
    if "site" not in cohort.columns:
        return False
    sites = [row["site"] for row in cohort.covariates(SITE)]
    known = {site for site in sites if site}
    return 2 <= len(known) <= MAX_LEVELS and 2 * sum(map(bool, sites)) > len(sites)
