"""The stages of one scan in order: skip what is done, wrap what fails."""

from __future__ import annotations

import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from brainstage.pipeline.attempt import begin_attempt, time_limit
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import (
    BrainstageError,
    LeaseLostError,
    OutputError,
    SourceChangedError,
    StageError,
    ToolError,
    attributed,
    output_error,
)
from brainstage.pipeline.files import make_folder_of, temporary_name, write_json, write_text
from brainstage.pipeline.kept import read_record
from brainstage.pipeline.records import Failure, Provenance, T1wScan
from brainstage.pipeline.stage import (
    Marker,
    Stage,
    content_key,
    describe_outputs,
    marker_path,
    outputs_intact,
    read_marker,
    write_marker,
)

FAILURE_MARKER = "failure"


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How a chain is run.

    Attributes
    ----------
    retry_failed : bool
        Try again a stage that failed before with the same key.
    redo : frozenset of str
        Stages that are run even when their result is there.
    only : frozenset of str or None
        The only stages that may be run; a scan that needs another fails with a sentence.
    tool_versions : mapping
        Written into every marker.
    on_stage : callable
        Called with (scan key, stage name, seconds, reused) after each stage.
    require_lease : callable
        Called before anything is published; raises :class:`LeaseLostError` when another run has taken the scan over.
    stage_timeout_s : float or None
        A stage that takes longer ends this process.
    log_folder : str
        Where tracebacks go, relative to the output directory.
    """

    retry_failed: bool = False
    redo: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    tool_versions: Mapping[str, str]
    on_stage: Callable[[str, str, float, bool], None] = lambda *_: None
    require_lease: Callable[[], None] = lambda: None
    stage_timeout_s: float | None = None
    log_folder: str = "logs"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainResult:
    """The state after the last stage, computed only when asked for, and how it came about."""

    state: Callable[[], Any]
    provenance: tuple[Provenance, ...]
    markers: Mapping[str, Marker]

    @property
    def source_sha256(self) -> str:
        """Hash of the scan's file, which the first stage read."""
        return next((entry.input_sha256.get("source", "") for entry in self.provenance), "")

    @property
    def changed(self) -> bool:
        """Tell whether any stage was computed in this run."""
        return any(not entry.reused for entry in self.provenance)


def run_chain(
    stages: Sequence[Stage], scan: T1wScan, source_sha256: str, files: ScanFiles, options: ChainOptions
) -> ChainResult | Failure:
    """Bring a scan through its stages.

    A stage whose key is unchanged and whose outputs are intact is not run; its state is loaded only when a
    later stage needs it. A stage's failure is returned, not raised, and remembered: the same failure is not
    computed twice unless `options.retry_failed`.

    Parameters
    ----------
    stages : sequence of Stage
    scan : T1wScan
        The state before the first stage.
    source_sha256 : str
        Hash of the scan's file.
    files : ScanFiles
    options : ChainOptions

    Raises
    ------
    OutputError
        When nothing can be written; that is no fault of the scan and ends the run.
    LeaseLostError
        When another run has taken the scan over.
    """
    earlier = None if options.retry_failed else _earlier_failure(files, scan)
    state: Callable[[], Any] = _always(scan)
    markers: dict[str, Marker] = {}
    provenance: list[Provenance] = []
    for stage in stages:
        inputs = {"source": source_sha256} if not stage.reads else {}
        for name in stage.reads:
            # The key as well as the bytes: a state is not always whole in the files (an ingested head is read
            # again from its source), so other voxels may leave the same files.
            inputs |= {f"stage {name}": markers[name].key} | markers[name].sha256_by_path
        key = content_key(stage, inputs)
        if earlier is not None and earlier[1:] == (stage.name, key):
            return replace(earlier[0], provenance=tuple(provenance), remembered=True)
        try:
            with attributed(scan.key, stage.name), _memory_told(stage.name):
                state, marker, reused = _advance(stage, state, key, inputs, files, options)
        except (OutputError, LeaseLostError):
            raise
        except BrainstageError as error:
            options.require_lease()  # a failure is a result too, and so may no longer be ours to publish
            failure = replace(_known_failure(error, scan, stage.name), provenance=tuple(provenance))
            # What the installation lacks, or what happened to the file meanwhile, is no property of the scan: it is
            # simply tried again.
            passing = isinstance(error, (ToolError, SourceChangedError))
            if options.only is None:
                record_failure(failure, files, "" if passing else key)
            return failure
        except Exception as error:  # noqa: BLE001 - the one place that meets the unexpected: a row, not a crash
            options.require_lease()
            path = files.out_dir / options.log_folder / f"{scan.key}_{stage.name}_traceback.txt"
            write_text(path, _shown_traceback(error, (files.out_dir, scan.path.parent, Path.home())))
            failure = replace(
                _defect(error, scan, stage.name, files.relative(path)), provenance=tuple(provenance)
            )
            record_failure(failure, files, key)
            return failure
        markers[stage.name] = marker
        provenance.append(provenance_of(marker, reused=reused))
        options.on_stage(scan.key, stage.name, marker.seconds, reused)
    (files.state / f"{FAILURE_MARKER}.json").unlink(missing_ok=True)
    return ChainResult(state=state, provenance=tuple(provenance), markers=markers)


@contextmanager
def _memory_told(stage: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise StageError(
            f"the {stage} stage needs more memory than there is; run again with fewer --nprocs and --retry-failed"
        ) from error


def _advance(
    stage: Stage,
    before: Callable[[], Any],
    key: str,
    inputs: Mapping[str, str],
    files: ScanFiles,
    options: ChainOptions,
) -> tuple[Callable[[], Any], Marker, bool]:
    marker = read_marker(files, stage.name)
    if marker and marker.key == key and stage.name not in options.redo and outputs_intact(marker, files):
        return _once(lambda: stage.load(before(), files)), marker, True
    if options.only is not None and stage.name not in options.only:
        raise StageError(
            f"the {stage.name} stage has not been run with these options; run again without --reports-only"
        )
    begin_attempt(files, stage.name, key)
    started = time.perf_counter()
    with _staging(files) as staging:
        with time_limit(files, options.stage_timeout_s):
            after = stage.run(before())
            written = stage.save(after, staging)
        fresh = Marker(
            stage=stage.name,
            key=key,
            version=stage.version,
            parameters=stage.parameters,
            inputs=inputs,
            outputs=describe_outputs(written, staging),
            tool_versions=options.tool_versions,
            seconds=time.perf_counter() - started,
            attempt=(marker.attempt + 1) if marker and marker.key == key else 1,
        )
        options.require_lease()
        _publish(fresh, marker, staging, files)
    return _always(after), fresh, False


@contextmanager
def _staging(files: ScanFiles) -> Iterator[ScanFiles]:
    """Give a place of the same file system where a stage can write all its outputs before the first is published."""
    folder = files.state / temporary_name()
    try:
        yield replace(files, out_dir=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(fresh: Marker, earlier: Marker | None, staging: ScanFiles, files: ScanFiles) -> None:
    """Move a stage's outputs to their places, then write its marker.

    The earlier marker goes first: from here on the outputs are not what it says. Should a loss of power keep the
    marker and lose an output, the next run sees that they do not agree. Outputs that only it names are
    removed, for nothing would vouch for them any more.
    """
    try:
        marker_path(files, fresh.stage).unlink(missing_ok=True)
        for name in (
            {stored.path for stored in earlier.outputs} - set(fresh.sha256_by_path) if earlier else ()
        ):
            (files.out_dir / name).unlink(missing_ok=True)
        for stored in fresh.outputs:
            place = files.out_dir / stored.path
            make_folder_of(place)
            (staging.out_dir / stored.path).replace(place)
    except OSError as error:
        raise output_error(files.state, error) from error
    write_marker(files, fresh)


def _shown_traceback(error: Exception, places: Sequence[Path]) -> str:
    """Return the traceback of an error without the folders of this machine."""
    text = "".join(traceback.format_exception(error))
    # Of a library's file, what follows its installation; of any other, its last three parts.
    text = re.sub(
        r'File "(?:[^"]*/site-packages/)?([^"]*)"',
        lambda found: f'File "{"/".join(found[1].split("/")[-3:])}"',
        text,
    )
    for place in sorted(map(str, places), key=len, reverse=True):
        text = text.replace(place, "...") if len(place) > 1 else text
    return text


def _always(value: object) -> Callable[[], Any]:
    return lambda: value


def _once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that computes its value at the first call and keeps it."""
    kept: list[Any] = []

    def value() -> Any:  # noqa: ANN401 - the states of the chain have no common type
        if not kept:
            kept.append(compute())
        return kept[0]

    return value


def provenance_of(marker: Marker, *, reused: bool) -> Provenance:
    """Return how a stage's result came about, from its marker."""
    return Provenance(
        stage=marker.stage,
        version=marker.version,
        parameters=marker.parameters,
        tool_versions=marker.tool_versions,
        input_sha256=marker.inputs,
        seconds=marker.seconds,
        attempt=marker.attempt,
        reused=reused,
    )


def _known_failure(error: BrainstageError, scan: T1wScan, stage: str) -> Failure:
    return Failure(scan=scan, stage=stage, error=type(error).__name__, message=error.message)


def _defect(error: Exception, scan: T1wScan, stage: str, log: str) -> Failure:
    return Failure(
        scan=scan,
        stage=stage,
        error=type(error).__name__,
        message=f"the {stage} stage met an error that was not foreseen ({type(error).__name__}); "
        f"this is a defect of brainstage, please report it with {log}",
        defect=True,
    )


@dataclass(frozen=True, kw_only=True)
class _KeptFailure:
    stage: str
    key: str
    error: str
    message: str
    defect: bool


def record_failure(failure: Failure, files: ScanFiles, key: str = "") -> None:
    """Remember a failure, so that a row and a report can be made of it later.

    Parameters
    ----------
    failure : Failure
    files : ScanFiles
    key : str
        Key of the stage that failed; with an empty one the scan is tried again in every run.
    """
    kept = _KeptFailure(
        stage=failure.stage, key=key, error=failure.error, message=failure.message, defect=failure.defect
    )
    write_json(files.state / f"{FAILURE_MARKER}.json", asdict(kept))


def read_failure(files: ScanFiles, scan: T1wScan) -> Failure | None:
    """Return the failure remembered for a scan, None when there is none."""
    found = _earlier_failure(files, scan)
    if found is None and os.path.lexists(files.state / f"{FAILURE_MARKER}.json"):
        # Whatever it said, what there may be of earlier results is not what the last run made of the scan.
        return Failure(
            scan=scan,
            stage="ingest",
            error="ManifestError",
            message=f"{FAILURE_MARKER}.json, which says why it failed, is damaged; run the participant level again",
        )
    return found[0] if found else None


def _earlier_failure(files: ScanFiles, scan: T1wScan) -> tuple[Failure, str, str] | None:
    """Return the failure remembered for a scan, with the stage and key that it is of."""
    kept = read_record(files.state / f"{FAILURE_MARKER}.json", _KeptFailure)
    if kept is None:
        return None
    failure = Failure(scan=scan, stage=kept.stage, error=kept.error, message=kept.message, defect=kept.defect)
    return failure, kept.stage, kept.key
