"""From a finished run to a model directory, on small volumes with a planted signal."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from brainstage.models.metrics import Estimate
from brainstage.models.model_store import load_model
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import (
    InputMissingError,
    ManifestError,
    ModelError,
    OutputError,
    UsageError,
    WeightsMissingError,
)
from brainstage.pipeline.manifest import ManifestRow, read_manifest, write_manifest
from brainstage.pipeline.nifti import write_mask, write_volume
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.learning.features import (
    cached_features,
    keep_features,
    network_input_key,
    read_network_input,
)
from brainstage.workflows.learning.model_card import best_sentence
from brainstage.workflows.train import TrainOptions, train

GRID = {"spacing_mm": 4.0, "shape": [40, 48, 40], "background": "zero"}
CLASSES = ("CN", "MCI", "AD")
OPTIONS = TrainOptions(weights="random", folds=3, epochs=60)


def brain(label: str, generator: np.random.Generator) -> tuple[Volume, BrainMask]:
    """Make an ellipsoid on a 4 mm grid of the template's extent; its dark middle grows from CN to AD."""
    shape = (50, 59, 48)
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = (-98, -134, -72)
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    radius = np.sqrt(((i - 24) / 17) ** 2 + ((j - 29) / 21) ** 2 + ((k - 20) / 17) ** 2)
    inside = radius < 1
    values = np.where(radius < 0.25 + 0.1 * CLASSES.index(label), -1.5, 0.5)
    values = values + 0.3 * generator.standard_normal(shape)
    data = np.where(inside, values, 0).astype(np.float32)
    return Volume(data=data, voxel_to_ras=matrix), BrainMask(data=inside, voxel_to_ras=matrix)


def add_scan(out_dir: Path, subject: str, label: str, generator, *, session=None, status="pass"):
    entities = BidsEntities(subject=subject, session=session)
    files = ScanFiles(out_dir=out_dir, entities=entities, resolution="1")
    volume, mask = brain(label, generator)
    write_volume(files.template_t1w, volume)
    write_mask(files.template_mask, mask)
    files.qc_json.write_text(json.dumps({"qc_status": status}))
    folder = f"sub-{subject}/ses-{session}" if session else f"sub-{subject}"
    return ManifestRow(
        participant_id=f"sub-{subject}",
        session_id=f"ses-{session}" if session else "",
        run_id="",
        t1w_path=f"{folder}/anat/{entities.key}_T1w.nii.gz",
        sex="FM"[len(subject) % 2],
        diagnosis=label,
        extra={"group": "patient" if label == "AD" else "control"},
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """18 participants in three classes, one of them twice, and one scan that failed quality control."""
    out_dir = tmp_path_factory.mktemp("run") / "out"
    generator = np.random.default_rng(0)
    rows = []
    for number in range(18):
        label = CLASSES[number % 3]
        rows.append(add_scan(out_dir, f"{number:02d}", label, generator, session="M00"))
    rows.append(add_scan(out_dir, "00", "CN", generator, session="M12"))
    rows.append(add_scan(out_dir, "90", "AD", generator, status="fail"))
    rows.append(
        ManifestRow(participant_id="sub-91", session_id="", run_id="", t1w_path="sub-91/anat/sub-91_T1w.nii")
    )
    write_manifest(out_dir / "data_manifest.csv", rows)
    content = {
        "network_grid": GRID,
        "registration": {"resolution_mm": 1.0},
        "intensity": {"method": "zscore"},
    }
    (out_dir / ".brainstage" / "preprocessing.json").parent.mkdir(exist_ok=True)
    (out_dir / ".brainstage" / "preprocessing.json").write_text(json.dumps({"id": "abc", "content": content}))
    return out_dir


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("models") / "model"
    said: list[str] = []
    return train(finished_run, model_dir, OPTIONS, said.append), said


@pytest.fixture
def own_run(finished_run, tmp_path):
    """Copy the run, for a test to alter."""
    return Path(shutil.copytree(finished_run, tmp_path / "out"))


def files_of(out_dir: Path, subject: str, session: str = "M00") -> ScanFiles:
    return ScanFiles(out_dir=out_dir, entities=BidsEntities(subject=subject, session=session))


def test_model_directory_holds_exactly_what_it_should(trained):
    result, _ = trained
    found = {p.relative_to(result.model_dir).as_posix() for p in result.model_dir.rglob("*") if p.is_file()}
    assert found == {
        "model.json",
        "MODEL_CARD.md",
        "backbone.safetensors",
        "baseline.safetensors",
        *(f"fold-{fold}.safetensors" for fold in range(3)),
        *(f"evaluation/{name}.png" for name in ("confusion_matrix", "roc", "calibration")),
        "evaluation/metrics.json",
        "evaluation/oof_predictions.csv",
        "splits.csv",
        "training_log.csv",
        "bundle/configs/metadata.json",
        "bundle/configs/inference.json",
        "bundle/models/model.safetensors",
    }
    assert [p.name for p in result.model_dir.parent.iterdir()] == ["model"]


def test_planted_signal_is_found_and_controls_are_at_chance(trained):
    result, _ = trained
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert result.balanced_accuracy.value > 0.6
    assert metrics["control_random_labels"]["measures"]["balanced_accuracy"]["value"] < 0.6
    # all masks are the same ellipsoid
    assert metrics["control_mask_only"]["measures"]["balanced_accuracy"]["value"] == pytest.approx(
        1 / 3, abs=0.1
    )


def test_card_states_the_result_the_weights_and_the_limits(trained):
    result, _ = trained
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert f"Balanced accuracy {result.balanced_accuracy}" in card
    assert "not pretrained" in card
    assert "not a diagnosis" in card
    assert "failed quality control: 1 scan(s) (sub-90)" in card
    assert "no label: 1 scan(s) (sub-91)" in card
    assert "| CN | 6 | 7 |" in card
    assert "| measure | network | linear baseline on voxels | both together |" in card
    assert "The highest balanced accuracy is that of" in card
    assert "The highest AUC is that of" in card
    assert "always in the set" in card  # seven scans are too few for 90 %
    assert "{{" not in card


def test_both_together_are_measured_out_of_fold_and_change_no_prediction(trained):
    metrics = json.loads((trained[0].model_dir / "evaluation" / "metrics.json").read_text())
    together = metrics["combined"]["measures"]
    assert together.keys() == metrics["cross_validation"]["measures"].keys()
    weakest = min(metrics[name]["measures"]["auc"]["value"] for name in ("cross_validation", "baseline"))
    assert together["auc"]["value"] >= weakest
    table = (trained[0].model_dir / "evaluation" / "oof_predictions.csv").read_text().splitlines()
    assert "p_AD" in table[0]
    assert "combined" not in table[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {"a": (0.9, 0.8, 1.0), "b": (0.85, 0.7, 0.9), "c": (0.6, 0.5, 0.7)},
            "that of a, 0.90; its interval overlaps that of b: not told apart by this cohort.",
            id="overlap with one",
        ),
        pytest.param(
            {"a": (0.6, 0.5, 0.7), "b": (0.9, 0.8, 1.0), "c": (0.6, 0.5, 0.7)},
            "that of b, 0.90; its interval lies apart from that of a and that of c.",
            id="apart",
        ),
        pytest.param(
            {"a": (0.8, 0.7, 0.9), "b": (0.8, 0.7, 0.9)},
            "that of a, 0.80, shared with that of b; its interval overlaps that of b",
            id="tie",
        ),
    ],
)
def test_the_best_of_three_is_named_with_what_cannot_be_told_apart(values, expected):
    estimates = {name: Estimate(value=v, low=low, high=high) for name, (v, low, high) in values.items()}
    assert expected in best_sentence(estimates, "AUC")


def test_every_step_is_said(trained):
    _, said = trained
    text = "\n".join(said)
    assert "19 scans of 18 participants: 7 CN, 6 MCI, 6 AD" in text
    assert "left out, failed quality control: 1 (sub-90)" in text
    assert "cross-validated balanced accuracy" in text


def test_no_participant_is_on_two_sides(trained):
    result, _ = trained
    with (result.model_dir / "splits.csv").open() as stream:
        folds = {(row["participant_id"], row["fold"]) for row in csv.DictReader(stream)}
    assert len(folds) == 18


def test_loaded_model_predicts_what_the_bundle_predicts(trained, finished_run):
    from monai.bundle import ConfigParser

    result, _ = trained
    model = load_model(result.model_dir)
    given = read_network_input(files_of(finished_run, "05"), model.network_grid)
    prediction = model.predict(model.features(given), given)
    assert prediction.model_id == result.model_id
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert tuple(prediction.probabilities) == CLASSES
    bundle = result.model_dir / "bundle"
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle)
    parser.get_parsed_content("initialize")
    network = parser.get_parsed_content("network")
    with torch.no_grad():
        probabilities = network(torch.from_numpy(np.array(given.image))[None])[0].numpy()
    assert np.allclose(probabilities, list(prediction.probabilities.values()), atol=1e-5)


def test_saved_and_loaded_predict_the_same_bit_for_bit(trained, finished_run):
    result, _ = trained
    first, second = load_model(result.model_dir), load_model(result.model_dir)
    given = read_network_input(files_of(finished_run, "07"), first.network_grid)
    assert first.predict(first.features(given), given) == second.predict(second.features(given), given)


def test_same_input_and_seed_give_the_same_model(trained, finished_run, tmp_path):
    result, _ = trained
    again = train(finished_run, tmp_path / "again", OPTIONS, lambda _: None)
    other = train(
        finished_run,
        tmp_path / "again",
        TrainOptions(weights="random", folds=3, epochs=60, seed=1),
        lambda _: None,
    )
    assert again.model_id == result.model_id
    assert other.model_id != result.model_id


def test_altered_weights_are_refused(trained, tmp_path):
    result, _ = trained
    copy = Path(shutil.copytree(result.model_dir, tmp_path / "copy"))
    path = copy / "fold-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelError, match=r"fold-1\.safetensors was altered"):
        load_model(copy)


def test_altered_description_is_refused(trained, tmp_path):
    result, _ = trained
    copy = Path(shutil.copytree(result.model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**content, "temperature": 9.0}))
    with pytest.raises(ModelError, match="altered after training"):
        load_model(copy)
    (copy / "model.json").write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(ModelError, match="surprise"):
        load_model(copy)
    (copy / "model.json").write_text("{")
    with pytest.raises(ModelError, match="not usable"):
        load_model(copy)


def test_what_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(InputMissingError, match="no model directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"model\.json cannot be read"):
        load_model(tmp_path)


def test_other_preprocessing_is_refused_with_the_difference(trained):
    model = load_model(trained[0].model_dir)
    content = model.preprocessing_content
    model.require_preprocessing(model.preprocessing_id, content)
    other = {**content, "intensity": {"method": "whitestripe"}}
    with pytest.raises(
        ModelError, match=r'intensity\.method is "whitestripe" here and "zscore" in the model'
    ):
        model.require_preprocessing("def", other)


def test_features_are_computed_once_and_a_changed_image_invalidates_them(trained, own_run):
    model = load_model(trained[0].model_dir)
    files = files_of(own_run, "03")
    stored_at = files.state / f"features-{model.feature_id}.safetensors"

    def features() -> tuple[np.ndarray, bytes]:
        given = read_network_input(files, model.network_grid)
        found = cached_features(model.extractor, files, given, network_input_key(files, model.network_grid))
        return found, stored_at.read_bytes()

    before, stored = features()
    stamp = stored_at.stat().st_mtime_ns
    assert np.array_equal(before, features()[0])
    assert stored_at.stat().st_mtime_ns == stamp
    volume, _ = brain("AD", np.random.default_rng(9))
    write_volume(files.template_t1w, volume)
    after, stored_after = features()
    assert not np.array_equal(before, after)
    assert stored != stored_after
    stored_at.write_bytes(stored[:50])
    assert np.array_equal(after, features()[0])


def test_features_of_a_batch_are_those_of_each_scan_and_are_found_again(trained, own_run):
    model = load_model(trained[0].model_dir)
    scans = [files_of(own_run, subject) for subject in ("03", "04", "05")]
    for files in scans:
        (files.state / f"features-{model.feature_id}.safetensors").unlink(missing_ok=True)
    keep_features(model.extractor, scans, model.network_grid)
    for files in scans:
        given = read_network_input(files, model.network_grid)
        stored_at = files.state / f"features-{model.feature_id}.safetensors"
        stamp = stored_at.stat().st_mtime_ns
        found = cached_features(model.extractor, files, given, network_input_key(files, model.network_grid))
        assert stored_at.stat().st_mtime_ns == stamp, "nothing was computed again"
        assert np.allclose(found, model.features(given), rtol=1e-4, atol=1e-5)


def test_any_column_and_any_classes(finished_run, tmp_path):
    options = TrainOptions(
        weights="random", folds=3, epochs=20, label_column="group", classes=("patient", "control")
    )
    train(finished_run, tmp_path / "model", options, lambda _: None)
    assert load_model(tmp_path / "model").classes == ("patient", "control")


def test_test_split_is_never_learnt_from(own_run, tmp_path):
    rows = read_manifest(own_run / "data_manifest.csv")
    marked = [
        ManifestRow(
            **{**vars(row), "split": "test" if row.participant_id in {"sub-15", "sub-16", "sub-17"} else ""}
        )
        for row in rows
    ]
    write_manifest(own_run / "data_manifest.csv", marked)
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert metrics["test_split"]["scans"] == {"CN": 1, "MCI": 1, "AD": 1}
    assert sum(metrics["cross_validation"]["scans"].values()) == 16
    both = [ManifestRow(**{**vars(r), "split": "test" if r.session_id == "ses-M12" else ""}) for r in rows]
    write_manifest(own_run / "data_manifest.csv", both)
    with pytest.raises(ManifestError, match="first sub-00"):
        train(own_run, tmp_path / "model", OPTIONS, lambda _: None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"label_column": "diagnosys"}, UsageError, "Did you mean 'diagnosis'", id="column"),
        pytest.param({"label_column": "site"}, UsageError, "empty for every scan", id="empty column"),
        pytest.param({"classes": ("CN", "Ad")}, UsageError, "Did you mean 'AD'", id="class"),
        pytest.param({"classes": ("CN",)}, UsageError, "two or more", id="one class"),
        pytest.param({"folds": 7}, UsageError, "use --folds 6", id="folds"),
        pytest.param({"weights": "nowhere.pth"}, WeightsMissingError, "nowhere.pth", id="weights"),
    ],
)
def test_bad_options_are_one_sentence(finished_run, tmp_path, options, error, message):
    given = TrainOptions(**{"weights": "random", **options})
    with pytest.raises(error, match=message):
        train(finished_run, tmp_path / "model", given, lambda _: None)
    assert not any(tmp_path.iterdir())


def test_no_finished_run_says_what_to_do_first(tmp_path):
    with pytest.raises(InputMissingError, match="no directory"):
        train(tmp_path / "nowhere", tmp_path / "model", OPTIONS, lambda _: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissingError, match="brainstage run"):
        train(tmp_path / "empty", tmp_path / "model", OPTIONS, lambda _: None)


def test_other_peoples_directory_is_never_replaced(finished_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not empty and not a model directory"):
        train(finished_run, tmp_path, OPTIONS, lambda _: None)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
