"""A real SLURM with two virtual nodes: a job is cancelled, a node is lost, and every scan is done."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from kills import STAGES, digests, wait_until

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("slurm_here.sh")
SLURM = {"engine": "slurm", "processes": 2, "slurm_walltime": "00:20:00", "memory_gb": 2.0}


@pytest.fixture(scope="module")
def slurm():
    """Start SLURM, installed if need be; skip where that cannot be."""
    if not os.environ.get("BRAINSTAGE_TEST_SLURM"):
        pytest.skip(
            "installs and starts a SLURM on this machine: only where BRAINSTAGE_TEST_SLURM=1 asks for it"
        )
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root on Debian or Ubuntu, to install and start SLURM")
    if shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        pytest.skip("a SLURM is running here already; it is left alone")
    try:
        subprocess.run([SCRIPT, "start"], capture_output=True, text=True, check=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        subprocess.run([SCRIPT, "stop"], check=False, capture_output=True)
        pytest.skip(f"SLURM cannot be started here: {error.stderr or error}")
    yield
    subprocess.run([SCRIPT, "stop"], check=False, timeout=60)


def jobs() -> dict[str, str]:
    """Return the running jobs: id to node."""
    listed = subprocess.run(
        ["squeue", "-h", "-t", "RUNNING", "-o", "%i %N"], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split() for line in listed.splitlines())


def test_the_jobs_share_the_scans_and_leave_nothing_behind(slurm, cohort, tmp_path):
    assert cohort.run(out=tmp_path / "undisturbed")[0] == 0
    code, said = cohort.run(**SLURM)
    assert code == 0, said
    assert "at most 2 at a time on slurm" in said
    assert digests(cohort.out) == digests(tmp_path / "undisturbed")
    assert len(cohort.computed()) == len(cohort.keys) * len(STAGES)
    assert not list(cohort.out.rglob(".tmp-*"))
    wait_until(lambda: not jobs())


def test_a_job_that_is_cancelled_is_replaced(slurm, cohort):
    process = cohort.start(orders={"pace": 0.5}, **SLURM)
    wait_until(lambda: cohort.markers() >= 6 and len(jobs()) == 2, seconds=90)
    cancelled = min(jobs())
    subprocess.run(["scancel", "--signal=KILL", "--full", cancelled], check=True)
    subprocess.run(["scancel", cancelled], check=True)
    wait_until(lambda: len(set(jobs()) - {cancelled}) == 2, seconds=60)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert sorted(cohort.rows()) == cohort.keys
    assert {row["prediction_status"] for row in cohort.rows().values()} == {"no_model"}


def test_a_node_that_is_lost_costs_no_scan(slurm, cohort):
    process = cohort.start(orders={"pace": 0.5}, **SLURM)
    wait_until(lambda: cohort.markers() >= 6 and len(jobs()) == 2, seconds=90)
    node = Path("/run/slurmd-n2.pid")
    daemon = psutil.Process(int(node.read_text()))
    on_node = [job for job, name in jobs().items() if name == "n2"]
    daemon.kill()
    # With the node go the processes of its jobs.
    for candidate in psutil.process_iter(["environ"]):
        environ = candidate.info["environ"] or {}
        if environ.get("SLURM_JOB_ID") in on_node and environ.get("SLURMD_NODENAME") == "n2":
            candidate.kill()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert sorted(cohort.rows()) == cohort.keys
    assert {row["prediction_status"] for row in cohort.rows().values()} == {"no_model"}
    time.sleep(1.0)
