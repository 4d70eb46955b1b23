"""The share of the ventricles is what was put there, and nothing makes it jump."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.nifti import read_raw
from brainstage.pipeline.records import CorrectedBrain
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.regions import ventricle_fluid, ventricle_surroundings
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.ventricles import Ventricles, lateral_ventricles, ventricle_share

FLUID, GREY, WHITE = 30.0, 150.0, 220.0
Make = Callable[..., CorrectedBrain]


def brain_with(fluid: NDArray[np.bool_]) -> tuple[Volume, BrainMask]:
    """A template brain of 1 mm whose only fluid is where it is said to be; blurred as a scanner does.

    Grey matter lies around it: at a wall of white matter the measure draws the boundary a quarter of a voxel inside.
    """
    template = load_template(1.0)
    walls = ndimage.binary_dilation(fluid, iterations=4)
    tissue = np.where((template.white_matter > template.grey_matter) & ~walls, WHITE, GREY)
    data = ndimage.gaussian_filter(np.where(fluid, FLUID, tissue), 0.5)
    data = np.where(template.brain_mask.data, data, 0.0).astype(np.float32)
    return template.t1w.with_data(data), template.brain_mask


def own_ventricles(widened_mm: int = 0) -> NDArray[np.bool_]:
    """Bodies and temporal horns of the template; crumbs are the choroid fissure, or too thin for 1 mm."""
    labels, _ = ndimage.label(ventricle_fluid(1.0))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    fluid = np.isin(labels, np.argsort(sizes)[-4:])
    wider = ndimage.binary_dilation(fluid, iterations=widened_mm) if widened_mm else fluid
    return wider & (ventricle_surroundings(1.0) | fluid)


def share_of(made: NDArray[np.bool_], mask: BrainMask) -> float:
    return 100.0 * float(made.sum()) / float(mask.data.sum())


@pytest.mark.parametrize("widened_mm", [0, 2, 5])
def test_ventricles_are_as_large_as_they_were_made(make_corrected: Make, widened_mm: int) -> None:
    made = own_ventricles(widened_mm)
    brain, mask = brain_with(made)
    found = ventricle_share(make_corrected(brain, mask), np.eye(4))
    assert found == pytest.approx(share_of(made, mask), rel=0.04)


def test_fluid_that_does_not_reach_the_ventricles_is_none_of_them(make_corrected: Make) -> None:
    made = own_ventricles()
    wall = ndimage.binary_dilation(made, iterations=3) & ~made
    beside = ndimage.binary_dilation(made, iterations=6) & ~ndimage.binary_dilation(made, iterations=3)
    brain, mask = brain_with(made | beside)
    found = ventricle_share(make_corrected(brain, mask), np.eye(4))
    assert wall.any()
    assert found == pytest.approx(share_of(made, mask), rel=0.10)


@pytest.mark.parametrize("scale", [0.01, 1.0, 500.0])
def test_units_of_the_scan_do_not_matter(make_corrected: Make, scale: float) -> None:
    brain, mask = brain_with(own_ventricles())
    scaled = brain.with_data(brain.data * np.float32(scale))
    expected = ventricle_share(make_corrected(brain, mask), np.eye(4))
    assert ventricle_share(make_corrected(scaled, mask), np.eye(4)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("spacing_mm", "tolerance"),
    [
        ((0.7, 0.7, 0.7), 0.08),
        ((1.0, 1.3, 1.3), 0.08),
        # Temporal horns are about as thin as such voxels; what they share with tissue counts for less than its part.
        ((2.0, 2.0, 2.0), 0.12),
        ((1.0, 1.0, 3.0), 0.12),
    ],
)
def test_the_scans_own_grid_and_place_hardly_matter(
    make_corrected: Make, spacing_mm: tuple[float, float, float], tolerance: float
) -> None:
    made = own_ventricles(2)
    brain, mask = brain_with(made)
    native_to_template = np.eye(4)
    native_to_template[:3, :3] = Rotation.from_euler("xyz", (12, -7, 9), degrees=True).as_matrix()
    native_to_template[:3, 3] = (4.0, -9.0, 6.0)
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = (-100.0, -135.0, -95.0)
    grid = Grid(
        shape=tuple(int(n / s) for n, s in zip((200, 250, 210), spacing_mm, strict=True)), voxel_to_ras=matrix
    )
    moved = make_corrected(
        resampled(brain, grid, native_to_template), resampled_mask(mask, grid, native_to_template)
    )
    found = ventricle_share(moved, native_to_template)
    assert found == pytest.approx(share_of(made, mask), rel=tolerance)


def test_a_registration_that_moves_by_a_tenth_of_a_millimetre_changes_nothing_worth_mentioning(
    make_corrected: Make,
) -> None:
    brain, mask = brain_with(own_ventricles())
    corrected = make_corrected(brain, mask)
    expected = ventricle_share(corrected, np.eye(4))
    rng = np.random.default_rng(0)
    for _ in range(5):
        moved = np.eye(4)
        moved[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.1, 3), degrees=True).as_matrix()
        moved[:3, 3] = rng.normal(0, 0.1, 3)
        assert ventricle_share(corrected, moved) == pytest.approx(expected, rel=0.01)


def test_a_wall_that_thins_lets_the_measure_grow_in_small_steps(make_corrected: Make) -> None:
    """Where two pockets of fluid join, a connected component would jump by the whole of one."""
    made = own_ventricles()
    near, far = (ndimage.binary_dilation(made, iterations=n) for n in (1, 5))
    pocket = far & ~near & (np.indices(made.shape)[1] > 150)
    brain, mask = brain_with(made | pocket)
    wall = near & ~made
    found = []
    for opened in np.linspace(0.0, 1.0, 21):
        data = brain.data - np.where(wall, np.float32(opened) * (brain.data - FLUID), 0).astype(np.float32)
        found.append(ventricle_share(make_corrected(brain.with_data(data), mask), np.eye(4)))
    steps = np.diff(found)
    whole = found[-1] - found[0]
    assert whole > 0.2
    assert steps.min() > -1e-3
    assert steps.max() < 0.35 * whole


def test_without_contrast_or_brain_nothing_is_measured(make_corrected: Make) -> None:
    brain, mask = brain_with(own_ventricles())
    inverted = brain.with_data(np.where(mask.data, 300.0 - brain.data, 0.0).astype(np.float32))
    empty = BrainMask(data=np.zeros_like(mask.data), voxel_to_ras=mask.voxel_to_ras)
    aside = np.eye(4)
    aside[:3, 3] = 900.0
    assert ventricle_share(make_corrected(inverted, mask), np.eye(4)) is None
    assert ventricle_share(make_corrected(brain, empty), np.eye(4)) is None
    assert ventricle_share(make_corrected(brain, mask), aside) is None


def made_sides(made: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what is left and what is right of the template's midplane, x = 0; x grows to the right."""
    x_mm = load_template(1.0).grid.voxel_to_ras[0, 3] + np.arange(made.shape[0])
    left = (x_mm <= 0)[:, np.newaxis, np.newaxis]
    return made & left, made & ~left


def lopsided() -> NDArray[np.bool_]:
    """Ventricles of which the left is wider by 3 mm."""
    wide, narrow = (made_sides(own_ventricles(widened)) for widened in (3, 0))
    return wide[0] | narrow[1]


def found_in(brain: Volume, mask: BrainMask, native_to_template: NDArray[np.float64]) -> Ventricles:
    found = lateral_ventricles(brain, mask, native_to_template)
    assert found is not None
    return found


def test_left_is_left_and_both_are_as_large_as_they_were_made() -> None:
    made = lopsided()
    left, right = (float(side.sum()) / 1000.0 for side in made_sides(made))
    found = found_in(*brain_with(made), np.eye(4))
    assert left > 1.5 * right
    assert found.left_ml == pytest.approx(left, rel=0.06)
    assert found.right_ml == pytest.approx(right, rel=0.06)


def test_the_two_sides_together_are_the_share(make_corrected: Make) -> None:
    brain, mask = brain_with(lopsided())
    found = found_in(brain, mask, np.eye(4))
    share = ventricle_share(make_corrected(brain, mask), np.eye(4))
    assert 100.0 * (found.left_ml + found.right_ml) / mask.volume_ml == pytest.approx(share, rel=1e-5)


def test_a_mirrored_brain_has_its_sides_exchanged() -> None:
    brain, mask = brain_with(lopsided())
    mirrored = found_in(
        brain.with_data(brain.data[::-1]),
        BrainMask(data=mask.data[::-1], voxel_to_ras=mask.voxel_to_ras),
        np.eye(4),
    )
    found = found_in(brain, mask, np.eye(4))
    assert mirrored.right_ml == pytest.approx(found.left_ml, rel=0.03)
    assert mirrored.left_ml == pytest.approx(found.right_ml, rel=0.03)


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_the_order_in_which_voxels_are_stored_says_nothing_about_sides(flip: int) -> None:
    brain, mask = brain_with(lopsided())
    matrix = brain.voxel_to_ras.copy()
    matrix[:3, 3] += matrix[:3, flip] * (brain.shape[flip] - 1)
    matrix[:3, flip] *= -1
    flipped = found_in(
        Volume(data=np.flip(brain.data, flip), voxel_to_ras=matrix),
        BrainMask(data=np.flip(mask.data, flip), voxel_to_ras=matrix),
        np.eye(4),
    )
    found = found_in(brain, mask, np.eye(4))
    assert flipped.left_ml == pytest.approx(found.left_ml, rel=1e-4)
    assert flipped.right_ml == pytest.approx(found.right_ml, rel=1e-4)


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 0.7), (1.0, 1.0, 3.0)])
def test_labels_stand_on_the_scans_own_grid_on_their_own_sides_of_a_turned_head(
    spacing_mm: tuple[float, float, float],
) -> None:
    made = lopsided()
    brain, mask = brain_with(made)
    native_to_template = np.eye(4)
    native_to_template[:3, :3] = Rotation.from_euler("xyz", (12, -7, 15), degrees=True).as_matrix()
    native_to_template[:3, 3] = (14.0, -9.0, 6.0)
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = (-120.0, -135.0, -95.0)
    grid = Grid(
        shape=tuple(int(n / s) for n, s in zip((210, 250, 210), spacing_mm, strict=True)), voxel_to_ras=matrix
    )
    head = resampled(brain, grid, native_to_template)
    found = found_in(head, resampled_mask(mask, grid, native_to_template), native_to_template)
    labels = found.on(head.grid)
    assert labels.shape == head.shape
    for label, side in enumerate(made_sides(made), start=1):
        placed = resampled_mask(
            BrainMask(data=side, voxel_to_ras=brain.voxel_to_ras), head.grid, native_to_template
        ).data
        assert (labels[placed] == 3 - label).mean() < 0.01
        assert (labels[placed] == label).mean() > 0.85


def test_without_contrast_there_are_no_sides() -> None:
    brain, mask = brain_with(own_ventricles())
    inverted = brain.with_data(np.where(mask.data, 300.0 - brain.data, 0.0).astype(np.float32))
    assert lateral_ventricles(inverted, mask, np.eye(4)) is None


@pytest.mark.slow
@pytest.mark.shared_data
def test_in_old_people_it_agrees_with_a_segmentation_of_its_own_kind(shared_data: Path) -> None:
    """Automatic labels (MUSE) of two whole heads with narrow and with very wide ventricles, 69 and 87 years."""
    from brainstage.pipeline.config import Config
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import register

    config, ventricles = Config(), (49, 50, 51, 52)
    for name in ("sub-19", "sub-12"):
        (path,) = (shared_data / "elderly" / name / "anat").glob("*_T1w.nii.gz")
        stripped = extract_brain(ingest(path, config.ingest), config.brain_extraction)
        corrected = correct_bias(stripped, config.bias_field)
        registered = register(normalise(corrected, config.intensity), config.registration)
        (drawn,) = (shared_data / "elderly" / "derivatives" / "labels" / name).rglob("*_dseg.nii.gz")
        raw = read_raw(drawn)
        voxel_ml = abs(np.linalg.det(raw.sform[:3, :3])) / 1000.0
        expected = 100.0 * np.isin(raw.data, ventricles).sum() * voxel_ml / stripped.brain_mask.volume_ml
        found = ventricle_share(corrected, registered.native_to_template)
        assert found == pytest.approx(expected, rel=0.25), name
        sides = lateral_ventricles(corrected.head, corrected.brain_mask, registered.native_to_template)
        assert sides is not None
        for found_ml, labels in ((sides.left_ml, (50, 52)), (sides.right_ml, (49, 51))):
            assert found_ml == pytest.approx(np.isin(raw.data, labels).sum() * voxel_ml, rel=0.25), name
