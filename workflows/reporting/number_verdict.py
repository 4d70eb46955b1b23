"""A predicted number in words, and as the rows of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.records import NumberPrediction, T1wScan
from brainstage.workflows.predicted_numbers import AGE, known_number
from brainstage.workflows.reporting.members_table import KNOWN_TO
from brainstage.workflows.reporting.pages import percent

_DIGITS: Final = 3
"""Of a number on a page: predictions are not that exact."""


@dataclass(frozen=True, kw_only=True)
class MemberValue:
    """One member's own value."""

    name: str
    knows: str
    value: str


@dataclass(frozen=True, kw_only=True)
class NumberShown:
    """What a report says of a predicted number, as text.

    Attributes
    ----------
    column : str
    value, interval, level, known, gap : str
        `known` and `gap` are empty where the true value is not known.
    members : tuple of MemberValue
    model_id : str
    ood_score, ood_threshold : float
    """

    column: str
    value: str
    interval: str
    level: str
    known: str
    gap: str
    members: tuple[MemberValue, ...]
    model_id: str
    ood_score: float
    ood_threshold: float


def number_shown(prediction: NumberPrediction, scan: T1wScan) -> NumberShown:
    """Return what a report says of a predicted number."""
    known = known_number(scan, prediction.column)
    gap = prediction.gap(known)
    return NumberShown(
        column=prediction.column,
        value=_text(prediction.value),
        interval=f"{_text(prediction.interval_low)} to {_text(prediction.interval_high)}",
        level=percent(prediction.level),
        known="" if known is None else _text(known),
        gap="" if gap is None else _signed(gap),
        members=tuple(
            MemberValue(name=name, knows=KNOWN_TO.get(name, ""), value=_text(value))
            for name, value in prediction.member_values.items()
        ),
        model_id=prediction.model_id,
        ood_score=prediction.ood_score,
        ood_threshold=prediction.ood_threshold,
    )


def number_headline(prediction: NumberPrediction, scan: T1wScan) -> str:
    """Say in one line what was predicted, within what, and what is known.

    >>> from pathlib import Path
    >>> from brainstage.pipeline.entities import BidsEntities
    >>> from brainstage.pipeline.records import Covariates
    >>> known = Covariates(age=68.0)
    >>> scan = T1wScan(entities=BidsEntities(subject="01"), path=Path(), t1w_path="", covariates=known)
    >>> said = NumberPrediction(
    ...     column="age",
    ...     value=71.2,
    ...     interval_low=63.1,
    ...     interval_high=79.0,
    ...     level=0.9,
    ...     ood_score=1.0,
    ...     ood_threshold=2.0,
    ...     member_values={},
    ...     model_id="m1",
    ... )
    >>> number_headline(said, scan)
    'Predicted age 71.2 years (90 % interval 63.1 to 79); known: 68; gap +3.2'
    """
    if not prediction.above_chance:
        return "No prediction can be made: the model is not above chance"
    shown = number_shown(prediction, scan)
    unit = " years" if prediction.column == AGE else ""
    head = f"Predicted {shown.column} {shown.value}{unit} ({shown.level} interval {shown.interval})"
    return f"{head}; known: {shown.known}; gap {shown.gap}" if shown.known else head


def interval_sentence(prediction: NumberPrediction, scan: T1wScan) -> str:
    """Say what the interval means, and whether what is known lies in it."""
    known = known_number(scan, prediction.column)
    sentence = (
        f"Such intervals hold the true {prediction.column} of about {percent(prediction.level)} of scans like those of "
        "the training cohort."
    )
    if known is None:
        return sentence
    inside = prediction.interval_low <= known <= prediction.interval_high
    return f"{sentence} The known {prediction.column} lies {'inside' if inside else 'outside'} it."


def gap_sentence(prediction: NumberPrediction) -> str:
    """Say what the gap between predicted and known age is worth; empty for any other number."""
    if prediction.column != AGE:
        return ""
    return (
        "Predictions are drawn to the mean age of the training cohort, so the gap is too high for the young and too "
        "low for the old: compare gaps only between people of the same age."
    )


def _text(value: float) -> str:
    """Return a number with about three digits, and none of a whole number lost.

    >>> _text(71.24), _text(1234.5), _text(0.01234)
    ('71.2', '1234', '0.0123')
    """
    return f"{value:.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"


def _signed(value: float) -> str:
    """Return a difference with its sign.

    >>> _signed(3.21), _signed(-2.0)
    ('+3.2', '−2')
    """
    text = f"{abs(value):.2g}" if abs(value) < 100 else f"{abs(value):.0f}"
    return f"{'+' if value >= 0 else '−'}{text}"
