"""From the scans of a run to its tables (predictions, quality, volumes, trajectories) and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from brainstage.pipeline.account import ACCOUNT_FILE, account_lines
from brainstage.pipeline.bids import Dataset
from brainstage.pipeline.config import differences
from brainstage.pipeline.derivatives import STATE_FOLDER, write_dataset_description
from brainstage.pipeline.files import write_json, write_text
from brainstage.pipeline.manifest import csv_text, rows_of, write_manifest
from brainstage.pipeline.records import Completed, Failure, NumberPrediction, SubjectOutcome
from brainstage.pipeline.review import review_remarks
from brainstage.preprocessing.quality import MEASURES
from brainstage.workflows.data_dictionary import (
    predictions_dictionary,
    qc_dictionary,
    trajectories_dictionary,
    volumes_dictionary,
)
from brainstage.workflows.gate import CHOSEN_OF_SESSION, FLAG_EXPLANATIONS, REVIEW_EXPLANATIONS, decide
from brainstage.workflows.normed_volumes import keep_norms
from brainstage.workflows.output_directory import known_preprocessings, last_sha256, own_name
from brainstage.workflows.predicted_numbers import member_values_text, number_columns, number_record
from brainstage.workflows.reported import renew_reports, reported_norms_id
from brainstage.workflows.reporting.cohort_page import CohortScan, render_cohort
from brainstage.workflows.reporting.distribution import distributions_of, keep_distributions
from brainstage.workflows.reporting.methods import render_methods
from brainstage.workflows.run_context import RunContext, run_info, tool_versions
from brainstage.workflows.stages import preprocessing_content
from brainstage.workflows.table_identity import IDENTITY_COLUMNS, NOT_ASSESSED, identity_of
from brainstage.workflows.trajectories import chosen_of_sessions, trajectories_csv
from brainstage.workflows.volumes_table import volumes_table

QC_MEASURES: Final = tuple(measure.name for measure in MEASURES if not measure.added)
ADDED_MEASURES: Final = tuple(measure.name for measure in MEASURES if measure.added and not measure.on_demand)
ON_DEMAND_MEASURES: Final = tuple(measure.name for measure in MEASURES if measure.on_demand)


def write_group(
    dataset: Dataset, outcomes: Sequence[SubjectOutcome], context: RunContext, classes: Sequence[str]
) -> None:
    """Write everything that is about the whole run; each file in one rename.

    Parameters
    ----------
    dataset : Dataset
        With exactly the scans of `outcomes`.
    outcomes : sequence
        Sorted like the dataset.
    context : RunContext
    classes : sequence of str
        The model's, in its order; empty without a model.
    """
    out_dir = context.out_dir
    if dataset.root != out_dir:  # otherwise the raw data are not there, and the description stays as it is
        write_dataset_description(out_dir, dataset.root, dataset.description)
    content = preprocessing_content(context.config)
    write_json(
        out_dir / ".brainstage" / "preprocessing.json", {"id": context.preprocessing_id, "content": content}
    )
    write_manifest(out_dir / "data_manifest.csv", rows_of(dataset, _known_hashes(outcomes, context)))
    write_text(out_dir / "predictions.csv", predictions_csv(outcomes, context, classes, context.model_number))
    write_json(out_dir / "predictions.json", predictions_dictionary(classes, context.model_number))
    write_text(out_dir / "qc.csv", qc_csv(outcomes))
    write_json(out_dir / "qc.json", qc_dictionary(qc_columns(outcomes)))
    volumes = volumes_table(outcomes, context)
    write_text(out_dir / "volumes.csv", volumes.text)
    write_json(out_dir / "volumes.json", volumes_dictionary(volumes.columns, volumes.region_of))
    trajectories = trajectories_csv(outcomes, classes, context.model_number)
    if trajectories is None:
        for name in ("trajectories.csv", "trajectories.json"):
            (out_dir / name).unlink(missing_ok=True)  # of an earlier run
    else:
        write_text(out_dir / "trajectories.csv", trajectories)
        write_json(out_dir / "trajectories.json", trajectories_dictionary(classes, context.model_number))
    account = account_lines(dataset.account, dataset.scans, context.config.label_column)
    write_json(out_dir / STATE_FOLDER / ACCOUNT_FILE, {"lines": account})
    _write_pages(dataset, outcomes, context, [*account, *review_remarks(outcomes)])
    keep_norms(out_dir, context.norms)
    renewed = outcomes
    if not keep_distributions(out_dir, distributions_of(outcomes)):
        renewed = [one for one in outcomes if reported_norms_id(one.scan, context) != context.norms_id]
    renew_reports(renewed, context)


def predictions_csv(
    outcomes: Sequence[SubjectOutcome],
    context: RunContext,
    classes: Sequence[str],
    number: str | None = None,
) -> str:
    """Return ``predictions.csv`` (contract, section 6): one row for every scan, also the failed ones.

    Parameters
    ----------
    outcomes : sequence
    context : RunContext
    classes : sequence of str
        The model's, in its order; empty without a model, and for a model of a number.
    number : str, optional
        The column that a model of a number predicts.
    """
    said = ("predicted_label", *(f"p_{name}" for name in classes), "confidence", "tier", "prediction_set")
    columns = (
        *IDENTITY_COLUMNS,
        "prediction_status",
        *(number_columns(number) if number else said),
        "qc_status",
        "qc_reasons",
        "prediction_reasons",
        "ood_score",
        "ood_limit",
        "member_labels",
        "label",
        "age",
        "sex",
        "site",
        "model_id",
        "preprocessing_id",
        "report",
        "error",
    )
    chosen = chosen_of_sessions(outcomes)
    rows = [_prediction_row(outcome, context) for outcome in outcomes]
    for outcome, row in zip(outcomes, rows, strict=True):
        if outcome.scan.key in chosen:
            reasons = (str(row.get("prediction_reasons", "")), CHOSEN_OF_SESSION)
            row["prediction_reasons"] = ";".join(filter(None, reasons))
    return csv_text(columns, rows)


def qc_csv(outcomes: Sequence[SubjectOutcome]) -> str:
    """Return ``qc.csv``: one row for every scan; a failed one has no measures."""
    return csv_text(qc_columns(outcomes), [_qc_row(outcome) for outcome in outcomes])


def qc_columns(outcomes: Sequence[SubjectOutcome]) -> tuple[str, ...]:
    """Return the columns of ``qc.csv``; measures on demand only where a scan has them."""
    asked_for = [
        name
        for name in ON_DEMAND_MEASURES
        if any(isinstance(outcome, Completed) and name in outcome.qc.measures for outcome in outcomes)
    ]
    return (*IDENTITY_COLUMNS, *QC_MEASURES, "qc_status", "qc_reasons", *ADDED_MEASURES, *asked_for)


def _prediction_row(outcome: SubjectOutcome, context: RunContext) -> dict[str, object]:
    decision = decide(outcome)
    known = outcome.scan.covariates
    row = identity_of(outcome) | {
        "prediction_status": str(decision.status),
        "label": outcome.scan.label,
        "age": known.age,
        "sex": known.sex,
        "site": known.site,
        "preprocessing_id": outcome.preprocessing_id,
        "model_id": context.model_id,
        "report": context.files(outcome.scan).report.name,
    }
    if isinstance(outcome, Failure):
        return row | {"qc_status": NOT_ASSESSED, "error": error_text(outcome)}
    verdict = outcome.verdict
    row |= {
        "qc_status": str(verdict.status),
        "qc_reasons": ";".join(verdict.reasons),
        "prediction_reasons": ";".join(decision.codes),
    }
    prediction = outcome.prediction
    if prediction is None:
        return row
    row |= {"ood_score": prediction.ood_score, "ood_limit": prediction.ood_threshold}
    if not decision.shows_probabilities:
        return row
    if isinstance(prediction, NumberPrediction):
        said = number_record(prediction, outcome.scan)
        return row | said | {"member_labels": member_values_text(prediction)}
    return row | {
        "predicted_label": prediction.predicted_label,
        **{f"p_{name}": value for name, value in prediction.probabilities.items()},
        "confidence": prediction.confidence,
        "tier": prediction.tier,
        "prediction_set": ";".join(prediction.prediction_set),
        "member_labels": ";".join(f"{name}={label}" for name, label in prediction.member_labels.items()),
    }


def _qc_row(outcome: SubjectOutcome) -> dict[str, object]:
    row = identity_of(outcome)
    if isinstance(outcome, Failure):
        return row | {"qc_status": NOT_ASSESSED}
    verdict = outcome.verdict
    return (
        row
        | dict(outcome.qc.measures)
        | {"qc_status": str(verdict.status), "qc_reasons": ";".join(verdict.reasons)}
    )


def error_text(failure: Failure) -> str:
    """Return which stage failed and why, on one line."""
    return f"{failure.stage}: {failure.message}"


def _known_hashes(outcomes: Sequence[SubjectOutcome], context: RunContext) -> dict[str, str]:
    found = {outcome.scan.key: last_sha256(context.files(outcome.scan)) for outcome in outcomes}
    return {key: sha256 for key, sha256 in found.items() if sha256 is not None}


def _write_pages(
    dataset: Dataset, outcomes: Sequence[SubjectOutcome], context: RunContext, account: Sequence[str]
) -> None:
    failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
    methods = render_methods(
        context.config,
        tool_versions(),
        context.preprocessing_id,
        n_scans=len(outcomes),
        n_failed=failed,
        model_id=context.model_id,
        number=context.model_number,
        norms=context.norms,
        account=account,
        otherwise=_preprocessed_otherwise(outcomes, context),
    )
    write_text(context.out_dir / "methods.md", methods)
    page = render_cohort(
        [_cohort_scan(outcome, context) for outcome in outcomes],
        run_info(context),
        directory=own_name(context.out_dir),
        title=f"T1w scans of {dataset.description.get('Name') or 'a BIDS dataset'}",
        explanations=FLAG_EXPLANATIONS | REVIEW_EXPLANATIONS,
    )
    write_text(context.out_dir / "cohort.html", page)


def _preprocessed_otherwise(
    outcomes: Sequence[SubjectOutcome], context: RunContext
) -> dict[str, tuple[int, list[tuple[str, str, str]]]]:
    """Return the other preprocessings among some scans: how many have each, and what differs."""
    known = known_preprocessings(context.out_dir)
    here = preprocessing_content(context.config)
    counts = Counter(outcome.preprocessing_id for outcome in outcomes)
    return {
        name: (count, differences(known[name], here) if name in known else [])
        for name, count in sorted(counts.items())
        if name != context.preprocessing_id
    }


def _cohort_scan(outcome: SubjectOutcome, context: RunContext) -> CohortScan:
    files = context.files(outcome.scan)
    picture = files.figure("montage")
    decision = decide(outcome)
    return CohortScan(
        outcome=outcome,
        prediction_status=decision.status,
        prediction_reasons=decision.codes,
        report=files.report.name,
        thumbnail=picture.read_bytes() if not isinstance(outcome, Failure) and picture.is_file() else None,
    )
