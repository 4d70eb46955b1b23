"""Scans of a finished run as their reports show them, for whoever writes a report again without running the scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.files import read_json_or_empty
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.lease import held
from brainstage.pipeline.records import (
    Completed,
    Covariates,
    Provenance,
    Review,
    SubjectOutcome,
    T1wScan,
)
from brainstage.pipeline.runner import provenance_of
from brainstage.pipeline.stage import read_marker
from brainstage.workflows.normed_volumes import kept_norms
from brainstage.workflows.participant import lease_path, read_outcome
from brainstage.workflows.progress import STAGE_ORDER
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report


def read_reported(
    entities: BidsEntities, t1w_path: str, context: RunContext
) -> tuple[T1wScan, RunContext] | None:
    """Return a scan as its last report showed it, and the run that the report was about; None without such a report.

    Parameters
    ----------
    entities : BidsEntities
    t1w_path : str
        Relative to the BIDS directory.
    context : RunContext
        Where to look; configuration, model and command line are replaced by those of the report, norms by those of the
        tables.
    """
    files = ScanFiles(out_dir=context.out_dir, entities=entities)
    known = read_json_or_empty(files.state / "report.json")
    try:
        shown = known["shown"]
        review = shown["review"]
        scan = T1wScan(
            entities=entities,
            path=Path(t1w_path),
            t1w_path=t1w_path,
            covariates=as_record(shown["covariates"], Covariates),
            label=shown["label"],
            review=as_record(review, Review) if review else None,
        )
        config = Config.model_validate(shown["config"])
        reported = replace(
            context,
            config=config,
            model_id=shown["model"],
            norms=kept_norms(context.out_dir),
            command=str(known["command"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return scan, reported


def reported_norms_id(scan: T1wScan, context: RunContext) -> str | None:
    """Return the norms that the last report of a scan compares it with; None where it does so with none."""
    shown = read_json_or_empty(context.files(scan).state / "report.json").get("shown")
    found = shown.get("norms") if isinstance(shown, dict) else None
    return found if isinstance(found, str) else None


def reported_outcome(scan: T1wScan, context: RunContext) -> Completed | None:
    """Return what a report is about, with how it came about; None for a scan that failed.

    Parameters
    ----------
    scan : T1wScan
    context : RunContext
        Both from :func:`read_reported`.
    """
    outcome = read_outcome(scan, context)
    if not isinstance(outcome, Completed):
        return None
    return replace(outcome, provenance=_provenance(context.files(scan)))


def renew_reports(outcomes: Iterable[SubjectOutcome], context: RunContext) -> None:
    """Write the reports of completed scans again where anything that they show has changed.

    A scan of an earlier run keeps the configuration, the model and the command of then. One that another run is at is
    left to that run.

    Parameters
    ----------
    outcomes : iterable
        Those of this run know how they came about.
    context : RunContext
        Of this run.
    """
    for outcome in outcomes:
        if not isinstance(outcome, Completed):
            continue
        with held(lease_path(context.files(outcome.scan))) as lease:
            if lease is not None:
                _renew(outcome, context)


def _renew(outcome: Completed, context: RunContext) -> None:
    if outcome.provenance:
        write_report(outcome, context, changed=False)
        return
    known = read_reported(outcome.scan.entities, outcome.scan.t1w_path, context)
    earlier = reported_outcome(*known) if known else None
    if known is not None and earlier is not None:
        write_report(earlier, known[1], changed=False)


def _provenance(files: ScanFiles) -> tuple[Provenance, ...]:
    """Return how the stages of a finished scan came about, from their markers."""
    markers = [read_marker(files, stage) for stage in STAGE_ORDER]
    return tuple(provenance_of(marker, reused=True) for marker in markers if marker)
