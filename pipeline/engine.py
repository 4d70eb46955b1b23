"""Many scans in worker processes: on this machine, on a Dask scheduler that is there, or on a SLURM cluster.

All three are a Dask client; only how its workers come about differs. The work is told in which scan a worker died,
and decides itself what that means: Dask's own repetitions are switched off.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from brainstage import __version__
from brainstage.pipeline.borrowed_workers import ITK_THREADS, Versions, client_of_scheduler
from brainstage.pipeline.errors import EngineError
from brainstage.pipeline.no_http import PRELOAD
from brainstage.pipeline.no_http import SETTINGS as NO_HTTP

Task = TypeVar("Task")
"""What a worker is given: one piece of work."""
Announce = Callable[..., None]

THREAD_VARIABLES: Final = (
    ITK_THREADS,
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
"""Read by ITK, torch and numpy when they are first imported, so they must be set before."""
MEMORY_VARIABLES: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1024**3),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 1024**2),
}
"""Let a worker keep the memory of its volumes for the next ones.

The C library of Linux hands arrays of more than 32 MB back at once, and the system fills the next one's pages with
zeros: a fifteenth of a scan's time. Kept, they take about 0.4 GB more.
"""
TOPIC: Final = "brainstage"
GPU: Final = "GPU"
"""What a Dask worker declares with ``--resources GPU=1``."""
PATIENCE_S: Final = 120.0
BUSY_PAUSE_S: Final = 2.0
"""How long a task rests that another run is at."""
SIGN_OF_LIFE: Final = "300s"
"""ANTs keeps the interpreter from answering for seconds: a silent worker is a busy one, for so long."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What is asked of SLURM for each worker.

    Attributes
    ----------
    partition : str or None
        None for the cluster's default.
    walltime : str
        ``HH:MM:SS``.
    directives : tuple of str
        Further options of ``sbatch``, such as ``--account=lab``.
    folder : Path
        For what the jobs need and say while they run; seen by all nodes.
    work_dir : Path or None
        Scratch space on the nodes; None for what a node has.
    """

    partition: str | None = None
    walltime: str = "08:00:00"
    directives: tuple[str, ...] = ()
    folder: Path
    work_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where and how many workers.

    Attributes
    ----------
    kind : str
        ``local``, ``dask`` or ``slurm``.
    workers : int
        Processes for ``local``; jobs at most for ``slurm``; scans at a time at most for ``dask``.
    threads : int
        Threads in each process.
    threads_asked : bool
        The user asked for them, or determinism needs them.
    worker_memory_gb : float or None
        A worker that grows beyond it is stopped.
    scheduler : str or None
        Address for ``dask``.
    allow_open_ports : bool
        Also a scheduler whose ports answer without keys.
    slurm : SlurmJob or None
        For ``slurm``.
    gpu : bool
        Workers of ``local`` and ``slurm`` have a GPU; those of ``dask`` say so themselves.
    """

    kind: Literal["local", "dask", "slurm"] = "local"
    workers: int = 1
    threads: int = 1
    threads_asked: bool = False
    worker_memory_gb: float | None = None
    scheduler: str | None = None
    allow_open_ports: bool = False
    slurm: SlurmJob | None = None
    gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Listener:
    """What the driver does when something happens.

    Attributes
    ----------
    died : callable
        Task whose worker died, to the result that stands for it; None to try it again.
    busy : callable
        Task that gave None, because another run is at it; it is tried again.
    deserted : callable
        There has been no worker for two minutes.
    """

    died: Callable[[Any], Any]
    busy: Callable[[Any], None] = lambda _: None
    deserted: Callable[[], None] = lambda: None


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


class Workers:
    """Worker processes that are there; made by :func:`workers`.

    Parameters
    ----------
    client : distributed.Client
    at_a_time : int
        Tasks that are handed out at a time.
    lent_threads : int, optional
        Threads for each task, where the processes belong to others.
    """

    def __init__(self, client: Any, at_a_time: int, lent_threads: int | None = None) -> None:  # noqa: ANN401 - the library has no types
        self._client = client
        self._at_a_time = at_a_time
        self._lent_threads = lent_threads

    def offer(self, resource: str) -> bool:
        """Tell whether any worker that is there has declared a resource, such as ``GPU``."""
        found = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return any(worker["resources"].get(resource) for worker in found)

    def run(
        self,
        work: Callable[[Task, Announce], Any],
        tasks: Sequence[Task],
        listener: Listener,
        resource: str | None = None,
    ) -> Iterator[Any]:
        """Yield the result of `work` for every task, in the order in which they finish.

        Parameters
        ----------
        work : callable
            Task and a function that announces something to the driver, to result; None when another run is at it.
            Must not raise for a fault of the task, and must be importable in a worker.
        tasks : sequence
        listener : Listener
        resource : str, optional
            Only workers that have declared it are asked.

        Raises
        ------
        EngineError
            When the scheduler or all workers are out of reach.
        """
        announced = partial(_announcing, work, self._lent_threads)
        needs = {resource: 1} if resource else None
        waiting, running = deque(tasks), dict[Any, Task]()
        resting: deque[tuple[float, Task]] = deque()
        last_sign = time.monotonic()
        while waiting or resting or running:
            while resting and resting[0][0] <= time.monotonic():
                waiting.append(resting.popleft()[1])
            # No more tasks than workers are handed out: Dask blames a worker's death on every task that waits there.
            while waiting and len(running) < self._at_a_time:
                task = waiting.popleft()
                running[self._client.submit(announced, task, pure=False, resources=needs)] = task
            has_room = len(running) < self._at_a_time
            wake = resting[0][0] if resting and has_room else last_sign + PATIENCE_S
            done = _finished(list(running), max(0.05, wake - time.monotonic()))
            for future in done:
                task = running.pop(future)
                result, pause_s = _collected(future, task, listener)
                if result is not None:
                    yield result
                elif pause_s:
                    resting.append((time.monotonic() + pause_s, task))
                else:
                    waiting.append(task)
            if done or not running:
                last_sign = time.monotonic()
            elif time.monotonic() - last_sign >= PATIENCE_S:
                last_sign = time.monotonic()
                if not self._client.nthreads():
                    listener.deserted()


@contextmanager
def workers(
    options: EngineOptions,
    tasks: int,
    heard: Callable[..., None] = lambda *_: None,
    versions: Versions | None = None,
) -> Iterator[Workers]:
    """Have worker processes for the length of a block.

    Parameters
    ----------
    options : EngineOptions
    tasks : int
        No more workers than that are started.
    heard : callable
        What a task announced while it ran.
    versions : callable, optional
        What has to be the same in workers of others as here, by package; by default this program's version.

    Raises
    ------
    EngineError
        When there can be none.
    ToolError
        When workers of others run other code.
    UsageError
        When ports of others answer without keys, and that was not asked for.
    """
    with _connected(options, tasks, versions or _own_version) as client:
        client.subscribe_topic(TOPIC, lambda event: heard(*event[1]))
        yield Workers(client, options.workers, options.threads if options.kind == "dask" else None)


@contextmanager
def lent_threads(threads: int) -> Iterator[None]:
    """Hold a process of others to a number of threads for the length of a block.

    ANTs keeps the number that it was loaded with; the variables are for what is loaded inside.
    """
    from threadpoolctl import threadpool_limits

    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    limit_threads(threads, asked_for=True)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _leave() -> None:
    """End a worker without taking torch and ants apart, for which everybody would wait a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _announcing(work: Callable[[Task, Announce], Any], threads: int | None, task: Task) -> Any:  # noqa: ANN401 - whatever `work` gives
    """Run in a worker."""
    from distributed import get_worker

    worker = get_worker()
    with lent_threads(threads) if threads else nullcontext():
        return work(task, lambda *message: worker.log_event(TOPIC, message))


def _finished(running: list[Any], timeout_s: float) -> Collection[Any]:
    """Return what finishes first, nothing after a time without."""
    from distributed import wait

    if not running:
        time.sleep(timeout_s)
        return ()
    try:
        done: Collection[Any] = wait(running, timeout=timeout_s, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return ()
    return done


def _collected(future: Any, task: Any, listener: Listener) -> tuple[Any, float]:  # noqa: ANN401 - likewise
    """Return a task's result, or None and how long to wait before it is tried again."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    try:
        result = future.result()
    except KilledWorker:
        return listener.died(task), 0.0
    except (FutureCancelledError, CommClosedError) as error:
        raise EngineError(
            "the connection to the Dask scheduler was lost; run the same command again, finished work is kept"
        ) from error
    if result is None:
        listener.busy(task)
    return result, BUSY_PAUSE_S


@contextmanager
def _connected(options: EngineOptions, tasks: int, versions: Versions) -> Iterator[Any]:
    """Give a client whose workers are there, or are being brought."""
    # Heavy, and only needed here.
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_settings(options)))
        stack.enter_context(dask.config.set(_preloads()))
        if options.kind == "dask":
            client = stack.enter_context(client_of_scheduler(options, versions))
        else:
            make = _slurm_cluster if options.kind == "slurm" else _local_cluster
            cluster = stack.enter_context(make(options, tasks))
            client = stack.enter_context(Client(cluster))
            if options.kind == "local":
                client.run(atexit.register, _leave)
        yield client


def _settings(options: EngineOptions) -> dict[str, Any]:
    return {
        "distributed.comm.timeouts.tcp": SIGN_OF_LIFE,
        "distributed.scheduler.worker-ttl": SIGN_OF_LIFE,
        # A scan that takes its worker with it comes back at once, and the work decides.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.admin.tick.limit": "1h",
        "distributed.worker.daemon": True,
        # A worker holds one scan and no results: there is nothing to spill, and a pause would never end.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.98,
        # It looks at every worker a hundred times a second, for a dashboard that nobody opens.
        "distributed.worker.profile.enabled": False,
        "distributed.nanny.pre-spawn-environ": _environment(options),
        **NO_HTTP,
    }


def _preloads() -> dict[str, list[str]]:
    """Return the settings by which scheduler and workers close their HTTP ports, besides what the user preloads."""
    import dask

    names = ("distributed.scheduler.preload", "distributed.worker.preload")
    return {name: list(dict.fromkeys([*dask.config.get(name, []), PRELOAD])) for name in names}


def _environment(options: EngineOptions) -> dict[str, str]:
    chosen = dict.fromkeys(THREAD_VARIABLES, str(options.threads)) | MEMORY_VARIABLES
    return {name: os.environ.get(name, value) for name, value in chosen.items()}


@contextmanager
def _local_cluster(options: EngineOptions, tasks: int) -> Iterator[Any]:
    """Give a cluster on this machine."""
    from distributed import LocalCluster

    count = min(options.workers, tasks)
    try:
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=f"{options.worker_memory_gb:.3f}GiB" if options.worker_memory_gb else 0,
            # Another user of this machine could reach a port, and a scheduler runs what it is sent.
            security=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=50,
            resources={GPU: 1} if options.gpu else None,
        )
    except RuntimeError as error:
        raise EngineError(
            "a worker process ended before it could begin; run the same command again, finished work is kept"
        ) from error
    try:
        # Adaptive, because only then is a worker replaced that ended while it started in the place of another.
        cluster.adapt(minimum=count, maximum=count)
        yield cluster
    finally:
        # On a busy machine processes take longer to end than Dask waits: no reason to go without tables.
        with suppress(TimeoutError):
            cluster.close()


def _slurm_cluster(options: EngineOptions, tasks: int) -> Any:  # noqa: ANN401 - likewise
    """Return jobs of SLURM, for the length of a block."""
    from brainstage.pipeline.slurm import slurm_cluster  # heavy

    if options.slurm is None or options.worker_memory_gb is None:
        raise ValueError("a SLURM engine needs its job and the memory of a worker")
    return slurm_cluster(
        options.slurm,
        at_most=min(options.workers, tasks),
        threads=options.threads,
        memory_gb=options.worker_memory_gb,
        resources={GPU: 1} if options.gpu else {},
        settings=_settings(options),
        environment=_environment(options),
    )


def _own_version() -> dict[str, str]:
    return {"brainstage": __version__}
