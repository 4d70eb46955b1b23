"""Many scans: in this process, or in worker processes of a local Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

Task = TypeVar("Task")

THREAD_VARIABLES: Final = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
"""Read by ITK, torch and numpy when they are first imported, so they must be set before."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the machine is used.

    Attributes
    ----------
    workers : int
        Processes; with 1 everything runs in this one.
    threads : int
        Threads in each process.
    memory_gb : float or None
        For all workers together; a worker that grows beyond its share is stopped and its scan fails.
    deaths_allowed : int
        Workers that one scan may take down before it is set aside.
    """

    workers: int = 1
    threads: int = 1
    memory_gb: float | None = None
    deaths_allowed: int = 1


def limit_threads(threads: int, *, asked_for: bool = False) -> None:
    """Set the thread counts that ITK, torch and numpy read at import.

    Parameters
    ----------
    threads : int
    asked_for : bool
        The count was given on the command line, or determinism needs it: it wins over variables that are set
        already. A count that was only chosen does not.
    """
    for name in THREAD_VARIABLES:
        if asked_for:
            os.environ[name] = str(threads)
        else:
            os.environ.setdefault(name, str(threads))


def run_all(
    work: Callable[[Task], Any],
    tasks: Sequence[Task],
    lost: Callable[[Task, str], Any],
    options: EngineOptions,
) -> Iterator[Any]:
    """Yield the result of `work` for every task, in the order in which they finish.

    Parameters
    ----------
    work : callable
        Task to result; must not raise for a fault of the task, and must be importable in a worker.
    tasks : sequence
    lost : callable
        Task and a sentence to the result that stands for it when its worker died.
    options : EngineOptions
    """
    if options.workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield work(task)
        return
    yield from _run_with_dask(work, tasks, lost, options)


def _run_with_dask(
    work: Callable[[Task], Any],
    tasks: Sequence[Task],
    lost: Callable[[Task, str], Any],
    options: EngineOptions,
) -> Iterator[Any]:
    # Heavy, and only needed here.
    import dask
    from distributed import Client, KilledWorker, LocalCluster, as_completed

    settings = {
        # ANTs holds the interpreter's lock for seconds: a silent worker is a busy one, not a dead one.
        "distributed.comm.timeouts.tcp": "300s",
        "distributed.scheduler.worker-ttl": None,
        "distributed.scheduler.allowed-failures": options.deaths_allowed,
        "distributed.admin.tick.limit": "1h",
        "distributed.worker.daemon": True,
    }
    limit = f"{options.memory_gb / options.workers:.3f}GiB" if options.memory_gb else 0
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=min(options.workers, len(tasks)),
            threads_per_worker=1,
            processes=True,
            memory_limit=limit,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        # No more tasks than workers are handed out: Dask blames a worker's death on every task that waits there.
        waiting = iter(tasks)
        handed_out = {
            client.submit(work, task, pure=False): task for task in islice(waiting, options.workers)
        }
        finished = as_completed(list(handed_out))
        for future in finished:
            task = handed_out.pop(future)
            for following in islice(waiting, 1):
                added = client.submit(work, following, pure=False)
                handed_out[added] = following
                finished.add(added)
            try:
                yield future.result()
            except KilledWorker:
                yield lost(
                    task,
                    f"its worker process died {options.deaths_allowed + 1} times, most likely for lack of memory; "
                    "run again with fewer --nprocs or more --mem-gb, and --retry-failed",
                )
