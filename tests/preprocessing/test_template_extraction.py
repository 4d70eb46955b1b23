"""The template alone finds a brain, without the neck and without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import BrainExtractionConfig, IngestConfig
from brainstage.pipeline.errors import BrainExtractionError
from brainstage.pipeline.records import HeaderFindings, IngestedHead
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing import brain_extraction
from brainstage.preprocessing.brain_extraction import deepbet_mask, extract_brain
from brainstage.preprocessing.ingest import ingest, to_ras
from brainstage.preprocessing.registration import dice
from brainstage.preprocessing.resampling import resampled, resampled_mask
from brainstage.preprocessing.template_extraction import template_brain_mask, without_neck
from brainstage.workflows.synthetic.anatomy import load_anatomy
from brainstage.workflows.synthetic.heads import HeadRecipe, SyntheticHead, make_head


@pytest.fixture(scope="module")
def synthetic() -> SyntheticHead:
    return make_head(load_anatomy(), HeadRecipe(person_seed=5, scan_seed=6, spacing_mm=(1.6, 1.6, 1.6)))


def ingested(head: Volume) -> IngestedHead:
    findings = HeaderFindings(
        shape=head.shape, spacing_mm=head.spacing_mm, axcodes=head.axcodes, affine_source="sform"
    )
    return IngestedHead(head=to_ras(head), findings=findings)


@pytest.mark.slow
def test_the_brain_of_a_synthetic_head_is_found(synthetic: SyntheticHead) -> None:
    found = extract_brain(ingested(synthetic.head), BrainExtractionConfig(method="ants"))
    truth = to_ras(
        Volume(
            data=synthetic.brain_mask.data.astype(np.float32), voxel_to_ras=synthetic.brain_mask.voxel_to_ras
        )
    )
    assert found.method == "ants"
    assert dice(found.brain_mask.data, truth.data > 0.5) > 0.93


@pytest.mark.slow
@pytest.mark.shared_data
def test_both_extractors_agree_on_a_real_head(shared_data: Path) -> None:
    head = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig()).head
    assert dice(template_brain_mask(head, seed=0).data, deepbet_mask(head).data) > 0.92


@pytest.mark.slow
def test_auto_falls_back_to_the_template_where_deepbet_finds_nothing(
    synthetic: SyntheticHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(head: Volume) -> BrainMask:
        raise BrainExtractionError("deepbet found no brain.")

    monkeypatch.setattr(brain_extraction, "deepbet_mask", nothing)
    assert extract_brain(ingested(synthetic.head), BrainExtractionConfig()).method == "ants"
    with pytest.raises(BrainExtractionError, match="deepbet found no brain"):
        extract_brain(ingested(synthetic.head), BrainExtractionConfig(method="deepbet"))


@pytest.mark.slow
def test_where_there_is_no_head_both_say_so() -> None:
    noise = np.abs(np.random.default_rng(0).normal(0, 3, (60, 60, 60))).astype(np.float32)
    with pytest.raises(BrainExtractionError, match=r"no help either|brain mask holds"):
        extract_brain(
            ingested(Volume(data=noise, voxel_to_ras=np.diag([4.0, 4, 4, 1]))), BrainExtractionConfig()
        )


def test_the_neck_goes_and_the_top_stays() -> None:
    data = np.zeros((100, 100, 150), dtype=np.float32)
    data[30:70, 30:70, :140] = 100.0
    cut = without_neck(Volume(data=data, voxel_to_ras=np.diag([2.0, 2.0, 2.0, 1.0])))
    bottom_mm, top_mm = ((cut.voxel_to_ras @ [0, 0, k, 1])[2] for k in (0, cut.shape[2] - 1))
    assert top_mm == 278.0
    assert top_mm - bottom_mm == pytest.approx(175, abs=2)
    assert cut.data.max() == 1.0


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    "angles_deg",
    [(0, 0, 0), (45, 0, 0), (-45, 0, 0)],
    ids=["upright", "nodding", "looking-up"],
)
def test_a_real_head_keeps_its_mask_however_it_lies(shared_data: Path, angles_deg: tuple) -> None:
    assert dice_of_posed(shared_data, angles_deg) > 0.97


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("angles_deg", [(0, -45, 0), (30, 30, 30)], ids=["to-one-shoulder", "about-all-axes"])
def test_a_real_head_is_not_lost_however_it_lies(shared_data: Path, angles_deg: tuple) -> None:
    assert dice_of_posed(shared_data, angles_deg) >= 0.93


def dice_of_posed(shared_data: Path, angles_deg: tuple) -> float:
    """Return the Dice of the masks of a real head as it is and posed."""
    head = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig()).head
    upright = deepbet_mask(head)
    grid_to_head = np.eye(4)
    grid_to_head[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    grid_to_head[:3, 3] = (head.voxel_to_ras @ np.append(np.array(head.shape) / 2, 1))[:3]
    voxel_to_ras = np.diag([2.0, 2.0, 2.0, 1.0])
    voxel_to_ras[:3, 3] = -140.0
    grid = Grid(shape=(140, 140, 140), voxel_to_ras=voxel_to_ras)
    found = deepbet_mask(resampled(head, grid, grid_to_head))
    return dice(found.data, resampled_mask(upright, grid, grid_to_head).data)
