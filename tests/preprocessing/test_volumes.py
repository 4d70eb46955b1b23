"""Volumes of the template's own brain, whose tissues are known, and what becomes of what is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from brainstage.models.hippocampus_network import hippocampus_segmenter
from brainstage.pipeline.records import (
    VOLUMES,
    CorrectedBrain,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    RegisteredBrain,
    StrippedBrain,
    VolumesStatus,
)
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.regions import Atlas
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.volumes import LABEL_NAMES, LABEL_OF, atlas_volumes_ml, measure_volumes


def registered_of(
    head: Volume, mask: BrainMask, native_to_template: np.ndarray | None = None
) -> RegisteredBrain:
    findings = HeaderFindings(
        shape=head.shape, spacing_mm=head.spacing_mm, axcodes="RAS", affine_source="sform"
    )
    stripped = StrippedBrain(
        head=head, findings=findings, brain_mask=mask, method="none", skull_stripped_input=True
    )
    corrected = CorrectedBrain(head=head, brain_mask=mask, stripped=stripped, field_range=1.0)
    normalised = NormalisedBrain(
        brain=head,
        brain_mask=mask,
        normalisation=Normalisation(method="zscore", centre=0.0, scale=1.0),
        corrected=corrected,
    )
    matrix = np.eye(4) if native_to_template is None else native_to_template
    return RegisteredBrain(brain=head, brain_mask=mask, native_to_template=matrix, normalised=normalised)


@pytest.fixture(scope="module")
def template_brain() -> RegisteredBrain:
    template = load_template(1.0)
    rng = np.random.default_rng(0)
    noisy = template.t1w.data + rng.normal(0.0, 1.5, template.t1w.shape).astype(np.float32)
    head = template.t1w.with_data(np.where(template.brain_mask.data, noisy, 0.0).astype(np.float32))
    return registered_of(head, template.brain_mask)


@pytest.fixture(scope="module")
def measured(template_brain):
    return measure_volumes(template_brain, hippocampus_segmenter())


def test_the_volumes_of_the_template_are_those_of_a_brain(measured, template_brain) -> None:
    volumes, labels = measured
    assert volumes.status is VolumesStatus.REPORTED
    assert volumes.reasons == ()
    ml = volumes.volumes_ml
    mask_ml = template_brain.normalised.corrected.brain_mask.volume_ml
    assert ml["intracranial"] == pytest.approx(mask_ml, rel=1e-5)
    assert ml["grey_matter"] + ml["white_matter"] + ml["csf"] == pytest.approx(mask_ml, rel=1e-4)
    # The sides of the symmetric template are alike, and hippocampi of adults have 2.5 to 5 ml.
    for name in ("hippocampus", "ventricle"):
        assert ml[f"{name}_left"] == pytest.approx(ml[f"{name}_right"], rel=0.06)
    assert 2.5 < ml["hippocampus_left"] < 5.5
    assert labels.grid.matches(template_brain.normalised.corrected.head.grid)


def test_the_map_holds_what_the_table_says(measured) -> None:
    volumes, labels = measured
    assert set(np.unique(labels.data)) == {0.0, *map(float, LABEL_NAMES)}
    for name, value in LABEL_OF.items():
        counted_ml = float((labels.data == value).sum()) * labels.grid.voxel_volume_mm3 / 1000.0
        if name.startswith("hippocampus"):
            assert counted_ml == pytest.approx(volumes.volumes_ml[name], rel=0.06)
        side = {"left": -1, "right": 1}.get(name.rpartition("_")[2])
        if side:
            x_mm = labels.grid.places_mm(np.argwhere(labels.data == value))[0]
            assert np.mean(side * x_mm >= 0) > 0.99


def test_a_brain_of_one_value_has_its_size_and_says_why_nothing_else(template_brain) -> None:
    corrected = template_brain.normalised.corrected
    flat = corrected.head.with_data(np.where(corrected.brain_mask.data, 100.0, 0.0).astype(np.float32))
    volumes, labels = measure_volumes(registered_of(flat, corrected.brain_mask), hippocampus_segmenter())
    assert volumes.volumes_ml["intracranial"] == pytest.approx(corrected.brain_mask.volume_ml, rel=1e-5)
    assert [name for name in VOLUMES[1:] if volumes.volumes_ml[name] is not None] == []
    assert {reason.partition(":")[0] for reason in volumes.reasons} == set(VOLUMES[1:])
    assert volumes.status is VolumesStatus.PARTIAL
    assert not labels.data.any()


def test_an_empty_mask_is_withheld(template_brain) -> None:
    corrected = template_brain.normalised.corrected
    nothing = replace(corrected.brain_mask, data=np.zeros_like(corrected.brain_mask.data))
    far = np.eye(4)
    far[:3, 3] = 900.0
    volumes, _ = measure_volumes(registered_of(corrected.head, nothing, far), hippocampus_segmenter())
    assert volumes.status is VolumesStatus.WITHHELD
    assert all(value is None for value in volumes.measures.values())


def atlas_of(labels: Volume, names: dict[int, str]) -> Atlas:
    return Atlas(name="atlas", labels=labels, names=names, sha256="0" * 64)


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_regions_of_an_atlas_have_the_size_that_the_registration_gives_them(template_brain, scale) -> None:
    corrected = template_brain.normalised.corrected
    places = corrected.head.grid
    centre = np.array([-20.0, 0.0, 10.0])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in places.shape), indexing="ij"))
    mm = np.tensordot(places.voxel_to_ras[:3, :3], index, 1) + places.voxel_to_ras[:3, 3][:, None, None, None]
    ball = np.sqrt(np.square(mm - centre[:, None, None, None]).sum(axis=0)) < 12.0
    labels = corrected.head.with_data(np.where(ball, np.where(mm[0] < -20.0, 1, 2), 0).astype(np.float32))
    shrunk = np.diag([scale, scale, scale, 1.0])  # native mm to template mm: the template is larger
    found = atlas_volumes_ml(
        atlas_of(labels, {1: "half", 2: "half", 7: "nowhere"}),
        registered_of(corrected.head, corrected.brain_mask, shrunk),
    )
    assert found["nowhere"] == 0.0
    assert found["half"] == pytest.approx(ball.sum() / 1000.0 / scale**3, rel=0.02)


def test_what_lies_outside_the_brain_is_not_counted(template_brain) -> None:
    corrected = template_brain.normalised.corrected
    mask = corrected.brain_mask
    shell = ndimage.binary_dilation(mask.data, iterations=2)
    labels = corrected.head.with_data(shell.astype(np.float32))
    found = atlas_volumes_ml(atlas_of(labels, {1: "all"}), template_brain)
    assert found["all"] == pytest.approx(mask.volume_ml, rel=1e-4)
