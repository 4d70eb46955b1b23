"""Maps of what a member's answer rests on: where each comes from, and how it is carried to a brain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from brainstage.models.baseline import baseline_values, block_matrix, in_places
from brainstage.models.explanation import UNITS, Method, explanation_of
from brainstage.models.member_evidence import linear_contributions
from brainstage.models.model_store import StoredModel
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.records import NetworkInput
from brainstage.pipeline.volume import Affine, Grid, Volume
from brainstage.preprocessing.local_volume import local_volume_grid
from brainstage.preprocessing.transforms import (
    apply_transform,
    read_affine,
    read_transform,
    to_native_transform,
)
from brainstage.workflows.evidence import BRIGHTNESS, LOCAL_VOLUME, LOG_ODDS, MAPS

_NUDGE_MM: Final = 1e-3
_WHAT: Final[Mapping[str, str]] = {
    BRIGHTNESS: "What the brightness of each block of the brain adds to {label} through the linear member",
    LOCAL_VOLUME: "What the local volume of each voxel in the middle of the brain adds to {label} through the linear "
    "member",
    "gradcam": "Where the network found what speaks for {label}",
    "occlusion": "Where the network found what speaks for {label}",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class EvidenceMap:
    """A map before it is carried anywhere.

    Attributes
    ----------
    name : str
        A key of `MAPS`.
    parts : tuple of Volume
        In template space; their sum is the map.
    units : str
    total : float or None
        What an exact map adds up to.
    """

    name: str
    parts: tuple[Volume, ...]
    units: str
    total: float | None = None

    def description(self, label: str) -> str:
        """Return what it shows, in one sentence for a sidecar."""
        what = _WHAT[self.name].format(label=label)
        if MAPS[self.name].exact:
            return f"{what}, more than in the mean of the training scans; above 0 for it, below 0 against it."
        return f"{what}."


def network_maps(
    model: StoredModel,
    network_input: NetworkInput,
    label: str,
    folds: Sequence[int],
    method: Method,
    site: str | None,
) -> tuple[EvidenceMap, ...]:
    """Return the map of the network's answer by one of its methods."""
    parts = explanation_of(model, network_input, label, folds, method, site)
    return (EvidenceMap(name=method, parts=parts, units=UNITS[method]),)


def linear_maps(
    model: StoredModel, network_input: NetworkInput, label: str, folds: Sequence[int], site: str | None
) -> tuple[EvidenceMap, ...]:
    """Return the two maps of the linear member's answer, of brightness and of local volume, per ml.

    Each value of the member is a block or a voxel; over it the map is what the value adds, spread evenly.
    """
    values, _ = baseline_values(network_input)
    added = linear_contributions(model, values, site, label, folds)
    blocks, middle = in_places(added, network_input)
    return (
        _exact(BRIGHTNESS, blocks, block_matrix(network_input.voxel_to_ras)),
        _exact(LOCAL_VOLUME, middle, local_volume_grid().voxel_to_ras),
    )


def _exact(name: str, added: NDArray[np.float64], voxel_to_ras: Affine) -> EvidenceMap:
    voxel_ml = abs(np.linalg.det(voxel_to_ras[:3, :3])) / 1000.0
    part = Volume(data=(added / voxel_ml).astype(np.float32), voxel_to_ras=voxel_to_ras)
    return EvidenceMap(name=name, parts=(part,), units=f"{LOG_ODDS}/ml", total=float(added.sum()))


def carried(parts: Sequence[Volume], grid: Grid, transform: sitk.Transform, name: str) -> Volume:
    """Return the sum of maps on another grid.

    Exact maps keep their blocks, so that a voxel shows what the block that it lies in adds, and no other. The maps of a
    network are coarse samples of something smooth. What speaks against the class is dropped from Grad-CAM.

    Parameters
    ----------
    parts : sequence of Volume
        In template space.
    grid : Grid
    transform : SimpleITK.Transform
        Leads points of the grid to points of template space.
    name : str
        A key of `MAPS`.
    """
    if MAPS[name].exact:
        moved = [apply_transform(_nudged(part), grid, transform, "nearest").data for part in parts]
    else:
        moved = [apply_transform(_with_rim(part), grid, transform).data for part in parts]
    total = np.sum(moved, axis=0)
    return Volume(data=np.maximum(total, 0.0) if name == "gradcam" else total, voxel_to_ras=grid.voxel_to_ras)


def _nudged(part: Volume) -> Volume:
    """Move blocks by next to nothing: voxels that lie between two of them then all go to the same one."""
    matrix = np.array(part.voxel_to_ras)
    matrix[:3, 3] += _NUDGE_MM
    return Volume(data=part.data, voxel_to_ras=matrix)


def _with_rim(part: Volume) -> Volume:
    """Repeat the outermost voxels: the image goes on for half a map voxel and more beyond their centres."""
    matrix = np.array(part.voxel_to_ras)
    matrix[:3, 3] -= matrix[:3, :3].sum(axis=1)
    return Volume(data=np.pad(part.data, 1, mode="edge"), voxel_to_ras=matrix)


def native_transform(files: ScanFiles) -> sitk.Transform:
    """Return the transform that carries template images to a scan's native space, after either registration."""
    if files.template_to_native.is_file():
        return read_transform(files.template_to_native)
    return to_native_transform(read_affine(files.native_to_template))


def transform_file(files: ScanFiles) -> Path:
    """Return the file that :func:`native_transform` reads."""
    return files.template_to_native if files.template_to_native.is_file() else files.native_to_template


def share_outside(everywhere: Volume, inside: Volume, name: str) -> float:
    """Return which part of a map lies outside the brain, on a grid that may end there: of what speaks for the class.

    Of an exact map both signs count.
    """
    total, kept = (
        float((np.abs(one.data) if MAPS[name].exact else np.maximum(one.data, 0.0)).sum(dtype=np.float64))
        for one in (everywhere, inside)
    )
    return 1.0 - kept / total if total > 0 else 0.0
