"""Many scans, in this process or in workers; a worker that dies costs its own scan and no other."""

from __future__ import annotations

import os

import pytest

from brainstage.pipeline.engine import THREAD_VARIABLES, EngineOptions, limit_threads, run_all
from brainstage.pipeline.errors import StorageError

WORK = """
import os, signal

from brainstage.pipeline.errors import StorageError


def double(task):
    return task, 2 * task, os.getpid()


def die_at_two(task):
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task, 2 * task, os.getpid()


def full_disk(task):
    raise StorageError("cannot write x")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return functions of a module that worker processes can import."""
    (tmp_path / "toy_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return pytest.importorskip("toy_work")


def lost(task, sentence: str):
    return task, sentence, 0


def test_one_worker_means_this_process_and_this_order(work):
    results = list(run_all(work.double, [3, 1, 2], lost, EngineOptions()))
    assert results == [(3, 6, os.getpid()), (1, 2, os.getpid()), (2, 4, os.getpid())]


def test_a_single_task_needs_no_cluster(work):
    assert list(run_all(work.double, [3], lost, EngineOptions(workers=4))) == [(3, 6, os.getpid())]


def test_results_come_one_by_one(work):
    seen = []
    results = run_all(lambda task: seen.append(task) or task, [1, 2], lost, EngineOptions())
    assert next(results) == 1
    assert seen == [1]


def test_an_error_of_the_run_comes_through(work):
    with pytest.raises(StorageError, match="cannot write x"):
        list(run_all(work.full_disk, [1, 2], lost, EngineOptions()))


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_scan_only(work):
    options = EngineOptions(workers=2, deaths_allowed=1)
    results = {result[0]: result for result in run_all(work.die_at_two, [1, 2, 3, 4], lost, options)}
    assert {task: results[task][1] for task in (1, 3, 4)} == {1: 2, 3: 6, 4: 8}
    assert "died 2 times" in results[2][1]
    assert os.getpid() not in {result[2] for result in results.values()}


@pytest.mark.slow
def test_an_error_of_the_run_comes_through_from_a_worker(work):
    with pytest.raises(StorageError, match="cannot write x") as caught:
        list(run_all(work.full_disk, [1, 2], lost, EngineOptions(workers=2)))
    assert caught.value.exit_code == 74


def test_threads_are_limited_unless_the_user_did(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_threads(3)
    assert {name: os.environ[name] for name in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, "3") | {
        "OMP_NUM_THREADS": "7"
    }
