"""Every model of a cohort, fitted once per fold; every score, measured on the scans left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import LinearBaseline, fit_baseline
from brainstage.models.heads import LinearHead
from brainstage.models.learners import FoldModel, FrozenLearner, Learner
from brainstage.models.metrics import Estimate
from brainstage.models.novelty import NoveltyModel, fit_novelty
from brainstage.models.splits import fold_of_scans, shuffled_labels
from brainstage.models.training import HeadOptions, LogRow

RANDOM_LABEL_DRAWS: Final = 5
"""One permutation of few participants can look good by luck; five are judged together."""
LEAKAGE_ACCURACY: Final = 0.85
"""Three-class accuracy that no honest T1w study reaches (Wen et al. 2020, doi:10.1016/j.media.2020.101694)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidated:
    """What the models of all folds say about the scans they never saw.

    Attributes
    ----------
    logits : ndarray, (N, C) float64
        Out of fold, uncalibrated.
    models : tuple of FoldModel
    log : tuple of LogRow
    """

    logits: NDArray[np.float64]
    models: tuple[FoldModel, ...]
    log: tuple[LogRow, ...]

    @property
    def heads(self) -> tuple[LinearHead, ...]:
        """Of the folds."""
        return tuple(model.head for model in self.models)


def cross_validate(
    learner: Learner,
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    name: str = "network",
) -> CrossValidated:
    """Let a learner learn from all folds but one, for each.

    Parameters
    ----------
    learner : Learner
    targets, folds : ndarray, (N,) int64
    name : str
        Of this cross-validation among those of a training.
    """
    logits = np.empty((len(targets), classes))
    models: list[FoldModel] = []
    log: list[LogRow] = []
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        model, rows = learner.fit(~own, targets, fold=fold, seed=seed + fold, name=name)
        logits[own] = learner.logits(model, own)
        models.append(model)
        log += rows
    return CrossValidated(logits=logits, models=tuple(models), log=tuple(log))


def cross_validate_heads(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    participants: Sequence[str],
    folds: NDArray[np.int64],
    *,
    classes: int,
    options: HeadOptions,
) -> CrossValidated:
    """Train one linear head per fold on the other folds.

    Parameters
    ----------
    features : ndarray, (N, F) float32
    targets, folds : ndarray, (N,) int64
    participants : sequence of str
    """
    learner = FrozenLearner(features=features, participants=participants, classes=classes, options=options)
    return cross_validate(learner, targets, folds, classes=classes, seed=options.seed)


def cross_validate_baseline(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    *,
    classes: int,
    imbalance: str,
    seed: int = 0,
) -> tuple[NDArray[np.float64], list[LinearBaseline]]:
    """Fit the linear baseline in the same folds; logits (N, C) out of fold, and the models."""
    logits = np.empty((len(targets), classes))
    models = []
    for fold in range(int(folds.max()) + 1):
        own = folds == fold
        model = fit_baseline(
            values[~own],
            inside[~own],
            targets[~own],
            classes=classes,
            imbalance=imbalance,
            seed=seed + fold,
        )
        logits[own] = model.logits(values[own])
        models.append(model)
    return logits, models


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
class ControlRun:
    """Predictions of a control, several draws one after the other.

    Attributes
    ----------
    logits : ndarray, (D N, C) float64
    targets : ndarray, (D N,) int64
    participants : tuple of str
    """

    logits: NDArray[np.float64]
    targets: NDArray[np.int64]
    participants: tuple[str, ...]


Judge = Callable[[NDArray[np.int64], NDArray[np.int64], int, str], NDArray[np.float64]]
"""Targets (N,), folds (N,), seed and the run's name: to out-of-fold logits (N, C)."""


def judge_of(learner: Learner, classes: int) -> Judge:
    """Return how a learner judges the scans that it does not learn from."""
    return lambda targets, folds, seed, name: (
        cross_validate(learner, targets, folds, classes=classes, seed=seed, name=name).logits
    )


def random_label_control(
    judge: Judge,
    labels: Sequence[str],
    participants: Sequence[str],
    classes: Sequence[str],
    *,
    folds: int,
    seed: int,
    draws: int = RANDOM_LABEL_DRAWS,
) -> ControlRun:
    """Train the same way on labels permuted between participants, which must end at chance.

    Every draw is stratified anew by its own labels.

    References
    ----------
    Yagis et al. 2021, doi:10.1038/s41598-021-01681-w: random labels reach 96 % with a person on two sides.
    """
    logits, targets = [], []
    for draw in range(draws):
        drawn_with = seed + 1000 + draw
        drawn = shuffled_labels(labels, participants, seed=drawn_with)
        wanted = np.array([list(classes).index(label) for label in drawn], dtype=np.int64)
        parts = fold_of_scans(drawn, participants, folds=folds, seed=drawn_with)
        logits.append(judge(wanted, parts, drawn_with, f"random-labels-{draw}"))
        targets.append(wanted)
    return ControlRun(
        logits=np.concatenate(logits),
        targets=np.concatenate(targets),
        participants=tuple(participants) * draws,
    )


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
