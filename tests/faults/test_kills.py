"""Processes that die, hang or eat memory: no scan is lost, no row is missing, and what was done is not done again."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest
from kills import STAGES, digests, disturbed, kill, wait_until, workers_of

pytestmark = pytest.mark.slow

DONE, SOME_FAILED = 0, 1


@pytest.fixture
def reference(cohort, tmp_path):
    """Return the results of an undisturbed run."""
    code, said = cohort.run(out=tmp_path / "undisturbed")
    assert code == DONE, said
    return digests(tmp_path / "undisturbed")


def test_a_worker_that_is_killed_costs_the_stage_it_was_at(cohort, reference, tmp_path):
    code, said = cohort.run(orders={"sub-03": {"registration": f"die once in {tmp_path / 'died'}"}})
    assert code == DONE, said
    assert (tmp_path / "died").exists()
    assert "sub-03: its worker process died; the scan goes on in another" in said
    assert digests(cohort.out) == reference
    # What the log says was computed lacks the four stages that the killed process had finished.
    assert len(cohort.computed()) == len(set(cohort.computed())) == len(cohort.keys) * len(STAGES) - 4


def test_workers_that_are_killed_while_they_start_are_replaced(cohort, reference):
    process = cohort.start(orders={"pace": 0.1}, processes=1)
    wait_until(lambda: cohort.markers() >= 2)
    killed: set[int] = set()
    for _ in range(3):
        worker = wait_until(lambda: [one for one in workers_of(process) if one.pid not in killed])[0]
        killed.add(worker.pid)
        kill(worker, signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == DONE, said
    assert digests(cohort.out) == reference


def test_a_scan_that_kills_every_worker_is_set_aside_and_the_rest_go_on(cohort):
    code, said = cohort.run(orders={"sub-03": {"bias_field": "die"}})
    assert code == SOME_FAILED, said
    rows = cohort.rows()
    assert sorted(rows) == cohort.keys
    assert [key for key, row in rows.items() if row["prediction_status"] == "failed"] == ["sub-03"]
    assert "its worker process died in the bias_field stage 2 times" in rows["sub-03"]["error"]
    assert (cohort.out / "sub-03.html").is_file()
    before = len(cohort.computed())
    assert cohort.run()[0] == SOME_FAILED, "it is not tried again unless asked"
    assert len(cohort.computed()) == before
    assert cohort.run(orders={"sub-03": {"bias_field": "die"}}, retry_failed=True)[0] == SOME_FAILED
    assert len(cohort.computed()) == before
    assert cohort.run(retry_failed=True)[0] == DONE
    assert len(cohort.computed()) == before + len(STAGES) - 2


def test_a_stage_that_hangs_is_stopped(cohort):
    code, said = cohort.run(orders={"sub-02": {"registration": "hang"}}, stage_timeout_min=1.5 / 60)
    assert code == SOME_FAILED, said
    rows = cohort.rows()
    assert [key for key, row in rows.items() if row["prediction_status"] == "failed"] == ["sub-02"]
    assert (
        "the registration stage took longer than 0.025 min and was stopped, 2 times"
        in rows["sub-02"]["error"]
    )
    assert "--stage-timeout" in rows["sub-02"]["error"]


def test_a_stage_that_eats_memory_is_stopped(cohort):
    code, said = cohort.run(orders={"sub-02": {"quality": "eat"}}, memory_gb=1.6)
    assert code == SOME_FAILED, said
    rows = cohort.rows()
    assert [key for key, row in rows.items() if row["prediction_status"] == "failed"] == ["sub-02"]
    assert "most likely for lack of memory" in rows["sub-02"]["error"]


def test_many_scans_that_kill_their_workers_take_no_other_along(cohort):
    deadly = {f"sub-0{number}": {"intensity": "die"} for number in (1, 3, 4, 6)}
    code, said = cohort.run(orders=deadly)
    assert code == SOME_FAILED, said
    assert {key for key, row in cohort.rows().items() if row["prediction_status"] == "failed"} == set(deadly)


def test_after_the_driver_is_killed_only_what_was_in_flight_is_done_again(cohort, reference):
    process = cohort.start(orders={"pace": 0.15})
    wait_until(lambda: cohort.markers() >= 12)
    workers = workers_of(process)
    kill(psutil.Process(process.pid))
    process.communicate()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    done = cohort.markers()
    assert 12 <= done < len(cohort.keys) * len(STAGES)
    code, said = cohort.run()
    assert code == DONE, said
    assert len(cohort.computed()) == len(cohort.keys) * len(STAGES) - done
    assert digests(cohort.out) == reference
    assert not list(cohort.out.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_a_run_that_is_told_to_end_writes_its_tables_and_gives_its_leases_back(
    cohort, reference, number, code
):
    process = cohort.start(orders={"pace": 0.15})
    wait_until(lambda: cohort.markers() >= 3 * len(STAGES))
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert 2 <= len(cohort.rows()) < len(cohort.keys)
    assert not list(cohort.out.rglob("*lease.json"))
    assert cohort.run()[0] == DONE
    assert digests(cohort.out) == reference


def test_two_runs_on_one_directory_share_the_work(cohort, reference):
    first = cohort.start(orders={"pace": 0.05})
    second = cohort.start(orders={"pace": 0.05})
    for process in (first, second):
        said, _ = process.communicate(timeout=180)
        assert process.returncode == DONE, said
    computed = cohort.computed()
    assert len(computed) == len(set(computed)) == len(cohort.keys) * len(STAGES), "nothing was done twice"
    assert digests(cohort.out) == reference
    assert sorted(cohort.rows()) == cohort.keys


def test_two_runs_that_want_different_scans_leave_one_table_of_both(cohort):
    halves = [key.removeprefix("sub-") for key in cohort.keys]
    runs = [cohort.start(participants=halves[:4]), cohort.start(participants=halves[4:])]
    for process in runs:
        said, _ = process.communicate(timeout=180)
        assert process.returncode == DONE, said
    assert sorted(cohort.rows()) == cohort.keys


def test_a_writer_that_comes_back_from_the_dead_publishes_nothing(cohort, tmp_path):
    process = cohort.start(
        orders={"sub-01": {"quality": f"stop once in {tmp_path / 'stopped'}"}},
        participants=["01"],
        processes=1,
    )
    wait_until((tmp_path / "stopped").exists)
    [worker] = workers_of(process)
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
    # As after a node that was cut off: to another machine the lease is old.
    lease = cohort.out / ".brainstage" / "sub-01" / "lease.json"
    lease.write_text(lease.read_text().replace('"machine": "', '"machine": "elsewhere'))
    os.utime(lease, (1, 1))
    code, said = cohort.run(participants=["01"], processes=1)
    assert code == DONE, said
    markers = {p: p.read_bytes() for p in (cohort.out / ".brainstage" / "sub-01").glob("*.json")}
    results = digests(cohort.out)
    worker.resume()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == DONE, said
    assert "another run is at it" in said
    assert {p: p.read_bytes() for p in (cohort.out / ".brainstage" / "sub-01").glob("*.json")} == markers
    assert digests(cohort.out) == results


@pytest.mark.parametrize("seed", [1, 2])
def test_random_signals_to_two_machines_lose_nothing_and_touch_nothing_foreign(cohort, reference, seed):
    found = disturbed(cohort, reference, random.Random(seed))  # noqa: S311 - no secret
    struck = found.workers_killed + found.workers_terminated + found.drivers_killed + found.drivers_terminated
    assert struck > 0
    assert found.reads_failed > 0
    assert set(found.faults.values()) == {0}, found


def test_an_interrupt_ends_the_run_and_leaves_nothing_behind(cohort):
    process = cohort.start(orders={"pace": 0.2})
    wait_until(lambda: cohort.markers() >= 3)
    workers = workers_of(process)
    process.send_signal(2)
    process.communicate(timeout=60)
    assert process.returncode != DONE
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    time.sleep(0.1)
    assert cohort.run()[0] == DONE
