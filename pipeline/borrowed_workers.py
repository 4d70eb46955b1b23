"""Workers that belong to others: what is asked of a Dask scheduler that is there already, and of its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from brainstage.pipeline.errors import EngineError, ToolError, UsageError
from brainstage.pipeline.no_http import PRELOAD
from brainstage.pipeline.versions import differing_versions

if TYPE_CHECKING:
    from brainstage.pipeline.engine import EngineOptions

Versions = Callable[[], Mapping[str, str]]

ITK_THREADS: Final = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
ITK_LIBRARIES: Final = ("ants", "SimpleITK")
WAY_OUT: Final = (
    "Start scheduler and workers with keys, as docs/how-to/clusters.md shows; or, where nobody else can reach their "
    "ports, give --allow-open-ports"
)


def is_open(address: str) -> bool:
    """Tell whether a port takes part in a conversation without keys, and is for more than this machine.

    Parameters
    ----------
    address : str
        As Dask writes it; without a scheme it is TCP.

    >>> [is_open(address) for address in ("tls://node7:8786", "tcp://127.0.0.1:8786", "node7:8786")]
    [False, False, True]
    """
    scheme, _, place = address.rpartition("://")
    if scheme in ("tls", "inproc"):
        return False
    try:
        host = urlsplit(f"//{place}").hostname or ""
        return host != "localhost" and not ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return True


def require_keys(scheduler: str) -> None:
    """Refuse the address of a scheduler that would be spoken to in clear over a network.

    Raises
    ------
    UsageError
    """
    if is_open(scheduler):
        raise UsageError(
            f"--dask-scheduler {scheduler} is neither tls:// nor on this machine: names and ages would travel in "
            f"clear, and whoever reaches the port can run code as you. {WAY_OUT}"
        )


@contextmanager
def client_of_scheduler(options: EngineOptions, versions: Versions) -> Iterator[Any]:
    """Give a client of a scheduler whose workers fit.

    Parameters
    ----------
    options : EngineOptions
    versions : callable
        What has to be the same in the workers as here.

    Raises
    ------
    EngineError
        When nobody answers, or there are no workers, or they cannot be used as they are.
    ToolError
        When they would run other code.
    UsageError
        When their ports answer without keys, and that was not asked for.
    """
    with _connected(options.scheduler or "") as client:
        if not options.allow_open_ports:
            _require_closed_ports(client.scheduler_info(n_workers=-1))
        _require_same_versions(client, versions)
        _require_one_task_at_a_time(client)
        if options.threads_asked:
            _require_threads(client, options.threads)
        yield client


@contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Dask scheduler answers at {scheduler}, or not with these keys ({error}); start one, or give another "
            "--dask-scheduler"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise EngineError(
            f"Dask has no keys for {scheduler} ({error}); name them in its configuration, as "
            "docs/how-to/clusters.md shows"
        ) from error
    with client:
        yield client


def _require_closed_ports(info: Mapping[str, Any]) -> None:
    workers = info["workers"]
    addresses = [info["address"], *workers, *(worker["nanny"] for worker in workers.values())]
    doors = [f"{address} takes plain TCP" for address in addresses if address and is_open(address)]
    if "dashboard" in info["services"]:
        doors.append(f"the scheduler answers HTTP at port {info['services']['dashboard']}")
    talking = sum("dashboard" in worker["services"] for worker in workers.values())
    if talking:
        doors.append(f"{talking} worker(s) answer HTTP")
    if doors:
        raise UsageError(
            f"the Dask scheduler and its workers answer without keys: {doors[0]}"
            + (f", and {len(doors) - 1} more" if len(doors) > 1 else "")
            + f". {WAY_OUT}. HTTP ports are closed by --preload {PRELOAD}"
        )


def _require_same_versions(client: Any, versions: Versions) -> None:  # noqa: ANN401 - the library has no types
    """Refuse workers that would run other code."""
    try:
        found = client.run(versions)
    except Exception as error:
        raise ToolError(
            f"brainstage cannot be imported in a Dask worker ({error}); install it there"
        ) from error
    if not found:
        raise EngineError("the Dask scheduler has no worker; start some with dask worker --nthreads 1")
    differing = differing_versions(versions(), found.values())
    if differing:
        raise ToolError(f"the Dask workers run other code: {'; '.join(differing)}. Install the same")


def _require_one_task_at_a_time(client: Any) -> None:  # noqa: ANN401 - the library has no types
    """Refuse workers that would run two scans in one process: what kills one would kill the other."""
    if any(threads > 1 for threads in client.nthreads().values()):
        raise EngineError(
            "a Dask worker takes several tasks at a time; start the workers with --nthreads 1, and as many as you like"
        )


def _require_threads(client: Any, threads: int) -> None:  # noqa: ANN401 - the library has no types
    """Refuse workers in which ANTs is loaded already, maybe with another number of threads, which it keeps."""
    settled = [found for found in client.run(_settled_threads).values() if found not in (None, str(threads))]
    if settled:
        raise EngineError(
            f"{len(settled)} Dask worker(s) have loaded ANTs before, which keeps the number of threads that it was "
            f"loaded with; start the workers anew, with {ITK_THREADS}={threads}"
        )


def _settled_threads() -> str | None:
    """Return what the environment of a worker in which ANTs is loaded says of its threads; runs in the worker."""
    if not any(name in sys.modules for name in ITK_LIBRARIES):
        return None
    return os.environ.get(ITK_THREADS, "")
