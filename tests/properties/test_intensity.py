"""Laws of intensity: scanners have no unit, so neither gain nor offset may change what comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline.config import IntensityConfig
from brainstage.pipeline.records import CorrectedBrain, HeaderFindings, StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.intensity import normalise

SHAPE = (8, 9, 10)


def corrected(data: np.ndarray, inside: np.ndarray) -> CorrectedBrain:
    head = Volume(data=data, voxel_to_ras=np.eye(4))
    brain_mask = BrainMask(data=inside, voxel_to_ras=np.eye(4))
    findings = HeaderFindings(shape=SHAPE, spacing_mm=(1, 1, 1), axcodes="RAS", affine_source="sform")
    stripped = StrippedBrain(
        head=head, findings=findings, brain_mask=brain_mask, method="none", skull_stripped_input=False
    )
    return CorrectedBrain(head=head, brain_mask=brain_mask, stripped=stripped, field_range=1.0)


@pytest.mark.parametrize("method", ["zscore", "percentile"])
@given(seed=st.integers(0, 1000), gain=st.floats(0.01, 100.0), offset=st.floats(-500.0, 500.0))
def test_gain_and_offset_do_not_matter(method, seed, gain, offset):
    generator = np.random.default_rng(seed)
    data = generator.gamma(3.0, 100.0, SHAPE)
    inside = generator.random(SHAPE) < 0.6
    config = IntensityConfig(method=method)
    one = normalise(corrected(data, inside), config).brain.data
    other = normalise(corrected(gain * data + offset, inside), config).brain.data
    assert np.abs(one - other).max() < 2e-2
    assert not one[~inside].any()


@given(seed=st.integers(0, 1000), outside=st.floats(-1e5, 1e5))
def test_what_lies_outside_the_brain_does_not_matter(seed, outside):
    generator = np.random.default_rng(seed)
    data = generator.gamma(3.0, 100.0, SHAPE)
    inside = generator.random(SHAPE) < 0.6
    one = normalise(corrected(data, inside), IntensityConfig()).brain.data
    other = normalise(corrected(np.where(inside, data, outside), inside), IntensityConfig()).brain.data
    assert np.array_equal(one, other)
    assert one[inside].mean() == pytest.approx(0.0, abs=1e-4)
    assert one[inside].std() == pytest.approx(1.0, abs=1e-4)
