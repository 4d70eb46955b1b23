"""Classes of different size made the same size, by drawing again, leaving out, or in between (imbalanced-learn)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.errors import UsageError

if TYPE_CHECKING:
    from imblearn.over_sampling import SMOTE, RandomOverSampler
    from imblearn.under_sampling import RandomUnderSampler

SMOTE_NEIGHBOURS: Final = 5
"""As published; a class of fewer scans has as many neighbours as it has."""


def resampled(
    scores: NDArray[np.float32], targets: NDArray[np.int64], imbalance: str, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scans of a training part with classes of one size; unchanged for ``none`` and ``weights``.

    Parameters
    ----------
    scores : ndarray, (N, K) float32
        Of the scans that are trained on and of no others.
    targets : ndarray, (N,) int64
    imbalance : str
        ``oversample`` draws scans of the smaller classes again, ``undersample`` leaves scans of the larger ones out,
        ``smote`` adds points between a scan and its neighbours of the same class.

    Returns
    -------
    scores : ndarray, (M, K) float32
    targets : ndarray, (M,) int64

    Raises
    ------
    UsageError
        When ``smote`` meets a class of one scan, which has no neighbour.

    References
    ----------
    Chawla et al. 2002, doi:10.1613/jair.953.
    """
    if imbalance in ("none", "weights") or not scores.shape[1]:  # features that never vary: nothing to sample
        return scores, targets
    found, wanted = _sampler(targets, imbalance, seed).fit_resample(scores, targets)
    return np.ascontiguousarray(found, dtype=np.float32), np.asarray(wanted, dtype=np.int64)


def _sampler(
    targets: NDArray[np.int64], imbalance: str, seed: int
) -> SMOTE | RandomOverSampler | RandomUnderSampler:
    from imblearn.over_sampling import SMOTE, RandomOverSampler  # heavy, and only training samples
    from imblearn.under_sampling import RandomUnderSampler

    if imbalance == "oversample":
        return RandomOverSampler(random_state=seed)
    if imbalance == "undersample":
        return RandomUnderSampler(random_state=seed)
    smallest = int(np.unique(targets, return_counts=True)[1].min())
    if smallest < 2:
        raise UsageError(
            "--imbalance smote: a class has one scan in a part that is trained on, and SMOTE needs a neighbour of the "
            "same class; use --imbalance oversample or weights, or leave the class out with --classes"
        )
    return SMOTE(k_neighbors=min(SMOTE_NEIGHBOURS, smallest - 1), random_state=seed)
