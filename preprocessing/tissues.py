"""Grey matter, white matter and fluid of a brain, from its intensities and from where the template has them.

Five classes: the three tissues, and the mixtures of fluid with grey and of grey with white matter, which count by
half for either side. A class weighs by the template's probability of its tissues at a place, softened because the
registration is affine, by its density at the voxel's intensity, and by what its neighbours are. The level of fluid is
taken from the ventricles and stays: a stripped brain may hold little of it. Levels of grey and of white matter vary
slowly over the brain, by what is left of the bias field and because deep grey matter is brighter than cortex.

A mixture of tissues with partial volume and the template's maps as Ashburner 2005, 10.1016/j.neuroimage.2005.02.018,
and Shattuck 2001, 10.1006/nimg.2000.0730, have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume, require_same_grid
from brainstage.preprocessing.regions import coarse_atlas
from brainstage.preprocessing.registration import box_of
from brainstage.preprocessing.resampling import interpolated
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.ventricles import deep_levels

Array = NDArray[np.float32]

PRIOR_MM: Final = 2.0
PRIOR_SIGMA_MM: Final = 4.0
"""About how far a brain's gyri lie from the template's after an affine registration."""
LEAST_PRIOR: Final = (0.02, 0.01, 0.01)
"""Of fluid, grey and white matter anywhere: ventricles grow into what is white matter in the template."""
STEM_WHITE: Final = 0.8
"""Of what the template calls grey in the brain stem, and raters call white matter."""
LATTICE_MM: Final = 3.0
"""The mixture is fitted to single voxels so far apart; what varies slowly is found there and interpolated."""
LEAST_VOXELS: Final = 300
"""Of that lattice inside the mask, 8 ml; fewer are no brain."""
LIKELIEST_PERCENTILE: Final = 90.0
"""Of a tissue's prior: the places from which its level is first taken."""
STEPS: Final = 30
"""Of expectation maximisation; thirty more change no volume by more than half a per cent."""
SPREAD: Final = (1.25, 1.25, 1.0)
"""Standard deviations of fluid, grey and white matter over that of white matter. Free ones grow until grey matter
holds everything that is mixed."""
SOFTNESS: Final = 2.5
"""Times these in the end: levels are found with narrow classes, which take in nothing else, and voxels are classified
with wide ones, where the template and the neighbours count."""
MIXTURES: Final = (1.0, 1.0, 1.0, 2.0, 1.3)
"""Weight of each class before anything is seen: the border of white matter is long, and the template's maps hold less
white matter than raters draw."""
OUTLIERS: Final = 0.01
"""Of a density that is the same everywhere: what is as bright as fat or a vessel with contrast agent goes by place."""
MEDIAN_OF_NORMAL: Final = 0.6745
"""Of the distance from the mean, in standard deviations."""
LEAST_CONTRAST: Final = 0.03
"""Between deep grey and deep white matter, over that between fluid and white matter. It is 0.07 where a contrast agent
has brightened a scan, and a third in most scans."""
LOCAL_SIGMA_MM: Final = 12.0
LOCAL_PRIOR: Final = 0.02
"""Share of a tissue in its surroundings at which its level there counts as much as that of the whole brain."""
LOCAL_MOST: Final = 0.3
"""Of the least contrast, by which a level may differ from that of the whole brain: the order of tissues stays."""
NEIGHBOURS: Final = 1.0
"""Logarithm of the weight that a class gains by each of its six neighbours of the same tissue."""
NEIGHBOUR_STEPS: Final = 2
BINS: Final = (-0.5, 3.0, 3584)
"""Lowest and highest intensity, and number of bins, on the scale where fluid is 0, grey 1 and white matter 2."""
SIDES: Final = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
"""The two tissues of each class; both are the same in a pure one."""
LABELS: Final = (3, 1, 2)
"""Of fluid, grey and white matter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tissues:
    """The tissues of a brain.

    Attributes
    ----------
    grey_matter_ml, white_matter_ml, csf_ml : float
        Together the volume of the brain mask; mixed voxels count in part.
    labels : ndarray, (I, J, K) int8
        On the head's grid: 0 outside the mask, 1 grey matter, 2 white matter, 3 fluid.
    """

    grey_matter_ml: float
    white_matter_ml: float
    csf_ml: float
    labels: NDArray[np.int8]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Levels:
    """Mean intensities of fluid, grey and white matter, (3,), and the standard deviation of white matter."""

    mean: NDArray[np.float64]
    white_sd: float

    def densities(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weighted density of each class, (5, N); darker than fluid is fluid."""
        values = np.maximum(values, self.mean[0])
        sd = self.white_sd * np.array(SPREAD)
        found = []
        for one, other in SIDES:
            if one == other:
                scaled = (values - self.mean[one]) / sd[one]
                density = np.exp(-0.5 * scaled**2) / (np.sqrt(2.0 * np.pi) * sd[one])
            else:
                # Every mixture of the two is equally likely.
                low, high, spread = self.mean[one], self.mean[other], 0.5 * (sd[one] + sd[other])
                density = (ndtr((values - low) / spread) - ndtr((values - high) / spread)) / (high - low)
            found.append(density)
        weighted: NDArray[np.float64] = np.array(found) * np.array(MIXTURES)[:, np.newaxis]
        return weighted

    def of_outliers(self) -> NDArray[np.float64]:
        """Return what is to be added to the density of each class, (5, 1), for intensities that fit to none."""
        every: NDArray[np.float64] = OUTLIERS * np.array(MIXTURES) / (self.mean[2] - self.mean[0])
        return every[:, np.newaxis]

    def in_order(self) -> bool:
        """Tell whether fluid is darker than grey matter, and that darker than white matter."""
        fluid, grey, white = self.mean
        return bool(fluid < grey < white and self.white_sd > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lattice:
    """Every so many voxels of a grid.

    Attributes
    ----------
    apart : tuple of int
        Voxels from one to the next, along each axis.
    steps : tuple of slice
        Which voxels these are.
    shape : tuple of int
        Of the grid.
    grid : Grid
        The lattice's own.
    """

    apart: tuple[int, int, int]
    steps: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    grid: Grid

    @classmethod
    def of(cls, grid: Grid) -> _Lattice:
        i, j, k = (max(1, round(LATTICE_MM / spacing)) for spacing in grid.spacing_mm)
        a, b, c = (-(-n // step) for n, step in zip(grid.shape, (i, j, k), strict=True))
        return cls(
            apart=(i, j, k),
            steps=(slice(None, None, i), slice(None, None, j), slice(None, None, k)),
            shape=grid.shape,
            grid=Grid(shape=(a, b, c), voxel_to_ras=grid.voxel_to_ras @ np.diag([i, j, k, 1.0])),
        )

    def interpolated(self, values: Array) -> Array:
        """Return values of the lattice on the whole grid, linear; level beyond the last voxel of the lattice.

        Axis by axis: by the matrices of linear algebra, threads would wait for each other where cores are busy.
        """
        for axis, (n, step) in enumerate(zip(self.shape, self.apart, strict=True)):
            last = values.shape[axis] - 1
            place = np.minimum(np.arange(n, dtype=np.float32) / np.float32(step), np.float32(last))
            low = place.astype(np.intp)
            beyond = np.expand_dims(place - low.astype(np.float32), tuple({0, 1, 2} - {axis}))
            steps = np.diff(values, axis=axis, append=np.take(values, [last], axis=axis))
            values = np.take(values, low, axis=axis) + beyond * np.take(steps, low, axis=axis)
        return values


def segment_tissues(head: Volume, brain_mask: BrainMask, native_to_template: Affine) -> Tissues | None:
    """Return grey matter, white matter and fluid inside a brain mask.

    Parameters
    ----------
    head : Volume
        Native space, bias-corrected.
    brain_mask : BrainMask
        On the same grid; all of it is given to one of the three.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    Tissues or None
        None where the three cannot be distinguished by their intensities, or where the brain lies beside the template.

    Raises
    ------
    GeometryError
        When the mask does not stand on the head's grid.
    """
    require_same_grid(head, brain_mask)
    deep = deep_levels(head, native_to_template)
    if deep is None or not brain_mask.data.any():
        return None
    if deep.white - deep.grey < LEAST_CONTRAST * (deep.white - deep.fluid):
        return None
    box = box_of(brain_mask.data, (0, 0, 0))
    part, inside = head.grid.part(box), np.ascontiguousarray(brain_mask.data[box])
    lattice = _Lattice.of(part)
    sampled = inside[lattice.steps]
    if sampled.sum() < LEAST_VOXELS:
        return None
    prior = _prior_on(lattice.grid, native_to_template)
    values = np.asarray(head.data[box][lattice.steps][sampled], dtype=np.float64)
    levels, belonging = _fitted(values, prior[:, sampled], deep.fluid)
    if not levels.in_order():
        return None
    grey, white = (
        lattice.interpolated(_local_level(values, belonging[pure], sampled, levels, tissue, lattice.grid))
        for tissue, pure in ((1, 2), (2, 4))
    )
    standard = _on_one_scale(head.data[box][inside], deep.fluid, grey[inside], white[inside])
    roots = [lattice.interpolated(np.sqrt(one))[inside] for one in prior]
    weights = _weights(standard, levels, roots)
    fractions = _fractions(weights)
    for _ in range(NEIGHBOUR_STEPS):
        gain = np.exp(np.float32(0.5 * NEIGHBOURS) * _around(fractions, inside, part.spacing_mm))
        fractions = _fractions(
            [weight * gain[a] * gain[b] for weight, (a, b) in zip(weights, SIDES, strict=True)]
        )
    labels = np.zeros(head.shape, dtype=np.int8)
    labels[box][inside] = np.array(LABELS, dtype=np.int8)[fractions.argmax(axis=0)]
    csf_ml, grey_ml, white_ml = fractions.sum(axis=1, dtype=np.float64) * part.voxel_volume_mm3 / 1000.0
    return Tissues(
        grey_matter_ml=float(grey_ml), white_matter_ml=float(white_ml), csf_ml=float(csf_ml), labels=labels
    )


def _fitted(values: NDArray[np.float64], prior: Array, fluid: float) -> tuple[_Levels, NDArray[np.float64]]:
    """Return the levels by expectation maximisation, and how far each voxel belongs to each class, (5, N).

    Levels out of order end the fit as they are.
    """
    grey, white = (values[one >= np.percentile(one, LIKELIEST_PERCENTILE)] for one in prior[1:])
    white_level = float(np.median(white))
    levels = _Levels(
        mean=np.array([fluid, np.median(grey), white_level]), white_sd=_spread_above(white, white_level)
    )
    of_class = np.array([np.sqrt(prior[one] * prior[other]) for one, other in SIDES], dtype=np.float64)
    belonging = of_class
    for _ in range(STEPS):
        if not levels.in_order():
            break
        fitting = levels.densities(values) * of_class
        # What fits to no class takes part in none, or a vessel would widen white matter.
        belonging = fitting / (fitting + levels.of_outliers() * of_class).sum(axis=0)
        grey_level, white_level = (float(np.average(values, weights=belonging[pure])) for pure in (2, 4))
        levels = _Levels(
            mean=np.array([fluid, grey_level, white_level]), white_sd=_spread_above(white, white_level)
        )
    return levels, belonging


def _spread_above(values: NDArray[np.float64], level: float) -> float:
    """Return the standard deviation by what lies above a level: below it are lesions and what is mixed with grey."""
    above = values[values > level] - level
    return float(np.median(above)) / MEDIAN_OF_NORMAL if above.size else 0.0


def _local_level(
    values: NDArray[np.float64],
    belonging: NDArray[np.float64],
    sampled: NDArray[np.bool_],
    levels: _Levels,
    tissue: int,
    grid: Grid,
) -> Array:
    """Return the level of one tissue around each place of the lattice."""
    sigma = [LOCAL_SIGMA_MM / spacing for spacing in grid.spacing_mm]

    def around(of_voxels: NDArray[np.float64]) -> Array:
        placed = np.zeros(grid.shape, dtype=np.float32)
        placed[sampled] = of_voxels
        smooth: Array = ndimage.gaussian_filter(placed, sigma, mode="constant", truncate=2.5)
        return smooth

    level = levels.mean[tissue]
    differs = around(belonging * (values - level)) / (around(belonging) + np.float32(LOCAL_PRIOR))
    most = LOCAL_MOST * float(np.diff(levels.mean).min())
    return np.asarray(level + np.clip(differs, -most, most), dtype=np.float32)


def _on_one_scale(values: Array, fluid: float, grey: Array, white: Array) -> Array:
    """Return intensities on the scale where fluid is 0, grey matter 1 and white matter 2, by their local levels."""
    beyond = values - grey
    beyond /= np.where(beyond < 0, grey - np.float32(fluid), white - grey)
    return beyond + np.float32(1.0)


def _weights(standard: Array, levels: _Levels, roots: Sequence[Array]) -> list[Array]:
    """Return density times prior of each class, from a table over intensities: that takes a tenth of the time."""
    soft = _Levels(mean=levels.mean, white_sd=SOFTNESS * levels.white_sd)
    low, high, number = BINS
    centres = low + (np.arange(number) + 0.5) * (high - low) / number
    fluid, grey, white = levels.mean
    intensities = np.interp(centres, [0.0, 1.0, high], [fluid, grey, grey + (high - 1.0) * (white - grey)])
    table = (soft.densities(intensities) + soft.of_outliers()).astype(np.float32)
    bins = (
        ((standard - np.float32(low)) * np.float32(number / (high - low)))
        .clip(0, number - 1)
        .astype(np.int16)
    )
    return [row[bins] * roots[a] * roots[b] for row, (a, b) in zip(table, SIDES, strict=True)]


def _fractions(weights: Sequence[Array]) -> Array:
    """Return how much of each voxel is fluid, grey and white matter, (3, N)."""
    half = np.float32(0.5)
    total = weights[0] + weights[1] + weights[2] + weights[3] + weights[4]
    fluid = (weights[0] + half * weights[1]) / total
    white = (weights[4] + half * weights[3]) / total
    return np.stack([fluid, np.float32(1.0) - fluid - white, white])


def _around(fractions: Array, inside: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> Array:
    """Return the tissues of six neighbours, (3, N), near ones more than far ones; outside the mask is fluid."""
    weights = 1.0 / np.array(spacing_mm)
    i, j, k = (np.float32(weight) for weight in 3.0 * weights / weights.sum())
    found = np.empty_like(fractions)
    for tissue in (1, 2):
        here = np.zeros(inside.shape, dtype=np.float32)
        here[inside] = fractions[tissue]
        total = np.zeros_like(here)
        total[1:] += i * here[:-1]
        total[:-1] += i * here[1:]
        total[:, 1:] += j * here[:, :-1]
        total[:, :-1] += j * here[:, 1:]
        total[:, :, 1:] += k * here[:, :, :-1]
        total[:, :, :-1] += k * here[:, :, 1:]
        found[tissue] = total[inside]
    found[0] = np.float32(6.0) - found[1] - found[2]
    return found


def _prior_on(grid: Grid, native_to_template: Affine) -> Array:
    """Return the probabilities of fluid, grey and white matter on a native grid, (3, I, J, K)."""
    grey, white = (
        interpolated(of_template.data, of_template.voxel_to_ras, grid, native_to_template)
        for of_template in _softened()
    )
    prior = np.stack([np.clip(1.0 - grey - white, 0.0, 1.0), grey, white])
    prior += np.array(LEAST_PRIOR, dtype=np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    probabilities: Array = prior / prior.sum(axis=0)
    return probabilities


@cache
def _softened() -> tuple[Volume, Volume]:
    """Return the template's grey and white matter, softened, white in the brain stem."""
    template, atlas = load_template(PRIOR_MM), coarse_atlas(PRIOR_MM)
    (stem,) = (label for label, name in atlas.names.items() if name == "brain stem")
    moved = np.where(atlas.labels.data == stem, STEM_WHITE * template.grey_matter, 0.0).astype(np.float32)
    grey, white = (
        template.t1w.with_data(ndimage.gaussian_filter(tissue, PRIOR_SIGMA_MM / PRIOR_MM))
        for tissue in (template.grey_matter - moved, template.white_matter + moved)
    )
    return grey, white
