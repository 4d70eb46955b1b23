"""A change between two visits, and what of it the measurement alone can be."""

from __future__ import annotations

import numpy as np
import pytest

from brainstage.models.retest import RETEST_SD, Change, Years, change_of
from brainstage.pipeline.records import VOLUMES


def exactly(years: float) -> Years:
    return Years(best=years, least=years, most=years)


def test_every_volume_has_an_error() -> None:
    assert set(RETEST_SD) == set(VOLUMES)
    assert all(0 < sd < 0.1 for sd in RETEST_SD.values())


@pytest.mark.parametrize("volume", VOLUMES)
def test_an_unchanged_brain_is_within_measurement_error_in_95_of_100_pairs(volume) -> None:
    rng = np.random.default_rng(0)
    measured = 3.0 * np.exp(RETEST_SD[volume] * rng.standard_normal((4000, 2)))
    changes = [change_of(volume, first, second, exactly(1.5)) for first, second in measured]
    within = [change.verdict is Change.WITHIN_ERROR for change in changes]
    assert np.mean(within) == pytest.approx(0.95, abs=0.012)
    assert within == [change.low < 0 < change.high for change in changes]


@pytest.mark.parametrize("years", [0.5, 2.0, 5.0])
def test_the_interval_holds_the_true_change_per_year_in_95_of_100_pairs(years) -> None:
    rng = np.random.default_rng(1)
    noise = np.exp(RETEST_SD["hippocampus_left"] * rng.standard_normal((3000, 2)))
    held = []
    for first, second in noise:
        found = change_of("hippocampus_left", 3.0 * first, 3.0 * 0.96**years * second, exactly(years))
        held.append(found.low <= -4.0 <= found.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_a_change_in_a_year_compounds_and_its_direction_is_said() -> None:
    grown = change_of("ventricle_right", 20.0, 20.0 * 1.1**3, exactly(3.0))
    assert grown.per_year == pytest.approx(10.0)
    assert (grown.percent, grown.verdict) == (pytest.approx(33.1), Change.INCREASE)
    assert change_of("hippocampus_right", 3.0, 2.4, exactly(1.0)).verdict is Change.DECREASE


def test_longer_between_visits_means_a_narrower_interval() -> None:
    widths = []
    for years in (0.5, 1.0, 4.0):
        change = change_of("csf", 300.0, 300.0, exactly(years))
        widths.append(change.high - change.low)
    assert widths == sorted(widths, reverse=True)


def test_a_time_known_to_within_a_year_widens_the_interval() -> None:
    sure = change_of("hippocampus_left", 3.0, 2.4, exactly(3.0))
    unsure = change_of("hippocampus_left", 3.0, 2.4, Years(best=3.0, least=2.0, most=4.0))
    assert unsure.per_year == sure.per_year
    assert unsure.low < sure.low < sure.high < unsure.high < 0


def test_without_a_time_there_is_a_change_but_none_in_a_year() -> None:
    change = change_of("hippocampus_left", 3.0, 2.4, None)
    assert (change.percent, change.verdict) == (pytest.approx(-20.0), Change.DECREASE)
    assert (change.per_year, change.low, change.high) == (None, None, None)
