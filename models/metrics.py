"""Measures of a classifier, each with a bootstrap interval by participant.

A bootstrap sample is a weight for each scan: how often its participant was drawn. Every measure is written for a
whole matrix of weights, so a thousand samples cost a few matrix products. With weights of one the values are
scikit-learn's, which a test holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

BOOTSTRAP_SAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
"""Of the intervals."""
ECE_BINS: Final = 10

Weights = NDArray[np.float64]
"""(B, N): how often each of N scans counts in each of B samples."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and the bounds of its interval at :data:`CONFIDENCE`; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} (95 % interval {self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All measures of one set of predictions.

    Attributes
    ----------
    measures : dict
        Name to estimate; ``sensitivity_<class>``, ``specificity_<class>``, ``auc_<class>`` and
        ``average_precision_<class>`` (one against the rest) for each class, ``f1``, ``auc`` and
        ``average_precision`` as means over classes.
    confusion : ndarray, (C, C) int64
        Rows are true classes.
    scans : dict
        Number of scans of each class.
    """

    measures: dict[str, Estimate]
    confusion: NDArray[np.int64]
    scans: dict[str, int]


def bootstrap_weights(participants: Sequence[str], *, samples: int, seed: int) -> Weights:
    """Draw participants with replacement; the first row is the data as they are.

    Returns
    -------
    ndarray, (1 + samples, N) float64
    """
    names, index = np.unique(np.asarray(participants), return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return np.vstack([np.ones((1, len(index))), counts[:, index]]).astype(np.float64)


def evaluate(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    participants: Sequence[str],
    classes: Sequence[str],
    *,
    seed: int,
    samples: int = BOOTSTRAP_SAMPLES,
) -> Evaluation:
    """Measure predictions of scans that the model was not trained on.

    Parameters
    ----------
    probabilities : ndarray, (N, C) float64
    targets : ndarray, (N,) int64
    participants : sequence of str
        Of each scan; they are drawn whole.
    classes : sequence of str
    """
    weights = bootstrap_weights(participants, samples=samples, seed=seed)
    predicted = probabilities.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # means over no class at all are NaN, as they should be
        samples_of = from_confusion(confusion_matrices(targets, predicted, weights, len(classes)), classes)
        for measure, of_class in (("auc", auc), ("average_precision", average_precision)):
            values = np.stack(
                [of_class(probabilities[:, c], targets == c, weights) for c in range(len(classes))], axis=1
            )
            samples_of |= {f"{measure}_{name}": values[:, c] for c, name in enumerate(classes)}
            samples_of[measure] = np.nanmean(values, axis=1)
        samples_of["brier"] = brier(probabilities, targets, weights)
        samples_of["ece"] = expected_calibration_error(probabilities, targets, weights)
        measures = {name: estimate_of(values) for name, values in samples_of.items()}
    return Evaluation(
        measures=measures,
        confusion=confusion_matrices(targets, predicted, weights[:1], len(classes))[0].astype(np.int64),
        scans={name: int((targets == c).sum()) for c, name in enumerate(classes)},
    )


def confusion_matrices(
    targets: NDArray[np.int64], predicted: NDArray[np.int64], weights: Weights, classes: int
) -> NDArray[np.float64]:
    """Return (B, C, C) weighted counts; rows are true classes."""
    cell = np.eye(classes * classes)[targets * classes + predicted]
    return np.asarray((weights @ cell).reshape(-1, classes, classes))


def from_confusion(matrices: NDArray[np.float64], classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return what follows from (B, C, C) confusion matrices: each measure as (B,) values.

    Accuracy, balanced accuracy (mean sensitivity over the classes present), macro F1, the multi-class Matthews
    coefficient (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006), sensitivity and specificity per class.
    """
    total = matrices.sum(axis=(1, 2))
    hits = np.einsum("bcc->bc", matrices)
    true, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    sensitivity = hits / true
    specificity = (total[:, None] - true - predicted + hits) / (total[:, None] - true)
    present = (true + predicted) > 0
    f1 = np.where(present, 2 * hits / (true + predicted), np.nan)
    covariance = hits.sum(axis=1) * total - (true * predicted).sum(axis=1)
    spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    measures = {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": np.nanmean(sensitivity, axis=1),
        "f1": np.nanmean(f1, axis=1),
        "mcc": np.where(spread > 0, covariance / np.sqrt(spread), 0.0),
    }
    measures |= {f"sensitivity_{name}": sensitivity[:, c] for c, name in enumerate(classes)}
    measures |= {f"specificity_{name}": specificity[:, c] for c, name in enumerate(classes)}
    return measures


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: Weights) -> NDArray[np.float64]:
    """Return the area under the ROC curve for each sample: P(positive above negative), ties count half.

    Returns
    -------
    ndarray, (B,) float64
        NaN where a sample holds only one class.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ups = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    downs = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs
    with np.errstate(invalid="ignore"):
        return np.asarray((ups * (below + downs / 2)).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1)))


def average_precision(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: Weights
) -> NDArray[np.float64]:
    """Return the average precision for each sample: the precision at every score, weighted by the recall it adds.

    Scores without information give the part of positives, not one half; equal scores are one step. Nothing is
    interpolated between the steps, which would be too hopeful (Davis 2006, doi:10.1145/1143844.1143874).

    Returns
    -------
    ndarray, (B,) float64
        NaN where a sample holds no positive or nothing else.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) < 0])
    ups = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    downs = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    hits = np.cumsum(ups, axis=1)
    called = hits + np.cumsum(downs, axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    both = (hits[:, -1] > 0) & (called[:, -1] > hits[:, -1])
    total = np.where(both, hits[:, -1], np.nan)
    return np.asarray((ups * precision).sum(axis=1) / total)


def brier(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], weights: Weights
) -> NDArray[np.float64]:
    """Return the Brier score, the squared error summed over classes (0 to 2), for each sample."""
    wanted = np.eye(probabilities.shape[1])[targets]
    error = ((probabilities - wanted) ** 2).sum(axis=1)
    return np.asarray(weights @ error / weights.sum(axis=1))


def expected_calibration_error(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], weights: Weights
) -> NDArray[np.float64]:
    """Return the mean gap between confidence and accuracy over ten bins of confidence, for each sample.

    References
    ----------
    Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == targets
    bins = np.eye(ECE_BINS)[np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)]
    gaps = weights @ (bins * (correct - confidence)[:, None])
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def proportion(hits: int, trials: int) -> Estimate:
    """Return a part of independent trials with its exact interval; all NaN without a trial.

    References
    ----------
    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    if not trials:
        return Estimate(value=np.nan, low=np.nan, high=np.nan)
    found = binomtest(hits, trials).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(value=hits / trials, low=float(found.low), high=float(found.high))


def estimate_of(values: NDArray[np.float64]) -> Estimate:
    """Return the estimate that a value and its bootstrap samples after it, (1 + B,), give; NaN samples are left out."""
    if values.size > 1 and np.isnan(values[1:]).all():
        return Estimate(value=float(values[0]), low=np.nan, high=np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values[1:], [tail, 1 - tail]) if values.size > 1 else (np.nan, np.nan)
    return Estimate(value=float(values[0]), low=float(low), high=float(high))
