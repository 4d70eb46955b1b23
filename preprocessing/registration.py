"""A brain comes to the template: affine, or affine and SyN, estimated at 2 mm and applied once.

The search begins with the brains' centres on each other, and turned when a coarse look over all orientations says
that the head lies far from upright. When what comes out is implausible (correlation, overlap, scale), the
orientations are tried again on a finer grid, and the best ones are refined: no pose loses a scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.config import RegistrationConfig
from brainstage.pipeline.errors import RegistrationError
from brainstage.pipeline.records import Deformation, NormalisedBrain, RegisteredBrain
from brainstage.pipeline.volume import Affine, BrainMask, Volume, inverse_of
from brainstage.preprocessing.ants_tools import affine_registration, syn_registration
from brainstage.preprocessing.orientation import (
    best_orientations,
    centred_start,
    correlation_inside,
    rotation_degrees_of,
)
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import Template, load_template
from brainstage.preprocessing.transforms import (
    apply_transform,
    apply_transform_to_mask,
    to_template_transform,
)

STAGE_VERSION: Final = "3"

ESTIMATION_MM: Final = 2.0
ESTIMATION_MARGIN_MM: Final = 4.0
"""Air around the brains' boxes that a registration is estimated on: enough for an edge to show and for SyN to come to
rest. The template's box is half of its grid. With 3 mm, 12 mm or the whole grid the overlap of labels was the same
to within 0.001."""
SEARCH_MM: Final = 8.0
SEARCH_STEP_DEG: Final = 20.0
REFINED_STARTS: Final = 3
TILT_GRID_MM: Final = 12.0
TILT_STEP_DEG: Final = 30.0
"""A coarse look is enough: the affine finds what is left of the tilt."""
UPRIGHT_WITHIN_DEG: Final = 29.0
"""A head that lies further off is started from how it lies: from upright, an affine can end beside the truth with a
correlation that is still plausible."""

PLAUSIBLE_CORRELATION: Final = 0.50
"""Inside the template's mask at 2 mm. Right registrations reach 0.55 to 0.8; below, other starts are tried, which
costs seconds, and the best is taken."""
PLAUSIBLE_OVERLAP: Final = 0.90
PLAUSIBLE_SCALE: Final = (0.75, 1.45)
"""Cube root of the determinant: a small child's brain needs 1.3, a very large one 0.85."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """An affine and how well it fits.

    Attributes
    ----------
    native_to_template : ndarray, (4, 4)
    correlation : float
        Pearson's, with the template inside its mask.
    overlap : float
        Dice of the two brain masks.
    """

    native_to_template: Affine
    correlation: float
    overlap: float

    @property
    def scale(self) -> float:
        """Cube root of the determinant: above 1 the native brain is smaller than the template."""
        return scale_of(self.native_to_template)

    @property
    def plausible(self) -> bool:
        """Tell whether this can be a right registration."""
        low, high = PLAUSIBLE_SCALE
        return (
            self.correlation >= PLAUSIBLE_CORRELATION
            and self.overlap >= PLAUSIBLE_OVERLAP
            and low <= self.scale <= high
        )


def register(normalised: NormalisedBrain, config: RegistrationConfig, seed: int = 0) -> RegisteredBrain:
    """Carry a brain to the template's grid.

    Parameters
    ----------
    normalised : NormalisedBrain
    config : RegistrationConfig
    seed : int
        For ANTs' random sampling.

    Returns
    -------
    RegisteredBrain
        On the template's grid at ``resolution_mm``.

    Raises
    ------
    RegistrationError
        When ANTs gives up, or the result leaves the template empty.
    """
    template = load_template(ESTIMATION_MM)
    moving, mask = _coarse_native(normalised)
    alignment = align(moving, mask, template, seed)
    deformation = (
        syn_registration(_target(template), moving, alignment.native_to_template, seed=seed)
        if config.method == "syn"
        else None
    )
    return carry_to_template(normalised, alignment.native_to_template, deformation, config.resolution_mm)


def align(moving: Volume, mask: BrainMask, template: Template, seed: int) -> Alignment:
    """Find the affine that brings a stripped brain to the template.

    Parameters
    ----------
    moving : Volume
        Positive intensities inside the mask, 0 outside; about 2 mm.
    mask : BrainMask
    template : Template
    seed : int
    """
    (lying,) = best_orientations(moving, mask, grid_mm=TILT_GRID_MM, step_deg=TILT_STEP_DEG)
    far = rotation_degrees_of(lying.native_to_template) > UPRIGHT_WITHIN_DEG
    start = lying.native_to_template if far else centred_start(mask, template)
    first = _refined(moving, mask, template, start, seed)
    if first.plausible:
        return first
    others = (
        _refined(moving, mask, template, orientation.native_to_template, seed)
        for orientation in best_orientations(
            moving, mask, grid_mm=SEARCH_MM, step_deg=SEARCH_STEP_DEG, count=REFINED_STARTS
        )
    )
    candidates = [first]
    for candidate in others:
        candidates.append(candidate)
        if candidate.plausible:
            break
    return max(candidates, key=lambda a: (a.plausible, a.correlation))


def carry_to_template(
    normalised: NormalisedBrain,
    native_to_template: Affine,
    deformation: Deformation | None,
    resolution_mm: float,
) -> RegisteredBrain:
    """Apply a known registration, in one interpolation from the native volume."""
    grid = load_template(resolution_mm).grid
    transform = to_template_transform(native_to_template, deformation)
    # Outside its mask the brain is 0, and so is what lies outside a volume: a rim of one voxel changes nothing.
    native, native_mask = cropped_to_brain(
        normalised.brain, normalised.brain_mask, margin_mm=min(normalised.brain.spacing_mm)
    )
    brain_mask = apply_transform_to_mask(native_mask, grid, transform)
    if not brain_mask.data.any():
        raise RegistrationError("no voxel of the brain lies on the template after registration")
    box = box_of(brain_mask.data, (0, 0, 0))
    inside = brain_mask.data[box]
    data = np.zeros(grid.shape, dtype=np.float32)
    data[box] = np.where(inside, apply_transform(native, grid.part(box), transform).data, np.float32(0.0))
    return RegisteredBrain(
        brain=Volume(data=data, voxel_to_ras=grid.voxel_to_ras),
        brain_mask=brain_mask,
        native_to_template=native_to_template,
        normalised=normalised,
        deformation=deformation,
    )


def box_of(mask: NDArray[np.bool_], margin_voxels: Sequence[int]) -> tuple[slice, slice, slice]:
    """Return the box that holds a mask with a margin, within the array; all of the array when it is empty."""
    if not mask.any():
        return slice(None), slice(None), slice(None)
    sides = []
    for axis, margin in enumerate(margin_voxels):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(max(0, int(along[0]) - margin), int(along[-1]) + 1 + margin))
    return sides[0], sides[1], sides[2]


def cropped_to_brain(
    head: Volume, mask: BrainMask, margin_mm: float = ESTIMATION_MARGIN_MM
) -> tuple[Volume, BrainMask]:
    """Return the brain's box with a margin; every voxel keeps its place in space.

    Parameters
    ----------
    head : Volume
    mask : BrainMask
        On the same grid.
    margin_mm : float
        Kept on every side, as far as the volume goes.
    """
    box = box_of(mask.data, [int(np.ceil(margin_mm / spacing)) for spacing in head.spacing_mm])
    voxel_to_ras = head.grid.part(box).voxel_to_ras
    return (
        Volume(data=head.data[box], voxel_to_ras=voxel_to_ras),
        BrainMask(data=mask.data[box], voxel_to_ras=voxel_to_ras),
    )


def scale_of(matrix: Affine) -> float:
    """Return the cube root of the determinant's size."""
    return float(np.cbrt(abs(np.linalg.det(matrix[:3, :3]))))


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the Dice overlap of two masks; 0 when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 0.0


def _coarse_native(normalised: NormalisedBrain) -> tuple[Volume, BrainMask]:
    """Return the stripped, bias-corrected brain in its own units at the estimation resolution.

    Not the normalised one: there the background is as bright as the average brain.
    """
    corrected = normalised.corrected
    head, mask = cropped_to_brain(corrected.head, corrected.brain_mask)
    inside = np.where(mask.data, np.maximum(head.data, 0.0), np.float32(0.0))
    grid = head.grid.rescaled(ESTIMATION_MM)
    return resampled(head.with_data(inside), grid), resampled_mask(mask, grid)


def _target(template: Template) -> Volume:
    """Return the part of the template that a registration is estimated on."""
    return cropped_to_brain(template.t1w, template.brain_mask)[0]


def _refined(moving: Volume, mask: BrainMask, template: Template, start: Affine, seed: int) -> Alignment:
    try:
        matrix = affine_registration(_target(template), moving, start, seed=seed)
    except RegistrationError:
        # A start too far off; the others are tried.
        return Alignment(native_to_template=start, correlation=-1.0, overlap=0.0)
    if scale_of(matrix) < 0.1:
        return Alignment(native_to_template=start, correlation=-1.0, overlap=0.0)
    return _judged(moving, mask, template, matrix)


def _judged(moving: Volume, mask: BrainMask, template: Template, native_to_template: Affine) -> Alignment:
    back = inverse_of(native_to_template)
    moved = resampled(moving, template.grid, back)
    moved_mask = resampled_mask(mask, template.grid, back)
    return Alignment(
        native_to_template=native_to_template,
        correlation=correlation_inside(moved.data, template.t1w.data, template.brain_mask.data),
        overlap=dice(moved_mask.data, template.brain_mask.data),
    )
