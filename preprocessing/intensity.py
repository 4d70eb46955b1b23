"""Intensities that can be compared between scans: a linear map, fitted inside the brain mask.

Every method gives the same result for ``a * x + b`` as for ``x``, a > 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.config import IntensityConfig
from brainstage.pipeline.errors import IntensityError
from brainstage.pipeline.records import CorrectedBrain, Normalisation, NormalisedBrain
from brainstage.pipeline.volume import Volume

STAGE_VERSION: Final = "1"
_PERCENTILES: Final = (2.0, 98.0)
_STRIPE_QUANTILES: Final = (0.05, 0.05)
_HISTOGRAM_BINS: Final = 200


def normalise(corrected: CorrectedBrain, config: IntensityConfig) -> NormalisedBrain:
    """Return the stripped brain with comparable intensities, 0 outside the mask.

    Raises
    ------
    IntensityError
        When the brain has no contrast at all.
    """
    return apply_normalisation(corrected, fit_normalisation(corrected, config))


def fit_normalisation(corrected: CorrectedBrain, config: IntensityConfig) -> Normalisation:
    """Return centre and scale for the voxels inside the mask, in the units of the image."""
    values = corrected.head.data[corrected.brain_mask.data].astype(np.float64)
    if values.size == 0:
        raise IntensityError("the brain mask is empty")
    fit = {"zscore": _zscore, "percentile": _percentile, "whitestripe": _whitestripe}[config.method]
    centre, scale = fit(values)
    if not np.isfinite(scale) or scale <= 0:
        raise IntensityError(
            f"all intensities inside the brain mask are {centre:g}; the image has no contrast"
        )
    return Normalisation(method=config.method, centre=centre, scale=scale)


def apply_normalisation(corrected: CorrectedBrain, normalisation: Normalisation) -> NormalisedBrain:
    """Apply a fitted normalisation."""
    mask = corrected.brain_mask.data
    data = np.zeros(mask.shape, dtype=np.float32)
    data[mask] = (corrected.head.data[mask] - normalisation.centre) / normalisation.scale
    return NormalisedBrain(
        brain=Volume(data=data, voxel_to_ras=corrected.head.voxel_to_ras),
        brain_mask=corrected.brain_mask,
        normalisation=normalisation,
        corrected=corrected,
    )


def _zscore(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def _percentile(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, _PERCENTILES)
    return float(low), float(high - low)


def _whitestripe(values: NDArray[np.float64]) -> tuple[float, float]:
    """Centre on the white-matter peak: the highest mode in the upper half of the smoothed histogram."""
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        return float(low), 0.0
    counts, edges = np.histogram(values, bins=_HISTOGRAM_BINS, range=(low, high))
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 3.0) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    above = edges[:-1] >= np.median(values)
    peak = int(np.argmax(np.where(above, smooth, -1.0)))
    mode = 0.5 * (edges[peak] + edges[peak + 1])
    quantile = float((values < mode).mean())
    stripe_low, stripe_high = np.quantile(
        values, (max(0.0, quantile - _STRIPE_QUANTILES[0]), min(1.0, quantile + _STRIPE_QUANTILES[1]))
    )
    stripe = values[(values >= stripe_low) & (values <= stripe_high)]
    return float(mode), float(stripe.std())
