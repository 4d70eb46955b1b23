"""The visits of a participant in the order of time: what changes, and what cannot both be right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from brainstage.models.retest import VolumeChange, change_of
from brainstage.pipeline.entities import natural_order, prefixed_label
from brainstage.pipeline.manifest import csv_text
from brainstage.pipeline.records import (
    VOLUMES,
    Completed,
    Failure,
    NumberPrediction,
    Prediction,
    QcStatus,
    ScanPrediction,
    SubjectOutcome,
)
from brainstage.workflows.gate import decide
from brainstage.workflows.learning.labelled_cohort import CLINICAL_ORDER
from brainstage.workflows.measured_volumes import shown_volumes
from brainstage.workflows.predicted_numbers import number_columns, number_record
from brainstage.workflows.visit_times import time_between

IMPLAUSIBLE_REVERSAL: Final = "implausible_reversal"
SURE_TIERS: Final = frozenset({"high", "review"})
"""A step back between two visits counts only where the model is this sure of both."""
CHANGE_COLUMNS: Final = (
    "change_pct", "change_pct_per_year", "change_pct_per_year_low", "change_pct_per_year_high", "change",
)  # fmt: skip
"""What is said of the change of a volume."""
_QC_RANK: Final = {QcStatus.PASS: 0, QcStatus.WARN: 1, QcStatus.FAIL: 2}
_FAILED_RANK: Final = 3

Visits = dict[str, list[SubjectOutcome]]
"""Participant's label to one outcome for each session, in the order of time."""


def visits_of(outcomes: Sequence[SubjectOutcome]) -> Visits:
    """Return the best scan of every session, participants sorted, their sessions in the order of time."""
    visits: Visits = defaultdict(list)
    for scans in _by_session(outcomes).values():
        best = best_scan(scans)
        visits[best.scan.entities.subject].append(best)
    return {subject: in_time_order(visits[subject]) for subject in sorted(visits)}


def best_scan(outcomes: Iterable[SubjectOutcome]) -> SubjectOutcome:
    """Return the scan that stands for its session.

    The better verdict of quality control comes first and a failed scan last; then the higher contrast to noise, where
    it was measured; then the order of the tables.
    """
    return min(outcomes, key=_rank)


def chosen_of_sessions(outcomes: Sequence[SubjectOutcome]) -> frozenset[str]:
    """Return the keys of the scans that stand for a session of several."""
    several = (scans for scans in _by_session(outcomes).values() if len(scans) > 1)
    return frozenset(best_scan(scans).scan.key for scans in several)


def in_time_order(visits: Iterable[SubjectOutcome]) -> list[SubjectOutcome]:
    """Return the visits of one participant by age where it is known for all of them, else by the session's label."""
    known = list(visits)
    ages = [visit.scan.covariates.age for visit in known]
    # An age that stands for the whole person is the same at every visit: the label then decides.
    by_age = all(age is not None for age in ages)
    return sorted(
        known,
        key=lambda visit: (
            visit.scan.covariates.age if by_age else 0.0,
            natural_order(visit.scan.entities.session or ""),
            visit.scan.entities.sort_key,
        ),
    )


def trajectories_csv(
    outcomes: Sequence[SubjectOutcome], classes: Sequence[str], number: str | None = None
) -> str | None:
    """Return ``trajectories.csv``: a row for every session; None where nobody came twice.

    Parameters
    ----------
    outcomes : sequence
    classes : sequence of str
        The model's, in its order; empty without a model.
    number : str, optional
        The column that a model of a number predicts.
    """
    visits = visits_of(outcomes)
    if all(len(of_person) < 2 for of_person in visits.values()):
        return None
    rows = [row for of_person in visits.values() for row in _rows(of_person, classes)]
    return csv_text(trajectory_columns(classes, number=number), rows)


def trajectory_columns(
    classes: Sequence[str], volumes: Sequence[str] = VOLUMES, *, number: str | None = None
) -> tuple[str, ...]:
    """Return the columns of ``trajectories.csv``.

    Parameters
    ----------
    classes : sequence of str
        The model's, in its order; empty without a model.
    volumes : sequence of str
    number : str, optional
        The column that a model of a number predicts.
    """
    of_classes = (
        "predicted_label",
        *(f"p_{name}" for name in classes),
        "confidence",
        *(f"change_of_p_{name}" for name in classes),
        "flag",
    )
    said = of_classes if number is None else (*number_columns(number), f"change_of_predicted_{number}")
    return (
        "participant_id",
        "session_id",
        "age",
        "t1w_path",
        "prediction_status",
        *said,
        "years_since_previous",
        "time_from",
        *(f"{name}_{column}" for name in volumes for column in CHANGE_COLUMNS),
    )


def is_reversal(earlier: Prediction, later: Prediction, classes: Sequence[str]) -> bool:
    """Tell whether a later visit lies back on the way from CN to AD, and neither prediction leaves room for it.

    Both must be of a sure tier, and their prediction sets must have no class in common; an empty set says of no class
    that it is this one, and takes part in no reversal. Without clinical classes in clinical order there is no back.
    """
    if list(classes) != [name for name in CLINICAL_ORDER if name in classes]:
        return False
    steps = classes.index(later.predicted_label) - classes.index(earlier.predicted_label)
    sets = set(earlier.prediction_set), set(later.prediction_set)
    return steps < 0 and {earlier.tier, later.tier} <= SURE_TIERS and all(sets) and not sets[0] & sets[1]


def _rows(visits: Sequence[SubjectOutcome], classes: Sequence[str]) -> list[dict[str, object]]:
    rows = []
    previous: Prediction | None = None
    last_sure: Prediction | None = None
    last_number: float | None = None
    for earlier, visit in zip([None, *visits], visits, strict=False):
        row = _identity(visit)
        if earlier is not None:
            time = time_between(earlier.scan, visit.scan)
            row |= {"years_since_previous": time.years.best if time.years else None, "time_from": time.source}
        prediction = _shown(visit)
        if isinstance(prediction, NumberPrediction):
            row |= number_record(prediction, visit.scan)
            if last_number is not None:
                row[f"change_of_predicted_{prediction.column}"] = prediction.value - last_number
            last_number = prediction.value
        shown = prediction if isinstance(prediction, Prediction) else None
        if shown is not None:
            row |= {"predicted_label": shown.predicted_label, "confidence": shown.confidence}
            row |= {f"p_{name}": value for name, value in shown.probabilities.items()}
            if previous is not None:
                row |= {
                    f"change_of_p_{name}": value - previous.probabilities[name]
                    for name, value in shown.probabilities.items()
                }
            if last_sure is not None and is_reversal(last_sure, shown, classes):
                row["flag"] = IMPLAUSIBLE_REVERSAL
            previous = shown
            last_sure = shown if shown.tier in SURE_TIERS else last_sure
        rows.append(row)
    for row, changes in zip(rows, volume_changes(visits), strict=True):
        for name, change in changes.items():
            found = (change.percent, change.per_year, change.low, change.high, str(change.verdict))
            row |= {f"{name}_{column}": value for column, value in zip(CHANGE_COLUMNS, found, strict=True)}
    return rows


def volume_changes(visits: Sequence[SubjectOutcome]) -> list[dict[str, VolumeChange]]:
    """Return, for each visit of one participant, how much each volume has changed since the last visit that has it.

    Visits that were preprocessed otherwise are not compared: the change would hold what the methods differ in.

    Parameters
    ----------
    visits : sequence
        In the order of time.
    """
    found: list[dict[str, VolumeChange]] = []
    last: dict[tuple[str, str], tuple[SubjectOutcome, float]] = {}
    for visit in visits:
        changes = {}
        for name, ml in shown_volumes(visit).volumes_ml.items():
            known = last.get((name, visit.preprocessing_id))
            if known is not None:
                years = time_between(known[0].scan, visit.scan).years
                changes[name] = change_of(name, known[1], ml, years)
            last[name, visit.preprocessing_id] = (visit, ml)
        found.append(changes)
    return found


def _identity(visit: SubjectOutcome) -> dict[str, object]:
    entities = visit.scan.entities
    return {
        "participant_id": prefixed_label(entities.subject, "sub"),
        "session_id": prefixed_label(entities.session, "ses"),
        "age": visit.scan.covariates.age,
        "t1w_path": visit.scan.t1w_path,
        "prediction_status": str(decide(visit).status),
    }


def _shown(visit: SubjectOutcome) -> ScanPrediction | None:
    """Return the prediction where it may be seen: not where it is withheld."""
    return visit.prediction if isinstance(visit, Completed) and decide(visit).shows_probabilities else None


def _by_session(outcomes: Sequence[SubjectOutcome]) -> dict[tuple[str, str], list[SubjectOutcome]]:
    sessions: dict[tuple[str, str], list[SubjectOutcome]] = defaultdict(list)
    for outcome in outcomes:
        entities = outcome.scan.entities
        sessions[entities.subject, entities.session or ""].append(outcome)
    return sessions


def _rank(outcome: SubjectOutcome) -> tuple[int, float, tuple[str, ...]]:
    if isinstance(outcome, Failure):
        return _FAILED_RANK, 0.0, outcome.scan.entities.sort_key
    cnr = outcome.qc.measures.get("cnr")
    best_first = -float(cnr) if isinstance(cnr, int | float) else float("inf")
    return _QC_RANK[outcome.verdict.status], best_first, outcome.scan.entities.sort_key
