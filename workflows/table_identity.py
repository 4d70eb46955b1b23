"""The columns of the tables that say which scan a row is about."""

from __future__ import annotations

from typing import Final

from brainstage.pipeline.entities import prefixed_label
from brainstage.pipeline.records import SubjectOutcome

IDENTITY_COLUMNS: Final = ("participant_id", "session_id", "run_id", "t1w_path")


def identity_of(outcome: SubjectOutcome) -> dict[str, object]:
    """Return the cells that name a scan."""
    entities = outcome.scan.entities
    return {
        "participant_id": prefixed_label(entities.subject, "sub"),
        "session_id": prefixed_label(entities.session, "ses"),
        "run_id": prefixed_label(entities.run, "run"),
        "t1w_path": outcome.scan.t1w_path,
    }
