"""A brain posed by a known amount comes back to where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.config import RegistrationConfig
from brainstage.pipeline.records import Deformation
from brainstage.pipeline.volume import DisplacementField, Grid, Volume
from brainstage.preprocessing.orientation import correlation_inside, rotation_degrees_of
from brainstage.preprocessing.registration import (
    align,
    carry_to_template,
    dice,
    register,
    scale_of,
)
from brainstage.preprocessing.template import Template
from brainstage.preprocessing.transforms import (
    apply_transform,
    labels_to_native,
    read_affine,
    read_transform,
    to_native_transform,
    to_template_transform,
    write_transform,
)

Posed = Callable[..., tuple]


def largest_error_mm(found: np.ndarray, truth: np.ndarray, template: Template) -> float:
    """Largest distance between where both transforms put the brain's voxels."""
    index = np.argwhere(template.brain_mask.data)[::97]
    template_mm = (template.t1w.voxel_to_ras @ np.c_[index, np.ones(len(index))].T)[:3]
    native = np.linalg.inv(truth) @ np.vstack([template_mm, np.ones(template_mm.shape[1])])
    return float(np.linalg.norm((found @ native)[:3] - template_mm, axis=0).max())


@pytest.mark.parametrize(
    ("angles_deg", "shift_mm", "scale"),
    [
        pytest.param((0, 0, 0), (0, 0, 0), 1.0, id="where-it-belongs"),
        pytest.param((12, -6, 9), (15, -20, 30), 1.05, id="usual-pose"),
        pytest.param((45, 0, 0), (0, 60, -50), 0.92, id="nodding-45-degrees"),
        pytest.param((-45, 20, 10), (80, 0, 0), 1.0, id="looking-up-45-degrees"),
        pytest.param((0, 45, 0), (0, 0, 80), 1.1, id="leaning-45-degrees"),
        pytest.param((5, -10, -45), (-40, 30, 20), 1.2, id="turned-45-degrees"),
    ],
)
@pytest.mark.slow
def test_a_posed_brain_is_brought_back(
    template: Template, posed: Posed, angles_deg: tuple, shift_mm: tuple, scale: float
) -> None:
    moving, mask, truth = posed(angles_deg, shift_mm, scale)
    alignment = align(moving, mask, template, seed=0)
    assert alignment.plausible
    assert largest_error_mm(alignment.native_to_template, truth, template) < 2.0
    assert alignment.scale == pytest.approx(scale_of(truth), rel=0.02)


@pytest.mark.slow
def test_syn_removes_a_deformation_that_an_affine_cannot(
    template: Template, make_normalised: Callable[..., object]
) -> None:
    grid = template.grid
    centre = np.array(grid.shape) * [0.35, 0.5, 0.55]
    offset = np.indices(grid.shape).transpose(1, 2, 3, 0) - centre
    bump = np.exp(-((offset * 2.0) ** 2).sum(axis=-1) / (2 * 18.0**2))[..., None] * np.array([0, 6.0, 4.0])
    field = DisplacementField(data=bump.astype(np.float32), voxel_to_ras=grid.voxel_to_ras)
    warp = to_template_transform(np.eye(4), Deformation(forward=field, inverse=field))
    bent = apply_transform(template.t1w, grid, warp)
    mask = type(template.brain_mask)(data=bent.data > 20, voxel_to_ras=grid.voxel_to_ras)
    normalised = make_normalised(bent.with_data(np.where(mask.data, bent.data, 0)), mask)
    results = {
        method: register(normalised, RegistrationConfig(method=method, resolution_mm=2.0))
        for method in ("affine", "syn")
    }
    inside = template.brain_mask.data
    affine, syn = (
        correlation_inside(results[m].brain.data, template.t1w.data, inside) for m in ("affine", "syn")
    )
    assert syn > affine + 0.005
    assert results["syn"].deformation is not None


@pytest.mark.slow
def test_register_gives_a_brain_on_the_templates_grid(
    posed: Posed, make_normalised: Callable[..., object]
) -> None:
    moving, mask, _ = posed((8, 3, -5), (10, -10, 5), 1.0)
    result = register(make_normalised(moving, mask), RegistrationConfig(resolution_mm=1.5))
    assert result.brain.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert (result.brain.data[~result.brain_mask.data] == 0).all()
    assert result.brain_mask.volume_ml == pytest.approx(1886, rel=0.03)


def test_a_left_sided_mark_stays_on_the_left(
    template: Template, make_normalised: Callable[..., object]
) -> None:
    data = template.t1w.data.copy()
    left = np.argwhere(template.brain_mask.data).mean(axis=0).astype(int) - [20, 0, 0]
    data[left[0] - 2 : left[0] + 3, left[1] - 2 : left[1] + 3, left[2] - 2 : left[2] + 3] = 3000
    flipped = Volume(
        data=data[::-1].copy(),
        voxel_to_ras=template.t1w.voxel_to_ras
        @ np.array([[-1, 0, 0, data.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    mask = type(template.brain_mask)(
        data=template.brain_mask.data[::-1].copy(), voxel_to_ras=flipped.voxel_to_ras
    )
    result = carry_to_template(make_normalised(flipped, mask), np.eye(4), None, 2.0)
    brightest = np.unravel_index(result.brain.data.argmax(), result.brain.shape)
    assert (result.brain.voxel_to_ras @ [*brightest, 1])[0] < -30


def test_an_affine_survives_its_file(tmp_path: Path) -> None:
    matrix = np.array([[0.9, 0.1, 0, 12], [-0.1, 1.1, 0.05, -3], [0, 0.02, 1.0, 40], [0, 0, 0, 1]])
    path = write_transform(tmp_path / "x_xfm.h5", to_template_transform(matrix))
    assert np.allclose(read_affine(path), matrix, atol=1e-9)


def test_a_transform_file_leads_template_points_to_native_points_in_lps(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = [10, 20, 30]
    transform = read_transform(write_transform(tmp_path / "x_xfm.h5", to_template_transform(matrix)))
    assert transform.TransformPoint((0.0, 0.0, 0.0)) == pytest.approx((10.0, 20.0, -30.0))


def test_the_two_directions_undo_each_other() -> None:
    matrix = np.array([[1.1, 0, 0.1, 5], [0, 0.9, 0, -8], [0.05, 0, 1, 3], [0, 0, 0, 1.0]])
    there, back = to_template_transform(matrix), to_native_transform(matrix)
    assert back.TransformPoint(there.TransformPoint((11.0, -7.0, 3.0))) == pytest.approx((11.0, -7.0, 3.0))


def test_labels_come_to_native_space_unmixed(template: Template, tmp_path: Path) -> None:
    labels = template.t1w.with_data(
        np.where(template.white_matter > 0.5, 7, 0) + template.brain_mask.data * 3
    )
    matrix = np.eye(4)
    matrix[:3, 3] = [4, -6, 10]
    path = write_transform(tmp_path / "x_xfm.h5", to_native_transform(matrix))
    shifted = template.t1w.voxel_to_ras.copy()
    shifted[:3, 3] -= [4, -6, 10]
    native = labels_to_native(labels, Grid(shape=template.t1w.shape, voxel_to_ras=shifted), path)
    assert set(np.unique(native.data)) == {0.0, 3.0, 10.0}
    assert np.array_equal(native.data, labels.data)


def test_the_angle_of_a_pure_rotation_is_its_angle() -> None:
    turn = np.eye(4)
    c, s = np.cos(np.radians(33)), np.sin(np.radians(33))
    turn[:2, :2] = [[c, -s], [s, c]]
    assert rotation_degrees_of(turn * np.array([1.2, 1.2, 1.2, 1.0])) == pytest.approx(33)


def test_overlap_and_correlation_of_a_thing_with_itself_are_one() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((8, 8, 8)) > 0.5
    values = rng.random((8, 8, 8)).astype(np.float32)
    assert dice(mask, mask) == 1.0
    assert correlation_inside(values, 3 * values + 1, mask) == pytest.approx(1)


def test_overlap_with_nothing_and_correlation_with_a_flat_image_are_zero() -> None:
    empty = np.zeros((4, 4, 4), dtype=bool)
    flat = np.ones((4, 4, 4), dtype=np.float32)
    assert dice(empty, empty) == 0.0
    assert correlation_inside(flat, flat, ~empty) == 0.0
