"""Noise of white matter, and nothing of its anatomy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.template import Template
from brainstage.preprocessing.white_matter_noise import white_matter_noise

Posed = Callable[..., tuple[Volume, BrainMask, np.ndarray]]


@pytest.mark.parametrize("share", [0.03, 0.1, 0.2])
def test_known_noise_is_found_in_any_pose(posed: Posed, share: float) -> None:
    head, _, native_to_template = posed(angles_deg=(12, -5, 8), shift_mm=(4, -7, 3), scale=1.1)
    white = float(np.percentile(head.data[head.data > 0], 90))
    noise = np.random.default_rng(2).normal(0.0, share * white, head.shape)
    found = white_matter_noise(head.with_data(head.data + noise), native_to_template)
    assert found == pytest.approx(100.0 * share, rel=0.12, abs=0.5)


def test_age_hardly_counts(posed: Posed) -> None:
    """Less contrast, darker patches and a smooth field change it by less than a tenth."""
    head, _, native_to_template = posed()
    rng = np.random.default_rng(1)
    noisy = head.data + rng.normal(0.0, 12.0, head.shape)
    expected = white_matter_noise(head.with_data(noisy), native_to_template)
    patches = ndimage.gaussian_filter(rng.normal(size=head.shape), 2.0)
    darker = np.where(patches > np.quantile(patches, 0.95), 0.75, 1.0)
    field = np.linspace(0.8, 1.2, head.shape[0])[:, np.newaxis, np.newaxis]
    aged = head.data * ndimage.gaussian_filter(darker, 0.7) + rng.normal(0.0, 12.0, head.shape)
    for changed in (aged, noisy * field):
        assert white_matter_noise(head.with_data(changed), native_to_template) == pytest.approx(
            expected, rel=0.1
        )


def test_nothing_is_measured_where_there_is_no_white_matter(posed: Posed, template: Template) -> None:
    head, _, native_to_template = posed()
    beside = native_to_template.copy()
    beside[0, 3] += 500.0
    assert white_matter_noise(head, beside) is None
    assert white_matter_noise(template.t1w.with_data(np.zeros(template.t1w.shape)), np.eye(4)) is None
