"""Fluid around the medial temporal lobes is what was put there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.morphometry import MEDIAL_TEMPORAL, medial_temporal_fluid
from brainstage.preprocessing.regions import coarse_atlas
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
    assert medial_temporal_fluid(brain, mask, GREY, WHITE) == dict.fromkeys(MEDIAL_TEMPORAL, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_half_of_a_medial_temporal_region_in_fluid_is_half_on_its_side_only(side) -> None:
    brain, mask = brain_of_grey_matter()
    places = np.argwhere(region(f"{side} medial temporal"))[::2]
    brain[tuple(places.T)] = FLUID
    found = medial_temporal_fluid(brain, mask, GREY, WHITE)
    other = {"left": "right", "right": "left"}[side]
    assert found[f"medial_temporal_fluid_{side}"] == pytest.approx(50, abs=0.1)
    assert found[f"medial_temporal_fluid_{other}"] == 0.0


@pytest.mark.parametrize("scale", [0.01, 1.0, 500.0])
def test_units_of_the_scan_do_not_matter(scale) -> None:
    rng = np.random.default_rng(0)
    brain, mask = brain_of_grey_matter()
    brain = np.where(mask.data, rng.uniform(FLUID, WHITE, brain.shape), 0).astype(np.float32)
    expected = medial_temporal_fluid(brain, mask, GREY, WHITE)
    found = medial_temporal_fluid(brain * np.float32(scale), mask, GREY * scale, WHITE * scale)
    assert found == pytest.approx(expected, rel=1e-3)


def test_without_contrast_or_brain_nothing_is_measured() -> None:
    brain, mask = brain_of_grey_matter()
    empty = BrainMask(data=np.zeros_like(mask.data), voxel_to_ras=mask.voxel_to_ras)
    assert medial_temporal_fluid(brain, mask, WHITE, GREY) == dict.fromkeys(MEDIAL_TEMPORAL)
    assert medial_temporal_fluid(brain, empty, GREY, WHITE) == dict.fromkeys(MEDIAL_TEMPORAL)
