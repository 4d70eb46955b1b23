"""What goes wrong with scans, done to them on purpose, so that quality control can be held against it.

Every damage takes a head (or a stripped brain) with its brain mask and returns what a scanner, a converter or a
careless hand would have left of it. Randomness comes from the specimen's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume
from brainstage.preprocessing.measures import Tissues, fit_tissues
from brainstage.preprocessing.orientation import centre_mm
from brainstage.preprocessing.resampling import resampled
from brainstage.preprocessing.template import load_template
from brainstage.workflows.synthetic.motion import Kind, Order, Sampling, with_motion

BLANKED_SHARE: Final = 0.3
"""With more zeros than this, the background of a scan was set to zero; air as it is measured has few."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Specimen:
    """A scan to be damaged.

    Attributes
    ----------
    head : Volume
        RAS, unharmed; with its skull or without.
    brain_mask : BrainMask
        Of the unharmed head.
    rng : numpy.random.Generator
        Where a damage draws its chances from.
    """

    head: Volume
    brain_mask: BrainMask
    rng: np.random.Generator

    def tissues(self) -> Tissues:
        """Return the intensities of grey and white matter."""
        return fit_tissues(self.head.data[self.brain_mask.data])


Damage = Callable[[Specimen], Volume]
MaskDamage = Callable[[Specimen], BrainMask]


def inverted_contrast(specimen: Specimen) -> Volume:
    """Return the head as a T2w shows it: fluid bright, grey matter in the middle, white matter dark."""
    white = specimen.tissues().white_mean
    return _remapped(specimen, (0.0, 0.5 * white, white, 1.6 * white), (1.0, 0.75, 0.35, 0.3))


def flair_contrast(specimen: Specimen) -> Volume:
    """Return the head as a FLAIR shows it: fluid dark, white matter a little darker than grey."""
    tissues = specimen.tissues()
    grey, white = tissues.grey_mean, tissues.white_mean
    return _remapped(specimen, (0.0, 0.5 * grey, grey, white, 2 * white), (0.1, 0.35, 1.0, 0.78, 0.7))


def proton_density_contrast(specimen: Specimen) -> Volume:
    """Return the head as proton density shows it: hardly any contrast, white matter the darkest."""
    tissues = specimen.tissues()
    grey, white = tissues.grey_mean, tissues.white_mean
    return _remapped(specimen, (0.0, 0.4 * grey, grey, white, 2 * white), (0.9, 0.95, 1.0, 0.82, 0.8))


def mislabelled_axes(specimen: Specimen, *, flips: tuple[int, ...]) -> Volume:
    """Return the head with its voxels reversed along `flips`, the header left as it was."""
    return specimen.head.with_data(np.flip(specimen.head.data, flips))


def exchanged_axes(specimen: Specimen) -> Volume:
    """Return the head lying on its back for the header: the axes front and up exchanged, one reversed."""
    head = specimen.head
    x, y, z = head.spacing_mm
    data = np.flip(np.swapaxes(head.data, 1, 2), 1)
    return Volume(data=np.ascontiguousarray(data), voxel_to_ras=np.diag([x, z, y, 1.0]))


def cut_off(specimen: Specimen, *, axis: int, end: int, share: float) -> Volume:
    """Return the head with a field of view that ends inside the brain.

    Parameters
    ----------
    specimen : Specimen
    axis : int
        0 left-right, 1 back-front, 2 down-up.
    end : int
        0 for the lower end of the axis, 1 for the upper.
    share : float
        Of the brain's extent along the axis that is lost.
    """
    head = specimen.head
    low, high = _extent(specimen.brain_mask, axis)
    lost = round(share * (high - low))
    kept = slice(0, high - lost) if end else slice(low + lost, None)
    first = np.zeros(4)
    first[axis] = kept.start
    matrix = head.voxel_to_ras.copy()
    matrix[:, 3] += matrix @ first
    index = tuple(kept if a == axis else slice(None) for a in range(3))
    return Volume(data=head.data[index], voxel_to_ras=matrix)


def dropped_out(specimen: Specimen, *, axis: int, share: float) -> Volume:
    """Return the head without signal in a slab of the brain, somewhere in its middle three fifths."""
    low, high = _extent(specimen.brain_mask, axis)
    thickness = round(share * (high - low))
    first = round(specimen.rng.uniform(low + 0.2 * (high - low), high - 0.2 * (high - low) - thickness))
    data = specimen.head.data.copy()
    data[tuple(slice(first, first + thickness) if a == axis else slice(None) for a in range(3))] = 0.0
    return specimen.head.with_data(data)


def half_gone(specimen: Specimen) -> Volume:
    """Return the head without its right half."""
    low, high = _extent(specimen.brain_mask, 0)
    data = specimen.head.data.copy()
    data[(low + high) // 2 :] = 0.0
    return specimen.head.with_data(data)


def lesioned(specimen: Specimen, *, radius_mm: float) -> Volume:
    """Return the head with a ball of its surface cut away, as after a failed stripping."""
    surface = specimen.brain_mask.data & ~ndimage.binary_erosion(specimen.brain_mask.data)
    spacing = np.array(specimen.head.spacing_mm)
    centre = specimen.rng.permutation(np.argwhere(surface))[0]
    grids = np.ogrid[tuple(slice(0, n) for n in specimen.head.shape)]
    apart = sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing, strict=True))
    return specimen.head.with_data(np.where(apart < radius_mm**2, 0.0, specimen.head.data))


def thick_slices(specimen: Specimen, *, axis: int, thickness_mm: float) -> Volume:
    """Return the head as it is scanned in thick slices across `axis`."""
    head = specimen.head
    ratio = thickness_mm / head.spacing_mm[axis]
    count = max(1, int(head.shape[axis] / ratio))
    scale = np.ones(4)
    scale[axis] = ratio
    offset = np.zeros(4)
    offset[axis] = 0.5 * ratio - 0.5
    matrix = head.voxel_to_ras @ np.diag(scale)
    matrix[:, 3] = head.voxel_to_ras @ (np.array([0.0, 0.0, 0.0, 1.0]) + offset)
    i, j, k = (count if a == axis else n for a, n in enumerate(head.shape))
    return resampled(head, Grid(shape=(i, j, k), voxel_to_ras=matrix))


def noisy(specimen: Specimen, *, share_of_white: float) -> Volume:
    """Return the head with Rician noise; none where the background was set to zero.

    Parameters
    ----------
    specimen : Specimen
    share_of_white : float
        SD of each channel over the intensity of white matter.
    """
    head = specimen.head
    sigma = share_of_white * specimen.tissues().white_mean
    real, imaginary = (specimen.rng.normal(0.0, sigma, head.shape) for _ in range(2))
    magnitude = np.hypot(head.data + real, imaginary)
    return head.with_data(np.where(_measured(head), magnitude, head.data))


def moved(
    specimen: Specimen, *, kind: Kind, strength: float, order: Order = "linear", partial_fourier: float = 1.0
) -> Volume:
    """Return the head of someone who moved; the slow phase-encoding axis is drawn.

    The ringing of a stripped scan ends at its mask, as when the stripping came after the scan. Parameters as of
    :func:`brainstage.workflows.synthetic.motion.with_motion`.
    """
    head = specimen.head
    sampling = Sampling(axis=int(specimen.rng.integers(0, 3)), order=order, partial_fourier=partial_fourier)
    magnitude = with_motion(
        head.data, head.spacing_mm, kind=kind, strength=strength, sampling=sampling, rng=specimen.rng
    )
    return head.with_data(np.where(_measured(head), magnitude, head.data))


def clipped(specimen: Specimen, *, quantile: float) -> Volume:
    """Return the head with every intensity above a quantile of the brain's set to it."""
    ceiling = np.quantile(specimen.head.data[specimen.brain_mask.data], quantile)
    return specimen.head.with_data(np.minimum(specimen.head.data, ceiling))


def shrunken(specimen: Specimen, *, scale: float) -> Volume:
    """Return a head of the same voxels, each smaller: the volume of a small child or of an animal."""
    head = specimen.head
    return Volume(data=head.data, voxel_to_ras=head.voxel_to_ras @ np.diag([scale, scale, scale, 1.0]))


def water_bottle(specimen: Specimen) -> Volume:
    """Return a bottle of water on the head's grid, air noise around it: what is scanned to calibrate."""
    radius = _ellipsoid_radius(specimen.head, (75.0, 85.0, 75.0))
    signal = np.where(radius < 1.0, 300.0 * (1.0 - 0.2 * radius), 0.0)
    noise = np.hypot(*(specimen.rng.normal(0.0, 6.0, signal.shape) for _ in range(2)))
    return specimen.head.with_data(signal + noise)


def textured_blob(specimen: Specimen) -> Volume:
    """Return a brain-sized ellipsoid of blotches on a background of zero: no brain, though it looks stripped."""
    radius = _ellipsoid_radius(specimen.head, (66.0, 82.0, 62.0))
    spacing = np.array(specimen.head.spacing_mm)
    blotches = ndimage.gaussian_filter(specimen.rng.normal(size=radius.shape), 6.0 / spacing)
    values = 300.0 + 80.0 * blotches / blotches.std()
    return specimen.head.with_data(np.where(radius < 1.0, np.maximum(values, 20.0), 0.0))


def legs(specimen: Specimen) -> Volume:
    """Return two legs: cylinders of muscle with bone in a ring of fat."""
    head = specimen.head
    index = np.indices(head.shape, dtype=np.float64)
    x, y = ((index[a] - (head.shape[a] - 1) / 2.0) * head.spacing_mm[a] for a in (0, 1))
    signal = np.zeros(head.shape)
    for side_mm in (-48.0, 48.0):
        apart = np.hypot(x - side_mm, y)
        for within_mm, value in ((44.0, 420.0), (38.0, 180.0), (13.0, 30.0), (9.0, 380.0)):
            signal[apart < within_mm] = value
    noise = np.hypot(*(specimen.rng.normal(0.0, 8.0, signal.shape) for _ in range(2)))
    return head.with_data(signal + noise)


def without_end(specimen: Specimen, *, axis: int, end: int, share: float) -> BrainMask:
    """Return the mask without a part at one end of an axis; parameters as of :func:`cut_off`."""
    low, high = _extent(specimen.brain_mask, axis)
    lost = round(share * (high - low))
    gone = slice(high - lost, None) if end else slice(0, low + lost)
    data = specimen.brain_mask.data.copy()
    data[tuple(gone if a == axis else slice(None) for a in range(3))] = False
    return BrainMask(data=data, voxel_to_ras=specimen.brain_mask.voxel_to_ras)


def with_neck_and_face(specimen: Specimen) -> BrainMask:
    """Return the mask with everything bright within 35 mm of its lower 60 mm."""
    mask, head = specimen.brain_mask.data, specimen.head
    near = dilated(specimen.brain_mask, 35.0).data.copy()
    low, _ = _extent(specimen.brain_mask, 2)
    near[:, :, low + round(60.0 / head.spacing_mm[2]) :] = False
    bright = head.data > 0.3 * np.median(head.data[mask])
    return BrainMask(data=mask | (near & bright), voxel_to_ras=head.voxel_to_ras)


def bright_half(specimen: Specimen) -> BrainMask:
    """Return the brighter half of the mask's voxels, as a threshold in place of an extraction finds them."""
    mask, head = specimen.brain_mask.data, specimen.head
    return BrainMask(data=mask & (head.data > np.median(head.data[mask])), voxel_to_ras=head.voxel_to_ras)


def grown(specimen: Specimen, *, margin_mm: float) -> BrainMask:
    """Return the mask grown, or shrunk, by a margin."""
    return dilated(specimen.brain_mask, margin_mm)


def misplacement(
    *,
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    scale: float = 1.0,
) -> Affine:
    """Return what, after a right affine, makes it a wrong one: template RAS+ mm to template RAS+ mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    centre = centre_mm(load_template(2.0).brain_mask)
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + np.array(shift_mm)
    return matrix


def dilated(brain_mask: BrainMask, margin_mm: float) -> BrainMask:
    """Return the mask grown by a margin, shrunk where it is negative; distances in mm, not voxels."""
    spacing = brain_mask.grid.spacing_mm
    if margin_mm >= 0:
        grown = ndimage.distance_transform_edt(~brain_mask.data, sampling=spacing) <= margin_mm
    else:
        grown = ndimage.distance_transform_edt(brain_mask.data, sampling=spacing) > -margin_mm
    return BrainMask(data=grown, voxel_to_ras=brain_mask.voxel_to_ras)


def _remapped(specimen: Specimen, levels: tuple[float, ...], shares: tuple[float, ...]) -> Volume:
    """Map intensities inside the head piecewise linearly; the air keeps its own."""
    head = specimen.head
    white = specimen.tissues().white_mean
    inside = _inside_of(specimen)
    values = np.interp(head.data, levels, np.array(shares) * white)
    return head.with_data(np.where(inside, values, head.data))


def _inside_of(specimen: Specimen) -> NDArray[np.bool_]:
    """Return the head without the air around it, holes filled; the brain alone where it is stripped."""
    head = specimen.head
    solid = head.data > 0.25 * specimen.tissues().grey_mean
    labels, _ = ndimage.label(ndimage.binary_closing(solid, iterations=2) | specimen.brain_mask.data)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    inside: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == sizes.argmax())
    inside &= _measured(head)
    return inside


def _measured(head: Volume) -> NDArray[np.bool_]:
    """Tell where there is signal or noise: everywhere, except in a background that was set to zero."""
    zero = head.data == 0
    return ~zero if zero.mean() >= BLANKED_SHARE else np.ones(head.shape, dtype=bool)


def _extent(brain_mask: BrainMask, axis: int) -> tuple[int, int]:
    others = tuple(a for a in range(3) if a != axis)
    filled = np.flatnonzero(brain_mask.data.any(axis=others))
    return int(filled[0]), int(filled[-1]) + 1


def _ellipsoid_radius(head: Volume, semi_axes_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return each voxel's distance from the middle of the field of view, 1 on the ellipsoid's surface."""
    grids = np.ogrid[tuple(slice(0, n) for n in head.shape)]
    parts = [
        ((g - (n - 1) / 2.0) * s / a) ** 2
        for g, n, s, a in zip(grids, head.shape, head.spacing_mm, semi_axes_mm, strict=True)
    ]
    return np.asarray(np.sqrt(parts[0] + parts[1] + parts[2]))


def _image_damages() -> dict[str, dict[str, Damage]]:
    axes = {"left": (0, 0), "back": (1, 0), "front": (1, 1), "bottom": (2, 0), "top": (2, 1)}
    return {
        "wrong contrast": {
            "T2-like": inverted_contrast,
            "FLAIR-like": flair_contrast,
            "PD-like": proton_density_contrast,
        },
        "upside down or mirrored axis": {
            "upside down": partial(mislabelled_axes, flips=(1, 2)),
            "back to front, turned": partial(mislabelled_axes, flips=(0, 1)),
            "mirrored up-down": partial(mislabelled_axes, flips=(2,)),
            "mirrored front-back": partial(mislabelled_axes, flips=(1,)),
            "axes exchanged": exchanged_axes,
        },
        "missing part": {
            f"{name} quarter outside the field of view": partial(cut_off, axis=axis, end=end, share=0.25)
            for name, (axis, end) in axes.items()
        }
        | {
            "slab without signal": partial(dropped_out, axis=2, share=0.2),
            "right half without signal": half_gone,
            "ball of 40 mm cut away": partial(lesioned, radius_mm=40.0),
        },
        "thick slices": {
            "4 mm axial": partial(thick_slices, axis=2, thickness_mm=4.0),
            "5 mm sagittal": partial(thick_slices, axis=0, thickness_mm=5.0),
        },
        "heavy noise": {
            "SD 20 % of white matter": partial(noisy, share_of_white=0.2),
            "SD 30 % of white matter": partial(noisy, share_of_white=0.3),
        },
        "motion": {
            "a few moves of 3 mm and degrees": partial(moved, kind="few", strength=3.0),
            "a few moves of 6 mm and degrees, interleaved": partial(
                moved, kind="few", strength=6.0, order="interleaved"
            ),
            "lines shifted by 4 mm": partial(moved, kind="lines", strength=4.0),
            "many moves of 4 mm and degrees": partial(moved, kind="many", strength=4.0),
            "a few moves of 4 mm and degrees, partial Fourier": partial(
                moved, kind="few", strength=4.0, partial_fourier=0.75
            ),
            "many moves of 3 mm and degrees, elliptical": partial(
                moved, kind="many", strength=3.0, order="elliptical"
            ),
            "lines shifted by 8 mm, centric": partial(moved, kind="lines", strength=8.0, order="centric"),
        },
        "clipped intensities": {
            "at the brain's 60th percentile": partial(clipped, quantile=0.6),
            "at the brain's 85th percentile": partial(clipped, quantile=0.85),
        },
        "a small child's volume": {
            "half the volume": partial(shrunken, scale=0.79),
            "a third of the volume": partial(shrunken, scale=0.69),
        },
        "no brain": {
            "water bottle": water_bottle,
            "textured blob": textured_blob,
            "legs": legs,
        },
    }


DAMAGES: Final = _image_damages()
"""Class of failure, then kind, to what does it."""

TOO_MUCH: Final[dict[str, MaskDamage]] = {
    "too much: 6 mm all around": partial(grown, margin_mm=6.0),
    "too much: 10 mm all around": partial(grown, margin_mm=10.0),
    "too much: neck and face": with_neck_and_face,
}
TOO_LITTLE: Final[dict[str, MaskDamage]] = {
    "too little: 5 mm all around": partial(grown, margin_mm=-5.0),
    "too little: 8 mm all around": partial(grown, margin_mm=-8.0),
    "too little: top third lost": partial(without_end, axis=2, end=1, share=0.33),
    "too little: front quarter lost": partial(without_end, axis=1, end=1, share=0.25),
    "too little: lowest 30 % lost": partial(without_end, axis=2, end=0, share=0.3),
    "too little: darker half lost": bright_half,
}
"""What a failed extraction leaves."""

MISPLACEMENTS: Final[dict[str, Callable[[], Affine]]] = {
    "turned by 20 degrees": partial(misplacement, turn_deg=(20.0, 0.0, 0.0)),
    "turned by 30 degrees": partial(misplacement, turn_deg=(0.0, 0.0, 30.0)),
    "upside down": partial(misplacement, turn_deg=(180.0, 0.0, 0.0)),
    "shifted by 20 mm": partial(misplacement, shift_mm=(0.0, 20.0, 0.0)),
    "shifted by 15 mm": partial(misplacement, shift_mm=(0.0, 0.0, 15.0)),
    "shrunk by 15 %": partial(misplacement, scale=0.85),
    "enlarged by 20 %": partial(misplacement, scale=1.2),
}
"""What a failed registration leaves."""
