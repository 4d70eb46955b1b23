"""Real heads with labelled hippocampi, brought through the default chain once and kept.

Labels are those of the MICCAI 2012 challenge, which MUSE uses too: a head's file of labels lies in
``derivatives/labels`` of its BIDS directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import sha256_of_file
from brainstage.pipeline.records import Failure, RegisteredBrain, T1wScan
from brainstage.pipeline.runner import ChainOptions, run_chain
from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume

SIDES: Final = ("left", "right")
OUTWARDS: Final[Mapping[str, int]] = {"left": -1, "right": 1}
HIPPOCAMPUS: Final[Mapping[str, int]] = {"left": 48, "right": 47}
VENTRICLE: Final[Mapping[str, tuple[int, int]]] = {"left": (52, 50), "right": (51, 49)}
"""Body and temporal horn."""
LAST_STAGE: Final = "registration"

Labels = NDArray[np.int16]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan of a dataset, and where its labels are."""

    dataset: str
    scan: T1wScan
    labels: Path | None

    @property
    def name(self) -> str:
        """Dataset and scan."""
        return f"{self.dataset}/{self.scan.key}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Specimen:
    """A head in native space, and where its hippocampi truly are.

    Attributes
    ----------
    dataset, scan : str
    head : Volume
        Bias-corrected.
    brain_mask : BrainMask or None
        None for a crop.
    native_to_template : ndarray, (4, 4)
    grid : Grid
        Of the truth; the head's own, unless something was cut off it.
    truth : mapping
        Side to its hippocampus, (I, J, K) bool; a crop has one side.
    fluid, white : float
        Intensities of fluid and of white matter.
    """

    dataset: str
    scan: str
    head: Volume
    brain_mask: BrainMask | None
    native_to_template: Affine
    grid: Grid
    truth: Mapping[str, Mask]
    fluid: float
    white: float

    def with_data(self, data: NDArray[Any]) -> Specimen:
        """Return the same head with other values."""
        return replace(self, head=self.head.with_data(data))


def scans_in(data_dir: Path, dataset: str) -> list[Scan]:
    """Return the scans of a dataset, with their labels where there are any."""
    root = data_dir / dataset
    found = []
    for scan in read_dataset(root).scans:
        labels = [*(root / "derivatives" / "labels").glob(f"sub-{scan.entities.subject}/anat/*_dseg.nii.gz")]
        found.append(Scan(dataset=dataset, scan=scan, labels=labels[0] if labels else None))
    return found


def registered(scan: T1wScan, run_dir: Path) -> RegisteredBrain:
    """Return a scan after the default chain up to the registration; what an earlier run kept is not computed again.

    Parameters
    ----------
    scan : T1wScan
    run_dir : Path
        An output directory as of ``brainstage run``, which fills one that is read here.
    """
    from brainstage.workflows.stages import preprocessing_stages  # heavy: what the stages import

    stages = preprocessing_stages(Config())
    last = [stage.name for stage in stages].index(LAST_STAGE)
    files = ScanFiles(out_dir=run_dir, entities=scan.entities)
    done = run_chain(
        stages[: last + 1], scan, sha256_of_file(scan.path), files, ChainOptions(tool_versions={})
    )
    if isinstance(done, Failure):
        raise SystemExit(f"{run_dir.name}/{scan.key}: {done.stage} failed: {done.message}")
    brain: RegisteredBrain = done.state()
    return brain


def labels_of(scan: Scan, grid: Grid) -> Labels:
    """Return the labels of a scan on its head's grid."""
    from brainstage.preprocessing.ingest import ingest

    if scan.labels is None:
        raise ValueError(f"{scan.name} has no labels")
    labels = ingest(scan.labels, Config().ingest).head
    if not labels.grid.matches(grid):
        raise SystemExit(f"{scan.name}: labels of {labels!r} do not stand on the grid of the scan")
    whole: Labels = np.rint(labels.data).astype(np.int16)
    return whole


def specimen_of(scan: Scan, brain: RegisteredBrain, truth: Mapping[str, Mask]) -> Specimen:
    """Return a registered brain as a specimen."""
    from brainstage.preprocessing.measures import fit_tissues

    corrected = brain.normalised.corrected
    values = corrected.head.data[corrected.brain_mask.data]
    return Specimen(
        dataset=scan.dataset,
        scan=scan.scan.key,
        head=corrected.head,
        brain_mask=corrected.brain_mask,
        native_to_template=brain.native_to_template,
        grid=corrected.head.grid,
        truth=truth,
        fluid=float(np.percentile(values, 2.0)),
        white=fit_tissues(values).white_mean,
    )


def hippocampi_in(labels: Labels) -> dict[str, Mask]:
    """Return the labelled hippocampi by side."""
    return {side: labels == label for side, label in HIPPOCAMPUS.items()}


def ventricles_in(labels: Labels) -> dict[str, Mask]:
    """Return the labelled lateral ventricles with their temporal horns by side."""
    return {side: np.isin(labels, both) for side, both in VENTRICLE.items()}


def dice(first: Mask, second: Mask) -> float:
    """Return the overlap of two masks; 0 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * float((first & second).sum()) / total if total else 0.0
