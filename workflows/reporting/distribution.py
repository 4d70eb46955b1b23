"""How the measures of quality control are spread over the scans of an output directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.files import read_json_or_empty, sha256_of_json, write_json
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.records import Completed, SubjectOutcome

LEAST_SCANS: Final = 5
DISTRIBUTIONS_FILE: Final = "distributions.json"
_DIGITS_THAT_COUNT: Final = 2
"""A cohort that grows by a scan moves the third digit of everything; nobody has to draw all reports anew for that."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Where the scans of a cohort lie, in the measure's unit.

    Attributes
    ----------
    scans : int
        That have the measure.
    lowest, lower_quartile, median, upper_quartile, highest : float
    """

    scans: int
    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float

    @property
    def landmarks(self) -> tuple[float, ...]:
        """The five values, from the lowest to the highest."""
        return (self.lowest, self.lower_quartile, self.median, self.upper_quartile, self.highest)

    def place(self, value: float) -> str:
        """Say where a value lies.

        >>> cohort = Distribution(scans=6, lowest=1, lower_quartile=2, median=3, upper_quartile=4, highest=9)
        >>> cohort.place(9), cohort.place(4.5), cohort.place(2), cohort.place(0.5)
        ('highest', 'upper quarter', 'middle half', 'lowest')
        """
        if self.lowest == self.highest == value:
            return "like all"
        if value <= self.lowest or value >= self.highest:
            return "lowest" if value <= self.lowest else "highest"
        if value < self.lower_quartile:
            return "lower quarter"
        return "upper quarter" if value > self.upper_quartile else "middle half"


def distributions_of(outcomes: Sequence[SubjectOutcome]) -> dict[str, Distribution]:
    """Return the distribution of every measure that is a number in at least five scans, by name."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        if isinstance(outcome, Completed):
            for name, value in outcome.qc.measures.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    values.setdefault(name, []).append(float(value))
    return {name: _distribution(found) for name, found in values.items() if len(found) >= LEAST_SCANS}


@dataclass(frozen=True, kw_only=True)
class KeptDistributions:
    """What is kept of a cohort.

    Attributes
    ----------
    of_measure : mapping
        Measure to its distribution.
    key : str
        Hash of all of it.
    """

    of_measure: Mapping[str, Distribution]
    key: str


def read_distributions(out_dir: Path) -> KeptDistributions:
    """Return what is kept of a cohort; nothing where nothing is."""
    path = out_dir / STATE_FOLDER / DISTRIBUTIONS_FILE
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _read(path, stamp)


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> KeptDistributions:
    """Read the file of one moment; every scan of a cohort asks for it."""
    content = read_json_or_empty(path)
    try:
        found = {name: as_record(values, Distribution) for name, values in content.items()}
    except ValueError:
        found = {}
    return KeptDistributions(of_measure=found, key=sha256_of_json(content) if found else "")


def keep_distributions(out_dir: Path, distributions: Mapping[str, Distribution]) -> bool:
    """Keep what a cohort looks like now, unless it looks as before; tell whether it was kept."""
    if _gist(distributions) == _gist(read_distributions(out_dir).of_measure):
        return False
    content: dict[str, Any] = {name: asdict(one) for name, one in distributions.items()}
    write_json(out_dir / STATE_FOLDER / DISTRIBUTIONS_FILE, content)
    return True


def _distribution(values: Sequence[float]) -> Distribution:
    lowest, lower, median, upper, highest = map(float, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    return Distribution(
        scans=len(values),
        lowest=lowest,
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        highest=highest,
    )


def _gist(distributions: Mapping[str, Distribution]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(f"{value:.{_DIGITS_THAT_COUNT}g}" for value in one.landmarks)
        for name, one in distributions.items()
    }
