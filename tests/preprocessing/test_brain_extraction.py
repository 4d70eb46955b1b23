"""A stripped scan is recognised, a head is not mistaken for one, and a failed mask is said."""

from __future__ import annotations

import numpy as np
import pytest

from brainstage.pipeline.config import BrainExtractionConfig
from brainstage.pipeline.errors import BrainExtractionError
from brainstage.pipeline.records import HeaderFindings, IngestedHead
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing import brain_extraction
from brainstage.preprocessing.brain_extraction import extract_brain, stripped_foreground
from brainstage.preprocessing.template import load_template


def ingested(head: Volume) -> IngestedHead:
    findings = HeaderFindings(
        shape=head.shape, spacing_mm=head.spacing_mm, axcodes=head.axcodes, affine_source="sform"
    )
    return IngestedHead(head=head, findings=findings)


def ball(radius_mm: float, *, background: float = 0.0, spacing_mm: float = 3.0, size: int = 90) -> Volume:
    """A bright ball in a field of one value."""
    index = (np.indices((size,) * 3) - size / 2) * spacing_mm
    inside = (index**2).sum(axis=0) < radius_mm**2
    data = np.where(inside, 500 + index[0], background).astype(np.float32)
    return Volume(data=data, voxel_to_ras=np.diag([spacing_mm] * 3 + [1.0]))


def test_the_stripped_template_is_recognised_and_kept_whole() -> None:
    template = load_template(1.0)
    result = extract_brain(ingested(template.t1w), BrainExtractionConfig())
    assert result.skull_stripped_input
    assert result.method == "none"
    assert result.brain_mask.volume_ml == pytest.approx(template.brain_mask.volume_ml, rel=0.01)


@pytest.mark.parametrize("background", [0.0, -1000.0, 37.0])
def test_any_constant_background_counts(background: float) -> None:
    found = stripped_foreground(ball(70, background=background))
    assert found is not None
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.02)


def test_dark_fluid_inside_a_stripped_brain_belongs_to_it() -> None:
    head = ball(70)
    data = head.data.copy()
    data[43:47, 43:47, 43:47] = 0
    found = stripped_foreground(head.with_data(data))
    assert found is not None
    assert found.data[45, 45, 45]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(ball(100), id="as-large-as-a-whole-head"),
        pytest.param(ball(30), id="far-too-small"),
    ],
)
def test_what_is_not_brain_sized_is_not_taken_for_a_stripped_brain(head: Volume) -> None:
    assert stripped_foreground(head) is None


def test_noise_around_means_that_nothing_was_stripped() -> None:
    head = ball(70)
    noise = np.random.default_rng(0).normal(0, 5, head.shape)
    assert stripped_foreground(head.with_data(head.data + noise)) is None


def test_two_brain_sized_pieces_are_no_stripped_brain() -> None:
    one, other = ball(52).data, np.roll(ball(52).data, 42, axis=0)
    assert stripped_foreground(ball(52).with_data(np.maximum(one, other))) is None


def test_none_demands_a_stripped_scan() -> None:
    with pytest.raises(BrainExtractionError, match=r"does not look skull-stripped.*use auto"):
        extract_brain(ingested(ball(110)), BrainExtractionConfig(method="none"))


def test_a_mask_of_the_wrong_size_is_refused_with_its_volume_and_the_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = stripped_foreground(ball(55))
    assert small is not None
    monkeypatch.setattr(brain_extraction, "deepbet_mask", lambda head: small)  # noqa: ARG005
    with pytest.raises(BrainExtractionError, match=r"holds 69\d ml; expected 900 to 2000 ml"):
        extract_brain(
            ingested(ball(110)), BrainExtractionConfig(method="deepbet", volume_bounds_ml=(900, 2000))
        )


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_a_lack_of_memory_is_not_taken_for_a_scan_without_brain(monkeypatch, said) -> None:
    class Starved:
        def run_model(self, _: np.ndarray) -> np.ndarray:
            raise RuntimeError(said)

    monkeypatch.setattr(brain_extraction, "_deepbet", Starved)
    with pytest.raises(MemoryError, match="allocate"):
        extract_brain(ingested(ball(110)), BrainExtractionConfig())


@pytest.mark.slow
def test_deepbet_finds_nothing_in_an_empty_room() -> None:
    noise = np.abs(np.random.default_rng(0).normal(0, 3, (64, 64, 64))).astype(np.float32)
    with pytest.raises(BrainExtractionError, match=r"found no brain|brain mask holds"):
        extract_brain(
            ingested(Volume(data=noise, voxel_to_ras=np.diag([3.0, 3, 3, 1]))),
            BrainExtractionConfig(method="deepbet"),
        )
