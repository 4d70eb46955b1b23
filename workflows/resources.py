"""What a run may use of the machine or the cluster: processes, threads, memory, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import psutil

from brainstage.pipeline.derivatives import STATE_FOLDER
from brainstage.pipeline.engine import EngineOptions, SlurmJob
from brainstage.pipeline.errors import StorageError
from brainstage.pipeline.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from brainstage.workflows.progress import Progress
    from brainstage.workflows.run import RunOptions

MEMORY_PER_WORKER_GB: Final = 3.0
"""A worker that has done a few heads of 1 mm has needed 2.2 GB at its peak, one with heads of 0.7 mm 2.4 GB."""
MEMORY_OF_LIBRARIES_GB: Final = 1.5
MEMORY_PER_VOXEL_BYTES: Final = 40
"""Both fitted to peaks: 2.0 GB for the 11.5 million voxels of a head of 1 mm, 5.7 GB for 114 million at 0.45 mm."""
TRIED_IN_ANY_CASE_VOXELS: Final = 256**3
"""A head of usual size is tried whatever a worker has: what the libraries take is an estimate."""
REMOTE_WORKERS: Final = 20
REMOTE_WORKER_MEMORY_GB: Final = 4.0
GPU_DEVICES: Final = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""Of NVIDIA's drivers, of Windows below WSL, of AMD's driver. Where none of them is, there is no GPU, and torch, which
takes seconds to load, need not be asked."""
SPACE_PER_SCAN_GB: Final = 0.06
"""What a run writes for a 1 mm head is 24 MB, for one at 0.7 mm twice that."""


def choose_engine(options: RunOptions, scans: int, folder: Path | None) -> tuple[EngineOptions, str]:
    """Choose how many processes and threads, from what is asked for and what is there; return it with the reason."""
    return (
        _local_engine(options, scans) if options.engine == "local" else _remote_engine(options, scans, folder)
    )


def memory_lacking_gb(voxels: int, share_gb: float | None) -> float | None:
    """Return what a worker needs, at its peak, for an image of so many voxels; None where its share will do.

    Parameters
    ----------
    voxels : int
    share_gb : float or None
        None where the share is not known.
    """
    needed_gb = MEMORY_OF_LIBRARIES_GB + voxels * MEMORY_PER_VOXEL_BYTES / 1024**3
    if share_gb is None or voxels <= TRIED_IN_ANY_CASE_VOXELS or needed_gb <= share_gb:
        return None
    return needed_gb


def known_share_gb(options: RunOptions, engine: EngineOptions) -> float | None:
    """Return the memory at which a worker is ended; None for workers that others started, who alone know it."""
    return None if engine.kind == "dask" and not options.memory_gb else engine.worker_memory_gb


def _local_engine(options: RunOptions, scans: int) -> tuple[EngineOptions, str]:
    processors = len(os.sched_getaffinity(0))
    memory_gb = options.memory_gb or psutil.virtual_memory().available / 1024**3
    fitting = max(1, int(memory_gb // MEMORY_PER_WORKER_GB))
    count = max(1, min(options.processes or min(processors, fitting), scans))
    threads = 1 if options.deterministic else options.threads or max(1, processors // count)
    room = "given" if options.memory_gb else "free"
    reason = (
        f"{count} at a time, {threads} thread(s) each: {processors} processor(s), {memory_gb:.1f} GB {room} for "
        f"{fitting} of {MEMORY_PER_WORKER_GB:g} GB"
        + (f", --nprocs {options.processes}" if options.processes else "")
    )
    share_gb = memory_gb / count
    engine = EngineOptions(
        workers=count,
        threads=threads,
        worker_memory_gb=share_gb if options.memory_gb else max(share_gb, MEMORY_PER_WORKER_GB),
        gpu=_gpu_is_here(options),
    )
    return engine, reason


def _remote_engine(options: RunOptions, scans: int, folder: Path | None) -> tuple[EngineOptions, str]:
    count = min(options.processes or REMOTE_WORKERS, scans)
    threads = 1 if options.deterministic else options.threads or 1
    engine = EngineOptions(
        kind=options.engine,
        workers=count,
        threads=threads,
        worker_memory_gb=options.memory_gb / count if options.memory_gb else REMOTE_WORKER_MEMORY_GB,
        threads_asked=options.threads_matter,
        scheduler=options.dask_scheduler,
        allow_open_ports=options.allow_open_ports,
        gpu=any("gpu" in directive for directive in options.slurm_directives),
        slurm=SlurmJob(
            partition=options.slurm_partition,
            walltime=options.slurm_walltime,
            directives=options.slurm_directives,
            folder=folder,
            work_dir=options.work_dir.resolve() if options.work_dir else None,
        )
        if folder
        else None,
    )
    return engine, f"at most {count} at a time on {options.engine}, {threads} thread(s) each"


def _gpu_is_here(options: RunOptions) -> bool:
    if options.model_dir is None or not any(Path(device).exists() for device in GPU_DEVICES):
        return False
    import torch  # heavy

    return torch.cuda.is_available()


@contextmanager
def folder_for_jobs(options: RunOptions) -> Iterator[Path | None]:
    """Give SLURM's jobs a folder that all nodes see, for the length of the run."""
    if options.engine != "slurm":
        yield None
        return
    place = options.work_dir or options.out_dir / STATE_FOLDER
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=place.resolve()) as folder:
        yield Path(folder)


def check_space(out_dir: Path, scans: int, progress: Progress) -> None:
    """Say beforehand when the disk will probably not hold the results; refuse when it cannot hold a single one.

    Raises
    ------
    StorageError
    """
    free_gb = shutil.disk_usage(out_dir).free / 1024**3
    wanted_gb = SPACE_PER_SCAN_GB * scans
    sizes = f"{free_gb:.2f} GB free, about {wanted_gb:.2f} GB needed for {scans} scans"
    if free_gb < SPACE_PER_SCAN_GB:
        raise StorageError(f"{out_dir.name}: {sizes}. Free some space and run the same command again")
    if free_gb < wanted_gb:
        progress.note(f"the disk may become full ({sizes}); finished work would be kept")
