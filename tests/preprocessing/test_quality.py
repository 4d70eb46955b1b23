"""Quality control passes what is right, and catches what was made wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brainstage.pipeline.config import QualityBounds
from brainstage.pipeline.records import QcStatus, RegisteredBrain
from brainstage.pipeline.volume import BrainMask
from brainstage.preprocessing.measures import measure
from brainstage.preprocessing.quality import MEASURES, assess, judge, status_of
from brainstage.preprocessing.regions import ventricle_surroundings
from brainstage.preprocessing.registration import carry_to_template
from brainstage.preprocessing.template import Template

CONTRACT = {
    "brain_volume_ml", "mask_template_dice", "template_correlation", "affine_scale", "affine_rotation_deg",
    "brain_touches_border", "cnr", "snr", "cjv", "efc", "fber", "inu_range", "t1w_contrast", "spacing_mm",
    "fov_mm", "skull_stripped_input", "header_warnings",
}  # fmt: skip
ADDED = {
    "upright_margin", "missing_tissue_ml", "rim_to_grey", "clipped_share", "white_matter_noise", "bright_share",
    "band_misregistration", "gradient_entropy", "ventricle_share",
}  # fmt: skip
ON_DEMAND = {"mask_agreement_dice"}


def test_every_measure_of_the_contract_is_there_and_those_that_were_added(good: RegisteredBrain) -> None:
    assert set(measure(good)) == CONTRACT | ADDED
    assert {spec.name for spec in MEASURES} == CONTRACT | ADDED | ON_DEMAND
    assert {spec.name for spec in MEASURES if spec.on_demand} == ON_DEMAND


def test_a_good_brain_passes(good: RegisteredBrain) -> None:
    report = assess(good)
    assert report.verdict.status is QcStatus.PASS, report.verdict.reasons


def test_measures_of_the_air_are_null_on_a_stripped_scan(good: RegisteredBrain) -> None:
    measures = measure(good)
    assert [measures[name] for name in ("cnr", "efc", "fber", "brain_touches_border")] == [None] * 4


def test_an_upside_down_brain_fails(template: Template, make_normalised: Callable[..., object]) -> None:
    normalised = make_normalised(template.t1w, template.brain_mask, stripped_input=True)
    upside_down = np.diag([1.0, 1.0, -1.0, 1.0])
    upside_down[2, 3] = 10.0
    assert assess(carry_to_template(normalised, upside_down, None, 2.0)).verdict.status is QcStatus.FAIL


def test_an_inverted_contrast_fails_and_is_named(
    template: Template, make_normalised: Callable[..., object]
) -> None:
    inverted = template.t1w.with_data(np.where(template.brain_mask.data, 300 - template.t1w.data, 0))
    normalised = make_normalised(inverted, template.brain_mask, stripped_input=True)
    verdict = assess(carry_to_template(normalised, np.eye(4), None, 2.0)).verdict
    assert verdict.status is QcStatus.FAIL
    assert "wrong_contrast" in verdict.reasons


def test_half_a_brain_fails(template: Template, make_normalised: Callable[..., object]) -> None:
    keep = np.zeros(template.t1w.shape, dtype=bool)
    keep[:, :, 45:] = True
    half = BrainMask(data=template.brain_mask.data & keep, voxel_to_ras=template.t1w.voxel_to_ras)
    head = template.t1w.with_data(np.where(half.data, template.t1w.data, 0))
    normalised = make_normalised(head, half, stripped_input=True)
    verdict = assess(carry_to_template(normalised, np.eye(4), None, 2.0)).verdict
    assert verdict.status is QcStatus.FAIL
    assert "mask_overlap" in verdict.reasons


def test_a_measure_without_value_has_no_say() -> None:
    assert judge({"brain_volume_ml": None, "header_warnings": ""}, {}).status is QcStatus.PASS


def test_bounds_from_the_configuration_win() -> None:
    strict = {"brain_volume_ml": QualityBounds(passing=(1500, 1600), tolerated=(1000, 2000))}
    assert judge({"brain_volume_ml": 1300.0}, strict).reasons == ("brain_volume",)
    assert judge({"brain_volume_ml": 1300.0}, {}).reasons == ()


def test_a_mended_header_warns() -> None:
    verdict = judge({"header_warnings": "sheared;pixdim_mismatch"}, {})
    assert verdict.status is QcStatus.WARN
    assert verdict.reasons == ("header_sheared",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5.0, "pass"), (2.5, "warn"), (1.0, "fail"), (9.5, "warn"), (11.0, "fail"), (3.0, "pass")],
)
def test_bounds_are_inclusive_and_nested(value: float, expected: str) -> None:
    bounds = QualityBounds(passing=(3.0, 9.0), tolerated=(2.0, 10.0))
    assert status_of(value, bounds).value == expected


@pytest.mark.parametrize("spec", MEASURES, ids=lambda spec: spec.name)
def test_every_measure_is_explained(spec) -> None:
    assert len(spec.explanation) > 10
    assert spec.source
    assert (spec.bounds is None) or spec.reason


def test_what_follows_from_a_wrong_contrast_is_no_finding_of_its_own() -> None:
    measures = {"t1w_contrast": 0.8, "template_correlation": 0.1, "cjv": 5.0, "brain_volume_ml": 300.0}
    verdict = judge(measures, {})
    assert verdict.status is QcStatus.FAIL
    assert set(verdict.reasons) == {"wrong_contrast", "brain_volume"}
    right = judge(measures | {"t1w_contrast": 1.3}, {})
    assert set(right.reasons) == {"template_correlation", "cjv", "brain_volume"}
    beside = judge(measures | {"mask_template_dice": 0.4}, {})
    assert {"mask_overlap", "template_correlation"} <= set(beside.reasons)


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        ({"bright_share": 1.2, "cjv": 1.9, "cnr": 0.5}, ("contrast_agent",)),
        ({"white_matter_noise": 22.0, "snr": 4.5, "cnr": 0.5}, ("noise",)),
        (
            {"white_matter_noise": 22.0, "snr": 2.0},
            ("snr", "noise"),
        ),  # a failure is never hidden by a warning
        ({"bright_share": 1.2, "t1w_contrast": 0.8}, ("wrong_contrast",)),
    ],
)
def test_a_cause_is_named_and_what_follows_from_it_is_not(
    measures: dict[str, float], expected: tuple[str, ...]
) -> None:
    assert judge(measures, {}).reasons == expected


@pytest.mark.parametrize("name", ["cjv", "cnr", "snr", "white_matter_noise", "band_misregistration"])
def test_what_was_measured_in_people_of_69_to_96_passes(name: str) -> None:
    """The worst of 23 still heads, or of ten where the measure is newer."""
    worst = {"cjv": 0.99, "cnr": 1.4, "snr": 9.7, "white_matter_noise": 8.2, "band_misregistration": 1.3}
    assert judge({name: worst[name]}, {}).status is QcStatus.PASS


def test_wide_ventricles_do_not_look_like_a_brain_upside_down(
    template: Template, make_normalised: Callable[..., object]
) -> None:
    """As wide as 6 % of the brain: the correlation inside the whole mask falls by a tenth and more."""
    surroundings = ventricle_surroundings(2.0)
    fluid = np.float32(0.25 * np.median(template.t1w.data[template.brain_mask.data]))
    wide = np.where(surroundings, fluid, template.t1w.data)
    assert surroundings.sum() > 0.06 * template.brain_mask.data.sum()
    found = {}
    for name, data in (("narrow", template.t1w.data), ("wide", wide)):
        normalised = make_normalised(template.t1w.with_data(data), template.brain_mask, stripped_input=True)
        found[name] = assess(carry_to_template(normalised, np.eye(4), None, 2.0)).measures
    for compared in ("template_correlation", "upright_margin"):
        assert found["wide"][compared] > found["narrow"][compared] - 0.06, compared
    assert found["wide"]["t1w_contrast"] == pytest.approx(found["narrow"]["t1w_contrast"], abs=0.01)
