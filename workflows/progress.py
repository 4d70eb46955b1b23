"""What a run says while it works: a live bar per stage on a terminal, plain lines elsewhere, and the run's log."""

from __future__ import annotations

import json
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from brainstage.pipeline.errors import output_error
from brainstage.pipeline.records import Completed, Failure, SubjectOutcome
from brainstage.workflows.gate import decide

STAGE_ORDER: Final = (
    "ingest",
    "brain_extraction",
    "bias_field",
    "intensity",
    "registration",
    "quality",
    "volumes",
    "figures",
    "prediction",
)


class Progress:
    """Tells about the progress of a run; a context manager.

    Parameters
    ----------
    stream : file
        Where it is written; a live display is used when this is a terminal.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._live: Any = None
        self._bars: dict[str, Any] = {}
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, scans: int) -> None:
        """Set up the bars for a number of scans."""
        if not self._stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as LiveProgress

        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._live = LiveProgress(*columns, console=Console(file=self._stream))
        self._bars["scans"] = self._live.add_task("scans", total=scans)
        for name in STAGE_ORDER[:-1]:
            self._bars[name] = self._live.add_task(name, total=scans)
        self._live.start()

    def stage(self, scan: str, stage: str, seconds: float, reused: bool) -> None:
        """Tell that a stage of a scan is finished."""
        if (scan, stage) in self._told:
            return
        self._told.add((scan, stage))
        if self._live is None:
            if not reused:
                self.note(f"{scan}: {stage} {seconds:.1f} s")
            return
        if stage not in self._bars:
            self._bars[stage] = self._live.add_task(stage, total=self._live.tasks[0].total)
        self._live.advance(self._bars[stage])

    def outcome(self, outcome: SubjectOutcome) -> None:
        """Tell that a scan is finished, with whatever stages were not told yet."""
        for entry in outcome.provenance:
            self.stage(outcome.scan.key, entry.stage, entry.seconds, entry.reused)
        if self._live is not None:
            self._live.advance(self._bars["scans"])
        if isinstance(outcome, Failure):
            self.note(f"{outcome.scan.key}: failed in {outcome.stage}: {outcome.message}")

    def note(self, line: str) -> None:
        """Write one line."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def summary(self, outcomes: Sequence[SubjectOutcome]) -> None:
        """Write what became of all scans."""
        statuses = Counter(str(decide(outcome).status) for outcome in outcomes)
        qc = Counter(str(outcome.verdict.status) for outcome in outcomes if not isinstance(outcome, Failure))
        self.note(f"{len(outcomes)} scans: " + ", ".join(f"{n} {name}" for name, n in statuses.most_common()))
        if qc:
            self.note("quality control: " + ", ".join(f"{n} {name}" for name, n in qc.most_common()))


class RunLog:
    """``logs/run-<time>-<id>.jsonl``: one line per finished stage and scan; a context manager.

    Parameters
    ----------
    out_dir : Path
    started : str
        When the run began.
    """

    def __init__(self, out_dir: Path, started: str) -> None:
        stamp = "".join(c for c in started if c.isdigit())
        self._path = out_dir / "logs" / f"run-{stamp}-{secrets.token_hex(3)}.jsonl"
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise output_error(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def account(self, lines: Sequence[str]) -> None:
        """Write what became of the dataset's participants, files and labels."""
        self._write(json.dumps({"event": "account", "lines": list(lines)}, ensure_ascii=False) + "\n")

    def reviews(self, outcomes: Iterable[SubjectOutcome]) -> None:
        """Write which decisions of a person about some scans are not applied, and why."""
        decided = [outcome for outcome in outcomes if isinstance(outcome, Completed) and outcome.scan.review]
        if decided:
            event = {
                "event": "reviews",
                "applied": sum(outcome.review is not None for outcome in decided),
                "not_applied": {one.scan.key: one.review_objection for one in decided if one.review is None},
                "bound_to_path_alone": [
                    one.scan.key for one in decided if one.review and not one.review.sha256
                ],
            }
            self._write(json.dumps(event, ensure_ascii=False) + "\n")

    def note(self, line: str) -> None:
        """Write a sentence about the whole run."""
        self._write(json.dumps({"event": "note", "line": line}, ensure_ascii=False) + "\n")

    def outcome(self, outcome: SubjectOutcome) -> None:
        """Write the stages of a scan, then the scan itself."""
        key = outcome.scan.key
        events: list[dict[str, object]] = [
            {
                "event": "stage",
                "scan": key,
                "stage": entry.stage,
                "seconds": entry.seconds,
                "reused": entry.reused,
                "attempt": entry.attempt,
            }
            for entry in outcome.provenance
        ]
        failure = outcome if isinstance(outcome, Failure) else None
        events.append(
            {
                "event": "scan",
                "scan": key,
                "status": str(decide(outcome).status),
                "stage": failure.stage if failure else None,
                "error": failure.error if failure else None,
                "message": failure.message if failure else None,
            }
        )
        self._write("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))

    def _write(self, lines: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(lines)
            self._stream.flush()
        except OSError as error:
            raise output_error(self._path, error) from error


def standard_progress() -> Progress:
    """Return a progress that writes to standard error, so that standard output stays free for results."""
    return Progress(sys.stderr)
