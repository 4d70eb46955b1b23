"""``brainstage explain``: which scans are explained, what is written, where it lies in a person's own space."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from brainstage.models.baseline import baseline_values
from brainstage.models.choices import STRIDES
from brainstage.models.explanation import explanation_of
from brainstage.models.features import FeatureExtractor
from brainstage.models.heads import LinearHead
from brainstage.models.med3d import build_med3d, initialise_randomly
from brainstage.models.member_evidence import linear_contributions
from brainstage.models.model_store import StoredModel, load_model, scan_inputs, write_model
from brainstage.models.weights import WeightsSource
from brainstage.pipeline.config import Config, NetworkGridConfig
from brainstage.pipeline.derivatives import ScanFiles, sidecar_of
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import ImageError, InputMissingError, ModelError, NothingSelectedError
from brainstage.pipeline.files import write_json
from brainstage.pipeline.manifest import ManifestRow, write_manifest
from brainstage.pipeline.nifti import read_mask, read_volume, write_mask, write_volume
from brainstage.pipeline.records import (
    VOLUMES,
    BrainVolumes,
    Completed,
    Covariates,
    Deformation,
    Failure,
    Prediction,
    QcReport,
    QcStatus,
    QcVerdict,
    Review,
    ReviewDecision,
    T1wScan,
)
from brainstage.pipeline.stage import Marker, describe_outputs, read_marker, write_marker
from brainstage.pipeline.volume import BrainMask, DisplacementField, Volume
from brainstage.preprocessing.network_grid import network_input
from brainstage.preprocessing.template import load_template
from brainstage.preprocessing.transforms import to_native_transform, to_template_transform, write_transform
from brainstage.workflows.cli import main
from brainstage.workflows.evidence import read_evidence
from brainstage.workflows.evidence_maps import carried, linear_maps, native_transform
from brainstage.workflows.explain import (
    EXPLAINED,
    KEPT,
    NO_PREDICTION,
    WITHHELD,
    ExplainOptions,
    explain,
)
from brainstage.workflows.learning.features import read_network_input
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.prediction import read_prediction
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.scan_report import write_report
from brainstage.workflows.train import train

CLASSES = ("CN", "AD")
GRID = {"spacing_mm": 4.0, "shape": [40, 48, 40], "background": "zero"}
CONTENT = {"network_grid": GRID, "registration": {"resolution_mm": 1.0}}
OPTIONS = ExplainOptions(method="gradcam", device="cpu")
AUTO = replace(OPTIONS, method="auto")
WEIGHTS = {"volumes": 0.3, "linear": 0.5, "network": 0.1}
NUMBERS = (0, 20, 21, 22)
LINEAR = replace(OPTIONS, method="linear")


def native_to_template() -> np.ndarray:
    """Turn, shift and scale a head, as registrations do."""
    matrix = np.eye(4)
    matrix[:3, :3] = 1.1 * Rotation.from_euler("xyz", (12, -8, 15), degrees=True).as_matrix()
    matrix[:3, 3] = (6.0, -9.0, 4.0)
    return matrix


def oblique_mask() -> BrainMask:
    """Give a native grid of 5 mm that lies askew, and all of it as brain."""
    matrix = np.eye(4)
    matrix[:3, :3] = 5.0 * Rotation.from_euler("xyz", (-10, 20, 5), degrees=True).as_matrix()
    centre = np.linalg.inv(native_to_template()) @ (0, -18, 8, 1)
    matrix[:3, 3] = centre[:3] - matrix[:3, :3] @ (22.5, 24.5, 22.5)
    return BrainMask(data=np.ones((46, 50, 46), dtype=bool), voxel_to_ras=matrix)


def brain(label: str, seed: int) -> tuple[Volume, BrainMask]:
    """Make the template's brain at 4 mm; AD is darker around the hippocampi."""
    template = load_template(1.0)
    grid = template.grid.rescaled(4.0)
    mask = load_template(2.0).brain_mask
    inside = nib.processing.resample_from_to(
        nib.Nifti1Image(mask.data.astype(np.float32), mask.voxel_to_ras),
        (grid.shape, grid.voxel_to_ras),
        order=1,
    ).get_fdata()
    place = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")).reshape(3, -1)
    x, y, z = (grid.voxel_to_ras @ np.vstack([place, np.ones(place.shape[1])]))[:3]
    near = ((np.abs(x) - 27) ** 2 + (y + 20) ** 2 + (z + 16) ** 2 < 14**2).reshape(grid.shape)
    values = 0.5 + 0.2 * np.random.default_rng(seed).standard_normal(grid.shape)
    # Each one's own folds of grey: without them all would be one picture with noise.
    values += 4 * gaussian_filter(np.random.default_rng(1000 + seed).standard_normal(grid.shape), 1.5)
    values -= 2.0 * near * (label == "AD")
    data = np.where(inside > 0.5, values, 0).astype(np.float32)
    return (
        Volume(data=data, voxel_to_ras=grid.voxel_to_ras),
        BrainMask(data=inside > 0.5, voxel_to_ras=grid.voxel_to_ras),
    )


def files_of(out_dir: Path, number: int) -> ScanFiles:
    return ScanFiles(out_dir=out_dir, entities=BidsEntities(subject=f"{number:02d}"))


def volumes_of(label: str, seed: int) -> BrainVolumes:
    """Make volumes that vary by a tenth; the hippocampi of AD are a fifth smaller."""
    usual = dict(zip(VOLUMES, (1500, 600, 500, 400, 15, 15, 3.2, 3.2), strict=True))
    drawn = np.random.default_rng(seed).normal(1.0, 0.1, len(usual))
    return BrainVolumes(
        volumes_ml={
            name: float(ml * by * (0.8 if "hippocampus" in name and label == "AD" else 1.0))
            for (name, ml), by in zip(usual.items(), drawn, strict=True)
        }
    )


def add_scan(out_dir: Path, number: int, label: str) -> ManifestRow:
    files = files_of(out_dir, number)
    volume, mask = brain(label, number)
    write_volume(files.template_t1w, volume)
    write_mask(files.template_mask, mask)
    write_mask(files.native_mask, oblique_mask())
    write_transform(files.native_to_template, to_template_transform(native_to_template()))
    write_json(files.qc_json, {"qc_status": "pass", "qc_reasons": []})
    write_json(files.state / "volumes_result.json", asdict(volumes_of(label, number)))
    return ManifestRow(
        participant_id=f"sub-{number:02d}",
        session_id="",
        run_id="",
        t1w_path=f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz",
        sha256=f"{number:064x}",
        diagnosis=label,
    )


def report(out_dir: Path, number: int, prediction: Prediction, *, status="pass", review=None) -> None:
    """Leave what ``brainstage run --model`` leaves of a prediction."""
    files = files_of(out_dir, number)
    write_json(files.state / "prediction_result.json", asdict(prediction))
    write_json(files.qc_json, {"qc_status": status, "qc_reasons": []})
    name = f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
    scan = T1wScan(
        entities=files.entities,
        path=Path(name),
        t1w_path=name,
        covariates=Covariates(age=71.0),
        review=review,
    )
    outcome = Completed(
        scan=scan,
        qc=QcReport(measures={}, verdict=QcVerdict(status=QcStatus(status))),
        prediction=prediction,
        preprocessing_id="abc",
        volumes=volumes_of(CLASSES[number % 2], number),
    )
    context = RunContext(
        out_dir=out_dir, config=Config(), model_id=prediction.model_id, command="brainstage run"
    )
    write_report(outcome, context, changed=True)


def predict(model: StoredModel, out_dir: Path, number: int) -> None:
    """Leave a prediction; scan 22 failed quality control."""
    given = read_network_input(files_of(out_dir, number), model.network_grid)
    measures = volumes_of(CLASSES[number % 2], number).measures
    inputs = scan_inputs(model.features(given), given, measures, {"age": "71"})
    prediction = model.predict(inputs, f"{number:064x}")
    report(out_dir, number, prediction, status="fail" if number == 22 else "pass")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, Path]:
    """Train on 12 scans; 20 and 21 are new, 22 failed quality control."""
    folder = tmp_path_factory.mktemp("explain")
    out_dir, model_dir = folder / "out", folder / "model"
    rows = [add_scan(out_dir, number, CLASSES[number % 2]) for number in range(12)]
    rows += [replace(add_scan(out_dir, n, CLASSES[n % 2]), split="test") for n in (20, 21, 22)]
    write_manifest(out_dir / "data_manifest.csv", rows)
    write_json(out_dir / ".brainstage" / "preprocessing.json", {"id": "abc", "content": CONTENT})
    options = TrainOptions(weights="random", folds=3, epochs=40, device="cpu", predictor="linear")
    train(out_dir, model_dir, options, lambda _: None)
    kept = [row for row in rows if int(row.participant_id[4:]) in NUMBERS]
    write_manifest(out_dir / "data_manifest.csv", kept)
    return model_dir, out_dir


def weighted(fitted: tuple[Path, Path], folder: Path, weights: dict[str, float]) -> tuple[Path, Path]:
    """Give the members of the model these weights, and leave its predictions."""
    model = load_model(fitted[0])
    predictor = model.description.predictor
    folds = tuple(fold.model_copy(update={"weights": weights}) for fold in predictor.folds)
    described = {"model_id": "", "predictor": predictor.model_copy(update={"folds": folds})}
    other = StoredModel(
        model.description.model_copy(update=described),
        model.extractor,
        model.models,
        model.novelty,
        model.baselines,
    )
    (folder / "model").mkdir()
    write_model(folder / "model", other)
    out_dir = Path(shutil.copytree(fitted[1], folder / "out"))
    for number in NUMBERS:
        predict(other, out_dir, number)
    return folder / "model", out_dir


@pytest.fixture(scope="module")
def trained(fitted, tmp_path_factory) -> tuple[Path, Path]:
    """Return a model all of whose members count, and a run with it."""
    return weighted(fitted, tmp_path_factory.mktemp("stack"), WEIGHTS)


@pytest.fixture(scope="module")
def linear_alone(fitted, tmp_path_factory) -> tuple[Path, Path]:
    """Return a model whose network and volumes have no weight, and a run with it."""
    return weighted(fitted, tmp_path_factory.mktemp("linear"), {"linear": 1.0})


@pytest.fixture
def run_of(trained, tmp_path) -> tuple[Path, Path]:
    """Copy the run, for a test to alter."""
    return trained[0], Path(shutil.copytree(trained[1], tmp_path / "out"))


@pytest.fixture(scope="module")
def explained(trained, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    out_dir = Path(shutil.copytree(trained[1], tmp_path_factory.mktemp("explained") / "out"))
    said: list[str] = []
    assert explain(trained[0], out_dir, OPTIONS, said.append) == 0
    return trained[0], out_dir, said


def of(said: list[str], number: int) -> str:
    """Return what was said to have become of a scan, without the seconds."""
    line = next(line for line in said if line.startswith(f"sub-{number:02d}: "))
    return line.partition(": ")[2].partition(", ")[0]


def test_maps_regions_and_a_picture_are_written_on_the_grids_of_the_volumes(explained):
    _, out_dir, said = explained
    assert of(said, 20) == EXPLAINED
    files = files_of(out_dir, 20)
    names = {path.name for path in files.anat.iterdir() if "gradcam" in path.name}
    assert names == {
        "sub-20_space-MNI152NLin2009aSym_desc-gradcam_map.nii.gz",
        "sub-20_space-MNI152NLin2009aSym_desc-gradcam_map.json",
        "sub-20_space-T1w_desc-gradcam_map.nii.gz",
        "sub-20_space-T1w_desc-gradcam_map.json",
        "sub-20_desc-gradcam_regions.json",
    }
    assert read_volume(files.evidence_map("gradcam")).grid.matches(read_volume(files.template_t1w).grid)
    assert read_volume(files.evidence_map("gradcam", native=True)).grid.matches(oblique_mask().grid)
    assert files.figure("gradcam").read_bytes().startswith(b"\x89PNG")


def test_a_map_says_of_which_class_model_and_method_it_is(explained):
    model_dir, out_dir, _ = explained
    files = files_of(out_dir, 21)
    model_id = load_model(model_dir).model_id
    for native in (True, False):
        sidecar = json.loads(sidecar_of(files.evidence_map("gradcam", native=native)).read_text())
        assert (sidecar["Method"], sidecar["ModelId"], sidecar["Units"]) == ("gradcam", model_id, "logit/ml")
        assert sidecar["Class"] in CLASSES


def test_nothing_is_coloured_outside_the_brain_and_nothing_is_negative(explained):
    _, out_dir, _ = explained
    files = files_of(out_dir, 20)
    data = read_volume(files.evidence_map("gradcam")).data
    assert data.min() == 0
    assert data[read_volume(files.template_t1w).data == 0].max() == 0


def test_the_report_shows_regions_and_what_a_map_cannot_say(explained):
    _, out_dir, _ = explained
    files = files_of(out_dir, 21)
    page = files.report.read_text()
    strongest = json.loads(files.evidence_regions("gradcam").read_text())["Regions"][0]
    assert 'id="evidence"' in page
    assert strongest["name"] in page
    assert "where the network looked, not where disease is" in page
    assert "filters are random and were never trained" in page
    assert "By itself the network says" in page


def test_a_withheld_prediction_is_not_explained(explained):
    _, out_dir, said = explained
    files = files_of(out_dir, 22)
    assert of(said, 22) == WITHHELD
    assert not any("gradcam" in path.name for path in files.anat.iterdir())
    assert not files.figure("gradcam").exists()
    assert 'id="evidence"' not in files.report.read_text()


def test_a_training_scan_is_explained_by_the_fold_that_did_not_see_it(explained):
    _, out_dir, _ = explained
    assert len(read_marker(files_of(out_dir, 0), "explanation_gradcam").parameters["folds"]) == 1
    assert read_marker(files_of(out_dir, 20), "explanation_gradcam").parameters["folds"] == [0, 1, 2]


def test_a_second_time_nothing_is_computed(explained):
    model_dir, out_dir, _ = explained
    path = files_of(out_dir, 20).evidence_map("gradcam")
    before = path.stat().st_mtime_ns
    said: list[str] = []
    assert explain(model_dir, out_dir, OPTIONS, said.append) == 0
    assert {of(said, n) for n in (0, 20, 21)} == {KEPT}
    assert path.stat().st_mtime_ns == before


def test_what_was_removed_or_altered_is_made_again(explained, tmp_path):
    model_dir, out_dir, _ = explained
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    files_of(out_dir, 20).evidence_map("gradcam", native=True).unlink()
    volume = read_volume(files_of(out_dir, 21).template_t1w)
    write_volume(files_of(out_dir, 21).template_t1w, volume.with_data(volume.data * np.float32(1.01)))
    said: list[str] = []
    explain(model_dir, out_dir, OPTIONS, said.append)
    assert [of(said, n) == EXPLAINED for n in (0, 20, 21)] == [False, True, True]


def test_one_bad_scan_does_not_stop_the_others(run_of):
    model_dir, out_dir = run_of
    files_of(out_dir, 0).template_t1w.write_bytes(b"nothing")
    said: list[str] = []
    assert explain(model_dir, out_dir, OPTIONS, said.append) == 1
    assert "failed" in of(said, 0)
    assert of(said, 20) == EXPLAINED


def test_an_explanation_goes_when_its_prediction_is_withheld(explained, tmp_path):
    _, out_dir, _ = explained
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    files = files_of(out_dir, 20)
    prediction = read_prediction(files)
    report(out_dir, 20, prediction, review=Review(decision=ReviewDecision.FAIL))
    left = [path for path in out_dir.rglob("sub-20*") if "gradcam" in path.name]
    assert left == []
    assert 'id="evidence"' not in files.report.read_text()


def test_an_explanation_goes_when_its_scan_fails(explained, tmp_path):
    _, out_dir, _ = explained
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    files = files_of(out_dir, 21)
    name = "sub-21/anat/sub-21_T1w.nii.gz"
    scan = T1wScan(entities=files.entities, path=Path(name), t1w_path=name)
    failure = Failure(scan=scan, stage="ingest", error="ImageError", message="damaged")
    write_report(failure, RunContext(out_dir=out_dir, config=Config()), changed=True)
    assert not [path for path in out_dir.rglob("sub-21*") if "gradcam" in path.name]


def test_an_explanation_of_another_class_or_model_is_not_shown(explained):
    _, out_dir, _ = explained
    files = files_of(out_dir, 20)
    prediction = read_prediction(files)
    assert [one.method for one in read_evidence(files, prediction)] == ["gradcam"]
    assert read_evidence(files, replace(prediction, model_id="other")) == ()
    swapped = dict(zip(CLASSES, reversed(list(prediction.probabilities.values())), strict=True))
    assert read_evidence(files, replace(prediction, probabilities=swapped)) == ()
    assert read_evidence(files, None) == ()


def test_an_explanation_of_an_earlier_image_is_not_shown(explained, tmp_path):
    _, out_dir, _ = explained
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    files = files_of(out_dir, 20)
    prediction = read_prediction(files)

    def registered() -> None:
        outputs = describe_outputs([files.template_t1w], files)
        marker = Marker(stage="registration", key="", version="", parameters={}, inputs={}, outputs=outputs)
        write_marker(files, marker)

    registered()
    assert len(read_evidence(files, prediction)) == 1
    volume = read_volume(files.template_t1w)
    write_volume(files.template_t1w, volume.with_data(volume.data * np.float32(1.01)))
    registered()
    assert read_evidence(files, prediction) == ()


def test_another_atlas_is_another_explanation(run_of, tmp_path):
    model_dir, out_dir = run_of
    volume, mask = brain("CN", 0)
    nib.save(nib.Nifti1Image(mask.data.astype(np.int16), volume.voxel_to_ras), tmp_path / "whole.nii.gz")
    (tmp_path / "whole.tsv").write_text("index\tname\n1\tthe whole brain\n")
    one = replace(OPTIONS, participants=("21",))
    explain(model_dir, out_dir, one, lambda _: None)
    explain(model_dir, out_dir, replace(one, atlas=tmp_path / "whole.nii.gz"), lambda _: None)
    table = json.loads(files_of(out_dir, 21).evidence_regions("gradcam").read_text())
    assert table["Atlas"] == "whole"
    assert [(region["name"], round(region["share"], 3)) for region in table["Regions"]] == [
        ("the whole brain", 1.0)
    ]


def test_occlusion_from_the_command_line_stands_beside_grad_cam(explained, tmp_path, capsys):
    model_dir, out_dir, _ = explained
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    words = [
        "explain",
        str(model_dir),
        str(out_dir),
        "--method",
        "occlusion",
        "--participant_label",
        "sub-21",
    ]
    assert main([*words, "--device", "cpu"]) == 0
    assert "1 explained" in capsys.readouterr().out
    page = files_of(out_dir, 21).report.read_text()
    assert "Network, Grad-CAM: what speaks for" in page
    assert "Network, Occlusion: what speaks for" in page
    table = json.loads(files_of(out_dir, 21).evidence_regions("occlusion").read_text())
    assert table["Units"] == "logit"


@pytest.fixture(scope="module")
def by_member(trained, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """Explain every member that has a weight."""
    out_dir = Path(shutil.copytree(trained[1], tmp_path_factory.mktemp("by_member") / "out"))
    said: list[str] = []
    assert explain(trained[0], out_dir, AUTO, said.append) == 0
    return trained[0], out_dir, said


def test_auto_explains_each_member_that_has_a_weight(by_member):
    _, out_dir, said = by_member
    for number in (0, 20, 21):
        files = files_of(out_dir, number)
        assert files.evidence_regions("gradcam").is_file()
        assert files.evidence_regions("linearVolume").is_file()
        assert files.volume_evidence.is_file()
        assert any(
            line.startswith(f"{files.key}: explained, by linear and volumes and gradcam") for line in said
        )
        assert read_prediction(files).member_weights == pytest.approx(WEIGHTS)
        evidence = read_evidence(files, read_prediction(files))
        assert [one.method for one in evidence] == ["linearBrightness", "linearVolume", "gradcam"]
        assert [one.weight for one in evidence] == pytest.approx([0.5, 0.5, 0.1])


def test_maps_of_the_linear_member_are_signed_lie_in_the_brain_and_say_what_they_are(by_member):
    model_dir, out_dir, _ = by_member
    files = files_of(out_dir, 21)
    label = read_prediction(files).predicted_label
    for name in ("linearBrightness", "linearVolume"):
        table = json.loads(files.evidence_regions(name).read_text())
        for native in (True, False):
            path = files.evidence_map(name, native=native)
            sidecar = json.loads(sidecar_of(path).read_text())
            assert (sidecar["Method"], sidecar["Member"], sidecar["Class"]) == ("linear", "linear", label)
            assert sidecar["Units"] == "log-odds/ml"
            assert f"published probability of {label}" in sidecar["UnitsDescription"]
            assert 0 < sidecar["MemberWeight"] <= 1
            assert sidecar["Sum"] == table["Sum"]
        data = read_volume(files.evidence_map(name)).data
        assert data.max() > 0 > data.min()
        assert not data[read_volume(files.template_t1w).data == 0].any()
        volume_ml = read_volume(files.evidence_map(name)).grid.voxel_volume_mm3 / 1000
        regions = table["Regions"]
        assert sum(one["speaks_for"] for one in regions) == pytest.approx(
            np.maximum(data, 0).sum() * volume_ml, rel=0.05
        )
        assert all(one["speaks_for"] >= 0 >= one["speaks_against"] for one in regions)
        assert files.figure(name).read_bytes().startswith(b"\x89PNG")
    assert load_model(model_dir).model_id == table["ModelId"]


def test_what_makes_the_classes_differ_is_where_the_linear_member_looks(by_member):
    """AD is darker around the hippocampi."""
    _, out_dir, _ = by_member
    table = json.loads(files_of(out_dir, 21).evidence_regions("linearBrightness").read_text())
    strongest = max(table["Regions"], key=lambda one: one["speaks_for"] + one["speaks_against"])
    assert "medial temporal" in strongest["name"]


@pytest.mark.parametrize("resolution_mm", [1.0, 2.0])
def test_maps_add_up_to_what_the_linear_member_adds(trained, resolution_mm):
    model_dir, out_dir = trained
    model = load_model(model_dir)
    given = read_network_input(files_of(out_dir, 20), model.network_grid)
    maps = linear_maps(model, given, "AD", (0, 1, 2), None)
    values = linear_contributions(model, baseline_values(given)[0], None, "AD", (0, 1, 2))
    assert sum(one.total for one in maps) == pytest.approx(values.sum(), abs=1e-9)
    grid = load_template(resolution_mm).grid
    for one in maps:
        volume = carried(one.parts, grid, to_template_transform(np.eye(4)), one.name)
        total = volume.data.sum(dtype=np.float64) * grid.voxel_volume_mm3 / 1000
        assert total == pytest.approx(one.total, abs=1e-4 * np.abs(values).sum())


def test_a_change_in_one_block_changes_the_map_there_only(trained):
    model_dir, out_dir = trained
    model = load_model(model_dir)
    given = read_network_input(files_of(out_dir, 20), model.network_grid)
    before = linear_maps(model, given, "AD", (0, 1, 2), None)
    at = np.argwhere(before[0].parts[0].data)[0]
    place = tuple(slice(2 * int(n), 2 * int(n) + 2) for n in at)
    image = np.array(given.image)
    image[0][place] += np.where(given.brain_mask[place], np.float32(1.0), np.float32(0.0))
    assert given.brain_mask[place].any()
    after = linear_maps(model, replace(given, image=image), "AD", (0, 1, 2), None)
    assert np.array_equal(after[1].parts[0].data, before[1].parts[0].data)
    assert np.argwhere(after[0].parts[0].data != before[0].parts[0].data).tolist() == [at.tolist()]
    grid = load_template(1.0).grid
    shown = [
        carried(one[0].parts, grid, to_template_transform(np.eye(4)), one[0].name) for one in (before, after)
    ]
    changed = np.argwhere(shown[0].data != shown[1].data)
    places = changed @ grid.voxel_to_ras[:3, :3].T + grid.voxel_to_ras[:3, 3]
    centre = (before[0].parts[0].voxel_to_ras @ [*at, 1])[:3]
    assert len(changed) == 8**3
    assert np.abs(places - centre).max() <= 4.0


def test_what_each_volume_adds_stands_in_a_file_and_in_the_report(by_member):
    _, out_dir, _ = by_member
    files = files_of(out_dir, 21)
    found = json.loads(files.volume_evidence.read_text())
    prediction = read_prediction(files)
    assert found["Contributions"] == pytest.approx(prediction.volume_contributions)
    assert found["Sum"] == pytest.approx(sum(found["Contributions"].values()))
    assert (found["Class"], found["Member"]) == (prediction.predicted_label, "volumes")
    assert "Volumes: what each adds to" in files.report.read_text()


def test_a_report_shows_what_volumes_add_before_anything_is_explained(trained):
    page = files_of(trained[1], 21).report.read_text()
    assert "Volumes: what each adds to" in page
    assert "The published probabilities weigh" in page
    assert "Linear member" not in page


def test_a_member_without_weight_is_explained_by_name_only_and_this_is_said(linear_alone, tmp_path):
    model_dir, out_dir = linear_alone[0], Path(shutil.copytree(linear_alone[1], tmp_path / "out"))
    files = files_of(out_dir, 21)
    one = replace(AUTO, participants=("21",))
    assert explain(model_dir, out_dir, one, lambda _: None) == 0
    assert files.evidence_map("linearVolume").is_file()
    assert not files.evidence_map("gradcam").exists()
    assert not files.volume_evidence.exists()
    page = files.report.read_text()
    assert "those of linear alone; volumes and network have no part in them" in page
    assert "The network has no part" not in page
    assert explain(model_dir, out_dir, replace(one, method="gradcam"), lambda _: None) == 0
    sidecar = json.loads(sidecar_of(files.evidence_map("gradcam")).read_text())
    assert sidecar["MemberWeight"] == 0
    assert "no part in the published probabilities" in sidecar["Description"]
    assert "The network has no part in the published probabilities of this scan" in files.report.read_text()


def test_every_explanation_of_a_withheld_prediction_goes(by_member, tmp_path):
    _, out_dir, said = by_member
    assert of(said, 22) == WITHHELD
    out_dir = Path(shutil.copytree(out_dir, tmp_path / "out"))
    files = files_of(out_dir, 20)
    assert files.evidence_map("linearVolume").is_file()
    report(out_dir, 20, read_prediction(files), review=Review(decision=ReviewDecision.FAIL))
    names = [path.name for path in out_dir.rglob("sub-20*")]
    assert not [name for name in names if "linear" in name or "gradcam" in name or "evidence" in name]
    assert "what each adds to" not in files.report.read_text()


def test_linear_maps_are_kept_and_show_no_face(by_member):
    model_dir, out_dir, _ = by_member
    said: list[str] = []
    assert explain(model_dir, out_dir, LINEAR, said.append) == 0
    assert {of(said, number) for number in (0, 20, 21)} == {KEPT}
    files = files_of(out_dir, 20)
    native, mask = read_volume(files.evidence_map("linearVolume", native=True)), read_mask(files.native_mask)
    assert not native.data[~mask.data].any()


def test_a_run_without_predictions_of_the_model_is_said(run_of):
    model_dir, out_dir = run_of
    for number in (0, 20, 21, 22):
        (files_of(out_dir, number).state / "prediction_result.json").unlink()
    with pytest.raises(InputMissingError, match="brainstage run --model"):
        explain(model_dir, out_dir, OPTIONS, lambda _: None)


def test_a_scan_without_prediction_is_passed_over(run_of):
    model_dir, out_dir = run_of
    (files_of(out_dir, 0).state / "prediction_result.json").unlink()
    said: list[str] = []
    assert explain(model_dir, out_dir, OPTIONS, said.append) == 0
    assert of(said, 0) == NO_PREDICTION


def test_what_concerns_all_scans_is_refused_at_once(run_of, tmp_path):
    model_dir, out_dir = run_of
    with pytest.raises(NothingSelectedError, match="sub-77"):
        explain(model_dir, out_dir, replace(OPTIONS, participants=("77",)), lambda _: None)
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ImageError):
        explain(model_dir, out_dir, replace(OPTIONS, atlas=tmp_path / "bad.nii.gz"), lambda _: None)
    write_json(out_dir / ".brainstage" / "preprocessing.json", {"id": "other", "content": CONTENT})
    with pytest.raises(ModelError, match="preprocessed otherwise"):
        explain(model_dir, out_dir, OPTIONS, lambda _: None)


@pytest.mark.parametrize("strides", STRIDES)
def test_a_blob_is_found_in_template_and_in_oblique_native_space(strides, tmp_path):
    network = build_med3d("resnet10", strides)
    initialise_randomly(network, 0)
    source = WeightsSource(kind="random", architecture="resnet10", sha256="0", words="", strides=strides)
    extractor = FeatureExtractor(network, source)
    plain, mask = brain("CN", 5)
    truth = np.array([-34.0, -30.0, 14.0])
    index = (np.linalg.inv(plain.voxel_to_ras) @ [*truth, 1])[:3]
    place = np.stack(np.meshgrid(*(np.arange(n) for n in plain.shape), indexing="ij"))
    apart = ((place - index[:, None, None, None]) ** 2).sum(axis=0)
    lit = plain.with_data(np.where(mask.data, plain.data + 8 * np.exp(-apart / 4), 0).astype(np.float32))
    grid = NetworkGridConfig.model_validate(GRID)
    given = network_input(lit, mask, grid)
    weight = extractor.features(given) - extractor.features(network_input(plain, mask, grid))
    head = LinearHead(
        mean=0 * weight,
        scale=0 * weight + 1,
        weight=np.stack([-weight, weight]),
        bias=np.zeros(2, np.float32),
    )
    model = SimpleNamespace(
        classes=CLASSES,
        networks=[network],
        heads=[head],
        extractor=extractor,
        description=SimpleNamespace(backbone=SimpleNamespace(strides=strides)),
        stretch_and_shift=lambda *_: None,
    )
    parts = explanation_of(model, given, "AD", [0], "gradcam")
    coarsest_mm = min(part.spacing_mm[0] for part in parts)

    def peak(volume: Volume) -> np.ndarray:
        where = np.unravel_index(int(volume.data.argmax()), volume.shape)
        return (volume.voxel_to_ras @ np.append(where, 1.0))[:3]

    upright = carried(parts, plain.grid, to_template_transform(np.eye(4)), "gradcam")
    assert np.abs(peak(upright) - truth).max() <= coarsest_mm
    files = files_of(tmp_path, 1)
    write_transform(files.native_to_template, to_template_transform(native_to_template()))
    native = carried(parts, oblique_mask().grid, native_transform(files), "gradcam")
    back = (native_to_template() @ np.append(peak(native), 1.0))[:3]
    assert np.abs(back - truth).max() <= coarsest_mm
    assert np.abs(back - peak(upright)).max() <= 5.0 + 4.0  # a voxel of each grid


def test_the_inverse_of_a_deformation_is_taken_where_there_is_one(tmp_path):
    files = files_of(tmp_path, 1)
    write_transform(files.native_to_template, to_template_transform(native_to_template()))
    point = (10.0, -20.0, 30.0)
    affine = native_transform(files).TransformPoint(point)
    # RAS to LPS and back, as everywhere in ITK
    expected = (native_to_template() @ (-10.0, 20.0, 30.0, 1.0))[:3] * (-1, -1, 1)
    assert affine == pytest.approx(tuple(expected))
    nothing = DisplacementField(
        data=np.zeros((4, 4, 4, 3), np.float32), voxel_to_ras=np.diag([60.0, 60, 60, 1])
    )
    moved = DisplacementField(
        data=np.full((4, 4, 4, 3), 3.0, np.float32),
        voxel_to_ras=np.array([[60, 0, 0, -90], [0, 60, 0, -90], [0, 0, 60, -90], [0, 0, 0, 1.0]]),
    )
    write_transform(
        files.template_to_native,
        to_native_transform(native_to_template(), Deformation(forward=nothing, inverse=moved)),
    )
    deformed = native_transform(files).TransformPoint(point)
    assert np.abs(np.subtract(deformed, affine)) == pytest.approx([3.0] * 3)
