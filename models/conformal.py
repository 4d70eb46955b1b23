"""Class-conditional conformal prediction sets.

A set holds every class whose non-conformity ``1 - p(class)`` is not above that class's quantile over scans of that
class (Mondrian split conformal prediction; Vovk 2012, arXiv 1209.2673; Sadinle et al. 2019,
doi:10.1080/01621459.2017.1395341). Exchangeable scans are then covered at the level in each class. Here the scores
come out of fold and new scans are judged by the fold ensemble, and visits of one person are not independent, so the
guarantee is approximate; the coverage that was measured stands in the model card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.90


def conformal_quantile(scores: NDArray[np.float64], level: float = LEVEL) -> float:
    """Return the finite-sample quantile: the ``ceil((n + 1) level)``-th smallest score, infinite when n is too small.

    >>> conformal_quantile(np.arange(9.0)), conformal_quantile(np.arange(8.0))
    (8.0, inf)
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def class_quantiles(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], level: float = LEVEL
) -> tuple[float, ...]:
    """Return the quantile of each class over its own scans.

    Parameters
    ----------
    probabilities : ndarray, (N, C) float64
        Calibrated, of scans the model was not trained on.
    targets : ndarray, (N,) int64

    Returns
    -------
    tuple of float
        Infinite for a class with too few scans for the level: it is then in every set.
    """
    classes = range(probabilities.shape[1])
    return tuple(conformal_quantile(1.0 - probabilities[targets == c, c], level) for c in classes)


def set_members(probabilities: NDArray[np.float64], quantiles: Sequence[float]) -> NDArray[np.bool_]:
    """Return which classes are in each scan's set, (N, C) bool; a set may be empty."""
    # a tolerance, so that a score read back from a file still equals its own quantile
    return np.asarray(1.0 - probabilities <= np.asarray(quantiles) + 1e-12)


def cross_fitted_members(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    level: float = LEVEL,
) -> NDArray[np.bool_]:
    """Return each fold's sets under the quantiles of the other folds, to measure coverage honestly."""
    members = np.zeros(probabilities.shape, dtype=bool)
    for fold in np.unique(folds):
        own = folds == fold
        quantiles = class_quantiles(probabilities[~own], targets[~own], level)
        members[own] = set_members(probabilities[own], quantiles)
    return members
