"""One scan from its file to its report: who reads the file, when, and what a file may do meanwhile."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.errors import ExitCode
from brainstage.pipeline.records import Completed, Failure
from brainstage.workflows import participant
from brainstage.workflows.participant import ScanTask, finished_outcome, process_scan
from brainstage.workflows.progress import Progress
from brainstage.workflows.run import RunOptions, run
from brainstage.workflows.run_context import RunContext

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from stand_in import stand_in_stages

ONE, TWO = (f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2))


@pytest.fixture
def bids(bids_tree: Callable[..., Path]) -> Path:
    return bids_tree(ONE)


@pytest.fixture
def task(bids: Path, tmp_path: Path) -> Callable[..., ScanTask]:
    def make(expected_sha256: str | None = None, **context: object) -> ScanTask:
        shared = RunContext(out_dir=tmp_path / "out", config=Config(), chain=stand_in_stages, **context)
        return ScanTask(scan=read_dataset(bids).scans[0], context=shared, expected_sha256=expected_sha256)

    return make


def test_the_driver_reads_no_image(
    task: Callable[..., ScanTask], bids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = process_scan(task())
    assert isinstance(outcome, Completed)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the driver read an image")

    for name in ("keep_sha256_of", "read_voxel_count"):
        monkeypatch.setattr(participant, name, refuse)
    assert isinstance(finished_outcome(task()), Completed)
    sha256 = outcome.scan.sha256
    assert sha256 is not None
    assert finished_outcome(task(sha256)) is None, "a manifest demands the bytes: that is a worker's work"
    os.utime(bids / ONE)
    assert finished_outcome(task()) is None


@pytest.mark.parametrize("what", ["pipe", "sparse"])
def test_what_is_no_image_file_costs_its_own_scan(
    bids_tree: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    bids = bids_tree(ONE, TWO)
    (bids / ONE).unlink()
    if what == "pipe":
        os.mkfifo(bids / ONE)
    else:
        with (bids / ONE).open("wb") as stream:
            stream.truncate(2**40)
    options = RunOptions(bids_dir=bids, out_dir=tmp_path / "out", overrides={}, processes=1)
    assert run(options, Progress(io.StringIO()), stand_in_stages) is ExitCode.SOME_SCAN_FAILED
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert ("no regular file" if what == "pipe" else "at most 2147483648 are read") in lines[1]
    assert lines[2].startswith("sub-02")
    assert ",no_model," in lines[2]


def test_an_image_that_does_not_fit_a_workers_memory_is_set_aside_before_it_is_read(
    task: Callable[..., ScanTask], bids: Path
) -> None:
    nib.save(nib.Nifti1Image(np.zeros((420, 400, 250), np.uint8), np.eye(4)), bids / ONE)
    failure = process_scan(task(worker_memory_gb=3.0))
    assert isinstance(failure, Failure)
    assert "needs about 3.1 GB of memory, and a worker has 3.0" in failure.message
    assert "--nprocs" in failure.message
    assert isinstance(process_scan(task(worker_memory_gb=4.0)), Completed), "and tried again in every run"
    assert isinstance(process_scan(task()), Completed)


def test_a_head_of_usual_size_is_tried_whatever_a_worker_has(task: Callable[..., ScanTask]) -> None:
    assert isinstance(process_scan(task(worker_memory_gb=0.5)), Completed)
