"""A brain comes to the template: affine, or affine and SyN, estimated at 2 mm and applied once.

The search begins with the brains' centres on each other. When what comes out is implausible (correlation,
overlap, scale), all orientations within 45 degrees about every axis are tried coarsely, and the best ones are
refined: no pose loses a scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.config import RegistrationConfig
from brainstage.pipeline.errors import RegistrationError
from brainstage.pipeline.records import Deformation, NormalisedBrain, RegisteredBrain
from brainstage.pipeline.volume import Affine, BrainMask, Volume, inverse_of
from brainstage.preprocessing.ants_tools import affine_registration, syn_registration
from brainstage.preprocessing.orientation import best_orientations, centred_start, correlation_inside
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import Template, load_template
from brainstage.preprocessing.transforms import (
    apply_transform,
    apply_transform_to_mask,
    to_template_transform,
)

STAGE_VERSION: Final = "1"

ESTIMATION_MM: Final = 2.0
SEARCH_MM: Final = 8.0
SEARCH_STEP_DEG: Final = 20.0
REFINED_STARTS: Final = 3

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
        syn_registration(template.t1w, moving, alignment.native_to_template, seed=seed)
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
    first = _refined(moving, mask, template, centred_start(mask, template), seed)
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
    brain_mask = apply_transform_to_mask(normalised.brain_mask, grid, transform)
    if not brain_mask.data.any():
        raise RegistrationError("no voxel of the brain lies on the template after registration")
    brain = apply_transform(normalised.brain, grid, transform)
    return RegisteredBrain(
        brain=brain.with_data(np.where(brain_mask.data, brain.data, np.float32(0.0))),
        brain_mask=brain_mask,
        native_to_template=native_to_template,
        normalised=normalised,
        deformation=deformation,
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
    inside = np.where(corrected.brain_mask.data, np.maximum(corrected.head.data, 0.0), np.float32(0.0))
    grid = corrected.head.grid.rescaled(ESTIMATION_MM)
    return resampled(corrected.head.with_data(inside), grid), resampled_mask(corrected.brain_mask, grid)


def _refined(moving: Volume, mask: BrainMask, template: Template, start: Affine, seed: int) -> Alignment:
    try:
        matrix = affine_registration(template.t1w, moving, start, seed=seed)
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
