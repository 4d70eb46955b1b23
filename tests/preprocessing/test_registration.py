"""A brain posed by a known amount comes back to where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from brainstage.pipeline.config import RegistrationConfig
from brainstage.pipeline.records import Deformation, RegisteredBrain
from brainstage.pipeline.volume import BrainMask, DisplacementField, Grid, Volume
from brainstage.preprocessing.orientation import correlation_inside, rotation_degrees_of
from brainstage.preprocessing.registration import (
    align,
    box_of,
    carry_to_template,
    cropped_to_brain,
    dice,
    register,
    scale_of,
)
from brainstage.preprocessing.template import Template
from brainstage.preprocessing.transforms import (
    apply_transform,
    labels_to_native,
    read_affine,
    read_field,
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


@pytest.fixture(scope="module")
def bump(template: Template) -> DisplacementField:
    """A smooth displacement of one part of the brain, 7 mm at its top."""
    grid = template.grid
    centre = np.array(grid.shape) * [0.35, 0.5, 0.55]
    offset = np.indices(grid.shape).transpose(1, 2, 3, 0) - centre
    bump = np.exp(-((offset * 2.0) ** 2).sum(axis=-1) / (2 * 18.0**2))[..., None] * np.array([0, 6.0, 4.0])
    return DisplacementField(data=bump.astype(np.float32), voxel_to_ras=grid.voxel_to_ras)


@pytest.fixture(scope="module")
def unbent(
    template: Template, bump: DisplacementField, make_normalised: Callable[..., object]
) -> dict[str, RegisteredBrain]:
    """The template's brain, bent by the bump and brought back: method to registered brain."""
    grid = template.grid
    warp = to_template_transform(np.eye(4), Deformation(forward=bump, inverse=bump))
    bent = apply_transform(template.t1w, grid, warp)
    mask = type(template.brain_mask)(data=bent.data > 20, voxel_to_ras=grid.voxel_to_ras)
    normalised = make_normalised(bent.with_data(np.where(mask.data, bent.data, 0)), mask)
    return {
        method: register(normalised, RegistrationConfig(method=method, resolution_mm=2.0))
        for method in ("affine", "syn")
    }


def carried(transform: sitk.Transform, points_mm: np.ndarray) -> np.ndarray:
    """Carry RAS+ mm points, (N, 3), through an ITK transform."""
    flip = np.array([-1.0, -1.0, 1.0])
    return np.array([transform.TransformPoint(point) for point in (points_mm * flip).tolist()]) * flip


def brain_points_mm(template: Template, step: int) -> np.ndarray:
    """Every `step`-th voxel of the template's brain, RAS+ mm, (N, 3)."""
    index = np.argwhere(template.brain_mask.data)[::step]
    return (np.c_[index, np.ones(len(index))] @ template.t1w.voxel_to_ras.T)[:, :3]


@pytest.mark.slow
def test_syn_removes_a_deformation_that_an_affine_cannot(
    template: Template, unbent: dict[str, RegisteredBrain]
) -> None:
    inside = template.brain_mask.data
    affine, syn = (
        correlation_inside(unbent[m].brain.data, template.t1w.data, inside) for m in ("affine", "syn")
    )
    assert syn > affine + 0.005
    assert unbent["syn"].deformation is not None


@pytest.mark.slow
def test_syn_finds_the_deformation_itself(
    template: Template, bump: DisplacementField, unbent: dict[str, RegisteredBrain]
) -> None:
    # The bent brain was sampled from the template at x + bump(x), so the template has the same tissue there.
    moved = np.linalg.norm(bump.data, axis=-1) > 3.0
    native = np.argwhere(moved & template.brain_mask.data)[::23]
    native_mm = (np.c_[native, np.ones(len(native))] @ bump.voxel_to_ras.T)[:, :3]
    truth_mm = native_mm + bump.data[tuple(native.T)]
    errors = {
        method: np.linalg.norm(
            carried(to_native_transform(r.native_to_template, r.deformation), native_mm) - truth_mm, axis=1
        )
        for method, r in unbent.items()
    }
    assert np.median(errors["syn"]) < 2.0
    assert np.median(errors["syn"]) < np.median(errors["affine"]) / 2


@pytest.mark.slow
def test_both_directions_of_syn_undo_each_other_inside_the_brain(
    template: Template, unbent: dict[str, RegisteredBrain]
) -> None:
    result = unbent["syn"]
    points = brain_points_mm(template, 499)
    there = carried(to_template_transform(result.native_to_template, result.deformation), points)
    back = carried(to_native_transform(result.native_to_template, result.deformation), there)
    assert np.linalg.norm(there - points, axis=1).max() > 3.0
    assert np.linalg.norm(back - points, axis=1).max() < 0.5


@pytest.mark.slow
def test_the_estimated_deformation_comes_to_rest_at_the_edge_of_its_box(
    unbent: dict[str, RegisteredBrain],
) -> None:
    deformation = unbent["syn"].deformation
    assert deformation is not None
    for field in (deformation.forward, deformation.inverse):
        assert np.abs(field.data).max() > 1.0
        edges = [np.take(field.data, end, axis=axis) for axis in range(3) for end in (0, -1)]
        assert max(np.abs(edge).max() for edge in edges) < 1e-3


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


def test_a_deformation_ends_with_its_box_also_in_the_file(tmp_path: Path) -> None:
    matrix = np.array([[1.1, 0, 0.1, 5], [0, 0.9, 0, -8], [0.05, 0, 1, 3], [0, 0, 0, 1.0]])
    voxel_to_ras = np.diag([2.0, 2.0, 2.0, 1.0])
    voxel_to_ras[:3, 3] = [-10, -20, 30]
    shift = np.zeros((11, 11, 11, 3), dtype=np.float32)
    shift[1:-1, 1:-1, 1:-1] = [1, 2, 3]
    field = DisplacementField(data=shift, voxel_to_ras=voxel_to_ras)
    deformation = Deformation(forward=field, inverse=field)
    inside, outside = np.array([[0.0, -10.0, 40.0]]), np.array([[40.0, 5.0, -30.0], [0.0, -10.0, 52.0]])
    to_native = np.linalg.inv(matrix)

    path = write_transform(tmp_path / "x_xfm.h5", to_template_transform(matrix, deformation))
    forward = read_transform(path)
    assert np.allclose(carried(forward, outside), outside @ to_native[:3, :3].T + to_native[:3, 3])
    displaced = inside + np.array([1.0, 2.0, 3.0])
    assert np.allclose(carried(forward, inside), displaced @ to_native[:3, :3].T + to_native[:3, 3])
    assert np.allclose(read_affine(path), matrix)

    back = read_transform(write_transform(tmp_path / "y_xfm.h5", to_native_transform(matrix, deformation)))
    arriving = (np.r_[inside, outside] - matrix[:3, 3]) @ to_native[:3, :3].T
    assert np.allclose(carried(back, arriving), np.r_[displaced, outside])


def test_cropping_to_the_brain_leaves_every_voxel_in_its_place(
    orientation: str, make_phantom: Callable[..., Volume]
) -> None:
    head = make_phantom(orientation)
    data = np.zeros(head.shape, dtype=bool)
    data[5:9, 6:10, 0:7] = True
    cropped, mask = cropped_to_brain(
        head, BrainMask(data=data, voxel_to_ras=head.voxel_to_ras), 2 * max(head.spacing_mm)
    )
    assert mask.data.sum() == data.sum()
    assert np.prod(cropped.shape) < np.prod(head.shape) / 2
    index = np.indices(cropped.shape).reshape(3, -1)
    homogeneous = np.vstack([index, np.ones(index.shape[1])])
    where = np.linalg.inv(head.voxel_to_ras) @ cropped.voxel_to_ras @ homogeneous
    before = np.rint(where[:3]).astype(int)
    assert np.allclose(where[:3], before, atol=1e-6)
    assert np.array_equal(head.data[tuple(before)], cropped.data.ravel())
    assert np.array_equal(data[tuple(before)], mask.data.ravel())


def test_the_box_of_a_mask_has_its_margin_and_stays_within_the_array() -> None:
    mask = np.zeros((10, 12, 14), dtype=bool)
    mask[4:6, 1:3, 9:14] = True
    box = box_of(mask, (2, 3, 1))
    assert [range(n)[side] for n, side in zip(mask.shape, box, strict=True)] == [
        range(2, 8),
        range(6),
        range(8, 14),
    ]
    assert mask[box_of(np.zeros_like(mask), (1, 1, 1))].shape == mask.shape


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


def test_a_deformation_is_read_as_it_was_written_and_an_affine_has_none(
    bump: DisplacementField, tmp_path: Path
) -> None:
    path = tmp_path / "xfm.h5"
    write_transform(path, to_template_transform(np.eye(4), Deformation(forward=bump, inverse=bump)))
    found = read_field(path)
    assert found is not None
    assert np.allclose(found.data, bump.data, atol=1e-5)
    assert np.allclose(found.voxel_to_ras, bump.voxel_to_ras)
    write_transform(path, to_template_transform(np.eye(4)))
    assert read_field(path) is None
