"""The outlines that the volumes were counted in, on the native scan and large enough to be judged.

Each hippocampus stands in slices of its own, enlarged on cubic voxels whatever those of the scan; the ventricles and
the white matter stand in slices of the whole brain. Nothing is drawn beyond the rim of the other pictures
(:func:`brainstage.workflows.reporting.mosaic.visibility`), so no face is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.records import BrainVolumes
from brainstage.pipeline.volume import Affine, spacing_of
from brainstage.preprocessing.volumes import LABEL_OF
from brainstage.workflows.reporting.drawing import Line, Note, drawn, outlined_png_of
from brainstage.workflows.reporting.labels import directions
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Mosaic,
    Scene,
    grey,
    mosaic_of,
    painted,
    window_of,
)
from brainstage.workflows.reporting.volumes_table import why_withheld

SIDE_COLOURS: Final[Mapping[str, str]] = {"left": "#ffb000", "right": "#35c9ff"}
TISSUE_COLOUR: Final = "#ff7ac8"
_SIDE_LINE: Final = 1.1
_TISSUE_LINE: Final = 0.6

MOST_OUTLINES_BYTES: Final = 230_000
_WIDTH_PIXELS: Final = 1240
_GAP_PIXELS: Final = 8
_TITLE_PIXELS: Final = 22
_TISSUE_PERCENTILES: Final = (5.0, 99.0)
"""Inside the mask, to black and nearly white: grey and white matter have nearly all grey values between them."""
_CLOSEUP_MM: Final = (44.0, 64.0, 44.0)
"""Right, anterior and superior: a long hippocampus with its surroundings, at about 4.6 pixels a mm."""
_CLOSEUP_STEP_MM: Final = 0.5
_SPAN: Final = (0.02, 0.98)
"""Of a structure's volume, from end to end: a stray voxel moves no slice."""
_CORONAL_PARTS: Final = {"head": 0.80, "body": 0.48, "tail": 0.14}
"""From the posterior end."""
_LATERAL_PARTS: Final = {"lateral": 0.36, "medial": 0.66}
"""From the lateral side."""
_EXPECTED_CENTRE_MM: Final = (27.0, -24.0, -12.0)
_EXPECTED_RADII_MM: Final = (9.0, 19.0, 9.0)
"""In template space: side, anterior and superior."""
_BRAIN_ROW: Final = ((AXIAL, 0.72), (AXIAL, 0.40), (CORONAL, 0.38), (CORONAL, 0.68))
"""Planes, and how far along the ventricles they lie."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Band:
    """A row of slices across the whole width, under its title."""

    picture: NDArray[np.float32]
    notes: tuple[Note, ...]
    outlines: Mapping[str, NDArray[np.float32]]
    """Colour to a canvas of 0 ... 1."""


def volumes_figure(native: Scene, volumes: BrainVolumes, native_to_template: Affine) -> bytes:
    """Draw the outlines of hippocampi, ventricles and white matter, as PNG.

    Parameters
    ----------
    native : Scene
        With the layers ``after`` (bias-corrected), ``visible`` (how much of each voxel may be shown) and ``labels``.
    volumes : BrainVolumes
        What is withheld there gets no outline; the picture says why.
    native_to_template : ndarray, (4, 4) float64
        RAS+ mm to RAS+ mm; tells where a hippocampus should be that has no outline.
    """
    window = window_of(native.layers["after"], native.mask, _TISSUE_PERCENTILES)
    native = native.with_layer("shown", grey(native.layers["after"], window) * native.layers["visible"])
    bands = [
        *(_hippocampus_band(native, side, volumes, native_to_template) for side in SIDE_COLOURS),
        _brain_band(native, volumes),
    ]
    tops = np.cumsum([0, *(band.picture.shape[0] for band in bands)])
    notes = [
        replace(note, top=note.top + int(top))
        for band, top in zip(bands, tops, strict=False)
        for note in band.notes
    ]
    widths = {TISSUE_COLOUR: _TISSUE_LINE, **dict.fromkeys(SIDE_COLOURS.values(), _SIDE_LINE)}
    lines = [
        Line(
            canvas=np.concatenate([band.outlines.get(colour, np.zeros_like(band.picture)) for band in bands]),
            colour=colour,
            width=width,
        )
        for colour, width in widths.items()
    ]
    picture = np.concatenate([band.picture for band in bands])
    return outlined_png_of(drawn(picture, lines, notes), list(widths), max_bytes=MOST_OUTLINES_BYTES)


def _hippocampus_band(native: Scene, side: str, volumes: BrainVolumes, native_to_template: Affine) -> _Band:
    name = f"hippocampus_{side}"
    why = why_withheld(volumes, name)
    label = native.layers["labels"] == LABEL_OF[name]
    found = not why and bool(label.any())
    scene = _closeup(native, label if found else _expected_hippocampus(native, side, native_to_template))
    outline = scene.layers["outline"]
    lateral = [part if side == "left" else 1.0 - part for part in _LATERAL_PARTS.values()]
    row = [
        *((CORONAL, _place(outline, CORONAL, part)) for part in _CORONAL_PARTS.values()),
        *((SAGITTAL, _place(outline, SAGITTAL, part)) for part in lateral),
    ]
    mosaic = mosaic_of(scene, [row], width=_WIDTH_PIXELS, gap=_GAP_PIXELS)
    words = [*_CORONAL_PARTS, *_LATERAL_PARTS]
    notes = [*directions(mosaic), *_slice_names(mosaic, scene, native, words)]
    outlines = {SIDE_COLOURS[side]: painted(outline, mosaic)} if found else {}
    title = f"{side} hippocampus" + (f", withheld: {why}" if why else "")
    return _titled(title, painted(scene.layers["shown"], mosaic), notes, outlines)


def _expected_hippocampus(native: Scene, side: str, native_to_template: Affine) -> NDArray[np.bool_]:
    """Return roughly where a hippocampus should be; never empty."""
    to_native = np.linalg.inv(native_to_template @ native.voxel_to_ras)
    across, forward, up = _EXPECTED_CENTRE_MM
    centre = to_native @ (-across if side == "left" else across, forward, up, 1.0)
    reach = np.divide(_EXPECTED_RADII_MM, spacing_of(native.voxel_to_ras))
    last = np.array(native.mask.shape) - 1
    low, high = (np.clip(centre[:3] + sign * reach, 0, last).astype(int) for sign in (-1, 1))
    within = np.zeros(native.mask.shape, dtype=bool)
    within[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1] = True
    return within


def _brain_band(native: Scene, volumes: BrainVolumes) -> _Band:
    labels = native.layers["labels"]
    withheld = {name: why for name in LABEL_OF if (why := why_withheld(volumes, name))}
    ventricles = np.isin(labels, [LABEL_OF[f"ventricle_{side}"] for side in SIDE_COLOURS])
    about = ventricles if ventricles.any() else native.mask
    if not about.any():
        return _titled("", np.zeros((_GAP_PIXELS, _WIDTH_PIXELS), np.float32), [], {})
    row = [(axis, _place(about, axis, part)) for axis, part in _BRAIN_ROW]
    mosaic = mosaic_of(native, [row], width=_WIDTH_PIXELS, gap=_GAP_PIXELS)
    outlines = {
        colour: painted(_shown(labels, withheld, f"ventricle_{side}", f"hippocampus_{side}"), mosaic)
        for side, colour in SIDE_COLOURS.items()
    }
    outlines[TISSUE_COLOUR] = painted(_shown(labels, withheld, "white_matter"), mosaic)
    said = [
        f"{name.replace('_', ' ')} withheld: {why}" for name, why in withheld.items() if "hippo" not in name
    ]
    title = "; ".join(("lateral ventricles, hippocampi and the border of white matter", *said))
    notes = [*directions(mosaic), *_slice_names(mosaic, native, native, [""] * len(row))]
    return _titled(title, painted(native.layers["shown"], mosaic), notes, outlines)


def _shown(labels: NDArray[Any], withheld: Mapping[str, str], *names: str) -> NDArray[np.bool_]:
    """Return where one of some structures is, of those that are not withheld."""
    return np.isin(labels, [LABEL_OF[name] for name in names if name not in withheld])


def _closeup(native: Scene, label: NDArray[np.bool_]) -> Scene:
    """Return a box of one size in mm around a structure, on cubic voxels along the scene's axes."""
    spacing = np.array(spacing_of(native.voxel_to_ras))
    centre = [np.mean([_place(label, axis, part) for part in (0.0, 1.0)]) for axis in range(3)]
    shape = np.round(np.divide(_CLOSEUP_MM, _CLOSEUP_STEP_MM)).astype(int)
    step = _CLOSEUP_STEP_MM / spacing
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = centre - step * (shape - 1) / 2.0

    def taken(array: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = ndimage.affine_transform(
            array.astype(np.float32),
            matrix[:3, :3],
            matrix[:3, 3],
            tuple(shape),
            np.float32,
            1,
            mode="constant",
        )
        return found

    return Scene(
        layers={
            "mask": taken(native.mask) >= 0.5,
            "shown": taken(native.layers["shown"]),
            "outline": taken(label),
        },
        voxel_to_ras=native.voxel_to_ras @ matrix,
        first_index=(0, 0, 0),
    )


def _place(structure: NDArray[Any], axis: int, part: float) -> int:
    """Return the slice at a part of a structure's extent along an axis."""
    below = np.cumsum(structure.sum(axis=tuple(other for other in range(3) if other != axis)))
    first, last = np.searchsorted(below, np.multiply(_SPAN, below[-1]))
    return round(float(first + (last - first) * part))


def _slice_names(mosaic: Mosaic, scene: Scene, native: Scene, words: Sequence[str]) -> list[Note]:
    """Name each slice by a word and by its voxel index in the RAS volume, as a viewer shows it."""
    notes = []
    to_native = np.linalg.inv(native.voxel_to_ras) @ scene.voxel_to_ras
    for tile, word in zip(mosaic.tiles, words, strict=True):
        along = to_native[tile.axis, tile.axis] * tile.index + to_native[tile.axis, 3]
        index = f"{'ijk'[tile.axis]} {native.first_index[tile.axis] + round(float(along))}"
        below = tile.top + tile.height
        notes.append(Note(text=f"{word}  {index}".strip(), left=tile.left + 1, top=below, vertical="bottom"))
    return notes


def _titled(
    title: str,
    picture: NDArray[np.float32],
    notes: Sequence[Note],
    outlines: Mapping[str, NDArray[np.float32]],
) -> _Band:
    room = ((_TITLE_PIXELS, 0), (0, 0))
    heading = Note(text=title, left=_GAP_PIXELS, top=_TITLE_PIXELS / 2, vertical="center", bold=True)
    return _Band(
        picture=np.pad(picture, room),
        notes=(heading, *(replace(note, top=note.top + _TITLE_PIXELS) for note in notes)),
        outlines={colour: np.pad(canvas, room) for colour, canvas in outlines.items()},
    )
