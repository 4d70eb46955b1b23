"""A brain grown old: wide ventricles and sulci, patches of dark white matter, weak contrast. Harmless, all of it.

In this order, within the brain mask:

1. The lateral ventricles swell along a flow: in small steps the fluid pushes outward, the tissue around it is
   compressed, most of all near by, and the brain's surface stays in place. A step starts from the ventricles as the
   last one left them, so that they keep their shape at twelve times their size.
2. Fluid gains on the cortex, in every sulcus and under the skull.
3. White matter comes nearer to grey matter.
4. Patches of white matter darken, around the ventricles first.

Intensities are compared as if there was no coil shading; it is taken off before and laid on again afterwards. What
these things look like in people: ventricles of 5 to 6.5 % of the brain mask at 69 to 87 years are the widest measured
here, severe ageing goes beyond them. Thinner cortex: Salat 2004 (10.1093/cercor/bhh032). Weaker contrast: Salat 2009
(10.1016/j.neuroimage.2009.06.074). White matter hyperintensities, dark in a T1w: Wardlaw 2013
(10.1016/S1474-4422(13)70124-8).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.fft import next_fast_len

from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume
from brainstage.preprocessing.measures import fit_tissues
from brainstage.preprocessing.regions import coarse_atlas, ventricle_fluid
from brainstage.preprocessing.registration import align, box_of
from brainstage.preprocessing.resampling import interpolated, resampled, resampled_mask
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.ventricles import ventricle_fractions
from brainstage.workflows.synthetic.damage import Specimen
from brainstage.workflows.synthetic.diffeomorphism import Points, interpolate, lattice, potential_flow

NODE_MM: Final = 2.0
"""Between nodes of the lattice that flow, shading and patches are computed on."""

MARGIN_MM: Final = 12.0
"""Around the brain's box: the flow has died away before it comes round."""

LEAST_OWN_SHARE: Final = 0.2
"""Per cent of the mask. Where less is found, by a wrong alignment or in slits too thin for the voxels, the template's
ventricles are opened instead."""

GROWTH_STEP: Final = 0.4
"""Of the volume of the fluid at the wall: tissue moves by about a millimetre in a step."""

STEPS_LIMIT: Final = 40
VOLUME_TOLERANCE: Final = 0.01
"""Of the volume."""

VENTRICLE_PARTS: Final = 4
"""Of the template's fluid: bodies and temporal horns. What is left are crumbs of the choroid fissure."""

SWELLING_REACH_MM: Final = 5.0
"""Around these parts fluid swells."""

NO_LATERAL_VENTRICLE: Final = (
    (1.5, (-200.0, 200.0), (-200.0, 200.0)),
    (6.0, (-200.0, -8.0), (-200.0, 200.0)),
    (7.0, (-10.0, 8.0), (-40.0, 8.0)),
    (11.0, (-40.0, -10.0), (-40.0, 16.0)),
    (12.0, (-70.0, -36.0), (-40.0, 28.0)),
    (20.0, (-45.0, -12.0), (-40.0, 4.0)),
)
"""Distance from the midplane up to which, and ranges of y and z, template mm, in which fluid does not swell: septum,
third ventricle, the space between the fornices, and the cisterns around the splenium and beside the midbrain."""

WALL_MM: Final = 3.0
"""Depth of the fluid that swells, from the wall inward. All parts then widen by about the same distance; if all of
the fluid swelled, wide horns would become balloons and slits would stay slits."""

SHARPENING: Final = (0.25, 0.65)
"""Fractions of fluid that become none and all. The border of a ventricle is stretched as the ventricle is, and a slit
that fills half of its voxels would become a wide space of half the brightness."""

GIVING_WAY_MM: Final = 18.0
"""How far around the ventricles tissue gives way; the deep white matter loses most."""

RIM_MM: Final = (3.0, 9.0)
"""Depth under the brain's surface up to which nothing moves, and from which everything may."""

SHADING_MM: Final = 20.0
"""Smoothness of the coil shading that is taken off."""

CERTAIN_WHITE: Final = (0.7, 0.95)
"""Template probability from which white matter begins to count for shading, and from which it counts in full."""

CALM_MM: Final = 1.5
"""Smoothing that takes away noise stretched to two or three times its width; the choroid plexus stays visible."""

SULCAL_FLUID: Final = (0.25, 0.6)
"""From grey matter (0) to the fluid of ventricles (1): no and all fluid in a sulcus, which fills few voxels whole."""

FLUID_AT_MOST: Final = 0.6
"""Of the brightness of grey matter: fluid is darker, whatever was found in its place."""

DEEP_WHITE: Final = 0.6
"""Blurred template probability of white matter in which patches appear; near the cortex they are rare."""

PATCH_SIGMA_MM: Final = 3.0
PERIVENTRICULAR: Final = (1.8, 6.0)
"""How much likelier a patch is at the ventricles' wall, in SD of the field that draws patches, and the distance in mm
over which that falls to a third."""

PATCH_EDGE: Final = 0.35
"""SD of that field over which a patch fades."""

PATCH_DEPTH: Final = 1.4
"""Of the contrast of white and grey matter: a patch is a little darker than grey matter."""


@dataclass(frozen=True, kw_only=True)
class Ageing:
    """How old a brain becomes.

    Attributes
    ----------
    ventricle_share : float
        Lateral ventricles over the brain mask, per cent, that are reached at least.
    ventricle_growth : float
        Factor by which they grow at least, in people whose ventricles are wide already.
    sulcus_mm : float
        By how much fluid gains on the cortex at each of its surfaces.
    sulcus_filling : float
        By how much of what they lack sulci fill with fluid, 0 to 1: in narrow ones most voxels hold tissue too.
    patch_share : float
        Of the white matter of the template that darkens, 0 to 1.
    contrast : float
        Share of the contrast of white and grey matter that is left.
    """

    ventricle_share: float
    ventricle_growth: float
    sulcus_mm: float
    sulcus_filling: float
    patch_share: float
    contrast: float


MILD: Final = Ageing(
    ventricle_share=4.0,
    ventricle_growth=1.1,
    sulcus_mm=0.25,
    sulcus_filling=0.3,
    patch_share=0.005,
    contrast=0.9,
)
MARKED: Final = Ageing(
    ventricle_share=7.0,
    ventricle_growth=1.25,
    sulcus_mm=0.5,
    sulcus_filling=0.6,
    patch_share=0.02,
    contrast=0.8,
)
SEVERE: Final = Ageing(
    ventricle_share=12.0,
    ventricle_growth=1.5,
    sulcus_mm=0.8,
    sulcus_filling=1.0,
    patch_share=0.04,
    contrast=0.7,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A brain on the lattice, and where it lies.

    Attributes
    ----------
    box : tuple of slice
        The part of the head that is worked on.
    fine, coarse : Grid
        Of that part, and of the lattice over it.
    native_to_template : ndarray, (4, 4)
    mask : ndarray, (I, J, K) bool
        On the lattice.
    """

    box: tuple[slice, slice, slice]
    fine: Grid
    coarse: Grid
    native_to_template: Affine
    mask: NDArray[np.bool_]

    def from_template(self, values: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Bring an image of the template to the lattice."""
        return interpolated(values, grid.voxel_to_ras, self.coarse, self.native_to_template)

    def refined(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Bring values on the lattice to the voxels, linearly."""
        return interpolated(values.astype(np.float32), self.coarse.voxel_to_ras, self.fine, None)


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """Intensities of the tissues, without shading."""

    fluid: float
    grey: float
    white: float


def aged(specimen: Specimen, *, ageing: Ageing) -> Volume:
    """Return the head with an old brain in it; outside the brain mask nothing changes.

    Parameters
    ----------
    specimen : Specimen
        Its generator decides where patches of white matter darken.
    ageing : Ageing
        `MILD`, `MARKED`, `SEVERE`, or one of your own.
    """
    place = _place_of(specimen.head, specimen.brain_mask)
    inside = specimen.brain_mask.data[place.box]
    head = specimen.head.data[place.box]
    shading = place.refined(_shading(specimen.head, place))
    shading = np.where(shading > 0, shading, 1.0)
    values = head / shading
    fractions = _own_ventricles(specimen, place, values)
    levels = _levels(values[inside], values[inside & (fractions > 0.9)])

    coarse = resampled(Volume(data=fractions, voxel_to_ras=place.fine.voxel_to_ras), place.coarse).data
    own_share = 100.0 * float(_sharpened(coarse).sum()) / float(place.mask.sum())
    wanted = max(ageing.ventricle_share, ageing.ventricle_growth * own_share) / 100.0
    cerebrum = _cerebrum(place)
    pull = pull_of_swelling(coarse, _sides(place), place.mask, cerebrum, wanted * float(place.mask.sum()))
    carried, ventricles = _carried(values, fractions, place, pull)
    values = _filled(carried, ventricles, levels, place.fine.spacing_mm, specimen.rng)

    values = _atrophied(values, inside, ventricles, levels, place.fine.spacing_mm, ageing)
    white = _white_fraction(values, levels)
    patches = _patches(specimen.rng, place, pull, cerebrum, ventricles, ageing.patch_share)
    lost = (1.0 - ageing.contrast) * white * (1.0 - patches) + PATCH_DEPTH * np.minimum(white, 1.0) * patches
    values = values - (levels.white - levels.grey) * lost

    data = specimen.head.data.copy()
    # Never 0 inside the brain: in a stripped scan that is what lies outside.
    floor = 0.2 * levels.fluid * shading
    data[place.box] = np.where(inside, np.maximum(values * shading, np.minimum(head, floor)), head)
    return specimen.head.with_data(data)


def pull_of_swelling(
    fractions: NDArray[np.floating],
    sides: NDArray[np.floating],
    mask: NDArray[np.bool_],
    gives_way: NDArray[np.floating],
    wanted_nodes: float,
) -> Points:
    """Return where each node of a lattice comes from when ventricles swell to a volume.

    Parameters
    ----------
    fractions : ndarray, (I, J, K)
        Of each node's volume that is ventricle, 0 to 1.
    sides : ndarray, (2, I, J, K)
        Where fluid swells, 0 to 1, left and right; elsewhere it is carried along. Both gain the same volume.
    mask : ndarray, (I, J, K) bool
        The brain; its surface stays where it is.
    gives_way : ndarray, (I, J, K)
        How readily tissue is compressed, 0 to 1.
    wanted_nodes : float
        Volume of all the fluid, in nodes.

    Returns
    -------
    ndarray, (3, I, J, K) float64
        From each node to the place that it comes from, in nodes. Smooth and invertible; 0 at the surface and
        outside, and everywhere when the ventricles have the volume already.
    """
    nodes = lattice(mask.shape, (0.0, 0.0, 0.0), 1.0)
    from_surface_mm = ndimage.distance_transform_edt(mask) * NODE_MM
    movable = np.clip((from_surface_mm - RIM_MM[0]) / (RIM_MM[1] - RIM_MM[0]), 0.0, 1.0)
    pull = np.zeros((3, *mask.shape))
    current = _sharpened(fractions)
    for _ in range(STEPS_LIMIT):
        volume = float(current.sum())
        if wanted_nodes <= volume * (1.0 + VOLUME_TOLERANCE):
            break
        depth_mm = ndimage.distance_transform_edt(current > 0.5) * NODE_MM
        wall = current * np.exp(-np.maximum(depth_mm - NODE_MM / 2.0, 0.0) / WALL_MM)
        swelling = [wall * interpolate(side, nodes + pull) for side in sides]
        volumes = [max(float(one.sum()), 1.0) for one in swelling]
        gain = min(wanted_nodes - volume, GROWTH_STEP * min(sum(volumes), 4.0 * min(volumes))) / 2.0
        source = sum(gain / own * one for own, one in zip(volumes, swelling, strict=True))
        back = -_outward(np.asarray(source), current, gives_way, movable)
        pull = np.stack([interpolate(part, nodes + back) for part in pull]) + back
        current = _sharpened(interpolate(fractions, nodes + pull))
    return pull


def _outward(
    source: NDArray[np.floating],
    ventricles: NDArray[np.floating],
    gives_way: NDArray[np.floating],
    movable: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return a displacement (3, I, J, K), in nodes, away from a source into the tissue around it."""
    near = ndimage.gaussian_filter(source.astype(np.float64), GIVING_WAY_MM / NODE_MM, truncate=3.0)
    sink = near * gives_way * (1.0 - ventricles) * movable
    density = source - sink * (source.sum() / max(float(sink.sum()), 1e-9))
    # Sizes without large primes: the flow takes most of the time, and half of it else.
    more = [(0, next_fast_len(n) - n) for n in density.shape]
    i, j, k = density.shape
    return potential_flow(np.pad(density, more), 1.0)[:, :i, :j, :k] * movable


def _place_of(head: Volume, brain_mask: BrainMask) -> _Place:
    box = box_of(brain_mask.data, [int(np.ceil(MARGIN_MM / s)) for s in head.spacing_mm])
    fine = head.grid.part(box)
    coarse = fine.rescaled(NODE_MM)
    mask = resampled_mask(BrainMask(data=brain_mask.data[box], voxel_to_ras=fine.voxel_to_ras), coarse)
    inside = np.where(brain_mask.data[box], np.maximum(head.data[box], 0.0), 0.0)
    moving = resampled(Volume(data=inside, voxel_to_ras=fine.voxel_to_ras), coarse)
    alignment = align(moving, mask, load_template(NODE_MM), 0)
    return _Place(
        box=box, fine=fine, coarse=coarse, native_to_template=alignment.native_to_template, mask=mask.data
    )


def _shading(head: Volume, place: _Place) -> NDArray[np.float64]:
    """Return the coil's sensitivity on the lattice, 1 on average: how bright the white matter near by is."""
    template = load_template(NODE_MM)
    low, high = CERTAIN_WHITE
    probability = place.from_template(template.white_matter, template.grid)
    white = np.where(place.mask, np.clip((probability - low) / (high - low), 0.0, 1.0), 0.0)
    if white.sum() < 1.0:
        return np.ones(place.mask.shape)
    values = resampled(Volume(data=head.data[place.box], voxel_to_ras=place.fine.voxel_to_ras), place.coarse)
    level = _mean_near(values.data, white, SHADING_MM / NODE_MM)
    return np.asarray(level / (float((level * white).sum()) / float(white.sum())))


def _mean_near(
    values: NDArray[np.floating], weights: NDArray[np.floating], sigma: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted mean of what lies near by; the mean of all where nothing does."""
    weights = weights.astype(np.float64)
    total = ndimage.gaussian_filter(weights, sigma)
    # A little of the overall mean everywhere: far from any weight, that is what is left.
    trace = 1e-4 * float(weights.max())
    overall = float((values * weights).sum()) / max(float(weights.sum()), 1e-9)
    return np.asarray((ndimage.gaussian_filter(values * weights, sigma) + trace * overall) / (total + trace))


def _own_ventricles(specimen: Specimen, place: _Place, values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return how much of each voxel is ventricle; the template's where a brain shows none of its own."""
    part = Volume(data=values, voxel_to_ras=place.fine.voxel_to_ras)
    mask = BrainMask(data=specimen.brain_mask.data[place.box], voxel_to_ras=part.voxel_to_ras)
    found = ventricle_fractions(part, mask, place.native_to_template)
    if found is not None:
        own = interpolated(found.data, found.voxel_to_ras, place.fine, None)
        if 100.0 * float(own.sum()) >= LEAST_OWN_SHARE * float(mask.data.sum()):
            return own
    template = load_template(1.0)
    prior = ndimage.gaussian_filter(ventricle_fluid(1.0).astype(np.float32), 1.0)
    drawn = interpolated(prior, template.grid.voxel_to_ras, place.fine, place.native_to_template)
    return np.asarray(np.where(mask.data, drawn, 0.0), dtype=np.float32)


def _levels(brain: NDArray[np.floating], ventricles: NDArray[np.floating]) -> _Levels:
    tissues = fit_tissues(brain.astype(np.float32))
    found = float(np.median(ventricles)) if ventricles.size else float(np.percentile(brain, 2.0))
    return _Levels(
        fluid=min(max(found, 0.0), FLUID_AT_MOST * tissues.grey_mean),
        grey=tissues.grey_mean,
        white=tissues.white_mean,
    )


def _cerebrum(place: _Place) -> NDArray[np.float32]:
    """Return where tissue gives way, on the lattice: not in the brain stem and not in the cerebellum."""
    atlas = coarse_atlas(NODE_MM)
    stays = [label for label, name in atlas.names.items() if "brain stem" in name or "cerebellum" in name]
    below = np.isin(np.rint(atlas.labels.data), stays).astype(np.float32)
    soft = ndimage.gaussian_filter(below, 3.0 / NODE_MM)
    return np.where(place.mask, 1.0 - place.from_template(soft, atlas.labels.grid), 0.0).astype(np.float32)


def _sides(place: _Place) -> NDArray[np.float32]:
    """Return where fluid is of the left and of the right lateral ventricle for certain, (2, I, J, K).

    Fluid of the third ventricle and of the cisterns behind it, which a thin wall parts from the lateral ventricles,
    is measured with them where it lies near; swollen to twelve times its size it would look like nothing on earth.
    """
    left, right = (place.from_template(side, load_template(1.0).grid) for side in _template_sides())
    return np.stack([left, right])


@cache
def _template_sides() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    grid = load_template(1.0).grid
    labels, _ = ndimage.label(ventricle_fluid(1.0))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    parts = np.isin(labels, np.argsort(sizes)[-VENTRICLE_PARTS:])
    x, y, z = (
        (grid.voxel_to_ras[a, a] * np.arange(grid.shape[a]) + grid.voxel_to_ras[a, 3]).reshape(
            [-1 if a == b else 1 for b in range(3)]
        )
        for a in range(3)
    )
    others = np.zeros(grid.shape, dtype=bool)
    for reach, (back, front), (low, high) in NO_LATERAL_VENTRICLE:
        others |= (np.abs(x) < reach) & (y > back) & (y < front) & (z > low) & (z < high)
    near = (ndimage.distance_transform_edt(~parts) <= SWELLING_REACH_MM) & ~others
    left, right = (
        np.clip(2.0 * ndimage.gaussian_filter((near & half).astype(np.float32), 1.0) - 0.5, 0.0, 1.0)
        for half in (x < 0, x > 0)
    )
    return left, right


def _sharpened(fractions: NDArray[np.floating]) -> NDArray[np.floating]:
    none, whole = SHARPENING
    return np.asarray(np.clip((fractions - none) / (whole - none), 0.0, 1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Carried:
    """A brain carried along a flow: its values, and the fractions of fluid that are in them, both (I, J, K)."""

    values: NDArray[np.float32]
    fractions: NDArray[np.float32]
    noise_sd: float


def _carried(
    values: NDArray[np.floating], fractions: NDArray[np.float32], place: _Place, pull: Points
) -> tuple[_Carried, NDArray[np.float32]]:
    """Carry a brain along the flow; return it and its ventricles, with borders as sharp as a scanner's."""
    scale = NODE_MM / np.array(place.fine.spacing_mm)
    index = np.indices(values.shape, dtype=np.float32)
    index += np.stack([s * place.refined(part) for s, part in zip(scale, pull, strict=True)])
    moved = _Carried(
        values=ndimage.map_coordinates(values, index, output=np.float32, order=3, mode="nearest"),
        fractions=ndimage.map_coordinates(fractions, index, output=np.float32, order=1, mode="nearest"),
        noise_sd=_noise_sd(values, fractions > 0.9),
    )
    sharp = _sharpened(moved.fractions).astype(np.float32)
    return moved, ndimage.gaussian_filter(sharp, 0.5)


def _noise_sd(values: NDArray[np.floating], fluid: NDArray[np.bool_]) -> float:
    """Return the SD of noise in the fluid, from neighbours; 0 where there are too few."""
    pairs = fluid[1:] & fluid[:-1]
    differences = np.abs(values[1:] - values[:-1])[pairs]
    return float(np.median(differences)) / (0.6745 * np.sqrt(2.0)) if differences.size > 50 else 0.0


def _filled(
    carried: _Carried,
    ventricles: NDArray[np.float32],
    levels: _Levels,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.floating]:
    """Return the carried brain with its ventricles full of fluid up to their borders.

    Stretched noise is no noise of a scanner: inside, it is smoothed away and drawn anew.
    """
    spacing = np.array(spacing_mm)
    tissue = _mean_near(carried.values, np.where(carried.fractions < 0.02, 1.0, 0.0), 3.0 / spacing)
    values = carried.values + (ventricles - carried.fractions) * (levels.fluid - tissue)
    calm = _mean_near(values, ventricles, CALM_MM / spacing)
    calm += carried.noise_sd * rng.standard_normal(values.shape)
    return values + np.square(ventricles) * (calm - values)


def _atrophied(
    values: NDArray[np.floating],
    inside: NDArray[np.bool_],
    ventricles: NDArray[np.float32],
    levels: _Levels,
    spacing_mm: tuple[float, float, float],
    ageing: Ageing,
) -> NDArray[np.floating]:
    """Fill sulci with fluid, and let it gain on the tissue, also from the skull inward."""
    depth = np.clip((levels.grey - values) / (levels.grey - levels.fluid), 0.0, 1.0)
    none, whole = SULCAL_FLUID
    sulci = np.clip((depth - none) / (whole - none), 0.0, 1.0)
    # First deeper, then wider: what is gained is as dark as the sulcus it is gained by.
    filled = depth + ageing.sulcus_filling * np.maximum(sulci - depth, 0.0)
    wide = grown(np.where(inside, filled, 1.0), spacing_mm, ageing.sulcus_mm)
    # Ventricles have their width; around them nothing is gained.
    away = 1.0 - np.clip(2.0 * ndimage.gaussian_filter(ventricles, 1.5 / np.array(spacing_mm)), 0.0, 1.0)
    return np.asarray(values - (wide - depth) * away * (np.maximum(values, levels.grey) - levels.fluid))


def grown(
    fractions: NDArray[np.floating], spacing_mm: tuple[float, float, float], reach_mm: float
) -> NDArray[np.float64]:
    """Let a region grow by a distance that may be a part of a voxel: ``dF/dt = |grad F|``, upwind.

    Parameters
    ----------
    fractions : ndarray, (I, J, K)
        Of each voxel that belongs to the region, 0 to 1.
    spacing_mm : tuple of float
        Voxel size.
    reach_mm : float
        Distance by which the border moves.

    References
    ----------
    Osher 1988 (10.1016/0021-9991(88)90002-2).
    """
    region = fractions.astype(np.float64)
    count = int(np.ceil(reach_mm / (0.5 * min(spacing_mm))))
    for _ in range(count):
        squared = np.zeros_like(region)
        for axis, spacing in enumerate(spacing_mm):
            rise = np.diff(region, axis=axis) / spacing
            ahead = np.concatenate([rise, np.zeros_like(rise.take([0], axis))], axis)
            behind = np.concatenate([np.zeros_like(rise.take([0], axis)), -rise], axis)
            squared += np.square(np.maximum(np.maximum(ahead, behind), 0.0))
        region = np.minimum(region + (reach_mm / count) * np.sqrt(squared), 1.0)
    return region


def _white_fraction(values: NDArray[np.floating], levels: _Levels) -> NDArray[np.floating]:
    """Return how white each voxel is: 0 up to grey matter, 1 for white matter on average, more for brighter tissue.

    Smoothed a little, so that noise keeps its size where contrast is lost.
    """
    smooth = ndimage.gaussian_filter(values, 0.6)
    fraction = (smooth - levels.grey) / (levels.white - levels.grey)
    return np.asarray(np.clip(fraction, 0.0, 2.0))


def _patches(
    rng: np.random.Generator,
    place: _Place,
    pull: Points,
    cerebrum: NDArray[np.float32],
    ventricles: NDArray[np.float32],
    share: float,
) -> NDArray[np.float32]:
    """Return how far each voxel belongs to a darkened patch, 0 to 1."""
    template = load_template(NODE_MM)
    nodes = lattice(place.mask.shape, (0.0, 0.0, 0.0), 1.0)
    white = interpolate(place.from_template(template.white_matter, template.grid), nodes + pull)
    wide = resampled(Volume(data=ventricles, voxel_to_ras=place.fine.voxel_to_ras), place.coarse).data
    # Of what is tissue near by: white matter at the wall of a ventricle is as deep as any.
    tissue = np.where(place.mask, 1.0 - wide, 0.0)
    deep = (tissue > 0.5) & (cerebrum > 0.5) & (_mean_near(white, tissue, 1.0) > DEEP_WHITE)
    field = ndimage.gaussian_filter(rng.standard_normal(place.mask.shape), PATCH_SIGMA_MM / NODE_MM)
    likelier, reach_mm = PERIVENTRICULAR
    apart_mm = ndimage.distance_transform_edt(wide < 0.5) * NODE_MM
    score = field / field.std() + likelier * np.exp(-apart_mm / reach_mm)
    count = min(round(share * float((white > 0.5).sum())), int(deep.sum()))
    if not count:
        return np.zeros(place.fine.shape, dtype=np.float32)
    threshold = np.partition(score[deep], -count)[-count]
    # The border of the deep white matter fades too, for it is drawn by the template and not by the brain.
    soft = np.clip((score - threshold) / PATCH_EDGE + 0.5, 0.0, 1.0)
    return place.refined(soft * ndimage.gaussian_filter(deep.astype(np.float64), 0.7))
