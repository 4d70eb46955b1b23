"""A model on a cohort it never saw: who is judged, what is measured, what is said, what is never replaced."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from brainstage.models.metrics import Estimate
from brainstage.models.model_store import StoredModel, load_model, write_model
from brainstage.pipeline.config import PredictionConfig
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import InputMissingError, ModelError, OutputError, UsageError
from brainstage.pipeline.manifest import ManifestRow, read_manifest, write_manifest
from brainstage.pipeline.nifti import read_mask, read_volume, write_mask, write_volume
from brainstage.pipeline.records import (
    AssessedBrain,
    CorrectedBrain,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    QcReport,
    QcStatus,
    QcVerdict,
    RegisteredBrain,
    StrippedBrain,
)
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.cli import main
from brainstage.workflows.evaluate import EvaluateOptions, evaluate
from brainstage.workflows.learning.cohort_evaluation import comparison, read_cross_validated
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.prediction import prediction_stage
from brainstage.workflows.train import train

CLASSES = ("CN", "MCI", "AD")
CONTENT = {
    "network_grid": {"spacing_mm": 4.0, "shape": [32, 32, 32], "background": "zero"},
    "registration": {"resolution_mm": 1.0},
    "intensity": {"method": "zscore"},
}
FILES = {
    "EVALUATION.md",
    "metrics.json",
    "evaluation_predictions.csv",
    "confusion_matrix.png",
    "roc.png",
    "precision_recall.png",
    "calibration.png",
}
TEMPERATURE = 1.7
OPTIONS = EvaluateOptions(device="cpu")


def add_scan(
    out_dir: Path, number: int, label: str | None, *, session="M00", qc="pass", **known
) -> ManifestRow:
    """Write a ball whose dark middle grows from CN to AD."""
    entities = BidsEntities(subject=f"{number:02d}", session=session)
    files = ScanFiles(out_dir=out_dir, entities=entities, resolution="1")
    generator = np.random.default_rng(number)
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    matrix[:3, 3] = (-60, -76, -52)
    place = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
    radius = np.sqrt((place**2).sum(axis=0)) / 14
    dark = 0.25 + 0.12 * CLASSES.index(label if label in CLASSES else "CN")
    dark += 0.06 * generator.standard_normal()
    values = np.where(radius < dark, -1.5, 0.5) + 0.4 * generator.standard_normal(radius.shape)
    # The folds of the grey are each one's own: without them all would be one picture with noise.
    values = values + 4 * gaussian_filter(generator.standard_normal(radius.shape), 1.5)
    volume = Volume(data=np.where(radius < 1, values, 0).astype(np.float32), voxel_to_ras=matrix)
    write_volume(files.template_t1w, volume)
    write_mask(files.template_mask, BrainMask(data=radius < 1, voxel_to_ras=matrix))
    files.qc_json.write_text(json.dumps({"qc_status": qc}))
    return ManifestRow(
        participant_id=f"sub-{number:02d}",
        session_id=f"ses-{session}",
        run_id="",
        t1w_path=f"sub-{number:02d}/ses-{session}/anat/{entities.key}_T1w.nii.gz",
        diagnosis=label,
        **{"sha256": f"{number:063x}{session == 'M12':x}", **known},
    )


def finish(out_dir: Path, rows: list[ManifestRow]) -> Path:
    write_manifest(out_dir / "data_manifest.csv", rows)
    (out_dir / ".brainstage").mkdir(exist_ok=True)
    (out_dir / ".brainstage" / "preprocessing.json").write_text(json.dumps({"id": "abc", "content": CONTENT}))
    return out_dir


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    rows = [add_scan(folder / "out", number, CLASSES[number % 3]) for number in range(18)]
    options = TrainOptions(weights="random", folds=3, epochs=60, device="cpu")
    train(finish(folder / "out", rows), folder / "model", options, lambda _: None)
    # Few scans leave temperatures at 1, with which calibrated and uncalibrated are the same.
    model = load_model(folder / "model")
    predictor = model.description.predictor
    folds = tuple(
        fold.model_copy(
            update={"temperatures": dict.fromkeys(fold.temperatures, 1.0), "temperature": TEMPERATURE}
        )
        for fold in predictor.folds
    )
    warm = model.description.model_copy(
        update={"predictor": predictor.model_copy(update={"folds": folds}), "model_id": ""}
    )
    write_model(
        folder / "model", StoredModel(warm, model.extractor, model.models, model.novelty, model.baselines)
    )
    return folder / "model"


@pytest.fixture(scope="module")
def other_run(tmp_path_factory) -> Path:
    """22 usable scans of 21 people, and one or two of everything that is not judged."""
    out_dir = tmp_path_factory.mktemp("other") / "out"
    rows = []
    for n in range(21):
        known = {"age": 60.0 + n, "sex": "F" if n < 11 else "M", "site": "big" if n < 12 else "small"}
        known["site"] = None if n == 20 else known["site"]
        rows.append(add_scan(out_dir, 40 + n, CLASSES[n % 3], qc="warn" if n % 7 == 0 else "pass", **known))
    rows.append(add_scan(out_dir, 40, "CN", session="M12", sex="F", site="big", split="test"))
    rows.append(add_scan(out_dir, 3, "CN", split="train"))
    rows.append(add_scan(out_dir, 3, "CN", session="M12"))
    rows.append(add_scan(out_dir, 70, "FTD"))
    rows.append(add_scan(out_dir, 71, None))
    rows.append(add_scan(out_dir, 72, "AD", qc="fail"))
    rows.append(replace(rows[0], participant_id="sub-73", t1w_path="sub-73/anat/sub-73_T1w.nii", sha256=None))
    return finish(out_dir, rows)


@pytest.fixture(scope="module")
def evaluated(model_dir, other_run, tmp_path_factory):
    result_dir = tmp_path_factory.mktemp("results") / "result"
    said: list[str] = []
    result = evaluate(model_dir, other_run, result_dir, OPTIONS, said.append)
    return result, result_dir, said


@pytest.fixture
def own_run(other_run, tmp_path) -> Path:
    """Copy the run, for a test to alter."""
    return Path(shutil.copytree(other_run, tmp_path / "out"))


def assessed_brain(files: ScanFiles) -> AssessedBrain:
    """Return what a run hands to its last stage; only what lies in template space is looked at."""
    brain, mask = read_volume(files.template_t1w), read_mask(files.template_mask)
    findings = HeaderFindings(
        shape=brain.shape, spacing_mm=brain.spacing_mm, axcodes="RAS", affine_source="sform"
    )
    stripped = StrippedBrain(
        head=brain, findings=findings, brain_mask=mask, method="none", skull_stripped_input=True
    )
    corrected = CorrectedBrain(head=brain, brain_mask=mask, stripped=stripped, field_range=1.0)
    normalised = NormalisedBrain(
        brain=brain,
        brain_mask=mask,
        normalisation=Normalisation(method="zscore", centre=0.0, scale=1.0),
        corrected=corrected,
    )
    registered = RegisteredBrain(
        brain=brain, brain_mask=mask, native_to_template=np.eye(4), normalised=normalised
    )
    qc = QcReport(measures={}, verdict=QcVerdict(status=QcStatus.PASS))
    return AssessedBrain(registered=registered, qc=qc)


def keep(out_dir: Path, wanted) -> None:
    """Leave the rows of a manifest that `wanted` wants, as it changes them."""
    rows = [changed for row in read_manifest(out_dir / "data_manifest.csv") if (changed := wanted(row))]
    write_manifest(out_dir / "data_manifest.csv", rows)


def metrics_of(result_dir: Path) -> dict:
    return json.loads((result_dir / "metrics.json").read_text())


def table_of(result_dir: Path) -> list[dict[str, str]]:
    with (result_dir / "evaluation_predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_result_holds_exactly_what_it_should(evaluated):
    _, result_dir, _ = evaluated
    assert {path.name for path in result_dir.iterdir()} == FILES
    assert [path.name for path in result_dir.parent.iterdir()] == ["result"]


def test_who_is_not_judged_is_counted_with_the_reason(evaluated):
    _, result_dir, said = evaluated
    expected = {
        "the model was trained on this scan": ["sub-03_ses-M00"],
        "the model was trained on another scan of this participant": ["sub-03_ses-M12"],
        "label is no class of the model": ["sub-70_ses-M00"],
        "no label": ["sub-71_ses-M00"],
        "failed quality control": ["sub-72_ses-M00"],
        "no preprocessed image": ["sub-73"],
    }
    assert metrics_of(result_dir)["left_out"] == {reason: len(keys) for reason, keys in expected.items()}
    text, card = "\n".join(said), (result_dir / "EVALUATION.md").read_text()
    for reason, [key] in expected.items():
        assert f"left out, {reason}: 1 ({key})" in text
        assert f"* {reason}: 1 scan(s) ({key})" in card
        assert key not in {row["participant_id"] + "_" + row["session_id"] for row in table_of(result_dir)}


def test_the_split_of_another_cohort_plays_no_part(evaluated):
    _, result_dir, said = evaluated
    judged = {(row["participant_id"], row["session_id"]) for row in table_of(result_dir)}
    assert {("sub-40", "ses-M00"), ("sub-40", "ses-M12")} <= judged
    assert "22 scans of 21 participants: 8 CN, 7 MCI, 7 AD; the split of the manifest plays no part" in said


def test_every_scan_is_judged_as_a_run_judges_it(evaluated, model_dir, other_run):
    _, result_dir, _ = evaluated
    model_id = load_model(model_dir).model_id
    row = table_of(result_dir)[5]
    entities = BidsEntities(subject=row["participant_id"][4:], session=row["session_id"][4:])
    files = ScanFiles(out_dir=other_run, entities=entities)
    stage = prediction_stage(model_dir, model_id, PredictionConfig(), files, "f" * 64, {})
    expected = stage.run(assessed_brain(files)).prediction
    assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(
        list(expected.probabilities.values()), rel=1e-5
    )
    assert row["prediction_set"] == ";".join(expected.prediction_set)
    assert row["member_labels"] == ";".join(f"{name}={said}" for name, said in expected.member_labels.items())
    assert list(expected.member_labels) == ["linear", "network"]
    assert float(row["ood_score"]) == pytest.approx(expected.ood_score, rel=1e-5)
    assert (row["fold"], row["qc_status"]) == ("none", "pass")


def test_measures_are_those_of_the_table(evaluated):
    _, result_dir, _ = evaluated
    content, table = metrics_of(result_dir), table_of(result_dir)
    labels, predicted = [row["label"] for row in table], [row["predicted_label"] for row in table]
    found = content["overall"]["measures"]
    assert found["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(labels, predicted), abs=1e-6
    )
    positive, scores = [label == "AD" for label in labels], [float(row["p_AD"]) for row in table]
    assert found["auc_AD"]["value"] == pytest.approx(roc_auc_score(positive, scores), abs=1e-6)
    assert found["average_precision_AD"]["value"] == pytest.approx(
        average_precision_score(positive, scores), abs=1e-6
    )
    assert list(content["members"]) == ["linear", "network"]
    for name, member in content["members"].items():
        said = [dict(part.split("=") for part in row["member_labels"].split(";"))[name] for row in table]
        alone = balanced_accuracy_score(labels, said)
        assert member["measures"]["balanced_accuracy"]["value"] == pytest.approx(alone, abs=1e-6)
    # one temperature for all classes: the order of the classes does not change, the probabilities do
    uncalibrated = content["uncalibrated"]
    assert uncalibrated["confusion_matrix"] == content["overall"]["confusion_matrix"]
    assert content["calibration"]["brier"]["uncalibrated"] == uncalibrated["measures"]["brier"]
    assert content["calibration"]["ece"]["calibrated"] == found["ece"]
    powers = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in table]) ** TEMPERATURE
    wanted = np.eye(3)[[CLASSES.index(label) for label in labels]]
    brier = ((powers / powers.sum(axis=1, keepdims=True) - wanted) ** 2).sum(axis=1).mean()
    assert uncalibrated["measures"]["brier"]["value"] == pytest.approx(brier, abs=1e-5)


def test_planted_signal_is_found(evaluated):
    result, _, _ = evaluated
    assert result.balanced_accuracy.low > 1 / 3


def test_coverage_has_exact_intervals(evaluated):
    _, result_dir, _ = evaluated
    table = table_of(result_dir)
    for name, found in metrics_of(result_dir)["conformal"]["coverage"].items():
        inside = [name in row["prediction_set"].split(";") for row in table if row["label"] == name]
        exact = stats.binomtest(sum(inside), len(inside)).proportion_ci(method="exact")
        assert [found["value"], found["low"], found["high"]] == pytest.approx(
            [sum(inside) / len(inside), exact.low, exact.high], abs=1e-6
        )


def test_scans_beyond_the_threshold_are_counted(evaluated, model_dir):
    _, result_dir, _ = evaluated
    scores = [float(row["ood_score"]) for row in table_of(result_dir)]
    threshold = load_model(model_dir).description.novelty_threshold
    expected = np.mean([score > threshold for score in scores])
    found = metrics_of(result_dir)["novelty"]["beyond_threshold"]
    assert found["value"] == pytest.approx(expected, abs=1e-6)
    assert found["low"] <= expected <= found["high"]


def test_groups_are_measured_where_there_is_enough_to_measure(evaluated):
    _, result_dir, _ = evaluated
    content = metrics_of(result_dir)
    sites = content["by_site"]
    assert list(sites) == ["big", "small", "not known"]
    assert sites["small"] == {"scans": 8, "not_measured": "fewer than 10 scans"}
    assert sites["not known"] == {"scans": 1, "not_measured": "not known"}
    assert sum(sites["big"]["scans"].values()) == 13
    measured = sites["big"]["measures"]["balanced_accuracy"]
    assert measured["low"] <= measured["value"] <= measured["high"]
    assert "measures" in content["by_sex"]["F"]
    assert set(content["by_qc_status"]) == {"pass", "warn"}
    assert content["by_qc_status"]["warn"]["not_measured"] == "fewer than 10 scans"
    assert (
        "| site: small | 8 | not measured | fewer than 10 scans |"
        in (result_dir / "EVALUATION.md").read_text()
    )


def test_the_page_says_what_it_is_worth(evaluated):
    result, result_dir, _ = evaluated
    card = (result_dir / "EVALUATION.md").read_text()
    assert (
        f"**Balanced accuracy {result.balanced_accuracy}; chance is 0.33.** The interval lies above" in card
    )
    assert comparison(result) in card
    assert "at 80 % for CN (6 scans), 80 % for MCI (6 scans), 80 % for AD (6 scans)" in card
    assert "not a diagnosis" in card
    assert "| CN | 7 | 8 |" in card
    assert "age 60 to 80, median 70 (known for 21 scans); sex 12 F, 10 M; site 13 big, 8 small" in card
    assert "{{" not in card


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            Estimate(value=0.9, low=0.85, high=0.95),
            "0.30 lower than in the model's own cross-validation, 0.90",
        ),
        (Estimate(value=0.9, low=0.85, high=0.95), "do not overlap"),
        (Estimate(value=0.55, low=0.45, high=0.65), "0.05 higher than"),
        (Estimate(value=0.55, low=0.45, high=0.65), "this cohort does not show a difference"),
        (Estimate(value=0.6, low=0.5, high=0.7), "the same as in"),
        (None, "does not tell"),
    ],
)
def test_the_comparison_with_cross_validation_in_words(evaluated, own, words):
    result, _, _ = evaluated
    here = replace(
        result.predictor,
        measures={**result.predictor.measures, "balanced_accuracy": Estimate(value=0.6, low=0.5, high=0.7)},
    )
    assert words in comparison(replace(result, predictor=here, cross_validated=own))


def test_the_same_seed_gives_the_same_bytes(evaluated, model_dir, other_run, tmp_path):
    _, result_dir, _ = evaluated
    evaluate(model_dir, other_run, tmp_path / "again", OPTIONS, lambda _: None)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (result_dir / name).read_bytes(), name


def test_an_absent_class_is_undefined_and_not_compared(model_dir, own_run, tmp_path):
    people = ("sub-42", "sub-45", "sub-48")
    keep(own_run, lambda row: row if row.diagnosis == "CN" or row.participant_id in people else None)
    result = evaluate(model_dir, own_run, tmp_path / "result", OPTIONS, lambda _: None)
    content = metrics_of(tmp_path / "result")
    assert content["overall"]["measures"]["auc_MCI"]["value"] is None
    assert content["conformal"]["coverage"]["MCI"]["value"] is None
    card = (tmp_path / "result" / "EVALUATION.md").read_text()
    assert "chance is 0.50" in card
    assert "no scan of MCI" in comparison(result)
    assert "| MCI | not defined |" in card
    assert "**AD has only 3 participant(s):**" in card
    assert "**CN has only" not in card


def test_unknown_hashes_are_told(model_dir, own_run, tmp_path):
    keep(
        own_run, lambda row: replace(row, sha256=None) if row.participant_id in ("sub-41", "sub-42") else row
    )
    said: list[str] = []
    evaluate(model_dir, own_run, tmp_path / "result", OPTIONS, said.append)
    assert metrics_of(tmp_path / "result")["scans_without_known_hash"] == 2
    assert "2 scan(s) have no hash" in (tmp_path / "result" / "EVALUATION.md").read_text()
    assert "2 scans have no hash in the manifest: the model may have been trained on them" in said


def test_the_models_own_evaluation_is_read_where_it_is(evaluated, model_dir, tmp_path):
    own = json.loads((model_dir / "evaluation" / "metrics.json").read_text())["cross_validation"]["measures"]
    assert metrics_of(evaluated[1])["cross_validated_balanced_accuracy"] == own["balanced_accuracy"]
    assert read_cross_validated(tmp_path) is None
    undefined = {"balanced_accuracy": {"value": 0.5, "low": None, "high": None}}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(
        json.dumps({"cross_validation": {"measures": undefined}})
    )
    assert read_cross_validated(tmp_path) is None


def test_another_label_column_is_taken(model_dir, own_run, tmp_path):
    keep(own_run, lambda row: replace(row, diagnosis="CN", extra={"group": row.diagnosis or ""}))
    result = evaluate(
        model_dir, own_run, tmp_path / "result", replace(OPTIONS, label_column="group"), lambda _: None
    )
    assert result.present == list(CLASSES)
    with pytest.raises(UsageError, match=r"there are scans of CN; .* --label-column takes another"):
        evaluate(model_dir, own_run, tmp_path / "none", OPTIONS, lambda _: None)


def test_scans_preprocessed_otherwise_are_refused(model_dir, own_run, tmp_path, capsys):
    other = {**CONTENT, "intensity": {"method": "whitestripe"}}
    (own_run / ".brainstage" / "preprocessing.json").write_text(json.dumps({"id": "def", "content": other}))
    with pytest.raises(
        ModelError, match=r'intensity\.method is "whitestripe" here and "zscore" in the model'
    ):
        evaluate(model_dir, own_run, tmp_path / "result", OPTIONS, lambda _: None)
    assert main(["evaluate", str(model_dir), str(own_run), str(tmp_path / "result")]) == 65
    assert "intensity.method" in capsys.readouterr().err
    assert not (tmp_path / "result").exists()


def test_the_training_cohort_itself_is_refused(model_dir, tmp_path):
    with pytest.raises(UsageError, match="18 left out, the model was trained on this scan"):
        evaluate(model_dir, model_dir.parent / "out", tmp_path / "result", OPTIONS, lambda _: None)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere", "{out}", "{result}"], 66, "no model directory"),
        (["{model}", "nowhere", "{result}"], 66, "no directory"),
        (["{model}", "{out}", "{result}", "--label-column", "diagnosys"], 64, "Did you mean 'diagnosis'"),
        (["{model}", "{out}", "{result}", "--seed", "-1"], 64, "--seed -1"),
        (["{model}", "{out}"], 64, "RESULT_DIR"),
        (["{model}", "{out}", "{model}"], 73, "not replaced"),
    ],
)
def test_every_mistake_is_one_sentence(model_dir, other_run, tmp_path, capsys, words, code, says):
    places = {"model": model_dir, "out": other_run, "result": tmp_path / "result"}
    assert main(["evaluate", *(word.format(**places) for word in words)]) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "result").exists()


def test_a_cohort_with_nothing_to_judge_says_why(model_dir, own_run, tmp_path):
    keep(own_run, lambda row: row if row.participant_id in ("sub-71", "sub-72") else None)
    with pytest.raises(InputMissingError, match="no scan to judge: 1 no label; 1 failed quality control"):
        evaluate(model_dir, own_run, tmp_path / "result", OPTIONS, lambda _: None)


def test_only_an_earlier_result_is_replaced(evaluated, model_dir, other_run, tmp_path):
    result_dir = Path(shutil.copytree(evaluated[1], tmp_path / "result"))
    (result_dir / "roc.png").write_bytes(b"old")
    evaluate(model_dir, other_run, result_dir, OPTIONS, lambda _: None)
    assert (result_dir / "roc.png").read_bytes() != b"old"
    (result_dir / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt, so it is not replaced"):
        evaluate(model_dir, other_run, result_dir, OPTIONS, lambda _: None)
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.json").write_text("{}")
    with pytest.raises(OutputError, match="not replaced"):
        evaluate(model_dir, other_run, other, OPTIONS, lambda _: None)
    assert (other / "metrics.json").read_text() == "{}"


def test_a_failure_halfway_leaves_the_earlier_result(evaluated, model_dir, other_run, tmp_path, monkeypatch):
    result_dir = Path(shutil.copytree(evaluated[1], tmp_path / "result"))
    before = (result_dir / "metrics.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brainstage.workflows.learning.cohort_evaluation.roc_figure", full)
    with pytest.raises(OutputError, match="No space left"):
        evaluate(model_dir, other_run, result_dir, replace(OPTIONS, seed=1), lambda _: None)
    assert (result_dir / "metrics.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"result"}
