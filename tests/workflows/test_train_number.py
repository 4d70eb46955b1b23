"""Training of a number on small volumes whose dark middle grows with age, and what is written about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.files import write_json
from brainstage.pipeline.manifest import ManifestRow, write_manifest
from brainstage.pipeline.nifti import write_mask, write_volume
from brainstage.pipeline.records import BrainVolumes
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.train import train

GRID = {"spacing_mm": 4.0, "shape": [40, 48, 40], "background": "zero"}
CONTENT = {
    "network_grid": GRID,
    "registration": {"resolution_mm": 1.0},
    "intensity": {"method": "zscore"},
}
OPTIONS = TrainOptions(weights="random", folds=3, target="age", device="cpu")
PEOPLE = 24


def add_scan(out_dir: Path, number: int, *, session: str = "M00", qc: str = "pass", **known) -> ManifestRow:
    """Write a ball whose dark middle, and whose ventricles, grow with age."""
    entities = BidsEntities(subject=f"{number:02d}", session=session)
    files = ScanFiles(out_dir=out_dir, entities=entities, resolution="1")
    generator = np.random.default_rng(number)
    age = known.get("age", 60.0) or 60.0
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = (-60, -76, -52)
    place = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
    radius = np.sqrt((place**2).sum(axis=0)) / 14
    dark = 0.25 + 0.008 * (age - 50) + 0.02 * generator.standard_normal()
    values = np.where(radius < dark, -1.5, 0.5) + 0.4 * generator.standard_normal(radius.shape)
    # The folds of the grey are each one's own: without them all would be one picture with noise.
    values = values + 3 * gaussian_filter(generator.standard_normal(radius.shape), 1.5)
    volume = Volume(data=np.where(radius < 1, values, 0).astype(np.float32), voxel_to_ras=matrix)
    write_volume(files.template_t1w, volume)
    write_mask(files.template_mask, BrainMask(data=radius < 1, voxel_to_ras=matrix))
    files.qc_json.write_text(json.dumps({"qc_status": qc}))
    ml = np.exp(np.log(15) + 0.03 * (age - 60) + 0.1 * generator.standard_normal())
    sizes = {"intracranial": 1500.0, "ventricle_left": float(ml), "hippocampus_left": 3.5}
    write_json(files.state / "volumes_result.json", asdict(BrainVolumes(volumes_ml=sizes)))
    return ManifestRow(
        participant_id=f"sub-{number:02d}",
        session_id=f"ses-{session}",
        run_id="",
        t1w_path=f"sub-{number:02d}/ses-{session}/anat/{entities.key}_T1w.nii.gz",
        **{"sha256": f"{number:063x}{session == 'M12':x}", **known},
    )


def finish(out_dir: Path, rows: list[ManifestRow]) -> Path:
    write_manifest(out_dir / "data_manifest.csv", rows)
    (out_dir / ".brainstage").mkdir(exist_ok=True)
    (out_dir / ".brainstage" / "preprocessing.json").write_text(json.dumps({"id": "abc", "content": CONTENT}))
    return out_dir


def known_of(number: int) -> dict:
    return {
        "age": 50.0 + 30 * number / PEOPLE,
        "sex": "FM"[number % 2],
        "site": "AB"[number % 3 == 0],
        "extra": {"mmse": f"{30 - number // 3}", "group": "x" if number % 2 else "y", "flat": "7"},
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """24 people, one of them twice, two whose split is test, one without an age."""
    out_dir = tmp_path_factory.mktemp("run") / "out"
    rows = [add_scan(out_dir, number, **known_of(number)) for number in range(PEOPLE)]
    rows.append(add_scan(out_dir, 0, session="M12", **known_of(0) | {"age": 51.0}))
    rows += [add_scan(out_dir, 80 + n, **known_of(4 * n) | {"split": "test"}) for n in range(2)]
    rows.append(add_scan(out_dir, 90, sex="F"))
    return finish(out_dir, rows)


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("models") / "model"
    said: list[str] = []
    return train(finished_run, model_dir, OPTIONS, said.append), said


def test_a_number_is_learnt_and_its_controls_are_not(trained):
    result, _ = trained
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert metrics["target"] == "age"
    assert result.r2.low > 0
    assert result.balanced_accuracy is None
    assert set(metrics["members"]) == {"volumes", "linear", "network"}
    assert metrics["members"]["linear"]["measures"]["r2"]["value"] > 0.5
    for control in metrics["control_random_targets"].values():
        assert control["measures"]["r2"]["low"] < 0
        assert control["scans"] == 5 * 25
    assert metrics["control_mask_only"]["measures"]["r2"]["value"] < 0.1  # all masks are the same ball
    assert metrics["control_covariates"]["columns"] == ["sex"]  # never the age itself
    assert metrics["test_split"]["scans"] == 2
