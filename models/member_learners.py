"""The members that need no network, and covariates, as learners of a cohort's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import LinearBaseline, fit_baseline
from brainstage.models.covariates import Column, CovariateExpert, Row, fit_expert
from brainstage.models.training import LogRow
from brainstage.models.volume_model import ScanVolumes, VolumeModel, fit_volume_model


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLearner:
    """The linear model on voxels.

    Attributes
    ----------
    values : ndarray, (N, V) float32
        From :func:`~brainstage.models.baseline.baseline_values`.
    inside : ndarray, (N, V) bool
    classes : int
    imbalance : str
    """

    values: NDArray[np.float32]
    inside: NDArray[np.bool_]
    classes: int
    imbalance: str

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.int64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[LinearBaseline, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, name  # solved in one step: there is nothing to log
        model = fit_baseline(
            self.values[chosen],
            self.inside[chosen],
            targets[chosen],
            classes=self.classes,
            imbalance=self.imbalance,
            seed=seed,
        )
        return model, []

    def logits(self, model: LinearBaseline, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans."""
        return model.logits(self.values[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumesLearner:
    """The model on volumes.

    Attributes
    ----------
    scans : sequence of ScanVolumes
        Of all N scans.
    classes : int
    imbalance : str
    """

    scans: Sequence[ScanVolumes]
    classes: int
    imbalance: str

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.int64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[VolumeModel, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, name
        model = fit_volume_model(
            self._of(chosen), targets[chosen], classes=self.classes, imbalance=self.imbalance, seed=seed
        )
        return model, []

    def logits(self, model: VolumeModel, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans."""
        return model.logits(self._of(chosen))

    def _of(self, chosen: NDArray[np.bool_]) -> list[ScanVolumes]:
        return [self.scans[place] for place in np.flatnonzero(chosen)]


@dataclass(frozen=True, kw_only=True, eq=False)
class CovariateLearner:
    """The model on columns of the table.

    Attributes
    ----------
    columns : sequence of Column
    rows : sequence of mapping
        Of all N scans.
    classes : int
    imbalance : str
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    classes: int
    imbalance: str

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[np.int64], *, fold: int, seed: int, name: str = ""
    ) -> tuple[CovariateExpert, list[LogRow]]:
        """Learn from the chosen scans."""
        del fold, name, seed
        expert = fit_expert(
            self.columns, self._of(chosen), targets[chosen], classes=self.classes, imbalance=self.imbalance
        )
        return expert, []

    def logits(self, model: CovariateExpert, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the log-likelihood ratios (M, C) of the chosen scans: log-probabilities without the prior."""
        return model.evidence(self._of(chosen))

    def _of(self, chosen: NDArray[np.bool_]) -> list[Row]:
        return [self.rows[place] for place in np.flatnonzero(chosen)]
