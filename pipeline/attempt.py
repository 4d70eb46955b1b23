"""What a scan was at when its process died, and how often that has happened.

A process that is killed leaves no word. So a scan's stage is noted before it is begun; whoever outlives the process
reads the note, counts, and decides whether the scan gets another chance.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import output_error
from brainstage.pipeline.files import make_folder_of, write_json
from brainstage.pipeline.kept import read_record

NOTES: Final = ("running.json", "deaths.json", "last_words.txt")
"""What a scan is at, how often its process died, and what the last one said."""
DEATHS_ALLOWED: Final = 1
"""A scan that takes a second process with it is set aside."""
START: Final = "start"
DEATHS_BEFORE_START_ALLOWED: Final = 9
"""A scan that only waited in a process that died is not to blame; but workers that never start must come to an end."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A stage that was begun.

    Attributes
    ----------
    stage : str
    key : str
        Of the stage; empty where it has none.
    started : float
        Seconds since the epoch.
    """

    stage: str
    key: str
    started: float


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """How often a process died over one stage of a scan.

    Attributes
    ----------
    stage, key : str
    count : int
    hung : bool
        The last one was stopped because the stage took too long.
    """

    stage: str
    key: str
    count: int
    hung: bool

    @property
    def too_many(self) -> bool:
        """Tell whether the scan is to be set aside."""
        return self.count > (DEATHS_BEFORE_START_ALLOWED if self.stage == START else DEATHS_ALLOWED)


def begin_attempt(files: ScanFiles, stage: str, key: str = "") -> None:
    """Note that a stage of a scan is begun; the note is for this moment, so it is not flushed to the disk."""
    path = _note(files)
    try:
        make_folder_of(path)
        with _fresh(path) as stream:
            stream.write(json.dumps(asdict(Attempt(stage=stage, key=key, started=time.time()))).encode())
    except OSError as error:
        raise output_error(path, error) from error


def end_attempt(files: ScanFiles) -> None:
    """Note that the process is done with the scan, alive."""
    _note(files).unlink(missing_ok=True)
    _last_words(files).unlink(missing_ok=True)


def read_attempt(files: ScanFiles) -> Attempt | None:
    """Return what a scan is at, or was at when its process died; None when it is at nothing."""
    return read_record(_note(files), Attempt)


def count_death(files: ScanFiles) -> Deaths:
    """Count that the process which had a scan has died; under ``start`` when it had not begun with it."""
    attempt = read_attempt(files) or Attempt(stage=START, key="", started=0.0)
    earlier = read_deaths(files)
    same = earlier is not None and (earlier.stage, earlier.key) == (attempt.stage, attempt.key)
    deaths = Deaths(
        stage=attempt.stage,
        key=attempt.key,
        count=(earlier.count if earlier and same else 0) + 1,
        hung=_said_something(_last_words(files)),
    )
    write_json(_deaths(files), asdict(deaths))
    _last_words(files).unlink(missing_ok=True)
    end_attempt(files)
    return deaths


def read_deaths(files: ScanFiles) -> Deaths | None:
    """Return the deaths counted for a scan; None when there are none."""
    return read_record(_deaths(files), Deaths)


def forget_deaths(files: ScanFiles) -> None:
    """Give a scan a fresh start."""
    _deaths(files).unlink(missing_ok=True)


@contextmanager
def time_limit(files: ScanFiles, seconds: float | None) -> Iterator[None]:
    """End this process when the block takes longer; None for no limit.

    The watch is a thread of C, so it also ends a library that never lets the interpreter run again. What it says
    before it does tells :func:`count_death` that it was the time, and is not kept.
    """
    if seconds is None:
        yield
        return
    path = _last_words(files)
    try:
        stream = _fresh(path)
    except OSError as error:
        raise output_error(path, error) from error
    with stream:
        faulthandler.dump_traceback_later(seconds, exit=True, file=stream)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    path.unlink(missing_ok=True)


def _fresh(path: Path) -> BinaryIO:
    """Open an empty file of this name; whatever stood there is removed, not followed or written into."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def _note(files: ScanFiles) -> Path:
    return files.state / NOTES[0]


def _deaths(files: ScanFiles) -> Path:
    return files.state / NOTES[1]


def _last_words(files: ScanFiles) -> Path:
    return files.state / NOTES[2]


def _said_something(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
