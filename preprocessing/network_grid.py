"""Crop, resample and fill the background: what the network sees."""

from __future__ import annotations

from typing import Final

import numpy as np

from brainstage.pipeline.config import NetworkGridConfig
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import BrainMask, DisplacementField, Grid, Volume, require_same_grid
from brainstage.preprocessing.local_volume import local_volume
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import load_template

STAGE_VERSION: Final = "1"
NOISE_SEED: Final = 20190401
"""The same background for every scan: it must not tell scans apart."""


def network_grid(config: NetworkGridConfig) -> Grid:
    """Return the grid of the network's image in template space, centred on the template's brain.

    Returns
    -------
    Grid
        Shape (D, H, W) of `config`, axes R, A, S.
    """
    brain_mask = load_template(1.0).brain_mask
    where = np.argwhere(brain_mask.data)
    centre_voxels = (where.min(axis=0) + where.max(axis=0)) / 2.0
    centre_mm = brain_mask.voxel_to_ras @ np.append(centre_voxels, 1.0)
    matrix = np.diag([config.spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = centre_mm[:3] - config.spacing_mm * (np.array(config.shape) - 1) / 2.0
    return Grid(shape=config.shape, voxel_to_ras=matrix)


def network_input(
    brain: Volume,
    brain_mask: BrainMask,
    config: NetworkGridConfig,
    deformation: DisplacementField | None = None,
) -> NetworkInput:
    """Return the network's image of a registered brain.

    Parameters
    ----------
    brain : Volume
        In template space, normalised, 0 outside the mask.
    brain_mask : BrainMask
        On the same grid.
    config : NetworkGridConfig
    deformation : DisplacementField, optional
        What the registration did beyond an affine; it takes shape out of the image and leaves it to local volume.

    Returns
    -------
    NetworkInput
        Image (1, D, H, W) float32, and the local volume, which does not depend on `config`.
    """
    require_same_grid(brain, brain_mask)
    grid = network_grid(config)
    mask = resampled_mask(brain_mask, grid).data
    image = np.where(mask, resampled(brain, grid).data, np.float32(0.0))
    if config.normalisation == "zscore" and mask.any():
        inside = image[mask]
        spread = max(float(inside.std(dtype=np.float64)), float(np.finfo(np.float32).eps))
        image = np.where(mask, (image - inside.mean(dtype=np.float64)) / spread, 0.0).astype(np.float32)
    if config.background == "noise":
        noise = np.random.default_rng(NOISE_SEED).standard_normal(grid.shape, dtype=np.float32)
        image = np.where(mask, image, noise)
    elif config.background == "minimum":
        image = np.where(mask, image, image[mask].min() if mask.any() else np.float32(0.0))
    return NetworkInput(
        image=image[np.newaxis],
        brain_mask=mask,
        voxel_to_ras=grid.voxel_to_ras,
        local_volume=local_volume(brain, brain_mask, deformation),
    )
