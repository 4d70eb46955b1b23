"""Carrying arrays from one grid to another, in this process, without ITK."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume

SDS_IN_FWHM: Final = 2.0 * float(np.sqrt(2.0 * np.log(2.0)))
"""Standard deviations of a Gaussian in its full width at half maximum."""
_FWHM_TO_SIGMA: Final = 1.0 / SDS_IN_FWHM


def resampled(volume: Volume, grid: Grid, grid_to_volume: Affine | None = None) -> Volume:
    """Return the volume's values on another grid, trilinear, 0 outside its field of view.

    Where the new voxels are larger than the old ones, the volume is smoothed first, so that no detail
    appears as a pattern that is not there.

    Parameters
    ----------
    volume : Volume
    grid : Grid
    grid_to_volume : ndarray, (4, 4), optional
        RAS+ mm of the grid to RAS+ mm of the volume; identity when absent.
    """
    smooth = _antialiased(volume.data, np.array(grid.spacing_mm) / np.array(volume.spacing_mm))
    return Volume(
        data=interpolated(smooth, volume.voxel_to_ras, grid, grid_to_volume),
        voxel_to_ras=grid.voxel_to_ras,
    )


def resampled_mask(brain_mask: BrainMask, grid: Grid, grid_to_mask: Affine | None = None) -> BrainMask:
    """Return a mask on another grid: the voxels that are brain to at least one half."""
    fraction = _antialiased(
        brain_mask.data.astype(np.float32), np.array(grid.spacing_mm) / np.array(brain_mask.grid.spacing_mm)
    )
    values = interpolated(fraction, brain_mask.voxel_to_ras, grid, grid_to_mask)
    return BrainMask(data=values >= 0.5, voxel_to_ras=grid.voxel_to_ras)


def _antialiased(data: NDArray[np.float32], ratio: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smooth so that the total blur is about one new voxel; nothing happens where voxels do not grow."""
    sigma = np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)) * _FWHM_TO_SIGMA
    if not (sigma > 0.1).any():
        return data
    smoothed: NDArray[np.float32] = ndimage.gaussian_filter(data, sigma, mode="nearest", truncate=3.0)
    return smoothed


def corners_around(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the corners of a grid one voxel beyond its outermost voxels, voxel indices (3, 8)."""
    ends = [(-1.0, float(n)) for n in shape]
    return np.stack(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)


def box_holding(
    points: NDArray[np.float64], to_index: Affine, shape: tuple[int, int, int], margin: int = 0
) -> tuple[slice, slice, slice] | None:
    """Return the smallest box of voxels of a grid that holds some points; None where the grid has none of it.

    Parameters
    ----------
    points : ndarray, (3, N)
    to_index : ndarray, (4, 4)
        From their frame to voxel indices of the grid.
    shape : tuple of int
        Of the grid.
    margin : int
        Voxels more on every side.
    """
    index = to_index[:3, :3] @ points + to_index[:3, 3:]
    low = np.maximum(np.floor(index.min(axis=1)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(index.max(axis=1)).astype(int) + 1 + margin, shape)
    if (high <= low).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def placed(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """Return the values of a small volume on a large grid, trilinear, computed only where the small one lies.

    Parameters
    ----------
    volume : Volume
    grid : Grid
        In the same space.

    Returns
    -------
    ndarray, (I, J, K) float32
        0 outside the volume.
    """
    values = np.zeros(grid.shape, dtype=np.float32)
    to_index = np.linalg.inv(grid.voxel_to_ras) @ volume.voxel_to_ras
    box = box_holding(corners_around(volume.shape), to_index, grid.shape)
    if box is not None:
        values[box] = interpolated(volume.data, volume.voxel_to_ras, grid.part(box), None)
    return values


def interpolated(
    data: NDArray[np.float32], voxel_to_ras: Affine, grid: Grid, grid_to_data: Affine | None
) -> NDArray[np.float32]:
    """Return values on another grid, trilinear, 0 outside, neither smoothed nor checked: for what is called often."""
    between = np.eye(4) if grid_to_data is None else grid_to_data
    index_to_index = np.linalg.inv(voxel_to_ras) @ between @ grid.voxel_to_ras
    values: NDArray[np.float32] = ndimage.affine_transform(
        data,
        index_to_index[:3, :3],
        offset=index_to_index[:3, 3],
        output_shape=grid.shape,
        output=np.float32,
        order=1,
        mode="constant",
        cval=0.0,
    )
    return values
