"""``qc_decisions.tsv``: what a person decided about scans after looking at their pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from brainstage.pipeline.errors import ManifestError
from brainstage.pipeline.records import Completed, Review, ReviewDecision, SubjectOutcome, T1wScan
from brainstage.pipeline.tables import Table, TableRow, faults_error, is_absent, read_tsv

REVIEW_COLUMNS: Final = (
    "participant_id", "session_id", "run_id", "t1w_path", "decision", "note", "sha256", "preprocessing_id", "reviewer",
    "decided_at",
)  # fmt: skip
_REQUIRED: Final = ("t1w_path", "decision")
_MAY_LACK: Final = REVIEW_COLUMNS[REVIEW_COLUMNS.index("note") :]
_GUARDED: Final = re.compile(r"\A'(?=[=+\-@'\"])")
"""The page writes ``'`` before what a spreadsheet takes for a formula or a quote."""
_MOST_NAMED: Final = 10


def read_decisions(path: Path) -> dict[str, Review]:
    """Read the decisions that the cohort page exports, or that were written by hand.

    Returns
    -------
    dict
        ``t1w_path`` to the review. Rows without a decision are passed over.

    Raises
    ------
    InputMissingError
        No such file.
    ManifestError
        With every fault found, each with its line.
    """
    table = read_tsv(path, "decisions", REVIEW_COLUMNS, may_lack=_MAY_LACK)
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        raise ManifestError(
            f"decisions {path.name} has no column {', '.join(missing)}; it needs {', '.join(_REQUIRED)}, and may have "
            f"{', '.join(name for name in REVIEW_COLUMNS if name not in _REQUIRED)}, with tabs between them"
        )
    return _checked(table)


def _checked(table: Table) -> dict[str, Review]:
    found: dict[str, Review] = {}
    faults = list(table.faults)
    for row in table.rows:
        number, (where, word) = row.line, (row.cells[column] for column in _REQUIRED)
        if is_absent(word):
            continue
        if word not in list(ReviewDecision):
            faults.append(f"line {number}: decision {word!r} is not {', '.join(ReviewDecision)} or empty")
        elif not where:
            faults.append(f"line {number}: t1w_path is empty")
        elif where in found:
            faults.append(f"line {number}: {where} stands there already")
        else:
            try:
                found[where] = _review(row, ReviewDecision(word))
            except ValueError as error:
                faults.append(f"line {number}: {error}")
    if faults:
        raise faults_error("decisions", table.name, faults)
    return found


def _review(row: TableRow, decision: ReviewDecision) -> Review:
    known = {**dict.fromkeys(REVIEW_COLUMNS, ""), **row.cells}
    sha256, preprocessing_id, decided_at = (
        "" if is_absent(known[name]) else known[name] for name in ("sha256", "preprocessing_id", "decided_at")
    )
    sha256 = sha256.lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(
            f"sha256 {sha256!r} is not the 64 digits of 0-9 and a-f that data_manifest.csv has; leave it "
            "empty to decide about whatever file lies at t1w_path"
        )
    return Review(
        decision=decision,
        note=_GUARDED.sub("", known["note"]),
        sha256=sha256,
        preprocessing_id=preprocessing_id,
        reviewer=_GUARDED.sub("", known["reviewer"]),  # NA may be somebody's initials
        decided_at=_in_utc(decided_at),
    )


def _in_utc(text: str) -> str:
    """Return a date and time in UTC, to the second; without a zone it is taken for UTC.

    >>> _in_utc("2025-01-31"), _in_utc("2025-01-31T13:00:00+01:00"), _in_utc("")
    ('2025-01-31T00:00:00Z', '2025-01-31T12:00:00Z', '')
    """
    if not text:
        return ""
    try:
        read = datetime.fromisoformat(text)
        moment = read.astimezone(UTC) if read.tzinfo else read
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"decided_at {text!r} is no date and time such as 2025-01-31T12:00:00Z; write it so, or leave it empty"
        ) from error
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def reviewed(scans: Sequence[T1wScan], decisions: Mapping[str, Review]) -> tuple[T1wScan, ...]:
    """Return the scans, each with what was decided about it."""
    return tuple(replace(scan, review=decisions.get(scan.t1w_path)) for scan in scans)


def review_remarks(outcomes: Iterable[SubjectOutcome]) -> list[str]:
    """Return what is to be said of the decisions about some scans.

    Parameters
    ----------
    outcomes : iterable
        A failed scan has no picture to decide about.
    """
    decided = [
        (outcome.scan.key, outcome.scan.review, outcome.review_objection)
        for outcome in outcomes
        if isinstance(outcome, Completed)
    ]
    return remarks_of((key, review, objection) for key, review, objection in decided if review)


def remarks_of(decided: Iterable[tuple[str, Review, str | None]]) -> list[str]:
    """Return which decisions are not applied, and which would be applied to any file.

    Parameters
    ----------
    decided : iterable of tuple
        Name of the scan, the decision about it, and why that is not about its picture; None where it is.
    """
    known = list(decided)
    outdated = [f"{key} ({objection})" for key, _, objection in known if objection]
    unbound = [key for key, review, objection in known if not review.sha256 and not objection]
    remarks = []
    if outdated:
        remarks.append(
            f"{len(outdated)} decision(s) are about another picture of the scan than there is now, and are not "
            f"applied: {_named(outdated)}; look at the scans again"
        )
    if unbound:
        remarks.append(
            f"{len(unbound)} decision(s) name no sha256, so they are bound to t1w_path alone and stand whatever file "
            f"lies there: {_named(unbound)}"
        )
    return remarks


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
