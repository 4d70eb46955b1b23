"""The whole program on whole heads: exact files, resume, failures that cost only their scan."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainstage.pipeline.nifti import read_raw
from brainstage.workflows.cli import main
from brainstage.workflows.synthetic.anatomy import load_anatomy
from brainstage.workflows.synthetic.cohort import Defect, demo_cohort, scan_bytes

pytestmark = pytest.mark.slow

PREPROCESSED = {
    "anat/{key}_desc-preproc_T1w.nii.gz",
    "anat/{key}_desc-preproc_T1w.json",
    "anat/{key}_desc-brain_mask.nii.gz",
    "anat/{key}_desc-brain_mask.json",
    "anat/{key}_space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.nii.gz",
    "anat/{key}_space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.json",
    "anat/{key}_space-MNI152NLin2009aSym_res-2_desc-brain_mask.nii.gz",
    "anat/{key}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5",
    "anat/{key}_desc-qc.json",
}
MEASURED = {
    "anat/{key}_desc-volumes_dseg.nii.gz",
    "anat/{key}_desc-volumes_dseg.json",
    "anat/{key}_desc-volumes_dseg.tsv",
}
"""Where quality control did not fail the scan."""
FIGURES = {
    "imagequality", "background", "mask", "registration", "flicker", "biasfield", "histogram", "montage",
}  # fmt: skip
PREVIEWS = {"native", "nativemask", "registered"}
COHORT = {
    "dataset_description.json", ".bidsignore", "data_manifest.csv", "predictions.csv", "qc.csv", "cohort.html",
    "predictions.json", "qc.json", "volumes.csv", "volumes.json", "methods.md",
}  # fmt: skip


def files_under(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound head, one truncated file, one wrong contrast, as the demonstration cohort has them."""
    root = tmp_path_factory.mktemp("smoke") / "bids"
    cohort, anatomy = demo_cohort(), load_anatomy()
    chosen = [cohort[0]] + [scan for scan in cohort if scan.defect is not Defect.NONE]
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "smoke", "BIDSVersion": "1.10.0"}))
    lines = ["participant_id\tage\tsex\tdiagnosis"]
    for scan in chosen:
        path = root / scan.t1w_path
        path.parent.mkdir(parents=True)
        path.write_bytes(scan_bytes(anatomy, scan))
        lines.append(f"sub-{scan.entities.subject}\t70\tF\t{scan.participant.diagnosis}")
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def finished(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke-out") / "out"
    assert main(["run", str(bids), str(out), "--resolution", "2", "--nprocs", "1"]) == 1
    return out


def keys_of(bids: Path) -> list[str]:
    return sorted(p.name.removesuffix("_T1w.nii") for p in bids.rglob("*_T1w.nii"))


def expected_files(key: str, *, failed_qc: bool = False) -> set[str]:
    entities = dict(part.split("-") for part in key.split("_"))
    subject, session = f"sub-{entities['sub']}", f"ses-{entities['ses']}"
    names, shown = (PREPROCESSED, FIGURES) if failed_qc else (PREPROCESSED | MEASURED, FIGURES | {"volumes"})
    volumes = {f"{subject}/{session}/{name.format(key=key)}" for name in names}
    pictures = {f"{subject}/figures/{key}_desc-{name}_T1w.png" for name in shown}
    pictures |= {f"{subject}/figures/{key}_desc-{name}_T1w.nii.gz" for name in PREVIEWS}
    return volumes | pictures | {f"{key}.html"}


def test_a_run_writes_exactly_the_files_of_the_contract(finished: Path, bids: Path) -> None:
    sound, failed, wrong = keys_of(bids)
    found = {name for name in files_under(finished) if not name.startswith((".brainstage/", "logs/"))}
    # A T2w brain fits the template too badly to tell where its face is, so the air around it is not shown.
    of_wrong = expected_files(wrong, failed_qc=True)
    no_air = {name for name in of_wrong if "_desc-background_" in name}
    assert len(no_air) == 1
    assert found == COHORT | expected_files(sound) | of_wrong - no_air | {f"{failed}.html"}
    logs = [name for name in files_under(finished) if name.startswith("logs/")]
    assert len(logs) == 1
    assert logs[0].endswith(".jsonl")


def test_every_scan_has_its_row_and_the_damaged_one_says_why(finished: Path, bids: Path) -> None:
    rows = rows_of(finished / "predictions.csv")
    assert [row["prediction_status"] for row in rows] == ["no_model", "failed", "no_model"]
    assert [row["qc_status"] for row in rows] == ["pass", "not_assessed", "fail"]
    assert [row["qc_status"] for row in rows_of(finished / "qc.csv")] == [row["qc_status"] for row in rows]
    assert rows[1]["error"].startswith("ingest: the file is truncated")
    assert "wrong_contrast" in rows[2]["qc_reasons"]
    assert {row["report"] for row in rows} == {f"{key}.html" for key in keys_of(bids)}


def test_volumes_say_where_they_are_twice_and_nothing_else(finished: Path) -> None:
    volumes = sorted(finished.rglob("*.nii.gz"))
    assert len(volumes) == 8 + 1 + 2 * len(PREVIEWS)
    for path in volumes:
        image = nib.load(path)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) > 0
        assert np.allclose(image.get_sform(), image.get_qform(), atol=1e-4)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert [bytes(image.header[field]).strip(b"\0") for field in ("descrip", "aux_file", "intent_name")] == [
            b"", b"", b"",
        ]  # fmt: skip
        small = path.name.endswith("mask.nii.gz") or path.parent.name == "figures"
        labels = path.name.endswith("dseg.nii.gz")
        assert image.get_data_dtype() == (np.uint8 if small else np.int16 if labels else np.float32)


def test_every_scan_has_a_row_of_volumes_and_only_the_sound_one_has_numbers(
    finished: Path, bids: Path
) -> None:
    rows = rows_of(finished / "volumes.csv")
    assert [(row["volumes_status"], row["volumes_reasons"]) for row in rows] == [
        ("reported", ""), ("failed", "failed"), ("withheld", "qc_failed"),
    ]  # fmt: skip
    assert 1000 < float(rows[0]["intracranial_ml"]) < 2000
    assert all(2.0 < float(rows[0][f"hippocampus_{side}_ml"]) < 6.0 for side in ("left", "right"))
    assert not any(value for row in rows[1:] for name, value in row.items() if name.endswith(("_ml", "_icv")))


def test_no_output_names_a_folder_of_this_machine(finished: Path, bids: Path) -> None:
    for path in finished.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".html", ".csv", ".md", ".jsonl", ".txt"}:
            text = path.read_text(encoding="utf-8")
            assert str(bids.parent) not in text, path
            assert str(finished) not in text, path


def test_a_second_run_computes_nothing_and_changes_no_volume(
    finished: Path, bids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.suffix in {".gz", ".png", ".h5"}}
    assert main(["run", str(bids), str(finished), "--resolution", "2"]) == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "to compute" not in capsys.readouterr().err


def test_an_output_that_was_altered_by_hand_is_made_again(finished: Path, bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    mask = out / "sub-01/ses-M00/anat/sub-01_ses-M00_desc-brain_mask.nii.gz"
    good = mask.read_bytes()
    mask.write_bytes(good[:-100])
    assert main(["run", str(bids), str(out), "--resolution", "2", "--participant-label", "01"]) == 0
    assert mask.read_bytes() == good


def test_the_report_of_every_scan_stands_alone(finished: Path) -> None:
    for page in finished.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "For research; not a diagnosis" in text
        assert 'src="http' not in text


def test_the_participant_level_writes_no_tables_and_the_group_level_nothing_else(
    finished: Path, bids: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for name in COHORT:
        (out / name).unlink()
    assert main(["run", str(bids), str(out), "participant", "--resolution", "2"]) == 1
    assert not (out / "predictions.csv").exists()
    assert main(["run", str(bids), str(out), "group", "--resolution", "2"]) == 1
    assert files_under(out) >= COHORT


@pytest.mark.shared_data
def test_a_real_head_gives_a_plausible_brain(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "run",
        str(shared_data / "ds000011"),
        str(out),
        "--participant-label",
        "sub-01",
        "--nprocs",
        "1",
    ]
    assert main(arguments) == 0
    (row,) = rows_of(out / "qc.csv")
    assert 1000 < float(row["brain_volume_ml"]) < 1700
    assert float(row["template_correlation"]) > 0.45
    assert row["qc_status"] == "pass"
    (volume,) = out.glob("sub-01/anat/*_res-1_desc-preproc_T1w.nii.gz")
    assert nib.load(volume).shape == (197, 233, 189)


@pytest.mark.shared_data
def test_a_wrong_contrast_from_a_real_scanner_fails_quality_control(
    shared_data: Path, tmp_path: Path
) -> None:
    bids = tmp_path / "bids"
    (bids / "sub-01" / "anat").mkdir(parents=True)
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "t2", "BIDSVersion": "1.10.0"}))
    shutil.copy(
        shared_data / "ds000011/sub-01/anat/sub-01_inplaneT2.nii.gz", bids / "sub-01/anat/sub-01_T1w.nii.gz"
    )
    assert main(["run", str(bids), str(tmp_path / "out"), "--resolution", "2"]) == 0
    (row,) = rows_of(tmp_path / "out" / "qc.csv")
    assert row["qc_status"] == "fail"
    assert "wrong_contrast" in row["qc_reasons"]


@pytest.mark.shared_data
def test_all_stripped_brains_are_recognised(shared_data: Path) -> None:
    from brainstage.pipeline.bids import read_dataset
    from brainstage.pipeline.config import IngestConfig
    from brainstage.preprocessing.brain_extraction import stripped_foreground
    from brainstage.preprocessing.ingest import ingest

    for name, count in (("ds002748_2mm", 48), ("oasis_labelled", 6)):
        scans = read_dataset(shared_data / name).scans
        found = [stripped_foreground(ingest(scan.path, IngestConfig()).head) for scan in scans]
        assert sum(mask is not None for mask in found) == count


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_share_of_the_ventricles_is_that_of_manual_labels(shared_data: Path, tmp_path: Path) -> None:
    source, lateral_ventricles = shared_data / "oasis_labelled", (49, 50, 51, 52)
    people = ["1003", "1023", "1004", "1024", "1119"]
    run = ["run", str(source), str(tmp_path), "--participant-label", *people, "--resolution", "2"]
    assert main(run) == 0
    found = {row["participant_id"]: float(row["ventricle_share"]) for row in rows_of(tmp_path / "qc.csv")}
    drawn = {}
    for name in found:
        (path,) = (source / "derivatives" / "labels" / name / "anat").glob("*_dseg.nii.gz")
        labels = read_raw(path).data
        drawn[name] = 100 * np.isin(labels, lateral_ventricles).sum() / (labels > 0).sum()
        assert found[name] == pytest.approx(drawn[name], rel=0.25)
    assert np.corrcoef(list(found.values()), list(drawn.values()))[0, 1] > 0.99
    # The same people, scanned another day.
    assert found["sub-1023"] == pytest.approx(found["sub-1003"], rel=0.08)
    assert found["sub-1024"] == pytest.approx(found["sub-1004"], rel=0.08)


@pytest.mark.shared_data
def test_no_whole_head_is_taken_for_a_stripped_brain(shared_data: Path) -> None:
    from brainstage.pipeline.config import IngestConfig
    from brainstage.preprocessing.brain_extraction import stripped_foreground
    from brainstage.preprocessing.ingest import ingest

    heads = [*shared_data.glob("ds000011/sub-*/anat/*_T1w.nii.gz"), shared_data / "oddities/head_2mm.nii.gz"]
    assert len(heads) == 7
    assert [stripped_foreground(ingest(path, IngestConfig()).head) for path in heads] == [None] * 7


@pytest.fixture(scope="module")
def trained(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, Path]:
    """Fourteen stripped brains, preprocessed, and a model of their sex."""
    folder = tmp_path_factory.mktemp("trained")
    source = shared_data / "ds002748_2mm"
    labels = [p.name for p in sorted(source.glob("sub-*"))][:14]
    run = ["run", str(source), str(folder / "out"), "--participant-label", *labels]
    assert main([*run, "--resolution", "2"]) == 0
    train = [
        "train",
        str(folder / "out"),
        str(folder / "model"),
        "--label-column",
        "sex",
        "--classes",
        "F",
        "M",
    ]
    assert main([*train, "--weights", "random", "--folds", "3"]) == 0
    return run, folder / "out", folder / "model"


@pytest.mark.shared_data
def test_train_and_predict_on_stripped_brains(trained: tuple[list[str], Path, Path]) -> None:
    run, out, model = trained
    assert main([*run, "--resolution", "2", "--model", str(model)]) == 0
    rows = rows_of(out / "predictions.csv")
    assert len(rows) == 14
    for row in rows:
        assert row["prediction_status"] in {"reported", "flagged", "withheld"}
        if row["prediction_status"] != "withheld":
            assert float(row["p_F"]) + float(row["p_M"]) == pytest.approx(1, abs=1e-4)
            assert "seen_in_training" in row["prediction_reasons"]
            assert "seen_in_training" not in row["qc_reasons"]
            said = dict(part.split("=") for part in row["member_labels"].split(";"))
            assert list(said) == ["volumes", "linear", "network"]
            assert set(said.values()) <= {"F", "M"}
            assert row["label"] in {"F", "M", ""}
    card = (model / "MODEL_CARD.md").read_text()
    assert "Balanced accuracy" in card
    assert "not pretrained" in card


@pytest.mark.shared_data
def test_what_is_predicted_of_a_training_scan_is_what_its_held_out_fold_said(
    trained: tuple[list[str], Path, Path],
) -> None:
    run, out, model = trained
    assert main([*run, "--resolution", "2", "--model", str(model)]) == 0
    held_out = {
        row["participant_id"]: float(row["p_F"]) for row in rows_of(model / "evaluation/oof_predictions.csv")
    }
    shown = {row["participant_id"]: row["p_F"] for row in rows_of(out / "predictions.csv") if row["p_F"]}
    assert len(shown) >= 10
    for participant, probability in shown.items():
        assert float(probability) == pytest.approx(held_out[participant], abs=1e-4), participant


@pytest.mark.shared_data
def test_a_model_with_altered_weights_is_refused_before_any_scan(
    trained: tuple[list[str], Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (command, source, _, *rest), _, model = trained
    copy = shutil.copytree(model, tmp_path / "model")
    weights = copy / "fold-2.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    out = tmp_path / "out"
    assert main([command, source, str(out), *rest, "--resolution", "2", "--model", str(copy)]) == 65
    assert "fold-2.safetensors was altered" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.shared_data
def test_where_nothing_is_left_to_predict_no_torch_is_loaded(trained: tuple[list[str], Path, Path]) -> None:
    run, _, model = trained
    run = [*run, "--resolution", "2", "--model", str(model)]
    assert main(run) == 0
    code = f"""
import sys
from brainstage.workflows.cli import main
done = main({run!r})
print(*(name for name in ('torch', 'monai', 'sklearn') if name in sys.modules))
sys.exit(done)
"""
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "\n"), again.stderr


@pytest.mark.shared_data
def test_predictions_in_batches_are_those_scan_by_scan(
    trained: tuple[list[str], Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out, model = trained
    _, source, _, _, *labels = run
    some = ["--participant-label", *labels[:3], "--resolution", "2", "--model", str(model)]
    assert main([*run, "--resolution", "2", "--model", str(model)]) == 0
    # Where there is a GPU, features are computed batch by batch; without one, the same way on the CPU.
    monkeypatch.setattr("brainstage.workflows.resources._gpu_is_here", lambda _: True)
    copy = shutil.copytree(
        out, tmp_path / "batched"
    )  # of the same preprocessing, which threads alter a little
    for kept in (
        *copy.glob(".brainstage/*/features-*.safetensors"),
        *copy.glob(".brainstage/*/prediction.json"),
    ):
        kept.unlink()
    assert main(["run", source, str(copy), *some]) == 0
    one, batched = (
        [row for row in rows_of(folder / "predictions.csv") if row["participant_id"] in labels[:3]]
        for folder in (out, copy)
    )
    assert len(one) == len(batched) == 3
    for first, second in zip(one, batched, strict=True):
        assert first["predicted_label"] == second["predicted_label"]
        assert float(first["p_F"] or 0) == pytest.approx(float(second["p_F"] or 0), abs=1e-3)
    assert list((tmp_path / "batched" / ".brainstage").glob("*/features-*.safetensors"))


@pytest.mark.shared_data
def test_a_model_refuses_scans_that_were_preprocessed_otherwise(
    trained: tuple[list[str], Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, model = trained
    assert main([*run, "--resolution", "1.5", "--model", str(model)]) == 65
    assert "resolution_mm" in capsys.readouterr().err
