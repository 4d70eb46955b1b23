"""What a stage computes and what is loaded from the files that it saved are one and the same state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainstage.pipeline.config import Config, RegistrationConfig
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import (
    VOLUMES,
    AssessedBrain,
    BrainVolumes,
    CorrectedBrain,
    Deformation,
    NormalisedBrain,
    QcReport,
    QcStatus,
    QcVerdict,
    RegisteredBrain,
    StrippedBrain,
    T1wScan,
)
from brainstage.pipeline.volume import BrainMask, DisplacementField, Volume
from brainstage.preprocessing.intensity import apply_normalisation, fit_normalisation
from brainstage.workflows.stages import preprocessing_stages, volumes_stage

RNG = np.random.default_rng(3)


def same(one: Any, other: Any) -> bool:
    """Tell whether two states are equal down to their voxels."""
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    if isinstance(one, np.ndarray):
        return one.shape == np.shape(other) and np.allclose(one, other, rtol=1e-6, atol=1e-6)
    if isinstance(one, float):
        return one == pytest.approx(other)
    return bool(one == other)


def field_on(volume: Volume) -> DisplacementField:
    data = RNG.normal(0.0, 3.0, (*volume.shape, 3)).astype(np.float32)
    return DisplacementField(data=data, voxel_to_ras=volume.voxel_to_ras)


@pytest.mark.parametrize("method", ["affine", "syn"])
def test_loading_what_was_saved_is_what_was_computed(
    method: str, phantom: Volume, save_nifti: Callable[..., Path], tmp_path: Path
) -> None:
    files = ScanFiles(out_dir=tmp_path / "out", entities=BidsEntities(subject="01"))
    path = save_nifti(tmp_path / "sub-01_T1w.nii.gz", phantom.data, phantom.voxel_to_ras)
    scan = T1wScan(entities=files.entities, path=path, t1w_path="sub-01/anat/sub-01_T1w.nii.gz")
    config = Config(registration=RegistrationConfig(method=method))
    stages = (*preprocessing_stages(config), volumes_stage())
    ingested = stages[0].run(scan)
    head = ingested.head
    mask = BrainMask(data=head.data > np.median(head.data), voxel_to_ras=head.voxel_to_ras)
    stripped = StrippedBrain(
        head=head, findings=ingested.findings, brain_mask=mask, method="deepbet", skull_stripped_input=False
    )
    corrected = CorrectedBrain(
        head=Volume(data=head.data * 1.25, voxel_to_ras=head.voxel_to_ras),
        brain_mask=mask,
        stripped=stripped,
        field_range=1.25,
    )
    normalised: NormalisedBrain = apply_normalisation(
        corrected, fit_normalisation(corrected, config.intensity)
    )
    turned = np.array([[0.9, 0.1, 0, 3], [-0.1, 1.1, 0, -2], [0, 0, 1, 7], [0, 0, 0, 1]])
    registered = RegisteredBrain(
        brain=normalised.brain,
        brain_mask=mask,
        native_to_template=turned,
        normalised=normalised,
        deformation=Deformation(forward=field_on(head), inverse=field_on(head)) if method == "syn" else None,
    )
    report = QcReport(
        measures={"snr": 12.5}, verdict=QcVerdict(status=QcStatus.WARN, reasons=("snr is 12.5",))
    )
    states = [scan, ingested, stripped, corrected, normalised, registered]
    assessed = AssessedBrain(registered=registered, qc=report)
    volumes = BrainVolumes(
        volumes_ml=dict.fromkeys(VOLUMES, 3.25) | {"hippocampus_left": None},
        reasons=("hippocampus_left:unsure",),
        quality={"hippocampus_left_agreement": 0.5, "hippocampus_left_contrast": None},
        atlas_ml={"a region": 1.5},
    )
    labels = Volume(data=RNG.integers(0, 8, head.shape).astype(np.float32), voxel_to_ras=head.voxel_to_ras)
    states += [assessed, replace(assessed, volumes=volumes, labels=labels)]
    for stage, (before, after) in zip(stages, pairwise(states), strict=True):
        stage.save(after, files)
        assert same(stage.load(before, files), after), stage.name
    assert not same(registered, replace(registered, native_to_template=np.eye(4)))
