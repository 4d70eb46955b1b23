"""``qc_decisions.tsv``: what a person decided about scans after looking at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from brainstage.pipeline.errors import ManifestError
from brainstage.pipeline.records import Review, ReviewDecision, T1wScan
from brainstage.pipeline.tables import Table, faults_error, is_absent, read_tsv

REVIEW_COLUMNS: Final = ("participant_id", "session_id", "run_id", "t1w_path", "decision", "note")
_REQUIRED: Final = ("t1w_path", "decision")


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
    table = read_tsv(path, "decisions", REVIEW_COLUMNS, may_lack=("note",))
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        raise ManifestError(
            f"decisions {path.name} has no column {', '.join(missing)}; it needs {', '.join(REVIEW_COLUMNS)}, "
            "with tabs between them"
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
            note = row.cells.get("note", "")
            found[where] = Review(decision=ReviewDecision(word), note=note.removeprefix("'"))
    if faults:
        raise faults_error("decisions", table.name, faults)
    return found


def reviewed(scans: Sequence[T1wScan], decisions: Mapping[str, Review]) -> tuple[T1wScan, ...]:
    """Return the scans, each with what was decided about it."""
    return tuple(replace(scan, review=decisions.get(scan.t1w_path)) for scan in scans)
