"""Previews: where the scan is, no face, small, and the same bytes every time."""

from __future__ import annotations

import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nibabel.affines import apply_affine

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
from brainstage.workflows.reporting.mosaic import scene_of
from brainstage.workflows.reporting.previews import (
    MAX_PREVIEW_BYTES,
    coarse_scene,
    evidence_preview,
    scan_previews,
    signed_evidence_previews,
    template_previews,
)

RADII_MM = np.array([52.0, 66.0, 50.0])
SHAPE_MM = np.array([160.0, 196.0, 170.0])
BALL_MM = np.array([26.0, 30.0, 18.0])
NOSE_MM = np.array([0.0, 88.0, -30.0])


def points_mm(directions: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the RAS position of every voxel, (I, J, K, 3), and the voxel_to_ras of a centred grid."""
    shape = np.round(np.abs(directions.T) @ SHAPE_MM / spacing_mm).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing_mm
    matrix[:3, 3] = -matrix[:3, :3] @ ((shape - 1) / 2)
    index = np.stack(np.indices(shape), axis=-1)
    return index @ matrix[:3, :3].T + matrix[:3, 3], matrix


def near(points: np.ndarray, centre_mm: np.ndarray, radius_mm: float) -> np.ndarray:
    return np.linalg.norm(points - centre_mm, axis=-1) < radius_mm


def registered(head: np.ndarray, mask: np.ndarray, voxel_to_ras: np.ndarray) -> RegisteredBrain:
    template = load_template(2.0)
    volume = Volume(data=head.astype(np.float32), voxel_to_ras=voxel_to_ras)
    brain_mask = BrainMask(data=mask, voxel_to_ras=voxel_to_ras)
    findings = HeaderFindings(
        shape=head.shape, spacing_mm=spacing_of(voxel_to_ras), axcodes="RAS", affine_source="sform"
    )
    stripped = StrippedBrain(
        head=volume, findings=findings, brain_mask=brain_mask, method="deepbet", skull_stripped_input=False
    )
    corrected = CorrectedBrain(head=volume, brain_mask=brain_mask, stripped=stripped, field_range=1.0)
    normalised = NormalisedBrain(
        brain=volume,
        brain_mask=brain_mask,
        normalisation=Normalisation(method="zscore", centre=0.0, scale=1.0),
        corrected=corrected,
    )
    return RegisteredBrain(
        brain=template.t1w,
        brain_mask=template.brain_mask,
        native_to_template=np.eye(4),
        normalised=normalised,
    )


def phantom(directions: np.ndarray, spacing_mm: float = 2.0, *, nose: float = 0.0) -> RegisteredBrain:
    """Return a head with a bright ball right, in front and above, and with a nose."""
    points, matrix = points_mm(directions, spacing_mm)
    radius = np.sqrt(((points / RADII_MM) ** 2).sum(axis=-1))
    head = np.where(
        radius < 1.0, 100.0 + 20.0 * np.sin(points[..., 0] / 6.0), np.where(radius < 1.35, 30.0, 0.0)
    )
    head[near(points, BALL_MM, 13.0)] = 400.0
    head[near(points, NOSE_MM, 9.0)] = nose
    return registered(head, radius < 1.0, matrix)


def read(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-4)
    return np.asarray(image.dataobj), image.affine


def centre_mm(content: bytes, least: int) -> np.ndarray:
    data, matrix = read(content)
    return matrix[:3, :3] @ np.argwhere(data >= least).mean(axis=0) + matrix[:3, 3]


OBLIQUE = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.2, 1.0, 0.15], [0.1, -0.15, 1.0]]))[0]


@pytest.mark.parametrize(
    "directions",
    [np.eye(3), np.diag([-1.0, 1.0, 1.0]), np.diag([-1.0, -1.0, 1.0]), OBLIQUE * np.sign(np.diag(OBLIQUE))],
    ids=["RAS", "LAS", "LPS", "oblique"],
)
def test_what_is_where_in_the_scan_is_there_in_the_preview(directions):
    state = phantom(directions)
    previews = scan_previews(state)
    np.testing.assert_allclose(centre_mm(previews["native"], 200), BALL_MM, atol=1.0)
    np.testing.assert_allclose(centre_mm(previews["native_mask"], 128), 0.0, atol=1.0)
    assert read(previews["native"])[0].shape == read(previews["native_mask"])[0].shape


def test_the_registered_brain_lies_where_the_template_lies():
    previews = scan_previews(phantom(np.eye(3)))
    template = template_previews()
    np.testing.assert_allclose(
        centre_mm(previews["registered"], 60), centre_mm(template["template"], 60), atol=1.0
    )
    edges, matrix = read(template["template_edges"])
    assert set(np.unique(edges)) == {0, 255}
    inside, _ = read(template["template"])
    assert edges.shape == inside.shape
    assert 0.02 < (edges > 0).mean() < 0.3
    assert matrix[0, 0] == pytest.approx(2.0)


def test_a_face_leaves_no_trace_unless_it_is_asked_for():
    with_nose, without = (phantom(np.eye(3), nose=value) for value in (900.0, 0.0))
    assert scan_previews(with_nose) == scan_previews(without)
    kept, plain = (scan_previews(state, keep_face=True) for state in (with_nose, without))
    assert kept["native"] != plain["native"]
    assert kept["native_mask"] == plain["native_mask"]


def test_nothing_far_from_the_mask_is_kept():
    points, matrix = points_mm(np.eye(3), 2.0)
    radius = np.sqrt(((points / RADII_MM) ** 2).sum(axis=-1))
    rng = np.random.default_rng(0)
    state = registered(rng.uniform(100, 900, radius.shape), radius < 1.0, matrix)
    data, small = read(scan_previews(state)["native"])
    index = np.argwhere(data > 0)
    seen_mm = index @ small[:3, :3].T + small[:3, 3]
    inner = seen_mm / np.sqrt(((seen_mm / RADII_MM) ** 2).sum(axis=1))[:, None]
    away_mm = np.linalg.norm(seen_mm, axis=1) - np.linalg.norm(inner, axis=1)
    assert 5.0 < away_mm.max() < 10.0 + 6.0  # the surround, and the grid on which it is measured


@pytest.mark.parametrize("keep_face", [False, True])
def test_pure_noise_stays_below_the_size_limit(keep_face):
    points, matrix = points_mm(np.eye(3), 1.0)
    mask = (((points / (1.2 * RADII_MM)) ** 2).sum(axis=-1)) < 1.0
    noise = np.random.default_rng(1).uniform(1, 1000, mask.shape)
    previews = scan_previews(registered(noise, mask, matrix), keep_face=keep_face)
    assert all(len(content) <= MAX_PREVIEW_BYTES for content in previews.values())


@pytest.mark.parametrize("kind", ["empty", "voxel", "corner", "full"])
def test_odd_masks_do_not_stop_the_previews(kind):
    points, matrix = points_mm(np.eye(3), 6.0)
    mask = np.zeros(points.shape[:3], dtype=bool)
    if kind == "voxel":
        mask[10, 12, 9] = True
    elif kind == "corner":
        mask[:2, :2, :2] = True
    elif kind == "full":
        mask[:] = True
    data, _ = read(scan_previews(registered(np.full(mask.shape, 50.0), mask, matrix))["native"])
    assert data.any() == (kind != "empty")


def test_the_same_state_gives_the_same_bytes():
    state = phantom(np.eye(3), 4.0)
    assert scan_previews(state) == scan_previews(state)


@given(
    spacing_mm=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    shape=st.tuples(*[st.integers(12, 24)] * 3),
    wanted_mm=st.floats(1.0, 5.0),
)
@example(spacing_mm=(1.0, 1.0, 0.5), shape=(12, 12, 12), wanted_mm=3.75)  # hardly thicker than one new voxel
def test_a_linear_ramp_keeps_its_place_when_it_is_made_coarser(spacing_mm, shape, wanted_mm):
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = [-7.0, 3.0, 11.0]
    index = np.stack(np.indices(shape), axis=-1)
    ramp = (index @ matrix[:3, :3].T + matrix[:3, 3]) @ np.array([1.0, 0.5, -0.25])
    scene = scene_of({"mask": np.ones(shape, bool), "ramp": ramp.astype(np.float32)}, matrix, margin_mm=0.0)
    small = coarse_scene(scene, wanted_mm)
    found = np.stack(np.indices(small.mask.shape), axis=-1)
    place = found @ small.voxel_to_ras[:3, :3].T + small.voxel_to_ras[:3, 3]
    np.testing.assert_allclose(small.layers["ramp"], place @ np.array([1.0, 0.5, -0.25]), atol=1e-2)
    assert all(
        size >= min(wanted_mm / 1.05, old) - 1e-6
        for size, old in zip(spacing_of(small.voxel_to_ras), spacing_mm, strict=True)
    )


@pytest.mark.parametrize("native", [True, False])
def test_a_map_of_evidence_keeps_its_place_and_is_cut_where_the_picture_is(native):
    template = load_template(1.0)
    data = np.where(template.brain_mask.data, np.float32(0.2), np.float32(0.0))
    data[60:70, 100:110, 80:90] = 1.0
    packed = evidence_preview(template.t1w.with_data(data), template.brain_mask, native=native)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(packed))
    values = np.asarray(image.dataobj)
    assert values.max() == 255
    assert 700 <= (values > 0).sum() * 8 <= 1400  # what is below 0.3 of the maximum has no colour
    places = apply_affine(image.affine, np.argwhere(values > 127)).mean(axis=0)
    expected = apply_affine(template.t1w.voxel_to_ras, [64.5, 104.5, 84.5])
    assert places == pytest.approx(expected, abs=1.0)


def test_a_map_that_speaks_nowhere_is_empty():
    template = load_template(2.0)
    nowhere = template.t1w.with_data(np.full(template.grid.shape, -1.0, dtype=np.float32))
    packed = evidence_preview(nowhere, template.brain_mask, native=False)
    assert np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(packed)).dataobj).max() == 0


@pytest.mark.parametrize("native", [True, False])
def test_what_speaks_for_and_against_are_two_volumes_on_one_scale_within_the_brain(native):
    template = load_template(1.0)
    data = np.zeros(template.grid.shape, dtype=np.float32)
    data[60:70, 100:110, 80:90] = 1.0
    data[120:130, 100:110, 80:90] = -0.5
    data[:6, :6, :6] = 2.0  # outside the brain
    sides = signed_evidence_previews(template.t1w.with_data(data), template.brain_mask, 1.0, native=native)
    for packed, highest, middle in zip(
        sides, (255, 128), ([64.5, 104.5, 84.5], [124.5, 104.5, 84.5]), strict=True
    ):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(packed))
        values = np.asarray(image.dataobj)
        assert int(values.max()) == pytest.approx(highest, abs=4)
        places = apply_affine(image.affine, np.argwhere(values > 60)).mean(axis=0)
        assert places == pytest.approx(apply_affine(template.t1w.voxel_to_ras, middle), abs=1.0)
