"""Writing files so that a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline.errors import InputMissingError, output_error

TEMPORARY_PREFIX = ".tmp-"
"""Every unfinished file begins with this; what a killed process left behind can be told and removed."""
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_CHUNK: Final = 1024**2
LARGEST_BYTES: Final = 256 * 1024**2
"""Of a table, a description or a configuration, with room to spare; a sparse file can hold terabytes of nothing."""


def temporary_name(final_name: str = "") -> str:
    """Return a name that no other process draws, for something unfinished; the final name is its ending."""
    return f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{final_name}"


def make_folder_of(path: Path) -> None:
    """Make the folder that `path` lies in; a look is cheaper than an attempt where it is there already."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)


def publish(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary sibling of `path`, flush it to disk, and rename it into place.

    Parameters
    ----------
    path : Path
        Final name; its folder is made when absent.
    write : callable
        Gets the temporary path, which carries the final name as its ending, and writes it whole.

    Raises
    ------
    OutputError, StorageError
        When the file system refuses; the temporary file is removed.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        make_folder_of(path)
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        # Where the folder itself cannot be written, there is nothing to remove, and the first error is the one to tell.
        with suppress(OSError):
            temporary.unlink()
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one rename."""
    return publish(path, lambda temporary: _fill(temporary, content))


def write_text(path: Path, text: str) -> Path:
    r"""Write `text` as UTF-8 with LF line ends in one rename.

    Bytes in a file's name that are no UTF-8 become ``\udcXX``, which is how JSON writes them.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write `content` as readable JSON in one rename; NaN and infinity are refused, JSON has no word for them."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class NotRegularError(OSError):
    """What was opened is a pipe, a device or a folder: reading it could wait for ever, or change something."""


@contextmanager
def opened_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading without waiting for anybody.

    Raises
    ------
    OSError
        As the operating system gives it.
    NotRegularError
        For what is no regular file, links followed.
    """
    descriptor, _ = _descriptor_of_regular(path)
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def read_regular(path: Path, at_most_bytes: int = LARGEST_BYTES) -> bytes:
    """Return the content of a file; a pipe is not waited for, and a giant not read.

    Without a stream around it: a run over thousands of scans reads ten small files of each to see that all is done.

    Parameters
    ----------
    path : Path
    at_most_bytes : int
        A larger file is refused before it is read.

    Raises
    ------
    OSError
        When it cannot be read, is too large, or is no regular file; ``strerror`` says which.
    """
    descriptor, size = _descriptor_of_regular(path)
    try:
        if size > at_most_bytes:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {at_most_bytes} are read")
        content = os.read(descriptor, size + 1)
        while more := os.read(descriptor, _CHUNK) if content else b"":
            content += more
        return content
    finally:
        os.close(descriptor)


def _descriptor_of_regular(path: Path) -> tuple[int, int]:
    """Open a file; return its descriptor and its size in bytes."""
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "it is no regular file")
    return descriptor, status.st_size


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what a JSON file in UTF-8 holds; as bytes, for opening it as text takes as long as parsing it.

    Raises
    ------
    OSError
        When it cannot be read, as by :func:`read_regular`.
    ValueError
        When it is no JSON, or nested deeper than anybody means.
    """
    try:
        return json.loads(read_regular(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in one of our own small JSON files; empty when it is absent or cannot be understood."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content`, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises
    ------
    InputMissingError
        When the file cannot be read, or is none.
    """
    try:
        with opened_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputMissingError(f"cannot read {path.name}: {error.strerror or error}") from error


def sha256_of_json(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping in canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return sha256_of_bytes(canonical.encode("utf-8", "backslashreplace"))


def _fill(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)


LEFTOVER_AGE_S = 24 * 3600.0
"""An unfinished file of this age belongs to no running process."""
_OUR_TEMPORARY: Final = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{8}-.*")
"""What :func:`temporary_name` makes; whatever else begins like that is somebody's."""


def remove_leftovers(folder: Path, older_than_s: float = LEFTOVER_AGE_S) -> int:
    """Remove unfinished files and folders that killed processes left in `folder`; return how many.

    Younger ones are left alone: another run may be writing them. Where a lease says that there is no other, the age
    can be 0.
    """
    removed = 0
    unfinished = [path for path in folder.glob(f"{TEMPORARY_PREFIX}*") if _OUR_TEMPORARY.fullmatch(path.name)]
    now = time_in(folder) if unfinished else 0.0
    for path in unfinished:
        try:
            if now - path.stat().st_mtime >= older_than_s:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed += 1
        except OSError:
            continue  # gone meanwhile, or not ours to remove
    return removed


def time_in(folder: Path) -> float:
    """Return the time by the clock of a folder's file system, which other machines write their times with, too."""
    probe = folder / temporary_name()
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a folder that may only be read
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()
