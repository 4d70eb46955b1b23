"""Temperature scaling: one number that makes probabilities mean what they say."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

PRIOR_SD: Final = 0.25
"""Of the logarithm of a temperature: within a factor of 1.6 in 95 of 100 models. Hundreds of scans overrule it."""
BOUNDS: Final = (0.05, 20.0)
"""Outside, a fold's logits are noise or separate the classes perfectly, and the optimum runs away."""


def negative_log_likelihood(
    logits: NDArray[np.float64], targets: NDArray[np.int64], temperature: float = 1.0
) -> float:
    """Return the mean negative log-likelihood in nats of ``softmax(logits / temperature)``."""
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(targets)), targets].mean())


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Return the temperature that suits logits the model was not trained on.

    It minimises the cross-entropy against targets softened as if one more scan of each class had been seen
    (Platt's rule): a few scans that happen to be separated perfectly do not make the model certain. The logarithm of
    the temperature is drawn to 0 as by a normal prior of ``PRIOR_SD``: a few scans that happen to be predicted wrongly
    do not take all of a model's certainty.

    Parameters
    ----------
    logits : ndarray, (N, C) float64
        Out of fold.
    targets : ndarray, (N,) int64

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", arXiv 1706.04599. Platt 1999, "Probabilistic outputs
    for support vector machines".
    """
    from scipy.optimize import minimize_scalar  # heavy, and predictions do without

    low, high = np.log(BOUNDS)
    softened = _softened(targets, logits.shape[1])
    found = minimize_scalar(
        lambda log_t: (
            (log_t / PRIOR_SD) ** 2 / 2
            - float((softened * log_softmax(logits / np.exp(log_t), axis=1)).sum())
        ),
        bounds=(low, high),
        method="bounded",
    )
    best = float(np.exp(found.x))
    # never worse than leaving the logits alone
    improved = negative_log_likelihood(logits, targets, best) < negative_log_likelihood(logits, targets)
    return best if improved else 1.0


def _softened(targets: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return target probabilities (N, C): ``(n_c + 1) / (n_c + C)`` for the true class c, the rest shared."""
    counts = np.bincount(targets, minlength=classes)[targets][:, None]
    return np.asarray((np.eye(classes)[targets] * counts + 1.0) / (counts + classes))


def calibrated(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (N, C) that sum to 1 in each row."""
    return np.asarray(softmax(logits / temperature, axis=1), dtype=np.float64)


def cross_calibrated(
    logits: NDArray[np.float64], targets: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Calibrate each fold with the temperature of the others, for evaluation.

    No scan's own label has a part in its probabilities.

    Returns
    -------
    ndarray, (N, C) float64
    """
    probabilities = np.empty_like(logits)
    for fold in np.unique(folds):
        own = folds == fold
        probabilities[own] = calibrated(logits[own], fit_temperature(logits[~own], targets[~own]))
    return probabilities
