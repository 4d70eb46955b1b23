"""From a finished run to a model directory, on small volumes with a planted signal."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from monai.bundle import ConfigParser, verify_net_in_out
from safetensors.numpy import load, save
from scipy.ndimage import gaussian_filter

from brainstage.models.features import FeatureExtractor
from brainstage.models.metrics import Estimate
from brainstage.models.model_description import read_description
from brainstage.models.model_store import ScanInputs, StoredModel, load_model, scan_inputs
from brainstage.models.weights import WeightsSource, load_weights
from brainstage.pipeline.config import PredictionConfig
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
from brainstage.pipeline.files import write_json
from brainstage.pipeline.manifest import ManifestRow, read_manifest, write_manifest
from brainstage.pipeline.nifti import read_mask, read_volume, write_mask, write_volume
from brainstage.pipeline.records import BrainVolumes, NetworkInput
from brainstage.pipeline.review import read_decisions
from brainstage.pipeline.stage import content_key
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.learning.features import (
    cached_features,
    keep_features,
    network_input_key,
    read_network_input,
)
from brainstage.workflows.learning.labelled_cohort import read_cohort, reference_people
from brainstage.workflows.learning.model_card import best_sentence, weights_warning
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.prediction import prediction_stage, reference_findings
from brainstage.workflows.train import train

GRID = {"spacing_mm": 4.0, "shape": [40, 48, 40], "background": "zero"}
CLASSES = ("CN", "MCI", "AD")
OPTIONS = TrainOptions(weights="random", folds=3, epochs=60)


def brain(label: str, generator: np.random.Generator) -> tuple[Volume, BrainMask]:
    """Make an ellipsoid on a 4 mm grid of the template's extent; its dark middle grows from CN to AD.

    The folds of its grey are each one's own: without them all would be one picture with noise.
    """
    shape = (50, 59, 48)
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = (-98, -134, -72)
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    radius = np.sqrt(((i - 24) / 17) ** 2 + ((j - 29) / 21) ** 2 + ((k - 20) / 17) ** 2)
    inside = radius < 1
    values = np.where(radius < 0.25 + 0.1 * CLASSES.index(label), -1.5, 0.5)
    values = values + 0.3 * generator.standard_normal(shape)
    values = values + 4 * gaussian_filter(generator.standard_normal(shape), 1.5)
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


def inputs(model: StoredModel, image: NetworkInput, measures=None, covariates=None) -> ScanInputs:
    """Return what the members are given of a scan."""
    return scan_inputs(model.features(image), image, measures or {}, covariates or {})


def test_model_directory_holds_exactly_what_it_should(trained):
    result, _ = trained
    found = {p.relative_to(result.model_dir).as_posix() for p in result.model_dir.rglob("*") if p.is_file()}
    assert found == {
        "model.json",
        "MODEL_CARD.md",
        "backbone.safetensors",
        "linear.safetensors",
        *(f"fold-{fold}.safetensors" for fold in range(3)),
        *(
            f"evaluation/{name}.png"
            for name in ("confusion_matrix", "roc", "precision_recall", "calibration", "risk_coverage")
        ),
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
    random = metrics["control_random_labels"]
    assert set(random) == {"predictor", "network", "linear"}
    for drawn in random.values():
        assert drawn["measures"]["balanced_accuracy"]["value"] < 0.6
        assert sum(drawn["scans"].values()) == 5 * 19
    # all masks are the same ellipsoid
    assert metrics["control_mask_only"]["measures"]["balanced_accuracy"]["value"] == pytest.approx(
        1 / 3, abs=0.1
    )


def test_the_origin_of_the_weights_is_recorded_and_a_model_from_before_is_read(trained, tmp_path):
    result, _ = trained
    content = json.loads((result.model_dir / "model.json").read_text())
    assert content["schema_version"] == 2
    assert content["backbone"].pop("origin") == "random"
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert read_description(tmp_path).backbone.origin == "unknown"


@pytest.mark.parametrize(
    ("kind", "origin", "warning"),
    [
        ("random", "random", "**The weights are random: not pretrained.**"),
        ("path", "unknown", "**The origin of the weights is not verified.**"),
        ("med3d-resnet10", "unknown", "**The origin of the weights is not verified.**"),
        ("med3d-resnet10", "vouched", ""),
        ("med3d-resnet10", "published", ""),
    ],
)
def test_card_warns_of_weights_that_only_a_name_speaks_for(kind, origin, warning):
    source = WeightsSource(kind=kind, architecture="resnet10", sha256="0", words="", origin=origin)
    said = weights_warning(source, "frozen")
    assert said.startswith(warning)
    assert bool(said) == bool(warning)


def test_card_states_the_result_the_weights_and_the_limits(trained):
    result, _ = trained
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert f"Balanced accuracy {result.balanced_accuracy}" in card
    assert "> **The weights are random: not pretrained.**" in card
    assert "> **Use, for research" in card
    assert "Weights of the members, mean of the folds: " in card
    assert "not a diagnosis" in card
    assert "failed quality control: 1 scan(s) (sub-90)" in card
    assert "no label: 1 scan(s) (sub-91)" in card
    assert "| CN | 6 | 7 |" in card
    assert re.search(r"\| measure \| predictor \|.* linear alone \|", card)
    assert "network alone |" in card
    assert "The highest balanced accuracy is that of" in card
    assert "The highest AUC is that of" in card
    assert "| random labels, predictor |" in card
    assert "| random labels, linear |" in card
    # too few for 90 %, and one person of CN has two scans
    assert "at 80 % for CN (7 scans), 80 % for MCI (6 scans), 80 % for AD (6 scans)." in card
    assert "{{" not in card


def test_members_and_predictor_are_measured_out_of_fold_in_the_same_folds(trained):
    metrics = json.loads((trained[0].model_dir / "evaluation" / "metrics.json").read_text())
    assert set(metrics["members"]) == {"network", "linear"}
    published = metrics["cross_validation"]
    for member in metrics["members"].values():
        assert member["scans"] == published["scans"]
        assert member["measures"].keys() == published["measures"].keys()
    best = max(one["measures"]["auc"]["value"] for one in metrics["members"].values())
    assert published["measures"]["auc"]["value"] > best - 0.1


def test_what_is_predicted_of_a_training_scan_is_what_stands_out_of_fold(trained, finished_run):
    """Sets, statuses and member labels included: what the card measures is what a run writes."""
    model = load_model(trained[0].model_dir)
    for row in oof_rows(trained[0].model_dir)[:6]:
        image = read_network_input(
            files_of(finished_run, row["participant_id"][4:], row["session_id"][4:]), model.network_grid
        )
        fold = int(row["fold"])
        published = model.description.predictor.folds[fold].log_probabilities(
            model.member_logits(inputs(model, image), fold)
        )
        assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(np.exp(published[0]), abs=1e-5)


def oof_rows(model_dir: Path) -> list[dict[str, str]]:
    with (model_dir / "evaluation" / "oof_predictions.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_sets_statuses_tiers_and_risk_are_those_of_the_table(trained):
    model_dir = trained[0].model_dir
    metrics = json.loads((model_dir / "evaluation" / "metrics.json").read_text())
    table = oof_rows(model_dir)
    right = np.array([row["predicted_label"] == row["label"] for row in table])
    sets = [row["prediction_set"].split(";") if row["prediction_set"] else [] for row in table]
    found = metrics["conformal"]
    for name in CLASSES:
        covered = [name in one for one, row in zip(sets, table, strict=True) if row["label"] == name]
        assert found["coverage"][name] == pytest.approx(np.mean(covered), abs=1e-6)
    assert found["mean_set_size"] == pytest.approx(np.mean([len(one) for one in sets]), abs=1e-6)
    assert found["one_class_sets"] == pytest.approx(np.mean([len(one) == 1 for one in sets]), abs=1e-6)
    for status, measured in metrics["by_status"].items():
        own = np.array([row["prediction_status"] == status for row in table])
        assert measured["scans"] == own.sum()
        assert measured["accuracy"]["value"] == pytest.approx(right[own].mean(), abs=1e-6)
    assert sum(one["scans"] for one in metrics["by_status"].values()) == 19
    assert sum(one["scans"] for one in metrics["by_tier"].values()) == 19
    for row, in_set in zip(table, sets, strict=True):  # every scan passed quality control
        assert (row["prediction_status"] == "flagged") is bool(row["prediction_reasons"])
        assert ("no_class_excluded" in row["prediction_reasons"].split(";")) is (len(in_set) == 3)
    curve = metrics["risk_coverage"]
    assert [point["coverage"] for point in curve] == pytest.approx(np.arange(1, 11) / 10)
    assert curve[-1]["risk"] == pytest.approx(1 - right.mean(), abs=1e-6)
    surest = max(range(19), key=lambda n: max(float(table[n][f"p_{name}"]) for name in CLASSES))
    first_two = sorted(table, key=lambda row: -max(float(row[f"p_{name}"]) for name in CLASSES))[:2]
    wrong = np.mean([row["predicted_label"] != row["label"] for row in first_two])
    assert curve[0]["risk"] == pytest.approx(wrong, abs=1e-6)
    assert table[surest] in first_two


@pytest.mark.parametrize("choice", ["network", "linear", "stack"])
def test_the_predictor_that_is_asked_for_is_published(finished_run, tmp_path, choice):
    options = TrainOptions(weights="random", folds=3, epochs=20, predictor=choice)
    result = train(finished_run, tmp_path / "model", options, lambda _: None)
    predictor = read_description(result.model_dir).predictor
    assert predictor.choice == choice
    assert {fold.chosen for fold in predictor.folds} == {choice}
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    if choice == "stack":
        return
    assert [set(fold.weights) for fold in predictor.folds] == [{choice}] * 3
    alone = metrics["members"][choice]["measures"]["balanced_accuracy"]
    assert metrics["cross_validation"]["measures"]["balanced_accuracy"] == alone
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert f"{choice} in all 3 folds (as asked for with --predictor {choice})" in card


def test_volumes_are_asked_for_where_there_are_none(finished_run, tmp_path):
    options = TrainOptions(weights="random", folds=3, predictor="volumes")
    with pytest.raises(UsageError, match="--predictor volumes: fewer than half of the scans have volumes"):
        train(finished_run, tmp_path / "model", options, lambda _: None)
    assert not (tmp_path / "model").exists()


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
    result, _ = trained
    model = load_model(result.model_dir)
    given = read_network_input(files_of(finished_run, "05"), model.network_grid)
    prediction = model.predict(inputs(model, given))
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
    network_alone = model.answers(inputs(model, given)).member_probabilities["network"]
    assert np.allclose(probabilities, network_alone, atol=1e-5)


def test_monai_itself_finds_the_bundle_in_order(trained):
    bundle = trained[0].model_dir / "bundle"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    wrong = {**metadata["network_data_format"]["outputs"]["pred"], "num_channels": 5}
    with pytest.raises(ValueError, match="channel number"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            device="cpu",
            **{"_meta_#network_data_format#outputs#pred": wrong},
        )


def test_saved_and_loaded_predict_the_same_bit_for_bit(trained, finished_run):
    result, _ = trained
    first, second = load_model(result.model_dir), load_model(result.model_dir)
    given = read_network_input(files_of(finished_run, "07"), first.network_grid)
    assert first.predict(inputs(first, given)) == second.predict(inputs(second, given))


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
    (copy / "model.json").write_text(json.dumps({**content, "novelty_threshold": 9.0}))
    with pytest.raises(ModelError, match="altered after training"):
        load_model(copy)
    (copy / "model.json").write_text(json.dumps({**content, "surprise": 1}))
    with pytest.raises(ModelError, match="surprise"):
        load_model(copy)
    (copy / "model.json").write_text("{")
    with pytest.raises(ModelError, match="not usable"):
        load_model(copy)


NAN = float("nan")
LEVELS = {"CN": 0.9, "MCI": 0.9, "AD": 0.8}
SCORES = {"CN": [[0.5, 0, 0]], "MCI": [[0.5, 1, 1]], "AD": [[0.5, 2, 2]]}


def conformal(levels=LEVELS, **scores) -> dict:
    return {"conformal": {"levels": levels, "scores": SCORES | scores}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"novelty_threshold": NAN}, "novelty_threshold: .*finite", id="novelty nan"),
        pytest.param({"novelty_threshold": -1.0}, "novelty_threshold", id="novelty negative"),
        pytest.param({"classes": ["CN", "AD", "CN"]}, "'CN' stands there twice", id="class twice"),
        pytest.param(
            {"classes": ["CN", "MCI"]}, "conformal.scores must name the classes CN, MCI", id="class gone"
        ),
        pytest.param({"classes": ["CN", "$x"]}, "begins with \\$", id="class a program"),
        pytest.param(conformal(AD=[[NAN, 0, 0]]), "conformal.scores.AD.*finite", id="score nan"),
        pytest.param(conformal(AD=[[7.0, 0, 0]]), "conformal.scores.AD", id="score of 7"),
        pytest.param(conformal(AD=[[0.5, 3, 0]]), "name fold 3", id="fold of a score"),
        pytest.param(conformal({**LEVELS, "AD": 1.5}), "conformal.levels.AD", id="level of 1.5"),
        pytest.param(conformal({"CN": 0.9}), "conformal.scores must name", id="level gone"),
        pytest.param({"members": []}, "members", id="no member"),
        pytest.param(
            {"members": ["network", "linear", "volumes"]}, "volume_models must be there", id="member"
        ),
        pytest.param({"tiers": {"high": 0.5, "review": 0.6}}, "lies above high", id="tiers"),
        pytest.param({"tiers": {"high": NAN, "review": 0.6}}, "tiers.high", id="tier nan"),
        pytest.param({"training_scans": {"a": [3, 0]}}, "name fold 3", id="fold of a scan"),
        pytest.param({"training_scans": {"a": [-1, 0]}}, "training_scans", id="negative fold"),
        pytest.param({"network_grid": {"spacing_mm": 2.0, "shape": [8000, 96, 80]}}, "32 to 256", id="grid"),
        pytest.param(
            {"reference": {"label": "XX", "norms": []}}, "reference.label 'XX'", id="class of reference"
        ),
    ],
)
def test_numbers_that_no_training_gives_are_refused_in_a_sentence(trained, tmp_path, change, says):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text()) | change
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"copy/model\.json is not usable: .*{says}"):
        load_model(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperatures": {"linear": NAN, "network": 1.0}}, "temperatures.linear: .*finite"),
        ({"temperatures": {"linear": 1e-300, "network": 1.0}}, "temperatures.linear: .*0.05"),
        ({"temperature": float("inf")}, "temperature: .*finite"),
        (
            {"temperatures": {"linear": 1.0}, "weights": {"linear": 1.0}},
            "temperature is needed for each of linear, network",
        ),
        ({"weights": {}}, "weights"),
        ({"weights": {"linear": -0.5}}, "weights.linear"),
        ({"weights": {"linear": 0.7, "network": 0.7}}, "sum to more than 1"),
        ({"weights": {"volumes": 1.0}}, "a member without a temperature"),
        ({"chosen": "median"}, "chosen"),
    ],
)
def test_predictors_whose_numbers_do_not_fit_are_refused(trained, tmp_path, change, says):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text())
    content["predictor"]["folds"][1] |= change
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"is not usable: .*{says}"):
        load_model(copy)


def test_a_predictor_is_needed_for_each_fold(trained, tmp_path):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text())
    del content["predictor"]["folds"][0]
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"predictor\.folds has 2 entries for 3 folds"):
        load_model(copy)


def test_a_model_of_an_earlier_schema_is_to_be_trained_again(trained, tmp_path):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "old"))
    content = json.loads((copy / "model.json").read_text())
    for name in ("members", "predictor", "training_scans", "volume_models", "conformal"):
        del content[name]
    content |= {"schema_version": 1, "temperature": 1.0, "fold_of_training_scan": {}}
    content |= {"conformal": {"level": 0.9, "quantiles": {}}, "versions": {"brainstage": "0.1.0"}}
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"old was made by brainstage 0\.1\.0, .*: train it again"):
        load_model(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": [[NAN, 0.0]] * 3}, "finite"),
        ({"bias": [0.0, 0.0]}, "do not fit each other"),
        ({"log_prior": [-1.0, -1.0]}, "do not fit each other"),
        ({"columns": [{"name": "age", "mean": 70.0, "scale": 0.0}]}, "greater than 0"),
        ({"columns": [{"name": "sex", "levels": ["F", "M"], "parts": [1.0]}]}, "columns"),
    ],
)
def test_covariates_whose_numbers_do_not_fit_are_refused(with_age, tmp_path, change, says):
    copy = Path(shutil.copytree(with_age[0].model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text())
    content["covariate_experts"][1] |= change
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"is not usable: covariate_experts.1.*{says}"):
        load_model(copy)
    content["covariate_experts"] = content["covariate_experts"][:1]
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="1 covariate_experts, where there are 3 folds"):
        load_model(copy)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("fold-1", lambda a: a | {"head_weight": a["head_weight"] * np.float32(NAN)}, "not finite"),
        ("fold-1", lambda a: a | {"head_bias": a["head_bias"][:2]}, "a head tells 2 classes apart"),
        ("linear", lambda a: {key: one[:2] for key, one in a.items()}, "holds 2 models"),
        ("linear", lambda a: a | {"bias": a["bias"][:, :2]}, "a linear model tells 2 classes apart"),
        ("linear", lambda a: a | {"weight": a["weight"] / np.float32(0)}, "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_no_training_gives_are_refused_even_with_their_hashes(
    trained, tmp_path, name, change, says
):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "copy"))
    path = copy / f"{name}.safetensors"
    path.write_bytes(save(change(load(path.read_bytes()))))
    described = read_description(copy)
    altered = described.model_copy(
        update={"files": {**described.files, path.name: hashlib.sha256(path.read_bytes()).hexdigest()}}
    )
    altered = altered.model_copy(update={"model_id": altered.own_id})
    (copy / "model.json").write_text(altered.model_dump_json())
    with pytest.raises(ModelError, match=f"do not fit together: .*{says}"):
        load_model(copy)


@pytest.mark.parametrize("version", [None, 1, 99])
def test_a_model_whose_baseline_saw_other_values_is_refused(trained, tmp_path, version):
    copy = Path(shutil.copytree(trained[0].model_dir, tmp_path / "copy"))
    content = json.loads((copy / "model.json").read_text())
    assert content.pop("baseline_version") == 2
    content |= {} if version is None else {"baseline_version": version}
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="linear baseline sees other values: train the model again"):
        load_model(copy)


def test_a_model_whose_features_are_pooled_otherwise_is_refused(trained, monkeypatch):
    monkeypatch.setattr("brainstage.models.pooling.POOLING_VERSION", 99)
    with pytest.raises(ModelError, match="features are pooled otherwise: train the model again"):
        load_model(trained[0].model_dir)


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


@pytest.mark.slow
def test_a_tuned_model_is_stored_whole_and_its_folds_have_networks_of_their_own(own_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_manifest(own_run / "data_manifest.csv")
    test = {"sub-15", "sub-16", "sub-17"}
    write_manifest(
        own_run / "data_manifest.csv",
        [ManifestRow(**{**vars(row), "split": "test" if row.participant_id in test else ""}) for row in rows],
    )
    options = TrainOptions(
        weights="random",
        folds=3,
        finetune="head+last",
        head="multiscale-attention",
        epochs=2,
        augment=("noise",),
        tensorboard=tmp_path / "curves",
    )
    said = []
    result = train(own_run, tmp_path / "model", options, said.append)
    assert any(line.startswith("network, fold 2, epoch 1") for line in said)
    assert not list((own_run / ".brainstage" / "training").iterdir()), "checkpoints are gone at the end"
    model = load_model(result.model_dir)
    assert model.tuned
    assert (model.description.finetune, model.description.head) == ("head+last", "multiscale-attention")
    with (result.model_dir / "training_log.csv").open() as stream:
        log = list(csv.DictReader(stream))
    assert {row["phase"] for row in log} >= {"tune", "attention search"}
    given = read_network_input(files_of(own_run, "05"), model.network_grid)
    answers = model.answers(inputs(model, given))
    prediction = model.predict(inputs(model, given))
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert metrics["test_split"]["scans"] == {"CN": 1, "MCI": 1, "AD": 1}
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert "its last stage trained further in each fold; a multiscale-attention head" in card
    assert "| Augmentation | noise |" in card
    assert "permuted between participants, 1 time;" in card
    parser = ConfigParser()
    parser.read_config(str(result.model_dir / "bundle" / "configs" / "inference.json"))
    parser["bundle_root"] = str(result.model_dir / "bundle")
    parser.get_parsed_content("initialize")
    with torch.no_grad():
        probabilities = parser.get_parsed_content("network")(torch.from_numpy(np.array(given.image))[None])[0]
    assert np.allclose(probabilities.numpy(), answers.member_probabilities["network"], atol=1e-5)
    events = EventAccumulator(str(tmp_path / "curves" / "network-fold-0")).Reload()
    drawn = [row for row in log if row["phase"] == "tune" and row["fold"] == "0"]
    assert [event.value for event in events.Scalars("loss/validation")] == pytest.approx(
        [float(row["validation_loss"]) for row in drawn],
        rel=1e-5,  # the table has six digits
    )


def test_monais_strides_are_another_network(finished_run, tmp_path):
    options = TrainOptions(weights="random", folds=3, epochs=5, strides="monai")
    train(finished_run, tmp_path / "model", options, lambda _: None)
    model = load_model(tmp_path / "model")
    given = read_network_input(files_of(finished_run, "05"), model.network_grid)
    loaded = load_weights("random", seed=0)
    other = FeatureExtractor(loaded.network, loaded.source)
    assert model.feature_id != other.feature_id
    assert not np.allclose(model.features(given), other.features(given), atol=1e-3)


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


def test_classes_of_one_picture_each_are_told_and_do_not_end_the_training(own_run, tmp_path):
    pictures = [brain("CN", np.random.default_rng(seed)) for seed in range(3)]
    generator = np.random.default_rng(4)
    for number in range(18):
        volume, mask = pictures[number % 3]
        files = files_of(own_run, f"{number:02d}")
        noisy = volume.data + 0.1 * mask.data * generator.standard_normal(volume.data.shape).astype(
            np.float32
        )
        write_volume(files.template_t1w, volume.with_data(noisy))
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    assert any("left apart" in warning for warning in result.warnings)
    assert (result.model_dir / "evaluation" / "near_duplicates.csv").is_file()


def test_what_a_person_decided_stands_over_quality_control(finished_run, tmp_path):
    decisions = tmp_path / "qc_decisions.tsv"
    decisions.write_text(
        "t1w_path\tdecision\n"
        "sub-90/anat/sub-90_T1w.nii.gz\tpass\n"
        "sub-04/ses-M00/anat/sub-04_ses-M00_T1w.nii.gz\tfail\n"
    )
    cohort = read_cohort(finished_run, "diagnosis", None, decisions=read_decisions(decisions))
    assert "sub-90" in {scan.files.key for scan in cohort.scans}
    assert cohort.left_out["failed by whoever looked at it"] == ("sub-04_ses-M00",)
    assert "failed quality control" not in cohort.left_out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"label_column": "diagnosys"}, UsageError, "Did you mean 'diagnosis'", id="column"),
        pytest.param({"label_column": "site"}, UsageError, "empty for every scan", id="empty column"),
        pytest.param({"classes": ("CN", "Ad")}, UsageError, "Did you mean 'AD'", id="class"),
        pytest.param({"classes": ("CN",)}, UsageError, "two or more", id="one class"),
        pytest.param({"folds": 7}, UsageError, "use --folds 6", id="folds"),
        pytest.param(
            {"augment": ("noise",)}, UsageError, "--augment concerns a network", id="augment frozen"
        ),
        pytest.param(
            {"finetune": "full", "augment": ("blur",)}, UsageError, "known are pose", id="unknown recipe"
        ),
        pytest.param({"tensorboard": Path("x")}, UsageError, "--tensorboard concerns", id="curves frozen"),
        pytest.param({"weights": "nowhere.pth"}, WeightsMissingError, "nowhere.pth", id="weights"),
    ],
)
def test_bad_options_are_one_sentence(finished_run, tmp_path, options, error, message):
    def attempt():
        train(
            finished_run,
            tmp_path / "model",
            TrainOptions(**{"weights": "random", **options}),
            lambda _: None,
        )

    with pytest.raises(error, match=message):
        attempt()
    assert not any(tmp_path.iterdir())


def test_no_finished_run_says_what_to_do_first(tmp_path):
    with pytest.raises(InputMissingError, match="no directory"):
        train(tmp_path / "nowhere", tmp_path / "model", OPTIONS, lambda _: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissingError, match="brainstage run"):
        train(tmp_path / "empty", tmp_path / "model", OPTIONS, lambda _: None)


def rewritten(out_dir: Path, change) -> None:
    """Alter the manifest of a run: `change` gets the row's place and the row, and returns what differs."""
    rows = read_manifest(out_dir / "data_manifest.csv")
    altered = [ManifestRow(**vars(row) | change(number, row)) for number, row in enumerate(rows)]
    write_manifest(out_dir / "data_manifest.csv", altered)


def aged(number: int, row: ManifestRow) -> dict:
    """Make patients older, and leave some ages open."""
    years = 60.0 + 8 * CLASSES.index(row.diagnosis or "CN") + number % 5
    known = {"age": None if number == 4 else years, "sex": "FM"[number // 3 % 2]}
    return known | {"extra": {**row.extra, "education": str(8 + number % 7)}}


@pytest.fixture(scope="module")
def with_age(finished_run, tmp_path_factory):
    """A model that looks at age and education besides the image."""
    folder = tmp_path_factory.mktemp("with_age")
    out_dir = Path(shutil.copytree(finished_run, folder / "out"))
    rewritten(out_dir, aged)
    said: list[str] = []
    options = TrainOptions(weights="random", folds=3, epochs=60, covariates=("age", "education"))
    return train(out_dir, folder / "model", options, said.append), out_dir


def test_folds_are_balanced_and_the_card_says_how_well(with_age, trained):
    result, _ = with_age
    with (result.model_dir / "splits.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    ages = {row["participant_id"]: row["age"] for row in rows}
    assert (ages["sub-01"], ages["sub-04"]) == ("69", "")
    assert {row["sex"] for row in rows} == {"F", "M"}
    balance = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())["fold_balance"]
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert balance["age_difference"] < 0.5
    assert f"at most {balance['age_difference']:.2f} standard deviations" in card
    assert "age is not known; the proportion" in (trained[0].model_dir / "MODEL_CARD.md").read_text()


def test_covariates_alone_are_a_control_with_and_without_their_use(with_age, own_run, tmp_path):
    rewritten(own_run, aged)
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    for model_dir, columns in (
        (result.model_dir, ["age", "sex"]),
        (with_age[0].model_dir, ["age", "sex", "education"]),
    ):
        control = json.loads((model_dir / "evaluation" / "metrics.json").read_text())["control_covariates"]
        assert control["columns"] == columns
        assert control["measures"]["balanced_accuracy"]["value"] > 0.6  # each class is eight years older
        assert f"covariates alone ({', '.join(columns)})" in (model_dir / "MODEL_CARD.md").read_text()
    assert load_model(result.model_dir).description.covariate_experts == ()


def test_without_age_and_sex_the_card_says_that_there_is_no_such_control(own_run, tmp_path):
    rewritten(own_run, lambda *_: {"sex": None})
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    assert "control_covariates" not in (result.model_dir / "evaluation" / "metrics.json").read_text()
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert "Age and sex are not known for most scans" in card
    assert "the folds could not be balanced" in card


def test_a_model_with_covariates_joins_both_experts(with_age, trained, finished_run):
    result, _ = with_age
    model, image_only = load_model(result.model_dir), load_model(trained[0].model_dir)
    assert model.description.covariate_columns == ("age", "education")
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert metrics["image_only"]["scans"] == metrics["cross_validation"]["scans"]
    assert metrics["image_only"]["measures"]["brier"] != metrics["cross_validation"]["measures"]["brier"]
    given = read_network_input(files_of(finished_run, "05"), model.network_grid)

    def predicted(**covariates):
        return model.predict(inputs(model, given, covariates=covariates))

    young, old = predicted(age="60", education="12"), predicted(age="80", education="12")
    assert old.probabilities["AD"] > young.probabilities["AD"] + 0.1
    assert not old.covariates_missing
    assert predicted(age="60").covariates_missing
    assert predicted().covariates_missing
    assert not image_only.predict(inputs(image_only, given)).covariates_missing


def test_the_bundle_of_a_model_with_covariates_says_that_it_takes_the_image_alone(with_age, trained):
    def description(model_dir):
        return json.loads((model_dir / "bundle" / "configs" / "metadata.json").read_text())["description"]

    assert "the columns age, education, not in this bundle" in description(with_age[0].model_dir)
    assert "columns" not in description(trained[0].model_dir)
    assert "The MONAI bundle holds the network alone" in (with_age[0].model_dir / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(("weight",), "no column 'weight'.* it has age, group, sex, site", id="absent"),
        pytest.param(("diagnosis",), "no column 'diagnosis'", id="the label"),
        pytest.param(("t1w_path",), "no column 't1w_path'", id="a path"),
        pytest.param(("age",), "'age' is empty", id="empty"),
    ],
)
def test_covariates_that_cannot_be_used_are_one_sentence(finished_run, tmp_path, names, message):
    with pytest.raises(UsageError, match=message):
        train(
            finished_run, tmp_path / "model", TrainOptions(weights="random", covariates=names), lambda _: None
        )


def test_another_age_means_another_prediction(tmp_path):
    def key(**covariates):
        stage = prediction_stage(
            tmp_path, "m", PredictionConfig(), files_of(tmp_path, "01"), "abc", covariates
        )
        return content_key(stage, {})

    assert key(age="70") == key(age="70")
    assert len({key(age="70"), key(age="71"), key(age=None), key()}) == 4


@pytest.mark.parametrize(
    ("imbalance", "predictor"),
    [
        ("none", "auto"),
        ("oversample", "auto"),
        ("undersample", "auto"),
        (
            "smote",
            "network",
        ),  # without two folds of three a class has no two people to learn from and to stop by
    ],
)
def test_every_treatment_of_imbalance_gives_a_model(finished_run, tmp_path, imbalance, predictor):
    options = TrainOptions(weights="random", folds=3, epochs=20, imbalance=imbalance, predictor=predictor)
    result = train(finished_run, tmp_path / "model", options, lambda _: None)
    assert f"| Class imbalance | {imbalance} |" in (result.model_dir / "MODEL_CARD.md").read_text()


def copied(out_dir: Path, subject: str, original: str, label: str) -> ManifestRow:
    """Give a scan to another participant: other intensities, other noise."""
    row = add_scan(out_dir, subject, label, np.random.default_rng(int(subject)))
    source, target = files_of(out_dir, original), files_of(out_dir, subject, session=None)
    volume, mask = read_volume(source.template_t1w), read_mask(source.template_mask)
    noise = np.random.default_rng(int(subject)).normal(0, 0.1, volume.shape)
    data = np.where(mask.data, 1.7 * volume.data + noise, 0).astype(np.float32)
    write_volume(target.template_t1w, Volume(data=data, voxel_to_ras=volume.voxel_to_ras))
    return row


def test_copies_under_other_names_are_found_and_kept_on_one_side(own_run, tmp_path, trained):
    assert not (trained[0].model_dir / "evaluation" / "near_duplicates.csv").exists()
    rows = read_manifest(own_run / "data_manifest.csv")
    rows += [
        copied(own_run, "50", "04", "MCI"),
        copied(own_run, "51", "05", "AD"),
        copied(own_run, "52", "04", "MCI"),
    ]
    write_manifest(own_run / "data_manifest.csv", rows)
    said: list[str] = []
    result = train(own_run, tmp_path / "model", OPTIONS, said.append)
    with (result.model_dir / "splits.csv").open() as stream:
        fold_of = {row["participant_id"]: row["fold"] for row in csv.DictReader(stream)}
    assert fold_of["sub-04"] == fold_of["sub-50"] == fold_of["sub-52"]
    assert fold_of["sub-05"] == fold_of["sub-51"]
    with (result.model_dir / "evaluation" / "near_duplicates.csv").open() as stream:
        found = [(row["participant_id"], row["other_participant_id"]) for row in csv.DictReader(stream)]
    assert found == [("sub-04", "sub-50"), ("sub-04", "sub-52"), ("sub-05", "sub-51"), ("sub-50", "sub-52")]
    assert any("sub-05 and sub-51" in line and line.startswith("leakage warning") for line in said)
    assert "sub-05 and sub-51" in (result.model_dir / "MODEL_CARD.md").read_text()


def test_a_copy_in_the_test_split_is_warned_about(own_run, tmp_path):
    rows = read_manifest(own_run / "data_manifest.csv")
    for subject, original, label in (("50", "04", "MCI"), ("51", "05", "AD")):
        row = copied(own_run, subject, original, label)
        rows.append(ManifestRow(**{**vars(row), "split": "test"}))
    write_manifest(own_run / "data_manifest.csv", rows)
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    across = [warning for warning in result.warnings if "two sides" in warning]
    assert len(across) == 1
    assert "sub-04 and sub-50, sub-05 and sub-51" in across[0]
    with (result.model_dir / "evaluation" / "near_duplicates.csv").open() as stream:
        assert {row["sides"] for row in csv.DictReader(stream)} == {"train and test"}


def test_other_peoples_directory_is_never_replaced(finished_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not empty and not a model directory"):
        train(finished_run, tmp_path, OPTIONS, lambda _: None)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def with_volumes(out_dir: Path) -> None:
    """Give every scan volumes: one hippocampus, and a ventricle that is withheld."""
    generator = np.random.default_rng(5)
    for file in sorted(out_dir.glob("sub-*/**/*_desc-qc.json")):
        hippocampus = 3.0 * float(np.exp(generator.normal(0, 0.1)))
        found = {"intracranial": 1500.0, "hippocampus_left": hippocampus, "ventricle_left": None}
        state = out_dir / ".brainstage" / file.name.removesuffix("_desc-qc.json")
        write_json(state / "volumes_result.json", asdict(BrainVolumes(volumes_ml=found)))


@pytest.fixture
def many(finished_run, tmp_path):
    """20 controls and 20 patients of a run whose scans have volumes."""
    out_dir = tmp_path / "many"
    generator = np.random.default_rng(1)
    rows = [add_scan(out_dir, f"{n:02d}", "AD" if n % 2 else "CN", generator) for n in range(40)]
    rows.append(add_scan(out_dir, "00", "CN", generator, session="M12"))
    write_manifest(out_dir / "data_manifest.csv", rows)
    with_volumes(out_dir)
    state = out_dir / ".brainstage"
    state.mkdir(exist_ok=True)
    shutil.copy(finished_run / ".brainstage" / "preprocessing.json", state)
    return out_dir


def test_people_of_a_class_are_taken_once_with_what_is_known_of_them(many):
    cohort = read_cohort(many, "diagnosis", None)
    people = reference_people(cohort, "CN")
    assert len(people) == 20
    measured = {"intracranial_ml", "hippocampus_left_ml", "hippocampus_left_pct_icv"}
    assert all(set(person.measures) == measured and person.sex == "F" for person in people)


def test_a_model_keeps_what_is_usual_in_its_class_of_reference_and_the_card_says_so(
    many, finished_run, tmp_path
):
    options = TrainOptions(weights="random", folds=3, epochs=5)
    result = train(many, tmp_path / "model", options, lambda _: None)
    description = read_description(result.model_dir)
    assert description.reference is not None
    assert description.reference.label == "CN"
    assert description.columns_read == ("age", "sex")
    shrunk = {"hippocampus_left_pct_icv": 0.1, "ventricle_left_pct_icv": None, "hippocampus_left_ml": 1.5}
    (finding,) = reference_findings(description.reference, shrunk, {})
    assert finding.percentile < 1
    assert finding.percentile_low < finding.percentile < finding.percentile_high
    assert reference_findings(description.reference, {"hippocampus_left_pct_icv": None}, {}) == ()
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    assert "## Class of reference" in card
    assert re.search(r"hippocampus left pct icv \| 20.* \| 0\.1\d to 0\.2\d %", card)


def test_a_model_of_before_volumes_were_measured_keeps_its_id_and_says_nothing_of_what_is_no_more(
    trained, tmp_path
):
    """Its class of reference has no curve and no widening, and measures of another version."""
    result, _ = trained
    model_dir = shutil.copytree(result.model_dir, tmp_path / "model")
    norm = {
        "measure": "ventricle_share", "by": [], "people": 20, "coefficients": [0.5], "spread": [[0.05]],
        "residual_sd": 0.3, "ages": None,
    }  # fmt: skip
    content = json.loads((model_dir / "model.json").read_text())
    content["reference"] = {"label": "CN", "norms": [norm], "measured_by": "2"}
    unnamed = {
        name: value for name, value in content.items() if name not in ("model_id", "versions", "kernels")
    }
    unnamed["backbone"] = {name: value for name, value in content["backbone"].items() if name != "origin"}
    digits = hashlib.sha256(json.dumps(unnamed, sort_keys=True).encode()).hexdigest()[:11]
    content["model_id"] = f"m{digits}"
    (model_dir / "model.json").write_text(json.dumps(content))
    description = read_description(model_dir)
    volumes = BrainVolumes(volumes_ml={"intracranial": 1500.0, "ventricle_left": 20.0})
    assert description.reference is not None
    assert reference_findings(description.reference, volumes.measures, {"age": "70", "sex": "F"}) == ()


def test_a_class_of_reference_that_is_none_of_the_classes_is_refused(finished_run, tmp_path):
    options = TrainOptions(weights="random", folds=3, epochs=5, reference_class="HC")
    with pytest.raises(UsageError, match=r"HC.*CN, MCI, AD"):
        train(finished_run, tmp_path / "model", options, lambda _: None)


def test_too_few_people_of_the_class_give_no_reference_and_that_is_said(trained):
    result, said = trained
    assert read_description(result.model_dir).reference is None
    assert any("too few people of class CN" in line for line in said)
    assert "Class of reference" not in (result.model_dir / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("$print('run')", r"begins with \$, so that MONAI would run it"),
        ("@_meta_", "begins with @"),
        ("%x", "begins with %"),
        ("A;D", "has a ; in it"),
        ("A\nD", "holds a line break"),
    ],
)
def test_a_class_that_programs_would_not_take_for_a_name_is_refused(own_run, tmp_path, name, says):
    rewritten(own_run, lambda _, row: {"diagnosis": name if row.diagnosis == "AD" else row.diagnosis})
    with pytest.raises(UsageError, match=f"the class .* {says}.*; rename it in the column diagnosis"):
        train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    cohort = read_cohort(own_run, "diagnosis", ("CN", "MCI"))
    assert cohort.classes == ("CN", "MCI")


def test_words_of_the_tables_forge_nothing_in_the_card(own_run, tmp_path):
    forged = "AD | 99 | 99 | <img src=x> **bold** `code` [a](http://b)"
    rewritten(own_run, lambda _, row: {"diagnosis": forged if row.diagnosis == "AD" else row.diagnosis})
    result = train(own_run, tmp_path / "model", OPTIONS, lambda _: None)
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    parser = MarkdownIt("commonmark").enable("table")
    html = parser.render(card)
    assert "<img src=x" not in html
    assert "<strong>bold</strong>" not in html
    assert '<a href="http://b"' not in html
    rows = re.findall(r"<tr>\s*<td>AD.*?</tr>", html, flags=re.DOTALL)
    assert len(rows) == 2  # of the table of the data, and of the confusion matrix
    assert [re.findall("<td>(.*?)</td>", row)[0] for row in rows] == [escape(forged, quote=False)] * 2
    metadata = result.model_dir / "bundle" / "configs" / "metadata.json"
    config = ConfigParser({"_meta_": json.loads(metadata.read_text())})
    shown = config.get_parsed_content("_meta_")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert set(shown.values()) == {"CN", "MCI", forged}
