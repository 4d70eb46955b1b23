"""Negative intensities, wrapped integers and NaN backgrounds are undone; ordinary images are left alone."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import IntensityError
from brainstage.preprocessing.ingest import ingest
from brainstage.preprocessing.intensity_range import nan_background, raised, unwrapped

SHAPE = (40, 44, 42)
Single = NDArray[np.float32]


def apart() -> NDArray[np.float64]:
    index = np.indices(SHAPE, dtype=float)
    return np.sqrt(sum(((index[a] - (SHAPE[a] - 1) / 2) / (0.36 * SHAPE[a])) ** 2 for a in range(3)))


def head(noise: float = 4.0) -> Single:
    """A ball with a bright core in air with Rician noise."""
    rng = np.random.default_rng(0)
    signal = np.select([apart() < 0.5, apart() < 1.0], [900.0, 600.0], 0.0)
    return np.hypot(signal + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE)).astype(np.float32)


def brain() -> Single:
    """The same ball on a background of 0."""
    return np.where(apart() < 1.0, head(), 0).astype(np.float32)


def z_scored(values: Single, inside: NDArray[np.bool_]) -> Single:
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0).astype(np.float32)


@pytest.mark.parametrize("image", [head(), brain(), head() + 50], ids=["head", "brain", "bright air"])
def test_an_image_without_negative_values_is_the_same_array(image: Single) -> None:
    assert raised(image)[0] is image
    assert unwrapped(image, 2.0**16)[0] is image


def test_the_ringing_of_an_interpolation_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    for image in (head(), brain()):
        rim = (np.abs(apart() - 1.05) < 0.06) & (rng.random(SHAPE) < 0.5)
        ringing = np.where(rim, -20.0, image).astype(np.float32)
        assert raised(ringing)[1] == 0.0


@pytest.mark.parametrize("offset", [-400.0, -1024.0, -5.0e5])
def test_an_offset_is_taken_back(offset: float) -> None:
    found, by = raised((head() + np.float32(offset)).astype(np.float32))
    assert by == pytest.approx(-offset, abs=10)
    assert np.abs(found - head()).max() < 10


def test_a_whole_head_of_z_scores_is_the_head_again_but_for_its_unit() -> None:
    image = head()
    mean, sd = image.mean(), image.std()
    found, _ = raised(((image - mean) / sd).astype(np.float32))
    assert np.abs(found * sd - image).max() < 12


def test_a_brain_of_z_scores_lies_above_its_background() -> None:
    inside = apart() < 1.0
    found, by = raised(z_scored(brain(), inside))
    assert by > 0
    assert (found[~inside] == 0).all()
    assert found[inside].min() > 0
    assert np.corrcoef(found[inside], brain()[inside])[0, 1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("noise_in_air", [False, True])
def test_intensities_around_zero_as_of_mp2rage_are_raised(noise_in_air: bool) -> None:
    uniform = np.clip(head() / 1000, 0, 1) - 0.5
    if noise_in_air:
        air = np.random.default_rng(2).uniform(-0.5, 0.5, SHAPE)
        uniform = np.where(apart() < 1.0, uniform, air)
    found, by = raised(uniform.astype(np.float32))
    assert by == pytest.approx(0.5, abs=0.02)
    assert found[apart() < 1.0].min() > 0.4


def test_padding_far_below_the_air_is_background() -> None:
    image = head()
    padded = np.where(apart() > 1.3, np.float32(-2000), image).astype(np.float32)
    found, _ = raised(padded)
    assert np.abs(found - np.where(apart() > 1.3, 0, image)).max() < 10


@pytest.mark.parametrize("slope", [1.0, 0.25])
def test_a_wrapped_integer_is_unwrapped(slope: float) -> None:
    true = np.rint(head() * 45.0)  # up to 40,000
    wrapped = (true.astype(np.int64).astype(np.uint16).view(np.int16) * slope).astype(np.float32)
    assert wrapped.min() < 0
    found, count = unwrapped(wrapped, 2.0**16 * slope)
    assert count == (true > 32767).sum()
    assert np.array_equal(found, (true * slope).astype(np.float32))


def test_a_wrapped_integer_saved_as_float_is_unwrapped_too() -> None:
    true = np.rint(head() * 45.0)
    wrapped = true.astype(np.int64).astype(np.uint16).view(np.int16).astype(np.float32)
    assert np.array_equal(unwrapped(wrapped, None)[0], true.astype(np.float32))


def test_an_offset_is_not_taken_for_an_overflow() -> None:
    low = (head() * 30.0 - 20000.0).astype(np.float32)
    assert unwrapped(low, 2.0**16)[1] == 0


def test_nan_around_one_piece_is_background_and_nan_within_is_not() -> None:
    inside = apart() < 1.0
    image = np.where(inside, head(), np.nan).astype(np.float32)
    image[20, 22, 21] = np.nan
    background = nan_background(image)
    assert background is not None
    assert np.array_equal(background, ~inside)


def test_nan_in_two_halves_is_no_background() -> None:
    image = np.full(SHAPE, np.nan, dtype=np.float32)
    image[3:15, 5:35, 5:35] = image[25:37, 5:35, 5:35] = 100
    assert nan_background(image) is None
    assert nan_background(np.where(apart() < 1.2, np.nan, head()).astype(np.float32)) is None


def saved(tmp_path, data, dtype) -> object:
    path = tmp_path / "sub-01_T1w.nii.gz"
    image = nib.Nifti1Image(data.astype(dtype), np.diag([4.0, 4.0, 4.0, 1.0]))
    image.set_sform(image.affine, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("data", "dtype", "code"),
    [
        (head() - 400, np.float32, "intensity_shifted"),
        (np.where(apart() < 1.0, head(), np.nan), np.float32, "nan_background"),
        (
            np.rint(head() * 45).astype(np.int64).astype(np.uint16).view(np.int16),
            np.int16,
            "intensity_wrapped",
        ),
    ],
    ids=["offset", "NaN", "wrapped"],
)
def test_what_was_undone_stands_among_the_findings(tmp_path, data, dtype, code) -> None:
    found = ingest(saved(tmp_path, data, dtype), IngestConfig())
    assert code in found.findings.warning_codes
    assert "nonfinite_values" not in found.findings.warning_codes
    assert found.head.data.min() >= -15


def test_nan_that_is_no_background_is_refused_with_the_way_out(tmp_path) -> None:
    holes = np.where(np.random.default_rng(0).random(SHAPE) < 0.1, np.nan, head())
    with pytest.raises(IntensityError, match=r"background around one piece\. Write 0"):
        ingest(saved(tmp_path, holes, np.float32), IngestConfig())
