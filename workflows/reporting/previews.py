"""Small volumes of one scan for the viewer of its report: 8 bits, coarse, and no face.

What may be seen is what the pictures show: outside the brain mask only tissue within a few millimetres, unless the
whole head is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.nifti import nifti_bytes
from brainstage.pipeline.records import RegisteredBrain, StrippedBrain
from brainstage.pipeline.volume import Affine, BrainMask, Volume, spacing_of
from brainstage.preprocessing.template import load_template
from brainstage.workflows.evidence import COLOURED_FROM
from brainstage.workflows.reporting.mosaic import (
    SURROUND_MM,
    WHOLE_HEAD_MM,
    Scene,
    grey,
    scene_of,
    visibility,
    window_of,
)

MAX_PREVIEW_BYTES: Final = 450_000
"""Of one volume, compressed; a larger one is made coarser, so that a report stays below 4.5 MB."""

NATIVE_SPACINGS_MM: Final = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Voxel sizes tried in turn. At 1.5 mm a brain with its rim takes about 400 kB."""

TEMPLATE_SPACING_MM: Final = 2.0
_GREY_STEP: Final = 4
"""Grey values are kept in steps of this many of 255, which no eye tells apart and which saves a third."""

_COMPRESSION: Final = 6
_LEAST_STEP: Final = 1.05
"""Voxels that are nearly as large as wanted stay as they are, and so does their sharpness."""

_MARGIN_MM: Final = 4.0


def scan_previews(registered: RegisteredBrain, *, keep_face: bool = False) -> dict[str, bytes]:
    """Return the volumes of a scan that the viewer shows.

    Parameters
    ----------
    registered : RegisteredBrain
        Native and template states of the scan.
    keep_face : bool
        Keep the whole head in native space.

    Returns
    -------
    dict
        ``native``: the scan as it was read, about 1.5 mm; ``native_mask``: 255 inside the brain mask, on the same
        grid; ``registered``: the brain in template space, 2 mm. Each a gzipped NIfTI of uint8, RAS, of at most
        `MAX_PREVIEW_BYTES` unless even the largest voxels give more.
    """
    return {
        **_native(registered.normalised.corrected.stripped, keep_face),
        "registered": _registered(registered),
    }


@cache
def template_previews() -> dict[str, bytes]:
    """Return the volumes that every scan is held against, in template space, 2 mm; kept for the life of the process.

    ``template``: its brain; ``template_edges``: 255 at the surface of its brain and of its white matter.
    """
    template = load_template(1.0)
    scene = scene_of(
        {"mask": template.brain_mask.data, "brain": template.t1w.data, "white_matter": template.white_matter},
        template.t1w.voxel_to_ras,
        margin_mm=_MARGIN_MM,
    )
    small = coarse_scene(scene, TEMPLATE_SPACING_MM)
    # Smoothed, so that blades of a voxel or two, which are nothing but edge, do not fill with colour.
    white_matter = ndimage.gaussian_filter(small.layers["white_matter"], 1.0) >= 0.5
    edges = _edge(small.mask) | _edge(white_matter)
    return {
        "template": _packed(_inside(small), small.voxel_to_ras, in_template=True),
        "template_edges": _packed(edges, small.voxel_to_ras, in_template=True),
    }


def signed_evidence_previews(
    evidence: Volume, brain_mask: BrainMask, highest: float, *, native: bool
) -> tuple[bytes, bytes]:
    """Return what speaks for and what speaks against a class, each as a small volume: 0 to 255 at `highest`.

    Parameters
    ----------
    evidence : Volume
        Native or in template space, with two signs.
    brain_mask : BrainMask
        On its grid.
    highest : float
        Absolute value where the colours end; the same for maps that are to be compared.
    native : bool
        In which space.
    """
    layers = {
        "mask": brain_mask.data,
        "for": np.maximum(evidence.data, np.float32(0.0)),
        "against": np.maximum(-evidence.data, np.float32(0.0)),
    }
    small = coarse_scene(scene_of(layers, evidence.voxel_to_ras, margin_mm=_MARGIN_MM), TEMPLATE_SPACING_MM)
    first, second = (
        _packed(
            np.clip(small.layers[side] * small.mask / max(highest, 1e-12), 0.0, 1.0),
            small.voxel_to_ras,
            in_template=not native,
        )
        for side in ("for", "against")
    )
    return first, second


def evidence_preview(evidence: Volume, brain_mask: BrainMask, *, native: bool) -> bytes:
    """Return a map of what a prediction rests on as a small volume: 0 to 255 where the picture colours it.

    Parameters
    ----------
    evidence : Volume
        Native or in template space; only what is positive counts.
    brain_mask : BrainMask
        On its grid.
    native : bool
        In which space.
    """
    scene = scene_of(
        {"mask": brain_mask.data, "evidence": np.maximum(evidence.data, np.float32(0.0))},
        evidence.voxel_to_ras,
        margin_mm=_MARGIN_MM,
    )
    small = coarse_scene(scene, TEMPLATE_SPACING_MM)
    values = small.layers["evidence"] * small.mask
    highest = max(float(values.max(initial=0.0)), 1e-12)
    coloured = np.clip((values / highest - COLOURED_FROM) / (1.0 - COLOURED_FROM), 0.0, 1.0)
    return _packed(coloured, small.voxel_to_ras, in_template=not native)


def coarse_scene(scene: Scene, spacing_mm: float) -> Scene:
    """Return a scene with voxels of about `spacing_mm`; an axis whose voxels are as large already keeps them.

    Whole numbers of voxels are averaged, which lets no fine detail appear as a pattern; what is left to the wanted
    size is interpolated. The new mask is what is brain to at least one half.
    """
    spacing = np.array(spacing_of(scene.voxel_to_ras))
    counts = np.clip(np.floor(spacing_mm / spacing + 1e-3), 1, scene.mask.shape).astype(int)
    # Less than two of the new voxels become one: between one voxel and nothing there is nothing to interpolate.
    counts = np.where(np.array(scene.mask.shape) < 2 * counts, scene.mask.shape, counts)
    step = spacing_mm / (counts * spacing)
    step[step < _LEAST_STEP] = 1.0
    layers = {name: _interpolated(_mean(array, counts), step) for name, array in scene.layers.items()}
    return replace(
        scene,
        layers=layers | {"mask": layers["mask"] >= 0.5},
        voxel_to_ras=scene.voxel_to_ras @ _stretch(counts) @ _stretch(step),
    )


def _mean(array: NDArray[Any], counts: NDArray[np.int_]) -> NDArray[np.float32]:
    """Return the mean of blocks of `counts` voxels; what is over at the end is dropped."""
    if (counts == 1).all():
        return array.astype(np.float32)
    blocks = [n // int(count) for n, count in zip(array.shape, counts, strict=True)]
    kept = array[tuple(slice(0, n * int(count)) for n, count in zip(blocks, counts, strict=True))]
    parted = kept.reshape([int(n) for pair in zip(blocks, counts, strict=True) for n in pair])
    mean: NDArray[np.float32] = parted.mean(axis=(1, 3, 5), dtype=np.float32)
    return mean


def _interpolated(array: NDArray[np.float32], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return values `step` voxels apart, linear between voxels."""
    for axis in np.flatnonzero(step > 1.0):
        array = _interpolated_along(array, int(axis), float(step[axis]))
    return array


def _interpolated_along(array: NDArray[np.float32], axis: int, step: float) -> NDArray[np.float32]:
    count = max(1, int(array.shape[axis] / step))
    at = np.clip((np.arange(count) + 0.5) * step - 0.5, 0, array.shape[axis] - 1)
    low = np.minimum(at.astype(int), max(0, array.shape[axis] - 2))
    high = np.minimum(low + 1, array.shape[axis] - 1)
    weight = (at - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
    first = np.take(array, low, axis=axis)
    between: NDArray[np.float32] = first + weight * (np.take(array, high, axis=axis) - first)
    return between


def _stretch(step: NDArray[Any]) -> NDArray[np.float64]:
    """Return the index of an old voxel from that of a new one, `step` times as large, from the same border on."""
    matrix = np.diag([*step, 1.0]).astype(np.float64)
    matrix[:3, 3] = (step - 1.0) / 2.0
    return matrix


def _native(stripped: StrippedBrain, keep_face: bool) -> dict[str, bytes]:
    scene = scene_of(
        {"mask": stripped.brain_mask.data, "brain": stripped.head.data},
        stripped.head.voxel_to_ras,
        margin_mm=WHOLE_HEAD_MM if keep_face else SURROUND_MM + 2.0,
    )
    previews: dict[str, bytes] = {}
    for spacing_mm in NATIVE_SPACINGS_MM:
        small = coarse_scene(scene, spacing_mm)
        head = grey(small.layers["brain"], window_of(small.layers["brain"], small.mask))
        shown = head if keep_face else head * visibility(small)
        previews["native"] = _packed(shown, small.voxel_to_ras, in_template=False)
        previews["native_mask"] = _packed(small.mask, small.voxel_to_ras, in_template=False)
        if len(previews["native"]) <= MAX_PREVIEW_BYTES:
            break
    return previews


def _registered(registered: RegisteredBrain) -> bytes:
    layers = {"mask": registered.brain_mask.data, "brain": registered.brain.data}
    scene = scene_of(layers, registered.brain.voxel_to_ras, margin_mm=_MARGIN_MM)
    small = coarse_scene(scene, TEMPLATE_SPACING_MM)
    return _packed(_inside(small), small.voxel_to_ras, in_template=True)


def _inside(scene: Scene) -> NDArray[np.float32]:
    """Return the grey values of a brain, black outside its mask."""
    return grey(scene.layers["brain"], window_of(scene.layers["brain"], scene.mask)) * scene.mask


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outermost voxels of a mask."""
    edge: NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask)
    return edge


def _packed(values: NDArray[Any], voxel_to_ras: Affine, *, in_template: bool) -> bytes:
    """Return values 0 to 1 as a NIfTI of 0 to 255."""
    steps = 255 // _GREY_STEP
    levels = (values * np.float32(steps) + np.float32(0.5)).astype(np.uint8)
    scaled = np.round(np.arange(steps + 1) * (255 / steps)).astype(np.uint8)[levels]
    return nifti_bytes(scaled, voxel_to_ras, in_template=in_template, compression=_COMPRESSION)
