"""``brainstage run``: a BIDS directory becomes an output directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from brainstage.pipeline.bids import Dataset, ScanFilter, read_dataset, read_filter_file
from brainstage.pipeline.config import Config, read_config
from brainstage.pipeline.engine import EngineOptions, limit_threads, run_all
from brainstage.pipeline.entities import bare_label
from brainstage.pipeline.errors import (
    ExitCode,
    InputMissingError,
    NothingSelectedError,
    OutputError,
    UsageError,
    output_error,
)
from brainstage.pipeline.files import remove_leftovers
from brainstage.pipeline.manifest import apply_manifest, read_manifest
from brainstage.pipeline.records import Failure, SubjectOutcome
from brainstage.pipeline.runner import record_failure
from brainstage.preprocessing.quality import require_known_measures
from brainstage.workflows.group import write_group
from brainstage.workflows.participant import (
    RunContext,
    ScanTask,
    finished_outcome,
    process_scan,
    read_outcome,
    write_report,
)
from brainstage.workflows.progress import Progress, RunLog
from brainstage.workflows.stages import preprocessing_content

MEMORY_PER_WORKER_GB: Final = 3.0
"""A 1 mm head needs 2.5 GB at its peak."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of ``brainstage run``.

    Attributes
    ----------
    level : str or None
        ``participant``, ``group``, or None for one after the other.
    overrides : mapping
        Section to key to value of the configuration, from the command line.
    processes, threads : int or None
        None for what the machine has.
    command : str
        The command line without paths, for the reports.
    """

    bids_dir: Path
    out_dir: Path
    level: str | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filter_file: Path | None = None
    manifest: Path | None = None
    model_dir: Path | None = None
    config_file: Path | None = None
    overrides: Mapping[str, Mapping[str, Any]]
    processes: int | None = None
    threads: int | None = None
    memory_gb: float | None = None
    work_dir: Path | None = None
    retry_failed: bool = False
    reports_only: bool = False
    stop_on_first_crash: bool = False
    validate: bool = True
    deterministic: bool = False
    command: str = ""


def run(options: RunOptions, progress: Progress) -> ExitCode:
    """Do what ``brainstage run`` does.

    Returns
    -------
    ExitCode
        ``DONE``, or ``SOME_SCAN_FAILED``.

    Raises
    ------
    BrainstageError
        For anything that concerns the whole run rather than one scan.
    """
    config = read_config(options.config_file, options.overrides)
    require_known_measures(config.quality)
    everything, expected = _dataset(options, config)
    chosen = _selected(everything, options)
    engine = _engine(options, len(chosen.scans))
    limit_threads(engine.threads, asked_for=options.deterministic or options.threads is not None)
    context = _context(options, config)
    classes = _checked_model(context)
    _prepare(options)
    for path, reason in chosen.set_aside:
        progress.note(f"set aside: {path}: {reason}")
    outcomes: dict[str, SubjectOutcome] = {}
    if options.level != "group":
        tasks = [
            ScanTask(scan=scan, context=context, expected_sha256=expected.get(scan.key))
            for scan in chosen.scans
        ]
        with RunLog(options.out_dir, context.started) as log:
            for outcome in _outcomes(tasks, engine, progress):
                outcomes[outcome.scan.key] = outcome
                log.outcome(outcome)
                if options.stop_on_first_crash and isinstance(outcome, Failure):
                    progress.note(f"stopped at the first failure: {outcome.scan.key}")
                    break
    if options.level != "participant":
        outcomes = _write_tables(everything, outcomes, context, classes, options, progress)
    # The tables may hold scans of earlier runs; the exit code is about the scans of this one.
    mine = [outcomes[scan.key] for scan in chosen.scans if scan.key in outcomes]
    failed = [outcome for outcome in mine if isinstance(outcome, Failure)]
    progress.summary(mine)
    return ExitCode.SOME_SCAN_FAILED if failed else ExitCode.DONE


def _dataset(options: RunOptions, config: Config) -> tuple[Dataset, dict[str, str]]:
    dataset = read_dataset(options.bids_dir, validate=options.validate, label_column=config.label_column)
    if options.manifest is None:
        return dataset, {}
    return apply_manifest(dataset, read_manifest(options.manifest))


def _selected(dataset: Dataset, options: RunOptions) -> Dataset:
    """Keep what the filters select.

    Raises
    ------
    NothingSelectedError
        When that is nothing, with the labels that there are.
    """
    chosen = ScanFilter(
        participants=tuple(bare_label(label, "sub") for label in options.participants),
        sessions=tuple(bare_label(label, "ses") for label in options.sessions),
        entities=read_filter_file(options.filter_file) if options.filter_file else {},
    )
    if not dataset.scans:
        path, reason = dataset.set_aside[0]
        raise InputMissingError(f"no T1w file has a usable BIDS name; {path}: {reason}")
    present = {scan.entities.subject for scan in dataset.scans}
    unknown = [label for label in chosen.participants if label not in present]
    scans = tuple(scan for scan in dataset.scans if chosen.selects(scan.entities))
    if unknown or not scans:
        shown = ", ".join(sorted(present)[:8]) + (" ..." if len(present) > 8 else "")
        what = (
            f"no T1w scan of participant {', '.join(unknown)}"
            if unknown
            else "the filters select no T1w scan"
        )
        raise NothingSelectedError(f"{what}; participants with T1w scans are {shown or 'none'}")
    return replace(dataset, scans=scans)


def _engine(options: RunOptions, scans: int) -> EngineOptions:
    """Choose how many processes and threads, from what is asked for and what is there."""
    processors = len(os.sched_getaffinity(0))
    free_gb = options.memory_gb or psutil.virtual_memory().available / 1024**3
    fitting = max(1, int(free_gb // MEMORY_PER_WORKER_GB))
    workers = options.processes or min(processors, fitting)
    workers = max(1, min(workers, scans))
    threads = 1 if options.deterministic else options.threads or max(1, processors // workers)
    return EngineOptions(workers=workers, threads=threads, memory_gb=options.memory_gb)


def _prepare(options: RunOptions) -> None:
    """Make the output and scratch directories, and remove what a killed run left half-written."""
    inside = options.out_dir.resolve() == options.bids_dir.resolve()
    if inside:
        raise UsageError(
            "OUT_DIR must not be BIDS_DIR; choose another directory, such as BIDS_DIR/derivatives/brainstage"
        )
    for folder in (options.out_dir, options.work_dir):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".tmp-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise output_error(folder, error) from error
    remove_leftovers(options.out_dir)
    if options.work_dir is not None:
        # Read by Python's tempfile here and in every worker.
        os.environ["TMPDIR"] = str(options.work_dir.resolve())


def _context(options: RunOptions, config: Config) -> RunContext:
    model_id = None
    if options.model_dir is not None:
        from brainstage.models.model_store import read_description  # heavy: torch

        if not options.model_dir.is_dir():
            raise InputMissingError(
                f"model directory {options.model_dir.name} does not exist; make one with brainstage train"
            )
        model_id = read_description(options.model_dir).model_id
    return RunContext(
        out_dir=options.out_dir,
        config=config,
        model_dir=options.model_dir,
        model_id=model_id,
        retry_failed=options.retry_failed,
        reports_only=options.reports_only,
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=options.command,
    )


def _checked_model(context: RunContext) -> tuple[str, ...]:
    """Return the model's classes, after making sure that it fits this preprocessing."""
    if context.model_dir is None:
        return ()
    from brainstage.workflows.prediction import model_of  # heavy: torch

    model = model_of(context.model_dir)
    model.require_preprocessing(context.preprocessing_id, preprocessing_content(context.config))
    return model.classes


def _outcomes(tasks: list[ScanTask], engine: EngineOptions, progress: Progress) -> Iterator[SubjectOutcome]:
    """Yield every scan's outcome: first what is done already, then what the engine computes."""
    pending = []
    progress.begin(len(tasks))
    for task in tasks:
        outcome = finished_outcome(task)
        if outcome is None:
            pending.append(task)
        else:
            progress.outcome(outcome)
            yield outcome
    if not pending:
        return
    engine = replace(engine, workers=min(engine.workers, len(pending)))
    progress.note(
        f"{len(pending)} of {len(tasks)} scans to compute, {engine.workers} at a time, "
        f"{engine.threads} thread(s) each"
    )
    if engine.workers == 1:
        pending = [replace(task, on_stage=progress.stage) for task in pending]
    for outcome in run_all(process_scan, pending, _lost, engine):
        progress.outcome(outcome)
        yield outcome


def _lost(task: ScanTask, sentence: str) -> Failure:
    """Make a row and a report for a scan whose worker died."""
    failure = Failure(
        scan=task.scan,
        stage="worker",
        error="WorkerLost",
        message=sentence,
        preprocessing_id=task.context.preprocessing_id,
    )
    record_failure(failure, task.context.files(task.scan))
    write_report(failure, task.context, changed=True)
    return failure


def _write_tables(
    everything: Dataset,
    outcomes: Mapping[str, SubjectOutcome],
    context: RunContext,
    classes: tuple[str, ...],
    options: RunOptions,
    progress: Progress,
) -> dict[str, SubjectOutcome]:
    """Write the tables and pages over this run's scans and those that earlier runs of the directory finished."""
    known: dict[str, SubjectOutcome] = {}
    wanted = {scan.key for scan in _selected(everything, options).scans}
    missing = []
    for scan in everything.scans:
        outcome = outcomes.get(scan.key) or read_outcome(scan, context)
        if outcome is not None:
            known[scan.key] = outcome
        elif scan.key in wanted and options.level == "group":
            missing.append(scan.key)
    for key in missing[:5]:
        progress.note(f"{key} has not been processed; run the participant level first")
    if not known:
        raise InputMissingError(
            "no scan has been processed in this output directory; run the participant level first"
        )
    dataset = replace(everything, scans=tuple(scan for scan in everything.scans if scan.key in known))
    ordered = [known[scan.key] for scan in dataset.scans]
    try:
        write_group(dataset, ordered, context, classes)
    except OSError as error:
        raise error if isinstance(error, OutputError) else output_error(context.out_dir, error) from error
    return known
