"""The grid of scans and stages, from the files that stages leave."""

from __future__ import annotations

import pytest

from brainstage.pipeline.attempt import begin_attempt
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.files import write_json
from brainstage.pipeline.lease import held
from brainstage.workflows.cli import main
from brainstage.workflows.participant import lease_path
from brainstage.workflows.progress import STAGE_ORDER
from brainstage.workflows.status import read_status, status_table


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out" / ".brainstage").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def scan(out):
    """Return a maker of scans that have reached so many stages."""

    def make(label: str, done: int, failed: str = "") -> ScanFiles:
        files = ScanFiles(out_dir=out, entities=BidsEntities(subject=label))
        for name in STAGE_ORDER[:done]:
            write_json(files.state / f"{name}.json", {})
        if failed:
            write_json(files.state / "failure.json", {"stage": failed})
        return files

    return make


def test_every_scan_is_shown_also_those_not_begun(out, scan):
    scan("02", len(STAGE_ORDER))
    scan("01", len(STAGE_ORDER) - 1)
    scan("03", 2)
    write_json(out / ".brainstage" / "scans.json", {"scans": ["sub-01", "sub-04"]})
    statuses = read_status(out)
    assert [(status.scan, status.summary) for status in statuses] == [
        ("sub-01", "done"),
        ("sub-02", "done"),
        ("sub-03", "begun"),
        ("sub-04", "not begun"),
    ]
    assert list(statuses[2].stages.values()) == ["done", "done", *["-"] * 7]


def test_a_failure_hides_what_earlier_runs_made_after_it(out, scan):
    scan("01", len(STAGE_ORDER), failed="registration")
    [status] = read_status(out)
    assert list(status.stages.values()) == [*["done"] * 4, "FAILED", *["-"] * 4]
    assert status.summary == "failed"


def test_a_scan_that_someone_is_at_is_running_and_one_whose_process_died_is_not(out, scan):
    alive, dead = scan("01", 2), scan("02", 2)
    begin_attempt(alive, "bias_field")
    begin_attempt(dead, "bias_field")
    with held(lease_path(alive)):
        running, begun = read_status(out)
    assert (running.summary, running.stages["bias_field"]) == ("running", "running")
    assert (begun.summary, begun.stages["bias_field"]) == ("begun", "-")


def test_the_table_lines_up_and_ends_with_the_sums(out, scan):
    scan("01", 8)
    scan("0002", 3, failed="intensity")
    lines = status_table(read_status(out)).splitlines()
    assert lines[0].split() == " ".join(STAGE_ORDER).replace("_", " ").split()
    assert lines[1].startswith("sub-0002  done")
    assert "FAILED" in lines[1]
    assert lines[1].index("FAILED") == lines[0].index("intensity")
    assert lines[-1] in ("2 scans: 1 failed, 1 done", "2 scans: 1 done, 1 failed")


def test_the_command_prints_it_and_refuses_a_folder_of_something_else(out, scan, capsys, tmp_path):
    scan("01", 8)
    assert main(["status", str(out)]) == 0
    assert "1 scans: 1 done" in capsys.readouterr().out
    assert main(["status", str(tmp_path)]) == 66
    assert "no output directory of brainstage run" in capsys.readouterr().err


def test_names_that_no_scan_can_have_are_left_out(out):
    strange = [5, None, "", "../../etc", "sub-01/../..", "sub-a\0b", "sub-" + "x" * 300, "sub-02"]
    write_json(out / ".brainstage" / "scans.json", {"scans": strange})
    assert [status.scan[:8] for status in read_status(out)] == ["sub-02", "sub-xxxx"]
    write_json(out / ".brainstage" / "scans.json", {"scans": 5})
    assert read_status(out) == []
    (out / ".brainstage" / "sub-03").symlink_to("sub-03")
    assert read_status(out) == []
