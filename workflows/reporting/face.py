"""Where the face is in a scan of a whole head, so that the air around the head can be shown without it.

Face and air are distinguished by where the brain lies, never by intensities: an outline that followed the skin would
be a profile. What is left out has a straight border and no end in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.records import QcStatus
from brainstage.pipeline.volume import Affine
from brainstage.preprocessing.measures import MeasureValue
from brainstage.preprocessing.quality import MEASURE_BY_NAME, Measure, status_of
from brainstage.workflows.reporting.mosaic import Mosaic, Scene

LOCATING: Final = ("mask_template_dice", "upright_margin")
"""Where one of these fails by the built-in bounds, brain and template do not lie on each other, or an axis may be
reversed and the face be where the back of the head is thought to be. No configuration loosens that."""

_FACE_BELOW_MM: Final = 15.0
_FACE_FROM_MM: Final = 10.0
_FACE_SLANT: Final = 0.29
"""In template space the place of the face lies below z = 15 mm, three fingers above the brows, and in front of a plane
that runs from y = 10 mm there to the angle of the jaw. It has no end in front, so that no outline of a nose is left."""
_BRAIN_CENTRE_MM: Final = (0.0, -22.0, 9.0)
"""Of the template's brain mask, to which the scan's own is moved where its axes are asked."""


def face_is_located(measures: Mapping[str, MeasureValue]) -> bool:
    """Return whether brain and template lie on each other well enough to tell where the face is.

    Parameters
    ----------
    measures : mapping
        Of quality control; those of :data:`LOCATING` are asked.
    """
    return all(_is_tolerated(measures.get(name), MEASURE_BY_NAME[name]) for name in LOCATING)


def _is_tolerated(value: MeasureValue, measure: Measure) -> bool:
    if not isinstance(value, int | float) or measure.bounds is None:
        return False
    return status_of(float(value), measure.bounds) is not QcStatus.FAIL


def face_in_slices(scene: Scene, mosaic: Mosaic, native_to_template: Affine) -> NDArray[np.bool_]:
    """Return the place of the face in the slices of a mosaic, and around it; the brain is no part of it.

    Parameters
    ----------
    scene : Scene
        Of the whole head, native.
    mosaic : Mosaic
        Other slices are not looked at.
    native_to_template : ndarray, (4, 4) float64
        RAS+ mm to RAS+ mm.

    Returns
    -------
    ndarray, (I, J, K) bool
    """
    face = np.zeros(scene.mask.shape, dtype=bool)
    centred = np.eye(4)
    centred[:3, 3] = np.array(_BRAIN_CENTRE_MM) - _centre_mm(scene)
    for tile in mosaic.tiles:
        where: list[slice] = [slice(None)] * 3
        where[tile.axis] = slice(tile.index, tile.index + 1)
        plane = tuple(where)
        for to_template in (native_to_template, centred):
            voxel_to_template = to_template @ scene.voxel_to_ras
            face[plane] |= _lies_in_face(face[plane].shape, tile.axis, tile.index, voxel_to_template)
        face[plane] &= ~scene.mask[plane]
    return face


def _lies_in_face(
    shape: tuple[int, ...], axis: int, index: int, voxel_to_template: Affine
) -> NDArray[np.bool_]:
    """Return which voxels of one slice lie in the place of the face."""
    at: list[NDArray[np.float64]] = [np.arange(n, dtype=np.float64) for n in shape]
    at[axis] += index
    i, j, k = np.meshgrid(*at, indexing="ij", sparse=True)
    y, z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in voxel_to_template[1:3])
    inside: NDArray[np.bool_] = (z < _FACE_BELOW_MM) & (
        y > _FACE_FROM_MM + _FACE_SLANT * (z - _FACE_BELOW_MM)
    )
    return inside


def _centre_mm(scene: Scene) -> NDArray[np.float64]:
    """Return the centre of the mask in RAS+ mm."""
    # A mean over every fourth voxel is off by less than a voxel.
    step = 4 if scene.mask[::4, ::4, ::4].any() else 1
    index = step * np.argwhere(scene.mask[::step, ::step, ::step]).mean(axis=0)
    centre: NDArray[np.float64] = scene.voxel_to_ras[:3, :3] @ index + scene.voxel_to_ras[:3, 3]
    return centre
