"""QC measures against their bounds, and reason codes with their sentences, as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brainstage.pipeline.config import QualityBounds
from brainstage.pipeline.records import HeaderFindings, QcReport, QcStatus
from brainstage.workflows.reporting.distribution import Distribution
from brainstage.workflows.reporting.pages import value_text

OpenBounds = tuple[float | None, float | None]
_HEADER_PREFIX = "header_"
_UNIT_SUFFIXES = ("_ml", "_mm", "_deg", "_pct")
_OF_HEAD_SUFFIX = "_pct_icv"
_SIDES = ("left", "right")
_STRUCTURES = {
    "intracranial": "intracranial volume",
    "csf": "cerebrospinal fluid",
    "ventricle": "lateral ventricle",
}
_SPELLINGS = {
    word.lower(): word for word in ("CNR", "SNR", "CJV", "EFC", "FBER", "INU", "FOV", "T1w", "Dice")
}


@dataclass(frozen=True, kw_only=True)
class QcRow:
    """One measure against its bounds.

    Attributes
    ----------
    name, unit, explanation, source
        What it is, in words; `source` is a citation.
    value : float, bool, str or None
        None where the measure makes no sense for this scan.
    passing, tolerated : (float or None, float or None)
        As in :class:`brainstage.pipeline.config.QualityBounds`: within `passing` fine, within `tolerated` a
        warning, outside a failure; None leaves a side open.
    status : QcStatus or None
        None for a measure that is only informative.
    """

    name: str
    value: float | bool | str | None
    unit: str = ""
    passing: OpenBounds = (None, None)
    tolerated: OpenBounds = (None, None)
    status: QcStatus | None = None
    explanation: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """The name as words, without the unit.

        >>> QcRow(name="brain_volume_ml", value=1.0).label, QcRow(name="inu_range", value=1.0).label
        ('brain volume', 'INU range')
        """
        return measure_label(self.name)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a scan is not simply fine.

    Attributes
    ----------
    code : str
        As in the tables.
    explanation : str
        What the code means, in one or a few sentences.
    summary : str
        What was found in this scan, in a few words.
    status : QcStatus or None
        None for a note, which is no reason for doubt.
    """

    code: str
    explanation: str
    summary: str = ""
    status: QcStatus | None = QcStatus.WARN


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A measure on its scale, all in 0 ... 100 from left to right; a band is (first, width).

    Attributes
    ----------
    judged : bool
        There are bounds.
    cohort : tuple of float
        The landmarks of the cohort's distribution; empty where it is not known.
    """

    marker: float
    tolerated: tuple[float, float]
    passing: tuple[float, float]
    judged: bool = True
    cohort: tuple[float, ...] = ()


def measure_label(name: str) -> str:
    """Return a measure's name as words, without its unit; a share of the head is something else than its volume.

    >>> measure_label("ventricle_left_ml"), measure_label("hippocampus_right_pct_icv")
    ('lateral ventricle, left', 'hippocampus, right (% of intracranial volume)')
    """
    if name.endswith(_OF_HEAD_SUFFIX):
        return f"{measure_label(name.removesuffix(_OF_HEAD_SUFFIX))} (% of intracranial volume)"
    for suffix in _UNIT_SUFFIXES:
        name = name.removesuffix(suffix)
    structure, _, side = name.rpartition("_")
    if structure and side in _SIDES:
        return f"{measure_label(structure)}, {side}"
    words = " ".join(_SPELLINGS.get(word, word) for word in name.split("_"))
    return _STRUCTURES.get(name, words)


def qc_rows_of(qc: QcReport, overrides: Mapping[str, QualityBounds] | None = None) -> tuple[QcRow, ...]:
    """Return a row for every measure that was asked for, in the order in which quality control defines them.

    Parameters
    ----------
    qc : QcReport
    overrides : mapping, optional
        Bounds by measure in place of the built-in ones, as the run was configured.
    """
    from brainstage.preprocessing.quality import MEASURES, status_of  # brings in the registration tools

    rows = []
    for measure in MEASURES:
        if measure.on_demand and measure.name not in qc.measures:
            continue
        value = qc.measures.get(measure.name)
        bounds = (overrides or {}).get(measure.name, measure.bounds)
        judged = bounds is not None and value is not None and not isinstance(value, str)
        rows.append(
            QcRow(
                name=measure.name,
                value=value,
                unit=measure.unit,
                passing=bounds.passing if bounds else (None, None),
                tolerated=bounds.tolerated if bounds else (None, None),
                status=status_of(float(value), bounds) if judged and bounds and value is not None else None,
                explanation=measure.explanation,
                source=measure.source,
            )
        )
    return tuple(rows)


def qc_reasons_of(
    qc: QcReport,
    findings: HeaderFindings | None = None,
    overrides: Mapping[str, QualityBounds] | None = None,
) -> tuple[Reason, ...]:
    """Return every reason code of a verdict with what was found and what it means.

    Parameters
    ----------
    qc : QcReport
    findings : HeaderFindings or None
        Explain the codes that come from the header.
    overrides : mapping, optional
        As for :func:`qc_rows_of`.
    """
    from brainstage.preprocessing.quality import MEASURES  # brings in the registration tools

    name_of = {measure.reason or measure.name: measure.name for measure in MEASURES}
    rows = {row.name: row for row in qc_rows_of(qc, overrides)}
    return tuple(
        _measure_reason(code, rows[name_of[code]]) if code in name_of else _header_reason(code, findings)
        for code in qc.verdict.reasons
    )


def _measure_reason(code: str, row: QcRow) -> Reason:
    expected = bounds_text(row)
    found = f"{row.label} is {value_text(row.value, row.unit)}"
    return Reason(
        code=code,
        explanation=row.explanation,
        summary=f"{found}, expected {expected}" if expected else found,
        status=row.status or QcStatus.WARN,
    )


def _header_reason(code: str, findings: HeaderFindings | None) -> Reason:
    sentences = {}
    if findings is not None:
        sentences = dict(zip(findings.warning_codes, findings.warnings, strict=True))
    text = sentences.get(code.removeprefix(_HEADER_PREFIX), "").partition(":")[2].strip()
    return Reason(code=code, explanation=text, summary=text)


def bounds_text(row: QcRow) -> str:
    """Return the passing bounds in words.

    >>> bounds_text(QcRow(name="snr", value=9.0, passing=(8.0, None)))
    'at least 8'
    """
    low, high = row.passing
    if isinstance(row.value, bool) and (low, high) != (None, None):
        return "yes" if (high is None or high >= 1) and low is not None else "no"
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def gauge_of(row: QcRow, cohort: Distribution | None = None) -> Gauge | None:
    """Return where a number stands among its bounds and its cohort; None where there is no number, or neither."""
    bounds = [float(bound) for bound in (*row.passing, *row.tolerated) if bound is not None]
    landmarks = cohort.landmarks if cohort else ()
    known = [*bounds, *landmarks]
    if not known or row.value is None or isinstance(row.value, bool | str):
        return None
    low, high = min(*known, row.value), max(*known, row.value)
    pad = 0.2 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def band(bounds: OpenBounds) -> tuple[float, float]:
        first, last = low if bounds[0] is None else bounds[0], high if bounds[1] is None else bounds[1]
        return 100.0 * (first - low) / (high - low), 100.0 * max(0.0, last - first) / (high - low)

    def place(value: float) -> float:
        return 100.0 * (value - low) / (high - low)

    return Gauge(
        marker=place(row.value),
        tolerated=band(row.tolerated),
        passing=band(row.passing),
        judged=bool(bounds),
        cohort=tuple(map(place, landmarks)),
    )
