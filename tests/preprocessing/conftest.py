"""Brains with a known truth: the template itself, posed, biased and blurred by known amounts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import IntensityConfig
from brainstage.pipeline.records import (
    CorrectedBrain,
    HeaderFindings,
    NormalisedBrain,
    RegisteredBrain,
    StrippedBrain,
)
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.intensity import normalise
from brainstage.preprocessing.registration import carry_to_template
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template import Template, load_template


@pytest.fixture(scope="session")
def template() -> Template:
    """The template at 2 mm."""
    return load_template(2.0)


@pytest.fixture(scope="session")
def phantom(template: Template) -> tuple[Volume, BrainMask, np.ndarray]:
    """Three even tissues where the template has them, slightly blurred and noisy: brain, mask, white matter.

    The template itself will not do: it is an average, and its white matter is not even.
    """
    mask = template.brain_mask
    fluid = 1 - template.grey_matter - template.white_matter
    tissue = np.argmax(np.stack([fluid, template.grey_matter, template.white_matter]), axis=0)
    even = ndimage.gaussian_filter(np.choose(tissue, [60.0, 150.0, 220.0]), 0.5)
    noisy = even + np.random.default_rng(0).normal(0, 6, even.shape)
    brain = Volume(
        data=np.where(mask.data, np.maximum(noisy, 1), 0).astype(np.float32),
        voxel_to_ras=template.t1w.voxel_to_ras,
    )
    return brain, mask, ndimage.binary_erosion((tissue == 2) & mask.data)


@pytest.fixture(scope="session")
def posed(template: Template) -> Callable[..., tuple[Volume, BrainMask, np.ndarray]]:
    """Return the template's brain turned, shifted and scaled: volume, mask, and native-to-template truth."""

    def make(
        angles_deg: tuple[float, float, float] = (0, 0, 0),
        shift_mm: tuple[float, float, float] = (0, 0, 0),
        scale: float = 1.0,
    ) -> tuple[Volume, BrainMask, np.ndarray]:
        template_to_native = np.eye(4)
        template_to_native[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() / scale
        template_to_native[:3, 3] = shift_mm
        native_to_template = np.linalg.inv(template_to_native)
        voxel_to_ras = np.diag([2.0, 2.0, 2.0, 1.0])
        voxel_to_ras[:3, 3] = np.array(shift_mm) - 120.0
        grid = Grid(shape=(120, 120, 120), voxel_to_ras=voxel_to_ras)
        return (
            resampled(template.t1w, grid, native_to_template),
            resampled_mask(template.brain_mask, grid, native_to_template),
            native_to_template,
        )

    return make


@pytest.fixture(scope="session")
def make_corrected() -> Callable[..., CorrectedBrain]:
    """Return a function that wraps a head and its mask as the state after bias correction."""

    def make(head: Volume, brain_mask: BrainMask, *, stripped_input: bool = False) -> CorrectedBrain:
        stripped = StrippedBrain(
            head=head,
            findings=HeaderFindings(
                shape=head.shape, spacing_mm=head.spacing_mm, axcodes=head.axcodes, affine_source="sform"
            ),
            brain_mask=brain_mask,
            method="none",
            skull_stripped_input=stripped_input,
        )
        return CorrectedBrain(head=head, brain_mask=brain_mask, stripped=stripped, field_range=1.0)

    return make


@pytest.fixture(scope="session")
def make_normalised(make_corrected: Callable[..., CorrectedBrain]) -> Callable[..., NormalisedBrain]:
    """Return a function that wraps a head and its mask as the state after intensity normalisation."""

    def make(head: Volume, brain_mask: BrainMask, *, stripped_input: bool = False) -> NormalisedBrain:
        corrected = make_corrected(head, brain_mask, stripped_input=stripped_input)
        return normalise(corrected, IntensityConfig())

    return make


@pytest.fixture(scope="session")
def good(template: Template, make_normalised: Callable[..., object]) -> RegisteredBrain:
    """The template with a little noise, registered to itself at 2 mm."""
    rng = np.random.default_rng(0)
    noisy = template.t1w.data + np.where(template.brain_mask.data, rng.normal(0, 5, template.t1w.shape), 0)
    normalised = make_normalised(
        template.t1w.with_data(np.maximum(noisy, 0)), template.brain_mask, stripped_input=True
    )
    return carry_to_template(normalised, np.eye(4), None, 2.0)
