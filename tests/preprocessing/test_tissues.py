"""Tissues are as large as they were made, whatever the scan's units, grid and pose."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.errors import GeometryError
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.regions import ventricle_fluid
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.tissues import Tissues, segment_tissues

FLUID, GREY, WHITE = 40.0, 150.0, 220.0


@cache
def truth() -> NDArray[np.int8]:
    """Labels of a brain whose tissues lie where the template has most of them: 1 grey, 2 white, 3 fluid."""
    template = load_template(1.0)
    fluid = 1.0 - template.grey_matter - template.white_matter
    labels = np.argmax(np.stack([template.grey_matter, template.white_matter, fluid]), axis=0) + 1
    return np.where(template.brain_mask.data, labels, 0).astype(np.int8)


def head_with(labels: NDArray[np.int8], noise: float = 5.0) -> tuple[Volume, BrainMask]:
    """Three tissues of one intensity each, blurred as a scanner does."""
    template = load_template(1.0)
    even = ndimage.gaussian_filter(np.choose(labels, [0.0, GREY, WHITE, FLUID]), 0.5)
    noisy = even + np.random.default_rng(0).normal(0, noise, even.shape)
    data = np.where(template.brain_mask.data, np.maximum(noisy, 1.0), 0.0).astype(np.float32)
    return template.t1w.with_data(data), template.brain_mask


def dice(found: NDArray[np.bool_], made: NDArray[np.bool_]) -> float:
    return 2.0 * float((found & made).sum()) / float(found.sum() + made.sum())


def volumes(tissues: Tissues | None) -> tuple[float, float, float]:
    assert tissues is not None
    return tissues.grey_matter_ml, tissues.white_matter_ml, tissues.csf_ml


@pytest.fixture(scope="module")
def segmented() -> Tissues:
    head, mask = head_with(truth())
    found = segment_tissues(head, mask, np.eye(4))
    assert found is not None
    return found


def test_tissues_lie_where_they_were_made(segmented: Tissues) -> None:
    for label, least in ((1, 0.93), (2, 0.95), (3, 0.9)):
        assert dice(segmented.labels == label, truth() == label) > least, label


def test_tissues_are_as_large_as_they_were_made(segmented: Tissues) -> None:
    made = [float((truth() == label).sum()) / 1000.0 for label in (1, 2, 3)]
    assert volumes(segmented)[:2] == pytest.approx(made[:2], rel=0.05)
    # Little, thin, and half of its voxels border on grey matter.
    assert volumes(segmented)[2] == pytest.approx(made[2], rel=0.15)


def test_they_fill_the_mask_and_nothing_else(segmented: Tissues) -> None:
    mask = load_template(1.0).brain_mask
    assert sum(volumes(segmented)) == pytest.approx(mask.volume_ml, rel=1e-5)
    assert np.array_equal(segmented.labels > 0, mask.data)
    assert segmented.labels.dtype == np.int8
    assert set(np.unique(segmented.labels)) == {0, 1, 2, 3}


def test_the_same_twice(segmented: Tissues) -> None:
    head, mask = head_with(truth())
    again = segment_tissues(head, mask, np.eye(4))
    assert again is not None
    assert np.array_equal(again.labels, segmented.labels)
    assert volumes(again) == volumes(segmented)


@pytest.mark.parametrize("scale", [0.001, 50.0])
def test_units_of_the_scan_do_not_matter(segmented: Tissues, scale: float) -> None:
    head, mask = head_with(truth())
    scaled = segment_tissues(head.with_data(head.data * np.float32(scale)), mask, np.eye(4))
    assert volumes(scaled) == pytest.approx(volumes(segmented), rel=1e-3)


@pytest.mark.parametrize("axcodes", ["LAS", "LPS", "AIL"])
def test_a_scan_stored_along_other_axes_has_the_same_tissues_in_the_same_places(
    segmented: Tissues, axcodes: str
) -> None:
    head, mask = head_with(truth())
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(head.voxel_to_ras), nib.orientations.axcodes2ornt(axcodes)
    )
    matrix = head.voxel_to_ras @ nib.orientations.inv_ornt_aff(turn, head.shape)
    turned, turned_mask, expected = (
        np.ascontiguousarray(nib.orientations.apply_orientation(one, turn))
        for one in (head.data, mask.data, segmented.labels)
    )
    found = segment_tissues(
        Volume(data=turned, voxel_to_ras=matrix), BrainMask(data=turned_mask, voxel_to_ras=matrix), np.eye(4)
    )
    assert found is not None
    # The lattice that the mixture is fitted to begins at another voxel.
    assert volumes(found) == pytest.approx(volumes(segmented), rel=0.01)
    assert (found.labels != expected).sum() < 0.01 * mask.data.sum()


@pytest.mark.parametrize(
    ("spacing_mm", "tolerance"),
    [((0.8, 0.8, 0.8), 0.03), ((2.0, 2.0, 2.0), 0.07), ((1.0, 1.0, 3.0), 0.07), ((3.0, 1.0, 1.0), 0.07)],
)
def test_the_scans_own_grid_and_pose_hardly_matter(
    segmented: Tissues, spacing_mm: tuple[float, float, float], tolerance: float
) -> None:
    head, mask = head_with(truth())
    native_to_template = np.eye(4)
    native_to_template[:3, :3] = Rotation.from_euler("xyz", (12, -7, 9), degrees=True).as_matrix()
    native_to_template[:3, 3] = (4.0, -9.0, 6.0)
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = (-100.0, -135.0, -95.0)
    grid = Grid(
        shape=tuple(int(n / s) for n, s in zip((200, 250, 210), spacing_mm, strict=True)), voxel_to_ras=matrix
    )
    moved = resampled_mask(mask, grid, native_to_template)
    found = segment_tissues(resampled(head, grid, native_to_template), moved, native_to_template)
    made = np.array(volumes(segmented)) * moved.volume_ml / mask.volume_ml
    # A tenth of the mask is fluid, and what it shares with tissue is as much.
    assert volumes(found)[:2] == pytest.approx(made[:2], rel=tolerance)
    assert volumes(found)[2] == pytest.approx(made[2], rel=0.35)


def test_a_voxel_that_two_tissues_share_counts_by_half_for_each() -> None:
    """A slab of the white matter's intensity and grey matter's mean lies between them, five voxels thick."""
    labels = truth().copy()
    middle = (GREY + WHITE) / 2
    white = ndimage.binary_erosion(labels == 2, iterations=2)
    mixed = white & (np.indices(labels.shape)[1] % 12 < 5)
    head, mask = head_with(labels)
    rng = np.random.default_rng(1)
    data = np.where(mixed, middle + rng.normal(0, 5.0, labels.shape), head.data).astype(np.float32)
    before = volumes(segment_tissues(head, mask, np.eye(4)))
    after = volumes(segment_tissues(head.with_data(data), mask, np.eye(4)))
    gained = (after[0] - before[0]) / (mixed.sum() / 1000.0)
    assert gained == pytest.approx(0.5, abs=0.15)


def test_ventricles_wider_than_the_templates_are_fluid_where_it_has_white_matter() -> None:
    labels = truth().copy()
    wide = ndimage.binary_dilation(ventricle_fluid(1.0), iterations=7) & load_template(1.0).brain_mask.data
    grown = wide & (labels == 2)
    labels[wide] = 3
    head, mask = head_with(labels)
    found = segment_tissues(head, mask, np.eye(4))
    assert found is not None
    assert grown.sum() > 20_000
    assert (found.labels[grown] == 3).mean() > 0.97


def test_dark_patches_deep_in_white_matter_do_not_all_become_grey() -> None:
    """As dark as half-way to grey matter, where the template has hardly any of that."""
    labels = truth()
    deep = ndimage.binary_erosion(labels == 2, iterations=4)
    places = np.argwhere(deep)[:: max(1, int(deep.sum()) // 40)]
    seeds = np.zeros_like(deep)
    seeds[tuple(places.T)] = True
    patches = ndimage.binary_dilation(seeds, iterations=3) & deep
    head, mask = head_with(labels)
    darker = np.where(patches, head.data - np.float32(0.5 * (WHITE - GREY)), head.data).astype(np.float32)
    found = segment_tissues(head.with_data(darker), mask, np.eye(4))
    assert found is not None
    assert (found.labels[patches] == 2).mean() > 0.5


def test_bright_vessels_and_fat_move_no_level(segmented: Tissues) -> None:
    """One voxel in a hundred three times as bright as white matter, all at the surface."""
    head, mask = head_with(truth())
    rim = mask.data & ~ndimage.binary_erosion(mask.data, iterations=2)
    bright = rim & (np.random.default_rng(2).random(mask.data.shape) < 0.15)
    found = segment_tissues(
        head.with_data(np.where(bright, np.float32(3 * WHITE), head.data)), mask, np.eye(4)
    )
    assert bright.sum() > 0.01 * mask.data.sum()
    assert volumes(found)[:2] == pytest.approx(volumes(segmented)[:2], rel=0.03)


def test_a_weak_contrast_and_a_bias_field_that_is_left_change_little(segmented: Tissues) -> None:
    head, mask = head_with(truth(), noise=4.0)
    middle = float(np.median(head.data[mask.data]))
    weak = np.where(mask.data, middle + 0.3 * (head.data - middle), 0.0).astype(np.float32)
    along = np.linspace(0.95, 1.05, head.shape[0], dtype=np.float32)[:, np.newaxis, np.newaxis]
    for changed in (weak, head.data * along):
        found = segment_tissues(head.with_data(changed), mask, np.eye(4))
        assert volumes(found)[:2] == pytest.approx(volumes(segmented)[:2], rel=0.06)


def test_without_contrast_or_brain_there_are_no_tissues() -> None:
    head, mask = head_with(truth())
    rng = np.random.default_rng(3)
    aside = np.eye(4)
    aside[:3, 3] = 900.0
    empty = BrainMask(data=np.zeros_like(mask.data), voxel_to_ras=mask.voxel_to_ras)
    nothing_but_noise = np.where(mask.data, rng.normal(100.0, 10.0, head.shape), 0.0).astype(np.float32)
    inverted = np.where(mask.data, 260.0 - head.data, 0.0).astype(np.float32)
    of_one_tissue = np.where(mask.data, np.minimum(head.data, GREY), 0.0).astype(np.float32)
    for changed in (nothing_but_noise, inverted, of_one_tissue, np.zeros_like(head.data)):
        assert segment_tissues(head.with_data(changed), mask, np.eye(4)) is None
    assert segment_tissues(head, mask, aside) is None
    assert segment_tissues(head, empty, np.eye(4)) is None


def test_a_crumb_of_a_mask_is_no_brain() -> None:
    head, mask = head_with(truth())
    crumb = np.zeros_like(mask.data)
    crumb[95:105, 110:120, 90:100] = True
    assert segment_tissues(head, BrainMask(data=crumb, voxel_to_ras=mask.voxel_to_ras), np.eye(4)) is None


def test_a_mask_on_another_grid_is_refused() -> None:
    head, mask = head_with(truth())
    other = BrainMask(data=mask.data[1:], voxel_to_ras=mask.voxel_to_ras)
    with pytest.raises(GeometryError, match="does not stand on the grid"):
        segment_tissues(head, other, np.eye(4))


def grouped(labels: NDArray[np.integer]) -> NDArray[np.int8]:
    """Return the regions of the MICCAI 2012 labels as tissues; the cortex begins at 100."""
    white = (35, 40, 41, 44, 45, 61, 62, 69)
    fluid = (4, 11, 15, 46, 49, 50, 51, 52)
    none = (0, 42, 43, 63, 64)
    tissue = np.where(np.isin(labels, white), 2, np.where(np.isin(labels, fluid), 3, 1))
    return np.where(np.isin(labels, none), 0, tissue).astype(np.int8)


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_brains_have_the_tissues_that_raters_drew_and_the_same_on_a_second_day(
    shared_data: Path,
) -> None:
    """Two stripped scans of one person. Raters count narrow sulci as cortex, so grey matter agrees less."""
    from brainstage.pipeline.config import Config
    from brainstage.pipeline.nifti import read_raw
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import register

    config, found = Config(), []
    folder = shared_data / "oasis_labelled"
    for name in ("sub-1004", "sub-1024"):
        stripped = extract_brain(
            ingest(folder / name / "anat" / f"{name}_T1w.nii.gz", config.ingest), config.brain_extraction
        )
        corrected = correct_bias(stripped, config.bias_field)
        registered = register(normalise(corrected, config.intensity), config.registration)
        tissues = segment_tissues(corrected.head, corrected.brain_mask, registered.native_to_template)
        assert tissues is not None
        raw = read_raw(folder / "derivatives" / "labels" / name / "anat" / f"{name}_dseg.nii.gz")
        assert raw.sform is not None
        drawn = Volume(data=grouped(np.rint(raw.data).astype(int)), voxel_to_ras=raw.sform)
        to_drawn = np.linalg.inv(drawn.voxel_to_ras) @ corrected.head.voxel_to_ras
        expected = ndimage.affine_transform(
            drawn.data, to_drawn[:3, :3], to_drawn[:3, 3], output_shape=corrected.head.shape, order=0
        )
        assert dice(tissues.labels == 1, expected == 1) > 0.90, name
        assert dice(tissues.labels == 2, expected == 2) > 0.91, name
        found.append(tissues)
    first, second = found
    assert second.grey_matter_ml == pytest.approx(first.grey_matter_ml, rel=0.03)
    assert second.white_matter_ml == pytest.approx(first.white_matter_ml, rel=0.03)
