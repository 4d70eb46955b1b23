"""The first figure: voxels as they are, air that can be seen, and no face in it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from brainstage.pipeline.records import (
    CorrectedBrain,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    RegisteredBrain,
    StrippedBrain,
)
from brainstage.pipeline.volume import BrainMask, Volume, spacing_of
from brainstage.preprocessing.template import load_template
from brainstage.workflows.reporting.face import face_in_slices, face_is_located
from brainstage.workflows.reporting.figures import scan_figures
from brainstage.workflows.reporting.image_quality import (
    MOST_BACKGROUND_BYTES,
    MOST_BRAIN_BYTES,
    air_window,
    background_figure,
)
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    WHOLE_HEAD_MM,
    enlarged_mosaic,
    painted,
    scene_of,
)

WIDE_MM = (180.0, 270.0, 270.0)
BRAIN_CENTRE_MM = np.array([0.0, -22.0, 9.0])
BRAIN_RADII_MM = np.array([66.0, 86.0, 66.0])
AIR_SD = 3.0
TISSUE = 200.0
FACE_MM = {
    "brow": (0.0, 84.0, -8.0),
    "bridge of the nose": (0.0, 92.0, -28.0),
    "tip of the nose": (0.0, 120.0, -50.0),
    "eye": (32.0, 66.0, -32.0),
    "cheek": (-50.0, 62.0, -60.0),
    "mouth": (0.0, 104.0, -92.0),
    "chin": (0.0, 98.0, -120.0),
    "angle of the jaw": (50.0, -4.0, -92.0),
}
"""In the template's millimetres."""


def grid(axcodes: str = "RAS", spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)):
    """Return shape and voxel-to-RAS matrix of a field of view of a whole head."""
    matrix, shape = np.eye(4), []
    for column, (code, spacing) in enumerate(zip(axcodes, spacing_mm, strict=True)):
        world = next(n for n, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        matrix[:3, column] = 0.0
        matrix[world, column] = spacing if code in "RAS" else -spacing
        shape.append(int(WIDE_MM[world] / spacing))
    matrix[:3, 3] = (0.0, 0.0, -15.0) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    return tuple(shape), matrix


def points_mm(shape, matrix) -> np.ndarray:
    index = np.indices(shape).reshape(3, -1)
    return (matrix[:3, :3] @ index + matrix[:3, 3:]).reshape(3, *shape)


def near(points, centre_mm, radius_mm) -> np.ndarray:
    return np.linalg.norm(points - np.reshape(centre_mm, (3, 1, 1, 1)), axis=0) < radius_mm


def whole_head(axcodes: str = "RAS", spacing_mm=(3.0, 3.0, 3.0), *, nose: float = 0.0):
    """Return a brain in a scalp in noisy air, its mask and matrix; `nose` is the brightness of a face, 0 for none."""
    shape, matrix = grid(axcodes, spacing_mm)
    points = points_mm(shape, matrix)
    away = (points - BRAIN_CENTRE_MM[:, None, None, None]) / BRAIN_RADII_MM[:, None, None, None]
    radius = np.sqrt((away**2).sum(axis=0))
    head = np.random.default_rng(5).rayleigh(AIR_SD, shape)
    head[radius < 1.15] = 150.0
    head[radius < 1.0] = TISSUE + 20.0 * np.sin(points[1] / 7.0)[radius < 1.0]
    if nose:
        for across, forward, up in FACE_MM.values():
            # Also where the sagittal slice of the whole head lies.
            for place in ((across, forward, up), (-33.0, forward, up)):
                head[near(points, place, 9.0) & (radius > 1.0)] = nose
    return head.astype(np.float32), radius < 1.0, matrix


def state_of(head, mask, matrix, *, native_to_template=None, skull_stripped=False) -> RegisteredBrain:
    template = load_template(2.0)
    brain_mask = BrainMask(data=mask, voxel_to_ras=matrix)
    stripped = StrippedBrain(
        head=Volume(data=head, voxel_to_ras=matrix),
        findings=HeaderFindings(
            shape=head.shape, spacing_mm=spacing_of(matrix), axcodes="RAS", affine_source="sform"
        ),
        brain_mask=brain_mask,
        method="none" if skull_stripped else "deepbet",
        skull_stripped_input=skull_stripped,
    )
    corrected = CorrectedBrain(head=stripped.head, brain_mask=brain_mask, stripped=stripped, field_range=1.0)
    normalised = NormalisedBrain(
        brain=stripped.head.with_data(np.where(mask, head, 0.0)),
        brain_mask=brain_mask,
        normalisation=Normalisation(method="zscore", centre=TISSUE, scale=20.0),
        corrected=corrected,
    )
    return RegisteredBrain(
        brain=template.t1w,
        brain_mask=template.brain_mask,
        native_to_template=np.eye(4) if native_to_template is None else native_to_template,
        normalised=normalised,
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def is_grey(picture: np.ndarray) -> np.ndarray:
    return np.ptp(picture, axis=2) < 3


def scene(head, mask, matrix):
    return scene_of({"mask": mask, "head": head}, matrix, margin_mm=WHOLE_HEAD_MM)


def test_they_come_first_and_the_air_only_where_the_face_is_located():
    state = state_of(*whole_head())
    assert list(scan_figures(state, face_located=True))[:3] == ["image_quality", "background", "mask"]
    assert list(scan_figures(state, keep_face=True))[:3] == ["image_quality", "background", "mask"]
    assert list(scan_figures(state))[:2] == ["image_quality", "mask"]


def test_the_noise_of_the_air_is_dark_grey_and_the_head_white():
    head, mask, matrix = whole_head()
    white, share = air_window(scene(head, mask, matrix))
    assert white == pytest.approx(6.0 * AIR_SD, rel=0.1)
    assert share == pytest.approx(white / TISSUE, rel=0.05)
    picture = pixels(background_figure(state_of(head, mask, matrix), keep_face=False))
    top = picture[24:60, -200:-20]  # the air above the head in the sagittal slice
    assert 30 < top.mean() < 80
    assert top.std() > 15
    assert (picture.min(axis=2) > 250).mean() > 0.25


@pytest.mark.parametrize("shift", [12, -12])
def test_a_ghost_in_the_air_is_seen(shift):
    head, mask, matrix = whole_head()
    ghost = head + 0.05 * np.roll(np.where(head > 50.0, head, 0.0), shift, axis=1)
    plain, seen = (
        pixels(background_figure(state_of(h.astype(np.float32), mask, matrix), keep_face=False))
        for h in (head, ghost)
    )
    assert (np.abs(seen - plain).max(axis=2) > 60).mean() > 0.005


def test_ringing_of_a_few_per_cent_changes_the_picture_visibly():
    head, mask, matrix = whole_head("RAS", (1.5, 1.5, 1.5))
    stripes = np.where(np.arange(head.shape[1]) % 2, 1.0, -1.0)[None, :, None]
    ringing = np.where(mask, head * (1.0 + 0.03 * stripes), head).astype(np.float32)
    plain, seen = (
        pixels(scan_figures(state_of(h, mask, matrix))["image_quality"])[..., 0] for h in (head, ringing)
    )
    tile = (slice(150, 250), slice(180, 300))  # inside the first axial slice
    assert np.abs(seen - plain)[tile].mean() > 10
    assert np.abs(np.diff(seen[tile], axis=0)).max(axis=0).mean() > 20, "neighbouring voxels stay apart"


def test_every_voxel_takes_the_same_whole_number_of_pixels():
    shape, matrix = (30, 40, 20), np.diag([1.5, 1.5, 1.5, 1.0])
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    one = scene_of({"mask": np.ones(shape, bool), "head": values}, matrix, margin_mm=0.0)
    mosaic = enlarged_mosaic(one, [[(AXIAL, 3)], [(CORONAL, 5), (SAGITTAL, 7)]], most_pixels=230, gap=2)
    assert mosaic.size[1] == 3 * (30 + 40) + 6
    canvas = painted(values, mosaic, blend=False)
    planes = (values[:, :, 3], values[:, 5, :], values[7, :, :])
    for tile, plane in zip(mosaic.tiles, planes, strict=True):
        drawn = canvas[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        np.testing.assert_array_equal(drawn, np.kron(plane.T[::-1], np.ones((3, 3))))


def test_voxels_finer_than_pixels_still_fit():
    shape, matrix = (400, 400, 30), np.diag([0.4, 0.4, 4.0, 1.0])
    one = scene_of({"mask": np.ones(shape, bool)}, matrix, margin_mm=0.0)
    mosaic = enlarged_mosaic(one, [[(AXIAL, 3), (AXIAL, 9)]], most_pixels=500, gap=2)
    assert mosaic.size[1] <= 500


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "LPS", "PIR"])
def test_the_face_leaves_no_trace(axcodes):
    lit, dim = (state_of(*whole_head(axcodes, nose=value)) for value in (900.0, 60.0))
    assert background_figure(lit, keep_face=False) == background_figure(dim, keep_face=False)
    faceless = state_of(*whole_head(axcodes))
    assert background_figure(lit, keep_face=True) != background_figure(faceless, keep_face=True)
    assert (~is_grey(pixels(background_figure(lit, keep_face=False)))).mean() > 0.08
    assert is_grey(pixels(background_figure(lit, keep_face=True))).all()


def test_no_face_is_in_the_slices_of_the_brain_even_where_it_is_kept_elsewhere():
    lit, dim = (
        scan_figures(state_of(*whole_head(nose=value)), keep_face=True)["image_quality"]
        for value in (900.0, 60.0)
    )
    assert lit == dim


@pytest.mark.parametrize("pitch_deg", [-40.0, -20.0, 0.0, 20.0, 40.0])
@pytest.mark.parametrize("yaw_deg", [0.0, 30.0])
def test_the_face_is_found_however_the_head_lies(pitch_deg, yaw_deg):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xz", [pitch_deg, yaw_deg], degrees=True).as_matrix()
    shape, matrix = (80, 110, 110), np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    centre = turn[:3, :3] @ BRAIN_CENTRE_MM
    mask = near(points_mm(shape, matrix), centre, 60.0)
    one = scene_of({"mask": mask}, matrix, margin_mm=WHOLE_HEAD_MM)
    for name, place in FACE_MM.items():
        index = np.round(np.linalg.inv(matrix) @ turn @ np.append(place, 1.0)).astype(int)[:3]
        for axis in range(3):
            mosaic = enlarged_mosaic(one, [[(axis, int(index[axis]))]], most_pixels=300, gap=2)
            assert face_in_slices(one, mosaic, np.linalg.inv(turn))[tuple(index)], (name, axis)


def test_a_registration_that_went_wrong_does_not_uncover_the_face():
    back_to_front = np.diag([-1.0, -1.0, 1.0, 1.0])
    lit, dim = (
        state_of(*whole_head(nose=value), native_to_template=back_to_front) for value in (900.0, 60.0)
    )
    assert background_figure(lit, keep_face=False) == background_figure(dim, keep_face=False)


@pytest.mark.parametrize(
    ("measures", "located"),
    [
        ({"mask_template_dice": 0.95, "upright_margin": 0.3}, True),
        ({"mask_template_dice": 0.85, "upright_margin": 0.3}, False),
        ({"mask_template_dice": 0.95, "upright_margin": 0.05}, False),
        ({"mask_template_dice": 0.95, "upright_margin": 0.15}, False),
        ({"mask_template_dice": 0.95, "upright_margin": None}, False),
        ({}, False),
    ],
)
def test_the_face_counts_as_located_only_on_a_sound_registration(measures, located):
    assert face_is_located(measures) is located


def test_without_air_there_is_no_picture_of_it():
    head, mask, matrix = whole_head()
    stripped = np.where(mask, head, 0.0).astype(np.float32)
    assert background_figure(state_of(stripped, mask, matrix, skull_stripped=True), keep_face=True) is None
    removed = np.where(head > 50.0, head, 0.0).astype(np.float32)
    assert background_figure(state_of(removed, mask, matrix), keep_face=True) is None
    assert background_figure(state_of(head, np.zeros_like(mask), matrix), keep_face=True) is None
    tight = np.full_like(head, TISSUE)
    assert background_figure(state_of(tight, mask, matrix), keep_face=True) is None


def test_padding_around_the_field_of_view_is_no_removed_air():
    head, mask, matrix = whole_head()
    padded = head.copy()
    padded[:5] = padded[-5:] = 0.0
    white, _ = air_window(scene(padded, mask, matrix))
    assert white == pytest.approx(6.0 * AIR_SD, rel=0.1)


def test_air_that_was_rounded_to_whole_numbers_is_still_air():
    head, mask, matrix = whole_head()
    rounded = np.where(head < 50.0, np.floor(head / 4.0), head).astype(np.float32)
    assert air_window(scene(rounded, mask, matrix)) is not None


def test_a_noisy_scan_of_fine_voxels_adds_no_more_than_promised():
    head, mask, matrix = whole_head("RAS", (1.0, 1.0, 1.0))
    noise = np.random.default_rng(1).normal(0.0, 40.0, head.shape)
    state = state_of(
        np.where(head > 50.0, np.maximum(head + noise, 1.0), head).astype(np.float32), mask, matrix
    )
    figures = scan_figures(state, face_located=True)
    assert len(figures["image_quality"]) <= MOST_BRAIN_BYTES
    assert len(figures["background"]) <= MOST_BACKGROUND_BYTES


def test_the_same_state_gives_the_same_bytes():
    state = state_of(*whole_head())
    again = replace(state)
    assert background_figure(state, keep_face=False) == background_figure(again, keep_face=False)
