"""What every scan of a run shares, and what its pages say about the run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from brainstage.models.norms_directory import NormsDescription
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, ScanFiles
from brainstage.pipeline.records import T1wScan
from brainstage.pipeline.stage import Stage
from brainstage.workflows.reporting.pages import RunInfo
from brainstage.workflows.stages import preprocessing_content, preprocessing_id, scan_stages

TOOLS: Final = (
    "brainstage",
    "antspyx",
    "SimpleITK",
    "nibabel",
    "nilearn",
    "deepbet",
    "monai",
    "torch",
    "numpy",
    "scipy",
)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every scan of a run shares; sent to every worker.

    Attributes
    ----------
    out_dir : Path
    config : Config
    model_dir : Path or None
    model_id : str or None
        Of that model.
    model_covariates : tuple of str
        The columns that it reads besides the image.
    model_reads_volumes : bool
        It compares volumes with a class of its training cohort.
    model_number : str or None
        The column that it predicts; None for a model of classes.
    norms : NormsDescription or None
        What the volumes are compared with in tables and reports.
    retry_failed, reports_only : bool
    started : str
        When the run began, for the reports.
    command : str
        The command line without paths, for the reports.
    stage_timeout_s : float or None
        A stage that takes longer ends its process.
    worker_memory_gb : float or None
        A process that takes more is ended; None where that is not known.
    umask : int or None
        Which permissions new files are denied; None leaves the process as it is.
    chain : callable
        Configuration to the stages of a scan.
    """

    out_dir: Path
    config: Config
    model_dir: Path | None = None
    model_id: str | None = None
    model_covariates: tuple[str, ...] = ()
    model_reads_volumes: bool = False
    model_number: str | None = None
    norms: NormsDescription | None = None
    retry_failed: bool = False
    reports_only: bool = False
    started: str = ""
    command: str = ""
    stage_timeout_s: float | None = None
    worker_memory_gb: float | None = None
    umask: int | None = None
    chain: Callable[[Config], Sequence[Stage]] = scan_stages

    @cached_property
    def preprocessing_id(self) -> str:
        """Hash of the settings, stage versions, weights and template that change a voxel; not of tools' versions."""
        return preprocessing_id(preprocessing_content(self.config))

    @property
    def norms_id(self) -> str | None:
        """Of the norms; None without any."""
        return self.norms.norms_id if self.norms else None

    @cached_property
    def config_content(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return self.config.model_dump(mode="json")

    def files(self, scan: T1wScan) -> ScanFiles:
        """Return where everything about a scan lies."""
        label = RESOLUTION_LABELS[self.config.registration.resolution_mm]
        return ScanFiles(out_dir=self.out_dir, entities=scan.entities, resolution=label)


@cache
def tool_versions() -> dict[str, str]:
    """Return the versions of everything that takes part, by package name."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_info(context: RunContext) -> RunInfo:
    """Return what the pages say about the run."""
    return RunInfo(
        version=tool_versions()["brainstage"],
        date=context.started,
        options=context.command,
        preprocessing_id=context.preprocessing_id,
        seeds={"preprocessing": context.config.seed},
        tool_versions=tool_versions(),
    )
