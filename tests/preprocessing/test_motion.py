"""Motion is seen in brains that moved, and in no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.config import BrainExtractionConfig, IngestConfig
from brainstage.pipeline.records import StrippedBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.brain_extraction import extract_brain
from brainstage.preprocessing.ingest import ingest
from brainstage.preprocessing.motion import (
    band_misregistration,
    band_shifts,
    distance_from_still,
    gradient_entropy,
    still_heads_of,
)
from brainstage.preprocessing.quality import MEASURE_BY_NAME
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.workflows.synthetic.cohort import demo_cohort
from brainstage.workflows.synthetic.heads import load_anatomy, make_head
from brainstage.workflows.synthetic.motion import Kind, Sampling, moved_rigidly, with_motion

BOUNDS = MEASURE_BY_NAME["band_misregistration"].bounds
assert BOUNDS is not None
BOUND = BOUNDS.passing[1]
assert BOUND is not None


@pytest.fixture(scope="module")
def still() -> tuple[Volume, BrainMask]:
    """A synthetic head of 2 mm that did not move, and its brain mask."""
    made = make_head(load_anatomy(), demo_cohort()[2].recipe)
    grid = made.head.grid.rescaled(2.0)
    return resampled(made.head, grid), resampled_mask(made.brain_mask, grid)


def moved(head: Volume, kind: Kind, strength: float, axis: int) -> Volume:
    """Return a head that moved."""
    return head.with_data(
        with_motion(
            head.data,
            head.spacing_mm,
            kind=kind,
            strength=strength,
            sampling=Sampling(axis=axis),
            rng=np.random.default_rng(5),
        )
    )


@pytest.mark.parametrize(("kind", "axis"), [("few", 0), ("many", 1), ("lines", 2)])
def test_a_head_that_moved_is_seen_and_one_that_did_not_is_not(
    still: tuple[Volume, BrainMask], kind: Kind, axis: int
) -> None:
    head, mask = still
    assert (band_misregistration(head, mask) or 9.0) < BOUND
    assert (band_misregistration(moved(head, kind, 5.0, axis), mask) or 0.0) > BOUND


def test_brightness_shading_and_what_lies_outside_the_mask_count_for_nothing(
    still: tuple[Volume, BrainMask],
) -> None:
    head, mask = still
    expected = band_misregistration(head, mask)
    assert expected is not None
    shade = np.linspace(0.6, 1.4, head.shape[1], dtype=np.float32)[np.newaxis, :, np.newaxis]
    for changed in (7.0 * head.data, head.data * shade):
        assert band_misregistration(head.with_data(changed), mask) == pytest.approx(expected, abs=0.1)
    stripped = head.with_data(np.where(mask.data, head.data, np.float32(0.0)))
    assert band_misregistration(stripped, mask) == pytest.approx(expected, abs=0.1)


def test_gradient_entropy_ranks_what_one_head_would_look_like(still: tuple[Volume, BrainMask]) -> None:
    head, mask = still
    expected = gradient_entropy(head, mask)
    assert expected is not None
    assert 0.9 < expected < 1.0
    assert gradient_entropy(head.with_data(7.0 * head.data), mask) == pytest.approx(expected, abs=1e-4)
    found = [gradient_entropy(moved(head, "many", strength, 1), mask) for strength in (2.0, 6.0)]
    assert expected < found[0] < found[1]


def test_a_known_shift_of_the_fine_bands_is_found(still: tuple[Volume, BrainMask]) -> None:
    """Edges below and above a frequency are moved apart along another axis: the pairs across it say by how much."""
    head, mask = still
    frequency = np.abs(np.fft.fftfreq(head.shape[0]))[:, np.newaxis, np.newaxis]
    apart = moved_rigidly(head.data, head.spacing_mm, (0.0, 0.0, 0.0), (0.0, 0.0, 1.5))
    fine = frequency > 0.295  # between the third and the fourth band
    spectrum = np.where(fine, np.fft.fft(apart, axis=0), np.fft.fft(head.data, axis=0))
    mixed = head.with_data(np.fft.ifft(spectrum, axis=0).real.astype(np.float32))
    before, after = band_shifts(head, mask), band_shifts(mixed, mask)
    assert before is not None
    assert after is not None
    found = after - before
    down_mm = -found[0, :, 2]
    assert 0.3 < down_mm[2] < 1.6  # third to fourth band: each takes in some of the other side
    assert abs(down_mm[0]) < 0.1  # both lower
    assert np.abs(found[0, :, 0]).max() < 0.2  # nothing moved along the axis itself


def test_thick_slices_and_small_masks_are_not_measured(still: tuple[Volume, BrainMask]) -> None:
    head, mask = still
    thick = head.voxel_to_ras @ np.diag([1.0, 1.0, 2.0, 1.0])
    assert (
        band_misregistration(
            Volume(data=head.data, voxel_to_ras=thick), BrainMask(data=mask.data, voxel_to_ras=thick)
        )
        is None
    )
    small = np.zeros_like(mask.data)
    small[40:50, 40:50, 40:50] = True
    for data in (small, np.zeros_like(small)):
        assert band_misregistration(head, BrainMask(data=data, voxel_to_ras=mask.voxel_to_ras)) is None
        assert gradient_entropy(head, BrainMask(data=data, voxel_to_ras=mask.voxel_to_ras)) is None


def test_norms_weigh_datasets_by_the_root_of_their_size_and_are_symmetric() -> None:
    one, other = (np.full((3, 7, 6), value) for value in (1.0, 4.0))
    still = still_heads_of([one] * 4 + [other], ["large"] * 4 + ["small"])
    mean = still.mean.reshape(3, 7, 6)
    assert mean[0, 0, 1] == pytest.approx(2.0)  # weights 2 and 1
    assert still.sd.reshape(3, 7, 6)[0, 0, 1] == pytest.approx(np.sqrt(2.0))
    assert not mean[:, :, [0, 4, 5]].any()


def test_the_distance_is_1_for_what_is_usual() -> None:
    rng = np.random.default_rng(0)
    heads = [rng.normal(size=(3, 7, 6)) for _ in range(400)]
    still = still_heads_of(heads, ["one"] * 400)
    distances = [distance_from_still(head, still) for head in heads]
    assert 0.95 < np.mean(distances) < 1.25  # the largest of three axes
    assert distance_from_still(heads[0] + 1.0, still) > 1.3


def _stripped(path: Path) -> StrippedBrain:
    return extract_brain(ingest(path, IngestConfig()), BrainExtractionConfig())


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("subject", ["elderly/sub-18", "adults_2mm/sub-02", "ds002748_2mm/sub-44"])
def test_real_heads_that_did_not_move(shared_data: Path, subject: str) -> None:
    dataset, _, name = subject.partition("/")
    stripped = _stripped(shared_data / dataset / name / "anat" / f"{name}_T1w.nii.gz")
    assert (band_misregistration(stripped.head, stripped.brain_mask) or 9.0) < BOUND
    far = moved(stripped.head, "many", 4.0, 1)
    assert (band_misregistration(far, stripped.brain_mask) or 0.0) > BOUND


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_real_brain_that_moved(shared_data: Path) -> None:
    stripped = _stripped(shared_data / "ds002748_2mm/sub-15/anat/sub-15_T1w.nii.gz")
    assert (band_misregistration(stripped.head, stripped.brain_mask) or 0.0) > BOUND
