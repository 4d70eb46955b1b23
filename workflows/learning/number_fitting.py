"""Everything of a model of a number, fitted in folds: its members, the predictor over them, and their controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member
from brainstage.models.conformal import attainable_level
from brainstage.models.covariates import chosen_columns
from brainstage.models.cross_validation import Nested, cross_validate, cross_validate_novelty
from brainstage.models.features import FeatureExtractor
from brainstage.models.learners import Learner
from brainstage.models.member_learners import HarmonisedLearner
from brainstage.models.model_description import (
    IntervalsDescription,
    NumberDescription,
    NumberPredictorDescription,
)
from brainstage.models.model_store import NumberModel
from brainstage.models.novelty import novelty_threshold
from brainstage.models.number_cross_validation import (
    NumberControl,
    PredictedNumbers,
    cross_validate_number_predictor,
    fold_means,
    member_values,
    random_target_control,
)
from brainstage.models.number_intervals import Residuals
from brainstage.models.number_learners import (
    NumberCovariateLearner,
    NumberHeadLearner,
    NumberLinearLearner,
    NumberVolumesLearner,
)
from brainstage.models.number_metrics import evaluate_numbers
from brainstage.models.number_predictor import Numbers, cross_recalibrated
from brainstage.models.volume_model import log_measures, with_log_measures
from brainstage.workflows.learning.features import TrainingArrays
from brainstage.workflows.learning.fitting import (
    SITE,
    common_fields,
    control_draws,
    harmonisations_of_folds,
    models_of_folds,
    reference_scans,
    sites_known,
    usual_columns,
    volumes_known,
)
from brainstage.workflows.learning.labelled_cohort import Cohort
from brainstage.workflows.learning.model_evaluation import PREDICTOR
from brainstage.workflows.learning.training_options import TrainOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class NumbersOutOfFold:
    """Predictions of every training scan by the models that never saw its participant.

    Attributes
    ----------
    targets : ndarray, (N,) float64
    folds, persons : ndarray, (N,) int64
    predicted : PredictedNumbers
        What is published, and how each fold puts it together.
    members : mapping
        Member to its values (N,), recalibrated within the training side of each fold.
    mask_only : ndarray, (N,) float64
        Of the network that is given the brain mask alone.
    novelty : ndarray, (N,) float64
    random_targets : mapping
        ``predictor`` and members to what they say of permuted targets.
    image_only : ndarray, (N,) float64 or None
        Of the predictor without the covariates that it uses; None where it uses none.
    covariates, site : ndarray, (N,) float64 or None
        Of covariates alone and of the site alone; None where they are not known.
    control_columns : tuple of str
        Which covariates these are.
    """

    targets: Numbers
    folds: NDArray[np.int64]
    persons: NDArray[np.int64]
    predicted: PredictedNumbers
    members: Mapping[Member, Numbers]
    mask_only: Numbers
    novelty: Numbers
    random_targets: Mapping[str, NumberControl]
    image_only: Numbers | None = None
    covariates: Numbers | None = None
    site: Numbers | None = None
    control_columns: tuple[str, ...] = ()

    @property
    def values(self) -> Numbers:
        """What is published, (N,)."""
        return self.predicted.values

    @property
    def expected(self) -> Numbers:
        """The mean of the training side of each scan's fold, (N,)."""
        return fold_means(self.targets, self.folds)

    @property
    def residuals(self) -> Residuals:
        """How far off the predictions are."""
        return Residuals(residual=np.abs(self.values - self.targets), fold=self.folds, person=self.persons)


def fit_numbers(
    extractor: FeatureExtractor,
    arrays: Sequence[TrainingArrays],
    cohort: Cohort,
    folds: NDArray[np.int64],
    options: TrainOptions,
) -> tuple[NumberModel, NumbersOutOfFold]:
    """Fit everything of a model in the given folds.

    Returns
    -------
    NumberModel
    NumbersOutOfFold
        What the folds say about the scans they did not see.
    """
    targets = cohort.numbers
    persons = np.unique(cohort.participants, return_inverse=True)[1].astype(np.int64)
    learners = _learners(arrays, cohort, options)
    asked = _covariate_learner(options.covariates, cohort)
    pairs = options.predictor in ("auto", "stack")

    def fitted(
        wanted: Numbers, parts: NDArray[np.int64], seed: int
    ) -> tuple[dict[Member, Nested[Any]], Nested[Any] | None, PredictedNumbers]:
        run = partial(cross_validate, targets=wanted, folds=parts, classes=1, seed=seed, pairs=pairs)
        nested = {member: run(learner, name=member) for member, learner in learners.items()}
        columns = run(asked) if asked else None
        predicted = cross_validate_number_predictor(
            nested, wanted, parts, persons, options.predictor, columns
        )
        return nested, columns, predicted

    def refit(wanted: Numbers, parts: NDArray[np.int64], seed: int, name: str) -> dict[str, Numbers]:
        del name  # nothing is kept between fits
        nested, _, predicted = fitted(wanted, parts, seed)
        of_members = member_values(nested, predicted.predictors)
        return {PREDICTOR: predicted.values} | {str(member): one for member, one in of_members.items()}

    def alone(learner: Learner[Any] | None) -> Numbers | None:
        if learner is None:
            return None
        said = cross_validate(learner, targets, folds, classes=1, seed=options.seed).logits[:, 0]
        return cross_recalibrated(said, targets, folds)

    nested, columns, predicted = fitted(targets, folds, options.seed)
    image_only = cross_validate_number_predictor(nested, targets, folds, persons, options.predictor).values
    novelty_scores, novelty = cross_validate_novelty(np.stack([a.features for a in arrays]), folds)
    control_columns = usual_columns(cohort, options)
    mask_only = alone(NumberHeadLearner(features=np.stack([a.mask_features for a in arrays])))
    found = NumbersOutOfFold(
        targets=targets,
        folds=folds,
        persons=persons,
        predicted=predicted,
        members=member_values(nested, predicted.predictors),
        mask_only=np.asarray(mask_only),
        novelty=novelty_scores,
        random_targets=random_target_control(
            refit,
            targets,
            cohort.participants,
            folds=options.folds,
            seed=options.seed,
            fixed_folds=folds if options.folds_by == "site" else None,
            draws=control_draws(len(targets)),
        ),
        image_only=image_only if columns else None,
        covariates=alone(_covariate_learner(control_columns, cohort)),
        site=alone(_covariate_learner(SITE, cohort)) if sites_known(cohort) else None,
        control_columns=control_columns,
    )
    description = _describe(extractor, found, cohort, options, nested, columns)
    model = NumberModel(
        description,
        extractor,
        models_of_folds(nested["network"]),
        novelty,
        models_of_folds(nested["linear"]),
        harmonisations_of_folds(nested),
    )
    return model, found


def _learners(
    arrays: Sequence[TrainingArrays], cohort: Cohort, options: TrainOptions
) -> dict[Member, Learner[Any]]:
    """Return what learns of each member, from values without their site where that is asked for."""
    volumes = cohort.volumes()
    inside = np.stack([a.inside for a in arrays])
    values: dict[Member, NDArray[np.float32]] = {
        "network": np.stack([a.features for a in arrays]),
        "linear": np.stack([a.values for a in arrays]),
    }
    if options.harmonise == "none":
        plain: dict[Member, Learner[Any]] = {
            "network": NumberHeadLearner(features=values["network"]),
            "linear": NumberLinearLearner(values=values["linear"], inside=inside),
        }
        if volumes_known(volumes, options):
            plain["volumes"] = NumberVolumesLearner(scans=volumes)
        return plain
    if volumes_known(volumes, options):
        values["volumes"] = log_measures(volumes)
    builders: dict[Member, Callable[[NDArray[np.float32], NDArray[np.bool_]], Learner[Any]]] = {
        "network": lambda given, _: NumberHeadLearner(features=given),
        "linear": lambda given, chosen: NumberLinearLearner(values=given, inside=inside[chosen]),
        "volumes": lambda given, chosen: NumberVolumesLearner(
            scans=with_log_measures([volumes[place] for place in np.flatnonzero(chosen)], given)
        ),
    }
    on_sites = partial(
        HarmonisedLearner,
        sites=[scan.row.site for scan in cohort.scans],
        reference=reference_scans(cohort, None),
    )
    return {
        member: on_sites(values=of_member, build=builders[member]) for member, of_member in values.items()
    }


def _covariate_learner(names: Sequence[str], cohort: Cohort) -> NumberCovariateLearner | None:
    """Return what learns from some columns; None where there is none."""
    if not names:
        return None
    rows = cohort.covariates(names)
    return NumberCovariateLearner(columns=chosen_columns(names, rows, cohort.columns), rows=rows)


def _describe(
    extractor: FeatureExtractor,
    found: NumbersOutOfFold,
    cohort: Cohort,
    options: TrainOptions,
    nested: Mapping[Member, Nested[Any]],
    columns: Nested[Any] | None,
) -> NumberDescription:
    measured = evaluate_numbers(
        found.values, found.targets, cohort.participants, expected=found.expected, seed=options.seed
    )
    residuals = found.residuals
    return NumberDescription(
        **common_fields(extractor, cohort, options, nested, found.folds, found.persons),
        label_column=str(options.target),
        predictor=NumberPredictorDescription(
            choice=options.predictor,
            folds=found.predicted.predictors,
            above_chance=measured.above_chance,
        ),
        intervals=IntervalsDescription(
            level=attainable_level(found.persons),
            residuals=tuple(
                zip(
                    residuals.residual.tolist(),
                    residuals.fold.tolist(),
                    residuals.person.tolist(),
                    strict=True,
                )
            ),
        ),
        novelty_threshold=novelty_threshold(found.novelty),
        covariate_models=tuple(columns.models) if columns else (),
    )
