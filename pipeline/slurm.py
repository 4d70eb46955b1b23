"""Workers as jobs of a SLURM cluster."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed import Security

from brainstage.pipeline.errors import EngineError
from brainstage.pipeline.no_http import PRELOAD

if TYPE_CHECKING:
    from brainstage.pipeline.engine import SlurmJob

KEYS: Final = ("ca_file", "cert", "key")


class QuotedJob(SLURMJob):  # type: ignore[misc]
    """A job whose keys may lie in a folder with spaces in its name."""

    def __init__(self, *arguments: Any, security: Security, **options: Any) -> None:  # noqa: ANN401 - passed on
        files = security.get_tls_config_for_role("worker")
        quoted = _security({name: shlex.quote(files[name]) for name in KEYS})
        super().__init__(*arguments, security=quoted, **options)


@contextmanager
def slurm_cluster(
    job: SlurmJob,
    *,
    at_most: int,
    threads: int,
    memory_gb: float,
    resources: Mapping[str, int],
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Iterator[Any]:
    """Have jobs for the length of a block, as many as there is work for.

    Parameters
    ----------
    job : SlurmJob
    at_most : int
        Jobs at a time.
    threads : int
        Processors of a job.
    memory_gb : float
        Of a job.
    resources : mapping
        What each worker declares, such as ``GPU``.
    settings : mapping
        Dask's, for the workers: a job does not know what was set here.
    environment : mapping
        Variables that the workers start with.

    Raises
    ------
    EngineError
        When there is no SLURM here.
    """
    if shutil.which("sbatch") is None:
        raise EngineError("sbatch is not here; --engine slurm is for a login node of a SLURM cluster")
    declared = [f"{name}={amount}" for name, amount in resources.items()]
    variables = {**environment, **{_variable(name): repr(value) for name, value in settings.items()}}
    with SLURMCluster(
        job_cls=QuotedJob,
        queue=job.partition,
        walltime=job.walltime,
        cores=1,
        job_cpu=threads,
        processes=1,
        memory=f"{memory_gb:.3f}GiB",
        python=shlex.quote(sys.executable),
        # What a job says goes to a file that its script opens: SLURM reads no quotes in the names it is given.
        job_extra_directives=["--output=/dev/null", *job.directives],
        job_script_prologue=[
            f'exec >{shlex.quote(str(job.folder))}/worker-"$SLURM_JOB_ID".log 2>&1',
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            _scratch(job.work_dir),
        ],
        local_directory=shlex.quote(str(job.work_dir)) if job.work_dir else None,
        security=_shared_keys(job.folder),
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        worker_extra_args=[
            *("--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--preload", PRELOAD),
            *(["--resources", ",".join(declared)] if declared else []),
        ],
        silence_logs="critical",
    ) as cluster:
        # Adaptive, because only then is a job that was cancelled or lost with its node replaced.
        cluster.adapt(minimum=1, maximum=at_most)
        yield cluster


def _variable(setting: str) -> str:
    """Return the variable by which Dask takes a setting.

    >>> _variable("distributed.scheduler.worker-ttl")
    'DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL'
    """
    return "DASK_" + setting.upper().replace(".", "__").replace("-", "_")


def _scratch(work_dir: Path | None) -> str:
    """Return the line that gives a job its scratch space; that of the login node may not be there."""
    if work_dir is not None:
        return f"export TMPDIR={shlex.quote(str(work_dir))}"
    return '[ -d "$TMPDIR" ] && [ -w "$TMPDIR" ] || unset TMPDIR'


def _shared_keys(folder: Path) -> Security:
    """Return fresh keys by which scheduler and jobs recognise each other, in files that only their owner can read."""
    files = {}
    content = Security.temporary().get_tls_config_for_role("worker")
    for name in KEYS:
        path = folder / f"{name}.pem"
        path.touch(mode=0o600)
        path.write_text(content[name], encoding="ascii")
        files[name] = str(path)
    return _security(files)


def _security(files: Mapping[str, str]) -> Security:
    of_roles = {
        f"tls_{role}_{name}": files[name]
        for role in ("scheduler", "worker", "client")
        for name in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=files["ca_file"], **of_roles)
