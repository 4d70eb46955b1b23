"""The first figure of a scan's report: enlarged slices of the brain, and the air around the head made bright.

Ringing, ghosts, wrap-around and motion are looked for here, by eye. Voxels are drawn as they are: a blend of neighbours
would soften ringing and put a pattern into the noise of the air.

No face leaves this module unless it is asked for. Close to the brain the rule of the other pictures holds
(:func:`brainstage.workflows.reporting.mosaic.visibility`). In slices of the whole head the place of the face is left
out (:mod:`brainstage.workflows.reporting.face`), and the sagittal one lies beside the nose, whose profile could come
back as a ghost behind the head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.records import RegisteredBrain
from brainstage.pipeline.volume import spacing_of
from brainstage.workflows.reporting.drawing import Note, drawn, png_of
from brainstage.workflows.reporting.face import face_in_slices
from brainstage.workflows.reporting.labels import directions, slice_indices
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    WHOLE_HEAD_MM,
    Mosaic,
    Scene,
    enlarged_mosaic,
    grey,
    painted,
    scene_of,
    slices_at,
    window_of,
)

MOST_BRAIN_BYTES: Final = 190_000
MOST_BACKGROUND_BYTES: Final = 110_000
"""Together they add 400 kB to a report, in which they stand as base64."""

_MOST_PIXELS: Final = 1500
"""Of the width: 3 pixels for a voxel of 1 mm of an adult's brain."""
_GAP_PIXELS: Final = 8
_BRAIN_MARGIN_MM: Final = 4.0
_BRAIN_ROWS: Final = (
    ((AXIAL, 0.30), (AXIAL, 0.52), (AXIAL, 0.74)),
    ((CORONAL, 0.35), (CORONAL, 0.60), (SAGITTAL, 0.36)),
)
"""Planes and how far along the brain they lie: temporal lobes, basal ganglia, and the white matter above the
ventricles, where ringing shows best; cerebellum, hippocampus, and one hemisphere beside the midline."""

_HEAD_ROW: Final = ((AXIAL, 0.80), (CORONAL, 0.33), (SAGITTAL, 0.25))
"""Above the eyes, behind the face, and beside the nose."""

_TISSUE_PERCENTILES: Final = (5.0, 99.0)
"""Inside the mask, to black and nearly white. Fluid may turn black, so that tissue has nearly all grey values."""
_BRAIN_LEVELS: Final = (96, 64, 48, 32, 24, 16)
_BACKGROUND_LEVELS: Final = (32, 24, 16, 12, 8)
"""Noise has no fine shades, and takes most of the room."""

_AIR_GRID_MM: Final = 4.0
_AIR_FROM_MM: Final = 15.0
"""Scalp and skull of most heads end so far from the brain."""
_DARK: Final = 0.10
"""Of the brain's median: air is darker."""
_CONSTANT_SHARE: Final = 0.90
"""Of the dark voxels: when so many hold one value, the background was set to it; a little bone and gas is left."""
_LEAST_AIR_VOXELS: Final = 200
"""Of the grid of 4 mm: 13 ml."""
_RAYLEIGH_MEDIAN: Final = 1.177
"""Median of the magnitude of noise over the noise's standard deviation (Gudbjartsson 1995,
10.1002/mrm.1910340618)."""
_WHITE_SDS: Final = 6.0
"""Noise is then a dark grey, and a ghost of twice its size is seen."""
_LEAST_WHITE: Final = 0.015
_MOST_WHITE: Final = 0.20
"""Of the brain's median. Ghosts below 1 % of it do no harm; above a fifth the head itself would turn grey."""

_FACE_COLOUR: Final = (0.12, 0.19, 0.27)


def brain_figure(native: Scene) -> bytes:
    """Draw enlarged slices of the brain with the contrast of its tissues, as PNG.

    Parameters
    ----------
    native : Scene
        With the layers ``after`` (bias-corrected) and ``visible`` (how much of each voxel may be shown). The field is
        taken out because one window then fits the whole brain; it is too smooth to hide or to make ringing.
    """
    brain = _cropped(native, _BRAIN_MARGIN_MM)
    mosaic = _mosaic(brain, *_BRAIN_ROWS)
    window = window_of(brain.layers["after"], brain.mask, _TISSUE_PERCENTILES)
    picture = grey(painted(brain.layers["after"], mosaic, blend=False), window)
    picture *= painted(brain.layers["visible"], mosaic)
    notes = [*directions(mosaic), *slice_indices(mosaic, brain)]
    return png_of(drawn(picture, [], notes), colour_counts=_BRAIN_LEVELS, max_bytes=MOST_BRAIN_BYTES)


def background_figure(registered: RegisteredBrain, *, keep_face: bool) -> bytes | None:
    """Draw slices of the whole head as it was read, bright enough to show the air, as PNG.

    Parameters
    ----------
    registered : RegisteredBrain
        Its registration tells where the face is, so it has to be sound unless the face is kept.
    keep_face : bool
        Leave nothing out.

    Returns
    -------
    bytes or None
        None where there is no air to look at: the scan came stripped, its background was set to one value, or the
        field of view ends at the head.
    """
    corrected = registered.normalised.corrected
    head = corrected.stripped.head
    if corrected.stripped.skull_stripped_input:
        return None
    scene = scene_of(
        {"mask": corrected.brain_mask.data, "head": head.data}, head.voxel_to_ras, margin_mm=WHOLE_HEAD_MM
    )
    air = air_window(scene)
    if air is None:
        return None
    white, share = air
    mosaic = _mosaic(scene, _HEAD_ROW)
    picture = np.repeat(
        grey(painted(scene.layers["head"], mosaic, blend=False), (0.0, white))[..., None], 3, axis=2
    )
    stretch = Note(
        text=f"white from {100 * share:.2g} % of the brain's median",
        left=_GAP_PIXELS + 4,
        top=_GAP_PIXELS + 4,
    )
    notes = [*directions(mosaic), *slice_indices(mosaic, scene), stretch]
    if not keep_face:
        face = painted(face_in_slices(scene, mosaic, registered.native_to_template), mosaic, blend=False) > 0
        picture[face] = _FACE_COLOUR
        notes += _face_notes(mosaic, face)
    return png_of(
        drawn(picture, [], notes), colour_counts=_BACKGROUND_LEVELS, max_bytes=MOST_BACKGROUND_BYTES
    )


def air_window(scene: Scene) -> tuple[float, float] | None:
    """Return the intensity that becomes white so that the noise of the air is a dark grey.

    Parameters
    ----------
    scene : Scene
        Of the whole head, with the layer ``head``; the background is 0 or above.

    Returns
    -------
    tuple of float or None
        In units of the scan, and as a share of the brain's median; None where there is no air, or where it was set to
        one value.
    """
    spacing = np.array(spacing_of(scene.voxel_to_ras))
    step = np.maximum(1, np.round(_AIR_GRID_MM / spacing)).astype(int)
    mask, head = (array[:: step[0], :: step[1], :: step[2]] for array in (scene.mask, scene.layers["head"]))
    brain = float(np.median(head[mask])) if mask.any() else 0.0
    if brain <= 0:
        return None
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing * step) > _AIR_FROM_MM
    dark = head[outside & (head < _DARK * brain)]
    if dark.size < _LEAST_AIR_VOXELS:
        return None
    values, counts = np.unique(dark, return_counts=True)
    if counts.max() > _CONSTANT_SHARE * dark.size:
        return None
    # What holds the lowest value may be padding around the field of view.
    sd = float(np.median(dark[dark > values[0]])) / _RAYLEIGH_MEDIAN
    share = float(np.clip(_WHITE_SDS * sd / brain, _LEAST_WHITE, _MOST_WHITE))
    return share * brain, share


def _face_notes(mosaic: Mosaic, face: NDArray[np.bool_]) -> list[Note]:
    """Name what was left out, in each sagittal slice."""
    notes = []
    for tile in mosaic.tiles:
        rows, columns = np.nonzero(
            face[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        )
        if tile.axis == SAGITTAL and rows.size:
            notes.append(
                Note(
                    text="face left out",
                    left=tile.left + float(columns.mean()),
                    top=tile.top + float(rows.mean()),
                    horizontal="center",
                    vertical="center",
                )
            )
    return notes


def _mosaic(scene: Scene, *rows: tuple[tuple[int, float], ...]) -> Mosaic:
    """Place slices at parts of the brain's extent."""
    placed = [[(axis, slices_at(scene.mask, axis, [part])[0]) for axis, part in row] for row in rows]
    return enlarged_mosaic(scene, placed, most_pixels=_MOST_PIXELS, gap=_GAP_PIXELS)


def _cropped(scene: Scene, margin_mm: float) -> Scene:
    """Return the scene with less around the mask; it still knows the indices of the whole volume."""
    inner = scene_of(scene.layers, scene.voxel_to_ras, margin_mm=margin_mm)
    i, j, k = (outer + more for outer, more in zip(scene.first_index, inner.first_index, strict=True))
    return replace(inner, first_index=(i, j, k))
