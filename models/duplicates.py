"""The same picture under two names: found by how alike the voxels of scans are.

A person who stands on two sides of a fold makes a model look better than it is, and so does a person with two
participant ids: a data set pooled from two sources, a copy re-saved or resampled, a header whose left and right were
exchanged. The pictures are the baseline's blocks of voxels, in template space, so that position, voxel size and the
scale of intensities are gone already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_CORRELATION: Final = 0.85
MIN_BEYOND_AVERAGE: Final = 0.6
"""Two scans are one picture when their correlation reaches the first bound, and what is left of it without the average
picture of the cohort reaches the second.

Measured at 4 mm: 54 adults reach at most 0.72 and 0.28 with each other (1431 pairs), 23 synthetic heads made of one
template 0.79 and 0.28. Copies of one scan, each preprocessed anew, reach at least: re-saved 1.00 and 1.00; resampled to
1.3 mm 0.99 and 0.96; turned by 6 degrees and scaled 0.985 and 0.94; with noise of 8 % of white matter 0.98 and 0.93;
the noisy against the turned one 0.945 and 0.82; mirrored 0.98 and 0.82. The same person on another day reaches 0.99 and
0.97. The bounds lie between. The first keeps apart scans that differ from all others in the same way, such as another
contrast; the second keeps apart brains that owe their likeness to the template.
"""
_COMMON_PART: Final = 0.9
"""A voxel is compared when it is brain in at least this part of the scans."""
_ROWS: Final = 512
"""Scans compared with all others at a time: 20 MB for each thousand scans of a cohort."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """Two scans of different participants that are nearly the same picture.

    Attributes
    ----------
    first, second : int
        Their places among the scans given.
    correlation : float
        Over the voxels that are brain in most scans.
    beyond_average : float
        The same after the average picture of all scans was taken from both.
    mirrored : bool
        One is the other's mirror image: left and right were exchanged.
    """

    first: int
    second: int
    correlation: float
    beyond_average: float
    mirrored: bool


def near_duplicates(
    voxels: Sequence[NDArray[np.float32]],
    inside: Sequence[NDArray[np.bool_]],
    shape: tuple[int, int, int],
    participants: Sequence[str],
) -> tuple[NearDuplicate, ...]:
    """Compare every scan with those of all other participants.

    Ten thousand scans take one array of their voxels (1.2 GB at 4 mm) and some minutes.

    Parameters
    ----------
    voxels : sequence of ndarray, (V,) float32
        Of each scan, in template space, first axis from left to right.
    inside : sequence of ndarray, (V,) bool
        Which of them are brain.
    shape : tuple of int
        Of the grid that the V voxels were before they were made flat; its middle is the template's.
    participants : sequence of str

    Returns
    -------
    tuple of NearDuplicate
        By their places. Scans of one participant are never in it.
    """
    used = np.mean(inside, axis=0) >= _COMMON_PART
    used &= _mirrored(used, shape)
    if not used.any():
        return ()
    places = np.full(used.size, -1)
    places[used] = np.arange(used.sum())
    mirror = _mirrored(places, shape)[used]
    pictures = _standardised(voxels, used)
    names = np.asarray(participants)
    average = pictures.mean(axis=0)
    turned = {False: average, True: average[mirror]}
    along = {mirrored: pictures @ turned[mirrored] for mirrored in turned}
    rest = np.sqrt(np.maximum(1.0 - 2.0 * along[False] + average @ average, 1e-6))
    found = []
    for start in range(0, len(pictures), _ROWS):
        rows, others = pictures[start : start + _ROWS], pictures[start:]
        upper = np.arange(len(rows))[:, None] < np.arange(len(others))[None]
        upper &= names[start : start + _ROWS, None] != names[None, start:]
        for mirrored in (False, True):
            correlation = (rows[:, mirror] if mirrored else rows) @ others.T
            # (x - a) (y - a) of pictures x and y and their average a, multiplied out: no second array of pictures
            shared = along[mirrored]
            left = correlation - shared[start : start + _ROWS, None] - shared[None, start:]
            left = (left + turned[mirrored] @ average) / (
                rest[start : start + _ROWS, None] * rest[None, start:]
            )
            alike = upper & (correlation >= MIN_CORRELATION) & (left >= MIN_BEYOND_AVERAGE)
            found += [
                NearDuplicate(
                    first=start + int(i),
                    second=start + int(j),
                    correlation=min(1.0, float(correlation[i, j])),
                    beyond_average=min(1.0, float(left[i, j])),
                    mirrored=mirrored,
                )
                for i, j in zip(*np.nonzero(alike), strict=True)
            ]
    return tuple(sorted(found, key=lambda pair: (pair.first, pair.second, pair.mirrored)))


def same_person(participants: Sequence[str], pairs: Iterable[NearDuplicate]) -> dict[str, str]:
    """Return the name that stands for each participant: one for all who are connected by pairs.

    >>> pair = NearDuplicate(first=0, second=2, correlation=1, beyond_average=1, mirrored=False)
    >>> same_person(["sub-02", "sub-03", "sub-01"], [pair])
    {'sub-02': 'sub-01', 'sub-03': 'sub-03', 'sub-01': 'sub-01'}
    """
    stands_for = {name: name for name in participants}
    for pair in pairs:
        joined = {stands_for[participants[pair.first]], stands_for[participants[pair.second]]}
        stands_for = {name: min(joined) if root in joined else root for name, root in stands_for.items()}
    return stands_for


def _mirrored(values: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
    return values.reshape(shape)[::-1].ravel()


def _standardised(voxels: Sequence[NDArray[np.float32]], used: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the used voxels of each scan with mean 0 and length 1, so that a product is a correlation."""
    pictures = np.empty((len(voxels), int(used.sum())), dtype=np.float32)
    for row, values in zip(pictures, voxels, strict=True):
        row[:] = values[used]
        row -= row.mean()
        row /= max(float(np.linalg.norm(row)), 1e-12)
    return pictures
