"""Intensities as the chain expects them: a dark background at 0 and a head above it.

Scanners give magnitudes, which are never negative. Negative values come from converters (an integer that was too
small for the brightest tissue), from tools (z-scores, an offset as in CT, NaN for "no brain") and from sequences
(MP2RAGE runs from -0.5 to 0.5). Each is undone where it can be told what it was; what is a few voxels of ringing
stays as it is.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Single = NDArray[np.float32]

CONSTANT_BORDER: Final = 0.90
"""Share of the outermost voxels that hold one value where a background was set to it."""
ONE_PIECE: Final = 0.90
"""Share of what is inside a background that is connected: a brain or a head, with crumbs."""
UNDERSHOOT: Final = 0.05
"""Of the range of intensities: interpolation and filters go that far below a dark background, and no further."""
BELOW_BACKGROUND: Final = 0.05
"""Share of the voxels inside that have to lie below a background of one value, and as many above it, before it is
taken for the middle of z-scores."""
NEGATIVE: Final = 0.02
"""Share of all voxels that have to lie clearly below 0 where the border says nothing."""
PADDING_GAP: Final = 0.5
"""Of the range of all else: a border so far below it is padding, not air."""
DARK: Final = 0.25
"""Of the range: air is even, and lies at its lower end."""
INT16_SPAN: Final = 2.0**16
WRAPPED_GAIN: Final = 0.5
"""Unwrapping is believed when it leaves less than this of the steps between the voxels concerned and others."""
LIFTED: Final = 0.01
"""Of the range: how far the darkest voxel of a brain is put above a background of 0, so that it is no background."""


def nan_background(data: Single) -> NDArray[np.bool_] | None:
    """Return the voxels that are background because they are not finite; None where NaN is no background.

    SPM and others write NaN around a brain. It then fills the border of the image, and what is finite is one piece.

    Parameters
    ----------
    data : ndarray, (I, J, K) float32
    """
    outside = ~np.isfinite(data)
    if _faces(outside).mean() < CONSTANT_BORDER:
        return None
    labels, count = ndimage.label(~outside)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < ONE_PIECE * sizes.sum():
        return None
    pieces, _ = ndimage.label(outside)
    at_border = np.unique(_faces(pieces))
    background: NDArray[np.bool_] = np.isin(pieces, at_border[at_border > 0])
    return background


def unwrapped(data: Single, span: float | None) -> tuple[Single, int]:
    """Undo the overflow of a signed integer: dark holes in the brightest tissue.

    Parameters
    ----------
    data : ndarray, (I, J, K) float32
    span : float or None
        Number of values of the integer type that the file stores, times the file's scale; None for other types, of
        which only whole numbers within 16 bits are looked at.

    Returns
    -------
    ndarray, (I, J, K) float32
    int
        Number of voxels that were raised by `span`; 0 where nothing was wrapped.
    """
    low, high = float(data.min()), float(data.max())
    if (
        span is None
        and low >= -INT16_SPAN / 2
        and high < INT16_SPAN / 2
        and np.array_equal(data, np.rint(data))
    ):
        span = INT16_SPAN
    if span is None or low > -span / 16 or high < span / 4:
        return data, 0
    dark = data < -span / 16
    raised = np.where(dark, data + np.float32(span), data)
    before, after = _steps_at(data, dark), _steps_at(raised, dark)
    return (raised, int(dark.sum())) if after < WRAPPED_GAIN * before else (data, 0)


def raised(data: Single, background: NDArray[np.bool_] | None = None) -> tuple[Single, float]:
    """Shift intensities so that the background is 0 and the head lies above it.

    Parameters
    ----------
    data : ndarray, (I, J, K) float32
        Finite.
    background : ndarray, (I, J, K) bool, optional
        Where it is known to be.

    Returns
    -------
    ndarray, (I, J, K) float32
        The same array where nothing has to be done.
    float
        What was added to the head; 0 where nothing was done.
    """
    if float(data.min()) >= 0:
        return data, 0.0
    if background is not None:
        return _lifted(data, ~background)
    border, constant = border_value(data)
    if constant:
        inside = data != np.float32(border)
        if not inside.any():
            return data, 0.0
        reach = _range_of(data[inside])
        below, above = (np.count_nonzero(s * (data - border) > UNDERSHOOT * reach) for s in (-1, 1))
        if min(below, above) > BELOW_BACKGROUND * np.count_nonzero(inside):
            return _lifted(data, inside)
        if float(np.percentile(data[inside], 0.1)) - border > PADDING_GAP * reach:
            return _lifted(data, inside) if border < 0 else (data, 0.0)
    lowest, highest = (float(edge) for edge in np.percentile(data, (0.1, 99.9)))
    reach = highest - lowest
    even = float(np.ptp(np.percentile(_faces(data), (25, 75)))) < DARK * reach
    if even and border < -UNDERSHOOT / 2 * reach and border - lowest < DARK * reach:
        return data - np.float32(border), -border
    if highest > 0 and np.count_nonzero(data < -UNDERSHOOT * reach) > NEGATIVE * data.size:
        return data - np.float32(lowest), -lowest
    return data, 0.0  # a few voxels of ringing, or nothing that a shift makes a T1w scan of


def _lifted(data: Single, inside: NDArray[np.bool_]) -> tuple[Single, float]:
    """Return what is inside above 0, and 0 outside."""
    values = data[inside]
    low = float(values.min())
    by = LIFTED * _range_of(values) - low if low <= 0 else 0.0
    return np.where(inside, data + np.float32(by), np.float32(0.0)), by


def _range_of(values: Single) -> float:
    low, high = np.percentile(values, (0.1, 99.9))
    return float(high - low)


def border_value(data: Single) -> tuple[float, bool]:
    """Return the value of the outermost voxels, and whether nearly all of them hold it; their median otherwise.

    Parameters
    ----------
    data : ndarray, (I, J, K) float32
    """
    faces = _faces(data)
    values, counts = np.unique(faces, return_counts=True)
    most = int(counts.argmax())
    if counts[most] >= CONSTANT_BORDER * faces.size:
        return float(values[most]), True
    return float(np.median(faces)), False


def _faces(data: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost voxels; those of edges and corners more than once."""
    return np.concatenate([np.take(data, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)])


def _steps_at(data: Single, where: NDArray[np.bool_]) -> float:
    """Return the sum of the steps between neighbours of which at least one is among `where`."""
    total = 0.0
    for axis in range(3):
        first = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        concerned = where[first] | where[second]
        total += float(np.abs(data[second][concerned] - data[first][concerned]).sum(dtype=np.float64))
    return total
