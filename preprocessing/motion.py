"""Head motion: whether the spatial frequencies of a brain lie on each other.

A scanner samples k-space line after line along its slow phase-encoding axis: each band of spatial frequency along
that axis is seen at its own time. In a still head the edges of every band lie on those of the others, whatever the
anatomy, the age, the noise, the contrast and the voxel size. In a head that moved in between, they lie apart.

Along each axis, the envelope (local amplitude) of one band is fitted by that of a lower one, shifted and turned. No
air and no skull are needed. Even in a still head the fitted shifts are not zero: a fold has an inner and an outer edge
that weigh differently in each band, by up to 0.2 mm and much alike in all people. What counts is therefore how far the
shifts and turns lie from those of still heads, given how these vary (``still_heads.json``, made by
``benchmarks/motion.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.registration import box_of

MEASURED_AT_MM: Final = 2.0
"""One grid, so that one bound serves every voxel size."""
LIKE_THAT: Final = (0.85, 1.15)
"""Voxels of so many times that size stay as they are."""
THICKEST_MM: Final = 2.6
BANDS: Final = (0.12, 0.19, 0.26, 0.33, 0.40)
"""Their centres, in cycles a voxel of the grid."""
PAIRS: Final = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (1, 3), (2, 4))
"""Which bands are compared, the lower one first."""
ENVELOPE_SD_VOXELS: Final = 2.0
SMOOTHING_SD_VOXELS: Final = 1.0
FIELD_SD_MM: Final = 10.0
EDGE_MM: Final = 5.0
"""So far inside the mask, its cut edge hardly reaches the filters."""
MARGIN_MM: Final = 5.0
BRIGHTEST: Final = 2.5
"""Times the tissue around; vessels are no brighter than this."""
LEAST_VOXELS: Final = 5000
LEAST_AMPLITUDE: Final = 1e-3
RIDGE: Final = 1e-6
SHRINKAGE: Final = 0.25
"""Of the correlations between shifts towards none: there are more of these than people to learn them from."""
NORMS_FILE: Final = "still_heads.json"

Values = NDArray[np.float64]
Image = NDArray[np.float32]


def band_misregistration(head: Volume, brain_mask: BrainMask) -> float | None:
    """Return how far the bands of spatial frequency of a brain lie apart, along its worst axis.

    Parameters
    ----------
    head : Volume
        RAS, native space; stripped or whole, bias-corrected or not.
    brain_mask : BrainMask

    Returns
    -------
    float or None
        Mahalanobis distance from still heads over the root of the number of shifts and turns: 1 is usual of them. It
        says that bands lie apart, not how bad the scan is: for the largest moves it grows no further. None where
        voxels are thicker than 2.6 mm or the mask is too small.
    """
    shifts = band_shifts(head, brain_mask)
    return None if shifts is None else distance_from_still(shifts, _still_heads())


def band_shifts(head: Volume, brain_mask: BrainMask) -> Values | None:
    """Return the rigid motions between bands, as fitted, whatever those of still heads are.

    Parameters
    ----------
    head, brain_mask
        As of :func:`band_misregistration`.

    Returns
    -------
    ndarray, (3, 7, 6), or None
        For each axis of the bands and each of :data:`PAIRS`, shifts along the three axes of the image in mm, then
        turns about them in degrees.
    """
    measurable = _measurable_brain(head, brain_mask)
    if measurable is None:
        return None
    brain, inside, spacing_mm = measurable
    place_mm = np.argwhere(inside) * spacing_mm
    place_mm -= place_mm.mean(axis=0)
    return np.stack([_shifts_along(brain, inside, place_mm, spacing_mm, axis) for axis in range(3)])


def gradient_entropy(head: Volume, brain_mask: BrainMask) -> float | None:
    """Return the entropy of gradient magnitudes inside a brain, 1 where they are the same everywhere.

    Ringing and ghosts fill flat tissue with gradients. Among scans of one protocol the entropy ranks well; noise, voxel
    size, contrast and atrophy shift it, so that no bound carries over from one protocol to another.

    Parameters
    ----------
    head, brain_mask
        As of :func:`band_misregistration`.

    Returns
    -------
    float or None
        None as of :func:`band_misregistration`.

    Notes
    -----
    Loktyushin, Nickisch, Pohmann and Schoelkopf 2013, 10.1002/mrm.24615, who correct motion by it.
    """
    measurable = _measurable_brain(head, brain_mask)
    if measurable is None:
        return None
    brain, inside, spacing_mm = measurable
    slopes = (np.diff(brain, axis=axis, append=0.0) / spacing_mm[axis] for axis in range(3))
    size = np.sqrt(sum(np.square(slope[inside]) for slope in slopes), dtype=np.float64)
    share = size[size > 0] / size.sum()
    return float(-(share * np.log(share)).sum() / np.log(share.size))


def _shifts_along(
    brain: Image, inside: NDArray[np.bool_], place_mm: Values, spacing_mm: Values, axis: int
) -> Values:
    """Return the fitted shifts and turns, (7, 6), between the bands along one axis."""
    envelopes = [_envelope(brain, axis, centre) for centre in BANDS]
    found = np.zeros((len(PAIRS), 6))
    for lower in sorted({pair[0] for pair in PAIRS}):
        slope = np.stack(
            [np.gradient(envelopes[lower], spacing_mm[a], axis=a)[inside] for a in range(3)], axis=1
        )
        turning = np.cross(place_mm, slope) * (np.pi / 180.0)
        columns = np.column_stack([slope, turning, envelopes[lower][inside], np.ones(len(place_mm))])
        columns = columns.astype(np.float64)
        scale = np.sqrt(np.square(columns).mean(axis=0)) + 1e-9
        columns /= scale
        normal = columns.T @ columns / len(columns) + RIDGE * np.eye(columns.shape[1])
        for number, (first, second) in enumerate(PAIRS):
            if first == lower:
                projected = columns.T @ envelopes[second][inside].astype(np.float64) / len(columns)
                fitted = np.linalg.solve(normal, projected) / scale
                found[number] = fitted[:6] / max(fitted[6], LEAST_AMPLITUDE)
    return found


def _envelope(brain: Image, axis: int, centre: float) -> Image:
    """Return the cube root of the local amplitude of one band of frequencies along an axis (a quadrature pair).

    The root keeps a few strong edges from outweighing all others.
    """
    reach = int(np.ceil(3.0 * ENVELOPE_SD_VOXELS))
    x = np.arange(-reach, reach + 1)
    window = np.exp(-(x**2) / (2.0 * ENVELOPE_SD_VOXELS**2))
    window /= window.sum()
    even = window * np.cos(2.0 * np.pi * centre * x)
    even -= window * even.sum()
    odd = window * np.sin(2.0 * np.pi * centre * x)
    amplitude = np.hypot(
        *(ndimage.correlate1d(brain, part.astype(np.float32), axis=axis) for part in (even, odd))
    )
    root: Image = np.cbrt(ndimage.gaussian_filter(amplitude, SMOOTHING_SD_VOXELS))
    return root


def _measurable_brain(head: Volume, brain_mask: BrainMask) -> tuple[Image, NDArray[np.bool_], Values] | None:
    """Return the brain of :func:`_brain_at_2mm`; None where voxels are too thick or the mask is too small."""
    if max(head.spacing_mm) > THICKEST_MM or not brain_mask.data.any():
        return None
    found = _brain_at_2mm(head, brain_mask)
    return found if int(found[1].sum()) >= LEAST_VOXELS else None


def _brain_at_2mm(head: Volume, brain_mask: BrainMask) -> tuple[Image, NDArray[np.bool_], Values]:
    """Return the brain on a grid of about 2 mm, even in brightness; where it is deep enough; the grid's voxels."""
    spacing_mm = np.array(head.spacing_mm)
    box = box_of(brain_mask.data, [int(np.ceil(MARGIN_MM / spacing)) for spacing in head.spacing_mm])
    image, mask = head.data[box], brain_mask.data[box]
    low, high = (MEASURED_AT_MM * share for share in LIKE_THAT)
    if spacing_mm.max() > high or spacing_mm.min() < low:
        image, inside = (_resampled(part, spacing_mm) for part in (image, mask.astype(np.float32)))
        mask, spacing_mm = inside > 0.5, np.full(3, MEASURED_AT_MM)
    depth_mm = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return _even(image, mask, spacing_mm), depth_mm > EDGE_MM, spacing_mm


def _resampled(image: Image, spacing_mm: Values) -> Image:
    """Return an image on cubes of 2 mm, smoothed where they are larger than its voxels."""
    factor = MEASURED_AT_MM / spacing_mm
    smooth = ndimage.gaussian_filter(image, np.where(factor > 1.05, 0.42 * factor, 0.0))
    at = [(np.arange(int(n / f)) + 0.5) * f - 0.5 for n, f in zip(image.shape, factor, strict=True)]
    moved: Image = ndimage.map_coordinates(smooth, np.meshgrid(*at, indexing="ij"), order=1)
    return moved


def _even(image: Image, mask: NDArray[np.bool_], spacing_mm: Values) -> Image:
    """Divide a brain by the brightness of the brighter tissue around each voxel; 0 outside the mask."""

    def around(weight: Image) -> Image:
        total, count = (
            ndimage.gaussian_filter(x, FIELD_SD_MM / spacing_mm, truncate=2.5)
            for x in (image * weight, weight)
        )
        mean: Image = total / (count + np.float32(1e-4))
        return mean

    inside = mask.astype(np.float32)
    mean = around(inside)
    bright = around(inside * (image > mean) * (image < 2.0 * mean))
    bright = np.maximum(bright, 0.05 * np.median(bright[mask]))
    return np.where(mask, np.minimum(image / bright, BRIGHTEST), 0.0).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class StillHeads:
    """What is usual of :func:`band_shifts` in heads that did not move.

    Attributes
    ----------
    mean, sd : ndarray, (3, 42)
        For each axis of the bands, over the pairs and their shifts and turns.
    correlation : ndarray, (3, 42, 42)
        Shrunk.
    """

    mean: Values
    sd: Values
    correlation: Values


def distance_from_still(shifts: Values, still: StillHeads) -> float:
    """Return how far shifts lie from those of still heads, along the worst axis; see :func:`band_misregistration`."""
    apart = (shifts.reshape(3, -1) - still.mean) / still.sd
    weighted = np.linalg.solve(still.correlation, apart[:, :, np.newaxis])[:, :, 0]
    return float(np.sqrt((apart * weighted).mean(axis=1).max()))


def still_heads_of(shifts: Sequence[Values], groups: Sequence[str]) -> StillHeads:
    """Return what is usual of still heads, each dataset weighing as the root of its number of heads.

    Shifts from left to right and the turns that go with them are 0 on average, for heads are symmetric.

    Parameters
    ----------
    shifts : sequence of ndarray, (3, 7, 6)
        Of each head.
    groups : sequence of str
        The dataset of each head.
    """
    values = np.stack(shifts)
    weights = np.array([1.0 / np.sqrt(groups.count(group)) for group in groups])
    mean = np.average(values, axis=0, weights=weights)
    mean[:, :, [0, 4, 5]] = 0.0
    sd = np.sqrt(np.average(np.square(values - mean), axis=0, weights=weights))
    apart = ((values - mean) / sd).reshape(len(values), 3, -1)
    correlation = np.einsum("n,nai,naj->aij", weights / weights.sum(), apart, apart)
    shrunk = (1.0 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(correlation.shape[1])
    return StillHeads(mean=mean.reshape(3, -1), sd=sd.reshape(3, -1), correlation=shrunk)


@cache
def _still_heads() -> StillHeads:
    norms = json.loads((files("brainstage.preprocessing") / NORMS_FILE).read_text(encoding="utf-8"))
    return StillHeads(
        **{name: np.array(norms[name], dtype=np.float64) for name in ("mean", "sd", "correlation")}
    )
