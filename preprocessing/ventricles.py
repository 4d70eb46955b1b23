"""How large the lateral ventricles of a brain are, measured in native space without a threshold.

Fluid is measured on the scan's own voxels, which no registration moves; the template says where the ventricles may
be. Fluid counts by how much tissue lies between it and the template's ventricles: a wall counts against it by its
thickness and its brightness, so that a thin one that opens or closes changes little. All weights are continuous. A
registration that moves by a tenth of a millimetre, as it does from one processor to another, moves the result by a
few thousandths, and a connected component would jump by a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.records import CorrectedBrain
from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume, inverse_of
from brainstage.preprocessing.regions import ventricle_fluid, ventricle_surroundings
from brainstage.preprocessing.registration import box_of
from brainstage.preprocessing.resampling import box_holding, interpolated, placed, resampled
from brainstage.preprocessing.template import load_template

ATLAS_MM: Final = 1.0
TISSUE_MM: Final = 2.0
FINEST_MM: Final = 1.0
"""Smaller voxels are averaged to this size first: nothing is gained from them, and time is lost."""
SEARCH_MM: Final = 5.0
"""Around the boxes of the template's ventricles. Of the widest ventricles measured (126 ml), 78 % lie in the boxes and
93 % within 4 mm of them; 8 mm let in the Sylvian fissure."""
THIRD_VENTRICLE: Final = (9.0, (-62.0, 12.0), 3.0)
"""Largest distance from the midplane, range of y and largest z, template mm, of what the search leaves out."""
EDGE_SIGMA_MM: Final = 1.5
PRIOR_SIGMA_MM: Final = 1.0
CERTAIN_PRIOR: Final = 0.5
"""From here on tissue costs nothing on the way: in most people it is fluid."""
START_PRIOR: Final = 0.7
FREE_WALL_MM: Final = 0.25
LONGEST_WALL_MM: Final = 1.0
"""Of tissue between fluid and the ventricles: up to the first it counts in full, beyond the second not at all."""
COST_OF_FLUID: Final = 0.02
"""Of a millimetre of tissue: far fluid is as good as near fluid, but not for ever."""
FLUID_RAMP: Final = (0.2, 0.8)
"""On the scale from deep grey matter (0) to the darkest fluid (1): around the half, where a boundary is drawn by hand,
and soft enough for mixed voxels."""
DARKEST_PERCENTILE: Final = 10.0
FLUID_UP_TO: Final = 0.4
"""Of the way from the darkest fluid to deep grey matter: what is brighter in narrow ventricles is mixed or tissue."""
CORE_TISSUE: Final = (0.85, 0.97)
"""Template probability of grey and of white matter from which a voxel has that tissue in nearly everybody."""
BRIGHTEST_PERCENTILE: Final = 90.0
TISSUE_FROM: Final = 0.35
"""Of the way from the darkest fluid to the brightest of deep white matter: what is darker is no tissue. Where
ventricles take an eighth of the brain, fluid fills most places of deep white matter."""
CORE_DEPTH_MM: Final = 16.0
"""Below the surface of the brain: thalamus, putamen and the white matter around them, what ventricles border on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prior:
    """Where to look, in template space.

    Attributes
    ----------
    ventricles, search : Volume
        Softened masks, 0 to 1: the template's ventricles, and where a person's may be.
    corners_mm : ndarray, (3, 8)
        Of the box of `search`, RAS mm.
    inside_mm, grey_mm, white_mm : ndarray, (3, N)
        Places in the template's ventricles, in deep grey and in deep white matter.
    """

    ventricles: Volume
    search: Volume
    corners_mm: NDArray[np.float64]
    inside_mm: NDArray[np.float64]
    grey_mm: NDArray[np.float64]
    white_mm: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DeepLevels:
    """Intensities in the middle of a brain.

    Attributes
    ----------
    darkest, fluid : float
        In the ventricles: the darkest fluid, and the mean of what is not mixed with tissue.
    grey, white : float
        Medians of deep grey and of deep white matter.
    """

    darkest: float
    fluid: float
    grey: float
    white: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Ventricles:
    """The lateral ventricles with their temporal horns.

    Attributes
    ----------
    fractions : Volume
        As of :func:`ventricle_fractions`.
    left : ndarray, (I, J, K) bool
        On the same grid: which voxels are on the person's left; all others are on the right.
    """

    fractions: Volume
    left: NDArray[np.bool_]

    @property
    def left_ml(self) -> float:
        """Volume of the left ventricle, millilitres."""
        return self._volume_ml(self.left)

    @property
    def right_ml(self) -> float:
        """Volume of the right ventricle, millilitres."""
        return self._volume_ml(~self.left)

    def _volume_ml(self, side: NDArray[np.bool_]) -> float:
        mm3 = self.fractions.grid.voxel_volume_mm3
        return float(self.fractions.data[side].sum(dtype=np.float64)) * mm3 / 1000.0

    def on(self, grid: Grid) -> NDArray[np.int8]:
        """Return labels (I, J, K) on another native grid: 1 left, 2 right, 0 where less than half is ventricle."""
        left, right = (
            placed(self.fractions.with_data(np.where(side, self.fractions.data, np.float32(0))), grid)
            for side in (self.left, ~self.left)
        )
        return np.where(left + right < 0.5, 0, np.where(left >= right, 1, 2)).astype(np.int8)


def ventricle_share(corrected: CorrectedBrain, native_to_template: Affine) -> float | None:
    """Return the lateral ventricles with their temporal horns over the brain mask, per cent.

    Parameters
    ----------
    corrected : CorrectedBrain
        The bias-corrected head and its brain mask, native space.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    float or None
        None where fluid is not darker than grey matter and that not darker than white matter, or where the brain
        lies beside the template.
    """
    found = _ventricles(corrected.head, corrected.brain_mask, native_to_template)
    if found is None:
        return None
    fractions, grid = found
    volume_ml = float(fractions.sum(dtype=np.float64)) * grid.voxel_volume_mm3 / 1000.0
    return float(f"{100.0 * volume_ml / corrected.brain_mask.volume_ml:.6g}")


def ventricle_fractions(head: Volume, brain_mask: BrainMask, native_to_template: Affine) -> Volume | None:
    """Return how much of each voxel is fluid of the lateral ventricles, 0 to 1: what :func:`ventricle_share` adds up.

    Parameters
    ----------
    head : Volume
        Native space, bias-corrected or nearly so.
    brain_mask : BrainMask
        On the same grid.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    Volume or None
        On the part of the head's grid where ventricles may be, in voxels of :data:`FINEST_MM` at least. None as of
        :func:`ventricle_share`.
    """
    found = _ventricles(head, brain_mask, native_to_template)
    return (
        None
        if found is None
        else Volume(data=found[0].astype(np.float32), voxel_to_ras=found[1].voxel_to_ras)
    )


def lateral_ventricles(head: Volume, brain_mask: BrainMask, native_to_template: Affine) -> Ventricles | None:
    """Return the lateral ventricles with their temporal horns, and which of their fluid is left and which right.

    Divided by the template's midplane, carried over by the affine: in twenty brains with very different ventricles,
    it has 0.4 % of their labelled voxels on the other side, 1.5 % at most. To look for the septum finds other clefts
    where ventricles are narrow.

    Parameters
    ----------
    head : Volume
        Native space, bias-corrected or nearly so.
    brain_mask : BrainMask
        On the same grid.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    Ventricles or None
        None as of :func:`ventricle_share`.
    """
    fractions = ventricle_fractions(head, brain_mask, native_to_template)
    if fractions is None:
        return None
    to_template = native_to_template @ fractions.voxel_to_ras
    i, j, k = np.ogrid[tuple(slice(n) for n in fractions.shape)]
    x_mm = to_template[0, 0] * i + to_template[0, 1] * j + to_template[0, 2] * k + to_template[0, 3]
    return Ventricles(fractions=fractions, left=x_mm <= 0)


def deep_levels(head: Volume, native_to_template: Affine) -> DeepLevels | None:
    """Return the levels of fluid in the ventricles and of grey and white matter around them.

    Parameters
    ----------
    head : Volume
        Native space, bias-corrected or nearly so.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    DeepLevels or None
        None where fluid is not darker than grey matter and that not darker than white matter, or where the brain
        lies beside the template.
    """
    return _levels(head, native_to_template, _prior())


def _ventricles(
    head: Volume, mask: BrainMask, native_to_template: Affine
) -> tuple[NDArray[np.float64], Grid] | None:
    """Return the fractions of :func:`ventricle_fractions` and the grid that they stand on."""
    prior = _prior()
    to_index = inverse_of(head.voxel_to_ras) @ inverse_of(native_to_template)
    box = box_holding(prior.corners_mm, to_index, head.shape)
    if box is None or not mask.data.any():
        return None
    levels = _levels(head, native_to_template, prior)
    if levels is None:
        return None
    part = head.grid.part(box)
    depth = (levels.grey - head.data[box]) / (levels.grey - levels.darkest)
    low, high = FLUID_RAMP
    fluid = Volume(
        data=np.where(mask.data[box], np.clip((depth - low) / (high - low), 0.0, 1.0), 0.0),
        voxel_to_ras=part.voxel_to_ras,
    )
    if min(part.spacing_mm) < FINEST_MM:
        fluid = resampled(fluid, part.rescaled(FINEST_MM))
    return _of_the_ventricles(fluid, native_to_template, prior), fluid.grid


def _of_the_ventricles(fluid: Volume, native_to_template: Affine, prior: _Prior) -> NDArray[np.float64]:
    """Return the fluid that belongs to the ventricles, each voxel by its weight."""
    inside = _at(prior.ventricles, fluid.grid, native_to_template)
    allowed = np.clip(2.0 * _at(prior.search, fluid.grid, native_to_template) - 0.5, 0.0, 1.0)
    start = np.argwhere(inside > START_PRIOR)
    if not len(start):
        return np.zeros(fluid.shape)
    wall = (1.0 - fluid.data) * (1.0 - np.clip(inside / CERTAIN_PRIOR, 0.0, 1.0))
    wall_mm = _least_wall_mm(wall, start, fluid.spacing_mm)
    weight = np.clip((LONGEST_WALL_MM - wall_mm) / (LONGEST_WALL_MM - FREE_WALL_MM), 0.0, 1.0)
    return np.asarray(fluid.data * weight * allowed, dtype=np.float64)


def _least_wall_mm(
    wall: NDArray[np.floating], start: NDArray[np.intp], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return how much tissue lies on the way from `start` to each voxel, along the way with the least, mm.

    The eikonal equation, by fast marching (Sethian 1996, 10.1073/pnas.93.4.1591).
    """
    speed = sitk.GetImageFromArray(np.ascontiguousarray((1.0 / (COST_OF_FLUID + wall)).T))
    speed.SetSpacing(spacing_mm)
    marching = sitk.FastMarchingImageFilter()
    marching.SetTrialPoints(start.tolist())
    marching.SetStoppingValue(1.5 * LONGEST_WALL_MM)
    return np.asarray(sitk.GetArrayFromImage(marching.Execute(speed)).T, dtype=np.float64)


def _levels(head: Volume, native_to_template: Affine, prior: _Prior) -> DeepLevels | None:
    """Return the levels of :func:`deep_levels`.

    Medians and percentiles over places of the template, those of tissue without what wide ventricles have filled:
    where the mixture of a whole brain's intensities has its peaks depends on stripping and on age.
    """
    fluid, grey, white = (
        _values_at(head, places, native_to_template)
        for places in (prior.inside_mm, prior.grey_mm, prior.white_mm)
    )
    darkest, brightest = np.percentile(fluid, DARKEST_PERCENTILE), np.percentile(white, BRIGHTEST_PERCENTILE)
    from_here = darkest + TISSUE_FROM * (brightest - darkest)
    grey, white = grey[grey > from_here], white[white > from_here]
    if not grey.size or not white.size:
        return None
    grey_level, white_level = float(np.median(grey)), float(np.median(white))
    if not darkest < grey_level < white_level:
        return None
    unmixed = fluid[fluid < darkest + FLUID_UP_TO * (grey_level - darkest)]
    return DeepLevels(
        darkest=float(darkest),
        fluid=float(unmixed.mean(dtype=np.float64)),
        grey=grey_level,
        white=white_level,
    )


def _values_at(
    head: Volume, places_mm: NDArray[np.float64], native_to_template: Affine
) -> NDArray[np.float32]:
    """Return the head's values at places of the template, trilinear, 0 outside."""
    to_index = inverse_of(head.voxel_to_ras) @ inverse_of(native_to_template)
    index = to_index[:3, :3] @ places_mm + to_index[:3, 3:]
    values: NDArray[np.float32] = ndimage.map_coordinates(head.data, index, order=1)
    return values


def _at(of_template: Volume, grid: Grid, native_to_template: Affine) -> NDArray[np.float32]:
    return interpolated(of_template.data, of_template.voxel_to_ras, grid, native_to_template)


@cache
def _prior() -> _Prior:
    grid = load_template(ATLAS_MM).grid
    ventricles = ndimage.gaussian_filter(
        ventricle_fluid(ATLAS_MM).astype(np.float32), PRIOR_SIGMA_MM / ATLAS_MM
    )
    search = ndimage.gaussian_filter(_search_region().astype(np.float32), EDGE_SIGMA_MM / ATLAS_MM)
    coarse = load_template(TISSUE_MM)
    deep = ndimage.binary_erosion(coarse.brain_mask.data, iterations=round(CORE_DEPTH_MM / TISSUE_MM))
    grey, white = CORE_TISSUE
    ends = np.argwhere(search > 0.05)[:, :, np.newaxis]
    corners = np.stack(np.meshgrid(*np.hstack([ends.min(axis=0), ends.max(axis=0)]), indexing="ij"))
    return _Prior(
        ventricles=Volume(data=ventricles, voxel_to_ras=grid.voxel_to_ras),
        search=Volume(data=search, voxel_to_ras=grid.voxel_to_ras),
        corners_mm=grid.places_mm(corners.reshape(3, -1).T),
        inside_mm=grid.places_mm(np.argwhere(ventricles > CERTAIN_PRIOR)),
        grey_mm=coarse.grid.places_mm(np.argwhere(deep & (coarse.grey_matter > grey))),
        white_mm=coarse.grid.places_mm(np.argwhere(deep & (coarse.white_matter > white))),
    )


def _search_region() -> NDArray[np.bool_]:
    """Return the boxes of the ventricles, widened within the brain, without the third ventricle."""
    template = load_template(ATLAS_MM)
    boxes = ventricle_surroundings(ATLAS_MM)
    around = box_of(boxes, [round(SEARCH_MM / ATLAS_MM) + 1] * 3)
    near = np.zeros_like(boxes)
    near[around] = ndimage.distance_transform_edt(~boxes[around]) * ATLAS_MM <= SEARCH_MM
    x, y, z = (
        template.grid.voxel_to_ras[axis, axis] * np.arange(template.grid.shape[axis])
        + template.grid.voxel_to_ras[axis, 3]
        for axis in range(3)
    )
    reach, (back, front), top = THIRD_VENTRICLE
    third = (
        (np.abs(x) < reach)[:, None, None] & ((y > back) & (y < front))[None, :, None] & (z < top)[None, None]
    )
    region: NDArray[np.bool_] = template.brain_mask.data & near & ~(third & ~boxes)
    return region
