"""Local volume is what it was made: smaller where a brain was shrunk, larger where it was swollen, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.errors import GeometryError
from brainstage.pipeline.volume import BrainMask, DisplacementField, Volume
from brainstage.preprocessing.local_volume import local_volume, local_volume_grid
from brainstage.preprocessing.template import Template, load_template

HIPPOCAMPUS_MM = (-27.0, -22.0, -16.0)
REACH_MM = 9.0


def mm_of(index: NDArray[np.float64], voxel_to_ras: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the template mm (3, ...) of voxel indices (3, ...)."""
    return np.einsum("ab,b...->a...", voxel_to_ras[:3, :3], index) + voxel_to_ras[:3, 3].reshape(
        3, *[1] * (index.ndim - 1)
    )


def outwards_mm(template: Template, amount: float, centre_mm) -> NDArray[np.float64]:
    """Return vectors (3, I, J, K) that lead away from a centre, and die away."""
    index = np.indices(template.grid.shape).astype(np.float64)
    away = mm_of(index, template.grid.voxel_to_ras) - np.reshape(centre_mm, (3, 1, 1, 1))
    vectors: NDArray[np.float64] = away * amount * np.exp(-0.5 * np.square(away).sum(axis=0) / REACH_MM**2)
    return vectors


def drawn_in(template: Template, amount: float, centre_mm=HIPPOCAMPUS_MM) -> tuple[Volume, BrainMask]:
    """Show at each place what lies further from a centre: what is around it comes in smaller for an amount above 0."""
    vectors = outwards_mm(template, amount, centre_mm)
    source = np.indices(template.grid.shape) + vectors / template.grid.spacing_mm[0]
    data = ndimage.map_coordinates(template.t1w.data, source, order=1).astype(np.float32)
    return template.t1w.with_data(np.where(template.brain_mask.data, data, 0)), template.brain_mask


def near(centre_mm, radius_mm: float) -> NDArray[np.bool_]:
    grid = local_volume_grid()
    away = mm_of(np.indices(grid.shape).astype(np.float64), grid.voxel_to_ras) - np.reshape(
        centre_mm, (3, 1, 1, 1)
    )
    inside: NDArray[np.bool_] = np.square(away).sum(axis=0) < radius_mm**2
    return inside


def test_the_template_is_as_large_as_itself() -> None:
    fine = load_template(1.0)
    found = local_volume(fine.t1w, fine.brain_mask)
    assert found.shape == local_volume_grid().shape
    assert np.abs(found).max() < 0.02


@pytest.mark.parametrize("amount", [-0.12, 0.12])
@pytest.mark.parametrize("centre_mm", [HIPPOCAMPUS_MM, (27.0, -22.0, -16.0), (-14.0, 10.0, 12.0)])
def test_a_place_that_was_shrunk_or_swollen_is_found_with_its_sign_and_its_side(
    template: Template, amount, centre_mm
) -> None:
    found = local_volume(*drawn_in(template, amount, centre_mm))
    truth = -3 * np.log1p(amount)  # of a shrunk place: its content is what lay further out
    here = found[near(centre_mm, 5.0)].mean()
    assert 0.3 < here / truth < 1.1
    mirrored = (-centre_mm[0], *centre_mm[1:])
    assert abs(found[near(mirrored, 5.0) & ~near(centre_mm, 25.0)].mean()) < 0.1 * abs(truth)


def test_more_atrophy_is_less_volume(template: Template) -> None:
    place = near(HIPPOCAMPUS_MM, 5.0)
    found = [local_volume(*drawn_in(template, amount))[place].mean() for amount in (0.0, 0.05, 0.1, 0.2)]
    assert (np.diff(found) < -0.02).all()


def test_the_mirror_image_of_a_brain_is_measured_alike(template: Template) -> None:
    left = local_volume(*drawn_in(template, 0.15))
    right = local_volume(*drawn_in(template, 0.15, (27.0, -22.0, -16.0)))
    for x, y, z in ((27, -22, -16), (27, -10, -16), (27, -32, -16), (14, 10, 12)):
        assert left[near((-x, y, z), 5.0)].mean() == pytest.approx(
            right[near((x, y, z), 5.0)].mean(), abs=0.03
        )


@pytest.mark.parametrize(("gain", "offset"), [(0.01, -2.0), (40.0, 300.0)])
def test_units_of_the_scan_do_not_matter(template: Template, gain: float, offset: float) -> None:
    brain, mask = drawn_in(template, 0.1)
    other = brain.with_data(np.where(mask.data, gain * brain.data + offset, 0.0))
    assert np.abs(local_volume(other, mask) - local_volume(brain, mask)).max() < 0.01


@pytest.mark.parametrize("resolution_mm", [1.0, 1.5])
def test_every_resolution_of_a_run_says_the_same(template: Template, resolution_mm: float) -> None:
    coarse = local_volume(*drawn_in(template, 0.15))
    fine = local_volume(*drawn_in(load_template(resolution_mm), 0.15))
    place = near(HIPPOCAMPUS_MM, 15.0)
    assert np.corrcoef(coarse[place], fine[place])[0, 1] > 0.9
    assert fine[near(HIPPOCAMPUS_MM, 5.0)].mean() == pytest.approx(
        coarse[near(HIPPOCAMPUS_MM, 5.0)].mean(), rel=0.25
    )


@pytest.mark.parametrize("amount", [-0.1, 0.1])
def test_what_a_deformation_took_out_of_the_image_is_counted_in(template: Template, amount: float) -> None:
    in_image = local_volume(*drawn_in(template, amount))
    inwards = -outwards_mm(template, amount, HIPPOCAMPUS_MM).transpose(1, 2, 3, 0)
    found_by_syn = DisplacementField(data=inwards, voxel_to_ras=template.grid.voxel_to_ras)
    in_deformation = local_volume(template.t1w, template.brain_mask, found_by_syn)
    place = near(HIPPOCAMPUS_MM, 20.0)
    assert np.corrcoef(in_image[place], in_deformation[place])[0, 1] > 0.5
    assert in_deformation[near(HIPPOCAMPUS_MM, 5.0)].mean() == pytest.approx(3 * np.log1p(-amount), rel=0.3)


def test_white_matter_that_is_not_brighter_than_grey_says_nothing(template: Template) -> None:
    inverted = template.t1w.with_data(np.where(template.brain_mask.data, 255 - template.t1w.data, 0))
    assert not local_volume(inverted, template.brain_mask).any()


def test_how_closely_a_brain_was_stripped_does_not_matter_inside(template: Template) -> None:
    brain, mask = drawn_in(template, 0.1)
    closer = BrainMask(data=ndimage.binary_erosion(mask.data), voxel_to_ras=mask.voxel_to_ras)
    stripped = brain.with_data(np.where(closer.data, brain.data, 0))
    place = near(HIPPOCAMPUS_MM, 8.0)
    assert np.abs(local_volume(stripped, closer) - local_volume(brain, mask))[place].mean() < 0.02


def test_the_number_of_threads_changes_nothing(template: Template) -> None:
    brain, mask = drawn_in(template, 0.1)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for threads in (1, 2, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(local_volume(brain, mask))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_nothing_is_said_outside_the_brain_or_of_no_brain(template: Template) -> None:
    found = local_volume(*drawn_in(template, 0.15))
    grid = local_volume_grid()
    first = np.rint((grid.voxel_to_ras - template.grid.voxel_to_ras)[:3, 3] / 2.0).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(first, grid.shape, strict=True))
    assert (found[~template.brain_mask.data[box]] == 0).all()
    empty = BrainMask(data=np.zeros(template.grid.shape, bool), voxel_to_ras=template.grid.voxel_to_ras)
    assert not local_volume(template.t1w, empty).any()


def test_a_mask_of_another_grid_is_refused(template: Template) -> None:
    with pytest.raises(GeometryError, match="grid"):
        local_volume(template.t1w, load_template(1.0).brain_mask)
