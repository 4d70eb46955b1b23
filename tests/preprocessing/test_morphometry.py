"""Fluid in the ventricles and around the medial temporal lobes is what was put there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.morphometry import MORPHOMETRY, morphometry
from brainstage.preprocessing.regions import coarse_atlas, ventricle_surroundings
from brainstage.preprocessing.template import load_template

GREY, WHITE, FLUID = 60.0, 90.0, 30.0


def region(name: str) -> NDArray[np.bool_]:
    atlas = coarse_atlas(2.0)
    return atlas.labels.data == {name: label for label, name in atlas.names.items()}[name]


def brain_of_grey_matter() -> tuple[NDArray[np.float32], BrainMask]:
    mask = load_template(2.0).brain_mask
    return np.where(mask.data, np.float32(GREY), np.float32(0.0)), mask


def test_without_fluid_there_is_none() -> None:
    brain, mask = brain_of_grey_matter()
    assert morphometry(brain, mask, GREY, WHITE) == dict.fromkeys(MORPHOMETRY, 0.0)


def test_ventricles_are_as_large_as_they_were_made_and_grow_with_what_hangs_together_with_them() -> None:
    brain, mask = brain_of_grey_matter()
    ventricles = region("left lateral ventricle") | region("right lateral ventricle")
    wider = ndimage.binary_dilation(ventricles, iterations=2) & ventricle_surroundings(2.0)
    for made in (ventricles, wider):
        found = morphometry(np.where(made, np.float32(FLUID), brain), mask, GREY, WHITE)["ventricle_share"]
        assert found == pytest.approx(100 * made.sum() / mask.data.sum(), rel=1e-3)


def test_fluid_that_does_not_reach_the_ventricles_is_none_of_them() -> None:
    brain, mask = brain_of_grey_matter()
    far = mask.data & ~ndimage.binary_dilation(ventricle_surroundings(2.0), iterations=2)
    assert morphometry(np.where(far, np.float32(FLUID), brain), mask, GREY, WHITE)["ventricle_share"] == 0.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_half_of_a_medial_temporal_region_in_fluid_is_half_on_its_side_only(side) -> None:
    brain, mask = brain_of_grey_matter()
    places = np.argwhere(region(f"{side} medial temporal"))[::2]
    brain[tuple(places.T)] = FLUID
    found = morphometry(brain, mask, GREY, WHITE)
    other = {"left": "right", "right": "left"}[side]
    assert found[f"medial_temporal_fluid_{side}"] == pytest.approx(50, abs=0.1)
    assert found[f"medial_temporal_fluid_{other}"] == 0.0


@pytest.mark.parametrize("scale", [0.01, 1.0, 500.0])
def test_units_of_the_scan_do_not_matter(scale) -> None:
    rng = np.random.default_rng(0)
    brain, mask = brain_of_grey_matter()
    brain = np.where(mask.data, rng.uniform(FLUID, WHITE, brain.shape), 0).astype(np.float32)
    expected = morphometry(brain, mask, GREY, WHITE)
    found = morphometry(brain * np.float32(scale), mask, GREY * scale, WHITE * scale)
    assert found == pytest.approx(expected, rel=1e-3)


def test_without_contrast_or_brain_nothing_is_measured() -> None:
    brain, mask = brain_of_grey_matter()
    empty = BrainMask(data=np.zeros_like(mask.data), voxel_to_ras=mask.voxel_to_ras)
    assert morphometry(brain, mask, WHITE, GREY) == dict.fromkeys(MORPHOMETRY)
    assert morphometry(brain, empty, GREY, WHITE) == dict.fromkeys(MORPHOMETRY)
