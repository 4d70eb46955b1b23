"""Every member of a model, fitted once per fold and once per pair of folds; every score, measured on scans left out.

What a fold leaves out measures what is deployed only if nothing of it was chosen there. So that weights and
temperatures of a fold can be fitted within its training side, each member is fitted without each pair of folds as
well: what such a model says about one fold of the pair serves the other as an inner out-of-fold prediction. That is
nested cross-validation whose inner folds are the other outer folds, at ``K (K + 1) / 2`` fits instead of ``K * K``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member, PredictorChoice
from brainstage.models.learners import Learner
from brainstage.models.metrics import Estimate
from brainstage.models.novelty import NoveltyModel, fit_novelty
from brainstage.models.predictor import FoldPredictor, InnerPredictions, calibrated_log, fit_predictor
from brainstage.models.splits import fold_of_scans, shuffled_labels
from brainstage.models.training import LogRow

Model = TypeVar("Model")

RANDOM_LABEL_DRAWS: Final = 5
"""One permutation of few participants can look good by luck; five are judged together."""
LEAST_OF_A_PAIR: Final = 4
"""Scans of each class that are learnt from without a pair of folds: with fewer, a part to stop by, points between
neighbours or a class at all can be wanting."""
LEAKAGE_ACCURACY: Final = 0.85
"""Three-class accuracy that no honest T1w study reaches (Wen et al. 2020, doi:10.1016/j.media.2020.101694)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Nested(Generic[Model]):
    """What one member says about the scans that it did not learn from.

    Attributes
    ----------
    nested_logits : ndarray, (K, N, C) float64
        Uncalibrated. At ``[k, n]``, by a model that learnt neither from fold ``k`` nor from the fold of scan ``n``.
    folds : ndarray, (N,) int64
    models : tuple
        Of the outer folds.
    log : tuple of LogRow
        Of these.
    """

    nested_logits: NDArray[np.float64]
    folds: NDArray[np.int64]
    models: tuple[Model, ...]
    log: tuple[LogRow, ...]

    @property
    def logits(self) -> NDArray[np.float64]:
        """Out of fold, (N, C)."""
        return np.asarray(self.nested_logits[self.folds, np.arange(len(self.folds))])


def cross_validate(
    learner: Learner[Model],
    targets: NDArray[Any],
    folds: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    name: str = "network",
    pairs: bool = False,
) -> Nested[Model]:
    """Let a member learn from all folds but one, for each, and from all but two, for each pair.

    Parameters
    ----------
    learner : Learner
    targets : ndarray, (N,) int64 or float64
        Classes, or a number.
    folds : ndarray, (N,) int64
    classes : int
        1 for a number.
    name : str
        Of this cross-validation among those of a training.
    pairs : bool
        False leaves the models of pairs out: predictions of the models without one fold stand in for theirs, each of
        which has learnt from the fold that it should not have seen. For choices that need no inner predictions.
    """
    count = int(folds.max()) + 1
    nested = np.empty((count, len(targets), classes))
    models: list[Model] = []
    log: list[LogRow] = []
    for fold in range(count):
        test = folds == fold
        model, rows = learner.fit(~test, targets, fold=fold, seed=seed + fold, name=name)
        nested[:, test] = learner.logits(model, test)
        models.append(model)
        log += rows
    for first, second in combinations(range(count), 2) if pairs else ():
        test = (folds == first) | (folds == second)
        if classes > 1 and np.bincount(targets[~test], minlength=classes).min() < LEAST_OF_A_PAIR:
            continue  # two sites can hold nearly all of a class; the models without one of them stand in
        drawn_with = seed + count + first * count + second
        inner, _ = learner.fit(~test, targets, fold=first, seed=drawn_with, name=f"{name}-without-{second}")
        said = np.empty((len(targets), classes))
        said[test] = learner.logits(inner, test)
        nested[first, folds == second] = said[folds == second]
        nested[second, folds == first] = said[folds == first]
    return Nested(nested_logits=nested, folds=folds, models=tuple(models), log=tuple(log))


def cross_validate_novelty(
    features: NDArray[np.float32], folds: NDArray[np.int64]
) -> tuple[NDArray[np.float64], list[NoveltyModel]]:
    """Fit the novelty model in the same folds; scores (N,) out of fold, and the models."""
    scores = np.empty(len(features))
    models = []
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        model = fit_novelty(features[~own])
        scores[own] = model.scores(features[own])
        models.append(model)
    return scores, models


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What a predictor says out of fold, and how it was put together.

    Attributes
    ----------
    log_probabilities : ndarray, (N, C) float64
    predictors : tuple of FoldPredictor
        Of the folds.
    """

    log_probabilities: NDArray[np.float64]
    predictors: tuple[FoldPredictor, ...]


def cross_validate_predictor(
    nested: Mapping[Member, Nested[Any]],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    persons: NDArray[np.int64],
    choice: PredictorChoice,
    evidence: NDArray[np.float64] | None = None,
) -> Predicted:
    """Fit the predictor of each fold within its training side, and let it predict the scans that it leaves out.

    Parameters
    ----------
    nested : mapping
        Of each member.
    targets, folds, persons : ndarray, (N,) int64
    choice : str
        As ``--predictor``.
    evidence : ndarray, (K, N, C) float64, optional
        Of covariates, nested like the logits.
    """
    said = np.empty(next(iter(nested.values())).nested_logits.shape[1:])
    predictors = []
    for fold in range(int(folds.max()) + 1):
        test = folds == fold
        of_fold = InnerPredictions(
            logits={name: found.nested_logits[fold] for name, found in nested.items()},
            targets=targets,
            folds=folds,
            persons=persons,
            evidence=None if evidence is None else evidence[fold],
        )
        predictor = fit_predictor(of_fold.where(~test), choice)
        outer = of_fold.where(test)
        said[test] = predictor.log_probabilities(outer.logits, outer.evidence)
        predictors.append(predictor)
    return Predicted(log_probabilities=said, predictors=tuple(predictors))


def member_probabilities(
    nested: Mapping[Member, Nested[Any]], predictors: Sequence[FoldPredictor]
) -> dict[Member, NDArray[np.float64]]:
    """Return what each member says out of fold, with the temperature of each fold, (N, C)."""
    found = {}
    for name, one in nested.items():
        temperatures = np.array([predictor.temperatures[name] for predictor in predictors])
        found[name] = np.exp(calibrated_log(one.logits / temperatures[one.folds][:, None], 1.0))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlRun:
    """Predictions of a control, several draws one after the other.

    Attributes
    ----------
    probabilities : ndarray, (D N, C) float64
    targets : ndarray, (D N,) int64
    participants : tuple of str
    draws : int
        D, permutations of the labels.
    """

    probabilities: NDArray[np.float64]
    targets: NDArray[np.int64]
    participants: tuple[str, ...]
    draws: int


Refit = Callable[[NDArray[np.int64], NDArray[np.int64], int, str], Mapping[str, NDArray[np.float64]]]
"""Targets (N,), folds (N,), seed and the run's name: to the probabilities (N, C) out of fold of every model by name."""


def random_label_control(
    refit: Refit,
    labels: Sequence[str],
    participants: Sequence[str],
    classes: Sequence[str],
    *,
    folds: int,
    seed: int,
    draws: int = RANDOM_LABEL_DRAWS,
    fixed_folds: NDArray[np.int64] | None = None,
) -> dict[str, ControlRun]:
    """Train the same way on labels permuted between participants, which must end at chance.

    Every draw is stratified anew by its own labels, unless the folds are fixed, as those of sites are.

    References
    ----------
    Yagis et al. 2021, doi:10.1038/s41598-021-01681-w: random labels reach 96 % with a person on two sides.
    """
    said: dict[str, list[NDArray[np.float64]]] = {}
    targets = []
    for draw in range(draws):
        drawn_with = seed + 1000 + draw
        drawn = shuffled_labels(labels, participants, seed=drawn_with)
        wanted = np.array([list(classes).index(label) for label in drawn], dtype=np.int64)
        parts = fixed_folds
        if parts is None:
            parts = fold_of_scans(drawn, participants, folds=folds, seed=drawn_with)
        for name, found in refit(wanted, parts, drawn_with, f"random-labels-{draw}").items():
            said.setdefault(name, []).append(found)
        targets.append(wanted)
    return {
        name: ControlRun(
            probabilities=np.concatenate(found),
            targets=np.concatenate(targets),
            participants=tuple(participants) * draws,
            draws=draws,
        )
        for name, found in said.items()
    }


def leakage_warnings(
    accuracy: Estimate, random_balanced_accuracy: Mapping[str, Estimate], classes: int
) -> tuple[str, ...]:
    """Return a sentence for each sign that test scans had a part in training.

    Parameters
    ----------
    accuracy : Estimate
        Of the cross-validation.
    random_balanced_accuracy : mapping
        Model to what it reaches with random labels.
    classes : int
        The first sign applies to three and more classes, where published accuracies stay well below.
    """
    found = []
    if classes >= 3 and accuracy.value > LEAKAGE_ACCURACY:
        found.append(
            f"the cross-validated accuracy {accuracy.value:.2f} is above {LEAKAGE_ACCURACY}, more than honest studies "
            f"of dementia reach with {classes} classes: look for leakage, or for an effect that is not biology"
        )
    found += [
        f"random labels reach a balanced accuracy of {reached} with the {model}, above the chance level "
        f"{1 / classes:.2f}: scans of one person may be on two sides, or it was luck, which a second --seed tells"
        for model, reached in random_balanced_accuracy.items()
        if reached.low > 1 / classes
    ]
    return tuple(found)
