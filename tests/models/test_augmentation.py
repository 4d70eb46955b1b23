"""Recipes alter an image, the same for the same seeds, and leave the background what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from brainstage.models.augmentation import RECIPES, Augmentation, ghosted
from brainstage.pipeline.errors import UsageError

MOVING = ("pose", "flip", "left-right")


def brain(background=0.0):
    """A lopsided ball of noise in one value of background."""
    index = np.indices((32, 40, 32))
    inside = ((index - np.array([14, 20, 16])[:, None, None, None]) ** 2).sum(axis=0) < 11**2
    values = 4 * gaussian_filter(np.random.default_rng(0).standard_normal(inside.shape), 1.5)
    return np.where(inside, values, background)[None].astype(np.float32), inside


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_alters_about_half_of_the_images_the_same_for_the_same_seeds(name):
    image, inside = brain()
    augmentation = Augmentation([name])
    altered = [augmentation(image, (0, 1, scan)) for scan in range(30)]
    changed = [not np.array_equal(one, image) for one in altered]
    assert 5 <= sum(changed) <= 25
    assert all(np.array_equal(augmentation(image, (0, 1, scan)), altered[scan]) for scan in (3, 4))
    assert all(one.shape == image.shape and one.dtype == np.float32 for one in altered)
    assert all(np.isfinite(one).all() for one in altered)
    kept = inside if name not in MOVING else None
    assert all(
        np.corrcoef(one[0][inside], image[0][inside])[0, 1] > 0.5 for one in altered if kept is not None
    )


@pytest.mark.parametrize("background", [0.0, -3.0])
@pytest.mark.parametrize("name", RECIPES)
def test_the_background_keeps_its_value(name, background):
    image, inside = brain(background)
    for scan in range(8):
        altered = Augmentation([name])(image, (scan,))
        assert altered[0, 0, 0, 0] == background
        assert (altered == background).sum() == pytest.approx((~inside).sum(), rel=0.05)


def test_left_right_mirrors_the_first_axis_only():
    image, _ = brain()
    seen = {Augmentation(["left-right"])(image, (scan,)).tobytes() for scan in range(20)}
    assert seen == {image.tobytes(), image[:, ::-1].tobytes()}


def test_ghosts_keep_the_mean_and_lie_where_they_should():
    image = torch.zeros(1, 32, 32, 32)
    image[0, 10, 16, 16] = 1.0
    altered = ghosted(image, axis=1, every=4, strength=0.3)
    assert altered.sum() == pytest.approx(1.0, abs=1e-5)
    where = sorted(int(i) for i in np.argwhere(np.abs(altered[0, :, 16, 16].numpy()) > 0.05).ravel())
    assert where == [2, 10, 18, 26]


def test_no_recipe_leaves_the_image():
    image, _ = brain()
    assert Augmentation([])(image, (1,)) is image


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(UsageError, match="'blur' is unknown: known are pose, flip"):
        Augmentation(["blur"])
