"""``brainstage run``: a BIDS directory becomes an output directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from brainstage.models.model_description import (
    Description,
    ModelDescription,
    NumberDescription,
    checked_content,
    read_description,
    require_same_preprocessing,
)
from brainstage.models.norms_directory import NormsDescription, read_norms, require_measured_alike
from brainstage.pipeline.account import account_lines
from brainstage.pipeline.attempt import forget_deaths
from brainstage.pipeline.bids import Dataset, ScanFilter, read_dataset, read_filter_file
from brainstage.pipeline.borrowed_workers import require_keys
from brainstage.pipeline.config import Config, read_config
from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.engine import (
    GPU,
    Listener,
    Workers,
    limit_threads,
    workers,
)
from brainstage.pipeline.entities import ENTITY_KEYS, bare_label, natural_order
from brainstage.pipeline.errors import (
    ExitCode,
    InputMissingError,
    NothingSelectedError,
    OutputError,
    UsageError,
    output_error,
)
from brainstage.pipeline.files import remove_leftovers, temporary_name
from brainstage.pipeline.lease import clear_if_abandoned, waited_for
from brainstage.pipeline.manifest import apply_manifest, read_manifest
from brainstage.pipeline.records import Failure, SubjectOutcome
from brainstage.pipeline.review import read_decisions, review_remarks, reviewed
from brainstage.pipeline.stage import Stage
from brainstage.pipeline.versions import differing_versions
from brainstage.preprocessing.quality import require_known_measures
from brainstage.preprocessing.volumes import VOLUMES_VERSION
from brainstage.workflows.group import write_group
from brainstage.workflows.output_directory import (
    dataset_of,
    note_dataset,
    note_preprocessing,
    require_ours,
    require_same_dataset,
    scans_of,
    with_scans,
)
from brainstage.workflows.participant import (
    ScanTask,
    finished_outcome,
    keep_features_of,
    lease_path,
    outcome_of_death,
    process_scan,
    read_outcome,
)
from brainstage.workflows.progress import Progress, RunLog
from brainstage.workflows.resources import check_space, choose_engine, folder_for_jobs, known_share_gb
from brainstage.workflows.run_context import RunContext, tool_versions
from brainstage.workflows.stages import AtlasFile, preprocessing_content, preprocessing_id, scan_stages

PREDICTION_BATCH: Final = 8
OPEN_PORTS: Final = (
    "--allow-open-ports: what goes to the workers, names and ages among it, may travel in clear, and whoever reaches a "
    "port of the Dask scheduler or its workers can run code as you"
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of ``brainstage run``.

    Attributes
    ----------
    level : str or None
        ``participant``, ``group``, or None for one after the other.
    overrides : mapping
        Section to key to value of the configuration, from the command line.
    qc_decisions : Path or None
        What a person decided about scans.
    atlas : Path or None
        Labels in template space whose regions are measured, too.
    norms_dir : Path or None
        What is usual in a healthy cohort: volumes are compared with it.
    processes, threads : int or None
        None for what the machine has.
    engine : str
        ``local``, ``dask`` or ``slurm``.
    dask_scheduler : str or None
        Address for the engine ``dask``.
    allow_open_ports : bool
        It may answer without keys.
    slurm_partition, slurm_walltime, slurm_directives
        For the engine ``slurm``.
    stage_timeout_min : float
        A stage that takes longer is stopped.
    umask : int
        Which permissions new files are denied.
    accept_dataset : bool
        The output directory is to take a dataset other than the one it belongs to.
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
    qc_decisions: Path | None = None
    model_dir: Path | None = None
    atlas: Path | None = None
    norms_dir: Path | None = None
    config_file: Path | None = None
    overrides: Mapping[str, Mapping[str, Any]]
    processes: int | None = None
    threads: int | None = None
    memory_gb: float | None = None
    engine: Literal["local", "dask", "slurm"] = "local"
    dask_scheduler: str | None = None
    allow_open_ports: bool = False
    slurm_partition: str | None = None
    slurm_walltime: str = "08:00:00"
    slurm_directives: tuple[str, ...] = ()
    stage_timeout_min: float = 60.0
    umask: int = 0o077
    work_dir: Path | None = None
    retry_failed: bool = False
    reports_only: bool = False
    stop_on_first_crash: bool = False
    validate: bool = True
    accept_dataset: bool = False
    deterministic: bool = False
    command: str = ""

    @property
    def threads_matter(self) -> bool:
        """Whether the number of threads was asked for, or determinism needs it."""
        return self.deterministic or self.threads is not None


def run(
    options: RunOptions,
    progress: Progress,
    chain: Callable[..., Sequence[Stage]] = scan_stages,
) -> ExitCode:
    """Do what ``brainstage run`` does.

    Parameters
    ----------
    options : RunOptions
    progress : Progress
    chain : callable
        Configuration, and an atlas where one is given, to the stages of a scan; importable in a worker.

    Returns
    -------
    ExitCode
        ``DONE``, or ``SOME_SCAN_FAILED``.

    Raises
    ------
    BrainstageError
        For anything that concerns the whole run rather than one scan.
    KeyboardInterrupt
        After Ctrl-C or a signal to end, when the tables over what is finished are written.
    """
    # Workers may stand in another folder.
    options = replace(
        options,
        bids_dir=options.bids_dir.absolute(),
        out_dir=options.out_dir.absolute(),
        model_dir=options.model_dir.absolute() if options.model_dir else None,
        atlas=options.atlas.absolute() if options.atlas else None,
    )
    config = read_config(options.config_file, options.overrides)
    require_known_measures(config.quality)
    everything, expected = _dataset(options, config, progress)
    chosen = _selected(everything, options)
    os.umask(options.umask)
    _check_ports(options)
    model = _checked_model(options.model_dir, config) if options.model_dir else None
    if options.atlas:
        chain = partial(chain, atlas=_checked_atlas(options.atlas))
    norms = _checked_norms(options.norms_dir, config) if options.norms_dir else None
    context = replace(_context(options, config, model), norms=norms, chain=chain)
    _prepare(options)
    if everything.root != options.out_dir:
        require_same_dataset(options.out_dir, everything, other_is_meant=options.accept_dataset)
        note_dataset(options.out_dir, chosen, progress.note)
    note_preprocessing(
        options.out_dir, context.preprocessing_id, preprocessing_content(config), progress.note
    )
    account = account_lines(everything.account, everything.scans, config.label_column)
    notes = [OPEN_PORTS] if options.allow_open_ports else []
    differing = differing_versions(tool_versions(), [model.versions]) if model else []
    if differing:
        notes.append(
            f"the model was trained under other versions, nothing is refused: {'; '.join(differing)}"
        )
    for line in (*account, *notes):
        progress.note(line)
    outcomes: dict[str, SubjectOutcome] = {}
    interrupted: KeyboardInterrupt | None = None
    if options.level != "group":
        tasks = [
            ScanTask(scan=scan, context=context, expected_sha256=expected.get(scan.key))
            for scan in chosen.scans
        ]
        outcomes, interrupted = _processed(tasks, account, notes, options, progress)
    if options.level != "participant" and (outcomes or interrupted is None):
        # Another run may have finished scans of its own meanwhile: whoever comes last writes about all of them.
        with waited_for(options.out_dir / STATE_FOLDER / "tables-lease.json", progress.note):
            classes = model.classes if isinstance(model, ModelDescription) else ()
            outcomes = _write_tables(everything, outcomes, context, classes, options, progress)
    if interrupted is not None:
        raise interrupted
    # The tables may hold scans of earlier runs; the exit code is about the scans of this one.
    mine = [outcomes[scan.key] for scan in chosen.scans if scan.key in outcomes]
    failed = [outcome for outcome in mine if isinstance(outcome, Failure)]
    for line in review_remarks(outcomes.values()):
        progress.note(line)
    progress.summary(mine)
    return ExitCode.SOME_SCAN_FAILED if failed else ExitCode.DONE


def _processed(
    tasks: list[ScanTask],
    account: Sequence[str],
    notes: Sequence[str],
    options: RunOptions,
    progress: Progress,
) -> tuple[dict[str, SubjectOutcome], KeyboardInterrupt | None]:
    """Return what became of the scans, and what ended the run before its end."""
    outcomes: dict[str, SubjectOutcome] = {}
    started = tasks[0].context.started
    with RunLog(options.out_dir, started) as log:
        log.account(account)
        for line in notes:
            log.note(line)
        try:
            for outcome in _outcomes(tasks, options, progress):
                outcomes[outcome.scan.key] = outcome
                log.outcome(outcome)
                if options.stop_on_first_crash and isinstance(outcome, Failure):
                    progress.note(f"stopped at the first failure: {outcome.scan.key}")
                    break
        except KeyboardInterrupt as stop:
            for task in tasks:  # the workers are gone, and could not give their leases back
                clear_if_abandoned(lease_path(task.context.files(task.scan)))
            return outcomes, stop
        log.reviews(outcomes.values())
    return outcomes, None


def _check_ports(options: RunOptions) -> None:
    if (options.engine == "dask") != (options.dask_scheduler is not None):
        raise UsageError("--engine dask and --dask-scheduler URL belong together")
    if options.allow_open_ports and options.dask_scheduler is None:
        raise UsageError("--allow-open-ports is for --engine dask; the ports of the other engines need keys")
    if options.dask_scheduler is not None and not options.allow_open_ports:
        require_keys(options.dask_scheduler)


def _dataset(options: RunOptions, config: Config, progress: Progress) -> tuple[Dataset, dict[str, str]]:
    decisions = read_decisions(options.qc_decisions) if options.qc_decisions else {}
    if options.level == "group" and not options.bids_dir.exists():
        kept = dataset_of(options.out_dir)
        if kept is not None:
            return replace(kept, scans=reviewed(kept.scans, decisions)), {}
    dataset = read_dataset(
        options.bids_dir,
        validate=options.validate,
        label_column=config.label_column,
        strict_tables=options.manifest is None,
    )
    unknown = sorted(decisions.keys() - {scan.t1w_path for scan in dataset.scans})
    if unknown:
        progress.note(f"{len(unknown)} decision(s) are about no scan of the dataset, first {unknown[0]}")
    expected: dict[str, str] = {}
    if options.manifest is not None:
        dataset, expected = apply_manifest(dataset, read_manifest(options.manifest))
    return replace(dataset, scans=reviewed(dataset.scans, decisions)), expected


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
        path, reason = dataset.account.set_aside[0]
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
        raise NothingSelectedError(
            f"{what}; participants with T1w scans are {shown or 'none'}{_labels_there(dataset, chosen)}"
        )
    return replace(dataset, scans=scans)


def _labels_there(dataset: Dataset, chosen: ScanFilter) -> str:
    """Return the labels that the scans have of each entity that was asked for."""
    asked = [*chosen.entities, *(["session"] if chosen.sessions and "session" not in chosen.entities else [])]
    said = ""
    for name in asked:
        labels = sorted({getattr(scan.entities, name) or "none" for scan in dataset.scans}, key=natural_order)
        said += f"; {ENTITY_KEYS[name]}- is {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}"
    return said


def _prepare(options: RunOptions) -> None:
    """Make the output and scratch directories, and remove what a killed run left half-written."""
    bids_dir, out_dir = options.bids_dir.resolve(), options.out_dir.resolve()
    if out_dir == bids_dir:
        raise UsageError(
            "OUT_DIR must not be BIDS_DIR; choose another directory, such as BIDS_DIR/derivatives/brainstage"
        )
    if out_dir.is_relative_to(bids_dir) and not out_dir.is_relative_to(bids_dir / "derivatives"):
        raise UsageError(
            "OUT_DIR lies in BIDS_DIR, where only derivatives/ may be written to; choose another directory, such as "
            "BIDS_DIR/derivatives/brainstage"
        )
    require_ours(options.out_dir)
    state = options.out_dir / STATE_FOLDER
    for folder in (options.out_dir, state, options.work_dir):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / temporary_name()
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise output_error(folder, error) from error
    for folder in (options.out_dir, state):
        remove_leftovers(folder)
    if options.work_dir is not None:
        # Read by Python's tempfile here and in every worker.
        os.environ["TMPDIR"] = str(options.work_dir.resolve())


def _checked_model(model_dir: Path, config: Config) -> Description:
    """Return what a model says of itself, after making sure that it is whole and fits this preprocessing.

    The workers load it; here that would take as long as it takes to load torch.
    """
    if not model_dir.is_dir():
        raise InputMissingError(
            f"model directory {model_dir.name} does not exist; make one with brainstage train"
        )
    model = read_description(model_dir)
    content = preprocessing_content(config)
    require_same_preprocessing(model, preprocessing_id(content), content)
    for name, sha256 in model.files.items():
        checked_content(model_dir, name, sha256)
    return model


def _checked_atlas(path: Path) -> AtlasFile:
    """Return a user's atlas once it is known to be one, before any scan waits for it."""
    from brainstage.preprocessing.regions import read_atlas  # heavy: SimpleITK

    atlas = read_atlas(path)
    return AtlasFile(path=path, name=atlas.name, sha256=atlas.sha256)


def _checked_norms(norms_dir: Path, config: Config) -> NormsDescription:
    """Return norms, after making sure that they are whole and about volumes that are measured as here."""
    norms = read_norms(norms_dir)
    require_measured_alike(norms, VOLUMES_VERSION, preprocessing_content(config))
    return norms


def _context(options: RunOptions, config: Config, model: Description | None) -> RunContext:
    return RunContext(
        out_dir=options.out_dir,
        config=config,
        model_dir=options.model_dir,
        model_id=model.model_id if model else None,
        model_covariates=model.columns_read if model else (),
        model_reads_volumes=model is not None and model.reads_volumes,
        model_number=model.label_column if isinstance(model, NumberDescription) else None,
        retry_failed=options.retry_failed,
        reports_only=options.reports_only,
        stage_timeout_s=options.stage_timeout_min * 60.0,
        umask=options.umask,
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=options.command,
    )


def _outcomes(tasks: list[ScanTask], options: RunOptions, progress: Progress) -> Iterator[SubjectOutcome]:
    """Yield every scan's outcome: first what is done already, then what the engine computes."""
    pending = []
    progress.begin(len(tasks))
    for task in tasks:
        outcome = finished_outcome(task)
        if outcome is None:
            pending.append(task)
            if options.retry_failed:
                forget_deaths(task.context.files(task.scan))
        else:
            progress.outcome(outcome)
            yield outcome
    if not pending:
        return
    check_space(options.out_dir, len(pending), progress)
    with folder_for_jobs(options) as folder:
        engine, reason = choose_engine(options, len(pending), folder)
        share_gb = known_share_gb(options, engine)
        pending = [
            replace(task, context=replace(task.context, worker_memory_gb=share_gb)) for task in pending
        ]
        limit_threads(engine.threads, asked_for=options.threads_matter)
        progress.note(f"{len(pending)} of {len(tasks)} scans to compute, {reason}")
        told = _Told(progress)
        listener = Listener(died=told.died, busy=told.busy, deserted=told.deserted)
        with workers(engine, len(pending), progress.stage, tool_versions) as pool:
            batched = pending[0].context.model_dir is not None and pool.offer(GPU)
            computed = (
                _predicted_in_batches(pool, pending, listener)
                if batched
                else pool.run(process_scan, pending, listener)
            )
            for outcome in computed:
                progress.outcome(outcome)
                yield outcome


def _predicted_in_batches(
    pool: Workers, tasks: list[ScanTask], listener: Listener
) -> Iterator[SubjectOutcome]:
    """Preprocess all scans, compute their features batch by batch where a GPU is, then predict."""
    by_key = {task.scan.key: task for task in tasks}
    bare = [replace(task, context=replace(task.context, model_dir=None, model_id=None)) for task in tasks]
    preprocessed: dict[str, SubjectOutcome] = {}
    for outcome in pool.run(process_scan, bare, listener):
        if isinstance(outcome, Failure):
            yield outcome
        else:
            preprocessed[outcome.scan.key] = outcome
    ready = [by_key[key] for key in preprocessed]
    batches = [tuple(ready[n : n + PREDICTION_BATCH]) for n in range(0, len(ready), PREDICTION_BATCH)]
    # A batch that takes its worker with it is left out: each prediction computes what it does not find.
    for _ in pool.run(keep_features_of, batches, Listener(died=lambda _: False), GPU):
        pass
    for outcome in pool.run(process_scan, ready, listener):
        earlier = preprocessed[outcome.scan.key].provenance
        known = {entry.stage for entry in earlier}
        added = tuple(entry for entry in outcome.provenance if entry.stage not in known)
        yield replace(outcome, provenance=earlier + added)


class _Told:
    """Tells of workers that died, and once of everything that is waited for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines: set[str] = set()

    def busy(self, task: ScanTask) -> None:
        self._once(f"{task.scan.key}: another run is at it; its result is waited for")

    def died(self, task: ScanTask) -> SubjectOutcome | None:
        outcome = outcome_of_death(task)
        if outcome is None:
            self._progress.note(f"{task.scan.key}: its worker process died; the scan goes on in another")
        return outcome

    def deserted(self) -> None:
        self._once(
            "no worker has come, or all are gone; they are waited for. With SLURM, squeue tells whether jobs wait; "
            "jobs that end at once cannot start this Python or do not see this directory"
        )

    def _once(self, line: str) -> None:
        if line not in self._lines:
            self._lines.add(line)
            self._progress.note(line)


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
    present = {scan.key for scan in everything.scans}
    everything = with_scans(everything, scans_of(options.out_dir))
    wanted = {scan.key for scan in _selected(everything, options).scans}
    missing = []
    gone = []
    for scan in everything.scans:
        outcome = outcomes.get(scan.key) or read_outcome(scan, context)
        if outcome is not None:
            known[scan.key] = outcome
            gone += [scan.key] if scan.key not in present else []
        elif scan.key in wanted and options.level == "group":
            missing.append(scan.key)
    for key in missing[:5]:
        progress.note(f"{key} has not been processed; run the participant level first")
    if gone:
        progress.note(
            f"{len(gone)} finished scan(s) of earlier runs are not in the dataset or manifest of this one, first "
            f"{gone[0]}; their rows stay"
        )
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
