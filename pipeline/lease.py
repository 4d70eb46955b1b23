"""Who is at work on something: one process at a time, whatever else runs on the output directory.

A lease is a small file that only one process can create. Its holder touches it every few seconds. It is taken over
when its holder is gone: at once when that was a process of this machine that no longer lives, after
:data:`ABANDONED_S` without a sign of life otherwise. A holder that was only thought dead asks
:meth:`Lease.still_held` before it publishes anything.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

import psutil

from brainstage.pipeline.errors import LeaseHeldError, LeaseLostError, output_error
from brainstage.pipeline.files import make_folder_of, read_json, sha256_of_bytes, temporary_name, time_in
from brainstage.pipeline.kept import as_record

HEARTBEAT_S: Final = 10.0
ABANDONED_S: Final = 300.0
"""Longer than any library keeps the interpreter from running the heartbeat, a loaded machine included."""
WAIT_S: Final = 0.5
WAIT_AT_MOST_S: Final = 7200.0
"""For one holder. Tables over 100,000 scans take an hour."""
SAY_FIRST_S: Final = 10.0
SAY_EVERY_S: Final = 300.0
READS: Final = 5
REREAD_S: Final = 0.05
"""A network file system may fail to read a file for once, and a lease that is not recognised is not given back."""
SAME_START_S: Final = 5.0
"""The start of a process is counted from the machine's, which moves when its clock is set."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a lease file holds.

    Attributes
    ----------
    token : str
        Drawn anew for every lease.
    machine : str
        Hash of host, boot and process namespace: where `pid` means something.
    pid : int
    process_started : float
        Seconds since the epoch; tells a process from a later one of the same number.
    """

    token: str
    machine: str
    pid: int
    process_started: float


class Lease:
    """A lease that this process holds; made by :func:`acquire`.

    Parameters
    ----------
    path : Path
    token : str
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token
        self._released = threading.Event()
        # A daemon: it must not keep a process alive whose work is over.
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def still_held(self) -> bool:
        """Tell whether nobody has taken the lease over."""
        holder = _read(self.path)
        return holder is not None and holder.token == self.token

    def require(self) -> None:
        """Raise :class:`LeaseLostError` when another process has taken the lease over."""
        if not self.still_held():
            raise LeaseLostError(
                "another run took this over, because this one had given no sign of life for "
                f"{ABANDONED_S:.0f} s; its result is used"
            )

    def release(self) -> None:
        """Give the lease back."""
        self._released.set()
        if self.still_held():
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S) and not self._taken_over():
            with suppress(OSError):
                os.utime(self.path)

    def _taken_over(self) -> bool:
        """Tell whether the lease is another's or gone; a file that cannot be read for once says neither."""
        holder = _read(self.path)
        if holder is not None:
            return holder.token != self.token
        try:
            self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            pass
        return False


def acquire(path: Path) -> Lease | None:
    """Take a lease; None while another process holds it.

    Parameters
    ----------
    path : Path
        Its folder is made when absent.

    Raises
    ------
    OutputError
        When the file system refuses.
    """
    try:
        make_folder_of(path)
        if path.exists() and not _cleared(path):
            return None
        return _created(path)
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def held(path: Path) -> Iterator[Lease | None]:
    """Hold a lease for the length of a block; None inside it while another process holds it."""
    lease = acquire(path)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


@contextmanager
def waited_for(path: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """Hold a lease for the length of a block, after waiting for whoever holds it.

    Parameters
    ----------
    path : Path
    say : callable
        Told now and then who is waited for.

    Raises
    ------
    LeaseHeldError
        When one holder has not come to an end within ``WAIT_AT_MOST_S``.
    """
    lease = acquire(path) or _awaited(path, say)
    try:
        yield lease
    finally:
        lease.release()


def _awaited(path: Path, say: Callable[[str], None]) -> Lease:
    """Return a lease as soon as its holder gives it back; the time runs anew with each holder."""
    holder, since, told = _read(path), time.monotonic(), 0
    while (lease := acquire(path)) is None:
        time.sleep(WAIT_S)
        now = _read(path)
        if now is not None and now != holder:
            holder, since, told = now, time.monotonic(), 0
        waited_s = time.monotonic() - since
        if waited_s > WAIT_AT_MOST_S:
            raise LeaseHeldError(
                f"{path.name} is held by {_named(holder)}, which is alive and has not given it back in "
                f"{waited_s / 60:.0f} min: most likely it hangs. End it and run the same command again; finished work "
                "is kept"
            )
        if waited_s >= SAY_EVERY_S * told + SAY_FIRST_S:
            told += 1
            say(
                f"waiting for {_named(holder)}, which is writing here ({path.name}), for {waited_s:.0f} s now"
            )
    return lease


def _named(holder: Holder | None) -> str:
    """Return words for the holder of a lease, by which a person can find it."""
    if holder is None:
        return "another process"
    began = datetime.fromtimestamp(holder.process_started).astimezone().isoformat(" ", "minutes")
    place = "this machine" if holder.machine == this_machine() else "another machine"
    return f"process {holder.pid} of {place}, begun {began}"


def clear_if_abandoned(path: Path) -> None:
    """Remove a lease whose holder is gone, such as a worker that was stopped."""
    with suppress(OSError):
        if path.exists():
            _cleared(path)


def is_held(path: Path) -> bool:
    """Tell whether a live process holds a lease."""
    holder = _read(path)
    return path.exists() if holder is None else not _is_gone(path, holder)


def _created(path: Path) -> Lease | None:
    holder = Holder(
        token=secrets.token_hex(8),
        machine=this_machine(),
        pid=os.getpid(),
        process_started=process_started(os.getpid()) or 0.0,
    )
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(holder)))
    return Lease(path, holder.token)


def _cleared(path: Path) -> bool:
    """Remove a lease whose holder is gone; tell whether it was one."""
    holder = _read(path)
    if not _is_gone(path, holder):
        return False
    aside = path.with_name(temporary_name(path.name))
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True  # given back, or cleared by another, meanwhile
    taken = _read(aside)
    # One that cannot be read is known by its silence only; a lease that was just taken is not silent.
    if taken == holder and (taken is not None or _is_gone(aside, None)):
        aside.unlink(missing_ok=True)
        return True
    # Between the look and the rename another process took it over: it gets its lease back.
    with suppress(OSError):
        os.link(aside, path)
    aside.unlink(missing_ok=True)
    return False


def _is_gone(path: Path, holder: Holder | None) -> bool:
    if holder is not None and holder.machine == this_machine():
        if not is_alive(holder.pid, holder.process_started):
            return True
        if holder.pid != os.getpid():
            return False
        # Of this very process: a lease that it could not give back gives no signs of life.
    try:
        return time_in(path.parent) - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return True


def _read(path: Path) -> Holder | None:
    """Return who holds a lease; None where nobody does, or it cannot be told."""
    for _ in range(READS):
        try:
            return as_record(read_json(path), Holder)
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(REREAD_S)
        except ValueError:  # just being written, or damaged
            return None
    return None


def is_alive(pid: int, since: float) -> bool:
    """Tell whether the process of this machine that was started at a time, in seconds since the epoch, still lives."""
    started = process_started(pid)
    return started is not None and abs(started - since) <= SAME_START_S


def process_started(pid: int) -> float | None:
    """Return when a living process of this machine was started; None when there is none, or only its remains."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError, OverflowError):  # gone, or no number that a process can have
        return None


@cache
def this_machine() -> str:
    """Return a hash of host, boot and process namespace."""
    parts = [platform.node()]
    with suppress(OSError):  # only where there is /proc
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
        parts += [str(Path("/proc/self/ns/pid").stat().st_ino)]
    return sha256_of_bytes("\n".join(parts).encode())[:16]
