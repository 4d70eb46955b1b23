"""How much time lies between two visits, as far as that is certain.

Dates of BIDS may be shifted, as long as all of a person are shifted alike: only their difference counts. Ages are
often cut or rounded to whole years, and a difference of two such ages is known to within a year.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from brainstage.models.retest import Years
from brainstage.pipeline.records import T1wScan

DAYS_IN_A_YEAR: Final = 365.25
LEAST_YEARS: Final = 1.0 / DAYS_IN_A_YEAR
AGE_DIGITS: Final = 2
"""An age with this many decimals or more is taken for as exact as that."""
_ROUNDING: Final = 1e-6
_YEARS_OF_LABELS: Final = range(1925, 2100)
"""A label of eight digits outside them is a number."""


@dataclass(frozen=True, kw_only=True)
class TimeBetween:
    """The time between two visits.

    Attributes
    ----------
    years : Years or None
        None where it is not known.
    source : str
        ``acq_time``, ``session_id``, ``age``, or ``unknown``.
    """

    years: Years | None
    source: str


def time_between(earlier: T1wScan, later: T1wScan) -> TimeBetween:
    """Return the time between two visits: by ``acq_time`` of the sessions, by dates as labels, else by age.

    Parameters
    ----------
    earlier, later : T1wScan
        Of one person.
    """
    for source, days in (
        ("acq_time", _acquired_days(earlier, later)),
        ("session_id", _label_days(earlier, later)),
    ):
        if days is not None:
            years = days / DAYS_IN_A_YEAR
            return TimeBetween(years=Years(best=years, least=years, most=years), source=source)
    years_by_age = _by_age(earlier.covariates.age, later.covariates.age)
    return TimeBetween(years=years_by_age, source="age" if years_by_age else "unknown")


def _acquired_days(earlier: T1wScan, later: T1wScan) -> float | None:
    first, second = (_moment(scan.covariates.extra.get("acq_time", "")) for scan in (earlier, later))
    if first is None or second is None:
        return None
    days = (second - first).total_seconds() / 86400.0
    return days if days >= 1.0 else None  # the same or an earlier day is no second visit


def _label_days(earlier: T1wScan, later: T1wScan) -> float | None:
    first, second = (_day(scan.entities.session or "") for scan in (earlier, later))
    days = (second - first).days if first and second else 0
    return float(days) if days > 0 else None


def _by_age(earlier: float | None, later: float | None) -> Years | None:
    """Return the time between two ages; None where it cannot be told from none.

    >>> _by_age(70.0, 71.0), _by_age(70.0, 73.0)
    (None, Years(best=3.0, least=2.0, most=4.0))
    """
    if earlier is None or later is None:
        return None
    unsure = max(_resolution(earlier), _resolution(later))
    years = later - earlier
    least = years - unsure
    return Years(best=years, least=least, most=years + unsure) if least >= LEAST_YEARS else None


def _resolution(age: float) -> float:
    """Return how exact an age is written, in years.

    >>> _resolution(70.0), _resolution(70.5), _resolution(70.0833)
    (1.0, 0.1, 0.01)
    """
    whole = (
        digits for digits in range(AGE_DIGITS) if abs(age * 10**digits - round(age * 10**digits)) < _ROUNDING
    )
    return float(10.0 ** -next(whole, AGE_DIGITS))


def _moment(text: str) -> datetime | None:
    """Return a date and time of BIDS; None for anything else."""
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        return None


def _day(label: str) -> date | None:
    """Return the day that a session is named after; None where it is named otherwise.

    >>> _day("20190412"), _day("M12"), _day("20191342")
    (datetime.date(2019, 4, 12), None, None)
    """
    if not re.fullmatch("[0-9]{8}", label):
        return None
    try:
        day = date(int(label[:4]), int(label[4:6]), int(label[6:]))
    except ValueError:
        return None
    return day if day.year in _YEARS_OF_LABELS else None
