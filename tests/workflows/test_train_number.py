"""Training of a number on small volumes whose dark middle grows with age, and what is written about it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from brainstage.models.model_description import NumberDescription, read_description
from brainstage.models.model_store import NumberModel, load_model, scan_inputs
from brainstage.pipeline.config import Config
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import ModelError, UsageError
from brainstage.pipeline.files import write_json
from brainstage.pipeline.manifest import ManifestRow, read_manifest, write_manifest
from brainstage.pipeline.nifti import write_mask, write_volume
from brainstage.pipeline.records import (
    BrainVolumes,
    Completed,
    Covariates,
    NumberPrediction,
    PredictionStatus,
    QcReport,
    QcStatus,
    QcVerdict,
    T1wScan,
)
from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.workflows.data_dictionary import predictions_dictionary, trajectories_dictionary
from brainstage.workflows.evaluate import EvaluateOptions, evaluate
from brainstage.workflows.explain import ExplainOptions, explain
from brainstage.workflows.gate import decide
from brainstage.workflows.group import predictions_csv
from brainstage.workflows.learning.features import read_network_input
from brainstage.workflows.learning.labelled_cohort import measures_of
from brainstage.workflows.learning.training_options import TrainOptions
from brainstage.workflows.prediction import read_prediction
from brainstage.workflows.reporting.cohort_page import CohortScan, render_cohort
from brainstage.workflows.reporting.report import ScanReport, render_scan_report
from brainstage.workflows.run_context import RunContext, run_info
from brainstage.workflows.train import train
from brainstage.workflows.trajectories import trajectories_csv

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
    values = values + 4 * gaussian_filter(generator.standard_normal(radius.shape), 1.5)
    volume = Volume(data=np.where(radius < 1, values, 0).astype(np.float32), voxel_to_ras=matrix)
    write_volume(files.template_t1w, volume)
    write_mask(files.template_mask, BrainMask(data=radius < 1, voxel_to_ras=matrix))
    files.qc_json.write_text(json.dumps({"qc_status": qc}))
    ml = np.exp(np.log(15) + 0.03 * (age - 60) + 0.1 * generator.standard_normal())
    ventricles = {f"ventricle_{side}": float(ml) for side in ("left", "right")}
    sizes = {"intracranial": 1500.0, "grey_matter": 600.0, **ventricles}
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
        "site": "ABC"[number % 3],
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
    result, said = trained
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
    assert any(line.startswith("25 scans of 24 participants: age 50 to 78.75, mean 63.84") for line in said)


def test_model_directory_holds_exactly_what_it_should(trained):
    result, _ = trained
    found = {p.relative_to(result.model_dir).as_posix() for p in result.model_dir.rglob("*") if p.is_file()}
    assert found == {
        "model.json",
        "MODEL_CARD.md",
        "backbone.safetensors",
        "linear.safetensors",
        *(f"fold-{fold}.safetensors" for fold in range(3)),
        "evaluation/metrics.json",
        "evaluation/oof_predictions.csv",
        "evaluation/predicted_and_true.png",
        "splits.csv",
    }


def test_the_card_says_what_the_number_is_worth(trained):
    result, _ = trained
    card = (result.model_dir / "MODEL_CARD.md").read_text()
    metrics = json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())
    assert "predicts `age`, a number" in card
    assert f"R2 {result.r2} where saying the mean to everybody has 0" in card
    assert f"{100 * metrics['intervals']['coverage']['value']:.0f} % (" in card
    assert "no measure of health by itself" in card
    assert "| random targets, predictor |" in card


def rows_of(result) -> list[dict[str, str]]:
    with (result.model_dir / "evaluation" / "oof_predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def prediction_of(model: NumberModel, out_dir: Path, row: ManifestRow) -> NumberPrediction:
    files = ScanFiles(
        out_dir=out_dir, entities=BidsEntities(subject=row.participant_id[4:], session=row.session_id[4:])
    )
    image = read_network_input(files, GRID)
    known = {name: row.value(name) for name in model.description.columns_read}
    given = scan_inputs(model.features(image), image, measures_of(files), known)
    return model.predict(given, row.sha256)


def test_a_training_scan_is_predicted_by_the_fold_that_did_not_see_it(trained, finished_run):
    result, _ = trained
    model = load_model(result.model_dir)
    assert isinstance(model, NumberModel)
    rows = {row.t1w_path: row for row in read_manifest(finished_run / "data_manifest.csv")}
    for written in rows_of(result)[::6]:
        said = prediction_of(model, finished_run, rows[written["t1w_path"]])
        assert said.seen_in_training
        assert said.value == pytest.approx(float(written["predicted_age"]), abs=1e-3)
        assert said.interval_low == pytest.approx(float(written["interval_low"]), abs=1e-3)
        assert said.interval_high == pytest.approx(float(written["interval_high"]), abs=1e-3)
        members = dict(one.split("=") for one in written["member_labels"].split(";"))
        assert {name: float(value) for name, value in members.items()} == pytest.approx(
            said.member_values, abs=1e-3
        )


def test_no_member_is_told_the_age(trained, finished_run):
    result, _ = trained
    model = load_model(result.model_dir)
    assert "age" not in model.description.columns_read
    assert not any(one.uses_age for one in model.description.volume_models)


def test_what_is_written_is_read_and_what_was_altered_is_refused(trained, tmp_path):
    result, _ = trained
    description = read_description(result.model_dir)
    assert isinstance(description, NumberDescription)
    assert description.model_id == result.model_id
    shutil.copytree(result.model_dir, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    for alter, message in (
        ({"label_column": "weight"}, "was altered after training"),
        ({"intervals": {"level": 0.9, "residuals": [[1.0, 0, 0], [1.0, 0, 1]]}}, "2 residuals allow"),
        ({"intervals": {"level": 0.5, "residuals": [[1.0, 9, 0], [1.0, 0, 1]]}}, "name fold 9"),
        (
            {"predictor": content["predictor"] | {"folds": content["predictor"]["folds"][:2]}},
            "2 entries for 3",
        ),
    ):
        (tmp_path / "model" / "model.json").write_text(json.dumps(content | alter))
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "model")


def test_columns_of_the_table_join_and_whole_sites_are_left_out(finished_run, tmp_path):
    said: list[str] = []
    options = replace(
        OPTIONS, target="mmse", covariates=("age",), folds_by="site", harmonise="site", predictor="linear"
    )
    result = train(finished_run, tmp_path / "model", options, said.append)
    model = load_model(tmp_path / "model")
    assert model.description.covariate_columns == ("age",)
    assert set(model.description.columns_read) == {"age", "sex", "site"}
    assert all(fold.covariate_weight is not None for fold in model.description.predictor.folds)
    assert result.r2.value > 0.8  # the score falls with age
    metrics = json.loads((tmp_path / "model" / "evaluation" / "metrics.json").read_text())
    assert metrics["image_only"]["measures"]["r2"]["value"] < result.r2.value
    assert any(line.startswith("folds by site, each left out once: site A; site B; site C") for line in said)
    row = replace(read_manifest(finished_run / "data_manifest.csv")[3], sha256=None)
    assert not prediction_of(model, finished_run, row).site_unknown
    elsewhere = prediction_of(model, finished_run, replace(row, site="Z", age=None))
    assert elsewhere.site_unknown
    assert elsewhere.covariates_missing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "group"},
            "25 of 27 scans have no number there, such as 'y' of sub-00_ses-M00|27 of 27 scans",
        ),
        ({"target": "flat"}, "holds 7 alone"),
        ({"target": "weight"}, "is no column of data_manifest.csv"),
        ({"folds": 13}, "use --folds 12"),
    ],
)
def test_a_column_that_is_no_number_to_predict_is_refused(finished_run, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        train(finished_run, tmp_path / "model", replace(OPTIONS, **options), lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("CN", "AD")}, "--classes is about classes, and --target age predicts a number"),
        ({"label_column": "group"}, "--label-column group is about classes"),
        ({"reference_class": "CN"}, "--reference-class is about classes"),
        ({"imbalance": "none"}, "--imbalance none is about classes"),
        ({"finetune": "full"}, "--finetune full is about a network"),
        ({"head": "multiscale-attention"}, "ridge regression"),
        ({"epochs": 5}, "--epochs is about"),
        ({"covariates": ("age",)}, "is to be predicted; leave it out there"),
    ],
)
def test_options_about_classes_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TrainOptions(target="age", **options)


# what a run, an evaluation and an explanation make of it


def outcome_of(out_dir: Path, row: ManifestRow, prediction: NumberPrediction | None, qc="pass") -> Completed:
    entities = BidsEntities(subject=row.participant_id[4:], session=row.session_id[4:])
    known = Covariates(age=row.age, sex=row.sex, site=row.site, extra=row.extra)
    return Completed(
        scan=T1wScan(entities=entities, path=out_dir, t1w_path=row.t1w_path, covariates=known),
        qc=QcReport(measures={}, verdict=QcVerdict(status=QcStatus(qc))),
        prediction=prediction,
        preprocessing_id="abc",
    )


@pytest.fixture(scope="module")
def outcomes(trained, finished_run):
    """The first two people, the first of them twice; the last scan has no age."""
    result, _ = trained
    model = load_model(result.model_dir)
    rows = read_manifest(finished_run / "data_manifest.csv")
    chosen = sorted((*rows[:2], rows[24], rows[-1]), key=lambda row: row.t1w_path)
    return [outcome_of(finished_run, row, prediction_of(model, finished_run, row)) for row in chosen]


def test_the_stage_keeps_and_reads_back_a_number(outcomes, tmp_path):
    files = ScanFiles(out_dir=tmp_path, entities=outcomes[0].scan.entities)
    write_json(files.state / "prediction_result.json", asdict(outcomes[0].prediction))
    assert read_prediction(files) == outcomes[0].prediction
    assert decide(outcomes[0]).status is PredictionStatus.REPORTED
    assert decide(outcomes[0]).notes == ("seen_in_training",)
    doubtful = replace(outcomes[0].prediction, ood_score=99.0, above_chance=False, site_unknown=True)
    flagged = decide(replace(outcomes[0], prediction=doubtful))
    assert flagged.flags == ("out_of_distribution", "not_above_chance", "site_unknown")


def context_of(finished_run: Path, result) -> RunContext:
    return RunContext(out_dir=finished_run, config=Config(), model_id=result.model_id, model_number="age")


def test_the_table_has_the_number_in_the_place_of_classes(trained, finished_run, outcomes):
    result, _ = trained
    failed = outcome_of(finished_run, read_manifest(finished_run / "data_manifest.csv")[5], None, qc="fail")
    withheld = replace(failed, prediction=outcomes[0].prediction)
    text = predictions_csv([*outcomes, withheld], context_of(finished_run, result), (), "age")
    first, *others, last = csv.DictReader(text.splitlines())
    assert list(first)[4:9] == [
        "prediction_status",
        "predicted_age",
        "interval_low",
        "interval_high",
        "predicted_age_gap",
    ]
    assert "predicted_label" not in first
    assert set(predictions_dictionary((), "age")) == set(first)
    assert float(first["predicted_age_gap"]) == pytest.approx(
        float(first["predicted_age"]) - float(first["age"]), abs=1e-3
    )
    assert first["member_labels"].startswith("volumes=")
    assert (others[-1]["age"], others[-1]["predicted_age_gap"]) == ("", "")
    assert others[-1]["predicted_age"] != ""
    assert (last["prediction_status"], last["predicted_age"], last["interval_low"]) == ("withheld", "", "")


def test_a_trajectory_has_the_number_and_its_change(outcomes):
    text = trajectories_csv(outcomes, (), "age")
    first, second, *_ = csv.DictReader(text.splitlines())
    assert set(trajectories_dictionary((), "age")) == set(first)
    assert first["change_of_predicted_age"] == ""
    assert float(second["change_of_predicted_age"]) == pytest.approx(
        float(second["predicted_age"]) - float(first["predicted_age"]), abs=1e-3
    )


def test_pages_say_the_number_its_interval_and_what_is_known(trained, finished_run, outcomes):
    result, _ = trained
    run = run_info(context_of(finished_run, result))
    outcome, said = outcomes[0], outcomes[0].prediction
    page = render_scan_report(
        ScanReport(outcome=outcome, prediction_status=PredictionStatus.REPORTED, run=run, methods=())
    )
    assert f"Predicted age {said.value:.3g} years (90 % interval " in page
    assert "); known: 50; gap " in page
    assert "compare gaps only between people of the same age" in page
    cohort = render_cohort(
        [
            CohortScan(outcome=one, prediction_status=status)
            for one, status in zip(
                outcomes, [PredictionStatus.REPORTED] * 3 + [PredictionStatus.WITHHELD], strict=True
            )
        ],
        run,
        directory="x",
    )
    assert "Predicted age</th>" in cohort
    assert cohort.count('class="tight c-interval" data-label="Interval">') == 4
    assert f'data-label="Interval">{said.interval_low:.3g} to {said.interval_high:.3g}</td>' in cohort
    assert 'data-label="Interval"></td>' in cohort  # withheld
    assert "Tier</th>" not in cohort


def test_a_number_is_evaluated_on_people_whom_the_model_never_saw(trained, finished_run, tmp_path):
    result, _ = trained
    generator = np.random.default_rng(9)
    known = [{"age": float(age), "sex": "F", "site": "A"} for age in generator.uniform(52, 78, 12)]
    rows = [add_scan(tmp_path / "out", 40 + n, **about) for n, about in enumerate(known)]
    rows.append(add_scan(tmp_path / "out", 3, **known_of(3)))
    finish(tmp_path / "out", rows)
    said: list[str] = []
    found = evaluate(
        result.model_dir, tmp_path / "out", tmp_path / "result", EvaluateOptions(device="cpu"), said.append
    )
    assert {path.name for path in (tmp_path / "result").iterdir()} == {
        "EVALUATION.md",
        "metrics.json",
        "evaluation_predictions.csv",
        "predicted_and_true.png",
    }
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
    assert metrics["overall"]["scans"] == 12
    assert metrics["left_out"] == {"the model was trained on this scan": 1}
    assert metrics["by_site"]["A"]["scans"] == 12
    assert found.predictor.measures["correlation"].value > 0.6
    assert found.cross_validated.value == pytest.approx(
        json.loads((result.model_dir / "evaluation" / "metrics.json").read_text())["cross_validation"][
            "measures"
        ]["mae"]["value"]
    )
    card = (tmp_path / "result" / "EVALUATION.md").read_text()
    assert "Mean absolute error" in card
    assert "own cross-validation" in card
    # again, over its own result
    evaluate(
        result.model_dir, tmp_path / "out", tmp_path / "result", EvaluateOptions(device="cpu"), said.append
    )
    with pytest.raises(UsageError, match="at least 3 people whose age is known"):
        evaluate(
            result.model_dir, finished_run, tmp_path / "other", EvaluateOptions(device="cpu"), said.append
        )


def test_an_explanation_is_refused_with_words(trained, finished_run):
    result, _ = trained
    with pytest.raises(UsageError, match=r"predicts a number \(age\)"):
        explain(result.model_dir, finished_run, ExplainOptions(device="cpu"), lambda _: None)
