"""Disks that are full or may only be read: the run says so with its exit code, and goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

import pytest
from kills import digests, wait_until

pytestmark = pytest.mark.slow

DONE, CANNOT_CREATE, IO_ERROR = 0, 73, 74


def fill(disk, leave_bytes: int):
    """Write a file that leaves so much room, while others may be writing."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(2**16))
    os.truncate(ballast, ballast.stat().st_size - leave_bytes)
    return ballast


def test_a_disk_that_becomes_full_ends_the_run_and_the_next_one_goes_on(cohort, small_disk, tmp_path):
    assert cohort.run(out=tmp_path / "undisturbed")[0] == DONE
    out = small_disk / "out"
    process = cohort.start(out=out, orders={"pace": 0.1})
    wait_until(lambda: (out / ".brainstage" / "sub-01" / "ingest.json").exists())
    ballast = fill(small_disk, 20_000)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == IO_ERROR, said
    assert "No space left on device" in said
    assert "finished work is kept" in said
    assert not [path for path in out.rglob("*_T1w.nii.gz") if path.stat().st_size != 1024], (
        "nothing is half-written"
    )
    ballast.unlink()
    code, said = cohort.run(out=out)
    assert code == DONE, said
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert not list(out.rglob(".tmp-*"))


def test_a_disk_without_room_for_one_scan_is_refused_at_once(cohort, small_disk):
    fill(small_disk, 10_000_000)
    code, said = cohort.run(out=small_disk / "out")
    assert code == IO_ERROR
    assert "GB free, about" in said


def test_an_output_directory_that_may_only_be_read_is_refused(cohort, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, said = cohort.run(out=small_disk / "out")
    assert code == CANNOT_CREATE
    assert "Read-only file system" in said
