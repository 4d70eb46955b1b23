"""The volumes of a brain in native space: tissues, lateral ventricles, hippocampi, and regions of the user's atlas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from brainstage.pipeline.records import VOLUMES, BrainVolumes, RegisteredBrain
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing.hippocampi import Segment, find_hippocampi
from brainstage.preprocessing.hippocampus_quality import objection
from brainstage.preprocessing.regions import Atlas
from brainstage.preprocessing.tissues import segment_tissues
from brainstage.preprocessing.transforms import apply_transform, to_native_transform
from brainstage.preprocessing.ventricles import lateral_ventricles

STAGE_VERSION: Final = "1"
VOLUMES_VERSION: Final = "1"
"""Raised with the stage's when a volume becomes another: what is usual by one version is not by the next."""
LABEL_OF: Final[Mapping[str, int]] = {
    "grey_matter": 1,
    "white_matter": 2,
    "csf": 3,
    "ventricle_left": 4,
    "ventricle_right": 5,
    "hippocampus_left": 6,
    "hippocampus_right": 7,
}
"""What the values of the label map mean; 0 is nothing."""
LABEL_NAMES: Final[Mapping[int, str]] = {
    1: "grey matter",
    2: "white matter",
    3: "cerebrospinal fluid",
    4: "left lateral ventricle",
    5: "right lateral ventricle",
    6: "left hippocampus",
    7: "right hippocampus",
}
"""The same in words, for the table beside the map."""
SIDES: Final = ("left", "right")


def measure_volumes(
    registered: RegisteredBrain, segment: Segment, atlas: Atlas | None = None
) -> tuple[BrainVolumes, Volume]:
    """Return the volumes of a brain and its label map.

    Parameters
    ----------
    registered : RegisteredBrain
    segment : callable
        The network that finds hippocampi: normalised boxes (N, D, H, W) to probabilities.
    atlas : Atlas, optional
        In template space; carried to native space by the registration.

    Returns
    -------
    BrainVolumes
        What cannot be believed is None, and `reasons` says why.
    Volume
        On the native grid: the values of ``LABEL_OF``, 0 for nothing.
    """
    corrected = registered.normalised.corrected
    head, mask, to_template = corrected.head, corrected.brain_mask, registered.native_to_template
    volumes: dict[str, float | None] = dict.fromkeys(VOLUMES)
    volumes["intracranial"] = mask.volume_ml or None
    labels = np.zeros(head.shape, dtype=np.int16)
    reasons: list[str] = []
    quality: dict[str, float | None] = {}
    tissues = segment_tissues(head, mask, to_template)
    if tissues is None:
        reasons += [f"{name}:no_contrast" for name in ("grey_matter", "white_matter", "csf")]
    else:
        volumes |= {
            "grey_matter": tissues.grey_matter_ml,
            "white_matter": tissues.white_matter_ml,
            "csf": tissues.csf_ml,
        }
        labels[...] = tissues.labels
    ventricles = lateral_ventricles(head, mask, to_template)
    if ventricles is None:
        reasons += [f"ventricle_{side}:no_contrast" for side in SIDES]
    else:
        volumes |= {"ventricle_left": ventricles.left_ml, "ventricle_right": ventricles.right_ml}
        of_ventricles = ventricles.on(head.grid)
        for n, side in enumerate(SIDES):
            labels[of_ventricles == n + 1] = LABEL_OF[f"ventricle_{side}"]
    for side, found in find_hippocampi(head, to_template, segment).items():
        name = f"hippocampus_{side}"
        why = objection(found)
        if found is not None:
            quality |= {f"{name}_{measure}": value for measure, value in found.quality.items()}
        if found is None or why is not None:
            reasons.append(f"{name}:{why}")
            continue
        volumes[name] = found.volume_ml
        labels[found.inside(head.grid)] = LABEL_OF[name]
    return (
        BrainVolumes(
            volumes_ml={name: _rounded(value) for name, value in volumes.items()},
            reasons=tuple(reasons),
            quality={name: _rounded(value) for name, value in quality.items()},
            atlas_ml=atlas_volumes_ml(atlas, registered) if atlas else {},
        ),
        Volume(data=labels.astype(np.float32), voxel_to_ras=head.voxel_to_ras),
    )


def atlas_volumes_ml(atlas: Atlas, registered: RegisteredBrain) -> dict[str, float]:
    """Return the volume of each region of an atlas inside a person's brain, ml.

    The regions come through the registration, which is smooth: it follows a shrunken structure only in part, so that
    these volumes underestimate atrophy.

    Parameters
    ----------
    atlas : Atlas
        In template space.
    registered : RegisteredBrain
    """
    mask = registered.normalised.corrected.brain_mask
    to_native = to_native_transform(registered.native_to_template, registered.deformation)
    moved = apply_transform(atlas.labels, mask.grid, to_native, "nearest").data
    inside = np.rint(moved[mask.data]).astype(np.int64)
    voxel_ml = mask.grid.voxel_volume_mm3 / 1000.0
    counts = np.unique(inside, return_counts=True)
    found = dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True))
    volumes: dict[str, float] = dict.fromkeys(atlas.names.values(), 0.0)
    for label, name in atlas.names.items():  # two labels of one name are one region
        volumes[name] += found.get(label, 0) * voxel_ml
    return {name: float(f"{volume_ml:.6g}") for name, volume_ml in volumes.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
