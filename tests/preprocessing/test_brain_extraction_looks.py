"""deepbet's networks answer as deepbet has them answer, and as few looks are taken as suffice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import BrainExtractionError
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing import brain_extraction
from brainstage.preprocessing.brain_extraction import _network_mask, deepbet_mask
from brainstage.preprocessing.ingest import ingest
from brainstage.preprocessing.registration import dice
from brainstage.preprocessing.resampling import resampled, resampled_mask


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_in_a_flat_image_there_is_nothing(value: float) -> None:
    flat = Volume(
        data=np.full((40, 50, 60), value, dtype=np.float32), voxel_to_ras=np.diag([4.0, 4.0, 4.0, 1.0])
    )
    with pytest.raises(BrainExtractionError, match="deepbet found no brain"):
        _network_mask(flat)


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_mask_of_a_real_head_is_that_of_deepbet_itself(shared_data: Path) -> None:
    from deepbet.bet import BrainExtraction

    head = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig()).head
    deepbet = BrainExtraction(no_gpu=True)
    expected = deepbet.postprocess(deepbet.run_model(np.array(head.data)) > 0.5) > 0
    assert dice(_network_mask(head).data, expected) > 0.9999


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Demand a fit that no head reaches, and count how often the network is asked."""
    asked: list[tuple[int, ...]] = []
    ask = brain_extraction._network_mask

    def counted(head: Volume) -> BrainMask:
        asked.append(head.shape)
        return ask(head)

    monkeypatch.setattr(brain_extraction, "GOOD_FIT", 2.0)
    monkeypatch.setattr(brain_extraction, "_network_mask", counted)
    return asked


@pytest.mark.slow
@pytest.mark.shared_data
def test_an_upright_head_unlike_the_template_is_looked_at_twice_and_no_more(
    shared_data: Path, looks: list[tuple[int, ...]]
) -> None:
    head = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig()).head
    expected = _network_mask(head)
    assert dice(deepbet_mask(head).data, expected.data) > 0.97
    assert len(looks) == 2


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_tilted_head_unlike_the_template_keeps_its_mask(
    shared_data: Path, looks: list[tuple[int, ...]]
) -> None:
    head = ingest(shared_data / "oddities/head_2mm.nii.gz", IngestConfig()).head
    upright = _network_mask(head)
    grid_to_head = np.eye(4)
    grid_to_head[:3, :3] = Rotation.from_euler("x", 45, degrees=True).as_matrix()
    grid_to_head[:3, 3] = (head.voxel_to_ras @ np.append(np.array(head.shape) / 2, 1))[:3]
    voxel_to_ras = np.diag([2.0, 2.0, 2.0, 1.0])
    voxel_to_ras[:3, 3] = -140.0
    grid = Grid(shape=(140, 140, 140), voxel_to_ras=voxel_to_ras)
    found = deepbet_mask(resampled(head, grid, grid_to_head))
    assert dice(found.data, resampled_mask(upright, grid, grid_to_head).data) > 0.96
    assert len(looks) <= 6


def test_shoulders_that_lead_the_network_astray_are_cut_off_and_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tall image: the network finds nothing in the whole of it, and a brain in the head alone."""
    shape = (60, 70, 110)
    data = np.zeros(shape, dtype=np.float32)
    data[10:50, 10:60, :100] = 100.0
    tall = Volume(data=data, voxel_to_ras=np.diag([3.0, 3.0, 3.0, 1.0]))
    heights = []

    def asked(head: Volume) -> BrainMask:
        heights.append(head.shape[2])
        if head.shape[2] == shape[2]:
            raise BrainExtractionError("deepbet found no brain.")
        mask = np.zeros(head.shape, dtype=bool)
        mask[15:45, 15:55, -40:-15] = True
        return BrainMask(data=mask, voxel_to_ras=head.voxel_to_ras)

    monkeypatch.setattr(brain_extraction, "_network_mask", asked)
    found = brain_extraction._first_look(tall).mask
    assert heights[0] == shape[2]
    assert heights[1] < 75
    assert found.data.shape == shape
    assert found.data[15:45, 15:55, 70:95].all()
    assert found.data.sum() == 30 * 40 * 25
