"""The members that need no network, covariates, and members on harmonised values, as learners of a cohort's arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainstage.models.baseline import LinearBaseline, fit_baseline
from brainstage.models.covariates import Column, CovariateExpert, Row, fit_expert
from brainstage.models.harmonisation import Harmonisation, fit_harmonisation
from brainstage.models.learners import Learner
from brainstage.models.training import LogRow
from brainstage.models.volume_model import ScanVolumes, VolumeModel, fit_volume_model

Model = TypeVar("Model")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Harmonised(Generic[Model]):
    """A model, and what was taken out of the values before it saw them.

    Attributes
    ----------
    model
    harmonisation : Harmonisation
        Of all F values.
    """

    model: Model
    harmonisation: Harmonisation


@dataclass(frozen=True, kw_only=True, eq=False)
class HarmonisedLearner(Generic[Model]):
    """A member that learns from values without the location and scale of their site.

    Attributes
    ----------
    values : ndarray, (N, F) float32
    sites : sequence of str or None
    reference : ndarray, (N,) bool
        Scans that sites are compared by.
    build : callable
        Of some of the scans, from their harmonised values (M, F) and which they are, (N,) bool: what learns from them.
    """

    values: NDArray[np.float32]
    sites: Sequence[str | None]
    reference: NDArray[np.bool_]
    build: Callable[[NDArray[np.float32], NDArray[np.bool_]], Learner[Model]]

    def fit(
        self, chosen: NDArray[np.bool_], targets: NDArray[Any], *, fold: int, seed: int, name: str = ""
    ) -> tuple[Harmonised[Model], list[LogRow]]:
        """Learn from the chosen scans."""
        harmonisation = fit_harmonisation(self.values[chosen], self._of(chosen), self.reference[chosen])
        learner, everyone = self._built(harmonisation, chosen)
        model, rows = learner.fit(everyone, targets[chosen], fold=fold, seed=seed, name=name)
        return Harmonised(model=model, harmonisation=harmonisation), rows

    def logits(self, model: Harmonised[Model], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return uncalibrated logits (M, C) of the chosen scans; those of a site that is not known are as they are."""
        learner, everyone = self._built(model.harmonisation, chosen)
        return learner.logits(model.model, everyone)

    def _built(
        self, harmonisation: Harmonisation, chosen: NDArray[np.bool_]
    ) -> tuple[Learner[Model], NDArray[np.bool_]]:
        values = harmonisation.apply(self.values[chosen], self._of(chosen))
        return self.build(values, chosen), np.ones(len(values), dtype=np.bool_)

    def _of(self, chosen: NDArray[np.bool_]) -> list[str | None]:
        return [self.sites[place] for place in np.flatnonzero(chosen)]
