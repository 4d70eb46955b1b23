"""Many scans in worker processes; a worker that dies costs its own scan and no other."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from brainstage.pipeline.borrowed_workers import ITK_THREADS, _require_closed_ports, is_open
from brainstage.pipeline.engine import (
    MEMORY_VARIABLES,
    THREAD_VARIABLES,
    EngineOptions,
    Listener,
    SlurmJob,
    limit_threads,
    workers,
)
from brainstage.pipeline.errors import EngineError, StorageError, ToolError, UsageError
from brainstage.pipeline.no_http import PRELOAD

WORK = """
import multiprocessing, os, signal, stat, time
from pathlib import Path

from brainstage.pipeline.errors import StorageError


def double(task, announce):
    announce(task, "doubled")
    return task, 2 * task, os.getpid()


def die_at_two(task, announce):
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return task, 2 * task, os.getpid()


def eat_at_two(task, announce):
    eaten = []
    while task == 2:
        eaten.append(bytearray(os.urandom(1024) * 16384))
        time.sleep(0.005)
    return task, 2 * task, os.getpid()


def busy_at_first(task, announce):
    folder, number = task
    try:
        (Path(folder) / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return number
    return None


def busy_or_long(task, announce):
    folder, number = task
    if number == 2:
        time.sleep(12.0)
        return number
    return busy_at_first(task, announce)


def surroundings(task, announce):
    umask = os.umask(0)
    os.umask(umask)
    return {name: os.environ.get(name) for name in task}, umask


def versions():
    in_worker = multiprocessing.parent_process() is not None
    return {"brainstage": "1", "torch": "2.9" if in_worker else "2.13", "python": "3.11.7"}


def full_disk(task, announce):
    raise StorageError("cannot write x")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return functions of a module that worker processes can import."""
    (tmp_path / "toy_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return pytest.importorskip("toy_work")


def run_all(work, tasks, options, listener, heard=lambda *_: None):
    with workers(options, len(tasks), heard) as pool:
        yield from pool.run(work, tasks, listener)


def never(task):
    raise AssertionError(f"{task} was taken for dead")


class Deaths:
    """Counts deaths by task; gives up a task at its second."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def __call__(self, task):
        self.counts[task] = self.counts.get(task, 0) + 1
        return (task, "given up", 0) if self.counts[task] == 2 else None


@pytest.mark.slow
def test_every_task_is_done_in_another_process_and_is_heard(work):
    heard = []
    options = EngineOptions(workers=2)
    found = run_all(work.double, [3, 1, 2], options, Listener(died=never), lambda *said: heard.append(said))
    results = sorted(found)
    assert [result[:2] for result in results] == [(1, 2), (2, 4), (3, 6)]
    assert os.getpid() not in {result[2] for result in results}
    deadline = time.monotonic() + 10
    while len(heard) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(heard) == [(1, "doubled"), (2, "doubled"), (3, "doubled")]


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_scan_only(work):
    deaths = Deaths()
    options = EngineOptions(workers=2)
    results = {r[0]: r for r in run_all(work.die_at_two, [1, 2, 3, 4, 5], options, Listener(died=deaths))}
    assert {task: results[task][1] for task in (1, 3, 4, 5)} == {1: 2, 3: 6, 4: 8, 5: 10}
    assert results[2][1] == "given up"


@pytest.mark.slow
def test_a_worker_that_eats_its_memory_is_stopped(work):
    deaths = Deaths()
    options = EngineOptions(workers=2, worker_memory_gb=0.5)
    results = {r[0]: r for r in run_all(work.eat_at_two, [1, 2, 3], options, Listener(died=deaths))}
    assert results[2][1] == "given up"
    assert (results[1][1], results[3][1]) == (2, 6)


@pytest.mark.slow
def test_a_task_that_another_run_is_at_comes_back(work, tmp_path):
    seen = []
    listener = Listener(died=never, busy=seen.append)
    tasks = [(str(tmp_path), 1), (str(tmp_path), 2)]
    assert sorted(run_all(work.busy_at_first, tasks, EngineOptions(workers=2), listener)) == [1, 2]
    assert sorted(seen) == tasks


@pytest.mark.slow
def test_a_task_that_rests_is_tried_again_while_another_is_running(work, tmp_path):
    tasks = [(str(tmp_path), 1), (str(tmp_path), 2)]
    options = EngineOptions(workers=2)
    assert list(run_all(work.busy_or_long, tasks, options, Listener(died=never))) == [1, 2]


@pytest.mark.slow
def test_workers_start_with_their_threads_their_memory_and_our_umask(work, monkeypatch):
    for name in (*THREAD_VARIABLES, *MEMORY_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # what the user set wins
    os.umask(0o027)
    asked = [(*THREAD_VARIABLES, *MEMORY_VARIABLES)]
    options = EngineOptions(threads=3)
    ((found, umask),) = run_all(work.surroundings, asked, options, Listener(died=never))
    assert found == dict.fromkeys(THREAD_VARIABLES, "3") | MEMORY_VARIABLES | {"MALLOC_ARENA_MAX": "2"}
    assert umask == 0o027


@pytest.mark.slow
def test_an_error_of_the_run_comes_through_from_a_worker(work):
    with pytest.raises(StorageError, match="cannot write x") as caught:
        list(run_all(work.full_disk, [1, 2], EngineOptions(workers=2), Listener(died=never)))
    assert caught.value.exit_code == 74


@contextmanager
def scheduler_of_others(*, workers=1, threads=1, http=False):
    """Give the address of a scheduler on this machine; with HTTP ports, as Dask starts it, or without."""
    import dask
    from distributed import LocalCluster

    preload = [] if http else [PRELOAD]
    settings = {"distributed.scheduler.preload": preload, "distributed.worker.preload": preload}
    asked = {"n_workers": workers, "threads_per_worker": threads, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(settings), LocalCluster(**asked, silence_logs=50) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_a_scheduler_that_is_there_is_used(work):
    with scheduler_of_others(workers=2) as address:
        options = EngineOptions(kind="dask", workers=2, scheduler=address)
        results = sorted(run_all(work.double, [1, 2, 3], options, Listener(died=never)))
    assert [result[:2] for result in results] == [(1, 2), (2, 4), (3, 6)]


@pytest.mark.slow
def test_a_scheduler_that_answers_http_is_refused_unless_asked_for(work):
    with scheduler_of_others(http=True) as address:
        options = EngineOptions(kind="dask", scheduler=address)
        with pytest.raises(UsageError, match=r"answers HTTP at port \d+, and 1 more.*--allow-open-ports"):
            list(run_all(work.double, [1], options, Listener(died=never)))
        options = replace(options, allow_open_ports=True)
        assert [found[:2] for found in run_all(work.double, [1], options, Listener(died=never))] == [(1, 2)]


def test_a_worker_that_speaks_in_clear_beyond_this_machine_is_refused():
    clear = {"nanny": "tcp://10.0.0.5:2", "services": {}}
    info = {"address": "tls://10.0.0.5:8786", "services": {}, "workers": {"tls://10.0.0.5:1": clear}}
    with pytest.raises(UsageError, match=r"tcp://10\.0\.0\.5:2 takes plain TCP"):
        _require_closed_ports(info)
    _require_closed_ports(info | {"workers": {"tls://10.0.0.5:1": {"nanny": None, "services": {}}}})


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("tls://node7:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("tcp://node7:8786", True),
        ("node7", True),
        ("10.0.0.5:8786", True),
        ("tcp://[fe80::1]:8786", True),
        ("ws://10.0.0.5:8786", True),
        ("tcp://localhost.elsewhere.org:8786", True),
        ("", True),
    ],
)
def test_an_address_is_open_unless_it_has_keys_or_is_of_this_machine(address, is_so):
    assert is_open(address) is is_so


@pytest.mark.slow
def test_workers_with_other_versions_are_refused_by_name(work):
    with scheduler_of_others() as address:
        options = EngineOptions(kind="dask", scheduler=address)
        with (
            pytest.raises(
                ToolError, match=r"run other code: torch 2\.9 there, 2\.13 here\. Install the same"
            ),
            workers(options, 1, versions=work.versions),
        ):
            pass


@pytest.mark.slow
def test_workers_of_others_get_their_threads_back(work, monkeypatch):
    from distributed import Client

    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ITK_THREADS, "5")
    with scheduler_of_others() as address, Client(address) as owner:
        before = owner.run(work.surroundings, THREAD_VARIABLES, None)
        options = EngineOptions(kind="dask", scheduler=address, threads=3)
        ((found, _),) = run_all(work.surroundings, [THREAD_VARIABLES], options, Listener(died=never))
        assert found == dict.fromkeys(THREAD_VARIABLES, "3")
        assert owner.run(work.surroundings, THREAD_VARIABLES, None) == before
        assert [environ[ITK_THREADS] for environ, _ in before.values()] == ["5"]


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_threads_that_a_worker_cannot_have_any_more_are_refused_where_they_were_asked_for(work, asked):
    from distributed import Client

    with scheduler_of_others() as address, Client(address) as owner:
        owner.run(exec, "import sys; sys.modules['ants'] = sys")
        options = EngineOptions(kind="dask", scheduler=address, threads_asked=asked)
        refused = pytest.raises(EngineError, match=f"start the workers anew, with {ITK_THREADS}=1")
        with refused if asked else nullcontext():
            list(run_all(work.double, [1], options, Listener(died=never)))


@pytest.mark.slow
def test_work_that_needs_a_gpu_goes_where_one_is(work):
    with workers(EngineOptions(workers=2), 2) as pool:
        assert not pool.offer("GPU")
    with workers(EngineOptions(workers=2, gpu=True), 2) as pool:
        assert pool.offer("GPU")
        assert len(list(pool.run(work.double, [1, 2], Listener(died=never), "GPU"))) == 2


@pytest.mark.slow
def test_workers_that_take_two_scans_at_a_time_are_refused(work):
    with scheduler_of_others(threads=2) as address:
        options = EngineOptions(kind="dask", workers=2, scheduler=address)
        with pytest.raises(EngineError, match="--nthreads 1"):
            list(run_all(work.double, [1], options, Listener(died=never)))


@pytest.mark.slow
def test_no_scheduler_at_the_address_is_said(work):
    options = EngineOptions(kind="dask", workers=1, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(EngineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9") as caught:
        list(run_all(work.double, [1], options, Listener(died=never)))
    assert caught.value.exit_code == 75


def test_slurm_without_sbatch_is_said(work, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = EngineOptions(kind="slurm", worker_memory_gb=4.0, slurm=SlurmJob(folder=tmp_path))
    with pytest.raises(EngineError, match="sbatch is not here"):
        list(run_all(work.double, [1], options, Listener(died=never)))


def test_threads_are_limited_unless_the_user_did(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_threads(3)
    assert {name: os.environ[name] for name in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, "3") | {
        "OMP_NUM_THREADS": "7"
    }


def test_a_close_that_takes_too_long_loses_no_result(work, monkeypatch):
    from distributed import LocalCluster

    close = LocalCluster.close

    def too_long(self, *given, **named):
        close(self, *given, **named)
        raise TimeoutError

    monkeypatch.setattr(LocalCluster, "close", too_long)
    with workers(EngineOptions(workers=1), 1) as pool:
        assert [found[1] for found in pool.run(work.double, [3], Listener(died=lambda _: None))] == [6]


def test_workers_that_do_not_even_start_are_an_engine_error(monkeypatch):
    def give_up(*_, **__):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", give_up)
    with (
        pytest.raises(EngineError, match="a worker process ended before it could begin"),
        workers(EngineOptions(), 1),
    ):
        pass
