"""Simulated ageing widens ventricles as far as it says, and touches nothing outside the brain."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.config import BrainExtractionConfig, IngestConfig
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.brain_extraction import extract_brain
from brainstage.preprocessing.ingest import ingest
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.ventricles import ventricle_fractions
from brainstage.workflows.synthetic import ageing
from brainstage.workflows.synthetic.ageing import MARKED, MILD, SEVERE, Ageing, aged
from brainstage.workflows.synthetic.damage import Specimen, dilated
from brainstage.workflows.synthetic.variation import AGEINGS

STRENGTHS = (MILD, MARKED, SEVERE)
NOTHING = Ageing(
    ventricle_share=0.0,
    ventricle_growth=1.0,
    sulcus_mm=0.0,
    sulcus_filling=0.0,
    patch_share=0.0,
    contrast=1.0,
)
NOTHING_BUT_PATCHES = replace(NOTHING, patch_share=0.05)
FLUID_BELOW = 110.0
"""Intensity of the template: fluid is about 80, grey matter 165, white matter 220."""


@cache
def head_and_mask(stripped: bool = False) -> tuple[Volume, BrainMask]:
    """The template's brain, in noise or stripped."""
    template = load_template(2.0)
    rng = np.random.default_rng(3)
    noisy = np.maximum(template.t1w.data + rng.normal(0.0, 4.0, template.grid.shape), 1.0)
    outside = 0.0 if stripped else rng.uniform(0.0, 250.0, template.grid.shape)
    return (
        template.t1w.with_data(np.where(template.brain_mask.data, noisy, outside)),
        template.brain_mask,
    )


def specimen(stripped: bool = False, seed: int = 0) -> Specimen:
    head, mask = head_and_mask(stripped)
    return Specimen(head=head, brain_mask=mask, rng=np.random.default_rng(seed))


@cache
def old(strength: Ageing) -> Volume:
    return aged(specimen(), ageing=strength)


def share_of(head: Volume, mask: BrainMask) -> float:
    found = ventricle_fractions(head, mask, np.eye(4))
    assert found is not None
    return 100.0 * float(found.data.sum()) * found.grid.voxel_volume_mm3 / 1000.0 / mask.volume_ml


def fluid_share(head: Volume, mask: BrainMask, margin_mm: float = 20.0) -> float:
    """Dark voxels well inside the brain, per cent of the mask."""
    deep = dilated(mask, -margin_mm).data
    return 100.0 * float((head.data[deep] < FLUID_BELOW).sum()) / float(mask.data.sum())


@pytest.mark.parametrize(("strength", "wanted"), [(MILD, 4.0), (MARKED, 7.0)], ids=["mild", "marked"])
def test_ventricles_reach_the_share_that_is_asked_for(strength: Ageing, wanted: float) -> None:
    head, mask = head_and_mask()
    assert share_of(head, mask) < 2.0
    assert share_of(old(strength), mask) == pytest.approx(wanted, rel=0.15)


def test_ventricles_grow_with_the_strength() -> None:
    """Counted by darkness alone: of the severest ageing, quality control counts what lies where it may be."""
    head, mask = head_and_mask()
    shares = [fluid_share(one, mask) for one in (head, *map(old, STRENGTHS))]
    gained = np.diff(shares)
    assert (gained > 1.0).all(), shares
    assert shares[-1] == pytest.approx(SEVERE.ventricle_share, rel=0.2)
    assert 0.65 * SEVERE.ventricle_share < share_of(old(SEVERE), mask) < SEVERE.ventricle_share


@pytest.mark.parametrize("strength", STRENGTHS, ids=AGEINGS)
def test_nothing_changes_outside_the_brain(strength: Ageing) -> None:
    head, mask = head_and_mask()
    assert np.array_equal(old(strength).data[~mask.data], head.data[~mask.data])
    assert np.array_equal(old(strength).voxel_to_ras, head.voxel_to_ras)


def test_a_stripped_brain_keeps_its_outline() -> None:
    head, mask = head_and_mask(stripped=True)
    after = aged(specimen(stripped=True), ageing=MILD).data
    assert np.array_equal(after > 0, head.data > 0)
    assert np.array_equal(after > 0, mask.data)


def test_as_much_contrast_is_left_as_is_asked_for() -> None:
    head, mask = head_and_mask()
    after = aged(specimen(), ageing=replace(NOTHING, contrast=0.7))
    template = load_template(2.0)
    white, grey = template.white_matter > 0.95, template.grey_matter > 0.9
    before_and_after = [
        float(np.median(one.data[mask.data & white]) - np.median(one.data[mask.data & grey]))
        for one in (head, after)
    ]
    assert before_and_after[1] / before_and_after[0] == pytest.approx(0.7, abs=0.07)


def test_contrast_falls_with_the_strength() -> None:
    assert MILD.contrast > MARKED.contrast > SEVERE.contrast
    template = load_template(2.0)
    z = template.grid.voxel_to_ras[2, 3] + 2.0 * np.arange(template.grid.shape[2])
    # Where no ventricle comes.
    low = (z < -25.0)[None, None, :] & (template.white_matter > 0.95)
    levels = [float(np.median(one.data[low])) for one in (head_and_mask()[0], *map(old, STRENGTHS))]
    assert (np.diff(levels) < -1.0).all(), levels


def test_the_same_draw_ages_alike_and_another_one_otherwise() -> None:
    """To within what the threads of the alignment leave to chance: they add in the order in which they finish."""

    def apart(one: Volume, other: Volume) -> float:
        return float(np.abs(one.data - other.data).mean() / one.data.mean())

    assert apart(aged(specimen(), ageing=MILD), old(MILD)) < 1e-4
    assert apart(aged(specimen(seed=1), ageing=NOTHING_BUT_PATCHES), old(NOTHING_BUT_PATCHES)) > 1e-3


def test_wide_ventricles_still_widen() -> None:
    _, mask = head_and_mask()
    wide = Specimen(head=old(MARKED), brain_mask=mask, rng=np.random.default_rng(0))
    after = aged(wide, ageing=MILD)
    assert share_of(old(MARKED), mask) < share_of(after, mask) < 1.25 * share_of(old(MARKED), mask)


def test_the_flow_folds_nothing_and_leaves_the_surface_in_place() -> None:
    mask = np.zeros((60, 70, 60), dtype=bool)
    index = np.indices(mask.shape) - np.array([30, 35, 30])[:, None, None, None]
    mask[(np.square(index / np.array([26.0, 31.0, 26.0])[:, None, None, None]).sum(axis=0)) < 1] = True
    sides = np.stack([index[0] < -1, index[0] > 1]).astype(np.float32)
    start = (np.abs(index[0]) > 1) & (np.abs(index[0]) < 6) & (np.abs(index[1]) < 12) & (np.abs(index[2]) < 4)
    wanted = 8.0 * float(start.sum())
    pull = ageing.pull_of_swelling(start.astype(np.float64), sides, mask, mask.astype(np.float64), wanted)
    gradients = np.stack([np.stack(np.gradient(part), axis=-1) for part in pull], axis=-2)
    assert np.linalg.det(gradients + np.eye(3)).min() > 0.0
    assert not pull[:, ~mask].any()
    nodes = np.indices(mask.shape) + pull
    swollen = ndimage.map_coordinates(start.astype(np.float64), nodes, order=1)
    assert np.clip((swollen - 0.25) / 0.4, 0.0, 1.0).sum() == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.0, 3.0)])
def test_a_region_grows_by_a_distance_whatever_the_voxels(spacing_mm: tuple[float, float, float]) -> None:
    shape = tuple(round(40.0 / s) for s in spacing_mm)
    slab = np.zeros(shape)
    slab[: shape[0] // 2] = 1.0
    after = ageing.grown(slab, spacing_mm, 1.5)
    gained_mm = (after - slab)[:, 5, 5].sum() * spacing_mm[0]
    assert gained_mm == pytest.approx(1.5, abs=0.1)


def test_coarse_voxels_age_too() -> None:
    head, mask = head_and_mask()
    grid = head.grid.rescaled(3.0)
    coarse, coarse_mask = resampled(head, grid), resampled_mask(mask, grid)
    after = aged(Specimen(head=coarse, brain_mask=coarse_mask, rng=np.random.default_rng(0)), ageing=MARKED)
    assert fluid_share(after, coarse_mask) > fluid_share(coarse, coarse_mask) + 3.0


def test_a_brain_without_ventricles_gets_those_of_the_template() -> None:
    head, mask = head_and_mask()
    filled = head.with_data(np.where(mask.data, np.maximum(head.data, 150.0), head.data))
    before = Specimen(head=filled, brain_mask=mask, rng=np.random.default_rng(0))
    darker = aged(before, ageing=MARKED).data < filled.data - 40.0
    assert 100.0 * darker.sum() / mask.data.sum() > 4.0


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    "scan",
    ["adults_2mm/sub-01/anat/sub-01_T1w.nii.gz", "ds002748_2mm/sub-04/anat/sub-04_T1w.nii.gz"],
    ids=["head", "stripped"],
)
def test_real_brains_grow_old(shared_data: Path, scan: str) -> None:
    stripped = extract_brain(ingest(shared_data / scan, IngestConfig()), BrainExtractionConfig())
    head, mask = stripped.head, stripped.brain_mask
    before = Specimen(head=head, brain_mask=mask, rng=np.random.default_rng(0))
    after = aged(before, ageing=MARKED)
    assert np.array_equal(after.data[~mask.data], head.data[~mask.data])
    fluid = 0.5 * before.tissues().grey_mean
    gained = ((after.data < fluid) & (head.data >= fluid) & mask.data).sum() / mask.data.sum()
    assert gained > 0.04
