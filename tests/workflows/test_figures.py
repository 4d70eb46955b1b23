"""Figures: the right side on the right, no face, and no crash on odd masks."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    VOLUMES,
    AssessedBrain,
    BrainVolumes,
    CorrectedBrain,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    QcReport,
    QcStatus,
    QcVerdict,
    RegisteredBrain,
    StrippedBrain,
)
from brainstage.pipeline.volume import BrainMask, Volume, spacing_of
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.volumes import LABEL_OF
from brainstage.workflows.reporting import outlines
from brainstage.workflows.reporting.drawing import MAX_PNG_BYTES
from brainstage.workflows.reporting.figures import scan_figures, signed_evidence_figure
from brainstage.workflows.reporting.labels import directions
from brainstage.workflows.reporting.mosaic import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    fullest,
    grey,
    mosaic_of,
    painted,
    scene_of,
    spread,
    visibility,
    window_of,
)
from brainstage.workflows.reporting.outlines import MOST_OUTLINES_BYTES, SIDE_COLOURS, volumes_figure
from brainstage.workflows.stages import figures_stage, read_figures

SHAPE_MM = (144.0, 180.0, 150.0)
RADII_MM = np.array([52.0, 66.0, 50.0])
RIGHT_FRONT_TOP_MM = np.array([26.0, 30.0, 18.0])


def storage(axcodes: str, spacing_mm: tuple[float, float, float]) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and voxel-to-RAS matrix of a centred grid whose axes run as `axcodes` say."""
    matrix = np.eye(4)
    shape = []
    for column, (code, spacing) in enumerate(zip(axcodes, spacing_mm, strict=True)):
        world = next(n for n, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        sign = 1.0 if code in "RAS" else -1.0
        matrix[:3, column] = 0.0
        matrix[world, column] = sign * spacing
        shape.append(int(SHAPE_MM[world] / spacing))
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    return tuple(shape), matrix


def world_mm(shape: tuple[int, ...], voxel_to_ras: np.ndarray) -> np.ndarray:
    index = np.indices(shape).reshape(3, -1)
    return (voxel_to_ras[:3, :3] @ index + voxel_to_ras[:3, 3:]).reshape(3, *shape)


def phantom(axcodes: str = "RAS", spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)):
    """Return a brain of grey with a bright ball right, in front and above, scalp around it, and its mask."""
    shape, matrix = storage(axcodes, spacing_mm)
    points = world_mm(shape, matrix)
    radius = np.sqrt(((points / RADII_MM[:, None, None, None]) ** 2).sum(axis=0))
    ball = np.linalg.norm(points - RIGHT_FRONT_TOP_MM[:, None, None, None], axis=0) < 13.0
    head = np.where(radius < 1.4, 30.0, 0.0)
    head[radius < 1.0] = 100.0 + 20.0 * np.sin(points[0] / 6.0)[radius < 1.0]
    head[ball] = 400.0
    return head.astype(np.float32), radius < 1.0, matrix


def registered(head, mask, voxel_to_ras, *, skull_stripped: bool = False) -> RegisteredBrain:
    template = load_template(2.0)
    findings = HeaderFindings(
        shape=head.shape, spacing_mm=spacing_of(voxel_to_ras), axcodes="RAS", affine_source="sform"
    )
    brain_mask = BrainMask(data=mask, voxel_to_ras=voxel_to_ras)
    stripped = StrippedBrain(
        head=Volume(data=head, voxel_to_ras=voxel_to_ras),
        findings=findings,
        brain_mask=brain_mask,
        method="none" if skull_stripped else "deepbet",
        skull_stripped_input=skull_stripped,
    )
    field = 1.0 + 0.002 * np.arange(head.shape[0], dtype=np.float32)[:, None, None]
    corrected = CorrectedBrain(
        head=stripped.head.with_data(head / field), brain_mask=brain_mask, stripped=stripped, field_range=1.2
    )
    normalised = NormalisedBrain(
        brain=stripped.head.with_data(np.where(mask, (head / field - 100.0) / 20.0, 0.0)),
        brain_mask=brain_mask,
        normalisation=Normalisation(method="zscore", centre=100.0, scale=20.0),
        corrected=corrected,
    )
    return RegisteredBrain(
        brain=template.t1w.with_data(template.t1w.data / 100.0),
        brain_mask=template.brain_mask,
        native_to_template=np.eye(4),
        normalised=normalised,
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def check_figures(state: RegisteredBrain) -> dict[str, bytes]:
    figures = scan_figures(state)
    assert list(figures) == [
        "image_quality", "mask", "registration", "flicker", "bias_field", "histogram", "montage",
    ]  # fmt: skip
    for name, png in figures.items():
        assert png.startswith(b"\x89PNG"), name
        assert len(png) <= MAX_PNG_BYTES, name
    assert pixels(figures["montage"]).shape[1] == 240
    assert len(figures["montage"]) < 22_000  # a page of 2,000 scans stays under 60 MB
    return figures


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "LPS", "PIR", "AIL"])
def test_what_lies_right_front_and_above_is_drawn_so_whatever_the_storage(axcodes):
    head, mask, matrix = phantom(axcodes)
    scene = scene_of({"mask": mask, "head": head}, matrix, margin_mm=6.0)
    centre = [spread(scene.mask, axis, 1)[0] for axis in range(3)]
    ball = np.round(np.linalg.inv(scene.voxel_to_ras) @ np.append(RIGHT_FRONT_TOP_MM, 1.0)).astype(int)
    for axis, right, up in ((AXIAL, 1, 1), (CORONAL, 1, 1), (SAGITTAL, 1, 1)):
        mosaic = mosaic_of(scene, [[(axis, int(ball[axis]))]], width=200, gap=4)
        canvas = painted(scene.layers["head"], mosaic)
        rows, columns = np.nonzero(canvas > 300.0)
        tile = mosaic.tiles[0]
        assert (columns.mean() > tile.left + tile.width / 2) == bool(right)
        assert (rows.mean() < tile.top + tile.height / 2) == bool(up)
        assert centre[axis] != ball[axis]


@pytest.mark.parametrize("axcodes", ["RAS", "LAS"])
def test_the_marker_is_on_the_side_that_is_labelled_right(axcodes):
    head, mask, matrix = phantom(axcodes)
    picture = pixels(check_figures(registered(head, mask, matrix))["mask"])
    bright = (picture.min(axis=2) > 235)[: picture.shape[0] // 3]
    columns = np.nonzero(bright)[1]
    tile_width = picture.shape[1] / 7
    inside = columns[(columns > tile_width) & (columns < 6 * tile_width)]  # tiles without letters
    assert inside.size > 50
    assert np.mean((inside % tile_width) > tile_width / 2) > 0.95


def test_the_letters_stand_left_and_right():
    head, mask, matrix = phantom("LPS")
    scene = scene_of({"mask": mask, "head": head}, matrix, margin_mm=6.0)
    mosaic = mosaic_of(scene, [[(AXIAL, 10), (AXIAL, 20)], [(SAGITTAL, 10)]], width=300, gap=4)
    notes = directions(mosaic)
    for left, right in zip(notes[::2], notes[1::2], strict=True):
        assert (left.text, right.text) in {("L", "R"), ("P", "A")}
        assert left.left < right.left


@pytest.mark.parametrize("spacing_mm", [(3.0, 3.0, 3.0), (1.5, 1.5, 6.0), (4.8, 2.0, 2.0)])
def test_nothing_far_from_the_mask_is_visible(spacing_mm):
    head, mask, matrix = phantom("RAS", spacing_mm)
    scene = scene_of({"mask": mask, "head": head}, matrix, margin_mm=40.0)
    visible = visibility(scene)
    away_mm = ndimage.distance_transform_edt(~scene.mask, sampling=spacing_of(scene.voxel_to_ras))
    coarse_mm = 3.0 + max(spacing_mm)
    assert visible[away_mm > 10.0 + coarse_mm].max() == 0.0
    assert visible[scene.mask].min() == 1.0
    j, k = (n // 2 for n in scene.mask.shape[1:])
    low_front = away_mm[:, j + 14 :, : k - 8]
    assert visible[:, j + 14 :, : k - 8][low_front > 5.0 + coarse_mm].max(initial=0.0) == 0.0


def test_a_tissue_far_outside_leaves_no_trace_in_the_picture():
    head, mask, matrix = phantom()
    plain = check_figures(registered(head, mask, matrix))
    points = world_mm(head.shape, matrix)
    nose = np.linalg.norm(points - np.array([0.0, 84.0, -20.0])[:, None, None, None], axis=0) < 6.0
    with_nose = check_figures(registered(np.where(nose, 900.0, head).astype(np.float32), mask, matrix))
    for name in ("image_quality", "mask", "montage", "bias_field", "histogram"):
        assert with_nose[name] == plain[name]


def test_thick_slices_keep_the_proportions_of_the_head():
    head, mask, matrix = phantom("RAS", (1.5, 1.5, 7.0))
    scene = scene_of({"mask": mask, "head": head}, matrix, margin_mm=0.0)
    tile = mosaic_of(scene, [[(CORONAL, 20)]], width=400, gap=4).tiles[0]
    assert tile.height / tile.width == pytest.approx(RADII_MM[2] / RADII_MM[0], rel=0.1)
    check_figures(registered(head, mask, matrix))


def test_a_skull_stripped_scan_is_drawn():
    head, mask, matrix = phantom()
    check_figures(registered(np.where(mask, head, 0.0).astype(np.float32), mask, matrix, skull_stripped=True))


@pytest.mark.parametrize("kind", ["empty", "voxel", "corner", "full", "two_parts"])
def test_odd_masks_do_not_stop_the_report(kind):
    head, mask, matrix = phantom("RAS", (6.0, 6.0, 6.0))
    odd = np.zeros_like(mask)
    if kind == "voxel":
        odd[10, 12, 9] = True
    elif kind == "corner":
        odd[:2, :2, :2] = True
    elif kind == "full":
        odd[:] = True
    elif kind == "two_parts":
        odd[2:5], odd[-5:-2] = True, True
    figures = check_figures(registered(head, odd, matrix))
    if kind == "empty":
        picture = pixels(figures["mask"])
        assert picture[: picture.shape[0] // 4].max(axis=2).mean() < 10  # letters on black


def test_a_constant_image_has_a_window():
    low, high = window_of(np.full((3, 3, 3), 7.0), np.ones((3, 3, 3), dtype=bool))
    assert low < 7.0 < high


def test_the_window_spans_the_grey_values():
    canvas = np.array([[0.0, 5.0, 10.0, 20.0]], dtype=np.float32)
    np.testing.assert_allclose(grey(canvas, (0.0, 10.0)), [[0.0, 0.5, 1.0, 1.0]])


def test_pure_noise_stays_below_the_size_limit():
    rng = np.random.default_rng(3)
    _, mask, matrix = phantom("RAS", (2.0, 2.0, 2.0))
    noise = rng.integers(1, 1000, mask.shape).astype(np.float32)
    check_figures(registered(noise, mask, matrix))


def test_the_same_state_gives_the_same_bytes():
    head, mask, matrix = phantom("RAS", (6.0, 6.0, 6.0))
    state = registered(head, mask, matrix)
    assert scan_figures(state) == scan_figures(state)


def test_the_whole_head_is_shown_only_when_asked_for():
    head, mask, matrix = phantom("RAS", (3.0, 3.0, 3.0))
    face = np.zeros(mask.shape, dtype=bool)
    face[:, -4:, : mask.shape[2] // 2] = True
    assert not (face & mask).any()
    lit, dark = (
        registered(np.where(face, value, head).astype(np.float32), mask, matrix) for value in (1e3, 0.0)
    )
    for name in ("mask", "montage"):
        assert scan_figures(lit)[name] == scan_figures(dark)[name], "the face leaves no trace"
        assert scan_figures(lit, keep_face=True)[name] != scan_figures(dark, keep_face=True)[name]
    assert all(len(png) <= MAX_PNG_BYTES for png in scan_figures(lit, keep_face=True).values())


def bands(state: RegisteredBrain) -> list[np.ndarray]:
    """Return the bands of the flicker without their names."""
    picture = pixels(scan_figures(state)["flicker"]).mean(axis=2)
    height = picture.shape[0] // 3
    return [picture[n * height + 20 : (n + 1) * height, 20:-20] for n in range(3)]


def test_a_brain_that_is_the_template_does_not_flicker_after_registration():
    head, mask, matrix = phantom()
    registered_band, template_band, before = bands(registered(head, mask, matrix))
    assert np.abs(registered_band - template_band).mean() < 4
    assert np.abs(before - registered_band).mean() > 8


def test_before_registration_the_brain_lies_as_its_header_turns_it_around_the_same_centre():
    template = load_template(2.0)
    head = np.where(template.brain_mask.data, template.t1w.data, 0).astype(np.float32)
    moved, turned = np.array(template.t1w.voxel_to_ras), np.diag([1.0, 1.0, 1.0, 1.0])
    moved[:3, 3] += (11.0, -7.0, 23.0)
    turned[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    registered_band, _, shifted = bands(registered(head, template.brain_mask.data, moved))
    assert np.abs(shifted - registered_band).mean() < 6
    *_, nodding = bands(registered(head, template.brain_mask.data, turned @ moved))
    assert np.abs(nodding - registered_band).mean() > 12


# The outlines of the volumes

STRUCTURES_MM = {
    "white_matter": ((0.0, 0.0, 5.0), (34.0, 46.0, 34.0)),
    "ventricle": ((11.0, 0.0, 12.0), (6.0, 24.0, 7.0)),
    "hippocampus": ((25.0, -18.0, -14.0), (6.0, 17.0, 6.0)),
}
"""Centre, to the right, and radii of ellipsoids; those of two sides also stand on the left."""


def label_map(axcodes: str = "RAS", spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Volume:
    """Return labels of ellipsoids on the grid of the phantom."""
    shape, matrix = storage(axcodes, spacing_mm)
    points = world_mm(shape, matrix)
    labels = np.zeros(shape, np.float32)
    for name, (centre, radii) in STRUCTURES_MM.items():
        for side, sign in (("left", -1.0), ("right", 1.0)):
            away = (points - np.multiply(centre, (sign, 1.0, 1.0))[:, None, None, None]).T / radii
            within = (np.square(away).sum(axis=-1) < 1.0).T
            labels[within] = LABEL_OF.get(name, LABEL_OF.get(f"{name}_{side}"))
    return Volume(data=labels, voxel_to_ras=matrix)


def measured(*reasons: str) -> BrainVolumes:
    """Return volumes of which those with a reason are withheld."""
    withheld = {reason.partition(":")[0] for reason in reasons}
    return BrainVolumes(
        volumes_ml={name: None if name in withheld else 3.0 for name in VOLUMES}, reasons=reasons
    )


def outlined(
    axcodes: str = "RAS",
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0),
    *reasons: str,
    labels: Volume | None = None,
    head: np.ndarray | None = None,
) -> np.ndarray:
    """Return the pixels of the picture of the volumes of the phantom."""
    plain, mask, matrix = phantom(axcodes, spacing_mm)
    layers = {
        "mask": mask,
        "after": plain if head is None else head,
        "labels": (labels or label_map(axcodes, spacing_mm)).data,
    }
    scene = scene_of(layers, matrix, margin_mm=12.0)
    scene = scene.with_layer("visible", visibility(scene))
    png = volumes_figure(scene, measured(*reasons), np.eye(4))
    assert len(png) <= MOST_OUTLINES_BYTES
    return pixels(png)


def places_of(picture: np.ndarray, side: str) -> np.ndarray:
    """Return row and column of the pixels that have the colour of a side."""
    colour = np.array([int(SIDE_COLOURS[side][n : n + 2], 16) for n in (1, 3, 5)])
    return np.argwhere(np.abs(picture - colour).max(axis=2) < 24)


BAND_PIXELS = 239
"""Of the picture of one hippocampus: title, slices and gaps."""
BODY = slice(218, 420)
"""The columns of its second slice, 44 mm wide."""
LEFTMOST = slice(8, 315)
"""The columns of the first slice of the brain, an axial one."""


@pytest.mark.parametrize("spacing_mm", [(3.0, 3.0, 3.0), (1.5, 1.5, 4.5), (4.0, 2.0, 2.0)])
def test_the_outline_of_a_hippocampus_stands_where_its_border_is(spacing_mm):
    picture = outlined("RAS", spacing_mm)
    assert picture.shape[1] == 1240
    pixels_a_mm = 201.0 / 44.0
    for side, top in (("left", 0), ("right", BAND_PIXELS)):
        tile = picture[top : top + BAND_PIXELS, BODY]
        found = places_of(tile, side)
        height, width = (np.ptp(found, axis=0) + 1) / pixels_a_mm
        across, _, up = (2.0 * radius for radius in STRUCTURES_MM["hippocampus"][1])
        assert width == pytest.approx(across, abs=spacing_mm[0])
        assert height == pytest.approx(up, abs=spacing_mm[2])
        centre = found.mean(axis=0)
        assert centre[1] == pytest.approx(100.0, abs=0.6 * spacing_mm[0] * pixels_a_mm)
        assert places_of(tile, "right" if side == "left" else "left").size == 0


@pytest.mark.parametrize("axcodes", ["LAS", "LPS", "PIR"])
def test_outlines_are_the_same_however_the_head_is_stored(axcodes):
    apart = np.abs(outlined(axcodes) - outlined("RAS")).max(axis=2)
    assert (
        apart > 40
    ).mean() < 0.002  # the phantom's field runs along a stored axis, so greys differ a little


def test_a_mirrored_label_map_is_outlined_on_the_other_side():
    labels = label_map()
    mirrored = labels.with_data(labels.data[::-1])
    tile_middle = (LEFTMOST.start + LEFTMOST.stop) / 2 - LEFTMOST.start
    for found, left_is_left in ((labels, True), (mirrored, False)):
        axial = outlined(labels=found)[2 * BAND_PIXELS :, LEFTMOST]
        columns = {side: places_of(axial, side)[:, 1] for side in SIDE_COLOURS}
        assert (columns["left"].max() < tile_middle + 4) == left_is_left
        assert (columns["right"].min() > tile_middle - 4) == left_is_left


def said(monkeypatch: pytest.MonkeyPatch, *reasons: str, labels: Volume | None = None) -> list[str]:
    """Return every word in the picture of the volumes."""
    words: list[str] = []
    drawn = outlines.drawn

    def heard(picture, lines, notes):
        words.extend(note.text for note in notes)
        return drawn(picture, lines, notes)

    monkeypatch.setattr(outlines, "drawn", heard)
    outlined("RAS", (3.0, 3.0, 3.0), *reasons, labels=labels)
    return words


def test_a_withheld_hippocampus_has_no_outline_and_the_picture_says_why(monkeypatch):
    labels = label_map()
    without = labels.with_data(np.where(labels.data == LABEL_OF["hippocampus_left"], 0, labels.data))
    for given in (labels, without):
        picture = outlined("RAS", (3.0, 3.0, 3.0), "hippocampus_left:unsure", labels=given)
        assert places_of(picture[:BAND_PIXELS], "left").size == 0
        assert (picture[30:BAND_PIXELS].max(axis=2) > 8).mean() > 0.3, "the place is shown all the same"
        assert places_of(picture[BAND_PIXELS : 2 * BAND_PIXELS], "right").size > 0
    words = said(monkeypatch, "hippocampus_left:unsure", "ventricle_right:no_contrast", labels=without)
    assert "left hippocampus, withheld: the outline is uncertain" in words
    assert "right hippocampus" in words
    assert any("ventricle right withheld: grey matter" in text for text in words)
    assert [text.split()[0] for text in words if "  " in text] == 2 * [
        "head", "body", "tail", "lateral", "medial",
    ]  # fmt: skip


def test_the_slices_of_a_hippocampus_are_named_by_the_indices_of_the_scan(monkeypatch):
    words = said(monkeypatch)
    indices = {text.split()[0]: text.split()[-1] for text in words if "  " in text}
    labels = label_map().data == LABEL_OF["hippocampus_right"]
    across, along = (np.flatnonzero(labels.any(axis=other)) for other in ((1, 2), (0, 2)))
    assert along.min() <= int(indices["tail"]) < int(indices["body"]) < int(indices["head"]) <= along.max()
    assert across.min() <= int(indices["medial"]) < int(indices["lateral"]) <= across.max()


def test_no_face_stands_in_the_picture_of_the_volumes():
    head, _, matrix = phantom()
    points = world_mm(head.shape, matrix)
    nose = np.linalg.norm(points - np.array([0.0, 84.0, -20.0])[:, None, None, None], axis=0) < 6.0
    plain = outlined()
    assert np.array_equal(plain, outlined(head=np.where(nose, 900.0, head).astype(np.float32)))
    near = np.where(points[1] > 40.0, 900.0, head).astype(np.float32)
    assert not np.array_equal(plain, outlined(head=near)), "what lies inside the rim is seen"


@pytest.mark.parametrize("kind", ["no label", "one voxel", "empty mask"])
def test_odd_labels_do_not_stop_the_report(kind):
    head, mask, matrix = phantom("RAS", (6.0, 6.0, 6.0))
    labels = np.zeros(mask.shape, np.float32)
    if kind == "one voxel":
        labels[0, 0, 0], labels[-1, -1, -1] = LABEL_OF["hippocampus_left"], LABEL_OF["ventricle_right"]
    if kind == "empty mask":
        mask = np.zeros_like(mask)
    found = scan_figures(
        registered(head, mask, matrix),
        labels=Volume(data=labels, voxel_to_ras=matrix),
        volumes=measured("hippocampus_right:absent"),
    )
    assert list(found)[-2:] == ["volumes", "montage"]
    assert pixels(found["volumes"]).shape[1] == 1240


def test_noise_under_outlines_stays_below_the_size_limit_and_keeps_their_colours():
    rng = np.random.default_rng(3)
    _, mask, _ = phantom("RAS", (1.5, 1.5, 1.5))
    picture = outlined("RAS", (1.5, 1.5, 1.5), head=rng.integers(1, 1000, mask.shape).astype(np.float32))
    assert all(len(places_of(picture, side)) > 300 for side in SIDE_COLOURS)


@pytest.mark.parametrize("has_labels", [True, False])
def test_the_stage_keeps_the_picture_of_the_volumes_where_there_is_a_label_map(tmp_path, has_labels):
    head, mask, matrix = phantom("RAS", (6.0, 6.0, 6.0))
    assessed = AssessedBrain(
        registered=registered(head, mask, matrix),
        qc=QcReport(measures={}, verdict=QcVerdict(status=QcStatus.PASS)),
        volumes=measured(),
        labels=label_map("RAS", (6.0, 6.0, 6.0)),
    )
    files = ScanFiles(out_dir=tmp_path, entities=BidsEntities(subject="01"))
    stage = figures_stage(Config())
    written = stage.save(assessed if has_labels else replace(assessed, labels=None), files)
    assert (files.figure("volumes") in written) == has_labels
    assert ("volumes" in read_figures(files)) == has_labels


def test_the_slice_with_most_is_taken_of_each_part_and_the_middle_where_there_is_nothing():
    mask = np.zeros((12, 12, 40), dtype=bool)
    mask[2:10, 2:10, 5:35] = True
    values = np.zeros(mask.shape, dtype=np.float32)
    values[5, 5, 7] = 1.0
    values[5, 5, 8] = 2.0
    values[5, 5, 34] = 0.5
    assert fullest(values, mask, AXIAL, 3) == [8, 20, 34] or fullest(values, mask, AXIAL, 3) == [8, 19, 34]


def colours_of(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return where a picture is red and where it is blue, without the scale at its right."""
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)[:, :1160]
    red, green, blue = (shown[..., channel] for channel in range(3))
    return (red > green + 60) & (red > blue + 60), (blue > red + 60)


def test_a_map_with_two_signs_is_red_for_and_blue_against_even_in_one_voxel_and_never_outside_the_brain():
    template = load_template(2.0)
    data = np.zeros(template.grid.shape, dtype=np.float32)
    data[30, 60, 40], data[70, 50, 45], data[0, 0, 0] = 0.4, -0.4, 5.0
    brain, mask = template.t1w, template.brain_mask
    assert mask.data[30, 60, 40]
    assert mask.data[70, 50, 45]
    both = signed_evidence_figure(brain, mask, brain.with_data(data), "log-odds/ml", 0.4)
    red, blue = colours_of(both)
    assert red.sum() > 10
    assert blue.sum() > 10
    assert len(both) <= MAX_PNG_BYTES
    turned_red, turned_blue = colours_of(
        signed_evidence_figure(brain, mask, brain.with_data(-data), "log-odds/ml", 0.4)
    )
    assert np.array_equal(turned_red, blue)
    assert np.array_equal(turned_blue, red)
    nothing = signed_evidence_figure(brain, mask, brain.with_data(0 * data), "log-odds/ml", 0.0)
    assert not any(found.any() for found in colours_of(nothing))
