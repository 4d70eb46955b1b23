"""A known field is found in heads however they lie, and in real ones; anatomy is not taken for field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.config import BiasFieldConfig, IngestConfig
from brainstage.pipeline.records import CorrectedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.bias_field import (
    correct_bias,
    evaluate_on_axes,
    fast_n4_field,
    refined,
    sharpened,
)
from brainstage.preprocessing.brain_extraction import stripped_foreground
from brainstage.preprocessing.ingest import ingest

Make = Callable[..., CorrectedBrain]
Phantom = tuple[Volume, BrainMask, np.ndarray]

AXES = {
    "RAS": ((0, 1, 2), ()),
    "LAS": ((0, 1, 2), (0,)),
    "LPS": ((0, 1, 2), (0, 1)),
    "AIL": ((1, 2, 0), (1, 2)),
}
"""How a head stored as RAS is stored otherwise: the order of its axes, and those that are then turned round."""


def field_at(volume: Volume) -> np.ndarray:
    """Return a smooth field that belongs to the room, not to the array: a function of RAS mm."""
    index = np.indices(volume.shape).reshape(3, -1)
    x, y, z = (volume.voxel_to_ras[:3, :3] @ index + volume.voxel_to_ras[:3, 3:]).reshape(
        3, *volume.shape
    ) / 100.0
    return np.exp(0.25 * (x - 0.7 * y + 0.8 * z * x + 0.6 * y**2))


def left_of(found: np.ndarray, truth: np.ndarray, mask: BrainMask) -> float:
    """Return the SD of what is left of the logarithm of a field inside the mask."""
    return float((np.log(found) - np.log(truth))[mask.data].std())


def stored_as(volume: np.ndarray, axcodes: str) -> np.ndarray:
    order, turned = AXES[axcodes]
    return np.flip(np.transpose(volume, order), turned)


def matrix_stored_as(voxel_to_ras: np.ndarray, shape: tuple[int, ...], axcodes: str) -> np.ndarray:
    order, turned = AXES[axcodes]
    matrix = voxel_to_ras[:, [*order, 3]].copy()
    for axis in turned:
        matrix[:, 3] += matrix[:, axis] * (shape[order[axis]] - 1)
        matrix[:, axis] *= -1
    return matrix


def oblique(matrix: np.ndarray) -> np.ndarray:
    c, s = np.cos(0.3), np.sin(0.3)
    return np.array([[1, 0, 0, 4], [0, c, -s, -9], [0, s, c, 2], [0, 0, 0, 1.0]]) @ matrix


@pytest.mark.parametrize("axcodes", [*AXES, "oblique"])
def test_most_of_a_known_field_is_found_however_the_head_lies(phantom: Phantom, axcodes: str) -> None:
    brain, brain_mask, white = phantom
    stored = "RAS" if axcodes == "oblique" else axcodes
    matrix = matrix_stored_as(brain.voxel_to_ras, brain.shape, stored)
    matrix = oblique(matrix) if axcodes == "oblique" else matrix
    even = Volume(data=stored_as(brain.data, stored), voxel_to_ras=matrix)
    mask = BrainMask(data=stored_as(brain_mask.data, stored), voxel_to_ras=matrix)
    white = stored_as(white, stored)
    field = field_at(even)
    found = fast_n4_field(even.with_data(even.data * field), mask, BiasFieldConfig())
    assert np.log(field[mask.data]).std() > 0.09
    assert left_of(found, field, mask) < 0.035
    after = even.data[white] * field[white] / found[white]
    assert after.std() / after.mean() < 1.2 * even.data[white].std() / even.data[white].mean()


def test_grey_and_white_matter_keep_their_contrast(phantom: Phantom) -> None:
    brain, mask, white = phantom
    found = fast_n4_field(brain, mask, BiasFieldConfig())
    grey = mask.data & (np.abs(brain.data - 150.0) < 10.0)
    before = np.median(brain.data[grey]) / np.median(brain.data[white])
    after = np.median(brain.data[grey] / found[grey]) / np.median(brain.data[white] / found[white])
    assert after == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("scale", [1e-3, 37.0])
def test_correction_does_not_depend_on_the_scanners_unit(
    phantom: Phantom, make_corrected: Make, scale: float
) -> None:
    brain, mask, _ = phantom
    head = brain.with_data(brain.data * field_at(brain))
    plain, scaled = (
        correct_bias(make_corrected(head.with_data(head.data * s), mask).stripped, BiasFieldConfig())
        for s in (1.0, scale)
    )
    assert np.allclose(scaled.head.data[mask.data], plain.head.data[mask.data] * scale, rtol=1e-3)
    assert scaled.field_range == pytest.approx(plain.field_range, rel=1e-3)


@pytest.mark.parametrize("subject", ["01", "25", "48"])
def test_a_known_field_multiplied_into_a_real_head_is_found(shared_data: Path, subject: str) -> None:
    path = shared_data / f"ds002748_2mm/sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
    head = ingest(path, IngestConfig()).head
    mask = stripped_foreground(head)
    assert mask is not None
    field = field_at(head)
    own = fast_n4_field(head, mask, BiasFieldConfig())
    both = fast_n4_field(head.with_data(head.data * field), mask, BiasFieldConfig())
    assert left_of(both / own, field, mask) < 0.3 * np.log(field[mask.data]).std()


def test_a_refined_spline_is_the_same_spline() -> None:
    coefficients = np.random.default_rng(3).normal(size=(5, 5, 5))
    axes = [np.linspace(0, 1, n) for n in (9, 10, 11)]
    assert refined(coefficients).shape == (7, 7, 7)
    assert np.allclose(
        evaluate_on_axes(refined(coefficients), axes), evaluate_on_axes(coefficients, axes), atol=1e-5
    )


def test_the_field_goes_on_evenly_beyond_the_mask(phantom: Phantom) -> None:
    brain, mask, _ = phantom
    head = brain.with_data(brain.data * field_at(brain))
    found = fast_n4_field(head, mask, BiasFieldConfig())
    first = np.flatnonzero(mask.data.any(axis=(1, 2)))[0]
    # The same sum of the same products; a kernel may add them in another order for another row of the matrix.
    assert np.allclose(found[0], found[max(first - 3, 1)], rtol=1e-5)
    inside = found[mask.data]
    assert found.min() > 0.5 * inside.min()
    assert found.max() < 2.0 * inside.max()


def test_a_weight_of_two_is_a_value_counted_twice() -> None:
    values = np.random.default_rng(4).normal(5.0, 0.3, 2000)
    weight = np.tile([1.0, 2.0], 1000)
    twice = np.concatenate([values, values[1::2]])
    assert np.allclose(sharpened(values, weight), sharpened(twice)[:2000])
