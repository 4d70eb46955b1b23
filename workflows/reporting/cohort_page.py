"""``cohort.html``: one self-contained page over all scans of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from markupsafe import Markup

from brainstage.pipeline.entities import prefixed_label
from brainstage.pipeline.records import (
    Completed,
    Failure,
    NumberPrediction,
    Prediction,
    PredictionStatus,
    QcStatus,
    Review,
    SubjectOutcome,
)
from brainstage.workflows.predicted_numbers import known_number
from brainstage.workflows.reporting.number_verdict import NumberShown, number_shown
from brainstage.workflows.reporting.pages import RunInfo, page_environment, png_size, script_hash
from brainstage.workflows.reporting.qc_table import measure_label
from brainstage.workflows.reporting.verdict import (
    SET_VERDICTS,
    is_decided,
    set_verdict,
    shown_number,
    shown_prediction,
)

THUMBNAIL_WIDTH: Final = 240
_STRIP_WIDTH: Final = 320
VOLUME_MEASURES: Final = (
    "hippocampus_left_pct_icv",
    "hippocampus_right_pct_icv",
    "hippocampus_asymmetry_pct",
    "ventricle_left_pct_icv",
    "ventricle_right_pct_icv",
)
"""Of the volumes, what is shown beside the measures of quality control; ``volumes.csv`` has them all."""
_STATUS_RANK: Final = {"fail": 0, "warn": 1, "pass": 2}
"""Sorting by verdict shows first what needs a look."""


@dataclass(frozen=True, kw_only=True)
class CohortScan:
    """One scan of the page.

    Attributes
    ----------
    outcome : Completed or Failure
    prediction_status : PredictionStatus
        Nothing of a prediction is shown unless it is reported or flagged.
    prediction_reasons : tuple of str
        Codes of why a prediction is flagged, and of what should be known about it.
    report : str
        Name of the scan's report relative to the page; empty for none.
    thumbnail : bytes or None
        Small PNG.
    """

    outcome: SubjectOutcome
    prediction_status: PredictionStatus
    prediction_reasons: tuple[str, ...] = ()
    report: str = ""
    thumbnail: bytes | None = None

    @property
    def thumbnail_size(self) -> tuple[int, int]:
        """Width and height on the page, in pixels: a row keeps its height while its picture is still unpacked."""
        width, height = png_size(self.thumbnail or b"")
        return THUMBNAIL_WIDTH, round(THUMBNAIL_WIDTH * height / width) if width else 0

    @property
    def failure(self) -> Failure | None:
        """The failure, if it is one."""
        return self.outcome if isinstance(self.outcome, Failure) else None

    @cached_property
    def prediction(self) -> Prediction | None:
        """What may be seen of the prediction of a class."""
        return shown_prediction(self.outcome, self.prediction_status)

    @cached_property
    def number(self) -> NumberPrediction | None:
        """What may be seen of the prediction of a number."""
        return shown_number(self.outcome, self.prediction_status)

    @cached_property
    def number_shown(self) -> NumberShown | None:
        """The same as text."""
        return number_shown(self.number, self.outcome.scan) if self.number else None

    @property
    def gap(self) -> float | None:
        """Predicted minus known number."""
        return self.number.gap(known_number(self.outcome.scan, self.number.column)) if self.number else None

    @property
    def qc_status(self) -> QcStatus | None:
        """The verdict of quality control; None for a failure."""
        return None if isinstance(self.outcome, Failure) else self.outcome.verdict.status

    @property
    def qc_reasons(self) -> tuple[str, ...]:
        """The reason codes."""
        return () if isinstance(self.outcome, Failure) else self.outcome.verdict.reasons

    @property
    def verdict(self) -> str:
        """What the prediction leaves possible; empty where none is shown."""
        return set_verdict(self.prediction) if self.prediction else ""

    @property
    def shown_reasons(self) -> tuple[str, ...]:
        """Codes about the prediction, where it may be seen."""
        return self.prediction_reasons if self.prediction or self.number else ()

    @property
    def decided(self) -> bool:
        """Whether the prediction leaves one class alone."""
        return self.prediction is not None and is_decided(self.prediction)

    @property
    def qc_rank(self) -> int:
        """Failed scans first, then by verdict."""
        return -1 if self.qc_status is None else _STATUS_RANK[self.qc_status.value]

    @property
    def shows_sha256(self) -> str:
        """Hash of the file that the picture shows; empty without a picture, for there is nothing to decide about."""
        return "" if isinstance(self.outcome, Failure) else self.outcome.source_sha256

    @property
    def review(self) -> Review | None:
        """What a person decided about this picture."""
        return None if isinstance(self.outcome, Failure) else self.outcome.review

    @property
    def given(self) -> dict[str, str] | None:
        """Every field of the decision that the run was given, be it about this picture or another."""
        found = self.outcome.scan.review
        return {name: str(value) for name, value in vars(found).items()} if found else None

    @cached_property
    def labels(self) -> tuple[str, str, str]:
        """Participant, session and run as BIDS tables write them."""
        entities = self.outcome.scan.entities
        return (
            prefixed_label(entities.subject, "sub"),
            prefixed_label(entities.session, "ses"),
            prefixed_label(entities.run, "run"),
        )

    @cached_property
    def measures(self) -> dict[str, float | bool | str | None]:
        """Every measure of the scan by name; no volumes where quality control failed."""
        if isinstance(self.outcome, Failure):
            return {}
        volumes = None if self.qc_status is QcStatus.FAIL else self.outcome.volumes
        sizes = volumes.measures if volumes else {}
        return {
            **self.outcome.qc.measures,
            **{name: sizes[name] for name in VOLUME_MEASURES if name in sizes},
        }

    def measure(self, name: str) -> float | None:
        """Return a numeric measure; None where there is none."""
        value = self.measures.get(name)
        return None if value is None or isinstance(value, bool | str) else float(value)

    def values(self, measures: Sequence[tuple[str, str]]) -> str:
        """Return measures as short numbers with spaces between them; ``-`` where there is none."""
        found = [self.measure(name) for name, _ in measures]
        return " ".join("-" if value is None else f"{value:.5g}" for value in found)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The distribution of one measure: a tick per scan on a line from the smallest to the largest value.

    Attributes
    ----------
    lowest, highest : str
        Keys of the scans at the ends.
    paths : mapping
        Verdict to SVG path data, in a box of 320 x 16.
    """

    label: str
    low: float
    median: float
    high: float
    lowest: str
    highest: str
    paths: Mapping[str, str]


def render_cohort(
    scans: Sequence[CohortScan],
    run: RunInfo,
    *,
    directory: str,
    title: str = "T1w cohort",
    explanations: Mapping[str, str] | None = None,
) -> str:
    """Return the page over all scans; readable without its script, which sorts and filters.

    Parameters
    ----------
    scans : sequence of CohortScan
        In the order in which they are shown.
    run : RunInfo
    directory : str
        A name of the output directory that no other has: the browser keeps decisions under it.
    title : str
        Such as the dataset's name.
    explanations : mapping, optional
        Reason code to sentence, shown below the table for the codes that occur.
    """
    environment = page_environment()
    # The script is a constant of this package; escaping would break it, and its hash is all the policy allows.
    script = Markup(environment.get_template("cohort.js.j2").render())  # noqa: S704
    return environment.get_template("cohort.html.j2").render(
        scans=scans,
        failed=[scan for scan in scans if scan.failure],
        run=run,
        title=title,
        counts=_counts(scans),
        strips=strips_of(scans),
        measures=_numeric_measures(scans),
        choices=_choices(scans),
        directory=directory,
        codes=[
            (name, _explained([code for scan in scans for code in getattr(scan, which)], explanations or {}))
            for name, which in (("quality control", "qc_reasons"), ("predictions", "shown_reasons"))
        ],
        has=_columns(scans),
        number=next((scan.number_shown for scan in scans if scan.number_shown), None),
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script_hash(str(script))}; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


def _explained(codes: Sequence[str], explanations: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """Return each code with how often it occurs and its sentence, the most frequent first."""
    return [(code, number, explanations.get(code, "")) for code, number in Counter(codes).most_common()]


def _numeric_measures(scans: Sequence[CohortScan]) -> list[tuple[str, str]]:
    """Return name and label of every measure that is a number for any scan."""
    names = dict.fromkeys(name for scan in scans for name in scan.measures)
    return [
        (name, measure_label(name)) for name in names if any(scan.measure(name) is not None for scan in scans)
    ]


def _choices(scans: Sequence[CohortScan]) -> list[tuple[str, str, list[str]]]:
    """Return what a filter can choose from, where there is a choice: field, label and values."""
    sites = {scan.outcome.scan.covariates.site or "" for scan in scans}
    classes = {scan.prediction.predicted_label for scan in scans if scan.prediction}
    verdicts = {scan.verdict for scan in scans}
    found: list[tuple[str, str, list[str]]] = [
        ("site", "Site", sorted(sites - {""})),
        ("verdict", "Prediction set", [name for name in SET_VERDICTS if name in verdicts]),
        ("class", "Predicted class", sorted(classes)),
    ]
    return [(field, name, values) for field, name, values in found if len(values) > 1]


def _counts(scans: Sequence[CohortScan]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return titled counts, in a fixed order, without what does not occur."""
    qc = Counter(scan.qc_status.value if scan.qc_status else "not assessed" for scan in scans)
    status = Counter(scan.prediction_status.value for scan in scans)
    verdicts = Counter(scan.verdict for scan in scans)
    classes = Counter(scan.prediction.predicted_label for scan in scans if scan.prediction)
    tiers = Counter(scan.prediction.tier for scan in scans if scan.prediction)
    people = len({scan.outcome.scan.entities.subject for scan in scans})
    groups = [
        ("Scans", [("scans", len(scans)), ("participants", people)]),
        ("Quality control", [(name, qc[name]) for name in ("pass", "warn", "fail", "not assessed")]),
        ("Predictions", [(name.value, status[name.value]) for name in PredictionStatus]),
        ("Prediction sets", [(name, verdicts[name]) for name in SET_VERDICTS]),
        ("Predicted class", sorted(classes.items())),
        ("Confidence tier", [(name, tiers[name]) for name in ("high", "review", "low")]),
    ]
    kept = [(title, [(name, number) for name, number in pairs if number]) for title, pairs in groups]
    return [(title, pairs) for title, pairs in kept if pairs]


def _columns(scans: Sequence[CohortScan]) -> dict[str, bool]:
    """Tell which optional columns hold anything."""
    return {
        "session": any(scan.labels[1] for scan in scans),
        "run": any(scan.labels[2] for scan in scans),
        "site": any(scan.outcome.scan.covariates.site for scan in scans),
        "thumbnail": any(scan.thumbnail for scan in scans),
        "prediction": any(scan.prediction for scan in scans),
        "gap": any(scan.gap is not None for scan in scans),
    }


def strips_of(scans: Sequence[CohortScan]) -> list[Strip]:
    """Return the distribution of every numeric measure that differs between scans."""
    completed = [scan for scan in scans if isinstance(scan.outcome, Completed)]
    names = dict.fromkeys(name for scan in completed for name in scan.measures)
    strips = []
    for name in names:
        known = [(scan, value) for scan in completed if (value := scan.measure(name)) is not None]
        values = np.array([value for _, value in known])
        if len(values) < 2 or values.min() == values.max():
            continue
        low, high = float(values.min()), float(values.max())
        paths: dict[str, str] = {}
        for scan, value in known:
            place = 2 + (_STRIP_WIDTH - 4) * (value - low) / (high - low)
            verdict = scan.qc_status.value if scan.qc_status else "none"
            paths[verdict] = f"{paths.get(verdict, '')}M{place:.1f} 2v12"
        strips.append(
            Strip(
                label=measure_label(name),
                low=low,
                median=float(np.median(values)),
                high=high,
                lowest=known[int(values.argmin())][0].outcome.scan.key,
                highest=known[int(values.argmax())][0].outcome.scan.key,
                paths=paths,
            )
        )
    return strips
