"""``qc_decisions.tsv``: what a person decided about scans after looking at them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from brainstage.pipeline.errors import ManifestError
from brainstage.pipeline.manifest import faults_error, read_table_text
from brainstage.pipeline.records import Review, ReviewDecision, T1wScan

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
    text = read_table_text(path, "decisions")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
        if missing:
            raise ManifestError(
                f"decisions {path.name} has no column {', '.join(missing)}; it needs {', '.join(REVIEW_COLUMNS)}, "
                "with tabs between them"
            )
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ManifestError(f"decisions {path.name} cannot be read as a table: {error}") from error
    return _checked(rows, path.name)


def _checked(rows: Sequence[tuple[int, Mapping[str, str | None]]], name: str) -> dict[str, Review]:
    found: dict[str, Review] = {}
    faults = []
    for number, row in rows:
        where, word = (str(row.get(column) or "").strip() for column in _REQUIRED)
        if word in ("", "n/a"):
            continue
        if word not in list(ReviewDecision):
            faults.append(f"line {number}: decision {word!r} is not {', '.join(ReviewDecision)} or empty")
        elif not where:
            faults.append(f"line {number}: t1w_path is empty")
        elif where in found:
            faults.append(f"line {number}: {where} stands there already")
        else:
            note = (row.get("note") or "").strip()
            found[where] = Review(decision=ReviewDecision(word), note=note.removeprefix("'"))
    if faults:
        raise faults_error("decisions", name, faults)
    return found


def reviewed(scans: Sequence[T1wScan], decisions: Mapping[str, Review]) -> tuple[T1wScan, ...]:
    """Return the scans, each with what was decided about it."""
    return tuple(replace(scan, review=decisions.get(scan.t1w_path)) for scan in scans)
