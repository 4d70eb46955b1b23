"""A registered brain, the template and the brain before registration, slice by slice at the same places.

The three bands lie below each other in one picture; the report shows one at a time and changes between them, which
shows the least shift to the eye.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.records import RegisteredBrain
from brainstage.pipeline.volume import Affine
from brainstage.preprocessing.orientation import centre_mm
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Mosaic,
    Scene,
    grey,
    mosaic_of,
    painted,
    spread,
    window_of,
)

BANDS: Final = ("registered", "template", "before registration")
"""From top to bottom."""

_SLICES: Final = {AXIAL: 3, CORONAL: 3, SAGITTAL: 1}


def flicker_mosaic(scene: Scene, *, width: int, gap: int) -> Mosaic:
    """Return where the slices of one band lie."""
    row = [(axis, index) for axis, count in _SLICES.items() for index in spread(scene.mask, axis, count)]
    return mosaic_of(scene, [row], width=width, gap=gap)


def flicker_bands(registered: RegisteredBrain, scene: Scene, mosaic: Mosaic) -> list[NDArray[np.float32]]:
    """Return the canvases (H, W) of the bands, grey values 0 to 1, in the order of :data:`BANDS`.

    Parameters
    ----------
    registered : RegisteredBrain
    scene : Scene
        In template space, with the layers ``brain`` (grey values) and ``template``.
    mosaic : Mosaic
        Of the scene.
    """
    template = scene.layers["template"] * scene.mask
    return [
        painted(scene.layers["brain"], mosaic),
        grey(painted(template, mosaic), window_of(template, scene.mask)),
        _before(registered, scene, mosaic),
    ]


def _before(registered: RegisteredBrain, scene: Scene, mosaic: Mosaic) -> NDArray[np.float32]:
    """Return the brain as its header turns it, moved so that its centre is that of the registered brain."""
    head, mask = registered.normalised.corrected.head, registered.normalised.corrected.brain_mask
    if not mask.data.any() or not registered.brain_mask.data.any():
        return np.zeros(mosaic.size, dtype=np.float32)
    window = window_of(head.data, mask.data)
    brain = np.where(mask.data, head.data, np.float32(window[0]))
    to_native = np.eye(4)
    to_native[:3, 3] = centre_mm(mask) - centre_mm(registered.brain_mask)
    index_to_index = np.linalg.inv(head.voxel_to_ras) @ to_native @ scene.voxel_to_ras
    return grey(_sampled(brain, index_to_index, scene, mosaic, outside=window[0]), window)


def _sampled(
    data: NDArray[Any], index_to_index: Affine, scene: Scene, mosaic: Mosaic, *, outside: float
) -> NDArray[np.float32]:
    """Return the canvas of an array on another grid: only the pixels that are drawn are computed."""
    canvas = np.full(mosaic.size, outside, dtype=np.float32)
    shape = scene.mask.shape
    for tile in mosaic.tiles:
        across, up = (axis for axis in range(3) if axis != tile.axis)
        index = np.empty((3, tile.height, tile.width))
        index[tile.axis] = tile.index
        index[across] = ((np.arange(tile.width) + 0.5) * shape[across] / tile.width - 0.5)[None, :]
        index[up] = ((np.arange(tile.height) + 0.5) * shape[up] / tile.height - 0.5)[::-1, None]
        at = np.einsum("ab,bhw->ahw", index_to_index[:3, :3], index) + index_to_index[:3, 3, None, None]
        part = ndimage.map_coordinates(data, at, order=1, mode="constant", cval=outside)
        canvas[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = part
    return canvas
