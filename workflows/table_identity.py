"""What all tables over scans share: the columns that say which scan a row is about, and one word."""

from __future__ import annotations

from typing import Final

from brainstage.pipeline.entities import prefixed_label
from brainstage.pipeline.records import SubjectOutcome

IDENTITY_COLUMNS: Final = ("participant_id", "session_id", "run_id", "t1w_path")
NOT_ASSESSED: Final = "not_assessed"
"""``qc_status`` of a scan that did not get as far as quality control."""


def identity_of(outcome: SubjectOutcome) -> dict[str, object]:
    """Return the cells that name a scan."""
    entities = outcome.scan.entities
    return {
        "participant_id": prefixed_label(entities.subject, "sub"),
        "session_id": prefixed_label(entities.session, "ses"),
        "run_id": prefixed_label(entities.run, "run"),
        "t1w_path": outcome.scan.t1w_path,
    }
