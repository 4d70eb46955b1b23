"""Normalisation makes scans comparable, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.pipeline.config import IntensityConfig
from brainstage.pipeline.errors import IntensityError
from brainstage.pipeline.records import CorrectedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.intensity import normalise

Make = Callable[..., CorrectedBrain]
Method = Literal["zscore", "percentile", "whitestripe"]
METHODS: tuple[Method, ...] = ("zscore", "percentile", "whitestripe")


def three_tissues(scale: float = 1.0, offset: float = 0.0) -> tuple[Volume, BrainMask]:
    """A block of fluid, grey and white matter with a skull around it that must not count."""
    rng = np.random.default_rng(0)
    data = np.full((30, 30, 30), 900.0)
    mask = np.zeros((30, 30, 30), dtype=bool)
    mask[4:26, 4:26, 4:26] = True
    tissue = rng.choice([150.0, 400.0, 600.0], p=[0.1, 0.4, 0.5], size=mask.sum())
    data[mask] = tissue + rng.normal(0, 20, mask.sum())
    volume = Volume(data=(data * scale + offset).astype(np.float32), voxel_to_ras=np.eye(4))
    return volume, BrainMask(data=mask, voxel_to_ras=np.eye(4))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.01, 50), offset=st.floats(-200, 5000))
def test_a_linear_change_of_the_scanner_changes_nothing(
    make_corrected: Make, method: Method, scale: float, offset: float
) -> None:
    config = IntensityConfig(method=method)
    plain = normalise(make_corrected(*three_tissues()), config).brain.data
    changed = normalise(make_corrected(*three_tissues(scale, offset)), config).brain.data
    assert np.allclose(plain, changed, atol=5e-3 * (1 + abs(offset) / scale / 100))


@pytest.mark.parametrize("method", METHODS)
def test_outside_the_mask_there_is_zero(make_corrected: Make, method: Method) -> None:
    head, mask = three_tissues()
    result = normalise(make_corrected(head, mask), IntensityConfig(method=method))
    assert (result.brain.data[~mask.data] == 0).all()


def test_zscore_gives_mean_zero_and_unit_spread_inside(make_corrected: Make) -> None:
    head, mask = three_tissues()
    inside = normalise(make_corrected(head, mask), IntensityConfig(method="zscore")).brain.data[mask.data]
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-4)


def test_percentile_puts_the_tails_at_zero_and_one(make_corrected: Make) -> None:
    head, mask = three_tissues()
    inside = normalise(make_corrected(head, mask), IntensityConfig(method="percentile")).brain.data[mask.data]
    assert np.percentile(inside, [2, 98]) == pytest.approx([0, 1], abs=1e-3)


def test_whitestripe_puts_white_matter_at_zero(make_corrected: Make) -> None:
    head, mask = three_tissues()
    result = normalise(make_corrected(head, mask), IntensityConfig(method="whitestripe"))
    assert result.normalisation.centre == pytest.approx(600, abs=15)


def test_a_brain_without_contrast_is_refused(make_corrected: Make) -> None:
    flat = Volume(data=np.full((10, 10, 10), 7.0, dtype=np.float32), voxel_to_ras=np.eye(4))
    mask = BrainMask(data=np.ones((10, 10, 10), dtype=bool), voxel_to_ras=np.eye(4))
    with pytest.raises(IntensityError, match="no contrast"):
        normalise(make_corrected(flat, mask), IntensityConfig())
