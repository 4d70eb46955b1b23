"""The members of a model of a number, and covariates, as learners: ridge regressions of what classes are told by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import LinearBaseline, fit_number_baseline
from brainstage.models.covariates import Column, CovariateNumber, Row, fit_covariate_number
from brainstage.models.heads import LinearHead
from brainstage.models.learners import FoldModel
from brainstage.models.linear_fit import fit_number
from brainstage.models.rotation import rotate
from brainstage.models.training import LogRow
from brainstage.models.volume_model import ScanVolumes, VolumeModel, fit_number_volume_model


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberHeadLearner:
    """A ridge regression on the principal components of frozen features.

    Attributes
    ----------
    features : ndarray, (N, F) float32
    """

    features: NDArray[np.float32]

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.float64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[FoldModel, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, seed, name  # solved in one step, without anything random
        rotation = rotate(self.features[chosen])
        weight, bias = fit_number(rotation.scores, targets[chosen])
        head = LinearHead(
            mean=rotation.mean,
            scale=rotation.scale,
            weight=rotation.unrotate(weight[None].astype(np.float32)),
            bias=np.array([bias], dtype=np.float32),
        )
        return FoldModel(head=head), []

    def logits(self, model: FoldModel, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the number of the chosen scans, (M, 1)."""
        return model.head.logits(self.features[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberLinearLearner:
    """The linear model on voxels.

    Attributes
    ----------
    values : ndarray, (N, V) float32
        From :func:`~brainstage.models.baseline.baseline_values`.
    inside : ndarray, (N, V) bool
    """

    values: NDArray[np.float32]
    inside: NDArray[np.bool_]

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.float64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[LinearBaseline, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, seed, name
        return fit_number_baseline(self.values[chosen], self.inside[chosen], targets[chosen]), []

    def logits(self, model: LinearBaseline, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the number of the chosen scans, (M, 1)."""
        return model.logits(self.values[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberVolumesLearner:
    """The model on volumes.

    Attributes
    ----------
    scans : sequence of ScanVolumes
        Of all N scans.
    """

    scans: Sequence[ScanVolumes]

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.float64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[VolumeModel, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, seed, name
        return fit_number_volume_model(self._of(chosen), targets[chosen]), []

    def logits(self, model: VolumeModel, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the number of the chosen scans, (M, 1)."""
        return model.logits(self._of(chosen))

    def _of(self, chosen: NDArray[np.bool_]) -> list[ScanVolumes]:
        return [self.scans[place] for place in np.flatnonzero(chosen)]


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberCovariateLearner:
    """The model on columns of the table.

    Attributes
    ----------
    columns : sequence of Column
    rows : sequence of mapping
        Of all N scans.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.float64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[CovariateNumber, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, seed, name
        return fit_covariate_number(self.columns, self._of(chosen), targets[chosen]), []

    def logits(self, model: CovariateNumber, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the number of the chosen scans, (M, 1)."""
        return model.values(self._of(chosen))[:, None]

    def _of(self, chosen: NDArray[np.bool_]) -> list[Row]:
        return [self.rows[place] for place in np.flatnonzero(chosen)]
