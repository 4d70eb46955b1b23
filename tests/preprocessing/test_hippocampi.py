"""Boxes around hippocampi, and what is made of what a network says of them; the network here knows bright things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.hippocampi import CENTRES_MM, FRAME_SHAPE, find_hippocampi, normalised

SEMI_AXES_MM = {"left": (7.0, 18.0, 6.0), "right": (6.0, 16.0, 5.0)}
ML = {side: 4.0 / 3.0 * np.pi * np.prod(axes) / 1000.0 for side, axes in SEMI_AXES_MM.items()}
HEAD_MM = {"x": (-60, 60), "y": (-70, 40), "z": (-60, 40)}


def segment(boxes: np.ndarray) -> np.ndarray:
    """Bright is hippocampus, with partial volume, where most is dark: what a perfect network would say here."""
    assert boxes.shape[1:] == FRAME_SHAPE
    bright = [np.clip(box, 0.0, 1.0) if np.median(box) < 0.2 else np.zeros_like(box) for box in boxes]
    return np.stack(bright).astype(np.float32)


def affine_of(degrees: float = 0.0, scale: float = 1.0, shift_mm: tuple[float, float, float] = (0, 0, 0)):
    """Native RAS mm to template RAS mm."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = scale * turn
    matrix[:3, 3] = shift_mm
    return matrix


def head_of(
    native_to_template: np.ndarray,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    off_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    sides: tuple[str, ...] = ("left", "right"),
) -> Volume:
    """Return dark tissue with two bright ellipsoids whose axes are the template's, of known size in native mm."""
    ranges = list(HEAD_MM.values())
    shape = [int((b - a) / s) for (a, b), s in zip(ranges, spacing_mm, strict=True)]
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = [a for a, _ in ranges]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
    to_native = np.linalg.inv(native_to_template)
    scale = np.cbrt(np.linalg.det(native_to_template[:3, :3]))
    turn = native_to_template[:3, :3] / scale
    data = np.zeros(index.shape[1])
    for part in np.stack(np.meshgrid(*[(-0.375, -0.125, 0.125, 0.375)] * 3)).reshape(3, -1).T:
        mm = matrix[:3, :3] @ (index + part[:, None]) + matrix[:3, 3:]
        for side in sides:
            centre = to_native[:3, :3] @ np.array(CENTRES_MM[side]) + to_native[:3, 3] + np.array(off_mm)
            apart = turn @ (mm - centre[:, None])
            data += (np.square(apart / np.array(SEMI_AXES_MM[side])[:, None]).sum(axis=0) <= 1.0) / 64.0
    # Nowhere exactly alike, so that nothing is taken for the background of a stripped scan.
    tissue = 100.0 + np.linspace(0.0, 0.5, data.size) + 50.0 * data
    return Volume(data=tissue.reshape(shape).astype(np.float32), voxel_to_ras=matrix)


@pytest.mark.parametrize(
    ("affine", "spacing_mm", "off_mm", "within"),
    [
        pytest.param(affine_of(), (1.0, 1.0, 1.0), (0, 0, 0), 0.02, id="upright"),
        pytest.param(affine_of(15.0, 1.15, (4, -3, 2)), (1.0, 1.0, 1.0), (0, 0, 0), 0.02, id="turned and scaled"),
        pytest.param(affine_of(), (1.0, 1.0, 1.0), (6, -7, 5), 0.02, id="elsewhere than expected"),
        pytest.param(affine_of(), (0.7, 0.7, 0.7), (2, 1, 0), 0.02, id="0.7 mm"),
        pytest.param(affine_of(), (2.0, 2.0, 2.0), (0, 2, 0), 0.15, id="2 mm"),
        pytest.param(affine_of(), (1.0, 1.0, 3.0), (0, 0, 0), 0.2, id="thick slices"),
    ],
)  # fmt: skip
def test_the_volumes_of_a_phantom_are_found_on_their_sides(affine, spacing_mm, off_mm, within):
    head = head_of(affine, spacing_mm, off_mm)
    found = find_hippocampi(head, affine, segment)
    for side, truth_ml in ML.items():
        assert found[side] is not None
        assert found[side].volume_ml == pytest.approx(truth_ml, rel=within)
        inside = found[side].inside(head.grid)
        assert inside.sum() * head.grid.voxel_volume_mm3 / 1000.0 == pytest.approx(
            truth_ml, rel=within + 0.04
        )
        place = head.grid.places_mm(np.argwhere(inside)).mean(axis=1)
        expected = np.linalg.inv(affine) @ [*CENTRES_MM[side], 1.0]
        assert np.abs(place - expected[:3] - off_mm).max() < 0.6
        assert found[side].quality["away_mm"] == pytest.approx(
            np.linalg.norm(affine[:3, :3] @ np.array(off_mm, dtype=float)), abs=1.6
        )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_how_the_voxels_are_stored_changes_nothing(order, flips):
    head = head_of(affine_of())
    turn = np.zeros((4, 4))
    turn[order, range(3)] = flips
    turn[3, 3] = 1.0
    turn[:3, 3] = [(n - 1) if np.any(turn[axis, :3] < 0) else 0 for axis, n in enumerate(head.shape)]
    data = np.transpose(head.data, order)
    data = data[tuple(slice(None, None, flip) for flip in flips)]
    stored = Volume(data=np.ascontiguousarray(data), voxel_to_ras=head.voxel_to_ras @ turn)
    plain, other = (find_hippocampi(one, np.eye(4), segment) for one in (head, stored))
    for side in ML:
        assert plain[side] is not None
        assert other[side] is not None
        assert other[side].volume_ml == pytest.approx(plain[side].volume_ml, rel=1e-4)


def test_a_missing_hippocampus_is_none_and_the_other_is_found():
    found = find_hippocampi(head_of(np.eye(4), sides=("right",)), np.eye(4), segment)
    assert found["left"] is None
    assert found["right"] is not None


def test_a_head_that_lies_elsewhere_has_none():
    far = affine_of(shift_mm=(500.0, 0.0, 0.0))
    assert find_hippocampi(head_of(np.eye(4)), far, segment) == {"left": None, "right": None}


def test_one_at_the_edge_of_the_field_of_view_is_seen_to_be_hidden():
    head = head_of(np.eye(4))
    cut = 47  # through the middle of the hippocampi from front to back
    part = Volume(
        data=head.data[:, cut:],
        voxel_to_ras=head.grid.part((slice(None), slice(cut, None), slice(None))).voxel_to_ras,
    )
    whole, half = (find_hippocampi(one, np.eye(4), segment)["left"] for one in (head, part))
    assert whole is not None
    assert half is not None
    assert half.volume_ml < 0.7 * whole.volume_ml
    assert whole.quality["cut_share"] == 0.0
    assert half.quality["cut_share"] > 0.05


def test_intensities_of_another_scale_give_the_same_box():
    rng = np.random.default_rng(0)
    box = rng.random(FRAME_SHAPE).astype(np.float32)
    shown = box > 0.1
    assert np.allclose(normalised(box, shown), normalised(box * 731.0 + 12.0, shown), atol=1e-4)


def test_the_network_in_the_package_is_the_one_of_its_report():
    from brainstage.models.hippocampus_network import build_network, hippocampus_weights_sha256

    report = (Path(__file__).parents[2] / "training" / "hippocampus.md").read_text(encoding="utf-8")
    assert hippocampus_weights_sha256() in report
    assert f"{sum(one.numel() for one in build_network().parameters()):,}" in report
