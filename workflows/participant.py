"""One scan from its file to its report: a completed scan or a failure, never an exception."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from brainstage.pipeline.attempt import (
    NOTES,
    begin_attempt,
    count_death,
    end_attempt,
    forget_deaths,
    time_limit,
)
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import BrainstageError, LeaseLostError, OutputError
from brainstage.pipeline.files import TEMPORARY_PREFIX, remove_leftovers
from brainstage.pipeline.lease import Lease, held
from brainstage.pipeline.nifti import read_voxel_count
from brainstage.pipeline.records import Completed, Failure, SubjectOutcome, T1wScan
from brainstage.pipeline.runner import ChainOptions, ChainResult, read_failure, record_failure, run_chain
from brainstage.pipeline.scratch import sweep_scratch_once
from brainstage.pipeline.source import keep_sha256_of, known_sha256
from brainstage.pipeline.stage import marker_path
from brainstage.workflows.measured_volumes import read_volumes
from brainstage.workflows.output_directory import (
    finished_files,
    keep_preprocessing_id,
    own_preprocessing_id,
    own_source_sha256,
)
from brainstage.workflows.prediction import model_of, prediction_stage, read_prediction
from brainstage.workflows.resources import memory_lacking_gb
from brainstage.workflows.run_context import RunContext, tool_versions
from brainstage.workflows.scan_report import write_report
from brainstage.workflows.stages import read_qc

LONGEST_NAME: Final = 255
"""Bytes in a file's name on nearly all file systems."""

LEFT_BY_THE_DEAD: Final = frozenset({"lease.json", *NOTES})

OnStage = Callable[[str, str, float, bool], None]


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """One scan of a run.

    Attributes
    ----------
    expected_sha256 : str or None
        What the manifest says the file's hash is.
    """

    scan: T1wScan
    context: RunContext
    expected_sha256: str | None = None


def process_scan(task: ScanTask, on_stage: OnStage = lambda *_: None) -> SubjectOutcome | None:
    """Bring a scan through its stages and write its report; None while another run is at it.

    Parameters
    ----------
    task : ScanTask
    on_stage : callable
        Called with (scan key, stage name, seconds, reused) after each stage.

    Raises
    ------
    OutputError
        When nothing can be written; everything else becomes a :class:`Failure`.
    """
    context, files = task.context, task.context.files(task.scan)
    sweep_scratch_once()
    with umask(context.umask), held(lease_path(files)) as lease:
        if lease is None:
            return None
        # Nobody else is at this scan, so whatever is unfinished here was left by a process that died.
        remove_leftovers(files.state, older_than_s=0.0)
        begin_attempt(files, "ingest")
        try:
            outcome, changed = _processed(task, files, on_stage, lease)
            begin_attempt(files, "report")
            lease.require()
            write_report(outcome, context, changed=changed)
        except LeaseLostError:
            return None
        except OutputError:
            if not lease.still_held():  # whoever took over has swept what we were writing
                return None
            raise
        forget_deaths(files)
        end_attempt(files)
        return outcome


def keep_features_of(tasks: Sequence[ScanTask], _: OnStage = lambda *_: None) -> bool:
    """Compute the features of several preprocessed scans in one pass, on a GPU where there is one.

    A scan's own prediction finds them. Where it does not work, nothing is lost: the prediction computes its own, and
    says what is wrong. Tell whether it worked.
    """
    from brainstage.workflows.learning.features import keep_features  # heavy: torch

    context = tasks[0].context
    if context.model_dir is None or context.model_id is None:
        return False
    model = model_of(context.model_dir, context.model_id, "auto")
    try:
        with umask(context.umask):
            keep_features(model.extractor, [context.files(task.scan) for task in tasks], model.network_grid)
    except OutputError:
        raise
    except (BrainstageError, RuntimeError):  # torch raises the latter when the GPU's memory is full
        return False
    return True


@contextmanager
def umask(mask: int | None) -> Iterator[None]:
    """Deny new files these permissions for the length of a block; None leaves the process as it is.

    The process may be a worker that goes on to work for others.
    """
    if mask is None:
        yield
        return
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def lease_path(files: ScanFiles) -> Path:
    """Return where the lease on a scan stands."""
    return files.state / "lease.json"


def _processed(
    task: ScanTask, files: ScanFiles, on_stage: OnStage, lease: Lease
) -> tuple[SubjectOutcome, bool]:
    """Return what became of a scan, and whether any of it is new."""
    with time_limit(files, task.context.stage_timeout_s):
        scan = _identified(task, files)
    if isinstance(scan, Failure):
        lease.require()
        record_failure(scan, files)
        return scan, True
    result = _run_stages(task, scan, files, on_stage=on_stage, require_lease=lease.require)
    if isinstance(result, Failure):
        keep_preprocessing_id(files, task.context.preprocessing_id)
        return replace(result, preprocessing_id=task.context.preprocessing_id), True
    return _completed(scan, task.context, files, result), result.changed


def outcome_of_death(task: ScanTask) -> Failure | None:
    """Return the failure of a scan whose process died, with its report; None when it deserves another try."""
    files = task.context.files(task.scan)
    # The lease of the process that died is free at once where that was of this machine; what another machine's left
    # looks alive for minutes, and the death is counted all the same.
    with held(lease_path(files)):
        return _outcome_of_death(task, files)


def _outcome_of_death(task: ScanTask, files: ScanFiles) -> Failure | None:
    deaths = count_death(files)
    if not deaths.too_many:
        return None
    limit = task.context.stage_timeout_s or 0.0
    why = (
        f"the {deaths.stage} stage took longer than {limit / 60:g} min and was stopped, {deaths.count} times; "
        "look at the scan, or give a longer --stage-timeout with --retry-failed"
        if deaths.hung
        else f"its worker process died in the {deaths.stage} stage {deaths.count} times, most likely for lack of "
        "memory; run again with fewer --nprocs or more --mem-gb, and --retry-failed"
    )
    failure = Failure(
        scan=task.scan,
        stage=deaths.stage,
        error="StageTimeout" if deaths.hung else "WorkerLost",
        message=why,
        preprocessing_id=task.context.preprocessing_id,
    )
    record_failure(failure, files, deaths.key)
    forget_deaths(files)
    write_report(failure, task.context, changed=True)
    return failure


def finished_outcome(task: ScanTask) -> SubjectOutcome | None:
    """Return the outcome of a scan that needs no computing, with its report in place; None for any other.

    No scan's file is read for it, not even to compute its hash: that is work for the workers, which have a time limit.
    """
    if task.context.reports_only or task.expected_sha256:
        return None
    files = task.context.files(task.scan)
    sha256 = None if _fault_of(task.scan, files) else known_sha256(task.scan, files)
    if sha256 is None:
        return None
    scan = replace(task.scan, sha256=sha256)
    result = _run_stages(task, scan, files, only=frozenset())
    if isinstance(result, Failure):
        if not result.remembered:
            return None
        outcome: SubjectOutcome = replace(result, preprocessing_id=task.context.preprocessing_id)
    else:
        outcome = _completed(scan, task.context, files, result)
        if isinstance(outcome, Failure):
            return None  # a measure that cannot be read is measured again
    write_report(outcome, task.context, changed=False)
    _sweep(files)
    return outcome


def _sweep(files: ScanFiles) -> None:
    """Remove what a process left that died when all was done: no other comes by to work here."""
    names = [entry.name for entry in os.scandir(files.state)]
    if any(name in LEFT_BY_THE_DEAD or name.startswith(TEMPORARY_PREFIX) for name in names):
        with held(lease_path(files)) as lease:
            if lease is not None:
                remove_leftovers(files.state, older_than_s=0.0)
                forget_deaths(files)
                end_attempt(files)


def read_outcome(scan: T1wScan, context: RunContext) -> SubjectOutcome | None:
    """Return what an earlier run found for a scan; None when it never got that far."""
    files = finished_files(context.files(scan))
    identifier = own_preprocessing_id(files) or context.preprocessing_id
    failure = read_failure(files, scan)
    if failure is not None:
        return replace(failure, preprocessing_id=identifier)
    if not files.qc_json.is_file() or not files.template_t1w.is_file():
        return None
    prediction = read_prediction(files) if context.model_id else None
    if prediction is not None and prediction.model_id != context.model_id:
        prediction = None
    try:
        qc = read_qc(files.qc_json)
    except (OSError, ValueError):
        return _damaged(scan, files, identifier)
    return Completed(
        scan=scan,
        qc=qc,
        prediction=prediction,
        preprocessing_id=identifier,
        source_sha256=own_source_sha256(files) or "",
        volumes=read_volumes(files),
    )


def _damaged(scan: T1wScan, files: ScanFiles, identifier: str) -> Failure:
    """Return the failure of a scan whose measures cannot be read, and let the next run measure it anew."""
    marker_path(files, "quality").unlink(missing_ok=True)
    return Failure(
        scan=scan,
        stage="quality",
        error="ManifestError",
        message=f"{files.qc_json.name} is damaged; run the participant level again",
        preprocessing_id=identifier,
    )


def _identified(task: ScanTask, files: ScanFiles) -> T1wScan | Failure:
    """Return a scan with the hash of its file, or why it cannot even be begun; reads the whole file if it has to."""
    scan = task.scan
    fault = _fault_of(scan, files)
    if fault is not None:
        return fault
    try:
        # A manifest demands bytes, not times.
        sha256 = None if task.expected_sha256 else known_sha256(scan, files)
        sha256 = sha256 or keep_sha256_of(scan, files)
        voxels = read_voxel_count(scan.path, root=scan.root) or 0
    except OutputError:
        raise
    except BrainstageError as error:
        return Failure(scan=scan, stage="ingest", error=type(error).__name__, message=error.message)
    if task.expected_sha256 and sha256 != task.expected_sha256:
        return Failure(
            scan=scan,
            stage="ingest",
            error="ManifestError",
            message=f"the file's sha256 begins with {sha256[:12]}, the manifest says {task.expected_sha256[:12]}: "
            "it was altered or replaced since the manifest was made",
        )
    share_gb = task.context.worker_memory_gb
    needed_gb = memory_lacking_gb(voxels, share_gb)
    if needed_gb is not None:
        return Failure(
            scan=scan,
            stage="ingest",
            error="StageError",
            message=f"an image of its size needs about {needed_gb:.1f} GB of memory, and a worker has {share_gb:.1f}; "
            "run again with fewer --nprocs or more --mem-gb",
        )
    return replace(scan, sha256=sha256)


def _fault_of(scan: T1wScan, files: ScanFiles) -> Failure | None:
    """Return what is known to be wrong with a scan before its file is opened."""
    if scan.fault:
        return Failure(scan=scan, stage="ingest", error="InputMissingError", message=scan.fault)
    # Nothing that is added to a name is as long as half of what a name may be; to look closer takes time.
    if len(files.key) > LONGEST_NAME // 2 and files.longest_name > LONGEST_NAME:
        return Failure(
            scan=scan,
            stage="ingest",
            error="BidsError",
            message=f"its name is too long: {len(files.key)} characters, at most "
            f"{len(files.key) - files.longest_name + LONGEST_NAME}, for names of outputs are longer; shorten a label",
        )
    return None


def _run_stages(
    task: ScanTask,
    scan: T1wScan,
    files: ScanFiles,
    *,
    only: frozenset[str] | None = None,
    on_stage: OnStage = lambda *_: None,
    require_lease: Callable[[], None] = lambda: None,
) -> ChainResult | Failure:
    context, source_sha256 = task.context, scan.sha256 or ""
    stages = list(context.chain(context.config))
    if context.model_dir is not None and context.model_id is not None:
        covariates = {name: scan.covariates.value(name) for name in context.model_covariates}
        stages.append(
            prediction_stage(
                context.model_dir,
                context.model_id,
                context.config.prediction,
                files,
                source_sha256,
                covariates,
                reads_volumes=context.model_reads_volumes,
            )
        )
    options = ChainOptions(
        retry_failed=context.retry_failed,
        redo=frozenset({"figures"}) if context.reports_only else frozenset(),
        only=frozenset({"figures"}) if context.reports_only else only,
        tool_versions=tool_versions(),
        on_stage=on_stage,
        require_lease=require_lease,
        stage_timeout_s=context.stage_timeout_s,
    )
    return run_chain(stages, scan, source_sha256, files, options)


def _completed(scan: T1wScan, context: RunContext, files: ScanFiles, result: ChainResult) -> SubjectOutcome:
    try:
        qc = read_qc(files.qc_json)
    except (OSError, ValueError):
        return _damaged(scan, files, context.preprocessing_id)
    prediction = read_prediction(files) if context.model_id else None
    if prediction is not None and prediction.model_id != context.model_id:
        prediction = None
    keep_preprocessing_id(files, context.preprocessing_id)
    return Completed(
        scan=scan,
        qc=qc,
        prediction=prediction,
        preprocessing_id=context.preprocessing_id,
        provenance=result.provenance,
        source_sha256=result.source_sha256,
        volumes=read_volumes(files),
    )
