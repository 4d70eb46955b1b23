"""Who may read what a run writes, and what its ports answer to."""

from __future__ import annotations

import json
import os
import stat

import pytest

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.errors import UsageError
from brainstage.pipeline.records import Failure
from brainstage.workflows.arguments import build_parser
from brainstage.workflows.cli import main
from brainstage.workflows.participant import ScanTask, process_scan
from brainstage.workflows.run import OPEN_PORTS
from brainstage.workflows.run_context import RunContext

ONE = "sub-01/anat/sub-01_T1w.nii.gz"


def permissions(out):
    return {stat.S_IMODE(path.stat().st_mode) for path in [out, *out.rglob("*")]}


@pytest.mark.parametrize(("options", "allowed"), [((), 0o700), (("--umask", "027"), 0o750)])
def test_new_files_are_for_whom_the_umask_says(bids_tree, tmp_path, options, allowed):
    out = tmp_path / "out"
    assert main(["run", str(bids_tree(ONE)), str(out), *options]) == 1
    assert all(mode & ~allowed == 0 for mode in permissions(out))
    assert any(mode & 0o040 for mode in permissions(out)) is (allowed == 0o750)


def test_a_manifest_is_private_too(bids_tree, tmp_path):
    assert main(["manifest", str(bids_tree(ONE)), "-o", str(tmp_path / "data_manifest.csv")]) == 0
    assert stat.S_IMODE((tmp_path / "data_manifest.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize("mask", ["77", "078", "rwx", "00077"])
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(UsageError, match="not an octal mask"):
        build_parser().parse_args(["run", "a", "b", "--umask", mask])


def test_the_face_is_shown_only_when_asked_for():
    assert Config().reports.keep_face is False


@pytest.mark.slow
def test_a_stranger_gets_no_answer_from_the_scheduler():
    from distributed import Client

    from brainstage.pipeline.engine import EngineOptions, _connected, _own_version

    with _connected(EngineOptions(), 1, _own_version) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1")
        with pytest.raises((OSError, TypeError)):
            Client(address, timeout="3s")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "dask", "--dask-scheduler", "tcp://node7:8786"), "neither tls:// nor on this machine"),
        (("--engine", "dask", "--dask-scheduler", "192.0.2.7:8786"), "neither tls:// nor on this machine"),
        (("--allow-open-ports",), "--allow-open-ports is for --engine dask"),
    ],
)
def test_what_would_travel_in_clear_is_refused(bids_tree, tmp_path, capsys, options, said):
    assert main(["run", str(bids_tree(ONE)), str(tmp_path / "out"), *options]) == 64
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ports_that_answer_without_keys_are_in_the_log_of_the_run(bids_tree, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ("--engine", "dask", "--dask-scheduler", "tcp://node7.invalid:8786", "--allow-open-ports")
    assert main(["run", str(bids_tree(ONE)), str(out), *asked]) == 75
    assert "can run code as you" in capsys.readouterr().err
    (log,) = (out / "logs").glob("run-*.jsonl")
    notes = [json.loads(line) for line in log.read_text().splitlines()]
    assert [note["line"] for note in notes if note["event"] == "note"] == [OPEN_PORTS]


@pytest.mark.parametrize("mask", [0o077, None])
def test_a_worker_of_others_gets_its_umask_back(bids_tree, tmp_path, mask):
    bids = bids_tree(ONE)
    context = RunContext(out_dir=tmp_path / "out", config=Config(), umask=mask)
    (scan,) = read_dataset(bids).scans
    os.umask(0o002)
    outcome = process_scan(ScanTask(scan=scan, context=context))
    assert isinstance(outcome, Failure)
    assert os.umask(0o002) == 0o002
    expected = 0o600 if mask else 0o664
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*.html")} == {expected}
