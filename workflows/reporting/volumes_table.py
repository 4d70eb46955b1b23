"""The volumes of a scan as its report shows them: in millilitres, as part of the head, and among other people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.records import VOLUMES, BrainVolumes, ReferenceFinding
from brainstage.workflows.reporting.pages import value_text
from brainstage.workflows.reporting.qc_table import measure_label

WITHHELD_BECAUSE: Final[Mapping[str, str]] = {
    "absent": "nothing was found where it should be",
    "rim": "the outline touches the edge of the box that was searched",
    "cut": "it ends where the image ends, or where tissue is missing",
    "unsure": "the outline is uncertain",
    "implausible": "its size is implausible",
    "no_contrast": "grey matter, white matter and fluid are too much alike",
    "qc_failed": "quality control failed",
}
"""A code of `BrainVolumes.reasons` to why a volume is withheld."""

_BAR_MARGIN: Final = 0.08
"""Of what a bar spans, left free at either end."""


@dataclass(frozen=True, kw_only=True)
class PeopleCompared:
    """Findings of one origin.

    Attributes
    ----------
    findings : tuple of ReferenceFinding
    origin : str
        Whose people they are, such as ``the model's training cohort``.
    """

    findings: tuple[ReferenceFinding, ...]
    origin: str

    @property
    def sentence(self) -> str:
        """Whom the scan is compared with."""
        first = next((one for one in self.findings if one.percentile is not None), self.findings[0])
        alike = f"at the same {' and '.join(first.by)}" if first.by else "whatever their age and sex"
        return f"{first.people} people of {self.origin} ({first.label}), {alike}"


@dataclass(frozen=True, kw_only=True)
class RangeBar:
    """A value on a scale with the expected range, all in 0 ... 100 from left to right.

    Attributes
    ----------
    first, width : float
        The expected range.
    expected, marker : float
        What is expected, and the scan.
    """

    first: float
    width: float
    expected: float
    marker: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a scan lies among people like this one.

    Attributes
    ----------
    label : str
        The class or the norms.
    expected, percentile : str
        The expected range, and the percentile with its interval; empty where nothing is compared.
    words : str
        Whether it lies within the range, or why nothing is compared.
    bar : RangeBar or None
    spoken : str
        All of it, for those who hear the page.
    """

    label: str
    expected: str
    percentile: str
    words: str
    bar: RangeBar | None
    spoken: str


@dataclass(frozen=True, kw_only=True)
class VolumeRow:
    """A line of the table.

    Attributes
    ----------
    label : str
    value : str
        With its unit; empty where it is withheld.
    of_head : str
        Of the intracranial volume; empty where that makes no sense.
    withheld : str
        Why, in words; empty where it is not.
    places : tuple of Place
        One for each group of people it is compared with.
    """

    label: str
    value: str
    of_head: str = ""
    withheld: str = ""
    places: tuple[Place, ...] = ()


def volume_rows(
    volumes: BrainVolumes | None, compared: Sequence[PeopleCompared] = ()
) -> tuple[VolumeRow, ...]:
    """Return a row for every volume, and one for every other measure that is compared with other people.

    Parameters
    ----------
    volumes : BrainVolumes or None
        None where they may not be shown or were not measured.
    compared : sequence of PeopleCompared
    """
    findings = [one for people in compared for one in people.findings]
    rows, used = [], set()
    measures = volumes.measures if volumes else {}
    for name in VOLUMES if volumes else ():
        own = [one for one in findings if one.measure in (f"{name}_ml", f"{name}_pct_icv")]
        used |= {one.measure for one in own}
        ml, of_head = measures[f"{name}_ml"], measures.get(f"{name}_pct_icv")
        rows.append(
            VolumeRow(
                label=measure_label(name),
                value="" if ml is None else value_text(ml, "ml"),
                of_head="" if of_head is None else value_text(of_head, "%"),
                withheld=why_withheld(volumes, name) if volumes else "",
                places=tuple(map(place_of, own)) if ml is not None else (),
            )
        )
    for measure in dict.fromkeys(one.measure for one in findings if one.measure not in used):
        own = [one for one in findings if one.measure == measure]
        value = value_text(own[0].value, _unit_of(measure))
        rows.append(VolumeRow(label=measure_label(measure), value=value, places=tuple(map(place_of, own))))
    return tuple(rows)


def why_withheld(volumes: BrainVolumes, name: str) -> str:
    """Return why a volume is withheld, in words; empty where it is there."""
    if volumes.volumes_ml.get(name) is not None:
        return ""
    codes = [
        code for about, _, code in (reason.partition(":") for reason in volumes.reasons) if about == name
    ]
    return "; ".join(WITHHELD_BECAUSE.get(code, code) for code in codes) or "no reason was given"


def asymmetry_text(volumes: BrainVolumes) -> str:
    """Return how far the hippocampi differ; empty where one of them is missing.

    >>> asymmetry_text(BrainVolumes(volumes_ml={"hippocampus_left": 2.9, "hippocampus_right": 3.1}))
    'The left hippocampus is smaller than the right by 6.7 % of the mean of both.'
    """
    asymmetry = volumes.measures["hippocampus_asymmetry_pct"]
    if asymmetry is None:
        return ""
    if abs(asymmetry) < 0.05:
        return "The two hippocampi are of the same size."
    comparison = "larger" if asymmetry > 0 else "smaller"
    return (
        f"The left hippocampus is {comparison} than the right by {abs(asymmetry):.1f} % of the mean of both."
    )


def region_rows(volumes: BrainVolumes) -> tuple[VolumeRow, ...]:
    """Return a row for every region of the user's atlas, in its order."""
    head_ml = volumes.volumes_ml.get("intracranial")
    return tuple(
        VolumeRow(
            label=name,
            value=value_text(ml, "ml"),
            of_head=value_text(100.0 * ml / head_ml, "%") if head_ml else "",
        )
        for name, ml in volumes.atlas_ml.items()
    )


def place_of(finding: ReferenceFinding) -> Place:
    """Return where a measure lies, in words and on a bar."""
    unit = _unit_of(finding.measure)
    name = f"{measure_label(finding.measure)} {value_text(finding.value, unit)}"
    low, high, expected = finding.low, finding.high, finding.expected
    if low is None or high is None or expected is None or finding.percentile is None:
        why = finding.reason or "not compared"
        return Place(
            label=finding.label, expected="", percentile="", words=why, bar=None, spoken=f"{name}, {why}"
        )
    side = "above" if finding.value > high else "below" if finding.value < low else "within"
    words = f"{side} the expected range"
    usual = f"{low:.3g} to {high:.3g} {unit}"
    percentile = _percentile_text(finding)
    return Place(
        label=finding.label,
        expected=usual,
        percentile=percentile,
        words=words,
        bar=_bar(finding.value, low, expected, high),
        spoken=f"{name}, expected {usual}, percentile {percentile}, {words} of {finding.label}",
    )


def _percentile_text(finding: ReferenceFinding) -> str:
    text = _rank(finding.percentile or 0.0)
    if finding.percentile_low is None or finding.percentile_high is None:
        return text
    return f"{text} ({_rank(finding.percentile_low)} to {_rank(finding.percentile_high)})"


def _rank(percentile: float) -> str:
    """Return a percentile without a false end.

    >>> _rank(0.2), _rank(12.4), _rank(99.9)
    ('< 1', '12', '> 99')
    """
    return "< 1" if percentile < 1.0 else "> 99" if percentile > 99.0 else f"{percentile:.0f}"


def _unit_of(measure: str) -> str:
    return "ml" if measure.endswith("_ml") else "%"


def _bar(value: float, low: float, expected: float, high: float) -> RangeBar:
    first, last = min(low, value), max(high, value)
    span = (last - first) or abs(last) or 1.0

    def place(at: float) -> float:
        return 100.0 * (_BAR_MARGIN + (1.0 - 2.0 * _BAR_MARGIN) * (at - first) / span)

    return RangeBar(
        first=place(low), width=place(high) - place(low), expected=place(expected), marker=place(value)
    )
