"""Slices of a volume side by side on one canvas, at one scale, without a face.

A mosaic is one array of grey values that is drawn once, which costs a tenth of a figure with an axis per slice.
Arrays are first turned to RAS axes; slices stand in neurological convention: the person's left is on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import Affine, spacing_of

SURROUND_MM: Final = 10.0
"""Tissue shown around the mask: enough to see the skull and judge the mask, too little for nose or ears."""

FACE_SURROUND_MM: Final = 5.0
"""The same low and in front of the brain's middle, where the orbits lie right under the frontal lobe."""

WHOLE_HEAD_MM: Final = 500.0
"""A margin that keeps everything."""

_FADE_MM: Final = 3.0
_EASE_MM: Final = 20.0
_DISTANCE_GRID_MM: Final = 3.0
"""Distances to the mask are computed on voxels of about this size: 30 ms in place of 1.5 s, to within 2 mm."""

WINDOW_PERCENTILES: Final = (1.0, 99.0)
"""Intensities inside the mask that become black and nearly white."""

_HEADROOM: Final = 0.08
"""Above the upper percentile, as a share of the window: white matter must not saturate."""

_PERCENTILE_SAMPLES: Final = 200_000
_ROUNDING: Final = 1e-4
"""Of a pixel: a size that is whole but for rounding stays whole."""

AXIAL, CORONAL, SAGITTAL = 2, 1, 0
"""The axis of an RAS array that a plane cuts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Arrays on one grid with RAS axes, cropped to the brain's box.

    Attributes
    ----------
    layers : mapping
        Name to array; ``mask`` is among them.
    voxel_to_ras : ndarray, (4, 4) float64
        Voxel index of the cropped arrays to RAS+ mm.
    first_index : tuple of int
        Index of the first cropped voxel in the uncropped RAS array.
    """

    layers: Mapping[str, NDArray[Any]]
    voxel_to_ras: Affine
    first_index: tuple[int, int, int]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The brain mask."""
        return self.layers["mask"]

    @property
    def extents_mm(self) -> NDArray[np.float64]:
        """Size of the box along each axis, mm."""
        spacing: NDArray[np.float64] = np.array(spacing_of(self.voxel_to_ras))
        return np.multiply(spacing, self.mask.shape, dtype=np.float64)

    def with_layer(self, name: str, array: NDArray[Any]) -> Scene:
        """Return the scene with one more array."""
        return replace(self, layers={**self.layers, name: array})


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One slice on the canvas: the axis it cuts, its index, and its place in pixels."""

    axis: int
    index: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Rows of tiles on a canvas of `size` (height, width) pixels."""

    rows: tuple[tuple[Tile, ...], ...]
    size: tuple[int, int]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Every tile."""
        return tuple(tile for row in self.rows for tile in row)


def scene_of(layers: Mapping[str, NDArray[Any]], voxel_to_ras: Affine, *, margin_mm: float) -> Scene:
    """Turn arrays to RAS axes and crop them to the layer ``mask`` with a margin.

    Parameters
    ----------
    layers : mapping
        Name to array (I, J, K), one of them ``mask``.
    voxel_to_ras : ndarray, (4, 4) float64
        Voxel index to RAS+ mm; an oblique grid is shown along its own axes, named by the nearest of RAS.
    margin_mm : float
        Kept around the mask, inside the array. An empty mask keeps the whole array.
    """
    turn = nib.io_orientation(voxel_to_ras)
    turned = {name: nib.apply_orientation(array, turn) for name, array in layers.items()}
    matrix = voxel_to_ras @ nib.orientations.inv_ornt_aff(turn, layers["mask"].shape)
    margin = np.ceil(margin_mm / np.array(spacing_of(matrix))).astype(int)
    ranges = [_extent(turned["mask"], axis) for axis in range(3)]
    box = tuple(
        slice(
            max(0, first - int(margin[axis])), min(turned["mask"].shape[axis], last + 1 + int(margin[axis]))
        )
        for axis, (first, last) in enumerate(ranges)
    )
    first_index = (box[0].start, box[1].start, box[2].start)
    matrix[:3, 3] += matrix[:3, :3] @ np.array(first_index)
    return Scene(
        layers={name: array[box] for name, array in turned.items()},
        voxel_to_ras=matrix,
        first_index=first_index,
    )


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """Return the first and last index of the mask along an axis; of the array where the mask is empty."""
    hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    return (int(hit[0]), int(hit[-1])) if hit.size else (0, mask.shape[axis] - 1)


def visibility(scene: Scene) -> NDArray[np.float32]:
    """Return how much of each voxel may be shown: 1 in and near the mask, 0 beyond the surround.

    The surround is :data:`SURROUND_MM`, and :data:`FACE_SURROUND_MM` low and in front, with a soft edge. Around an
    empty mask nothing may be shown.
    """
    mask = scene.mask
    spacing = np.array(spacing_of(scene.voxel_to_ras))
    step = np.maximum(1, np.round(_DISTANCE_GRID_MM / spacing)).astype(int)
    coarse = mask[:: step[0], :: step[1], :: step[2]]
    if not coarse.any():
        return mask.astype(np.float32)
    away_mm = ndimage.distance_transform_edt(~coarse, sampling=spacing * step)
    allowed_mm = _surround_mm(coarse, spacing * step)
    ramp = np.clip((allowed_mm - away_mm) / _FADE_MM, 0.0, 1.0).astype(np.float32)
    fine: NDArray[np.float32] = ndimage.affine_transform(
        ramp, np.diag(1.0 / step), output_shape=mask.shape, output=np.float32, order=1, mode="nearest"
    )
    return np.maximum(fine, mask)


def _surround_mm(mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the surround allowed at each voxel; it narrows over `_EASE_MM` towards the front and below."""
    where = np.argwhere(mask)
    middle = where.mean(axis=0)
    _, j, k = np.ogrid[: mask.shape[0], : mask.shape[1], : mask.shape[2]]
    forward = np.clip((j - middle[1]) * spacing_mm[1] / _EASE_MM, 0.0, 1.0)
    down = np.clip((middle[2] - k) * spacing_mm[2] / _EASE_MM + 0.5, 0.0, 1.0)
    narrowed: NDArray[np.float64] = SURROUND_MM - (SURROUND_MM - FACE_SURROUND_MM) * forward * down
    return np.broadcast_to(narrowed, mask.shape)


def spread(mask: NDArray[np.bool_], axis: int, count: int) -> list[int]:
    """Return the middle slices of `count` equal parts of the mask's extent."""
    first, last = _extent(mask, axis)
    return [round(first + (last - first) * (part + 0.5) / count) for part in range(count)]


def fullest(values: NDArray[np.float32], mask: NDArray[np.bool_], axis: int, count: int) -> list[int]:
    """Return the slice with the highest sum of each of `count` equal parts of the mask's extent; the middle of equals.

    Parameters
    ----------
    values : ndarray, (I, J, K) float32
        At least 0.
    mask : ndarray, (I, J, K) bool
    axis, count : int
    """
    first, last = _extent(mask, axis)
    edges = np.linspace(first, last + 1, count + 1).round().astype(int)
    sums = values.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
    chosen = []
    for start, stop in pairwise(edges):
        places = np.arange(start, max(stop, start + 1))
        middle = -np.abs(places - places.mean())
        chosen.append(int(places[np.lexsort((middle, sums[places]))[-1]]))
    return chosen


def slices_at(mask: NDArray[np.bool_], axis: int, parts: Sequence[float]) -> list[int]:
    """Return the slices at parts of the mask's extent: 0 is left, posterior or below, 1 right, anterior or above."""
    first, last = _extent(mask, axis)
    return [round(first + (last - first) * part) for part in parts]


def mosaic_of(scene: Scene, rows: Sequence[Sequence[tuple[int, int]]], *, width: int, gap: int) -> Mosaic:
    """Place rows of (axis, index) on a canvas of `width` pixels, all slices at one scale."""
    return _placed(scene, rows, _fitting_scale(scene, rows, width, gap), width=width, gap=gap)


def enlarged_mosaic(
    scene: Scene, rows: Sequence[Sequence[tuple[int, int]]], *, most_pixels: int, gap: int
) -> Mosaic:
    """Place rows of (axis, index) so that the finest voxel edge takes a whole number of pixels.

    The canvas is as wide as that takes, `most_pixels` at most. Drawn without interpolation, voxels of equal edges are
    then squares of one size. Where even one pixel a voxel does not fit, slices are as large as they can be.
    """
    finest = min(spacing_of(scene.voxel_to_ras))
    scale = _fitting_scale(scene, rows, most_pixels, gap)
    scale = max(1, int(scale * finest)) / finest if scale * finest >= 1 else scale
    widths = [_widths_mm(scene, row) * scale + gap * (len(row) + 1) for row in rows]
    return _placed(scene, rows, scale, width=int(np.ceil(max(widths) - _ROUNDING)), gap=gap)


def _widths_mm(scene: Scene, row: Sequence[tuple[int, int]]) -> float:
    """Return how wide the slices of a row are together."""
    return float(sum(scene.extents_mm[1 if axis == SAGITTAL else 0] for axis, _ in row))


def _fitting_scale(scene: Scene, rows: Sequence[Sequence[tuple[int, int]]], width: int, gap: int) -> float:
    """Return the pixels a mm at which the widest row fits."""
    return min((width - gap * (len(row) + 1)) / _widths_mm(scene, row) for row in rows)


def _placed(
    scene: Scene, rows: Sequence[Sequence[tuple[int, int]]], scale: float, *, width: int, gap: int
) -> Mosaic:
    extents = scene.extents_mm
    sizes_mm = {axis: [extents[other] for other in range(3) if other != axis] for axis in range(3)}
    placed: list[tuple[Tile, ...]] = []
    top = gap
    for row in rows:
        sizes = [[max(2, int(size * scale + _ROUNDING)) for size in sizes_mm[axis]] for axis, _ in row]
        height = max(h for _, h in sizes)
        spare = (width - sum(w for w, _ in sizes)) / (len(row) + 1)
        left = spare
        tiles = []
        for (axis, index), (w, h) in zip(row, sizes, strict=True):
            middle = top + (height - h) // 2
            tiles.append(Tile(axis=axis, index=index, left=int(left), top=middle, width=w, height=h))
            left += w + spare
        placed.append(tuple(tiles))
        top += height + gap
    return Mosaic(rows=tuple(placed), size=(top, width))


def painted(array: NDArray[Any], mosaic: Mosaic, *, blend: bool = True) -> NDArray[np.float32]:
    """Return the canvas with the slices of `array`, 0 elsewhere; linear between voxels, or each voxel as it is."""
    canvas = np.zeros(mosaic.size, dtype=np.float32)
    for tile in mosaic.tiles:
        # Rows run from anterior (axial) or superior down, columns from left or posterior to the right.
        plane = _slice(array, tile).T[::-1].astype(np.float32)
        rows = (np.arange(tile.height) + 0.5) * plane.shape[0] / tile.height - 0.5
        columns = (np.arange(tile.width) + 0.5) * plane.shape[1] / tile.width - 0.5
        if blend:
            at = np.meshgrid(rows, columns, indexing="ij")
            part = ndimage.map_coordinates(plane, at, order=1, mode="nearest")
        else:
            part = plane[np.ix_(_nearest(rows, plane.shape[0]), _nearest(columns, plane.shape[1]))]
        canvas[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = part
    return canvas


def _nearest(at: NDArray[np.float64], count: int) -> NDArray[np.int_]:
    return np.clip(np.floor(at + 0.5 + _ROUNDING), 0, count - 1).astype(int)


def _slice(array: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """Return a view of one slice; `numpy.take` would copy in the wrong order, at fifty times the cost."""
    where: list[slice | int] = [slice(None)] * 3
    where[tile.axis] = tile.index
    plane: NDArray[Any] = array[tuple(where)]
    return plane


def window_of(
    array: NDArray[Any], mask: NDArray[np.bool_], percentiles: tuple[float, float] = WINDOW_PERCENTILES
) -> tuple[float, float]:
    """Return the intensities inside the mask that become black and white."""
    inside = array[mask]
    if inside.size == 0:
        return 0.0, 1.0
    sample = inside[:: max(1, inside.size // _PERCENTILE_SAMPLES)]
    low, high = (float(value) for value in np.percentile(sample, percentiles))
    return (low, high + _HEADROOM * (high - low)) if high > low else (low - 0.5, low + 0.5)


def grey(canvas: NDArray[np.float32], window: tuple[float, float]) -> NDArray[np.float32]:
    """Return the canvas scaled to 0 (black) ... 1 (white)."""
    low, high = window
    return np.clip((canvas - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
