"""Noise where there is no anatomy: in deep white matter.

Spread and contrast of whole tissues (snr, cnr, cjv) change with age: cortex thins, white matter darkens in patches,
and both lie closer together. What neighbouring voxels of deep white matter differ by does not.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import Affine, Volume, inverse_of
from brainstage.preprocessing.regions import brain_without_ventricles
from brainstage.preprocessing.template import load_template

ATLAS_MM: Final = 2.0
SURE_OF_WHITE: Final = 0.9
DEPTH_VOXELS: Final = 2
"""Of the template, 4 mm: what an affine leaves beside its place."""
LEAST_VOXELS: Final = 300
MAD_TO_SD: Final = 1.4826


def white_matter_noise(head: Volume, native_to_template: Affine) -> float | None:
    """Return the noise of single voxels in deep white matter, per cent of its intensity.

    The second difference of three neighbours along each axis, over the root of 6, is what white noise leaves of a
    smooth image. Its median absolute deviation, averaged over the axes, ignores the few voxels at an edge or a lesion.

    Parameters
    ----------
    head : Volume
        Bias-corrected, native space.
    native_to_template : ndarray, (4, 4)
        RAS+ mm to RAS+ mm.

    Returns
    -------
    float or None
        None where too little of the template's deep white matter lies in the image, or it is dark.
    """
    to_index = inverse_of(head.voxel_to_ras) @ inverse_of(native_to_template)
    index = np.rint(to_index[:3, :3] @ _deep_white_mm() + to_index[:3, 3:]).astype(int)
    within = ((index >= 1) & (index < np.array(head.shape)[:, np.newaxis] - 1)).all(axis=0)
    index = np.unique(index[:, within], axis=1)
    if index.shape[1] < LEAST_VOXELS:
        return None
    values = head.data[tuple(index)].astype(np.float64)
    level = float(np.median(values))
    if level <= 0.0:
        return None
    spreads = []
    for step in np.eye(3, dtype=int)[:, :, np.newaxis]:
        before, after = (head.data[tuple(index + sign * step)] for sign in (-1, 1))
        rest = (before - 2.0 * values + after) / np.sqrt(6.0)
        spreads.append(MAD_TO_SD * float(np.median(np.abs(rest - np.median(rest)))))
    return float(f"{100.0 * np.mean(spreads) / level:.6g}")


@cache
def _deep_white_mm() -> NDArray[np.float64]:
    """Return places in deep white matter of the template, away from the ventricles, (3, N) RAS mm."""
    template = load_template(ATLAS_MM)
    white = ndimage.binary_erosion(template.white_matter > SURE_OF_WHITE, iterations=DEPTH_VOXELS)
    return template.grid.places_mm(np.argwhere(white & brain_without_ventricles(ATLAS_MM)))
