"""A person is held against those of the same age and sex, as far as that is known, and against nobody else."""

from __future__ import annotations

import numpy as np
import pytest

from brainstage.models.norms import LEAST_PEOPLE, ReferenceClass, ReferencePerson, compare, fit_reference
from brainstage.pipeline.records import ReferenceFinding

YEARS = 0.03
MEN = 0.2
SD = 0.3


def people(count: int, seed: int, *, women_only: bool = False) -> list[ReferencePerson]:
    """Draw people whose measure grows by 3 % a year and is larger in men."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        age, man = float(rng.uniform(55, 85)), bool(rng.integers(2)) and not women_only
        logarithm = YEARS * (age - 70) + MEN * man + SD * rng.standard_normal()
        drawn.append(
            ReferencePerson(measures={"fluid": float(np.exp(logarithm))}, age=age, sex="MF"[not man])
        )
    return drawn


def against(
    reference: ReferenceClass | None, value: float, age: float | None, sex: str | None
) -> ReferenceFinding:
    assert reference is not None
    (finding,) = compare(reference, {"fluid": value}, age, sex)
    return finding


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


@pytest.mark.parametrize(
    ("age", "sex", "by"),
    [(70, None, ("age",)), (None, "F", ("sex",)), (None, "unknown", ()), (70, "M", ("age", "sex"))],
)
def test_what_is_unknown_of_a_person_is_left_out_of_the_comparison(age, sex, by) -> None:
    reference = fit_reference("CN", people(200, 0), ["fluid"])
    assert against(reference, 1.0, age, sex).by == by


def test_nothing_is_said_outside_the_ages_that_were_seen() -> None:
    finding = against(fit_reference("CN", people(200, 0), ["fluid"]), 1.0, 92, "F")
    assert (finding.low, finding.percentile) == (None, None)
    assert "92" in finding.reason


def test_a_class_of_one_sex_is_not_divided_by_sex() -> None:
    reference = fit_reference("CN", people(50, 0, women_only=True), ["fluid"])
    assert against(reference, 1.0, 70, "M").by == ("age",)


def test_too_few_people_or_measures_that_are_missing_give_no_norm() -> None:
    assert fit_reference("CN", people(LEAST_PEOPLE - 1, 0), ["fluid"]) is None
    assert fit_reference("CN", people(100, 0), ["another"]) is None
    reference = fit_reference("CN", people(100, 0), ["fluid"])
    assert reference is not None
    assert compare(reference, {"fluid": None}, 70, "F") == ()
    assert compare(reference, {"fluid": 0.0}, 70, "F") == ()


def test_norms_come_back_from_their_file_as_they_were() -> None:
    reference = fit_reference("CN", people(100, 0), ["fluid"])
    assert reference is not None
    again = ReferenceClass.model_validate_json(reference.model_dump_json())
    assert compare(again, {"fluid": 2.0}, 70, "F") == compare(reference, {"fluid": 2.0}, 70, "F")


def test_what_another_version_measured_is_compared_with_nothing() -> None:
    reference = fit_reference("CN", people(100, 0), ["fluid"], measured_by="1")
    assert reference is not None
    (finding,) = compare(reference, {"fluid": 2.0}, 70, "F", measured_by="2")
    assert (finding.value, finding.low, finding.percentile) == (2.0, None, None)
    assert "train it again" in finding.reason
