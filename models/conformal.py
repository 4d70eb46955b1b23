"""Class-conditional prediction sets of the deployed predictor.

Every training scan has a score, ``1 - p(its class)``, by the one fold that did not learn from its person. A new scan is
scored as each class by the same folds, and a class is in its set unless too few scans of that class have scores as
high: cross-conformal prediction within classes (Vovk 2015, doi:10.1007/s10472-013-9368-4; the same comparisons as CV+,
Barber et al. 2021, doi:10.1214/20-AOS1965). What is promised is about the folds together, which is what is deployed.
Proven is a coverage of ``1 - 2 alpha`` for exchangeable persons; what is found is close to ``1 - alpha``, and the
coverage that was measured stands in the model card. Visits of one person are not independent, which weakens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.90
"""What sets are made for, where a class has scans enough."""
LEVEL_STEP: Final = 0.10
_TIE: Final = 1e-9
"""A score read back from a file still equals its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of training scans of one class.

    Attributes
    ----------
    score : ndarray, (N,) float64
    fold, person : ndarray, (N,) int64
        The fold that did not learn from the scan, and whose scan it is.
    """

    score: NDArray[np.float64]
    fold: NDArray[np.int64]
    person: NDArray[np.int64]


def class_scores(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    persons: NDArray[np.int64],
) -> tuple[Scores, ...]:
    """Return the scores of the training scans, class by class.

    Parameters
    ----------
    probabilities : ndarray, (N, C) float64
        Out of fold, of the predictor.
    targets, folds, persons : ndarray, (N,) int64
    """
    found = []
    for c in range(probabilities.shape[1]):
        own = targets == c
        found.append(Scores(score=1.0 - probabilities[own, c], fold=folds[own], person=persons[own]))
    return tuple(found)


def attainable_level(persons: NDArray[np.int64], level: float = LEVEL) -> float:
    """Return the level that sets can hold for a class, in steps of a tenth, and at most `level`.

    With n scores to compare with, a class can only be left out at levels up to ``n / (n + 1)``. The scans of the
    person with most of them are taken off, so that training scans, which are not compared with their own, have sets
    at the same level.

    Parameters
    ----------
    persons : ndarray, (N,) int64
        Whose each scan of the class is.

    Examples
    --------
    >>> [attainable_level(np.arange(n)) for n in (40, 10, 7, 6, 3)]
    [0.9, 0.9, 0.8, 0.8, 0.6]
    """
    others = len(persons) - int(np.unique(persons, return_counts=True)[1].max(initial=0))
    steps = np.floor(others / (others + 1) / LEVEL_STEP + 1e-9)
    return round(min(level, max(LEVEL_STEP, float(steps) * LEVEL_STEP)), 10)


def p_values(
    probabilities: NDArray[np.float64],
    scores: Sequence[Scores],
    *,
    without_person: int | None = None,
) -> NDArray[np.float64]:
    """Return how usual a scan would be as each class.

    Parameters
    ----------
    probabilities : ndarray, (K, C) float64
        Of one scan by each fold; ``(1, C)`` for a training scan, by the fold that did not learn from it.
    scores : sequence of Scores
        Of each class.
    without_person : int, optional
        Whose scores are left out: the scan's own.

    Returns
    -------
    ndarray, (C,) float64
    """
    found = np.empty(len(scores))
    for c, known in enumerate(scores):
        own = 1.0 - probabilities[:, c]
        compared = own[known.fold] if len(own) > 1 else own
        as_high = known.score >= compared - _TIE
        others = known.person != without_person if without_person is not None else np.ones(len(as_high), bool)
        found[c] = (1 + int((as_high & others).sum())) / (1 + int(others.sum()))
    return found


def set_members(p: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.bool_]:
    """Return which classes are in a set, (..., C) bool, from p-values; a set may be empty."""
    return np.asarray(p > 1.0 - np.asarray(levels) + 1e-12)


def out_of_fold_p_values(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], persons: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the p-values (N, C) of training scans, each compared with all scans of other persons.

    Parameters
    ----------
    probabilities : ndarray, (N, C) float64
        Out of fold.
    targets, persons : ndarray, (N,) int64
    """
    scores = class_scores(probabilities, targets, np.zeros_like(targets), persons)
    return np.stack(
        [
            p_values(one[None], scores, without_person=int(person))
            for one, person in zip(probabilities, persons, strict=True)
        ]
    )
