"""Pictures of one scan for its report: pure functions from state to PNG bytes.

No face leaves this module unless it is asked for: outside the brain mask only tissue within a few millimetres is
drawn (:func:`brainstage.workflows.reporting.mosaic.visibility`), and where the air around the head is shown, the place
of the face is left out (:mod:`brainstage.workflows.reporting.face`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.derivatives import RESOLUTION_LABELS
from brainstage.pipeline.records import BrainVolumes, RegisteredBrain
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.resampling import resampled
from brainstage.preprocessing.template import load_template
from brainstage.workflows.evidence import COLOURED_FROM
from brainstage.workflows.reporting.drawing import (
    COLOUR_COUNTS,
    DPI,
    TEXT_COLOUR,
    TEXT_POINTS,
    Line,
    Note,
    coloured_png_of,
    drawn,
    png_of,
)
from brainstage.workflows.reporting.flicker import BANDS, flicker_bands, flicker_mosaic
from brainstage.workflows.reporting.image_quality import background_figure, brain_figure
from brainstage.workflows.reporting.labels import directions, millimetres, slice_indices
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    SURROUND_MM,
    WHOLE_HEAD_MM,
    Mosaic,
    Scene,
    fullest,
    grey,
    mosaic_of,
    painted,
    scene_of,
    spread,
    visibility,
    window_of,
)
from brainstage.workflows.reporting.outlines import volumes_figure

_WIDTH_PIXELS: Final = 1240
_THUMBNAIL_WIDTH_PIXELS: Final = 240
_COLUMNS: Final = 7
_GAP_PIXELS: Final = 8
_MASK_COLOUR: Final = "#ffb000"
_TEMPLATE_COLOUR: Final = "#35c9ff"
_FIELD_MAP: Final = "RdBu_r"
_LEAST_FIELD_RANGE: Final = 0.05
"""A field flatter than 5 % is drawn on a scale of 5 %: noise must not look like a field."""
_FIELD_COLOURS: Final = (256, 128, 64, 32, 16)
_FIELD_SAMPLES: Final = 100_000
_EVIDENCE_MAP: Final = "plasma"
_EVIDENCE_OPACITY: Final = 0.75
_SIGNED_COLOURS: Final = (("#6baed6", "#08519c"), ("#fc9272", "#b8000f"))
"""Of what speaks against and for the class: where it is weak, and where it is strongest."""
_SIGNED_STEPS: Final = 64
_SIGNED_COLUMNS: Final = 5
"""Fewer and larger slices than elsewhere: what has a colour is a block of 4 mm or a voxel of 2."""
_SCALE_PIXELS: Final = 70
_HISTOGRAM_BINS: Final = 100
_BEFORE_STYLE: Final[Mapping[str, Any]] = {"color": "#8a6d1d", "linestyle": "--"}
_AFTER_STYLE: Final[Mapping[str, Any]] = {"color": "#0b5cad"}


def scan_figures(
    registered: RegisteredBrain,
    *,
    keep_face: bool = False,
    face_located: bool = False,
    labels: Volume | None = None,
    volumes: BrainVolumes | None = None,
) -> dict[str, bytes]:
    """Draw every picture of a scan.

    Parameters
    ----------
    registered : RegisteredBrain
        Native and template states of the scan.
    keep_face : bool
        Draw the whole head in native space.
    face_located : bool
        Whether the registration is sound enough to tell where the face is
        (:func:`brainstage.workflows.reporting.face.face_is_located`).
    labels : Volume, optional
        Hippocampi, ventricles and tissues, on the grid of the native head.
    volumes : BrainVolumes, optional
        What was counted in it.

    Returns
    -------
    dict
        ``image_quality``, ``background``, ``mask``, ``registration``, ``flicker``, ``bias_field``, ``histogram``,
        ``volumes`` and ``montage`` (a thumbnail 240 pixels wide), each a PNG below 300 kB. ``background`` is missing
        where there is no air around the head, or where the face can be neither shown nor located, ``volumes`` where
        there is no label map. Masks may be odd or empty; around an empty one nothing is drawn.
    """
    native = _native_scene(registered, labels)
    shown = _whole_head_scene(registered) if keep_face else native
    registered_scene = _registered_scene(registered)
    background = background_figure(registered, keep_face=keep_face) if keep_face or face_located else None
    outlines = (
        volumes_figure(native, volumes, registered.native_to_template)
        if labels is not None and volumes is not None
        else None
    )
    return {
        "image_quality": brain_figure(native),
        **({"background": background} if background else {}),
        "mask": _mask_figure(shown),
        "registration": _registration_figure(registered_scene),
        "flicker": _flicker_figure(registered, registered_scene),
        "bias_field": _bias_field_figure(native),
        "histogram": _histogram_figure(registered),
        **({"volumes": outlines} if outlines else {}),
        "montage": _montage_figure(shown, registered_scene),
    }


def _whole_head_scene(registered: RegisteredBrain) -> Scene:
    corrected = registered.normalised.corrected
    head = corrected.stripped.head
    layers = {
        "mask": corrected.brain_mask.data,
        "before": head.data,
        "visible": np.ones(head.shape, np.float32),
    }
    return scene_of(layers, corrected.brain_mask.voxel_to_ras, margin_mm=WHOLE_HEAD_MM)


def _native_scene(registered: RegisteredBrain, labels: Volume | None) -> Scene:
    corrected = registered.normalised.corrected
    layers: dict[str, NDArray[Any]] = {
        "mask": corrected.brain_mask.data,
        "before": corrected.stripped.head.data,
        "after": corrected.head.data,
        **({} if labels is None else {"labels": labels.data}),
    }
    scene = scene_of(layers, corrected.brain_mask.voxel_to_ras, margin_mm=SURROUND_MM + 2.0)
    return scene.with_layer("visible", visibility(scene))


def _mask_figure(native: Scene) -> bytes:
    mosaic = mosaic_of(native, _three_planes(native), width=_WIDTH_PIXELS, gap=_GAP_PIXELS)
    picture = grey(painted(native.layers["before"], mosaic), window_of(native.layers["before"], native.mask))
    picture *= painted(native.layers["visible"], mosaic)
    outline = Line(canvas=painted(native.mask, mosaic), colour=_MASK_COLOUR)
    return png_of(drawn(picture, [outline], [*directions(mosaic), *slice_indices(mosaic, native)]))


def _montage_figure(native: Scene, registered: Scene) -> bytes:
    """Draw a thumbnail: the mask's outline on the native scan, and below it the template's on the registered brain."""
    mosaics = [
        mosaic_of(
            scene,
            [[(axis, spread(scene.mask, axis, 1)[0]) for axis in (AXIAL, CORONAL, SAGITTAL)]],
            width=_THUMBNAIL_WIDTH_PIXELS,
            gap=2,
        )
        for scene in (native, registered)
    ]
    above = grey(
        painted(native.layers["before"], mosaics[0]), window_of(native.layers["before"], native.mask)
    )
    above *= painted(native.layers["visible"], mosaics[0])
    below = painted(registered.layers["brain"], mosaics[1])
    outlines = [
        painted(scene.mask, mosaic) for scene, mosaic in zip((native, registered), mosaics, strict=True)
    ]
    lines = [
        Line(canvas=np.concatenate([outlines[0], 0 * below]), colour=_MASK_COLOUR, width=0.8),
        Line(canvas=np.concatenate([0 * above, outlines[1]]), colour=_MASK_COLOUR, width=0.8),
    ]
    return png_of(drawn(np.concatenate([above, below]), lines, []), colour_counts=COLOUR_COUNTS[1:])


def _registered_scene(registered: RegisteredBrain) -> Scene:
    template_mask, white_matter, template = _template_on(registered.brain.grid)
    own_mask = registered.brain_mask.data
    window = window_of(registered.brain.data, own_mask)
    layers = {
        "mask": template_mask,
        "brain": grey(np.where(own_mask, registered.brain.data, np.float32(window[0])), window),
        "white_matter": white_matter,
        "template": template,
    }
    return scene_of(layers, registered.brain.voxel_to_ras, margin_mm=8.0)


def _registration_figure(scene: Scene) -> bytes:
    mosaic = mosaic_of(scene, _three_planes(scene), width=_WIDTH_PIXELS, gap=_GAP_PIXELS)
    lines = [
        Line(canvas=painted(scene.mask, mosaic), colour=_MASK_COLOUR),
        Line(
            canvas=ndimage.gaussian_filter(painted(scene.layers["white_matter"], mosaic), 1.0),
            colour=_TEMPLATE_COLOUR,
            width=0.7,
        ),
    ]
    return png_of(
        drawn(
            painted(scene.layers["brain"], mosaic),
            lines,
            [*directions(mosaic), *millimetres(mosaic, scene)],
        )
    )


def _flicker_figure(registered: RegisteredBrain, scene: Scene) -> bytes:
    mosaic = flicker_mosaic(scene, width=_WIDTH_PIXELS, gap=_GAP_PIXELS)
    height = mosaic.size[0]
    notes = [
        note
        for band, name in enumerate(BANDS)
        for note in (
            *(replace(one, top=one.top + band * height) for one in directions(mosaic)),
            Note(text=name, left=4, top=4 + band * height),
        )
    ]
    picture = np.concatenate(flicker_bands(registered, scene, mosaic))
    return png_of(drawn(picture, [], notes), colour_counts=COLOUR_COUNTS[1:])


def _template_on(grid: Grid) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Return the template's mask, white matter and brain on a grid, kept in memory where it is one of its own."""
    for resolution_mm in RESOLUTION_LABELS:
        if np.allclose(grid.spacing_mm, resolution_mm, atol=1e-3):
            template = load_template(resolution_mm)
            if template.grid.matches(grid):
                return template.brain_mask.data, template.white_matter, template.t1w.data
    template = load_template(1.0)
    mask = resampled(template.t1w.with_data(template.brain_mask.data), grid).data >= 0.5
    white_matter = resampled(template.t1w.with_data(template.white_matter), grid).data
    return mask, white_matter, resampled(template.t1w, grid).data


def _bias_field_figure(native: Scene) -> bytes:
    mask, before, after = (native.layers[name] for name in ("mask", "before", "after"))
    counts = {AXIAL: 3, CORONAL: 2, SAGITTAL: 2}
    row = [(axis, index) for axis, count in counts.items() for index in spread(mask, axis, count)]
    mosaic = mosaic_of(native, [row], width=_WIDTH_PIXELS - _SCALE_PIXELS, gap=2 * _GAP_PIXELS)
    inside = painted(mask, mosaic)
    field, limit = _log_field(before, after, mask, mosaic)
    colours = colormaps[_FIELD_MAP](grey(field, (-limit, limit)))[..., :3].astype(np.float32)
    bands = [
        np.repeat((grey(painted(array, mosaic), window_of(array, mask)) * inside)[..., None], 3, axis=2)
        for array in (before, after)
    ]
    bands.append(colours * inside[..., None])
    picture = np.pad(np.concatenate(bands), ((0, 0), (0, _SCALE_PIXELS), (0, 0)))
    height = mosaic.size[0]
    words = ("before", "after", "field")
    notes = [Note(text=word, left=4, top=4 + n * height) for n, word in enumerate(words)]
    scale = _field_scale(limit, 2 * height, 3 * height)
    return png_of(
        drawn(picture, [], [*directions(mosaic), *notes], extra=scale), colour_counts=_FIELD_COLOURS
    )


def _log_field(
    before: NDArray[Any], after: NDArray[Any], mask: NDArray[np.bool_], mosaic: Mosaic
) -> tuple[NDArray[np.float32], float]:
    """Return the canvas of log(before / after) around its median inside the mask, and the limit of its scale.

    A field is smooth, so voxels without signal are filled from their neighbours.
    """
    sound = mask & (before > 0) & (after > 0)
    if not sound.any():
        return np.zeros(mosaic.size, dtype=np.float32), _LEAST_FIELD_RANGE
    ratio = np.zeros(mask.shape, dtype=np.float32)
    np.divide(before, after, out=ratio, where=sound)
    np.log(ratio, out=ratio, where=sound)
    sample = ratio[sound]
    sample = sample[:: max(1, sample.size // _FIELD_SAMPLES)]
    middle = float(np.median(sample))
    limit = max(_LEAST_FIELD_RANGE, float(np.percentile(np.abs(sample - middle), 99.0)))
    weight, total = (ndimage.gaussian_filter(painted(array, mosaic), 2.0) for array in (sound, ratio))
    field: NDArray[np.float32] = total / np.maximum(weight, np.float32(1e-3)) - np.float32(middle)
    return field, limit


def _field_scale(limit: float, top: int, bottom: int) -> Callable[[Axes], None]:
    """Return what draws the colour scale of the field right of it, in per cent."""

    def draw(axes: Axes) -> None:
        left, height = _WIDTH_PIXELS - 62, 0.7 * (bottom - top)
        first = top + 0.15 * (bottom - top)
        ramp = np.linspace(1.0, 0.0, 64)[:, None]
        axes.imshow(
            ramp, cmap=_FIELD_MAP, extent=(left, left + 12, first + height, first), aspect="auto", zorder=3
        )
        for place, value in ((0.0, limit), (0.5, 0.0), (1.0, -limit)):
            text = f"{100 * np.expm1(value):+.0f} %" if value else "0 %"
            axes.text(
                left + 16, first + place * height, text, color=TEXT_COLOUR, fontsize=TEXT_POINTS, va="center"
            )

    return draw


def evidence_figure(brain: Volume, brain_mask: BrainMask, evidence: Volume, units: str) -> bytes:
    """Draw a map of what a prediction rests on over the registered brain, as PNG.

    Parameters
    ----------
    brain : Volume
        Registered, normalised.
    brain_mask : BrainMask
    evidence : Volume
        On the same grid; coloured inside the brain where it is above a part of its maximum there.
    units : str
        Of the map, for its scale.
    """
    window = window_of(brain.data, brain_mask.data)
    layers = {
        "mask": brain_mask.data,
        "brain": grey(np.where(brain_mask.data, brain.data, np.float32(window[0])), window),
        "evidence": np.where(brain_mask.data, evidence.data, np.float32(0.0)),
    }
    scene = scene_of(layers, brain.voxel_to_ras, margin_mm=8.0)
    highest = float(scene.layers["evidence"].max(initial=0.0))
    strong = np.where(scene.layers["evidence"] > COLOURED_FROM * highest, scene.layers["evidence"], 0.0)
    rows = _fullest_planes(scene, strong, columns=_COLUMNS, extent=scene.mask)
    mosaic = mosaic_of(scene, rows, width=_WIDTH_PIXELS - _SCALE_PIXELS, gap=_GAP_PIXELS)
    picture: NDArray[Any] = np.repeat(painted(scene.layers["brain"], mosaic)[..., None], 3, axis=2)
    if highest > 0:
        level = painted(scene.layers["evidence"], mosaic) / np.float32(highest)
        # Slices are taken between voxels; the colour must not spill over the brain's edge there.
        shown = (level > COLOURED_FROM) & (painted(scene.mask, mosaic) > 0.5)
        weight = np.where(shown, np.float32(_EVIDENCE_OPACITY), np.float32(0.0))[..., None]
        colours = colormaps[_EVIDENCE_MAP](_evidence_level(level))[..., :3].astype(np.float32)
        picture = (1 - weight) * picture + weight * colours
    picture = np.pad(picture, ((0, 0), (0, _SCALE_PIXELS), (0, 0)))
    scale = _evidence_scale(highest, units, mosaic.size[0]) if highest > 0 else None
    notes = [*directions(mosaic), *millimetres(mosaic, scene)]
    return png_of(drawn(picture, [], notes, extra=scale), colour_counts=_FIELD_COLOURS)


def signed_evidence_figure(
    brain: Volume, brain_mask: BrainMask, evidence: Volume, units: str, highest: float
) -> bytes:
    """Draw a map with two signs over the registered brain, as PNG: red for, blue against.

    Parameters
    ----------
    brain : Volume
        Registered, normalised.
    brain_mask : BrainMask
    evidence : Volume
        On the same grid.
    units : str
        Of the map, for its scale.
    highest : float
        Absolute value where the colours end; the same for maps that are to be compared.
    """
    window = window_of(brain.data, brain_mask.data)
    values = np.where(brain_mask.data, evidence.data, np.float32(0.0))
    layers = {
        "mask": brain_mask.data,
        "brain": grey(np.where(brain_mask.data, brain.data, np.float32(window[0])), window),
        "evidence": values,
    }
    scene = scene_of(layers, brain.voxel_to_ras, margin_mm=8.0)
    size = np.abs(scene.layers["evidence"])
    rows = _fullest_planes(
        scene, size, columns=_SIGNED_COLUMNS, extent=size > 0 if size.any() else scene.mask
    )
    mosaic = mosaic_of(scene, rows, width=_WIDTH_PIXELS - _SCALE_PIXELS, gap=_GAP_PIXELS)
    picture: NDArray[Any] = np.repeat(painted(scene.layers["brain"], mosaic)[..., None], 3, axis=2)
    if highest > 0:
        # Blocks end where they end: between them there is nothing to blend.
        level = painted(scene.layers["evidence"], mosaic, blend=False) / np.float32(highest)
        coloured = (level != 0) & (painted(scene.mask, mosaic) > 0.5)
        picture = np.where(coloured[..., None], _signed_colours(level), picture)
    picture = np.pad(picture, ((0, 0), (0, _SCALE_PIXELS), (0, 0))).astype(np.float32)
    scale = _signed_scale(highest, units, mosaic.size[0]) if highest > 0 else None
    notes = [*directions(mosaic), *millimetres(mosaic, scene)]
    ramp = _signed_colours(np.linspace(-1.0, 1.0, _SIGNED_STEPS, dtype=np.float32))
    return coloured_png_of(drawn(picture, [], notes, extra=scale), ramp)


def _signed_colours(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colours (..., 3) of levels -1 to 1."""
    weak, strong = (
        np.where(
            level[..., None] < 0,
            to_rgb(_SIGNED_COLOURS[0][end]),
            to_rgb(_SIGNED_COLOURS[1][end]),
        )
        for end in (0, 1)
    )
    part = np.abs(level)[..., None]
    return np.asarray((1 - part) * weak + part * strong, dtype=np.float32)


def _signed_scale(highest: float, units: str, height: int) -> Callable[[Axes], None]:
    """Return what draws the colour scale of a map with two signs right of it."""

    def draw(axes: Axes) -> None:
        left, long = _WIDTH_PIXELS - 66, min(260.0, 0.6 * height)
        first = 0.5 * (height - long)
        ramp = _signed_colours(np.linspace(1.0, -1.0, 128, dtype=np.float32)[:, None])
        axes.imshow(ramp, extent=(left, left + 12, first + long, first), aspect="auto", zorder=3)
        words: dict[str, Any] = {"color": TEXT_COLOUR, "fontsize": TEXT_POINTS}
        for place, value in ((0.0, highest), (0.5, 0.0), (1.0, -highest)):
            text = f"{value:+.2g}" if value else "0"
            axes.text(left + 16, first + place * long, text, va="center", **words)
        axes.text(left, first - 22, units.replace("/", "\n/"), va="bottom", **words)
        axes.text(left + 16, first + 14, "for", va="center", **words)
        axes.text(left + 16, first + long - 14, "against", va="center", **words)

    return draw


def _evidence_level(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread what is coloured over the whole colour map."""
    return np.clip((level - np.float32(COLOURED_FROM)) / np.float32(1.0 - COLOURED_FROM), 0.0, 1.0)


def _evidence_scale(highest: float, units: str, height: int) -> Callable[[Axes], None]:
    """Return what draws the colour scale of the map right of it."""

    def draw(axes: Axes) -> None:
        left, long = _WIDTH_PIXELS - 66, min(260.0, 0.6 * height)
        first = 0.5 * (height - long)
        ramp = np.linspace(1.0, 0.0, 64)[:, None]
        axes.imshow(
            ramp, cmap=_EVIDENCE_MAP, extent=(left, left + 12, first + long, first), aspect="auto", zorder=3
        )
        words: dict[str, Any] = {"color": TEXT_COLOUR, "fontsize": TEXT_POINTS}
        for place, part in ((0.0, 1.0), (1.0, COLOURED_FROM)):
            axes.text(left + 16, first + place * long, f"{part * highest:.2g}", va="center", **words)
        axes.text(left, first - 10, units, va="bottom", **words)

    return draw


def _histogram_figure(registered: RegisteredBrain) -> bytes:
    normalised = registered.normalised
    mask = normalised.brain_mask.data
    figure = Figure(figsize=(9.6, 3.0), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, normalised.corrected.stripped.head.data[mask], "before", _BEFORE_STYLE)
    _curve(left, normalised.corrected.head.data[mask], "after", _AFTER_STYLE)
    left.set(xlabel="intensity inside the mask, as stored", ylabel="density")
    if mask.any():
        left.legend(title="bias correction", frameon=False, fontsize=8, title_fontsize=8)
    _curve(right, normalised.brain.data[mask], normalised.normalisation.method, _AFTER_STYLE)
    right.set(xlabel=f"normalised intensity ({normalised.normalisation.method})")
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set(ylim=(0, None), yticks=[])
        axes.grid(visible=True, axis="x", color="#e3e7ea", linewidth=0.6)
    return png_of(figure)


def _curve(axes: Axes, values: NDArray[Any], label: str, style: Mapping[str, Any]) -> None:
    """Draw a lightly smoothed histogram; bins of whole numbers where the values are, so that no comb appears."""
    if values.size == 0:
        axes.text(0.5, 0.5, "the mask is empty", transform=axes.transAxes, ha="center")
        return
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.8)))
    width = (high - low) / _HISTOGRAM_BINS or 1.0
    if bool((values[:: max(1, values.size // 1000)] % 1 == 0).all()):
        width, low = float(np.ceil(width)), np.floor(low) - 0.5
    count = int((high - low) / width) + 9
    counts, edges = np.histogram(values, bins=count, range=(low - 4 * width, low + (count - 4) * width))
    smooth = ndimage.gaussian_filter1d(counts / (values.size * width), 1.0)
    axes.plot(0.5 * (edges[1:] + edges[:-1]), smooth, label=label, linewidth=1.5, **style)


def _three_planes(scene: Scene) -> list[list[tuple[int, int]]]:
    """Return a row of axial, one of coronal and one of sagittal slices, about equally wide."""
    counts = _counts(scene, _COLUMNS)
    return [[(axis, index) for index in spread(scene.mask, axis, n)] for axis, n in counts.items()]


def _fullest_planes(
    scene: Scene, values: NDArray[np.float32], *, columns: int, extent: NDArray[np.bool_]
) -> list[list[tuple[int, int]]]:
    """Return likewise the slices that show most of `values` (at least 0), of equal parts of an extent."""
    return [
        [(axis, index) for index in fullest(values, extent, axis, n)]
        for axis, n in _counts(scene, columns).items()
    ]


def _counts(scene: Scene, columns: int) -> dict[int, int]:
    extents = scene.extents_mm
    return {
        AXIAL: columns,
        CORONAL: columns,
        SAGITTAL: int(np.clip(columns * extents[0] // extents[1], 3, 9)),
    }
