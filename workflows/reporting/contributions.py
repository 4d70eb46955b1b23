"""What each volume adds to a prediction, as bars to either side of nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from brainstage.models.volume_model import SUMMED
from brainstage.pipeline.records import BrainVolumes, Prediction
from brainstage.workflows.reporting.pages import signed, value_text
from brainstage.workflows.reporting.qc_table import measure_label

_OF_HEAD: Final = "_pct_icv"
_IN_ML: Final = "_ml"
_REACH: Final = 48.0
"""Of 100, from the middle to the end of the longest bar."""
LEAST_REACH: Final = 0.1
"""Where the scale ends at least: next to nothing must not look like much."""


@dataclass(frozen=True, kw_only=True)
class ContributionRow:
    """A volume and what it adds.

    Attributes
    ----------
    label : str
    value : str
        What the member goes by: per cent of the intracranial volume.
    of_scan : str
        The volume itself; empty where it is not shown.
    added : str
        With its sign.
    start, width : float
        Of its bar, on a scale of 100 with nothing in the middle.
    side : str
        ``for``, ``against``, or empty where the bar has no length.
    spoken : str
        All of it, for those who hear the page.
    """

    label: str
    value: str
    of_scan: str
    added: str
    start: float
    width: float
    side: str
    spoken: str


def contribution_rows(
    prediction: Prediction | None, volumes: BrainVolumes | None
) -> tuple[ContributionRow, ...]:
    """Return a row for each volume that a prediction rests on, the one that adds most, for or against, first.

    Parameters
    ----------
    prediction : Prediction or None
        None where it may not be shown.
    volumes : BrainVolumes or None
        Likewise.
    """
    added = prediction.volume_contributions if prediction else {}
    longest = max(LEAST_REACH, *map(abs, added.values())) if added else LEAST_REACH
    measures = volumes.measures if volumes else {}
    rows = []
    for measure, amount in sorted(added.items(), key=lambda item: -abs(item[1])):
        width = _REACH * abs(amount) / longest
        side = ("for" if amount > 0 else "against") if amount else ""
        name = measure_label(measure.removesuffix(_OF_HEAD))
        summed = SUMMED.get(measure, (measure,))
        share = _sum_of(measures, summed)
        ml = _sum_of(measures, [one.replace(_OF_HEAD, _IN_ML) for one in summed])
        rows.append(
            ContributionRow(
                label=name,
                value=value_text(share, "%") if share is not None else "",
                of_scan=value_text(ml, "ml") if ml is not None else "",
                added=signed(amount),
                start=50.0 if amount >= 0 else 50.0 - width,
                width=width,
                side=side,
                spoken=f"{name}: {signed(amount)}"
                + (f", {side} {prediction.predicted_label}" if side and prediction else ""),
            )
        )
    return tuple(rows)


def _sum_of(measures: Mapping[str, float | None], names: Iterable[str]) -> float | None:
    """Return the sum of measures; None where one of them is not known."""
    found = [measures.get(name) for name in names]
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None
