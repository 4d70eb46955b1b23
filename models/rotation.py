"""Features of few scans on their principal axes, where everything linear is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SCALE_FLOOR: Final = 0.1
"""Features that hardly vary in training are scaled by this part of the median deviation, not blown up."""
_NEGLIGIBLE: Final = 1e-6
"""Axes with less than this part of the leading one's variance are rounding of single precision."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """Training features on their principal axes, of which N scans span at most N - 1.

    A linear model on the scores is a linear model on the features, at the cost of at most N columns instead of F.
    The axes are kept as combinations of scans, so that none of them is ever written out in F dimensions.

    Attributes
    ----------
    mean, scale : ndarray, (F,) float32
    standardised : ndarray, (N, F) float32
    combinations : ndarray, (N, K) float32
        ``standardised.T @ combinations`` are the axes, all multiplied with ``factor``.
    scores : ndarray, (N, K) float32
        On the multiplied axes; the first has unit variance.
    factor : float
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    standardised: NDArray[np.float32]
    combinations: NDArray[np.float32]
    scores: NDArray[np.float32]
    factor: float

    def project(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores (M, K) of other scans (M, F)."""
        standardised = (features - self.mean) / self.scale
        return np.asarray((standardised @ self.standardised.T) @ self.combinations, dtype=np.float32)

    def unrotate(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a map (C, K) on scores as the same map (C, F) on standardised features."""
        return np.asarray((weight @ self.combinations.T) @ self.standardised, dtype=np.float32)


def standardisation(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and scale of each feature over the rows; see :data:`SCALE_FLOOR`."""
    deviation = features.std(axis=0, dtype=np.float64)
    varying = deviation[deviation > 0]
    floor = SCALE_FLOOR * float(np.median(varying)) if varying.size else 1.0
    scale = np.maximum(deviation, floor)
    return features.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)


def rotate(features: NDArray[np.float32]) -> Rotation:
    """Standardise and rotate to principal axes, through the (N, N) matrix of inner products."""
    mean, scale = standardisation(features)
    standardised = ((features - mean) / scale).astype(np.float32)
    values, vectors = np.linalg.eigh((standardised @ standardised.T).astype(np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > _NEGLIGIBLE * max(float(values[0]), _NEGLIGIBLE)
    # eigh gives columns in Fortran order, in which the many small products of training take 25 times as long
    vectors, lengths = np.ascontiguousarray(vectors[:, kept]), np.sqrt(values[kept])
    factor = float(np.sqrt(len(features)) / lengths[0]) if kept.any() else 1.0
    return Rotation(
        mean=mean,
        scale=scale,
        standardised=standardised,
        combinations=(factor * vectors / lengths).astype(np.float32),
        scores=(factor * vectors * lengths).astype(np.float32),
        factor=factor,
    )
