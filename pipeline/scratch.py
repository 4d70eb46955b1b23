"""Folders for what a tool leaves on disk while it computes: they know whose they are, and none outlives its process.

A process that is killed cannot clean up, and what ANTs had written by then shows a brain. The name of a folder says
which process of which machine made it; any later process of the same user there removes those of the dead.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

from brainstage.pipeline.lease import is_alive, process_started, this_machine

PREFIX: Final = "brainstage-"
_OURS: Final = re.compile(rf"{PREFIX}([0-9a-f]{{16}})-([0-9]+)-([0-9]+)-.+")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder in the temporary directory, for the length of a block."""
    started = round(process_started(os.getpid()) or 0.0)
    prefix = f"{PREFIX}{this_machine()}-{os.getpid()}-{started}-"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)


def remove_abandoned_scratch() -> int:
    """Remove the scratch folders of processes of this user and machine that live no more; return how many."""
    removed = 0
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            with suppress(OSError):
                removed += _is_abandoned(entry) and _removed(Path(entry.path))
    return removed


@cache
def sweep_scratch_once() -> None:
    """Do :func:`remove_abandoned_scratch` at the first call in this process."""
    remove_abandoned_scratch()


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    found = _OURS.fullmatch(entry.name)
    if found is None or found[1] != this_machine() or not entry.is_dir(follow_symlinks=False):
        return False
    if entry.stat(follow_symlinks=False).st_uid != os.getuid():
        return False
    return not is_alive(int(found[2]), float(found[3]))


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder)
    return True
