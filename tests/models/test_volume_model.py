"""The member on volumes: what it learns of them, and what age, sex and gaps do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from brainstage.models.cross_validation import cross_validate
from brainstage.models.member_learners import VolumesLearner
from brainstage.models.metrics import auc
from brainstage.models.volume_model import (
    LEAST_KNOWN,
    MEASURES,
    SUMMED,
    MeasureScale,
    VolumeModel,
    fit_volume_model,
    scan_volumes,
)

HIPPOCAMPI, GREY, VENTRICLES = "hippocampi_pct_icv", "grey_matter_pct_icv", "ventricles_pct_icv"
USUAL = {HIPPOCAMPI: 0.24, GREY: 0.25, VENTRICLES: 0.9}
PER_YEAR = {HIPPOCAMPI: -0.006, GREY: -0.006, VENTRICLES: 0.03}
SPREAD = {HIPPOCAMPI: 0.1, GREY: 0.1, VENTRICLES: 0.3}


def scan_of(measures, age, sex):
    """A scan with these sums, both sides alike."""
    sides = {
        side: None if value is None else value / len(SUMMED[name])
        for name, value in measures.items()
        for side in SUMMED[name]
    }
    return scan_volumes(sides, age, sex)


def cohort(count=200, loss=0.0, older=0.0, male_larger=0.0, seed=0, known=True):
    """The second class has lost of its hippocampi, and is older; volumes follow age, and sex."""
    generator = np.random.default_rng(seed)
    targets = (np.arange(count) % 2).astype(np.int64)
    ages = generator.normal(70 + older * targets, 7)
    male = generator.integers(0, 2, count)
    scans = []
    for n in range(count):
        measures = {}
        for name, usual in USUAL.items():
            deviation = PER_YEAR[name] * (ages[n] - 70) + male_larger * male[n]
            deviation += SPREAD[name] * generator.standard_normal() - loss * targets[n] * (name != VENTRICLES)
            measures[name] = usual * np.exp(deviation)
        sex = "M" if male[n] else "F"
        scans.append(scan_of(measures, float(ages[n]) if known else None, sex if known else None))
    return scans, targets


def fitted(scans, targets, classes=2, imbalance="weights"):
    return fit_volume_model(scans, targets, classes=classes, imbalance=imbalance)


def auc_of(scans, targets):
    learner = VolumesLearner(scans=scans, classes=2, imbalance="weights")
    logits = cross_validate(learner, targets, np.arange(len(targets)) // 2 % 5, classes=2, seed=0).logits
    return float(auc(logits[:, 1] - logits[:, 0], targets == 1, np.ones((1, len(targets))))[0])


def test_atrophy_is_found_and_points_the_right_way():
    scans, targets = cohort(loss=0.15)
    assert auc_of(scans, targets) > 0.8
    model = fitted(scans, targets)
    small = scan_of(USUAL | {HIPPOCAMPI: 0.17, GREY: 0.18}, 70.0, "F")
    large = scan_of(USUAL | {HIPPOCAMPI: 0.32, GREY: 0.33}, 70.0, "F")
    assert model.logits([small]).argmax() == 1
    assert model.logits([large]).argmax() == 0


def test_age_alone_is_no_evidence():
    """Volumes follow age and nothing else, and the ill are older: without ages that looks like an illness."""
    known = [auc_of(*cohort(older=8.0, seed=seed)) for seed in range(8)]
    unknown = [auc_of(*cohort(older=8.0, seed=seed, known=False)) for seed in range(8)]
    assert np.mean(known) == pytest.approx(0.5, abs=0.05), known
    assert np.mean(unknown) > 0.65


def test_sex_alone_is_no_evidence():
    """Men have larger volumes, and the ill are mostly men."""
    found = {}
    for name, tell in (("known", True), ("unknown", False)):
        reached = []
        for seed in range(8):
            scans, _ = cohort(count=400, male_larger=0.15, seed=seed)
            generator = np.random.default_rng(seed)
            men = np.array([one.male == 1.0 for one in scans])
            targets = (generator.random(400) < np.where(men, 0.8, 0.2)).astype(np.int64)
            shown = [
                scan_of(one.measures, one.age, ("M" if one.male else "F") if tell else None) for one in scans
            ]
            reached.append(auc_of(shown, targets))
        found[name] = np.mean(reached)
    assert found["known"] == pytest.approx(0.5, abs=0.05)
    assert found["unknown"] > 0.65


def test_slopes_are_those_within_classes():
    scans, targets = cohort(count=2000, loss=0.2, older=10.0, male_larger=0.05)
    (left, *_) = [scale for scale in fitted(scans, targets).scales if scale.measure == HIPPOCAMPI]
    assert left.per_year == pytest.approx(PER_YEAR[HIPPOCAMPI], abs=0.001)
    assert left.male_minus_female == pytest.approx(0.05, abs=0.015)
    ventricle = next(s for s in fitted(scans, targets).scales if s.measure == VENTRICLES)
    assert ventricle.scale == pytest.approx(SPREAD[VENTRICLES], rel=0.1)


def test_the_same_volume_of_an_older_person_counts_for_less():
    model = fitted(*cohort(loss=0.15, count=400))
    small = USUAL | {HIPPOCAMPI: 0.19, GREY: 0.20, VENTRICLES: 1.4}
    young, old = model.logits([scan_of(small, age, "F") for age in (60.0, 85.0)])
    assert young[1] - young[0] > old[1] - old[0]
    assert model.uses_age


def test_a_missing_measure_counts_as_usual():
    model = fitted(*cohort(loss=0.15))
    place = [scale.measure for scale in model.scales].index(HIPPOCAMPI)
    scale = model.scales[place]
    for absent in ({}, {HIPPOCAMPI: None}, {HIPPOCAMPI: 0.0}, {HIPPOCAMPI: -1.0}):
        scan = scan_of({GREY: 0.2, VENTRICLES: 1.1} | absent, 76.0, "F")
        usual = scale.mean + scale.per_year * (76.0 - scale.age) + scale.male_minus_female * (0 - scale.male)
        filled = scan_of({GREY: 0.2, VENTRICLES: 1.1, HIPPOCAMPI: float(np.exp(usual))}, 76.0, "F")
        assert model.standardised([scan])[0, place] == 0.0
        assert model.logits([scan]) == pytest.approx(model.logits([filled]), abs=1e-9)
        assert model.contributions(scan, 1)[HIPPOCAMPI] == 0.0
    nothing = model.logits([scan_of({}, None, None)])[0]
    assert nothing == pytest.approx(model.bias)


def test_an_unknown_age_or_sex_counts_as_the_mean():
    model = fitted(*cohort(loss=0.15, male_larger=0.1))
    scale = model.scales[0]
    assert model.uses_sex
    measures = {name: 1.1 * usual for name, usual in USUAL.items()}
    assert scale.standardised(measures, None, 1.0) == pytest.approx(
        scale.standardised(measures, scale.age, 1.0)
    )
    assert scale.standardised(measures, 70.0, None) == pytest.approx(
        scale.standardised(measures, 70.0, scale.male)
    )


def test_of_too_few_known_ages_no_slope_is_estimated():
    scans, targets = cohort(count=60, older=8.0)
    for count, expected in ((LEAST_KNOWN - 1, False), (LEAST_KNOWN, True)):
        few = [one if n < count else scan_of(one.measures, None, None) for n, one in enumerate(scans)]
        assert fitted(few, targets).uses_age is expected
    same = [scan_of(one.measures, 70.0 + 0.1 * (n % 3), "F") for n, one in enumerate(scans)]
    assert not fitted(same, targets).uses_age
    assert not fitted(same, targets).uses_sex


def test_the_contributions_are_those_counted_by_hand():
    model = VolumeModel(
        scales=(
            MeasureScale(
                measure=HIPPOCAMPI,
                mean=np.log(0.25),
                per_year=-0.01,
                male_minus_female=0.0,
                age=70.0,
                male=0.5,
                scale=0.1,
            ),
            MeasureScale(
                measure=VENTRICLES,
                mean=0.0,
                per_year=0.0,
                male_minus_female=0.2,
                age=70.0,
                male=0.5,
                scale=0.4,
            ),
        ),
        weight=((1.0, -0.5), (-2.0, 0.5)),
        bias=(0.3, -0.1),
    )
    scan = scan_of({HIPPOCAMPI: 0.25 * np.exp(-0.3), VENTRICLES: np.exp(0.5)}, 80.0, "M")
    # at 80 a tenth less is usual on the left, so 0.2 less is two SD; a man's ventricle is usually 0.1 larger
    assert model.standardised([scan])[0] == pytest.approx([-2.0, 1.0])
    assert model.logits([scan])[0] == pytest.approx([1.0 * -2 - 0.5 + 0.3, 4.0 + 0.5 - 0.1])
    # weights against their mean over the classes: 1.5 and -0.5 for the first, the opposite for the second
    assert model.contributions(scan, 0) == pytest.approx({HIPPOCAMPI: -3.0, VENTRICLES: -0.5})
    assert model.contributions(scan, 1) == pytest.approx({HIPPOCAMPI: 3.0, VENTRICLES: 0.5})


@pytest.mark.parametrize("classes", [2, 3])
def test_contributions_sum_to_what_the_logit_is_beyond_those_of_the_other_classes(classes):
    scans, targets = cohort(loss=0.15)
    model = fitted(scans, np.arange(len(targets)) % classes, classes)
    for scan in scans[:10]:
        logits = model.logits([scan])[0]
        for output in range(classes):
            added = sum(model.contributions(scan, output).values())
            of_bias = model.bias[output] - np.mean(model.bias)
            assert added + of_bias == pytest.approx(logits[output] - logits.mean(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.001, 1000.0))
def test_units_do_not_matter(factor):
    scans, targets = cohort(count=60, loss=0.1)
    other = [
        scan_of(
            {name: factor * value for name, value in one.measures.items() if value},
            one.age,
            "MF"[one.male == 0],
        )
        for one in scans
    ]
    assert fitted(other, targets).logits(other) == pytest.approx(
        fitted(scans, targets).logits(scans), abs=1e-3
    )


def test_a_model_is_plain_numbers_and_comes_back_the_same():
    scans, targets = cohort(loss=0.1)
    model = fitted(scans, targets)
    again = VolumeModel.model_validate_json(model.model_dump_json())
    assert again == model
    assert np.array_equal(again.logits(scans), model.logits(scans))


def test_what_nobody_has_is_left_out_and_without_any_volume_nothing_is_said():
    scans, targets = cohort()
    model = fitted(scans, targets)
    assert {scale.measure for scale in model.scales} == set(USUAL)
    assert set(USUAL) < set(MEASURES)
    rare = [scan_of(USUAL if n == 0 else {}, 70.0, "F") for n in range(200)]
    empty = fitted(rare, targets)
    assert empty.scales == ()
    assert (empty.logits(scans) == 0).all()
    assert empty.contributions(scans[0], 0) == {}
    assert not empty.uses_age


def test_measures_that_do_not_vary_are_finite():
    scans = [scan_of(USUAL, 70.0 + n % 9, "FM"[n % 2]) for n in range(40)]
    model = fitted(scans, np.arange(40) % 2)
    assert np.isfinite(model.logits(scans)).all()
    far = scan_of({name: 2 * value for name, value in USUAL.items()}, 70.0, "F")
    assert np.isfinite(model.logits([far])).all()


@pytest.mark.parametrize(
    "changes", [{"bias": (0.0,)}, {"weight": ((1.0,), (1.0,))}, {"bias": (0.0, float("inf"))}]
)
def test_a_model_that_contradicts_itself_is_refused(changes):
    whole = fitted(*cohort(count=40)).model_dump()
    with pytest.raises(ValidationError):
        VolumeModel.model_validate(whole | changes)
