"""Synthetic heads with a known truth, made from the template that nilearn carries.

A head is the template's brain with tissue painted around it (extra-axial CSF, skull, scalp, face, neck), bent by
two diffeomorphisms and one affine, and measured by an imperfect scanner::

    anatomy -> atrophy -> individual shape -> size and pose -> voxel grid -> bias field -> noise -> int16

The image is resampled once, through the composed inverse maps. Every random number comes from an explicit seed,
arithmetic is float64 until the final rounding, so the same recipe gives the same voxels everywhere.

Frames: *template* is RAS+ mm of MNI152NLin2009aSym, *native* is RAS+ mm of the scanner. These heads are for
demonstrations and tests; nothing about disease is learned from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume, checked_affine
from brainstage.workflows.synthetic.anatomy import (
    MODEL_ORIGIN_MM,
    MODEL_SHAPE,
    HeadAnatomy,
    Tissue,
    load_anatomy,
)
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

__all__ = ["Contrast", "HeadRecipe", "SyntheticHead", "load_anatomy", "make_head"]

VENTRICLE_SCALES: Final = (0.7, 4.0)
"""Volumes the flow reaches with every Jacobian determinant positive."""

HIPPOCAMPUS_SCALES: Final = (0.5, 1.2)
"""Likewise."""

VOLUME_TOLERANCE: Final = 0.005
"""Relative error of a volume along the flow; counted in voxels of 1 mm it is met to 3 %."""

SOLVER_LIMIT: Final = 30
"""Steps to find the flow's rates; the largest scales take nine."""

SHAPE_SCALES_MM: Final = ((25.0, 2.2), (12.0, 1.0))
"""Individual shape: (smoothness as the sigma of a Gaussian, SD of each displacement component), both in mm."""

SHAPE_GRID_MM: Final = 6.0
"""Spacing of the individual shape's field: half of its finest scale."""

FIELD_CENTRE_MM: Final = (0.0, -8.0, -26.0)
"""Template point that lies in the middle of the field of view when the pose shifts nothing."""

BIAS_EXTENT_MM: Final = 300.0
"""The bias field has at most two half waves over this: coil sensitivities vary over a head's width."""

BIAS_NODES_MM: Final = 30.0
"""Lattice around the isocentre over which the bias field's mean and SD are set, the same for every voxel grid."""

WHITE_MATTER: Final = 222.0
"""Template intensity of white matter; noise and gain are relative to it."""


_WORLD_AXIS: Final = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_VENTRICLE: Final = 2
_HIPPOCAMPUS: Final = 3


class Contrast(StrEnum):
    """What kind of image the scanner makes of a head."""

    T1W = "T1w"
    T2W = "T2w"


TISSUE_INTENSITY: Final[dict[Contrast, dict[Tissue, float]]] = {
    Contrast.T1W: {
        Tissue.AIR: 2.0,
        Tissue.CSF: 62.0,
        Tissue.BONE: 22.0,
        Tissue.MARROW: 150.0,
        Tissue.MUSCLE: 118.0,
        Tissue.FAT: 285.0,
        Tissue.SKIN: 150.0,
        Tissue.VITREOUS: 60.0,
        Tissue.CORD: 190.0,
    },
    Contrast.T2W: {
        Tissue.AIR: 2.0,
        Tissue.CSF: 300.0,
        Tissue.BONE: 18.0,
        Tissue.MARROW: 110.0,
        Tissue.MUSCLE: 55.0,
        Tissue.FAT: 190.0,
        Tissue.SKIN: 90.0,
        Tissue.VITREOUS: 310.0,
        Tissue.CORD: 95.0,
    },
}
"""On the template's scale, where T1w white matter is 222. Fat outshines white matter in T1w, fluid in T2w."""

T2_BRAIN: Final = (85.0, 145.0, 300.0)
"""T2-like intensity of white matter, grey matter and CSF: the reverse of T1w."""


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """All that determines a synthetic scan.

    Attributes
    ----------
    person_seed : int
        Shape, size, skull and contrast: the same at every visit of one person.
    scan_seed : int
        Pose, bias field, gain and noise of one scan.
    ventricle_scale, hippocampus_scale : float
        Volume of the lateral ventricles and of the hippocampi, relative to the template's.
    contrast : Contrast
    spacing_mm : tuple of float
        Voxel size along the stored axes.
    fov_mm : tuple of float
        Field of view left-right, back-front, down-up.
    axcodes : str
        Directions of the stored axes, such as ``LPS``.
    tilt_deg : float
        Rotation of the voxel grid about the left-right axis: an oblique acquisition.
    rotation_limit_deg, shift_limit_mm : float
        The head's pose is drawn within these, about and along each axis.
    bias_sd : float
        SD of the logarithm of the bias field over the field of view; 0.1 is typical at 3 T.
    noise_fraction : float
        SD of the noise in each receiver channel, relative to white matter.

    Raises
    ------
    UsageError
        When a scale lies outside of what the flow reaches, or the axes do not name each direction once.
    """

    person_seed: int
    scan_seed: int
    ventricle_scale: float = 1.0
    hippocampus_scale: float = 1.0
    contrast: Contrast = Contrast.T1W
    spacing_mm: tuple[float, float, float] = (1.3, 1.3, 1.3)
    fov_mm: tuple[float, float, float] = (192.0, 246.0, 240.0)
    axcodes: str = "RAS"
    tilt_deg: float = 0.0
    rotation_limit_deg: float = 10.0
    shift_limit_mm: float = 8.0
    bias_sd: float = 0.1
    noise_fraction: float = 0.02

    def __post_init__(self) -> None:
        for name, (low, high) in (("ventricle", VENTRICLE_SCALES), ("hippocampus", HIPPOCAMPUS_SCALES)):
            scale = getattr(self, f"{name}_scale")
            if not low <= scale <= high:
                raise UsageError(f"{name}_scale must lie in {low:g}..{high:g}, got {scale:g}")
        if len(self.axcodes) != 3 or {_WORLD_AXIS.get(code, -1) for code in self.axcodes} != {0, 1, 2}:
            raise UsageError(
                f"axcodes must name each of L/R, A/P and S/I once, such as RAS; got {self.axcodes!r}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticHead:
    """A scan and the truth about it; everything on the scan's grid.

    Attributes
    ----------
    head : Volume
        Whole numbers within int16, as float32.
    brain_mask : BrainMask
        The template's brain, carried to this head.
    log_bias_field : ndarray, (I, J, K) float64
        Natural logarithm of the multiplicative field.
    template_to_native : ndarray, (4, 4) float64
        Size and pose: template RAS+ mm to native RAS+ mm, without the smooth deformations.
    ventricle_ml, hippocampus_ml : float
        Volumes on this grid, both sides together.
    recipe : HeadRecipe
    """

    head: Volume
    brain_mask: BrainMask
    log_bias_field: NDArray[np.float64] = field(repr=False)
    template_to_native: Affine
    ventricle_ml: float
    hippocampus_ml: float
    recipe: HeadRecipe


def make_head(anatomy: HeadAnatomy, recipe: HeadRecipe) -> SyntheticHead:
    """Make one scan of one synthetic person.

    Parameters
    ----------
    anatomy : HeadAnatomy
        From :func:`load_anatomy`.
    recipe : HeadRecipe

    Returns
    -------
    SyntheticHead
        The same for the same recipe, to the last bit.
    """
    grid = acquisition_grid(recipe)
    template_to_native = draw_pose(recipe)
    shape = individual_shape(recipe.person_seed)
    atrophy = atrophy_pullback(anatomy, recipe.ventricle_scale, recipe.hippocampus_scale)

    coarse_native = _coarse_centres(grid)
    points = _transform(checked_affine(np.linalg.inv(template_to_native)), coarse_native)
    points = points + shape.at(points)
    points = points + atrophy.at(points)
    indices = refine(points - column(MODEL_ORIGIN_MM, points.ndim), grid.shape)
    log_bias = refine(draw_log_bias(recipe, coarse_native)[np.newaxis], grid.shape)[0]

    regions = interpolate(region_codes(anatomy), indices, order=0)
    signal = interpolate(paint(anatomy, recipe), indices)
    voxel_ml = grid.voxel_volume_mm3 / 1000.0
    return SyntheticHead(
        head=Volume(data=scan_signal(signal, log_bias, recipe), voxel_to_ras=grid.voxel_to_ras),
        brain_mask=BrainMask(data=regions > 0, voxel_to_ras=grid.voxel_to_ras),
        log_bias_field=log_bias,
        template_to_native=template_to_native,
        ventricle_ml=float((regions == _VENTRICLE).sum()) * voxel_ml,
        hippocampus_ml=float((regions == _HIPPOCAMPUS).sum()) * voxel_ml,
        recipe=recipe,
    )


def acquisition_grid(recipe: HeadRecipe) -> Grid:
    """Return the voxel grid of a recipe: its field of view centred on the scanner's isocentre (0, 0, 0)."""
    axes = [_WORLD_AXIS[code] for code in recipe.axcodes]
    signs = [1.0 if code in "RAS" else -1.0 for code in recipe.axcodes]
    spacing = np.array(recipe.spacing_mm)
    i, j, k = (round(recipe.fov_mm[axis] / size) for axis, size in zip(axes, recipe.spacing_mm, strict=True))
    directions = np.zeros((3, 3))
    directions[axes, range(3)] = signs
    matrix = np.eye(4)
    matrix[:3, :3] = (
        Rotation.from_euler("x", recipe.tilt_deg, degrees=True).as_matrix() @ directions * spacing
    )
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
    return Grid(shape=(i, j, k), voxel_to_ras=matrix)


def draw_pose(recipe: HeadRecipe) -> Affine:
    """Return template-to-native: the person's size, the head's rotation and shift in the scanner.

    The template is larger than most heads (Lancaster 2007, 10.1002/hbm.20345), so sizes lie around 0.92.
    """
    person, scan = _stream(recipe.person_seed, "size"), _stream(recipe.scan_seed, "pose")
    sizes = person.uniform(0.89, 0.95) * person.uniform(0.98, 1.02, size=3)
    angles = scan.uniform(-1, 1, size=3) * recipe.rotation_limit_deg
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * sizes
    matrix[:3, 3] = scan.uniform(-1, 1, size=3) * recipe.shift_limit_mm - matrix[:3, :3] @ FIELD_CENTRE_MM
    return checked_affine(matrix)


def individual_shape(person_seed: int) -> VectorField:
    """Return a smooth invertible displacement that makes one head differ from another.

    Returns
    -------
    VectorField
        Displacement ``u`` over the model grid, mm: the point ``x`` of this person corresponds to ``x + u(x)`` of
        the anatomy. The exponential of a random velocity, so invertible.
    """
    rng = _stream(person_seed, "shape")
    nodes = tuple(int(np.ceil(n / SHAPE_GRID_MM)) + 1 for n in MODEL_SHAPE)
    velocity = np.zeros((3, *nodes))
    for sigma_mm, sd_mm in SHAPE_SCALES_MM:
        for component in velocity:
            rough = rng.standard_normal(nodes)
            smooth = ndimage.gaussian_filter(rough, sigma_mm / SHAPE_GRID_MM, mode="reflect")
            component += smooth * (sd_mm / smooth.std())
    return exponential(VectorField(vectors_mm=velocity, origin_mm=MODEL_ORIGIN_MM, spacing_mm=SHAPE_GRID_MM))


def atrophy_pullback(anatomy: HeadAnatomy, ventricle_scale: float, hippocampus_scale: float) -> VectorField:
    """Return the displacement that pulls an atrophied brain back to the anatomy.

    One stationary flow swells the ventricles and shrinks the hippocampi; its two rates are solved for, so that
    the flow changes the two volumes by what is asked.

    Parameters
    ----------
    anatomy : HeadAnatomy
    ventricle_scale, hippocampus_scale : float
        Wanted volume relative to the template's.

    Returns
    -------
    VectorField
        Displacement ``u``, mm: the point ``x`` of the atrophied brain comes from ``x + u(x)``.
    """
    targets = np.log([ventricle_scale, hippocampus_scale])
    ventricles, hippocampi = _region_points(anatomy.ventricles), _region_points(anatomy.hippocampi)
    rates = targets.copy()
    for _ in range(SOLVER_LIMIT):
        flow = _atrophy_flow(anatomy, rates)
        missing = targets - np.log([volume_ratio(flow, ventricles), volume_ratio(flow, hippocampi)])
        if np.abs(missing).max() < VOLUME_TOLERANCE:
            break
        rates = rates + missing
    else:
        raise UsageError(
            f"no flow changes the ventricles by {ventricle_scale:g} and the hippocampi by {hippocampus_scale:g}"
        )
    return exponential(_atrophy_flow(anatomy, -rates))


def _atrophy_flow(anatomy: HeadAnatomy, rates: NDArray[np.float64]) -> VectorField:
    ventricles, hippocampi = anatomy.ventricle_swelling, anatomy.hippocampus_swelling
    return ventricles.with_vectors(rates[0] * ventricles.vectors_mm + rates[1] * hippocampi.vectors_mm)


def paint(anatomy: HeadAnatomy, recipe: HeadRecipe) -> NDArray[np.float64]:
    """Return the noiseless signal of a head on the model grid, on the template's intensity scale.

    The person's seed decides how wide the CSF around the brain is, how thick the skull, how bright the fat, and by
    how much grey and white matter differ from the template.
    """
    rng = _stream(recipe.person_seed, "tissue")
    csf_mm, skull_mm = rng.uniform(1.5, 4.0), rng.uniform(4.5, 6.5)
    fat_gain, gm_gain, wm_gain = rng.uniform(0.85, 1.1), rng.uniform(-0.20, -0.11), rng.uniform(-0.03, 0.04)
    levels = np.array([TISSUE_INTENSITY[recipe.contrast][tissue] for tissue in Tissue], dtype=np.float64)
    levels[Tissue.FAT] *= fat_gain
    signal = levels[anatomy.tissues(csf_mm, skull_mm)]
    brain = anatomy.brain
    gm, wm = anatomy.gm[brain] / 255.0, anatomy.wm[brain] / 255.0
    if recipe.contrast is Contrast.T1W:
        signal[brain] = anatomy.t1[brain] * (1 + gm_gain * gm + wm_gain * wm)
    else:
        wm_level, gm_level, csf_level = T2_BRAIN
        signal[brain] = wm * wm_level + gm * gm_level + np.clip(1 - wm - gm, 0, 1) * csf_level
    return signal


def draw_log_bias(recipe: HeadRecipe, points_mm: Points) -> NDArray[np.float64]:
    """Return the logarithm of a smooth multiplicative field at native points.

    A random sum of cosines over :data:`BIAS_EXTENT_MM`, with mean 0 and SD `bias_sd` over a head's extent. It belongs
    to the scanner: it does not move with the head.
    """
    weights = _stream(recipe.scan_seed, "bias").standard_normal((3, 3, 3))
    typical = _sum_of_cosines(weights, lattice((9, 9, 9), (-4 * BIAS_NODES_MM,) * 3, BIAS_NODES_MM))
    return np.asarray(
        (_sum_of_cosines(weights, points_mm) - typical.mean()) * (recipe.bias_sd / typical.std())
    )


def _sum_of_cosines(weights: NDArray[np.float64], points_mm: Points) -> NDArray[np.float64]:
    phases = np.pi * (points_mm / BIAS_EXTENT_MM + 0.5)
    x, y, z = ([np.ones_like(p), np.cos(p), np.cos(2 * p)] for p in phases)
    total = np.zeros(points_mm.shape[1:])
    for (a, b, c), weight in np.ndenumerate(weights):
        total += weight * x[a] * y[b] * z[c]
    return total


def scan_signal(
    signal: NDArray[np.float64], log_bias: NDArray[np.float64], recipe: HeadRecipe
) -> NDArray[np.float32]:
    """Return what the scanner stores: bias field, Rician noise, a gain, whole numbers within int16.

    References
    ----------
    Gudbjartsson 1995 (10.1002/mrm.1910340618), the Rician distribution of MRI data.
    """
    rng = _stream(recipe.scan_seed, "noise")
    gain = rng.uniform(3.0, 5.0)
    noise_sd = recipe.noise_fraction * WHITE_MATTER
    real = signal * np.exp(log_bias) + noise_sd * rng.standard_normal(signal.shape)
    imaginary = noise_sd * rng.standard_normal(signal.shape)
    stored = np.rint(gain * np.hypot(real, imaginary))
    return np.asarray(np.clip(stored, 0, np.iinfo(np.int16).max), dtype=np.float32)


def region_codes(anatomy: HeadAnatomy) -> NDArray[np.uint8]:
    """Return 0 outside the brain, 1 in it, 2 in the ventricles, 3 in the hippocampi; :data:`MODEL_SHAPE` uint8."""
    codes = anatomy.brain.astype(np.uint8)
    codes[anatomy.ventricles] = _VENTRICLE
    codes[anatomy.hippocampi] = _HIPPOCAMPUS
    return codes


def _stream(seed: int, purpose: str) -> np.random.Generator:
    """Return a generator of its own for each purpose: changing one ingredient leaves the others as they were."""
    return np.random.default_rng([seed, *purpose.encode()])


def _transform(matrix: Affine, points_mm: Points) -> Points:
    return np.asarray(
        np.einsum("ab,b...->a...", matrix[:3, :3], points_mm) + column(matrix[:3, 3], points_mm.ndim)
    )


def _region_points(region: NDArray[np.bool_]) -> Points:
    """Every third voxel centre of a region, (3, N) mm: enough to measure its volume to a few parts in a thousand."""
    return np.argwhere(region)[::3].T + column(MODEL_ORIGIN_MM, 2)


def _coarse_centres(grid: Grid) -> Points:
    """Native position of every second voxel centre, the last one included or passed, (3, I, J, K) mm."""
    nodes = [n // 2 + 1 for n in grid.shape]
    return _transform(grid.voxel_to_ras, lattice(nodes, (0.0, 0.0, 0.0), 2.0))
