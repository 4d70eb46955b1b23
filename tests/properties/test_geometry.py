"""Laws of space: no reordering, rescaling or writing moves a voxel from its place in RAS mm."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.nifti import read_volume, write_volume
from brainstage.pipeline.volume import Grid, Volume, axcodes_of, inverse_of
from brainstage.preprocessing.ingest import ingest, to_ras

SMALL = st.tuples(*[st.integers(1, 5)] * 3)
SPACING = st.tuples(*[st.floats(0.3, 5.0)] * 3)
SHIFT = st.tuples(*[st.floats(-200.0, 200.0)] * 3)
PERMUTATION = st.permutations([0, 1, 2])
FLIPS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
DEGREES = st.tuples(*[st.floats(-35.0, 35.0)] * 3)


def rotation(degrees) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


@st.composite
def affines(draw):
    """Any storage order, any handedness, any tilt, any voxel size."""
    axes = np.eye(3)[:, list(draw(PERMUTATION))] * np.array(draw(FLIPS))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(draw(DEGREES)) @ axes * np.array(draw(SPACING))
    matrix[:3, 3] = draw(SHIFT)
    return matrix


def places(shape, voxel_to_ras) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return index @ voxel_to_ras[:3, :3].T + voxel_to_ras[:3, 3]


def by_place(volume: Volume) -> dict[int, np.ndarray]:
    """Return the RAS mm of every voxel by its value, which is unique."""
    return dict(zip(volume.data.ravel().tolist(), places(volume.shape, volume.voxel_to_ras), strict=True))


def numbered(shape, matrix) -> Volume:
    return Volume(data=np.arange(np.prod(shape), dtype=np.float32).reshape(shape), voxel_to_ras=matrix)


@given(shape=SMALL, matrix=affines())
def test_reorientation_moves_no_voxel(shape, matrix):
    volume = numbered(shape, matrix)
    turned = to_ras(volume)
    before, after = by_place(volume), by_place(turned)
    assert before.keys() == after.keys()
    assert max(np.abs(before[value] - after[value]).max() for value in before) < 1e-9
    assert turned.axcodes == "RAS"


@given(matrix=affines())
def test_an_affine_and_its_inverse_undo_each_other(matrix):
    grid = Grid(shape=(2, 2, 2), voxel_to_ras=matrix)
    assert np.allclose(inverse_of(grid.voxel_to_ras) @ grid.voxel_to_ras, np.eye(4), atol=1e-9)
    assert np.allclose(inverse_of(inverse_of(grid.voxel_to_ras)), grid.voxel_to_ras, atol=1e-9)


@given(shape=SMALL, matrix=affines(), spacing_mm=st.floats(0.4, 6.0))
def test_rescaling_keeps_the_directions_and_covers_the_field_of_view(shape, matrix, spacing_mm):
    old = Grid(shape=shape, voxel_to_ras=matrix)
    new = old.rescaled(spacing_mm)
    assert np.allclose(new.spacing_mm, spacing_mm)
    assert np.allclose(
        new.voxel_to_ras[:3, :3] / spacing_mm, old.voxel_to_ras[:3, :3] / np.array(old.spacing_mm)
    )
    in_new = (inverse_of(new.voxel_to_ras) @ np.c_[places(shape, matrix), np.ones(np.prod(shape))].T)[:3]
    assert (in_new > -0.5 - 1e-6).all()
    assert (in_new < np.array(new.shape)[:, None] - 0.5 + 1e-6).all()


@given(shape=SMALL, matrix=affines())
def test_a_written_volume_stays_where_it_is(shape, matrix, tmp_path_factory):
    volume = numbered(shape, matrix)
    back = read_volume(write_volume(tmp_path_factory.mktemp("volume") / "x.nii.gz", volume))
    assert np.array_equal(back.data, volume.data)
    assert back.grid.matches(volume.grid)
    assert back.axcodes == axcodes_of(matrix)


@given(matrix=affines(), flip=st.booleans())
def test_ingestion_moves_no_voxel(matrix, flip, save_nifti, tmp_path_factory):
    shape = (18, 17, 19)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    matrix[:3, :3] *= (5.0 if flip else 5.5) / spacing
    assume(abs(np.linalg.det(matrix[:3, :3])) > 1)
    stored = Volume(
        data=1.0 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape), voxel_to_ras=matrix
    )
    path = save_nifti(tmp_path_factory.mktemp("scan") / "x.nii", stored.data, matrix)
    result = ingest(path, IngestConfig())
    before, after = by_place(stored), by_place(result.head)
    assert before.keys() == after.keys()
    assert max(np.abs(before[value] - after[value]).max() for value in before) < 2e-3
    assert result.head.axcodes == "RAS"
    assert result.findings.warnings == ()
