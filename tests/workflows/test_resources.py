"""How many workers, with how much memory, and why: the reason is printed."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from brainstage.pipeline.errors import StorageError
from brainstage.workflows import resources
from brainstage.workflows.resources import check_space, choose_engine, folder_for_jobs
from brainstage.workflows.run import RunOptions

Usage = namedtuple("Usage", "total used free")


def asked(**options) -> RunOptions:
    return RunOptions(bids_dir=Path("bids"), out_dir=Path("out"), overrides={}, **options)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 8 processors with 10 GB free."""
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(8)))
    free = SimpleNamespace(available=10 * 1024**3)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: free)
    return free


@pytest.mark.parametrize(
    ("options", "scans", "workers", "threads", "memory_gb"),
    [
        ({}, 100, 3, 2, 10 / 3),
        ({}, 2, 2, 4, 5.0),
        ({"memory_gb": 24.0}, 100, 8, 1, 3.0),
        ({"memory_gb": 2.0}, 100, 1, 8, 2.0),
        ({"processes": 6}, 100, 6, 1, 3.0),
        ({"processes": 4, "memory_gb": 8.0}, 100, 4, 2, 2.0),
        ({"threads": 5}, 100, 3, 5, 10 / 3),
        ({"deterministic": True}, 2, 2, 1, 5.0),
    ],
)
def test_workers_follow_processors_and_memory(options, scans, workers, threads, memory_gb):
    engine, _ = choose_engine(asked(**options), scans, None)
    assert (engine.workers, engine.threads) == (workers, threads)
    assert engine.worker_memory_gb == pytest.approx(memory_gb)


def test_little_free_memory_stops_no_worker_that_needs_a_normal_share(machine):
    machine.available = 1024**3
    engine, _ = choose_engine(asked(), 100, None)
    assert (engine.workers, engine.worker_memory_gb) == (1, resources.MEMORY_PER_WORKER_GB)


def test_the_reason_is_told():
    assert choose_engine(asked(), 100, None)[1] == (
        "3 at a time, 2 thread(s) each: 8 processor(s), 10.0 GB free for 3 of 3 GB"
    )
    assert choose_engine(asked(memory_gb=6.0, processes=2), 9, None)[1].endswith(
        "6.0 GB given for 2 of 3 GB, --nprocs 2"
    )


def test_slurm_gets_its_job(tmp_path):
    options = asked(
        engine="slurm",
        processes=4,
        memory_gb=32.0,
        slurm_partition="main",
        slurm_directives=("--gres=gpu:1",),
    )
    engine, reason = choose_engine(options, 100, tmp_path)
    assert engine.slurm is not None
    assert (engine.slurm.partition, engine.slurm.walltime, engine.slurm.folder) == (
        "main",
        "08:00:00",
        tmp_path,
    )
    assert (engine.workers, engine.threads, engine.worker_memory_gb, engine.gpu) == (4, 1, 8.0, True)
    assert reason == "at most 4 at a time on slurm, 1 thread(s) each"


def test_only_slurm_needs_a_folder_and_it_goes_when_the_run_ends(tmp_path):
    with folder_for_jobs(asked()) as none:
        assert none is None
    with folder_for_jobs(asked(engine="slurm", work_dir=tmp_path)) as folder:
        assert folder is not None
        assert folder.parent == tmp_path
    assert not folder.exists()


@pytest.mark.parametrize(("free_gb", "told"), [(100.0, 0), (1.0, 1)])
def test_a_disk_that_may_become_full_is_told(monkeypatch, free_gb, told):
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, free_gb * 1024**3))
    lines = []
    check_space(Path("out"), 100, SimpleNamespace(note=lines.append))
    assert len(lines) == told


def test_a_disk_without_room_for_one_scan_is_refused(monkeypatch):
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, 10 * 1024**2))
    with pytest.raises(StorageError, match=r"out: 0\.01 GB free, about 0\.06 GB needed for 1 scans"):
        check_space(Path("out"), 1, SimpleNamespace(note=None))
