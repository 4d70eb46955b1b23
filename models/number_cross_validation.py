"""The folds of a model of a number: the predictor over its members, and its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import Member, PredictorChoice
from brainstage.models.cross_validation import RANDOM_LABEL_DRAWS, Nested
from brainstage.models.metrics import Estimate
from brainstage.models.number_predictor import (
    FoldNumberPredictor,
    InnerNumbers,
    Numbers,
    fit_number_predictor,
)
from brainstage.models.splits import fold_of_numbers, shuffled_numbers

LEAKAGE_CORRELATION: Final = 0.98
"""No T1w study of honest design comes near: the best brain ages of large cohorts correlate with age at about 0.95."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedNumbers:
    """What a predictor says out of fold, and how it was put together.

    Attributes
    ----------
    values : ndarray, (N,) float64
    predictors : tuple of FoldNumberPredictor
        Of the folds.
    """

    values: Numbers
    predictors: tuple[FoldNumberPredictor, ...]


def cross_validate_number_predictor(
    nested: Mapping[Member, Nested[Any]],
    targets: Numbers,
    folds: NDArray[np.int64],
    persons: NDArray[np.int64],
    choice: PredictorChoice,
    covariates: Nested[Any] | None = None,
) -> PredictedNumbers:
    """Fit the predictor of each fold within its training side, and let it predict the scans that it leaves out.

    Parameters
    ----------
    nested : mapping
        Of each member.
    targets : ndarray, (N,) float64
    folds, persons : ndarray, (N,) int64
    choice : str
        As ``--predictor``.
    covariates : Nested, optional
        Of covariates alone.
    """
    values = np.empty(len(targets))
    predictors = []
    for fold in range(int(folds.max()) + 1):
        test = folds == fold
        of_fold = InnerNumbers(
            said={name: found.nested_logits[fold, :, 0] for name, found in nested.items()},
            targets=targets,
            folds=folds,
            persons=persons,
            covariates=covariates.nested_logits[fold, :, 0] if covariates else None,
        )
        predictor = fit_number_predictor(of_fold.where(~test), choice)
        outer = of_fold.where(test)
        values[test] = predictor.values(outer.said, outer.covariates)
        predictors.append(predictor)
    return PredictedNumbers(values=values, predictors=tuple(predictors))


def member_values(
    nested: Mapping[Member, Nested[Any]], predictors: Sequence[FoldNumberPredictor]
) -> dict[Member, Numbers]:
    """Return what each member says out of fold, recalibrated by the line of each fold, (N,)."""
    found = {}
    for name, one in nested.items():
        values = np.empty(len(one.folds))
        for fold, predictor in enumerate(predictors):
            own = one.folds == fold
            values[own] = predictor.lines[name].of(one.logits[own, 0])
        found[name] = values
    return found


def fold_means(targets: Numbers, folds: NDArray[np.int64]) -> Numbers:
    """Return the mean of the training side of each scan's fold, (N,): what is said without a model."""
    return np.array([targets[folds != fold].mean() for fold in folds.tolist()])


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberControl:
    """Predictions of a control, several draws one after the other.

    Attributes
    ----------
    values, targets, expected : ndarray, (D N,) float64
        Predicted, permuted, and the mean of the training side.
    participants : tuple of str
    draws : int
        D, permutations of the targets.
    """

    values: Numbers
    targets: Numbers
    expected: Numbers
    participants: tuple[str, ...]
    draws: int


RefitNumbers = Callable[[Numbers, NDArray[np.int64], int, str], Mapping[str, Numbers]]
"""Targets (N,), folds (N,), seed and the run's name: to the values (N,) out of fold of every model by name."""


def random_target_control(
    refit: RefitNumbers,
    targets: Numbers,
    participants: Sequence[str],
    *,
    folds: int,
    seed: int,
    draws: int = RANDOM_LABEL_DRAWS,
    fixed_folds: NDArray[np.int64] | None = None,
) -> dict[str, NumberControl]:
    """Train the same way on targets permuted between participants, which must end at chance.

    Every draw is stratified anew by its own targets, unless the folds are fixed, as those of sites are.

    Parameters
    ----------
    refit : callable
    targets : ndarray, (N,) float64
    participants : sequence of str
    """
    said: dict[str, list[Numbers]] = {}
    drawn_targets, expected = [], []
    for draw in range(draws):
        drawn_with = seed + 1000 + draw
        drawn = shuffled_numbers(targets, participants, seed=drawn_with)
        parts = fixed_folds
        if parts is None:
            parts = fold_of_numbers(drawn, participants, folds=folds, seed=drawn_with)
        for name, found in refit(drawn, parts, drawn_with, f"random-targets-{draw}").items():
            said.setdefault(name, []).append(found)
        drawn_targets.append(drawn)
        expected.append(fold_means(drawn, parts))
    return {
        name: NumberControl(
            values=np.concatenate(found),
            targets=np.concatenate(drawn_targets),
            expected=np.concatenate(expected),
            participants=tuple(participants) * draws,
            draws=draws,
        )
        for name, found in said.items()
    }


def number_leakage_warnings(correlation: Estimate, random_r2: Mapping[str, Estimate]) -> tuple[str, ...]:
    """Return a sentence for each sign that test scans had a part in training.

    Parameters
    ----------
    correlation : Estimate
        Of predicted and true values in the cross-validation.
    random_r2 : mapping
        Model to what it reaches with random targets.
    """
    found = []
    if correlation.value > LEAKAGE_CORRELATION:
        found.append(
            f"predicted and true values correlate at {correlation.value:.2f}, more than honest studies reach: look for "
            "leakage, or for an effect that is not biology"
        )
    found += [
        f"random targets are predicted with an R2 of {reached} by the {model}, above 0: scans of one person may be on "
        "two sides, or it was luck, which a second --seed tells"
        for model, reached in random_r2.items()
        if reached.low > 0
    ]
    return tuple(found)
