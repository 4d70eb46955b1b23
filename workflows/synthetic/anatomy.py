"""What a synthetic head consists of: the embedded template's brain, and tissue painted around it.

Everything stands on the *model grid*: 1 mm voxels in the template's RAS+ space (MNI152NLin2009aSym), with room for
ears, nose and neck around the template's own field of view.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.errors import ToolNotFoundError
from brainstage.workflows.synthetic.diffeomorphism import (
    VectorField,
    column,
    lattice,
    refine,
    swelling_velocity,
)

Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Lowest and highest x, y and z, template mm."""

MODEL_ORIGIN_MM: Final = (-100.0, -136.0, -152.0)
"""Template coordinates of the model's first voxel."""

MODEL_SHAPE: Final = (201, 261, 257)
"""Voxels of 1 mm; from the neck (z = -152) to above the scalp (z = 104)."""

TEMPLATE_ORIGIN_MM: Final = (-98.0, -134.0, -72.0)
"""Template coordinates of the embedded template's first voxel."""

VENTRICLE_BOX_MM: Final[Bounds] = ((-36.0, 36.0), (-60.0, 32.0), (-5.0, 32.0))
"""Where the bodies, frontal horns and atria of the lateral ventricles lie; keeps cisterns out."""

CSF_BELOW: Final = 100
"""Template intensities under this are CSF: ventricles are near 79, grey matter near 166, white matter near 222."""

DEEP_MM: Final = 12.0
"""CSF at least this far inside the brain is ventricular; sulci are shallower."""

VENTRICLE_MINIMUM_ML: Final = 3.0
"""Each lateral ventricle of the template holds about 6.8 ml; pieces of other spaces stay under 1 ml."""

ATROPHY_BOX_MM: Final[Bounds] = ((-79.0, 79.0), (-112.0, 80.0), (-80.0, 79.0))
"""Where the atrophy fields live: the brain, and far enough around the regions for the fields to have died away."""

ATROPHY_STEP_VOXELS: Final = 3
"""Nodes of the atrophy fields, every 3 mm: less than half the width of the finest detail in them."""

HULL_CLOSING_MM: Final = 10.0
"""The brain's hull bridges gaps up to twice this wide: fissures and cisterns hold CSF, not bone."""

HEAD_SHELL_MM: Final = 15.0
"""From the brain's hull to the skin: CSF, skull and scalp together."""

SKIN_MM: Final = 2.0
"""Depth of the skin."""

FAT_MM: Final = 5.0
"""Depth below the surface that subcutaneous fat reaches; muscle or bone below."""


class Tissue(IntEnum):
    """What a voxel outside the brain holds."""

    AIR = 0
    CSF = 1
    BONE = 2
    MARROW = 3
    MUSCLE = 4
    FAT = 5
    SKIN = 6
    VITREOUS = 7
    CORD = 8


NO_PART: Final = 255
"""In the parts of :class:`HeadAnatomy`: no part lies here, the layers decide."""


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """A piece of head in template coordinates; with an infinite half axis it is a cylinder.

    Attributes
    ----------
    tissue : Tissue
    centre_mm, radii_mm : tuple of float
        Template RAS+ mm.
    paired : bool
        There is a mirror image on the other side.
    top_mm : float
        Nothing above this z.
    pitch_deg : float
        By how much its front end is turned down.
    """

    tissue: Tissue
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    paired: bool = False
    top_mm: float = np.inf
    pitch_deg: float = 0.0


HIPPOCAMPUS: Final = Ellipsoid(
    tissue=Tissue.CORD, centre_mm=(27, -22, -16), radii_mm=(7, 17, 6.5), paired=True, pitch_deg=25.0
)
"""Both hippocampi: 3.2 ml a side, as in adults (2.5 to 3.5 ml), the body rising backwards over the AC-PC plane."""

FLESH: Final = (
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, 40, -66), radii_mm=(66, 58, 66)),
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, 98, -58), radii_mm=(14, 20, 20)),
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, 62, -112), radii_mm=(44, 40, 32)),
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, -22, -60), radii_mm=(62, 66, np.inf), top_mm=-40.0),
    Ellipsoid(tissue=Tissue.SKIN, centre_mm=(84, -18, -38), radii_mm=(9, 15, 26), paired=True),
)
"""The outline of face, nose, chin, neck and ears."""

INNER_PARTS: Final = (
    Ellipsoid(tissue=Tissue.FAT, centre_mm=(50, 52, -78), radii_mm=(9, 18, 20), paired=True),
    Ellipsoid(tissue=Tissue.BONE, centre_mm=(0, 66, -112), radii_mm=(42, 30, 14)),
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, 56, -106), radii_mm=(35, 33, 24)),
    Ellipsoid(tissue=Tissue.BONE, centre_mm=(0, 66, -82), radii_mm=(32, 28, 8)),
    Ellipsoid(tissue=Tissue.AIR, centre_mm=(0, 56, -92), radii_mm=(24, 30, 3)),
    Ellipsoid(tissue=Tissue.AIR, centre_mm=(0, 62, -62), radii_mm=(11, 34, 14)),
    Ellipsoid(tissue=Tissue.MUSCLE, centre_mm=(0, 62, -60), radii_mm=(1.5, 30, 13)),
    Ellipsoid(tissue=Tissue.AIR, centre_mm=(29, 56, -66), radii_mm=(12, 15, 14), paired=True),
    Ellipsoid(tissue=Tissue.AIR, centre_mm=(0, 22, -46), radii_mm=(11, 12, 9)),
    Ellipsoid(tissue=Tissue.AIR, centre_mm=(0, 10, -60), radii_mm=(9, 7, np.inf), top_mm=-58.0),
    Ellipsoid(tissue=Tissue.FAT, centre_mm=(33, 54, -40), radii_mm=(17, 24, 17), paired=True),
    Ellipsoid(tissue=Tissue.VITREOUS, centre_mm=(33, 67, -40), radii_mm=(12, 12, 12), paired=True),
    Ellipsoid(tissue=Tissue.BONE, centre_mm=(56, -34, -54), radii_mm=(13, 14, 17), paired=True),
    Ellipsoid(tissue=Tissue.FAT, centre_mm=(36, -30, -110), radii_mm=(3, 24, 60), paired=True),
    Ellipsoid(tissue=Tissue.FAT, centre_mm=(0, -72, -110), radii_mm=(24, 6, 40)),
    Ellipsoid(tissue=Tissue.BONE, centre_mm=(0, -45, -72), radii_mm=(17, 15, np.inf), top_mm=-78.0),
    *(
        Ellipsoid(tissue=Tissue.MARROW, centre_mm=(0, -20, z), radii_mm=(14, 11, 8.5))
        for z in (-86.0, -104.0, -122.0, -140.0)
    ),
    Ellipsoid(tissue=Tissue.CSF, centre_mm=(0, -45, -72), radii_mm=(11, 10, np.inf), top_mm=-70.0),
    Ellipsoid(tissue=Tissue.CORD, centre_mm=(0, -45, -72), radii_mm=(7, 6, np.inf), top_mm=-70.0),
)
"""What lies inside, in the order of painting: jaw, palate, airways, sinuses, orbits, mastoids, spine, cord."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAnatomy:
    """The template with a head around it; arrays have :data:`MODEL_SHAPE`.

    Attributes
    ----------
    t1, gm, wm : ndarray, uint8
        The template's intensities, and its tissue probabilities times 255.
    brain : ndarray, bool
        The template's brain, holes filled.
    ventricles, hippocampi : ndarray, bool
        The regions that atrophy changes.
    ventricle_swelling, hippocampus_swelling : VectorField
        Velocities that swell the regions at unit rate, template mm.
    hull_distance_mm, skin_depth_mm : ndarray, float32
        Distance outside the brain's hull, and depth below the head's surface (0 in the air).
    parts : ndarray, uint8
        :class:`Tissue` of the inner parts, :data:`NO_PART` where there is none.
    """

    t1: NDArray[np.uint8]
    gm: NDArray[np.uint8]
    wm: NDArray[np.uint8]
    brain: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    hippocampi: NDArray[np.bool_]
    ventricle_swelling: VectorField
    hippocampus_swelling: VectorField
    hull_distance_mm: NDArray[np.float32]
    skin_depth_mm: NDArray[np.float32]
    parts: NDArray[np.uint8]

    def tissues(self, csf_mm: float, skull_mm: float) -> NDArray[np.uint8]:
        """Return the :class:`Tissue` of every voxel outside the brain; the brain itself counts as CSF.

        Parameters
        ----------
        csf_mm, skull_mm : float
            Width of the space around the brain, and thickness of the bone around that.
        """
        depth, distance = self.skin_depth_mm, self.hull_distance_mm
        known = self.parts != NO_PART
        spine = self.parts == Tissue.CORD
        tissue = np.full(MODEL_SHAPE, Tissue.MUSCLE, dtype=np.uint8)
        tissue[depth < FAT_MM] = Tissue.FAT
        tissue[depth < SKIN_MM] = Tissue.SKIN
        tissue[depth <= 0] = Tissue.AIR
        tissue[known] = self.parts[known]
        tissue[(distance < csf_mm + skull_mm) & ~spine] = Tissue.BONE
        tissue[(np.abs(distance - csf_mm - skull_mm / 2) < skull_mm / 6) & ~known] = Tissue.MARROW
        tissue[(distance < csf_mm) & ~spine] = Tissue.CSF
        return tissue


def load_anatomy() -> HeadAnatomy:
    """Return the embedded template with a head painted around it; takes a few seconds, so keep it.

    Raises
    ------
    ToolNotFoundError
        When nilearn does not carry the template.

    References
    ----------
    Fonov 2009 (10.1016/S1053-8119(09)70884-5), MNI152 nonlinear symmetric 2009a.
    """
    t1, gm, wm = (_on_model_grid(_template_map(name)) for name in ("t1", "gm", "wm"))
    brain = np.asarray(ndimage.binary_fill_holes(t1 > 0))
    ventricles = _find_ventricles(t1, brain)
    hippocampi = np.zeros(MODEL_SHAPE, dtype=np.bool_)
    _fill(hippocampi, HIPPOCAMPUS, value=1, spacing_mm=1.0)
    parts = np.full(MODEL_SHAPE, NO_PART, dtype=np.uint8)
    for part in INNER_PARTS:
        _fill(parts, part, value=part.tissue, spacing_mm=1.0)
    hull_distance_mm, skin_depth_mm = _head_layers(brain)
    return HeadAnatomy(
        t1=t1,
        gm=gm,
        wm=wm,
        brain=brain,
        ventricles=ventricles,
        hippocampi=hippocampi,
        ventricle_swelling=region_swelling(ventricles),
        hippocampus_swelling=region_swelling(hippocampi),
        hull_distance_mm=hull_distance_mm,
        skin_depth_mm=skin_depth_mm,
        parts=parts,
    )


def region_swelling(region: NDArray[np.bool_]) -> VectorField:
    """Return the velocity that swells a region of the model grid at unit rate, over :data:`ATROPHY_BOX_MM`."""
    x, y, z = (low for low, _ in ATROPHY_BOX_MM)
    return swelling_velocity(region[_box(ATROPHY_BOX_MM)], (x, y, z), 1.0, ATROPHY_STEP_VOXELS)


def _box(bounds_mm: Bounds, margin: int = 0) -> tuple[slice, slice, slice]:
    """Return the voxels of the model between bounds in template mm, both ends included, and a margin around them."""
    x, y, z = (
        slice(round(low - origin) - margin, round(high - origin) + margin + 1)
        for (low, high), origin in zip(bounds_mm, MODEL_ORIGIN_MM, strict=True)
    )
    return x, y, z


def _template_map(name: str) -> NDArray[np.uint8]:
    file_name = f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    resource = importlib.resources.files("nilearn.datasets") / "data" / file_name
    if not resource.is_file():
        raise ToolNotFoundError(
            f"nilearn does not carry {file_name}; reinstall nilearn, version 0.11 or later"
        )
    with importlib.resources.as_file(resource) as path:
        return np.asarray(nib.load(path).dataobj, dtype=np.uint8)


def _on_model_grid(template: NDArray[np.uint8]) -> NDArray[np.uint8]:
    x, y, z = (round(t - m) for t, m in zip(TEMPLATE_ORIGIN_MM, MODEL_ORIGIN_MM, strict=True))
    model = np.zeros(MODEL_SHAPE, dtype=np.uint8)
    kept = template[:, :, : MODEL_SHAPE[2] - z]  # the slices above are empty
    model[x : x + kept.shape[0], y : y + kept.shape[1], z:] = kept
    return model


def _find_ventricles(t1: NDArray[np.uint8], brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dark, deep and near the midline: the bodies, frontal horns and atria of the lateral ventricles."""
    margin = int(DEEP_MM) + 1
    around = _box(VENTRICLE_BOX_MM, margin)
    within = (slice(margin, -margin),) * 3
    deep = ndimage.distance_transform_edt(brain[around])[within] > DEEP_MM
    dark = deep & (t1[around][within] < CSF_BELOW)
    dark[round(-VENTRICLE_BOX_MM[0][0])] = False  # the midline plane belongs to the third ventricle
    labels, count = ndimage.label(dark)
    large = np.bincount(labels.ravel(), minlength=count + 1) > VENTRICLE_MINIMUM_ML * 1000
    large[0] = False
    ventricles = np.zeros(MODEL_SHAPE, dtype=np.bool_)
    ventricles[around][within] = large[labels]
    return ventricles


def _head_layers(brain: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance from the brain's hull and depth below the skin, computed at 2 mm, where both are smooth enough."""
    half = brain[::2, ::2, ::2]
    grown = ndimage.distance_transform_edt(~half, 2.0) <= HULL_CLOSING_MM
    hull = ndimage.binary_fill_holes(ndimage.distance_transform_edt(grown, 2.0) > HULL_CLOSING_MM) | half
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(~hull, 2.0), 0.8)
    distance[half] = 0.0
    head = (distance < HEAD_SHELL_MM).astype(np.float64)
    for part in FLESH:
        _fill(head, part, value=1, spacing_mm=2.0)
    below = ndimage.binary_fill_holes(ndimage.gaussian_filter(head, 1.5, mode="nearest") > 0.5)
    padded = np.pad(below, ((0, 0), (0, 0), (16, 0)), mode="edge")  # the neck goes on: its cut is no surface
    depth = ndimage.distance_transform_edt(padded, 2.0)[:, :, 16:]
    return (
        refine(distance[np.newaxis], MODEL_SHAPE)[0].astype(np.float32),
        refine(depth[np.newaxis], MODEL_SHAPE)[0].astype(np.float32),
    )


def _fill(target: NDArray[Any], part: Ellipsoid, *, value: int, spacing_mm: float) -> None:
    """Set the voxels of `target` that lie inside `part`; `target` covers the model with voxels of `spacing_mm`."""
    tilt = Rotation.from_euler("x", part.pitch_deg, degrees=True).as_matrix()
    reach = np.array(part.radii_mm)
    if part.pitch_deg:
        reach[1:] = reach[1:].max()
    for side in (1.0, -1.0) if part.paired else (1.0,):
        centre = np.array(part.centre_mm) * (side, 1.0, 1.0)
        highest = np.minimum(centre + reach, (np.inf, np.inf, part.top_mm))
        first = np.maximum(np.ceil((centre - reach - MODEL_ORIGIN_MM) / spacing_mm), 0).astype(int)
        last = np.minimum((highest - MODEL_ORIGIN_MM) // spacing_mm, np.array(target.shape) - 1).astype(int)
        box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        offset = lattice(target[box].shape, first * spacing_mm + MODEL_ORIGIN_MM - centre, spacing_mm)
        local = np.einsum("ab,b...->a...", tilt, offset) / column(part.radii_mm, 4)
        target[box][(local**2).sum(axis=0) <= 1.0] = value
