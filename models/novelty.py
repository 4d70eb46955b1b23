"""How unlike the training scans a scan is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.rotation import rotate

FLAGGED_PART: Final = 0.05
"""The part of the training distribution that lies above the threshold."""
MAX_COMPONENTS: Final = 32
_SCANS_PER_COMPONENT: Final = 3
"""A variance from fewer scans than this is noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoveltyModel:
    """A Gaussian over features: free along the leading axes, round across them (probabilistic PCA).

    Attributes
    ----------
    mean, scale : ndarray, (F,) float32
        Standardisation of the training fold.
    axes : ndarray, (K, F) float32
        Orthonormal principal axes.
    variances : ndarray, (K,) float32
        Along the axes.
    residual_variance : float
        Per dimension across them.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]
    residual_variance: float

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the root mean square Mahalanobis distance per dimension.

        Parameters
        ----------
        features : ndarray, (N, F) float32

        Returns
        -------
        ndarray, (N,) float64
            Without unit; larger is stranger.
        """
        standardised = ((features - self.mean) / self.scale).astype(np.float64)
        along = standardised @ self.axes.T.astype(np.float64)
        across = np.maximum((standardised**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squared = (along**2 / self.variances).sum(axis=1) + across / self.residual_variance
        return np.asarray(np.sqrt(squared / features.shape[1]))


def fit_novelty(features: NDArray[np.float32]) -> NoveltyModel:
    """Fit the Gaussian to a training fold.

    References
    ----------
    Tipping and Bishop 1999, doi:10.1111/1467-9868.00196.
    """
    rotation = rotate(features)
    variances = (rotation.scores.astype(np.float64) / rotation.factor).var(axis=0)
    kept = max(1, min(MAX_COMPONENTS, len(features) // _SCANS_PER_COMPONENT, len(variances) - 1))
    rest = max(features.shape[1] - kept, 1)
    residual = max(float(variances[kept:].sum()) / rest, 1e-6)
    return NoveltyModel(
        mean=rotation.mean,
        scale=rotation.scale,
        axes=rotation.unrotate(np.eye(kept, len(variances), dtype=np.float32)) / np.float32(rotation.factor),
        variances=np.maximum(variances[:kept], residual).astype(np.float32),
        residual_variance=residual,
    )


def novelty_threshold(out_of_fold_scores: NDArray[np.float64]) -> float:
    """Return the score above which :data:`FLAGGED_PART` of scans lie that their model was not fitted on."""
    return float(np.quantile(out_of_fold_scores, 1.0 - FLAGGED_PART))
