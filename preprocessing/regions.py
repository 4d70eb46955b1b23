"""Regions of the brain in template space: a few coarse ones that come with the template, or an atlas of the user.

The built-in regions are boxes in MNI mm over the template's brain and tissue. They name a place; they are no
parcellation, and nothing finer than about a centimetre is to be read from their borders.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.errors import ImageError, InputMissingError
from brainstage.pipeline.files import sha256_of_bytes, sha256_of_file
from brainstage.pipeline.nifti import read_raw
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.resampling import resampled_mask
from brainstage.preprocessing.template import Template, load_template, template_sha256
from brainstage.preprocessing.transforms import apply_transform, to_template_transform

REGIONS_VERSION: Final = "1"
COARSE_ATLAS: Final = "brainstage coarse regions"
LEAST_OVERLAP: Final = 0.5
"""Of an atlas's named voxels that have to lie in the template's brain; in place, nearly all of them do."""
_FLUID_PROBABILITY: Final = 0.5
_VENTRICLE_RIM_MM: Final = 2.0
"""Ventricles of the old are wider than the template's, and an affine registration leaves them so."""

VENTRICLE_MARGIN_MM: Final = 6.0
"""Around the boxes of the template's ventricles; up to 8 mm beyond them lie the widest of people of 69 to 87."""
_FINE_MM: Final = 2.0

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Boxes of a region: distance from the midplane, y and z, each from and to, mm; `paired` has left and right."""

    name: str
    boxes: tuple[Box, ...]
    paired: bool = True


_VENTRICLE: Final = "lateral ventricle"
_EVERYWHERE: Final = (-200.0, 200.0)
_PARTS: Final = (
    _Part(
        name="brain stem",
        boxes=(
            ((0, 14), (-38, -14), (-22, -4)),  # midbrain
            ((0, 16), (-42, -10), (-46, -22)),  # pons
            ((0, 12), (-56, -28), (-200, -46)),  # medulla
        ),
        paired=False,
    ),
    _Part(
        name="cerebellum",  # its roof, the tentorium, falls off to the sides
        boxes=(
            ((0, 15), (-100, -42), (-200, -9)),
            ((15, 30), (-100, -34), (-200, -20)),
            ((30, 100), (-100, -38), (-200, -27)),
            ((0, 30), (-100, -34), (-200, -46)),
        ),
    ),
    _Part(
        name=_VENTRICLE,  # fluid only
        boxes=(
            ((2, 28), (-46, 34), (-2, 30)),  # frontal horn and body
            ((12, 36), (-58, -26), (-6, 26)),  # atrium
            ((24, 40), (-40, -4), (-22, -6)),  # temporal horn
        ),
    ),
    _Part(
        name="medial temporal",
        boxes=(
            ((10, 36), (-42, 4), (-40, -8)),
            ((14, 34), (-44, -28), (-8, 2)),  # tail of the hippocampus
        ),
    ),
    _Part(
        name="insula and deep grey",
        boxes=(
            ((28, 41), (-24, 24), (-12, 18)),  # insula
            ((0, 32), (-32, 22), (-16, 19)),  # caudate, putamen, pallidum, thalamus
        ),
    ),
    _Part(
        name="lateral temporal",
        boxes=(
            ((18, 100), (4, 26), (-60, -20)),  # pole
            ((30, 100), (-12, 14), (-60, -3)),
            ((30, 100), (-30, -12), (-60, 8)),
            ((30, 100), (-60, -30), (-60, 12)),
            ((18, 100), (-58, 4), (-60, -8)),  # basal
        ),
    ),
    _Part(
        name="occipital",
        boxes=(
            ((0, 100), (-200, -78), (-60, 36)),
            ((0, 100), (-78, -70), (-60, 28)),
            ((0, 100), (-70, -58), (-60, 12)),
        ),
    ),
    _Part(
        name="parietal",
        boxes=(
            ((0, 100), (-200, -28), _EVERYWHERE),
            ((0, 100), (-28, -22), (-60, 52)),  # the central sulcus runs backwards as it climbs
            ((42, 100), (-22, -12), (8, 45)),
        ),
    ),
    _Part(name="frontal", boxes=(((0, 100), _EVERYWHERE, _EVERYWHERE),)),
)
"""First come, first served: a voxel belongs to the first part that has it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Atlas:
    """Labels in template space and their names.

    Attributes
    ----------
    name : str
        For tables and reports.
    labels : Volume
        Whole numbers, 0 for nothing, on any grid in template space.
    names : mapping
        Label to name.
    sha256 : str
        Of labels and names.
    """

    name: str
    labels: Volume
    names: Mapping[int, str]
    sha256: str

    def on(self, grid: Grid) -> NDArray[np.int64]:
        """Return the labels (I, J, K) at the nearest voxels of another grid; 0 outside the atlas."""
        if self.labels.grid.matches(grid):
            return np.rint(self.labels.data).astype(np.int64)
        moved = apply_transform(self.labels, grid, to_template_transform(np.eye(4)), "nearest")
        return np.rint(moved.data).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class RegionShare:
    """How much of a map lies in a region.

    Attributes
    ----------
    name : str
    share : float
        Of the positive part of the map inside the brain, 0 to 1.
    times_brain_mean : float
        Mean of the positive part in the region over its mean in the brain; 1 where the region is like all the rest.
    volume_ml : float
        Of the region, inside the brain.
    """

    name: str
    share: float
    times_brain_mean: float
    volume_ml: float


@dataclass(frozen=True, kw_only=True)
class RegionSum:
    """What a map adds up to in a region, for and against apart.

    Attributes
    ----------
    name : str
    speaks_for, speaks_against : float
        Sums of the positive and of the negative part; the second is at most 0.
    volume_ml : float
        Of the region, inside the brain.
    """

    name: str
    speaks_for: float
    speaks_against: float
    volume_ml: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.speaks_for + self.speaks_against

    @property
    def size(self) -> float:
        """How much there is of both, whatever they come to."""
        return self.speaks_for - self.speaks_against


@cache
def coarse_atlas(resolution_mm: float = 1.0) -> Atlas:
    """Return the built-in regions on one of the template's grids.

    They partition its brain, and left mirrors right; voxels on the midplane count as left.

    Parameters
    ----------
    resolution_mm : float
        1, 1.5 or 2.
    """
    template = load_template(resolution_mm)
    left, distance, y, z = _places(template.grid)
    labels = np.zeros(template.grid.shape, dtype=np.int16)
    names: dict[int, str] = {}
    ventricles = _ventricles(template)
    for part in _PARTS:
        inside = template.brain_mask.data & (labels == 0) & _within(part.boxes, distance, y, z)
        if part.name == _VENTRICLE:
            inside &= ventricles
        sides = (("left ", left), ("right ", ~left)) if part.paired else (("", True),)
        for side, half in sides:
            names[len(names) + 1] = f"{side}{part.name}"
            labels[inside & half] = len(names)
    return Atlas(
        name=COARSE_ATLAS,
        labels=Volume(data=labels.astype(np.float32), voxel_to_ras=template.grid.voxel_to_ras),
        names=names,
        sha256=sha256_of_bytes(f"{REGIONS_VERSION} {template_sha256()}".encode()),
    )


def _places(
    grid: Grid,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return whether a voxel is left, its distance from the midplane, and its y and z in mm, for an upright grid."""
    x, y, z = (
        grid.voxel_to_ras[axis, axis] * np.arange(grid.shape[axis]) + grid.voxel_to_ras[axis, 3]
        for axis in range(3)
    )
    return (x <= 0)[:, None, None], np.abs(x)[:, None, None], y[None, :, None], z[None, None, :]


def _within(
    boxes: tuple[Box, ...],
    distance: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which voxels lie in any of the boxes; the lower bound belongs to a box, the upper one does not."""
    shape = np.broadcast_shapes(distance.shape, y.shape, z.shape)
    inside = np.zeros(shape, dtype=bool)
    for box in boxes:
        along = [
            (low <= axis) & (axis < high) for axis, (low, high) in zip((distance, y, z), box, strict=True)
        ]
        inside |= along[0] & along[1] & along[2]
    return inside


def _ventricles(template: Template) -> NDArray[np.bool_]:
    """Return the template's fluid with a rim of 2 mm; the boxes say which fluid is that of the lateral ventricles."""
    rim_voxels = round(_VENTRICLE_RIM_MM / template.grid.spacing_mm[0])
    widened: NDArray[np.bool_] = ndimage.binary_dilation(_fluid(template), iterations=rim_voxels)
    return widened


def _fluid(template: Template) -> NDArray[np.bool_]:
    tissue = template.grey_matter + template.white_matter
    return template.brain_mask.data & (tissue < 1.0 - _FLUID_PROBABILITY)


def ventricle_fluid(resolution_mm: float = 1.0) -> NDArray[np.bool_]:
    """Return the fluid of the template's own lateral ventricles, (I, J, K).

    Parameters
    ----------
    resolution_mm : float
        Of the template's grid.
    """
    return ventricle_surroundings(resolution_mm) & _fluid(load_template(resolution_mm))


def ventricle_surroundings(resolution_mm: float = 1.0) -> NDArray[np.bool_]:
    """Return the boxes (I, J, K) in which a person's lateral ventricles lie, within the template's brain.

    Parameters
    ----------
    resolution_mm : float
        Of the template's grid.
    """
    template = load_template(resolution_mm)
    _, distance, y, z = _places(template.grid)
    (part,) = (part for part in _PARTS if part.name == _VENTRICLE)
    return template.brain_mask.data & _within(part.boxes, distance, y, z)


@cache
def brain_without_ventricles(resolution_mm: float) -> NDArray[np.bool_]:
    """Return the template's brain without the surroundings of its lateral ventricles, (I, J, K): what to compare in.

    Ventricles grow to several times their size in age and disease, and inside the whole mask a brain that is right in
    every other place then fits the template like one upside down: 0.56 instead of 0.69.

    Parameters
    ----------
    resolution_mm : float
        Of the template's grid.
    """
    template, fine = load_template(resolution_mm), load_template(_FINE_MM)
    away_mm = ndimage.distance_transform_edt(~ventricle_surroundings(_FINE_MM)) * _FINE_MM
    near = BrainMask(data=away_mm <= VENTRICLE_MARGIN_MM, voxel_to_ras=fine.grid.voxel_to_ras)
    compared: NDArray[np.bool_] = template.brain_mask.data & ~resampled_mask(near, template.grid).data
    return compared


def read_atlas(path: Path) -> Atlas:
    """Read an atlas in template space: a NIfTI file of labels, and beside it a table ``index``, ``name`` (BIDS).

    Parameters
    ----------
    path : Path
        ``FILE.nii.gz`` or ``FILE.nii``; the table is ``FILE.tsv``.

    Raises
    ------
    InputMissingError
        When one of the two files is not there.
    ImageError
        When they cannot be read, do not fit together, or do not lie on the template's brain.
    """
    table = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    raw = read_raw(path)
    if raw.sform is None and raw.qform is None:
        raise ImageError(
            f"{path.name}: its header does not say where it lies; an atlas needs an sform or a qform"
        )
    matrix = raw.sform if raw.sform is not None else raw.qform
    if not np.isfinite(raw.data).all() or not np.array_equal(raw.data, np.rint(raw.data)):
        raise ImageError(f"{path.name} holds values that are no whole numbers; an atlas holds labels")
    names = _read_names(table, path.name)
    atlas = Atlas(
        name=path.name.removesuffix(".gz").removesuffix(".nii"),
        labels=Volume(data=raw.data, voxel_to_ras=np.asarray(matrix)),
        names=names,
        sha256=sha256_of_bytes(f"{sha256_of_file(path)} {sha256_of_file(table)}".encode()),
    )
    _require_overlap(atlas, path.name, table.name)
    return atlas


def _read_names(table: Path, atlas_name: str) -> dict[int, str]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputMissingError(
            f"{atlas_name} needs its names beside it, in {table.name} with the columns index and name "
            f"({error.strerror})"
        ) from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{table.name} is no UTF-8 text") from error
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    try:
        names = {int(row["index"]): row["name"].strip() for row in rows}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ImageError(
            f"{table.name} needs tab-separated columns index (a whole number) and name in every row"
        ) from error
    names = {label: name for label, name in names.items() if label != 0 and name}
    if not names:
        raise ImageError(f"{table.name} names no region")
    return names


def _require_overlap(atlas: Atlas, atlas_name: str, table_name: str) -> None:
    named = np.isin(np.rint(atlas.labels.data), list(atlas.names))
    if not named.any():
        raise ImageError(f"{atlas_name} holds none of the labels that {table_name} names")
    brain = resampled_mask(load_template(1.0).brain_mask, atlas.labels.grid).data
    share = float((named & brain).sum() / named.sum())
    if share < LEAST_OVERLAP:
        raise ImageError(
            f"{atlas_name}: {100 * share:.0f} % of its named voxels lie in the template's brain, at least "
            f"{100 * LEAST_OVERLAP:.0f} % must. Is it an atlas in MNI152 space, and is its header right?"
        )


def region_shares(evidence: Volume, brain: NDArray[np.bool_], atlas: Atlas) -> tuple[RegionShare, ...]:
    """Return how a map is spread over the regions, the one with the highest mean first.

    Parameters
    ----------
    evidence : Volume
        In template space; only what is positive counts.
    brain : ndarray, (I, J, K) bool
        On its grid.
    atlas : Atlas

    Returns
    -------
    tuple of RegionShare
        Regions with at least one voxel in the brain; empty when the map is nowhere positive.
    """
    values = np.where(brain, np.maximum(evidence.data, 0.0), 0.0).astype(np.float64)
    total, voxels = float(values.sum()), int(brain.sum())
    if total <= 0 or not voxels:
        return ()
    labels = np.where(brain, atlas.on(evidence.grid), 0)
    keys = sorted(atlas.names)
    sums = ndimage.sum_labels(values, labels, keys)
    counts = ndimage.sum_labels(brain, labels, keys)
    voxel_ml = evidence.grid.voxel_volume_mm3 / 1000.0
    shares = [
        RegionShare(
            name=atlas.names[key],
            share=float(part / total),
            times_brain_mean=float(part / count / (total / voxels)),
            volume_ml=float(count * voxel_ml),
        )
        for key, part, count in zip(keys, sums, counts, strict=True)
        if count
    ]
    return tuple(sorted(shares, key=lambda one: (-one.times_brain_mean, one.name)))


def region_sums(density: Volume, brain: NDArray[np.bool_], atlas: Atlas) -> tuple[RegionSum, ...]:
    """Return what a map with two signs adds up to in the regions, the one with most of either sign first.

    Parameters
    ----------
    density : Volume
        In template space, per ml.
    brain : ndarray, (I, J, K) bool
        On its grid.
    atlas : Atlas

    Returns
    -------
    tuple of RegionSum
        Regions with at least one voxel in the brain where the map is not 0.
    """
    voxel_ml = density.grid.voxel_volume_mm3 / 1000.0
    values = np.where(brain, density.data, 0.0).astype(np.float64) * voxel_ml
    labels = np.where(brain, atlas.on(density.grid), 0)
    keys = sorted(atlas.names)
    positive, negative = (
        ndimage.sum_labels(part, labels, keys) for part in (np.maximum(values, 0.0), np.minimum(values, 0.0))
    )
    counts = ndimage.sum_labels(brain, labels, keys)
    sums = [
        RegionSum(
            name=atlas.names[key],
            speaks_for=float(above),
            speaks_against=float(below),
            volume_ml=float(count * voxel_ml),
        )
        for key, above, below, count in zip(keys, positive, negative, counts, strict=True)
        if above or below
    ]
    return tuple(sorted(sums, key=lambda one: (-one.size, one.name)))
