"""Known atrophy in real brains: wider ventricles and smaller hippocampi, by a deformation whose Jacobian is the truth.

For brains that are aligned to the template. One stationary flow per person::

    velocity = a person's own wobble + rates * (ventricles, left hippocampus, right hippocampus swell)

Its three rates are solved for, so that the flow changes the three volumes by what is asked. A person without
atrophy is carried along the wobble alone, with rates that keep the three volumes: every brain is interpolated, so
interpolation does not tell who is ill. Frames: template RAS+ mm of MNI152NLin2009aSym.

The regions are those of the template, so the deformation is where a person's regions are only as well as the
registration aligned them, and the tissue that shrinks or swells is what lies there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.volume import BrainMask, Grid, Volume, require_same_grid
from brainstage.workflows.synthetic.anatomy import MODEL_ORIGIN_MM, HeadAnatomy, region_swelling
from brainstage.workflows.synthetic.diffeomorphism import (
    Points,
    VectorField,
    column,
    exponential,
    interpolate,
    lattice,
    refine,
    volume_ratio,
)

VENTRICLE_EXPONENT: Final = 1.8
"""Ventricles grow as hippocampal volume to the power of minus this: at 20 % loss they are half as large again.

In Alzheimer's disease hippocampi lose 4.7 % a year (Barnes 2009, 10.1016/j.neurobiolaging.2008.01.010) while
ventricles grow by about 9 % (a CT study of 50 patients over three years, PMID 2785749): log 1.09 / -log 0.953.
"""

RELATIVE_SD: Final = 0.2
"""How much people of one group differ in their hippocampal loss, and in how the ventricles go with it."""

ASYMMETRY_SD: Final = 0.1
"""Left loses more than right by twice this part of the mean loss, or the other way round."""

DRAW_LIMIT: Final = 2.0
"""Draws further out than so many SD are brought back, so that every effect is one the flow can reach."""

LARGEST_LEVEL: Final = 0.3
"""Mean loss; the largest effect drawn from it leaves half of a hippocampus, the most the flow reaches."""

WOBBLE_SD_MM: Final = 0.5
"""Displacement of the wobble, each component: as far as the rim of a hippocampus moves at a loss of 20 %."""

WOBBLE_SIGMA_MM: Final = 10.0
"""Smoothness of the wobble, between those of the source and the sink of a region's swelling."""

RIM_MM: Final = 6.0
"""The wobble fades towards the brain's surface, where it would change the mask."""

VOLUME_TOLERANCE: Final = 0.001
"""Error of a logarithm of volume along the flow."""

SOLVER_LIMIT: Final = 40
BOX_MARGIN: Final = 8
"""Voxels around the mask that are looked at; its surface moves by less than one."""

VENTRICLE_STRIDE: Final = 3
"""Every third voxel of the ventricles measures them to a few parts in a thousand; hippocampi are taken whole."""


@dataclass(frozen=True, kw_only=True)
class AtrophyEffect:
    """What is left of three volumes, as factors; 1 is no change."""

    ventricles: float
    left_hippocampus: float
    right_hippocampus: float

    @property
    def hippocampal_loss(self) -> float:
        """Part of both hippocampi together that is lost; they are equally large in the template."""
        return 1.0 - (self.left_hippocampus + self.right_hippocampus) / 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class AtrophyModel:
    """What the flows are made of.

    Attributes
    ----------
    points_mm : tuple of ndarray, (3, N)
        Points that fill ventricles, left and right hippocampus.
    swellings : tuple of VectorField
        Velocities that swell each at unit rate, on one lattice.
    interior : ndarray, (I, J, K) float64
        At the nodes of that lattice: 1 inside the brain, fading to 0 towards its surface.
    """

    points_mm: tuple[Points, Points, Points]
    swellings: tuple[VectorField, VectorField, VectorField]
    interior: NDArray[np.float64]


def atrophy_model(anatomy: HeadAnatomy) -> AtrophyModel:
    """Return the model of the template's own regions; takes seconds, so keep it."""
    middle = round(-MODEL_ORIGIN_MM[0])
    left, right = anatomy.hippocampi.copy(), anatomy.hippocampi.copy()
    left[middle:], right[: middle + 1] = False, False
    swellings = (
        anatomy.ventricle_swelling,
        region_swelling(left),
        region_swelling(right),
    )
    points = (_centres(anatomy.ventricles)[:, ::VENTRICLE_STRIDE], _centres(left), _centres(right))
    return AtrophyModel(points_mm=points, swellings=swellings, interior=_interior(anatomy, swellings[0]))


def draw_effect(level: float, seed: int) -> AtrophyEffect:
    """Draw one person's atrophy.

    Parameters
    ----------
    level : float
        Mean part of the hippocampi that is lost, 0 to :data:`LARGEST_LEVEL`; 0 is no change for anybody.
    seed : int
        The person's; the same draw at every level.

    Raises
    ------
    UsageError
        For another level.
    """
    if not 0 <= level <= LARGEST_LEVEL:
        raise UsageError(f"hippocampal loss {level:g}: 0 to {LARGEST_LEVEL} are allowed")
    drawn = np.clip(_stream(seed, "effect").standard_normal(3), -DRAW_LIMIT, DRAW_LIMIT)
    loss = level * (1 + RELATIVE_SD * drawn[0])
    exponent = VENTRICLE_EXPONENT * (1 + RELATIVE_SD * drawn[1])
    leaning = ASYMMETRY_SD * drawn[2]
    return AtrophyEffect(
        ventricles=float((1 - loss) ** -exponent),
        left_hippocampus=float(1 - loss * (1 + leaning)),
        right_hippocampus=float(1 - loss * (1 - leaning)),
    )


def atrophy_velocity(model: AtrophyModel, effect: AtrophyEffect, seed: int) -> VectorField:
    """Return the velocity whose flow for unit time leads from the healthy brain to the atrophied one.

    Parameters
    ----------
    effect : AtrophyEffect
        What the flow does to the three volumes, whatever the wobble does to them.
    seed : int
        Of the wobble.

    Returns
    -------
    VectorField
        mm per unit of flow time.
    """
    targets = np.log([effect.ventricles, effect.left_hippocampus, effect.right_hippocampus])
    wobble = _wobble(model, seed)
    rates = targets.copy()
    for _ in range(SOLVER_LIMIT):
        velocity = _flow(model, wobble, rates)
        missing = targets - np.log([volume_ratio(velocity, points) for points in model.points_mm])
        if np.abs(missing).max() < VOLUME_TOLERANCE:
            return velocity
        rates = rates + missing
    raise UsageError(f"no flow has the effect {effect}")


def atrophied(brain: Volume, brain_mask: BrainMask, velocity: VectorField) -> tuple[Volume, BrainMask]:
    """Carry a brain along a flow, by one trilinear interpolation on its own grid.

    Parameters
    ----------
    brain : Volume
        In template space, 0 outside the mask.
    brain_mask : BrainMask
        On the same grid.
    velocity : VectorField
        From :func:`atrophy_velocity`.
    """
    require_same_grid(brain, brain_mask)
    backwards = exponential(velocity.with_vectors(-velocity.vectors_mm))
    box = _box_around(brain_mask.data)
    indices = _pulled_indices(brain.grid, box, backwards)
    fraction = interpolate(brain_mask.data[box].astype(np.float32), indices)
    inside = fraction >= 0.5
    # divided by the part that is brain: the zeros outside do not blur into the rim
    values = interpolate(brain.data[box], indices) / np.maximum(fraction, 0.5)
    data, mask = np.zeros(brain.shape, dtype=np.float32), np.zeros(brain.shape, dtype=np.bool_)
    data[box], mask[box] = np.where(inside, values, 0.0), inside
    return brain.with_data(data), BrainMask(data=mask, voxel_to_ras=brain_mask.voxel_to_ras)


def _box_around(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    where = ndimage.find_objects(mask.astype(np.uint8))
    if not where:
        raise UsageError("the brain mask is empty: nothing to deform")
    i, j, k = (
        slice(max(0, s.start - BOX_MARGIN), min(n, s.stop + BOX_MARGIN))
        for s, n in zip(where[0], mask.shape, strict=True)
    )
    return i, j, k


def _pulled_indices(
    grid: Grid, box: tuple[slice, slice, slice], backwards: VectorField
) -> NDArray[np.float64]:
    """Where each voxel of a box comes from, (3, I, J, K) indices into the box.

    Displacements are looked up at every second voxel and refined: the field is smoother than that.
    """
    shape = [s.stop - s.start for s in box]
    coarse = lattice([n // 2 + 1 for n in shape], (0.0, 0.0, 0.0), 2.0)
    matrix = grid.voxel_to_ras[:3, :3]
    first_mm = matrix @ [s.start for s in box] + grid.voxel_to_ras[:3, 3]
    moved_mm = backwards.at(np.einsum("ab,b...->a...", matrix, coarse) + column(first_mm, 4))
    return refine(coarse + np.einsum("ab,b...->a...", np.linalg.inv(matrix), moved_mm), shape)


def _flow(model: AtrophyModel, wobble: NDArray[np.float64], rates: NDArray[np.float64]) -> VectorField:
    swellings = (rate * swelling.vectors_mm for rate, swelling in zip(rates, model.swellings, strict=True))
    return model.swellings[0].with_vectors(sum(swellings, start=wobble))


def _wobble(model: AtrophyModel, seed: int) -> NDArray[np.float64]:
    """Draw a smooth random velocity (3, I, J, K), mm, that dies away towards the brain's surface."""
    sigma = WOBBLE_SIGMA_MM / model.swellings[0].spacing_mm
    rough = _stream(seed, "wobble").standard_normal((3, *model.interior.shape))
    smooth = np.stack([ndimage.gaussian_filter(part, sigma, mode="reflect") for part in rough])
    return np.asarray(smooth * (WOBBLE_SD_MM / smooth.std()) * model.interior)


def _interior(anatomy: HeadAnatomy, field: VectorField) -> NDArray[np.float64]:
    depth_mm = ndimage.distance_transform_edt(anatomy.brain)
    nodes = lattice(field.vectors_mm.shape[1:], field.origin_mm, field.spacing_mm)
    depth_at = interpolate(depth_mm, nodes - column(MODEL_ORIGIN_MM, 4))
    return np.clip((depth_at - RIM_MM / 2) / RIM_MM, 0.0, 1.0)


def _centres(region: NDArray[np.bool_]) -> Points:
    return np.argwhere(region).T + column(MODEL_ORIGIN_MM, 2)


def _stream(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])
