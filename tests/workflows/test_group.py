"""The tables of a run: the columns of the contract, one row for every scan, nothing that is withheld."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.files import write_json
from brainstage.pipeline.records import (
    Completed,
    Covariates,
    Failure,
    Prediction,
    QcReport,
    QcStatus,
    QcVerdict,
    T1wScan,
)
from brainstage.workflows.group import predictions_csv, qc_csv, write_group
from brainstage.workflows.run_context import RunContext

PREDICTION_COLUMNS = """
    participant_id session_id run_id t1w_path prediction_status predicted_label p_CN p_MCI p_AD confidence tier
    prediction_set qc_status qc_reasons prediction_reasons ood_score ood_limit member_labels label age sex site
    model_id preprocessing_id report error
""".split()  # noqa: SIM905 - as the contract writes them
QC_COLUMNS = """
    participant_id session_id run_id t1w_path brain_volume_ml mask_template_dice template_correlation affine_scale
    affine_rotation_deg brain_touches_border cnr snr cjv efc fber inu_range t1w_contrast spacing_mm fov_mm
    skull_stripped_input header_warnings qc_status qc_reasons
""".split()  # noqa: SIM905 - likewise
CLASSES = ("CN", "MCI", "AD")
CLASS_CELLS = (
    "predicted_label",
    "p_CN",
    "p_MCI",
    "p_AD",
    "confidence",
    "tier",
    "prediction_set",
    "member_labels",
)


def scan(subject: str, session: str | None = None, run: str | None = None) -> T1wScan:
    entities = BidsEntities(subject=subject, session=session, run=run)
    return T1wScan(
        entities=entities,
        path=Path("x"),
        t1w_path=f"sub-{subject}/anat/{entities.key}_T1w.nii.gz",
        covariates=Covariates(age=71.5, sex="F", site="A"),
        label="MCI",
    )


def completed(
    which: T1wScan, status=QcStatus.PASS, reasons=(), linear="AD", ood=1.25, model=True
) -> Completed:
    prediction = Prediction(
        probabilities={"CN": 0.1, "MCI": 0.2, "AD": 0.7},
        prediction_set=("MCI", "AD"),
        ood_score=ood,
        ood_threshold=2.0,
        tier="review",
        member_labels={"volumes": "MCI", "linear": linear},
        compared_members=("linear",),
        disagreement_flags=True,
        model_id="model-1",
    )
    measures = {
        "brain_volume_ml": 1234.5678,
        "brain_touches_border": False,
        "cnr": None,
        "spacing_mm": "1 x 1 x 1",
    }
    return Completed(
        scan=which,
        qc=QcReport(measures=measures, verdict=QcVerdict(status=status, reasons=tuple(reasons))),
        prediction=prediction if model else None,
        preprocessing_id="pre-1",
    )


def failed(which: T1wScan) -> Failure:
    return Failure(
        scan=which, stage="ingest", error="ImageError", message='truncated, "half"', preprocessing_id="pre-1"
    )


@pytest.fixture
def context(tmp_path):
    return RunContext(out_dir=tmp_path / "out", config=Config(), model_id="model-1")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_predictions_have_the_columns_of_the_contract(context):
    text = predictions_csv([completed(scan("01"))], context, CLASSES)
    assert text.splitlines()[0].split(",") == PREDICTION_COLUMNS


def test_without_a_model_there_are_no_class_columns(context):
    header = predictions_csv([], context, ()).splitlines()[0].split(",")
    assert header == [name for name in PREDICTION_COLUMNS if not name.startswith("p_")]


def test_qc_has_the_columns_of_the_contract():
    columns = qc_csv([completed(scan("01"))]).splitlines()[0].split(",")
    assert columns[: len(QC_COLUMNS)] == QC_COLUMNS
    assert columns[len(QC_COLUMNS) :] == [
        "upright_margin",
        "missing_tissue_ml",
        "rim_to_grey",
        "clipped_share",
        "white_matter_noise",
        "bright_share",
        "band_misregistration",
        "gradient_entropy",
        "ventricle_share",
    ]


def test_a_measure_on_demand_has_a_column_where_it_was_asked_for():
    one, other = completed(scan("01")), completed(scan("02"))
    measures = dict(one.qc.measures) | {"mask_agreement_dice": 0.95}
    asked = replace(one, qc=replace(one.qc, measures=measures))
    found = rows(qc_csv([asked, other]))
    assert [row["mask_agreement_dice"] for row in found] == ["0.95", ""]
    assert "mask_agreement_dice" not in rows(qc_csv([other]))[0]


def test_a_reported_prediction_says_everything(context):
    [row] = rows(predictions_csv([completed(scan("01", "M00", "1"))], context, CLASSES))
    assert row == {
        "participant_id": "sub-01",
        "session_id": "ses-M00",
        "run_id": "run-1",
        "t1w_path": "sub-01/anat/sub-01_ses-M00_run-1_T1w.nii.gz",
        "prediction_status": "reported",
        "predicted_label": "AD",
        "p_CN": "0.1",
        "p_MCI": "0.2",
        "p_AD": "0.7",
        "confidence": "0.7",
        "tier": "review",
        "prediction_set": "MCI;AD",
        "qc_status": "pass",
        "qc_reasons": "",
        "prediction_reasons": "",
        "ood_score": "1.25",
        "ood_limit": "2",
        "member_labels": "volumes=MCI;linear=AD",
        "label": "MCI",
        "age": "71.5",
        "sex": "F",
        "site": "A",
        "model_id": "model-1",
        "preprocessing_id": "pre-1",
        "report": "sub-01_ses-M00_run-1.html",
        "error": "",
    }


def test_a_withheld_prediction_says_nothing_about_the_class(context):
    outcome = completed(scan("01"), QcStatus.FAIL, ["brain_volume_low"], linear="CN")
    [row] = rows(predictions_csv([outcome], context, CLASSES))
    assert (row["prediction_status"], row["qc_status"]) == ("withheld", "fail")
    assert (row["qc_reasons"], row["prediction_reasons"]) == ("brain_volume_low", "")
    assert (row["ood_score"], row["ood_limit"]) == ("1.25", "2")  # nothing about the class
    assert [row[name] for name in CLASS_CELLS] == [""] * len(CLASS_CELLS)


def test_a_flagged_prediction_says_why(context):
    outcome = completed(scan("01"), QcStatus.WARN, ["cnr_low", "sheared"], linear="CN", ood=3.0)
    [row] = rows(predictions_csv([outcome], context, CLASSES))
    assert row["prediction_status"] == "flagged"
    assert row["qc_reasons"] == "cnr_low;sheared"
    assert row["prediction_reasons"] == "out_of_distribution;members_disagree"
    assert rows(qc_csv([outcome]))[0]["qc_reasons"] == row["qc_reasons"]
    assert row["predicted_label"] == "AD"


def test_a_failed_scan_has_its_row_and_its_reason(context):
    [row] = rows(predictions_csv([failed(scan("01"))], context, CLASSES))
    assert (row["prediction_status"], row["qc_status"]) == ("failed", "not_assessed")
    assert (row["qc_reasons"], row["prediction_reasons"], row["ood_score"]) == ("", "", "")
    assert (row["label"], row["age"]) == ("MCI", "71.5")
    assert row["error"] == 'ingest: truncated, "half"'
    assert row["report"] == "sub-01.html"
    assert [row[name] for name in CLASS_CELLS] == [""] * len(CLASS_CELLS)
    [row] = rows(qc_csv([failed(scan("01"))]))
    assert {name: value for name, value in row.items() if value} == {
        "participant_id": "sub-01",
        "t1w_path": "sub-01/anat/sub-01_T1w.nii.gz",
        "qc_status": "not_assessed",
    }


def test_a_scan_without_model_says_so(context):
    [row] = rows(predictions_csv([completed(scan("01"), model=False)], context, CLASSES))
    assert row["prediction_status"] == "no_model"
    assert [row[name] for name in CLASS_CELLS] == [""] * len(CLASS_CELLS)


def test_measures_are_plain_and_null_is_empty():
    [row] = rows(qc_csv([completed(scan("01"), QcStatus.WARN, ["a", "b"])]))
    assert (row["brain_volume_ml"], row["brain_touches_border"], row["cnr"]) == ("1234.57", "false", "")
    assert (row["spacing_mm"], row["qc_reasons"]) == ("1 x 1 x 1", "a;b")


@pytest.fixture
def written(bids_tree, context):
    """Write the tables of two participants, three scans, one of them failed."""
    root = bids_tree(
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-01/ses-M12/anat/sub-01_ses-M12_T1w.nii.gz",
        "sub-01/ses-M00/anat/sub-01_ses-M00_T1w.nii.gz",
        tables={"participants.tsv": "participant_id\tage\tdiagnosis\nsub-01\t70\tCN\nsub-02\t75\t=cmd()\n"},
    )
    dataset = read_dataset(root)
    outcomes = [
        completed(dataset.scans[0]),
        failed(dataset.scans[1]),
        completed(dataset.scans[2], QcStatus.FAIL),
    ]
    write_json(context.files(dataset.scans[0]).state / "source.json", {"sha256": "a" * 64})
    write_group(dataset, outcomes, context, CLASSES)
    return context.out_dir


def test_exactly_the_files_of_the_contract_are_written(written):
    assert sorted(path.name for path in written.iterdir()) == [
        ".bidsignore",
        ".brainstage",
        "cohort.html",
        "data_manifest.csv",
        "dataset_description.json",
        "methods.md",
        "predictions.csv",
        "predictions.json",
        "qc.csv",
        "qc.json",
        "trajectories.csv",
        "trajectories.json",
        "volumes.csv",
        "volumes.json",
    ]


@pytest.mark.parametrize("name", ["predictions", "qc", "trajectories", "volumes"])
def test_each_table_opens_in_pandas_and_its_dictionary_has_every_column_and_no_other(written, name):
    table = pandas.read_csv(written / f"{name}.csv")
    dictionary = json.loads((written / f"{name}.json").read_text())
    assert set(dictionary) == set(table.columns)
    assert all(content["Description"] for content in dictionary.values())
    for column, content in dictionary.items():
        found = {str(value) for value in table[column].dropna()}
        if "Levels" in content and "Delimiter" not in content:
            assert found <= set(content["Levels"]), column


def test_trajectories_go_when_there_is_nothing_to_say_any_more(written, context, tmp_path):
    found = rows((written / "trajectories.csv").read_text())
    assert [(row["session_id"], row["prediction_status"]) for row in found] == [
        ("ses-M00", "reported"),
        ("ses-M12", "failed"),
        ("", "withheld"),
    ]
    dataset = read_dataset(tmp_path / "bids")
    once = replace(dataset, scans=tuple(scan for scan in dataset.scans if scan.entities.session != "M12"))
    write_group(once, [completed(scan, model=False) for scan in once.scans], context, ())
    assert not (written / "trajectories.csv").exists()
    assert not (written / "trajectories.json").exists()


def test_the_best_of_several_scans_of_a_session_is_marked(context):
    outcomes = [
        completed(scan("01", "M00", "1"), QcStatus.WARN, ["cnr_low"]),
        completed(scan("01", "M00", "2"), linear="CN"),
        completed(scan("01", "M12")),
    ]
    found = rows(predictions_csv(outcomes, context, CLASSES))
    assert [row["qc_reasons"] for row in found] == ["cnr_low", "", ""]
    assert [row["prediction_reasons"] for row in found] == ["", "members_disagree;chosen_of_session", ""]
    assert [row["prediction_status"] for row in found] == ["flagged", "flagged", "reported"]


@pytest.mark.parametrize("name", ["predictions.csv", "qc.csv", "volumes.csv", "data_manifest.csv"])
def test_every_table_has_a_row_for_every_scan_in_order(written, name):
    found = rows((written / name).read_bytes().decode("utf-8"))
    assert [(row["participant_id"], row["session_id"]) for row in found] == [
        ("sub-01", "ses-M00"),
        ("sub-01", "ses-M12"),
        ("sub-02", ""),
    ]


@pytest.mark.parametrize("name", ["predictions.csv", "qc.csv", "volumes.csv", "data_manifest.csv"])
def test_tables_end_their_lines_with_lf(written, name):
    content = (written / name).read_bytes()
    assert b"\r" not in content
    assert content.endswith(b"\n")
    assert not content.startswith(b"\xef\xbb\xbf")


def test_the_manifest_of_a_run_carries_labels_and_known_hashes(written):
    found = rows((written / "data_manifest.csv").read_text())
    assert [row["diagnosis"] for row in found] == ["CN", "CN", "'=cmd()"]
    assert [row["sha256"] for row in found] == ["a" * 64, "", ""]


def test_the_preprocessing_is_kept_beside_its_id(written, context):
    content = json.loads((written / ".brainstage" / "preprocessing.json").read_text())
    assert content["id"] == context.preprocessing_id
    assert content["content"]["bias_field"]["method"] == "fast"


def test_no_table_or_page_names_a_place_on_this_machine(written, tmp_path):
    files = [path for path in written.rglob("*") if path.is_file()]
    assert len(files) > 7
    for path in files:
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
