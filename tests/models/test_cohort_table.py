"""The table counts people, and an association is one where there is one."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from brainstage.models.cohort_table import CohortTable, association_warnings, cohort_table


def table_of(labels, *, participants=None, ages=None, sexes=None, sites=None):
    unknown = [None] * len(labels)
    return cohort_table(
        labels,
        participants or [f"sub-{n:04d}" for n in range(len(labels))],
        ages=ages or unknown,
        sexes=sexes or unknown,
        sites=sites or unknown,
    )


def association(table, variable):
    return next(found for found in table.associations if found.variable == variable)


def test_participants_are_counted_once():
    table = table_of(
        ["CN", "CN", "AD", "AD", "CN"],
        participants=["sub-1", "sub-1", "sub-1", "sub-2", "sub-3"],
        ages=[70.0, 72.0, None, 80.0, None],
        sexes=["female", None, None, "M", None],
        sites=["B", "A", "A", None, "B"],
    )
    ad, cn = table.classes
    assert (ad.name, ad.participants, ad.scans, ad.age_mean, ad.age_sd) == ("AD", 1, 1, 80.0, None)
    assert (cn.name, cn.participants, cn.scans, cn.age_mean, cn.age_sd) == ("CN", 2, 4, 71.0, None)
    assert (cn.age_unknown, cn.sex_unknown, cn.site_unknown) == (1, 1, 0)
    assert (ad.sexes, cn.sexes) == ({"F": 0, "M": 1}, {"F": 1, "M": 0})
    assert (ad.sites, cn.sites, ad.site_unknown) == ({"A": 0, "B": 0}, {"A": 1, "B": 1}, 1)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_participant_is_in_the_table_and_json_holds_it(data):
    size = data.draw(st.integers(1, 30))

    def column(values):
        return data.draw(st.lists(values, min_size=size, max_size=size))

    labels, participants = column(st.sampled_from(["CN", "MCI", "AD"])), column(st.sampled_from("abcdefghij"))
    table = table_of(
        labels,
        participants=participants,
        ages=column(st.none() | st.floats(20, 90)),
        sexes=column(st.sampled_from(["F", "m", None])),
        sites=column(st.sampled_from(["1", "2", "3", "", None])),
    )
    assert sum(row.participants for row in table.classes) == len(set(participants))
    assert sum(row.scans for row in table.classes) == size
    for row in table.classes:
        assert sum(row.sexes.values()) + row.sex_unknown == row.participants
        assert sum(row.sites.values()) + row.site_unknown == row.participants
    for found in table.associations:
        assert found.strength is None or 0 <= found.strength <= 1
    text = json.dumps(asdict(table), allow_nan=False)
    assert TypeAdapter(CohortTable).validate_json(text) == table


def test_strengths_are_those_of_the_publications():
    """Worked by hand: chi-squared of [[16, 8], [8, 16]] is 16/3; Bergsma's corrections follow."""
    table = table_of(["AD"] * 24 + ["CN"] * 24, sites=["A"] * 16 + ["B"] * 8 + ["A"] * 8 + ["B"] * 16)
    found = association(table, "site")
    assert found.strength == pytest.approx(np.sqrt((16 / 3 / 48 - 1 / 47) / (1 - 1 / 47)))
    assert found.p == pytest.approx(0.0209, abs=1e-4)
    # Ranks of AD are 4, 5, 6: H = 12 / (6 * 7) * (6**2 + 15**2) / 3 - 3 * 7
    age = association(table_of(["CN"] * 3 + ["AD"] * 3, ages=[60.0, 61, 62, 70, 71, 90]), "age")
    assert age.strength == pytest.approx(np.sqrt((27 / 7 - 1) / 4))


def test_what_is_the_same_thing_has_strength_one():
    table = table_of(["AD"] * 20 + ["CN"] * 20, sites=["A"] * 20 + ["B"] * 20, sexes=["F"] * 20 + ["M"] * 20)
    assert association(table, "site").strength == pytest.approx(1)
    assert association(table, "sex").strength == pytest.approx(1)


def test_many_small_sites_without_an_association_have_none():
    """Sixty sites of six people: V as it is would be 0.4."""
    found = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        labels = generator.choice(["AD", "CN"], 360).tolist()
        found.append(association(table_of(labels, sites=[f"{n % 60}" for n in range(360)]), "site").strength)
    assert np.mean(found) < 0.08


def test_age_that_differs_is_found_and_age_that_does_not_is_not():
    generator = np.random.default_rng(0)
    labels = ["AD", "CN"] * 100
    same = generator.normal(70, 8, 200)
    older = same + np.array([8, 0] * 100)
    assert not association(table_of(labels, ages=same.tolist()), "age").notable
    assert association(table_of(labels, ages=older.tolist()), "age").notable


@pytest.mark.parametrize("sites", [["A"] * 6, [None] * 6, ["A", "B", "A", None, None, None]])
def test_one_site_or_one_class_has_no_association(sites):
    found = association(table_of(["CN"] * 3 + ["AD"] * 3, sites=sites), "site")
    assert (found.strength, found.p, found.participants) == (
        None,
        None,
        sum(site is not None for site in sites),
    )


@pytest.mark.parametrize("ages", [[70.0] * 6, [None] * 6, [70.0, 71.0, 72.0, None, None, None]])
def test_ages_that_do_not_differ_have_no_association(ages):
    found = association(table_of(["CN"] * 3 + ["AD"] * 3, ages=ages), "age")
    assert (found.strength, found.p) == (None, None)


def test_only_what_goes_together_is_warned_of():
    labels = ["AD"] * 100 + ["CN"] * 100
    table = table_of(
        labels,
        sites=["A"] * 80 + ["B"] * 20 + ["A"] * 40 + ["B"] * 60,
        sexes=["F", "M"] * 100,
        ages=[float(60 + n % 20 + 5 * (n < 100)) for n in range(200)],
    )
    site, age = association_warnings(table)
    assert site == (
        "Site and class go together (Cramér's V 0.40, p < 0.0001): a model can learn the site instead of the disease."
    )
    assert age.startswith("Age and class go together (correlation ratio 0.")


def test_a_weak_association_of_a_large_cohort_is_not_warned_of():
    labels = ["AD"] * 10000 + ["CN"] * 10000
    table = table_of(labels, sites=["A"] * 5200 + ["B"] * 4800 + ["A"] * 4900 + ["B"] * 5100)
    assert association(table, "site").p < 0.001
    assert association_warnings(table) == ()
