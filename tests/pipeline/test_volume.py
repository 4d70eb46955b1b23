"""Arrays with a place in space: checked once, frozen, and true in every orientation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from brainstage.pipeline.errors import GeometryError, IntensityError
from brainstage.pipeline.volume import (
    BrainMask,
    DisplacementField,
    Grid,
    Volume,
    axcodes_of,
    checked_affine,
    inverse_of,
    require_same_grid,
)

SINGULAR = np.diag([1.0, 0.0, 1.0, 1.0])
NOT_FINITE = np.diag([1.0, np.nan, 1.0, 1.0])
PROJECTIVE = np.eye(4) + np.array([[0] * 4] * 3 + [[0, 0, 0.5, 0]])


@pytest.mark.parametrize(
    ("matrix", "says"),
    [(np.eye(3), "4x4"), (NOT_FINITE, "not finite"), (PROJECTIVE, "last row"), (SINGULAR, "singular")],
    ids=["shape", "nan", "last_row", "singular"],
)
def test_an_impossible_affine_is_refused(matrix, says):
    with pytest.raises(GeometryError, match=says):
        checked_affine(matrix)


def test_a_checked_affine_is_a_copy_that_cannot_be_changed():
    given = np.eye(4)
    checked = checked_affine(given)
    given[0, 0] = 7.0
    assert checked[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        checked[0, 0] = 2.0


def test_a_volume_is_float32_and_frozen(phantom):
    assert phantom.data.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        phantom.data[0, 0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError, match="data"):
        phantom.data = phantom.data


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 1)], ids=["2d", "4d"])
def test_a_volume_has_three_axes(shape):
    with pytest.raises(GeometryError, match="three axes"):
        Volume(data=np.zeros(shape), voxel_to_ras=np.eye(4))
    with pytest.raises(GeometryError, match="three axes"):
        BrainMask(data=np.zeros(shape), voxel_to_ras=np.eye(4))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39], ids=["nan", "inf", "beyond_float32"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_volume_holds_only_finite_values(value):
    with pytest.raises(IntensityError, match="1 voxels are not finite"):
        Volume(data=np.array([[[0.0, value]]]), voxel_to_ras=np.eye(4))


def test_axes_and_spacing_are_read_from_the_matrix(phantom, orientation):
    assert phantom.axcodes == ("RAS" if orientation == "oblique" else orientation)
    assert phantom.spacing_mm == pytest.approx((4.0, 3.5, 3.6))


def test_a_volume_says_what_it_is(make_phantom):
    assert repr(make_phantom("LAS", spacing_mm=(2.0, 2.0, 2.0))) == "<24x28x26 float32, 2 mm, LAS>"


def test_other_values_stand_on_the_same_grid(phantom):
    doubled = phantom.with_data(phantom.data * 2)
    assert doubled.grid.matches(phantom.grid)
    assert np.array_equal(doubled.data, phantom.data * 2)
    with pytest.raises(GeometryError, match="expected values of shape"):
        phantom.with_data(np.zeros((2, 2, 2)))


def test_a_mask_knows_its_volume(phantom):
    brain_mask = BrainMask(data=phantom.data > 0, voxel_to_ras=phantom.voxel_to_ras)
    assert brain_mask.volume_ml == pytest.approx((phantom.data > 0).sum() * 4.0 * 3.5 * 3.6 / 1000)
    assert "mask" in repr(brain_mask)


def test_a_mask_must_stand_on_the_volumes_grid(phantom):
    moved = phantom.voxel_to_ras.copy()
    moved[0, 3] += 0.01
    require_same_grid(phantom, BrainMask(data=phantom.data > 0, voxel_to_ras=phantom.voxel_to_ras))
    with pytest.raises(GeometryError, match="does not stand on the grid"):
        require_same_grid(phantom, BrainMask(data=phantom.data > 0, voxel_to_ras=moved))


@pytest.mark.parametrize(
    ("change", "same"), [(5e-4, True), (2e-3, False)], ids=["half_a_micrometre", "two_micrometres"]
)
def test_grids_match_up_to_header_precision(phantom, change, same):
    moved = phantom.voxel_to_ras.copy()
    moved[1, 3] += change
    assert phantom.grid.matches(Grid(shape=phantom.shape, voxel_to_ras=moved)) is same


def test_grids_of_other_shapes_never_match():
    first = Grid(shape=(2, 2, 2), voxel_to_ras=np.eye(4))
    assert not first.matches(Grid(shape=(2, 2, 3), voxel_to_ras=np.eye(4)))


def test_a_grid_needs_voxels():
    with pytest.raises(GeometryError, match="at least one voxel"):
        Grid(shape=(2, 0, 2), voxel_to_ras=np.eye(4))


def outer_edges_mm(grid: Grid) -> np.ndarray:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], [1], indexing="ij")).reshape(4, -1)
    return (grid.voxel_to_ras @ corners)[:3]


@pytest.mark.parametrize("spacing_mm", [0.9, 2.0, 5.0])
def test_a_rescaled_grid_covers_the_same_field_of_view(phantom, spacing_mm):
    old, new = phantom.grid, phantom.grid.rescaled(spacing_mm)
    assert new.spacing_mm == pytest.approx([spacing_mm] * 3)
    assert new.axcodes == old.axcodes
    assert outer_edges_mm(new)[:, 0] == pytest.approx(outer_edges_mm(old)[:, 0]), "the first corner stays"
    surplus = np.array(new.shape) * spacing_mm - np.array(old.shape) * old.spacing_mm
    assert (surplus >= -1e-6).all()
    assert (surplus < spacing_mm).all()


@pytest.mark.parametrize(
    "box", [(slice(1, 4), slice(0, 2), slice(3, None)), (slice(None), slice(2, 3), slice(None, -1))]
)
def test_the_voxels_of_a_part_stay_where_they_are(phantom, box):
    part = phantom.grid.part(box)
    kept = np.indices(phantom.shape)[(slice(None), *box)].reshape(3, -1)
    assert part.shape == phantom.data[box].shape
    before, after = (
        grid.voxel_to_ras[:3, :3] @ index + grid.voxel_to_ras[:3, 3:]
        for grid, index in ((phantom.grid, kept), (part, np.indices(part.shape).reshape(3, -1)))
    )
    assert np.allclose(before, after)


def test_the_inverse_undoes_the_matrix(phantom):
    assert inverse_of(phantom.voxel_to_ras) @ phantom.voxel_to_ras == pytest.approx(np.eye(4))


def test_axis_letters_follow_the_largest_component():
    assert axcodes_of(np.array([[0, 0, -2.0, 0], [1, 0.1, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])) == "AIL"


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 2, 2)], ids=["scalar", "two_components"])
def test_a_displacement_has_three_components(shape):
    with pytest.raises(GeometryError, match="I, J, K, 3"):
        DisplacementField(data=np.zeros(shape), voxel_to_ras=np.eye(4))


def test_a_displacement_is_finite():
    with pytest.raises(GeometryError, match="finite"):
        DisplacementField(data=np.full((2, 2, 2, 3), np.nan), voxel_to_ras=np.eye(4))


@pytest.mark.parametrize(
    "made",
    [lambda a: a, lambda a: a[1:], np.asfortranarray, lambda a: a.T],
    ids=["itself", "part", "order", "turned"],
)
def test_what_happens_to_the_callers_array_does_not_reach_a_volume(made):
    mine = np.ones((4, 5, 6), dtype=np.float32)
    volume = Volume(data=made(mine), voxel_to_ras=np.eye(4))
    mine[:] = np.nan
    assert (volume.data == 1.0).all()
    assert mine.flags.writeable


def test_frozen_memory_is_shared():
    volume = Volume(data=np.ones((4, 5, 6)), voxel_to_ras=np.eye(4))
    part = Volume(data=volume.data[1:], voxel_to_ras=np.eye(4))
    assert np.shares_memory(volume.data, part.data)
