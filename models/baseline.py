"""The linear model on voxels that every network has to be compared with.

Wen et al. 2020 (doi:10.1016/j.media.2020.101694) found no network for T1w MRI that beat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from brainstage.models.imbalance import resampled
from brainstage.models.training import Rotation, rotate
from brainstage.pipeline.records import NetworkInput

BLOCK_VOXELS: Final = 2
"""Voxels of the network grid averaged along each axis: 4 mm from 2 mm, about the precision of an affine alignment."""
BASELINE_VERSION: Final = 1
_MASK_PART: Final = 0.5
"""A voxel is used when it is brain in at least this part of the training scans."""
_INVERSE_PENALTY: Final = 1.0
"""scikit-learn's C, on scores whose leading component has unit variance; fixed, so nothing is chosen on a fold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearBaseline:
    """A linear map from blocks of voxels to logits; zero outside the training mask.

    Attributes
    ----------
    weight : ndarray, (C, V) float32
    bias : ndarray, (C,) float32
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, voxels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return uncalibrated logits (N, C) of voxels (N, V)."""
        return np.asarray(voxels @ self.weight.T + self.bias, dtype=np.float64)


def block_voxels(network_input: NetworkInput) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average the brain over blocks of voxels.

    Returns
    -------
    voxels : ndarray, (V,) float32
        Mean over each block's brain voxels, 0 for a block without any.
    inside : ndarray, (V,) bool
        Blocks that are at least half brain.
    """
    mask = network_input.brain_mask
    counts = _block_sums(mask.astype(np.float32))
    sums = _block_sums(np.where(mask, network_input.image[0], np.float32(0)))
    voxels = sums / np.maximum(counts, 1)
    return voxels.ravel().astype(np.float32), (counts >= BLOCK_VOXELS**3 / 2).ravel()


def block_shape(grid: Sequence[int]) -> tuple[int, int, int]:
    """Return the grid of the blocks that :func:`block_voxels` makes of a network's grid.

    >>> block_shape((80, 96, 81))
    (40, 48, 41)
    """
    i, j, k = (-(-n // BLOCK_VOXELS) for n in grid)
    return i, j, k


def fit_baseline(
    voxels: NDArray[np.float32],
    inside: NDArray[np.bool_],
    targets: NDArray[np.int64],
    *,
    classes: int,
    imbalance: str,
    seed: int = 0,
) -> LinearBaseline:
    """Fit an L2-penalised logistic regression on one training fold.

    Mask, standardisation and rotation come from the given scans alone. The rotation is exact: N scans span at most
    N - 1 dimensions, so the fit on its scores is the fit on the voxels.

    Parameters
    ----------
    voxels : ndarray, (N, V) float32
    inside : ndarray, (N, V) bool
    targets : ndarray, (N,) int64
    imbalance : str
        One of :data:`~brainstage.models.imbalance.IMBALANCE`; sampling happens among the given scans.
    seed : int
        Of sampling.
    """
    used = inside.mean(axis=0) >= _MASK_PART
    rotation = rotate(voxels[:, used])
    model = LogisticRegression(
        C=_INVERSE_PENALTY, class_weight="balanced" if imbalance == "weights" else None, max_iter=1000
    ).fit(*resampled(rotation.scores, targets, imbalance, seed=seed))
    coefficients, intercepts = model.coef_, model.intercept_
    if classes == 2:  # scikit-learn gives one row for two classes
        coefficients, intercepts = np.vstack([0 * coefficients, coefficients]), np.r_[0, intercepts]
    return _unrotated(rotation, used, coefficients, intercepts)


def mean_baseline(folds: list[LinearBaseline]) -> LinearBaseline:
    """Return the ensemble of the folds: the mean of linear maps is a linear map."""
    return LinearBaseline(
        weight=np.stack([fold.weight for fold in folds]).mean(axis=0, dtype=np.float64).astype(np.float32),
        bias=np.stack([fold.bias for fold in folds]).mean(axis=0, dtype=np.float64).astype(np.float32),
    )


def _unrotated(
    rotation: Rotation,
    used: NDArray[np.bool_],
    coefficients: NDArray[np.float64],
    intercepts: NDArray[np.float64],
) -> LinearBaseline:
    inside = rotation.unrotate(coefficients.astype(np.float32)).astype(np.float64) / rotation.scale
    weight = np.zeros((len(inside), used.size), dtype=np.float32)
    weight[:, used] = inside
    return LinearBaseline(weight=weight, bias=(intercepts - inside @ rotation.mean).astype(np.float32))


def _block_sums(array: NDArray[np.float32]) -> NDArray[np.float32]:
    block = BLOCK_VOXELS
    padded = np.pad(array, [(0, -n % block) for n in array.shape])
    i, j, k = (n // block for n in padded.shape)
    return np.asarray(padded.reshape(i, block, j, block, k, block).sum(axis=(1, 3, 5)), dtype=np.float32)
