"""From what became of a scan to its report on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, Final

import numpy as np

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import read_json_or_empty, sha256_of_json, write_json, write_text
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.nifti import read_mask, read_volume
from brainstage.pipeline.records import (
    Completed,
    Failure,
    HeaderFindings,
    NumberPrediction,
    PredictionStatus,
    QcStatus,
    SubjectOutcome,
)
from brainstage.workflows.evidence import MAPS, Evidence, read_evidence, remove_evidence
from brainstage.workflows.gate import FLAG_EXPLANATIONS, REVIEW_EXPLANATIONS, decide
from brainstage.workflows.normed_volumes import normed_volumes
from brainstage.workflows.predicted_numbers import known_number
from brainstage.workflows.reporting.distribution import read_distributions
from brainstage.workflows.reporting.methods import method_steps
from brainstage.workflows.reporting.qc_table import Reason, qc_reasons_of, qc_rows_of
from brainstage.workflows.reporting.report import ScanReport, render_scan_report
from brainstage.workflows.reporting.verdict import shown_prediction
from brainstage.workflows.reporting.viewer import evidence_volume
from brainstage.workflows.run_context import RunContext, run_info, tool_versions
from brainstage.workflows.stages import read_figures, read_previews

REPORT_VERSION: Final = "6"
REMEDIES: Final = {
    "ingest": "Look at the file with any viewer; copy, download or convert it again.",
    "brain_extraction": "Look at the scan: is it a T1w image of a whole head, the right way up? A stripped scan needs "
    "a background of one value.",
    "registration": "Look at the brain mask and the orientation of the scan.",
}


def write_report(outcome: SubjectOutcome, context: RunContext, *, changed: bool) -> None:
    """Write a scan's report, unless nothing that it shows has changed since the last one."""
    files = context.files(outcome.scan)
    decision = decide(outcome)
    if decision.status in (PredictionStatus.WITHHELD, PredictionStatus.FAILED):
        remove_evidence(files)
    shown: dict[str, Any] = {
        "version": REPORT_VERSION,
        "status": decision.status,
        "codes": decision.codes,
        "model": context.model_id,
        "norms": context.norms_id,
        "label": outcome.scan.label,
        "covariates": {name: vars(outcome.scan.covariates)[name] for name in ("age", "sex", "site")},
        "review": vars(outcome.review) if isinstance(outcome, Completed) and outcome.review else None,
        "config": context.config_content,
        "failure": outcome.message if isinstance(outcome, Failure) else None,
        "volumes": asdict(outcome.volumes) if isinstance(outcome, Completed) and outcome.volumes else None,
        "evidence": [one.key for one in _evidence(outcome, files)],
        "cohort": read_distributions(context.out_dir).key,
    }
    if column := _number_of(outcome):
        shown |= {"known_number": known_number(outcome.scan, column)}
    key = sha256_of_json(shown)
    marker = files.state / "report.json"
    if not changed and files.report.is_file() and read_json_or_empty(marker).get("key") == key:
        return
    write_text(files.report, render_scan_report(_scan_report(outcome, context, files)))
    write_json(marker, {"key": key, "shown": shown, "command": context.command})


def _scan_report(outcome: SubjectOutcome, context: RunContext, files: ScanFiles) -> ScanReport:
    decision = decide(outcome)
    findings = _findings(files)
    completed = isinstance(outcome, Completed)
    config = context.config
    evidence = _evidence(outcome, files)
    return ScanReport(
        outcome=outcome,
        prediction_status=decision.status,
        run=run_info(context),
        figures=read_figures(files) if completed else {},
        volumes=_volumes(files, evidence) if completed else {},
        keep_face=config.reports.keep_face,
        findings=findings,
        qc_rows=qc_rows_of(outcome.qc, config.quality) if isinstance(outcome, Completed) else (),
        distributions=read_distributions(context.out_dir).of_measure if completed else {},
        qc_reasons=(*qc_reasons_of(outcome.qc, findings, config.quality), *_review_reasons(outcome))
        if isinstance(outcome, Completed)
        else (),
        prediction_reasons=tuple(
            Reason(
                code=code,
                explanation=FLAG_EXPLANATIONS[code],
                status=None if code in decision.notes else QcStatus.WARN,
            )
            for code in decision.codes
        ),
        remedy=REMEDIES.get(outcome.stage, "") if isinstance(outcome, Failure) and not outcome.defect else "",
        methods=method_steps(
            config,
            tool_versions(),
            model_id=context.model_id,
            number=_number_of(outcome),
            norms=context.norms,
        )
        if completed
        else (),
        tiers=config.prediction,
        evidence=evidence,
        norm_findings=tuple(one.finding for one in normed_volumes(outcome, context)),
    )


def _evidence(outcome: SubjectOutcome, files: ScanFiles) -> tuple[Evidence, ...]:
    """Return what explains a prediction, where the prediction itself is shown."""
    return read_evidence(files, shown_prediction(outcome, decide(outcome).status))


def _number_of(outcome: SubjectOutcome) -> str | None:
    """Return the column that was predicted; None for classes, and without a prediction."""
    found = outcome.prediction if isinstance(outcome, Completed) else None
    return found.column if isinstance(found, NumberPrediction) else None


def _review_reasons(outcome: Completed) -> tuple[Reason, ...]:
    review = outcome.review
    if review is None:
        return ()
    explanation = REVIEW_EXPLANATIONS[review.code]
    summary = " ".join(filter(None, (review.note, f"({review.by})" if review.by else "")))
    return (Reason(code=review.code, explanation=explanation, summary=summary, status=review.status),)


def _volumes(files: ScanFiles, evidence: Sequence[Evidence]) -> dict[str, bytes]:
    """Return what the viewer shows: the volumes of the scan, of the template, and of what explains a prediction."""
    from brainstage.workflows.reporting.previews import template_previews  # heavy: the template

    own = read_previews(files)
    if not own:
        return {}
    return {**own, **template_previews(), **_evidence_previews(files, evidence)}


def _evidence_previews(files: ScanFiles, evidence: Sequence[Evidence]) -> dict[str, bytes]:
    """Return the maps in both spaces; those with two signs, which are compared, have one scale."""
    from brainstage.workflows.reporting.previews import evidence_preview, signed_evidence_previews

    found: dict[str, bytes] = {}
    for native in (False, True):
        maps = {one.method: read_volume(files.evidence_map(one.method, native=native)) for one in evidence}
        mask = read_mask(files.native_mask if native else files.template_mask) if maps else None
        signed = {name: one for name, one in maps.items() if MAPS[name].exact}
        highest = max((float(np.abs(one.data).max(initial=0.0)) for one in signed.values()), default=0.0)
        for name, one in maps.items():
            if mask is not None and name in signed:
                sides = signed_evidence_previews(one, mask, highest, native=native)
                for against, side in zip((False, True), sides, strict=True):
                    found[evidence_volume(name, native=native, against=against)] = side
            elif mask is not None:
                found[evidence_volume(name, native=native)] = evidence_preview(one, mask, native=native)
    return found


def _findings(files: ScanFiles) -> HeaderFindings | None:
    content = read_json_or_empty(files.state / "header_findings.json")
    names = {field.name for field in fields(HeaderFindings)}
    try:
        return as_record({name: value for name, value in content.items() if name in names}, HeaderFindings)
    except ValueError:
        return None
