"""How the hippocampus network's crops are altered: what is deformed keeps its label, and nothing is out of range."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(ROOT))
    yield (
        importlib.import_module("training.hippocampus_augmentation"),
        importlib.import_module("training.hippocampus"),
    )
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def crop(training):
    """Grey ellipsoid in white matter, with fluid above it."""
    augmentation, _ = training
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in (35, 50, 36)), indexing="ij"))
    away = np.sqrt(
        np.square(
            (grid - np.array([17, 25, 17]).reshape(3, 1, 1, 1)) / np.array([7, 16, 5]).reshape(3, 1, 1, 1)
        ).sum(axis=0)
    )
    label = away < 1.0
    image = np.where(label, 60.0, 100.0)
    image = np.where((grid[2] > 23) & (grid[2] < 27), 10.0, image)
    return augmentation.crop_of(image.astype(np.float32), label)


def test_altered_crops_are_of_the_frame_finite_and_all_differ(training, crop):
    augmentation, _ = training
    seen = []
    for seed in range(40):
        image, label, known = augmentation.augmented(crop, np.random.default_rng(seed))
        for one in (image, label, known):
            assert one.shape == augmentation.FRAME_SHAPE
            assert one.dtype == np.float32
            assert np.isfinite(one).all()
        assert label.min() >= 0.0
        assert label.max() <= 1.0 + 1e-6
        assert 0.25 < label.sum() / crop.label.sum() < 2.5
        seen.append(image)
    assert len({one.tobytes() for one in seen}) == len(seen)


def test_the_same_seed_makes_the_same_crop(training, crop):
    augmentation, _ = training
    one, other = (augmentation.augmented(crop, np.random.default_rng(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_label_follows_the_image(training, crop):
    """Grey against white matter: where the label is, the image is darker than around it, however it was deformed."""
    augmentation, _ = training
    darker = []
    for seed in range(30):
        image, label, known = augmentation.augmented(crop, np.random.default_rng(seed))
        inside, around = label > 0.9, (label < 0.1) & (known > 0)
        darker.append(np.median(image[inside]) < np.percentile(image[around], 70))
    assert np.mean(darker) > 0.9


def test_every_sixth_crop_is_held_out_whatever_the_order(training):
    _, hippocampus = training
    names = [f"hippocampus_{n:03d}.nii.gz" for n in range(13)]
    assert hippocampus.held_out(names[::-1]) == [names[0], names[6], names[12]]


@pytest.mark.parametrize("shape", [(31, 40, 24), (43, 59, 47), (44, 60, 44)])
def test_a_crop_lies_in_the_middle_of_its_box(training, shape):
    _, hippocampus = training
    values = np.zeros(shape, dtype=np.float32)
    middle = tuple(n // 2 for n in shape)
    values[middle] = 1.0
    box = hippocampus.in_box(values)
    assert box.shape == hippocampus.BOX_SHAPE
    (place,) = np.argwhere(box)
    assert np.abs(place - (np.array(box.shape) - 1) / 2).max() <= 1.5
