"""A predicted number beside what is known: what tables and pages say of it."""

from __future__ import annotations

from typing import Final

from brainstage.pipeline.records import NumberPrediction, T1wScan
from brainstage.pipeline.tables import number_or_none

AGE: Final = "age"


def known_number(scan: T1wScan, column: str) -> float | None:
    """Return what the dataset's tables say of a scan in a column; None where that is no number.

    >>> from pathlib import Path
    >>> from brainstage.pipeline.entities import BidsEntities
    >>> from brainstage.pipeline.records import Covariates
    >>> known = Covariates(age=71.0, extra={"mmse": "28", "moca": "n/a"})
    >>> scan = T1wScan(entities=BidsEntities(subject="01"), path=Path(), t1w_path="", covariates=known)
    >>> [known_number(scan, column) for column in ("age", "mmse", "moca")]
    [71.0, 28.0, None]
    """
    return number_or_none(scan.covariates.value(column))


def number_columns(column: str) -> tuple[str, ...]:
    """Return the columns of a table of predictions that stand in the place of those of classes.

    >>> number_columns("mmse")
    ('predicted_mmse', 'interval_low', 'interval_high')
    """
    gap = (gap_column(column),) if column == AGE else ()
    return (f"predicted_{column}", "interval_low", "interval_high", *gap)


def gap_column(column: str) -> str:
    """Return the column that holds predicted minus known age."""
    return f"predicted_{column}_gap"


def number_record(prediction: NumberPrediction, scan: T1wScan) -> dict[str, object]:
    """Return the values of :func:`number_columns` for one scan."""
    column = prediction.column
    values = (prediction.value, prediction.interval_low, prediction.interval_high)
    gap = prediction.gap(known_number(scan, column))
    return dict(zip(number_columns(column), (*values, gap), strict=False))


def member_values_text(prediction: NumberPrediction) -> str:
    """Return what each member says, as ``member=value``."""
    return ";".join(f"{name}={value:.6g}" for name, value in prediction.member_values.items())
