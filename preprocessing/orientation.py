"""How a head lies, found by trying: a lattice of orientations against the template on a coarse grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import Affine, BrainMask, Volume, inverse_of
from brainstage.preprocessing.resampling import interpolated, resampled
from brainstage.preprocessing.template import Template, load_template

SEARCH_SCALE: Final = (0.75, 1.45)
"""Sizes of a brain against the template's that are believed of a mask's volume."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Orientation:
    """One way to lay a brain on the template, and how well it fits.

    Attributes
    ----------
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm: a rotation with one scale, centres on each other.
    fit : float
        Pearson's correlation with the template over its whole field of view, on the coarse grid.
    """

    native_to_template: Affine
    fit: float


def best_orientations(
    brain: Volume,
    mask: BrainMask,
    *,
    grid_mm: float,
    step_deg: float,
    reach_deg: float = 60.0,
    count: int = 1,
) -> list[Orientation]:
    """Return the orientations that fit the template best, best first.

    Parameters
    ----------
    brain : Volume
        0 outside the mask.
    mask : BrainMask
    grid_mm : float
        Voxel size at which orientations are compared.
    step_deg, reach_deg : float
        Lattice of the three angles: from minus to plus `reach_deg`.
    count : int
    """
    template = load_template(2.0)
    target = _coarse_template(grid_mm)
    aim = _standardised(target.data)
    # Thinned before it is smoothed: a wide Gaussian over every voxel of a head takes seconds.
    thin = _thinned(brain, grid_mm / 4.0)
    small = resampled(thin, thin.grid.rescaled(grid_mm))
    grid = target.grid
    ratio = np.cbrt(template.brain_mask.volume_ml / max(mask.volume_ml, 1.0))
    start = centred_start(mask, template)
    pivot_mm = centre_mm(mask)
    angles = np.arange(-reach_deg, reach_deg + 1e-6, step_deg)
    turns_deg = list(itertools.product(angles, repeat=3))
    tried = []
    for rotation in Rotation.from_euler("xyz", turns_deg, degrees=True).as_matrix():
        turn = np.clip(ratio, *SEARCH_SCALE) * rotation
        matrix = np.eye(4)
        matrix[:3, :3] = turn
        matrix[:3, 3] = start[:3, 3] + pivot_mm - turn @ pivot_mm
        # Hundreds of times a call: without the checks that a Volume makes of itself.
        moved = interpolated(small.data, small.voxel_to_ras, grid, inverse_of(matrix))
        fit = float(np.mean(aim * _standardised(moved)))
        tried.append(Orientation(native_to_template=matrix, fit=fit))
    return sorted(tried, key=lambda orientation: -orientation.fit)[:count]


def centred_start(mask: BrainMask, template: Template) -> Affine:
    """Return the start that only shifts: both brains' centres on each other."""
    matrix = np.eye(4)
    matrix[:3, 3] = centre_mm(template.brain_mask) - centre_mm(mask)
    return matrix


def centre_mm(mask: BrainMask) -> NDArray[np.float64]:
    """Return the centre of a mask, RAS+ mm; that of the field of view when it is empty."""
    # From counts along the axes: to list the voxels of a brain takes ten times as long.
    columns = mask.data.sum(axis=2)
    along = (columns.sum(axis=1), columns.sum(axis=0), mask.data.sum(axis=(0, 1)))
    voxels = columns.sum()
    index = (
        [counts @ np.arange(len(counts)) / voxels for counts in along]
        if voxels
        else np.array(mask.data.shape) / 2
    )
    centre: NDArray[np.float64] = (mask.voxel_to_ras @ np.append(index, 1.0))[:3]
    return centre


def rotation_of(matrix: Affine) -> NDArray[np.float64]:
    """Return the rotation (3, 3) nearest to an affine."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rotation: NDArray[np.float64] = left @ right
    return rotation


def rotation_degrees_of(matrix: Affine) -> float:
    """Return the angle of the rotation nearest to an affine, degrees."""
    cosine = (np.trace(rotation_of(matrix)) - 1.0) / 2.0
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def correlation_inside(
    first: NDArray[np.float32], second: NDArray[np.float32], mask: NDArray[np.bool_]
) -> float:
    """Return Pearson's correlation of two volumes over a mask; 0 where one of them is flat."""
    a, b = first[mask].astype(np.float64), second[mask].astype(np.float64)
    if a.size == 0 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _standardised(data: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return values of mean 0 and deviation 1, or all 0 where they are flat."""
    values = data.astype(np.float64)
    values -= values.mean()
    deviation = float(np.sqrt(np.mean(values * values)))
    standardised: NDArray[np.float64] = values / deviation if deviation > 0 else values
    return standardised


def _thinned(volume: Volume, spacing_mm: float) -> Volume:
    """Return every n-th voxel, about `spacing_mm` apart."""
    strides = [max(1, round(spacing_mm / spacing)) for spacing in volume.spacing_mm]
    sampled = volume.data[tuple(slice(None, None, stride) for stride in strides)]
    return Volume(data=sampled, voxel_to_ras=volume.voxel_to_ras @ np.diag([*strides, 1.0]))


@cache
def _coarse_template(grid_mm: float) -> Volume:
    template = load_template(2.0)
    return resampled(template.t1w, template.grid.rescaled(grid_mm))
