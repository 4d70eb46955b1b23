"""How much larger or smaller than in the template each place in the middle of a brain is.

A small smooth registration of the middle of a registered brain to the middle of the template (Thirion's demons), and
the logarithm of its Jacobian: what an affine registration leaves of shape, as a number at each voxel (deformation-based
morphometry; Ashburner 1998, 10.1002/(SICI)1097-0193(1998)6:5/6<348::AID-HBM4>3.0.CO;2-P). Only the middle, with
ventricles, deep grey matter and medial temporal lobes: there everybody has the same structures, which a smooth
deformation leads onto each other, while the folds of the cortex differ in kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask, DisplacementField, Grid, Volume, require_same_grid
from brainstage.preprocessing.resampling import resampled
from brainstage.preprocessing.template import load_template

SPACING_MM: Final = 2.0
MIDDLE_MM: Final = ((-52.0, 52.0), (-62.0, 28.0), (-46.0, 24.0))
"""Lowest and highest x, y and z, template mm: lateral ventricles, deep grey matter and medial temporal lobes whole."""
_AROUND_MM: Final = 6.0
"""Of the finer image that is smoothed and taken to the grid: further than the smoothing reaches."""
_LEVELS: Final = ((2, 30), (1, 10))
"""Shrink factor and iterations. More iterations follow noise: three times as many told simulated atrophy less well."""
_FIELD_SIGMA_VOXELS: Final = 1.0
"""Smoothing of the displacement after each iteration, at each level. 0.7 and 1.5 tell atrophy less well."""
_CORE: Final = (0.85, 0.95)
"""Template probability of grey and of white matter from which a voxel counts as that tissue in nearly everybody."""
_DEEP_VOXELS: Final = 2
"""Away from the brain's surface, where masks differ."""
_RANGE_PERCENTILES: Final = (1.0, 99.0)
_OUTSIDE: Final = -0.45
"""Outside the brain, where the range inside is 0 to 1: as dark as the template's background is against its brain."""
_BRIGHTEST: Final = 260.0
"""In the template's units; vessels and the rim of a badly stripped brain can be brighter."""
_SMALLEST: Final = 0.05
"""Part of a volume that is left at least: demons do not forbid folds, whose logarithm there is none of."""


def local_volume(
    brain: Volume, brain_mask: BrainMask, deformation: DisplacementField | None = None
) -> NDArray[np.float32]:
    """Return the logarithm of local volume against the template, for a brain that is registered to it.

    The same for ``a * x + b`` as for ``x``, a > 0.

    Parameters
    ----------
    brain : Volume
        In template space, 0 outside the mask, in any units.
    brain_mask : BrainMask
        On the same grid.
    deformation : DisplacementField, optional
        What the registration did beyond an affine, template to native: its volumes are counted in.

    Returns
    -------
    ndarray, (I, J, K) float32
        On :func:`local_volume_grid`; above 0 where the brain is larger, 0 outside the template's brain. 0 everywhere
        where nothing can be told: no brain, or one whose white matter is not brighter than its grey matter.
    """
    require_same_grid(brain, brain_mask)
    grid, middle = local_volume_grid(), _middle_of_template()
    moving = _in_units_of_template(brain, brain_mask, middle) if brain_mask.data.any() else None
    if moving is None:
        return np.zeros(grid.shape, dtype=np.float32)
    log_volume = np.log(np.maximum(_jacobian(_demons(middle.t1w, moving)), _SMALLEST))
    if deformation is not None:
        # What is left to the demons after a deformation moves points by little: both are read at one place.
        log_volume = log_volume + resampled(_log_volume_of(deformation), grid).data
    return np.where(middle.brain, log_volume, 0.0).astype(np.float32)


@cache
def local_volume_grid() -> Grid:
    """Return the lattice of :func:`local_volume` in template space: the middle of the template's grid of 2 mm."""
    whole = load_template(SPACING_MM).grid
    return whole.part(_indices(whole, 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Middle:
    """The middle of the template on :func:`local_volume_grid`; masks are (I, J, K) bool.

    `grey` and `white` are the voxels where nearly everybody has that tissue; nothing in `t1w` is darker than `fluid`.
    """

    t1w: NDArray[np.float32]
    brain: NDArray[np.bool_]
    grey: NDArray[np.bool_]
    white: NDArray[np.bool_]
    fluid: float


@cache
def _middle_of_template() -> _Middle:
    template = load_template(SPACING_MM)
    box = _indices(template.grid, 0.0)
    t1w, brain = template.t1w.data[box], template.brain_mask.data[box]
    deep = ndimage.binary_erosion(template.brain_mask.data, iterations=_DEEP_VOXELS)[box]
    fluid = float(np.percentile(t1w[deep], _RANGE_PERCENTILES[0]))
    grey, white = _CORE
    return _Middle(
        t1w=_limited(t1w, fluid, brain),
        brain=brain,
        grey=(template.grey_matter[box] > grey) & deep,
        white=(template.white_matter[box] > white) & deep,
        fluid=fluid,
    )


def _limited(values: NDArray[np.float32], fluid: float, brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(brain, np.clip(values, fluid, _BRIGHTEST), 0.0).astype(np.float32)


def _in_units_of_template(
    brain: Volume, brain_mask: BrainMask, middle: _Middle
) -> NDArray[np.float32] | None:
    """Return the middle of a brain with the template's grey and white matter; None where they have no contrast.

    Two tissues, and not percentiles of the mask: those shift with how closely a brain was stripped, and demons make
    volume of every shift. Nothing is darker than the template's fluid, which in a scan is flow and noise.
    """
    low, high = np.percentile(brain.data[brain_mask.data], _RANGE_PERCENTILES)
    if not high > low:
        return None
    inside = np.where(brain_mask.data, (brain.data - low) / (high - low), _OUTSIDE)
    values = _resampled_middle(brain.with_data(inside), local_volume_grid())
    fraction = _resampled_middle(brain.with_data(brain_mask.data), local_volume_grid())
    grey, white = float(np.median(values[middle.grey])), float(np.median(values[middle.white]))
    if not white > grey:
        return None
    wanted_grey, wanted_white = (
        float(np.median(middle.t1w[tissue])) for tissue in (middle.grey, middle.white)
    )
    mapped = wanted_grey + (values - grey) * (wanted_white - wanted_grey) / (white - grey)
    return _limited(mapped, middle.fluid, fraction >= 0.5)


def _resampled_middle(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """Resample only what lies around the middle: smoothing a whole volume costs more than the registration."""
    box = _indices(volume.grid, _AROUND_MM)
    part = Volume(data=volume.data[box], voxel_to_ras=volume.grid.part(box).voxel_to_ras)
    return resampled(part, grid).data


def _indices(grid: Grid, margin_mm: float) -> tuple[slice, slice, slice]:
    """Return the voxels of an upright grid whose centres lie in the middle of the brain, and a margin around it."""
    sides = []
    for axis, (low, high) in enumerate(MIDDLE_MM):
        spacing, first = grid.voxel_to_ras[axis, axis], grid.voxel_to_ras[axis, 3]
        start = int(np.ceil((low - margin_mm - first) / spacing))
        stop = int(np.floor((high + margin_mm - first) / spacing)) + 1
        sides.append(slice(max(0, start), min(grid.shape[axis], stop)))
    return sides[0], sides[1], sides[2]


def _demons(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> sitk.Image:
    """Return the displacement (mm, from a voxel of `fixed` to its place in `moving`), coarse to fine.

    Vercauteren 2009 (10.1016/j.neuroimage.2008.10.040), symmetric forces.
    """
    whole, other = _image(fixed), _image(moving)
    field = None
    for shrink, iterations in _LEVELS:
        target, source = _coarser(whole, shrink), _coarser(other, shrink)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(_FIELD_SIGMA_VOXELS)
        field = demons.Execute(target, source, *([] if field is None else [sitk.Resample(field, target)]))
    return field


def _image(values: NDArray[np.float32]) -> sitk.Image:
    """Axes and origin are the array's own: a Jacobian is the same in every frame."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing([SPACING_MM] * 3)
    return image


def _coarser(image: sitk.Image, shrink: int) -> sitk.Image:
    if shrink == 1:
        return image
    variance_mm2 = (0.4 * shrink * SPACING_MM) ** 2
    return sitk.Shrink(sitk.DiscreteGaussian(image, variance_mm2), [shrink] * 3)


def _jacobian(field: sitk.Image) -> NDArray[np.float64]:
    determinant = sitk.DisplacementFieldJacobianDeterminant(field)
    return np.asarray(sitk.GetArrayFromImage(determinant).T, dtype=np.float64)


def _log_volume_of(deformation: DisplacementField) -> Volume:
    """Return the logarithm of the Jacobian determinant of a deformation, on its own grid."""
    slopes = np.stack(np.gradient(deformation.data, axis=(0, 1, 2)), axis=-1)
    jacobian = np.eye(3) + slopes @ np.linalg.inv(deformation.voxel_to_ras[:3, :3])
    determinant = np.maximum(np.linalg.det(jacobian), _SMALLEST)
    return Volume(data=np.log(determinant), voxel_to_ras=deformation.voxel_to_ras)
