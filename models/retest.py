"""How much a volume changes between two visits, and how much of that the measurement alone can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import numpy as np

COVERAGE_SDS: Final = 1.959964
"""Standard deviations to either side that hold 95 of 100."""
RETEST_SD: Final[Mapping[str, float]] = MappingProxyType(
    {
        "intracranial": 0.015,
        "grey_matter": 0.015,
        "white_matter": 0.015,
        "csf": 0.04,
        "ventricle_left": 0.04,
        "ventricle_right": 0.04,
        "hippocampus_left": 0.02,
        "hippocampus_right": 0.02,
    }
)
"""Standard deviation of one measurement over its value, of the same person on the same scanner.

Twice what ``benchmarks/volumes.py`` finds in two pairs of scans of one person on different days (OASIS; Marcus 2007,
10.1162/jocn.2007.19.9.1498): so few pairs may show half of what there is. Another scanner or sequence adds to it.
"""


class Change(StrEnum):
    """What a change between two visits is."""

    DECREASE = "decrease"
    INCREASE = "increase"
    WITHIN_ERROR = "within measurement error"


@dataclass(frozen=True, kw_only=True)
class Years:
    """The time between two visits.

    Attributes
    ----------
    best, least, most : float
        As well as it is known; above 0.
    """

    best: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class VolumeChange:
    """The change of one volume since an earlier visit.

    Attributes
    ----------
    percent : float
        In all.
    per_year, low, high : float or None
        Per cent a year, compounding, and its 95 % interval; None where the time between the visits is not known.
    verdict : Change
        Whether the interval leaves 0 out.
    """

    percent: float
    verdict: Change
    per_year: float | None = None
    low: float | None = None
    high: float | None = None


def change_of(volume: str, earlier_ml: float, later_ml: float, years: Years | None) -> VolumeChange:
    """Return the change of a volume, and the interval that the test-retest error allows it.

    Parameters
    ----------
    volume : str
        A name of ``VOLUMES``.
    earlier_ml, later_ml : float
        Above 0.
    years : Years or None
        Between the two; None where that is not known.

    Examples
    --------
    >>> change = change_of("hippocampus_left", 3.0, 2.4, Years(best=2.0, least=2.0, most=2.0))
    >>> f"{change.percent:.0f} %, {change.per_year:.1f} % a year: {change.verdict}"
    '-20 %, -10.6 % a year: decrease'
    """
    found = float(np.log(later_ml / earlier_ml))
    reach = COVERAGE_SDS * float(np.sqrt(2.0)) * RETEST_SD[volume]
    verdict = Change.WITHIN_ERROR
    if abs(found) > reach:
        verdict = Change.INCREASE if found > 0 else Change.DECREASE
    if years is None:
        return VolumeChange(percent=_percent(found), verdict=verdict)
    ends = [(found + side * reach) / time for side in (-1, 1) for time in (years.least, years.most)]
    return VolumeChange(
        percent=_percent(found),
        verdict=verdict,
        per_year=_percent(found / years.best),
        low=_percent(min(ends)),
        high=_percent(max(ends)),
    )


def _percent(logarithm: float) -> float:
    return 100.0 * float(np.expm1(logarithm))
