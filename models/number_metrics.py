"""Measures of predicted numbers, each with a bootstrap interval by participant; as :mod:`brainstage.models.metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainstage.models.metrics import BOOTSTRAP_SAMPLES, Estimate, Weights, bootstrap_weights, estimate_of

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NumberEvaluation:
    """All measures of one set of predicted numbers.

    Attributes
    ----------
    measures : dict
        ``mae`` and ``rmse`` in the unit of the target, ``r2``, ``correlation`` (Pearson), ``mean_error`` (predicted
        minus true), and ``error_by_target``: by how much the error changes with the true value.
    scans : int
    """

    measures: Mapping[str, Estimate]
    scans: int

    @property
    def above_chance(self) -> bool:
        """Whether the interval of R2 lies above 0: better than saying the mean to everybody."""
        return self.measures["r2"].low > 0


def evaluate_numbers(
    values: Numbers,
    targets: Numbers,
    participants: Sequence[str],
    *,
    expected: Numbers | None = None,
    seed: int,
    samples: int = BOOTSTRAP_SAMPLES,
) -> NumberEvaluation:
    """Measure predictions of scans that the model was not trained on.

    Parameters
    ----------
    values, targets : ndarray, (N,) float64
        Predicted and true.
    participants : sequence of str
        Of each scan; they are drawn whole.
    expected : ndarray, (N,) float64, optional
        What is said of each scan without a model, the mean of its training fold; R2 is the part of that squared error
        that the predictions remove. Without it, the mean of `targets`.
    """
    weights = bootstrap_weights(participants, samples=samples, seed=seed)
    weights = weights / weights.sum(axis=1, keepdims=True)
    error = values - targets
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = weights @ error**2
        usual = _variance(targets, weights) if expected is None else weights @ (expected - targets) ** 2
        samples_of = {
            "mae": weights @ np.abs(error),
            "rmse": np.sqrt(squared),
            "r2": 1 - squared / usual,
            "correlation": _covariance(values, targets, weights)
            / np.sqrt(_variance(values, weights) * _variance(targets, weights)),
            "mean_error": weights @ error,
            "error_by_target": _covariance(error, targets, weights) / _variance(targets, weights),
        }
    finite = {name: np.where(np.isfinite(found), found, np.nan) for name, found in samples_of.items()}
    return NumberEvaluation(
        measures={name: estimate_of(found) for name, found in finite.items()}, scans=len(targets)
    )


def _covariance(first: Numbers, second: Numbers, weights: Weights) -> Numbers:
    """Return the covariance in each sample, (B,), from weights that sum to 1."""
    return np.asarray(
        weights @ ((first - first.mean()) * (second - second.mean()))
        - (weights @ (first - first.mean())) * (weights @ (second - second.mean()))
    )


def _variance(values: Numbers, weights: Weights) -> Numbers:
    found = np.maximum(_covariance(values, values, weights), 0.0)
    return np.where(found > 1e-12 * max(float((values**2).mean()), 1e-300), found, 0.0)
