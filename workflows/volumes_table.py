"""``volumes.csv``: the volumes of every scan, and where they lie among the people of norms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from brainstage.models.norms import NORMED_MEASURES
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import BrainVolumes, SubjectOutcome
from brainstage.workflows.measured_volumes import ShownVolumes, shown_volumes
from brainstage.workflows.normed_volumes import normed_volumes, reasons_of
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.table_identity import IDENTITY_COLUMNS, identity_of

MEASURES: Final = tuple(BrainVolumes(volumes_ml={}).measures)
"""The columns of numbers that every table of volumes has."""
PERCENTILES: Final = tuple(
    f"{volume}_{column}"
    for volume in NORMED_MEASURES
    for column in ("percentile", "percentile_low", "percentile_high")
)
_PERCENTILE_DECIMALS: Final = 2


@dataclass(frozen=True, kw_only=True)
class VolumesTable:
    """The table, and what is to be known of its columns.

    Attributes
    ----------
    columns : tuple of str
    rows : tuple of dict
    region_of : dict
        Column to the region of the user's atlas whose volume it holds.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, object], ...] = ()
    region_of: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The table as CSV."""
        return csv_text(self.columns, self.rows)


def volumes_table(outcomes: Sequence[SubjectOutcome], context: RunContext | None) -> VolumesTable:
    """Return the table: one row for every scan, also the failed ones.

    Parameters
    ----------
    outcomes : sequence
    context : RunContext or None
        With norms, percentiles follow.
    """
    shown = [shown_volumes(outcome) for outcome in outcomes]
    column_of = atlas_columns(region for one in shown for region in one.atlas_ml)
    norms = context.norms if context else None
    columns = (*IDENTITY_COLUMNS, *MEASURES, "volumes_status", "volumes_reasons", *column_of.values())
    if norms is not None:
        columns += (*PERCENTILES, "norms_reasons", "norms_id")
    rows = []
    for outcome, one in zip(outcomes, shown, strict=True):
        row = identity_of(outcome) | _measured(one, column_of)
        if context is not None and norms is not None:
            row |= _normed(outcome, context) | {"norms_id": norms.norms_id}
        rows.append(row)
    return VolumesTable(
        columns=columns,
        rows=tuple(rows),
        region_of={column: region for region, column in column_of.items()},
    )


def atlas_columns(regions: Iterable[str]) -> dict[str, str]:
    """Return a column for each region of an atlas; no two are equal, and none is that of another volume.

    ``atlas_``, the name in lower case with one underscore for whatever is no letter and no digit, and ``_ml``; of names
    that become one, the second ends in ``_2_ml``.

    Parameters
    ----------
    regions : iterable of str
        In the order of the columns; a name may come again.

    Examples
    --------
    >>> atlas_columns(["Left-Hippocampus", "left hippocampus", "3rd ventricle", "Left-Hippocampus"])
    {'Left-Hippocampus': 'atlas_left_hippocampus_ml', 'left hippocampus': 'atlas_left_hippocampus_2_ml', \
'3rd ventricle': 'atlas_3rd_ventricle_ml'}
    """
    found: dict[str, str] = {}
    for region in dict.fromkeys(regions):
        safe = re.sub(r"[\W_]+", "_", region.casefold()).strip("_") or "region"
        names = (f"atlas_{safe}{f'_{number}' if number > 1 else ''}_ml" for number in itertools.count(1))
        taken = set(found.values())
        found[region] = next(name for name in names if name not in taken)
    return found


def _measured(shown: ShownVolumes, column_of: dict[str, str]) -> dict[str, object]:
    return {
        **shown.measures,
        "volumes_status": shown.status,
        "volumes_reasons": ";".join(shown.reasons),
        **{column_of[region]: ml for region, ml in shown.atlas_ml.items()},
    }


def _normed(outcome: SubjectOutcome, context: RunContext) -> dict[str, object]:
    normed = normed_volumes(outcome, context)
    row: dict[str, object] = {"norms_reasons": ";".join(reasons_of(normed))}
    for one in normed:
        found = one.finding
        for column, value in (
            ("percentile", found.percentile),
            ("percentile_low", found.percentile_low),
            ("percentile_high", found.percentile_high),
        ):
            row[f"{one.volume}_{column}"] = None if value is None else round(value, _PERCENTILE_DECIMALS)
    return row
