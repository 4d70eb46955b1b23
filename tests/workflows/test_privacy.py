"""Who may read what a run writes, and what its ports answer to."""

from __future__ import annotations

import stat

import psutil
import pytest

from brainstage.pipeline.config import Config
from brainstage.pipeline.errors import UsageError
from brainstage.workflows.arguments import build_parser
from brainstage.workflows.cli import main

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
def test_a_stranger_gets_no_answer_from_the_workers(tmp_path):
    from distributed import Client, LocalCluster

    from brainstage.pipeline.engine import EngineOptions, _local_cluster

    with _local_cluster(EngineOptions(), 1) as cluster:
        assert isinstance(cluster, LocalCluster)
        assert cluster.scheduler_address.startswith("tls://127.0.0.1")
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        doors = [door for one in processes for door in one.net_connections("inet") if door.status == "LISTEN"]
        assert {door.laddr.ip for door in doors} == {"127.0.0.1"}
        with pytest.raises((OSError, TypeError)):
            Client(cluster.scheduler_address, timeout="3s")
