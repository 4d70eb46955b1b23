"""The measures of quality control tell what they are said to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.config import BrainExtractionConfig, IngestConfig
from brainstage.pipeline.records import RegisteredBrain
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing import second_opinion
from brainstage.preprocessing.brain_extraction import extract_brain
from brainstage.preprocessing.ingest import ingest
from brainstage.preprocessing.measures import (
    bright_share,
    clipped_share,
    entropy_focus,
    fit_tissues,
    measure,
    missing_tissue_ml,
    rim_to_grey,
    touches_border,
    upright_margin,
)
from brainstage.preprocessing.registration import carry_to_template
from brainstage.preprocessing.template import Template


def test_noise_lowers_what_higher_is_better_and_raises_the_joint_variation(good: RegisteredBrain) -> None:
    rng = np.random.default_rng(0)
    head = good.normalised.corrected.head.data
    mask = good.normalised.brain_mask.data
    clean, noisy = (
        fit_tissues((head + rng.normal(0, sd, head.shape))[mask].astype(np.float32)) for sd in (2, 60)
    )
    assert noisy.white_mean / noisy.white_sd < clean.white_mean / clean.white_sd


def test_a_brain_cut_by_the_field_of_view_touches_its_border(template: Template) -> None:
    cut = BrainMask(data=template.brain_mask.data[:, :, 40:], voxel_to_ras=np.eye(4))
    whole = np.pad(template.brain_mask.data, 3)
    assert touches_border(cut)
    assert not touches_border(BrainMask(data=whole, voxel_to_ras=np.eye(4)))


def test_energy_in_one_voxel_has_no_entropy_and_spread_energy_much() -> None:
    point = np.zeros((10, 10, 10), dtype=np.float32)
    point[5, 5, 5] = 100
    even = np.ones((10, 10, 10), dtype=np.float32)
    spread, focused = (entropy_focus(Volume(data=data, voxel_to_ras=np.eye(4))) for data in (even, point))
    assert focused == 0
    assert spread == pytest.approx(1, abs=0.01)


def test_template_measures_do_not_depend_on_the_resolution_of_the_output(good: RegisteredBrain) -> None:
    fine = carry_to_template(good.normalised, good.native_to_template, None, 1.0)
    coarse, finer = measure(good), measure(fine)
    for name, tolerance in (
        ("template_correlation", 0.02),
        ("mask_template_dice", 0.01),
        ("upright_margin", 0.02),
        ("t1w_contrast", 0.02),
        ("missing_tissue_ml", 1.0),
    ):
        assert coarse[name] == pytest.approx(finer[name], abs=tolerance), name


@pytest.mark.parametrize("flips", [(1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_a_brain_that_lies_wrong_has_no_margin(template: Template, flips: tuple[int, ...]) -> None:
    assert upright_margin(template.t1w.data, template) > 0.3
    assert upright_margin(np.ascontiguousarray(np.flip(template.t1w.data, flips)), template) < 0.1


def test_mirrored_left_and_right_cannot_be_told(template: Template) -> None:
    mirrored = np.ascontiguousarray(np.flip(template.t1w.data, 0))
    assert upright_margin(mirrored, template) == pytest.approx(
        upright_margin(template.t1w.data, template), abs=0.05
    )


def test_missing_tissue_is_counted_whether_the_mask_or_the_signal_is_gone(template: Template) -> None:
    data, mask = template.t1w.data, template.brain_mask.data.astype(np.float32)
    assert missing_tissue_ml(data, mask) < 1.0
    gone = np.zeros(mask.shape, dtype=bool)
    gone[33:48, 44:59, 54:69] = True  # 15 x 15 x 15 voxels of 2 mm beside the ventricles: 27 ml
    silent = missing_tissue_ml(np.where(gone, 0, data).astype(np.float32), mask)
    unmasked = missing_tissue_ml(data, np.where(gone, 0, mask).astype(np.float32))
    assert silent == pytest.approx(27.0, abs=0.5)
    assert unmasked == pytest.approx(27.0, abs=0.5)
    assert missing_tissue_ml(data, np.zeros_like(mask)) > 1000.0


def test_wide_dark_ventricles_are_no_missing_tissue(template: Template) -> None:
    index = np.indices(template.t1w.shape).astype(float) - np.array([49, 58, 46])[:, None, None, None]
    ventricles = (np.square(index / np.array([8, 22, 10])[:, None, None, None]).sum(axis=0) < 1) & (
        template.brain_mask.data
    )
    fluid = np.float32(0.2 * np.median(template.t1w.data[template.brain_mask.data]))
    hollow = ndimage.gaussian_filter(np.where(ventricles, fluid, template.t1w.data), 0.8)
    assert ventricles.sum() * 0.008 > 40.0
    assert missing_tissue_ml(hollow, template.brain_mask.data.astype(np.float32)) < 2.0


@pytest.mark.parametrize("of_the_median", [0.0, 0.05])
def test_dark_fluid_in_widened_sulci_is_no_missing_tissue(template: Template, of_the_median: float) -> None:
    mask = template.brain_mask.data
    sulci = mask & (np.indices(mask.shape)[1] % 15 < 3)  # sheets of 6 mm, a fifth of the brain
    dark = np.float32(of_the_median * np.median(template.t1w.data[mask]))
    atrophied = ndimage.gaussian_filter(np.where(sulci, dark, template.t1w.data), 0.85)
    hardly_signal_ml = 0.008 * (atrophied[mask] < 0.15 * np.median(atrophied[mask])).sum()
    assert hardly_signal_ml > 50.0
    assert missing_tissue_ml(atrophied, mask.astype(np.float32)) < 2.0


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0)])
def test_a_mask_cut_into_the_cortex_has_a_bright_rim(
    make_normalised: Callable[..., object], spacing_mm: tuple[float, float, float]
) -> None:
    """Three shells of fluid, grey and white matter: 3, 6 mm and the rest."""
    shape = tuple(round(90.0 / s) for s in spacing_mm)
    index = np.indices(shape).astype(float)
    position = [(index[a] - (shape[a] - 1) / 2) * spacing_mm[a] for a in range(3)]
    radius = np.sqrt(sum(p**2 for p in position))
    rng = np.random.default_rng(1)
    tissue = np.select([radius < 29, radius < 35, radius < 38], [220.0, 150.0, 50.0], 0.0)
    data = np.where(tissue > 0, tissue + rng.normal(0, 5, shape), 0).astype(np.float32)
    volume = Volume(data=data, voxel_to_ras=np.diag([*spacing_mm, 1.0]))

    tissues = fit_tissues(data[radius < 38])

    def ratio(outer_mm: float) -> float:
        mask = BrainMask(data=radius < outer_mm, voxel_to_ras=volume.voxel_to_ras)
        corrected = make_normalised(volume, mask, stripped_input=True).corrected
        return rim_to_grey(corrected, tissues)

    assert ratio(38.0) < 0.5
    assert ratio(34.0) > 0.85


def test_only_intensities_at_a_ceiling_count_as_clipped(good: RegisteredBrain) -> None:
    stripped = good.normalised.corrected.stripped
    values = stripped.head.data[stripped.brain_mask.data]
    assert clipped_share(stripped) < 1e-4
    ceiling = np.quantile(values, 0.9)
    cut = replace(stripped, head=stripped.head.with_data(np.minimum(stripped.head.data, ceiling)))
    assert clipped_share(cut) == pytest.approx(0.1, abs=0.01)


def test_bright_vessels_are_counted_and_noise_is_not(good: RegisteredBrain) -> None:
    corrected = good.normalised.corrected
    mask = corrected.brain_mask.data
    tissues = fit_tissues(corrected.head.data[mask])
    plain = bright_share(corrected, tissues, 0.0)
    assert plain is not None
    assert plain < 0.05
    rng = np.random.default_rng(0)
    vessels = np.where(rng.random(mask.shape) < 0.01, 1.9 * tissues.white_mean, corrected.head.data)
    bright = replace(corrected, head=corrected.head.with_data(vessels))
    assert bright_share(bright, tissues, 0.0) == pytest.approx(1.0, abs=0.15)
    noise = rng.normal(0.0, 0.25 * tissues.white_mean, mask.shape)
    noisy = replace(corrected, head=corrected.head.with_data(corrected.head.data + noise))
    assert (bright_share(noisy, tissues, 25.0) or 0.0) < 0.05


@pytest.mark.parametrize(("made_by", "asked"), [("deepbet", "template"), ("ants", "deepbet")])
def test_a_second_opinion_asks_the_other_extractor(
    good: RegisteredBrain, monkeypatch: pytest.MonkeyPatch, made_by: str, asked: str
) -> None:
    stripped = replace(good.normalised.corrected.stripped, method=made_by, skull_stripped_input=False)
    mask = stripped.brain_mask
    half = mask.data.copy()
    half[: half.shape[0] // 2] = False
    called = []

    def other(name: str) -> Callable[..., BrainMask]:
        def extract(head: Volume, **_: object) -> BrainMask:
            called.append(name)
            return BrainMask(data=half, voxel_to_ras=head.voxel_to_ras)

        return extract

    monkeypatch.setattr(second_opinion, "deepbet_mask", other("deepbet"))
    monkeypatch.setattr(second_opinion, "template_brain_mask", other("template"))
    agreement = second_opinion.mask_agreement(stripped)
    assert called == [asked]
    assert agreement == pytest.approx(2 / 3, abs=0.03)


def test_a_stripped_scan_has_no_second_opinion_and_no_one_is_asked_unless_wanted(
    good: RegisteredBrain,
) -> None:
    assert "mask_agreement_dice" not in measure(good)
    assert measure(good, second_opinion=True)["mask_agreement_dice"] is None


def test_the_margin_does_not_depend_on_the_scale_of_intensities(template: Template) -> None:
    once, thrice = (upright_margin(template.t1w.data * scale, template) for scale in (1.0, 3.0))
    assert once == pytest.approx(thrice, abs=1e-6)


@pytest.mark.slow
@pytest.mark.shared_data
def test_two_extractors_agree_about_a_real_head(shared_data: Path) -> None:
    ingested = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig())
    stripped = extract_brain(ingested, BrainExtractionConfig())
    agreement = second_opinion.mask_agreement(stripped)
    assert agreement is not None
    assert agreement > 0.92
    cut = stripped.brain_mask.data.copy()
    cut[: round(np.argwhere(cut)[:, 0].mean())] = False
    wrong = replace(stripped, brain_mask=BrainMask(data=cut, voxel_to_ras=stripped.brain_mask.voxel_to_ras))
    disagreement = second_opinion.mask_agreement(wrong)
    assert disagreement is not None
    assert disagreement < 0.8


def test_a_voxel_more_or_less_does_not_move_the_tissues(good: RegisteredBrain) -> None:
    """A sample of every n-th voxel would be another one, and the joint variation would change by 0.01."""
    corrected = good.normalised.corrected
    values = corrected.head.data[corrected.brain_mask.data]
    all_of_them = fit_tissues(values)
    rng = np.random.default_rng(0)
    for _ in range(5):
        some = np.delete(values, rng.integers(0, values.size, 5))
        found = fit_tissues(some * (1 + 1e-6 * rng.standard_normal(some.size)).astype(np.float32))
        for name, value in vars(all_of_them).items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-3), name


def test_three_separate_tissues_are_found_where_they_are() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(mean, 8, n) for mean, n in ((40, 8000), (100, 40000), (150, 32000))])
    found = fit_tissues(values.astype(np.float32))
    assert found.grey_mean == pytest.approx(100, abs=1.5)
    assert found.white_mean == pytest.approx(150, abs=1.5)
    assert found.grey_sd == pytest.approx(8, abs=1.0)
    assert found.white_sd == pytest.approx(8, abs=1.0)


def test_one_value_everywhere_has_no_contrast() -> None:
    found = fit_tissues(np.full(5000, 7.0, dtype=np.float32))
    assert found.white_mean == pytest.approx(found.grey_mean)


def test_a_registration_that_moves_by_a_twentieth_of_a_millimetre_moves_no_measure_far(
    good: RegisteredBrain,
) -> None:
    """As far as one processor's differs from another's: no verdict may hang on it."""
    tolerance = {
        "mask_template_dice": 0.002,
        "template_correlation": 0.003,
        "upright_margin": 0.004,
        "missing_tissue_ml": 0.01,
        "t1w_contrast": 0.003,
    }
    expected = measure(carry_to_template(good.normalised, good.native_to_template, None, 1.0))
    for shift_mm in ((0.05, 0.0, 0.0), (0.0, -0.05, 0.05)):
        moved = good.native_to_template.copy()
        moved[:3, 3] += shift_mm
        found = measure(carry_to_template(good.normalised, moved, None, 1.0))
        for name, bound in tolerance.items():
            assert found[name] == pytest.approx(expected[name], abs=bound), name
        assert found["cjv"] == expected["cjv"]
