"""The linear model on voxels that every network has to be compared with.

It sees two things at once: how bright each block of the whole brain is, and how large each voxel of its middle. Of all
of them it keeps those that differ most between the classes of the training fold, so that an effect of a few hundred
voxels is not drowned by what people differ in anyway. Wen et al. 2020 (doi:10.1016/j.media.2020.101694) found no
network for T1w MRI that beat a linear model; nilearn's decoders screen by an F test inside the training fold likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.linear_fit import fit_classes, fit_number
from brainstage.models.rotation import Rotation, rotate
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import Affine

BLOCK_VOXELS: Final = 2
"""Voxels of the network grid averaged along each axis: 4 mm from 2 mm, about the precision of an affine alignment."""
BASELINE_VERSION: Final = 2
"""Of what the baseline sees, local volume included: a model and a cache of another version do not fit."""
SCREENED_PART: Final = 0.01
"""Of the values that vary: those with the largest F are used. Fewer of them tell what lies in a few places, such as
atrophy, a little better, and more of them what lies everywhere, such as sex (benchmarks/README.md)."""
SCREENED_LEAST: Final = 200
"""Values that are used at least, where there are so many: coarse grids have few."""
_SCREENED_AT_A_TIME: Final = 8192
"""Values: the test copies what it is given, which for all of them would be the size of the cohort again."""
_MASK_PART: Final = 0.5
"""A voxel is used when it is brain in at least this part of the training scans."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearBaseline:
    """A linear map from the values of :func:`baseline_values` to logits; zero for those that were not used.

    Attributes
    ----------
    weight : ndarray, (C, V) float32
    bias : ndarray, (C,) float32
    mean : ndarray, (V,) float32
        Of the scans that it was fitted on; no part of an answer, but what an explanation starts from.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]

    def logits(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return uncalibrated logits (N, C) of values (N, V)."""
        return np.asarray(values @ self.weight.T + self.bias, dtype=np.float64)

    def contributions(self, values: NDArray[np.float32], output: int) -> NDArray[np.float64]:
        """Return what each value adds to the logit of a class, beyond its mean over the classes and the mean scan.

        Parameters
        ----------
        values : ndarray, (V,) float32
        output : int
            Of the class.

        Returns
        -------
        ndarray, (V,) float64
            Their sum is how far the logit of the class, less the mean over the classes, lies from that of the mean of
            the training scans.
        """
        weight = self.weight.astype(np.float64)
        deviation = values.astype(np.float64) - self.mean
        return np.asarray((weight[output] - weight.mean(axis=0)) * deviation)


def baseline_values(network_input: NetworkInput) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return all that the baseline sees of a scan: its blocks of voxels, then the local volume of its middle.

    Returns
    -------
    values : ndarray, (V,) float32
    inside : ndarray, (V,) bool
        Blocks that are at least half brain; local volume counts everywhere.
    """
    voxels, inside = block_voxels(network_input)
    volume = network_input.local_volume.ravel()
    return np.concatenate([voxels, volume]), np.concatenate([inside, np.ones(volume.size, dtype=np.bool_)])


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


def block_matrix(voxel_to_ras: Affine) -> Affine:
    """Return where the blocks of :func:`block_voxels` lie, from where the voxels of the network's grid lie."""
    blocks = np.diag([BLOCK_VOXELS] * 3 + [1.0])
    blocks[:3, 3] = (BLOCK_VOXELS - 1) / 2
    return np.asarray(voxel_to_ras @ blocks)


def in_places(
    values: NDArray[np.float64], network_input: NetworkInput
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return something about each of :func:`baseline_values` on the grids that they come from.

    Parameters
    ----------
    values : ndarray, (V,) float64
    network_input : NetworkInput
        Of the scan.

    Returns
    -------
    blocks : ndarray, (I, J, K) float64
        Placed by :func:`block_matrix`.
    middle : ndarray, (I, J, K) float64
        On the grid of the local volume.
    """
    shape = block_shape(network_input.brain_mask.shape)
    count = int(np.prod(shape))
    return values[:count].reshape(shape), values[count:].reshape(network_input.local_volume.shape)


def fit_baseline(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    targets: NDArray[np.int64],
    *,
    classes: int,
    imbalance: str,
    seed: int = 0,
) -> LinearBaseline:
    """Fit an L2-penalised logistic regression on one training fold.

    Mask, screening, standardisation and rotation come from the given scans alone. The rotation is exact: N scans span
    at most N - 1 dimensions, so the fit on its scores is the fit on the values.

    Parameters
    ----------
    values : ndarray, (N, V) float32
    inside : ndarray, (N, V) bool
    targets : ndarray, (N,) int64
    imbalance : str
        One of :data:`~brainstage.models.choices.IMBALANCE`; sampling happens among the given scans.
    seed : int
        Of sampling.
    """
    from sklearn.feature_selection import f_classif  # heavy, and predictions do without

    used = _screened(values, inside, lambda part: f_classif(part, targets)[0])
    rotation = rotate(values[:, used])
    coefficients, intercepts = fit_classes(
        rotation.scores, targets, classes=classes, imbalance=imbalance, seed=seed
    )
    return _unrotated(rotation, used, coefficients, intercepts, values.shape[1])


def fit_number_baseline(
    values: NDArray[np.float32], inside: NDArray[np.bool_], targets: NDArray[np.float64]
) -> LinearBaseline:
    """Fit a ridge regression of a number on one training fold; screened by correlation, otherwise as for classes.

    Parameters
    ----------
    values : ndarray, (N, V) float32
    inside : ndarray, (N, V) bool
    targets : ndarray, (N,) float64

    Returns
    -------
    LinearBaseline
        Whose one "logit" is the number.
    """
    from sklearn.feature_selection import f_regression  # heavy, and predictions do without

    used = _screened(values, inside, lambda part: f_regression(part, targets)[0])
    rotation = rotate(values[:, used])
    weight, bias = fit_number(rotation.scores, targets)
    return _unrotated(rotation, used, weight[None], np.array([bias]), values.shape[1])


def _screened(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
) -> NDArray[np.int64]:
    """Return the places (U,) of the values that go most with the target, by their `score`, in their order."""
    places = np.flatnonzero((inside.mean(axis=0) >= _MASK_PART) & (np.ptp(values, axis=0) > 0))
    wanted = max(SCREENED_LEAST, round(SCREENED_PART * len(places)))
    if wanted >= len(places):
        return places
    parts = np.array_split(places, -(-len(places) // _SCREENED_AT_A_TIME))
    scores = np.concatenate([score(values[:, part]) for part in parts])
    best = np.argsort(np.nan_to_num(scores, nan=-np.inf), kind="stable")[-wanted:]
    return np.sort(places[best])


def _unrotated(
    rotation: Rotation,
    used: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    intercepts: NDArray[np.float64],
    size: int,
) -> LinearBaseline:
    inside = rotation.unrotate(coefficients.astype(np.float32)).astype(np.float64) / rotation.scale
    weight = np.zeros((len(inside), size), dtype=np.float32)
    weight[:, used] = inside
    mean = np.zeros(size, dtype=np.float32)
    mean[used] = rotation.mean
    bias = (intercepts - inside @ rotation.mean).astype(np.float32)
    return LinearBaseline(weight=weight, bias=bias, mean=mean)


def _block_sums(array: NDArray[np.float32]) -> NDArray[np.float32]:
    block = BLOCK_VOXELS
    padded = np.pad(array, [(0, -n % block) for n in array.shape])
    i, j, k = (n // block for n in padded.shape)
    return np.asarray(padded.reshape(i, block, j, block, k, block).sum(axis=(1, 3, 5)), dtype=np.float32)
