"""Carrying values between grids keeps what is where, and how much of it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.resampling import interpolated, placed, resampled, resampled_mask


def ramp(voxel_to_ras: np.ndarray, shape: tuple[int, int, int] = (30, 34, 38)) -> Volume:
    """A volume whose value is a linear function of RAS position."""
    index = np.indices(shape).reshape(3, -1)
    ras = (voxel_to_ras @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    return Volume(
        data=(ras.T @ [1.0, 2.0, -3.0]).reshape(shape).astype(np.float32), voxel_to_ras=voxel_to_ras
    )


@pytest.mark.parametrize("target_mm", [0.7, 1.0, 1.7, 3.0])
def test_a_linear_ramp_survives_resampling_at_its_place(target_mm: float) -> None:
    volume = ramp(np.diag([1.0, 1.3, 1.1, 1.0]))
    moved = resampled(volume, volume.grid.rescaled(target_mm))
    expected = ramp(moved.voxel_to_ras, moved.shape)
    inner = tuple(slice(6, -6) for _ in range(3))
    assert np.allclose(moved.data[inner], expected.data[inner], atol=1e-2)


def test_the_same_grid_gives_the_same_values() -> None:
    volume = ramp(np.eye(4))
    assert np.allclose(resampled(volume, volume.grid).data, volume.data, atol=1e-5)


def test_outside_the_field_of_view_there_is_nothing() -> None:
    volume = Volume(data=np.ones((10, 10, 10), dtype=np.float32), voxel_to_ras=np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 100
    assert resampled(volume, Grid(shape=(5, 5, 5), voxel_to_ras=far)).data.max() == 0


def test_a_fine_pattern_becomes_its_mean_and_not_another_pattern() -> None:
    data = np.indices((64, 64, 64)).sum(axis=0) % 2
    volume = Volume(data=data.astype(np.float32), voxel_to_ras=np.eye(4))
    coarse = resampled(volume, volume.grid.rescaled(3.0))
    assert np.abs(coarse.data[3:-3, 3:-3, 3:-3] - 0.5).max() < 0.05


def test_a_masks_volume_survives_a_change_of_grid() -> None:
    index = np.indices((60, 60, 60)) - 30
    ball = BrainMask(data=(index**2).sum(axis=0) < 20**2, voxel_to_ras=np.eye(4))
    for spacing_mm in (0.8, 1.5, 2.5):
        moved = resampled_mask(ball, ball.grid.rescaled(spacing_mm))
        assert moved.volume_ml == pytest.approx(ball.volume_ml, rel=0.02)


@pytest.mark.parametrize("shift_mm", [(0.0, 0.0, 0.0), (-14.0, 3.0, 14.0), (500.0, 0.0, 0.0)])
def test_a_small_volume_is_placed_as_if_the_whole_grid_had_been_computed(shift_mm):
    turn = Rotation.from_euler("xyz", (20.0, -10.0, 35.0), degrees=True).as_matrix()
    small = np.eye(4)
    small[:3, :3] = turn @ np.diag([1.0, 1.2, 0.8])
    small[:3, 3] = np.array([10.0, 12.0, 9.0]) + shift_mm
    large = Grid(shape=(40, 44, 36), voxel_to_ras=np.diag([1.5, 1.0, 2.0, 1.0]))
    volume = Volume(data=np.random.default_rng(1).random((9, 12, 7)).astype(np.float32), voxel_to_ras=small)
    expected = interpolated(volume.data, volume.voxel_to_ras, large, None)
    assert np.array_equal(placed(volume, large), expected)
    assert expected.any() == (shift_mm[0] < 100)
