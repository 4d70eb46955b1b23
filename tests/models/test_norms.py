"""A person is compared with those of the same age and sex, as far as that is known, and with nobody else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import ndtr
from scipy.stats import nct

from brainstage.models.norms import (
    LEAST_PEOPLE,
    LEAST_PEOPLE_OF_A_CURVE,
    NORMED_MEASURES,
    Norm,
    ReferenceClass,
    ReferencePerson,
    compare,
    fit_reference,
    held_out_share,
)
from brainstage.pipeline.records import VOLUMES, BrainVolumes, ReferenceFinding

YEARS = 0.03
MEN = 0.2
SD = 0.3


def people(
    count: int,
    seed: int,
    *,
    women_only: bool = False,
    ages: tuple[float, float] = (55, 85),
    mean: Callable[[float], float] = lambda age: YEARS * (age - 70),
    sd: Callable[[float], float] = lambda _: SD,
) -> list[ReferencePerson]:
    """Draw people whose measure grows by 3 % a year, or as `mean` and `sd` say, and is larger in men."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        age, man = float(rng.uniform(*ages)), bool(rng.integers(2)) and not women_only
        logarithm = mean(age) + MEN * man + sd(age) * rng.standard_normal()
        drawn.append(
            ReferencePerson(measures={"fluid": float(np.exp(logarithm))}, age=age, sex="MF"[not man])
        )
    return drawn


def fitted(persons: list[ReferencePerson]) -> ReferenceClass:
    reference = fit_reference("CN", persons, ["fluid"], needs_age=True)
    assert reference is not None
    return reference


def against(
    reference: ReferenceClass | None, value: float, age: float | None, sex: str | None
) -> ReferenceFinding:
    assert reference is not None
    (finding,) = compare(reference, {"fluid": value}, age, sex)
    return finding


def share_inside(reference: ReferenceClass, persons: list[ReferencePerson]) -> float:
    found = [against(reference, one.measures["fluid"], one.age, one.sex) for one in persons]
    return float(
        np.mean([f.low <= f.value <= f.high for f in found if f.low is not None and f.high is not None])
    )


def hinge(age: float) -> float:
    """Lose a thousandth a year up to 60, then a hundredth."""
    return -0.001 * (age - 60) if age < 60 else -0.012 * (age - 60)


def test_every_volume_has_one_measure_that_is_compared() -> None:
    assert list(NORMED_MEASURES) == list(VOLUMES)
    columns = BrainVolumes(volumes_ml={}).measures
    assert set(NORMED_MEASURES.values()) <= set(columns)
    assert [name for name in NORMED_MEASURES.values() if name.endswith("_ml")] == ["intracranial_ml"]


def test_the_usual_range_holds_95_of_100_further_people_however_few_it_was_fitted_to() -> None:
    inside = []
    for seed in range(60):
        reference = fit_reference("CN", people(20, seed), ["fluid"])
        for person in people(50, 1000 + seed):
            try:
                finding = against(reference, person.measures["fluid"], person.age, person.sex)
            except AssertionError:
                continue
            if finding.low is not None and finding.high is not None:
                inside.append(finding.low <= finding.value <= finding.high)
    assert len(inside) > 2000
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_what_is_expected_grows_with_age_and_differs_by_sex() -> None:
    reference = fit_reference("CN", people(2000, 0), ["fluid"])
    young, old = against(reference, 1.0, 60, "F"), against(reference, 1.0, 80, "female")
    man = against(reference, 1.0, 80, "M")
    assert young.by == old.by == ("age", "sex")
    assert old.expected / young.expected == pytest.approx(np.exp(20 * YEARS), rel=0.05)
    assert man.expected / old.expected == pytest.approx(np.exp(MEN), rel=0.05)
    assert young.percentile > old.percentile > man.percentile


def test_what_bends_after_60_is_recovered_and_a_line_stays_a_line() -> None:
    bent = fitted(people(400, 0, ages=(20, 90), mean=hinge, sd=lambda _: 0.1))
    assert bent.norms[0].knots
    for age in (25, 40, 60, 75, 88):
        truth = float(np.exp(hinge(age)))
        assert against(bent, 1.0, age, "F").expected == pytest.approx(truth, rel=0.04)
    straight = sum(bool(fitted(people(200, seed, ages=(20, 90))).norms[0].knots) for seed in range(12))
    assert straight <= 2


def test_few_people_or_a_short_span_never_make_a_curve() -> None:
    few = people(LEAST_PEOPLE_OF_A_CURVE - 1, 0, ages=(20, 90), mean=hinge, sd=lambda _: 0.001)
    short = people(400, 0, ages=(55, 74), mean=hinge, sd=lambda _: 0.001)
    assert [(n.knots, n.widening) for ref in (few, short) for n in fitted(ref).norms] == [((), 0.0)] * 2


def test_a_spread_that_grows_with_age_is_recovered_and_the_range_holds_at_both_ends() -> None:
    """Twice as wide every thirty years: one spread for all would hold 99 of 100 of the young, 80 of the old."""

    def grown(age: float) -> float:
        return 0.1 * 2.0 ** ((age - 55) / 30)

    reference = fitted(people(600, 0, ages=(20, 90), mean=hinge, sd=grown))
    assert reference.norms[0].widening == pytest.approx(np.log(2) / 30, rel=0.2)
    for ages in ((22, 35), (78, 88)):
        further = people(1500, 5, ages=ages, mean=hinge, sd=grown)
        assert share_inside(reference, further) == pytest.approx(0.95, abs=0.025)


def test_people_held_out_lie_inside_as_often_as_is_said() -> None:
    persons = people(300, 3, ages=(20, 90), mean=hinge)
    assert held_out_share(fitted(persons).norms[0], persons) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("count", [20, 45])
def test_the_interval_of_a_percentile_holds_the_true_one_in_95_of_100_samples(count) -> None:
    held = []
    for seed in range(120):
        reference = fitted(people(count, seed))
        low, high = reference.norms[0].ages or (0, 0)
        for away in (-2.5, -1.0, 0.0, 2.0):
            age = low + (high - low) * (seed % 7) / 6
            sex = "F" if "sex" in reference.norms[0].by else None
            if sex is None:
                continue
            finding = against(reference, float(np.exp(YEARS * (age - 70) + SD * away)), age, sex)
            held.append(finding.percentile_low <= 100 * ndtr(away) <= finding.percentile_high)
    assert len(held) > 400
    assert np.mean(held) == pytest.approx(0.955, abs=0.025)


def test_the_interval_is_that_of_the_noncentral_t_distribution() -> None:
    """A sample of one column: with n people, away times the root of n is noncentral t about the true distance."""
    norm = Norm(measure="fluid", by=(), people=40, coefficients=(0.0,), spread=((1 / 40,),), residual_sd=1.0)
    reference = ReferenceClass(label="CN", norms=(norm,))
    for away in (-2.0, 0.0, 1.5):
        found = against(reference, float(np.exp(away)), None, None)
        grid = np.linspace(away - 2, away + 2, 4001)
        above = nct.cdf(away * np.sqrt(40), 39, grid * np.sqrt(40))
        exact = grid[np.searchsorted(-above, [-0.975, -0.025])]
        assert [found.percentile_low, found.percentile_high] == pytest.approx(100 * ndtr(exact), abs=1.5)


def test_more_people_narrow_the_interval_of_a_percentile() -> None:
    widths = []
    for count in (20, 80, 1000):
        found = against(fitted(people(count, 4)), 1.0, 70, "F")
        assert found.percentile_low < found.percentile < found.percentile_high
        widths.append(found.percentile_high - found.percentile_low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 8


@pytest.mark.parametrize(
    ("age", "sex", "by"),
    [(70, None, ("age",)), (None, "F", ("sex",)), (None, "unknown", ()), (70, "M", ("age", "sex"))],
)
def test_what_is_unknown_of_a_person_is_left_out_of_the_comparison(age, sex, by) -> None:
    reference = fit_reference("CN", people(200, 0), ["fluid"])
    assert against(reference, 1.0, age, sex).by == by


def test_norms_that_need_an_age_compare_nobody_without_one() -> None:
    reference = fitted(people(40, 0))
    assert [norm.by for norm in reference.norms] == [("age", "sex")]
    assert compare(reference, {"fluid": 1.0}, None, "F") == ()
    assert compare(reference, {"fluid": 1.0}, 70, None) == ()
    assert [norm.by for norm in fitted(people(40, 0, women_only=True)).norms] == [("age",)]


def test_nothing_is_said_outside_the_ages_that_were_seen() -> None:
    finding = against(fit_reference("CN", people(40, 0), ["fluid"]), 1.0, 92, "F")
    assert (finding.low, finding.percentile, finding.percentile_low) == (None, None, None)
    assert "92" in finding.reason


def test_a_class_of_one_sex_is_not_divided_by_sex() -> None:
    reference = fit_reference("CN", people(40, 0, women_only=True), ["fluid"])
    assert against(reference, 1.0, 70, "M").by == ("age",)


def test_too_few_people_or_measures_that_are_missing_give_no_norm() -> None:
    assert fit_reference("CN", people(LEAST_PEOPLE - 1, 0), ["fluid"]) is None
    assert fit_reference("CN", people(40, 0), ["another"]) is None
    reference = fit_reference("CN", people(40, 0), ["fluid"])
    assert reference is not None
    assert compare(reference, {"fluid": None}, 70, "F") == ()
    assert compare(reference, {"fluid": 0.0}, 70, "F") == ()


def test_norms_come_back_from_their_file_as_they_were() -> None:
    reference = fitted(people(100, 0, ages=(20, 90), mean=hinge, sd=lambda age: 0.002 * age))
    again = ReferenceClass.model_validate_json(reference.model_dump_json())
    assert again == reference
    assert again.norms[0].knots
    assert compare(again, {"fluid": 2.0}, 70, "F") == compare(reference, {"fluid": 2.0}, 70, "F")


def test_a_norm_without_a_curve_is_written_as_before_there_were_any() -> None:
    """The hash of a model is made of this text."""
    (norm,) = fitted(people(20, 0)).norms
    assert set(norm.model_dump(mode="json")) == {
        "measure", "by", "people", "coefficients", "spread", "residual_sd", "ages",
    }  # fmt: skip


@pytest.mark.parametrize(
    "altered",
    [
        {"knots": (60.0, 70.0, 80.0)},
        {"knots": (60.0, 60.0, 80.0), "coefficients": (0, 0, 0, 0), "spread": ((0,) * 4,) * 4},
        {"ages": None, "widening": 0.1},
        {"ages": None},
        {"by": ("age",)},
    ],
)
def test_a_norm_that_is_not_of_one_piece_is_refused(altered) -> None:
    (norm,) = fitted(people(20, 0)).norms
    with pytest.raises(ValidationError):
        Norm(**{**norm.model_dump(), **altered})


def test_what_another_version_measured_is_compared_with_nothing() -> None:
    reference = fit_reference("CN", people(40, 0), ["fluid"], measured_by="1")
    assert reference is not None
    (finding,) = compare(reference, {"fluid": 2.0}, 70, "F", measured_by="2")
    assert (finding.value, finding.low, finding.percentile) == (2.0, None, None)
    assert "train it again" in finding.reason


def test_a_reference_of_measures_that_are_no_more_says_nothing_of_them() -> None:
    """As a model holds it that was trained before volumes were measured."""
    old = ReferenceClass.model_validate(
        {
            "label": "CN",
            "measured_by": "2",
            "norms": [
                {
                    "measure": "medial_temporal_fluid_left",
                    "by": [],
                    "people": 20,
                    "coefficients": [0.1],
                    "spread": [[0.05]],
                    "residual_sd": 0.3,
                    "ages": None,
                }
            ],
        }
    )
    volumes = BrainVolumes(volumes_ml={"intracranial": 1500.0, "hippocampus_left": 3.0})
    assert compare(old, volumes.measures, 70, "F", "1") == ()
