"""The file of a scan: opened without waiting for anybody, checked on its descriptor, hashed and read from there.

A dataset is looked through first and read later, maybe hours later and by another process. Meanwhile a file may have
become a pipe, a link out of the dataset, or another file. So whatever holds of a file is asked of what was opened,
and whoever reads it computes its hash from the very bytes that were read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.errors import BrainstageError, ImageError, InputMissingError, SourceChangedError
from brainstage.pipeline.files import (
    NotRegularError,
    opened_regular,
    read_json_or_empty,
    sha256_of_bytes,
    write_json,
)
from brainstage.pipeline.lease import this_machine
from brainstage.pipeline.records import T1wScan

MAX_FILE_BYTES: Final = 2 * 1024**3
LINK_LEADS_OUT: Final = (
    "the file is a link that leads out of the dataset, which is not followed; copy the file into the dataset"
)
_CHUNK: Final = 1024**2
_SHA256: Final = re.compile("[0-9a-f]{64}")
_OF_A_MACHINE: Final = ("machine", "device")


class HashingStream:
    """A stream that computes the SHA-256 of what is read from it.

    Parameters
    ----------
    stream : binary file
        At its beginning.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, to the end where it is negative."""
        content = self._stream.read(size)
        self._hash.update(content)
        return content

    def sha256_to_the_end(self) -> str:
        """Read whatever is left, and return the hash of all, hexadecimal."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


@contextmanager
def opened_source(path: Path, root: Path | None = None) -> Iterator[BinaryIO]:
    """Open an image file for reading, after making sure that it is one that may be read.

    Parameters
    ----------
    path : Path
    root : Path, optional
        A dataset: links that lead out of it and of the annexes around it are not followed.

    Raises
    ------
    InputMissingError
        No such file, or a link out of `root`.
    ImageError
        No regular file, empty, or larger than 2 GiB.
    """
    try:
        with opened_regular(path) as stream:
            _require_fit(path, os.fstat(stream.fileno()), root)
            yield stream
    except NotRegularError as error:
        raise ImageError(f"{path.name} is no regular file") from error
    except OSError as error:
        if isinstance(error, BrainstageError):
            raise
        raise InputMissingError(
            f"{path.name} cannot be read ({error.strerror or error}); with git-annex or DataLad, get its content first"
        ) from error


def sha256_of_source(path: Path, root: Path | None = None) -> str:
    """Return the SHA-256 of an image file, hexadecimal.

    Raises
    ------
    InputMissingError, ImageError
        See :func:`opened_source`.
    """
    with opened_source(path, root) as stream:
        return HashingStream(stream).sha256_to_the_end()


def known_sha256(scan: T1wScan, files: ScanFiles) -> str | None:
    """Return the hash of a scan's file as it was computed before; None when the file is not certainly the same one.

    The same are its place, its size and its times; that of the last change of state cannot be set by copying programs
    as that of the last change of content can.
    """
    known = read_json_or_empty(_record(files))
    try:
        stamp = _stamp(scan, scan.path.stat())
    except OSError:
        return None
    compared = known.keys() - {"sha256", *(() if known.get("machine") == stamp["machine"] else _OF_A_MACHINE)}
    sha256 = known.get("sha256")
    same = known.keys() - {"sha256"} == stamp.keys() and all(known[name] == stamp[name] for name in compared)
    return sha256 if same and isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None


def keep_sha256_of(scan: T1wScan, files: ScanFiles) -> str:
    """Compute the hash of a scan's file and keep it for :func:`known_sha256`.

    Raises
    ------
    InputMissingError, ImageError
        See :func:`opened_source`.
    """
    with opened_source(scan.path, scan.root) as stream:
        before = _stamp(scan, os.fstat(stream.fileno()))
        sha256 = HashingStream(stream).sha256_to_the_end()
        after = _stamp(scan, os.fstat(stream.fileno()))
    if before != after:
        raise SourceChangedError(
            f"{scan.path.name} was written to while it was read; run the same command again"
        )
    write_json(_record(files), after | {"sha256": sha256})
    return sha256


def link_fault(path: Path, places: Sequence[Path]) -> str | None:
    """Say why a path cannot be followed: a link out of some places, or one that leads nowhere."""
    try:
        if not path.exists():
            return "the file is a link to content that is not here; with git-annex or DataLad, get it first"
        resolved = path.resolve()
    except OSError as error:
        return f"the file cannot be reached: {error.strerror}"
    return None if _is_within(resolved, places) else LINK_LEADS_OUT


def _require_fit(path: Path, opened: os.stat_result, root: Path | None) -> None:
    if opened.st_size == 0:
        raise ImageError(f"{path.name} is empty: a failed download or copy")
    if opened.st_size > MAX_FILE_BYTES:
        raise ImageError(f"{path.name} has {opened.st_size} bytes; at most {MAX_FILE_BYTES} are read")
    if root is not None:
        _require_within(path, opened, root)


def _require_within(path: Path, opened: os.stat_result, root: Path) -> None:
    """Make sure that what was opened lies in a dataset, whatever its links were when the dataset was looked through."""
    try:
        resolved = path.resolve()
        same = os.path.samestat(resolved.stat(), opened)
    except OSError as error:
        raise InputMissingError(f"{path.name} cannot be reached: {error.strerror}") from error
    if not _is_within(resolved, followed_places(root)):
        raise InputMissingError(f"{path.name}: {LINK_LEADS_OUT}")
    if not same:
        raise SourceChangedError(f"{path.name} was replaced while it was opened; run the same command again")


def _is_within(resolved: Path, places: Sequence[Path]) -> bool:
    return any(resolved.is_relative_to(place) for place in places)


def followed_places(root: Path) -> tuple[Path, ...]:
    """Return where links may lead: a dataset, and the content of the git-annex repositories that it lies in."""
    resolved = root.resolve()
    found = [resolved]
    for folder in (resolved, *resolved.parents):
        git = folder / ".git"
        try:
            if git.is_file():  # of a submodule or a linked worktree: a line that says where it is
                git = folder / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            objects = (git / "annex" / "objects").resolve()
            if objects.is_dir():
                found.append(objects)
        except (OSError, ValueError):
            continue  # may not be read: nothing in it can be followed
    return tuple(found)


def _record(files: ScanFiles) -> Path:
    return files.state / "source.json"


def _stamp(scan: T1wScan, status: os.stat_result) -> dict[str, int | str]:
    """Return by what a file is known again.

    Devices are numbered by each machine for itself, and anew when it starts.
    """
    return {
        "dataset": sha256_of_bytes(os.fsencode(scan.root.absolute())),
        "machine": this_machine(),
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }
