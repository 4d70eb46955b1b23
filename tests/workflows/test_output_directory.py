"""An output directory belongs to one dataset, keeps every finished scan, and says how each was made."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from brainstage.pipeline.account import Account
from brainstage.pipeline.attempt import count_death
from brainstage.pipeline.bids import Dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import ExitCode, ManifestError, OutputError, UsageError
from brainstage.pipeline.lease import held, is_held
from brainstage.pipeline.records import T1wScan
from brainstage.pipeline.review import read_decisions
from brainstage.workflows import output_directory as module
from brainstage.workflows import participant
from brainstage.workflows.learning.labelled_cohort import OTHER_PREPROCESSING, REVIEW_FAILED, read_cohort
from brainstage.workflows.output_directory import dataset_of, require_ours
from brainstage.workflows.participant import ScanTask
from brainstage.workflows.progress import Progress
from brainstage.workflows.run import RunOptions, run
from brainstage.workflows.run_context import RunContext
from brainstage.workflows.status import read_status

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from stand_in import stand_in_stages

ONE, TWO, THREE = (f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2, 3))
SCANS = [
    T1wScan(entities=BidsEntities(subject=f"0{n}"), path=Path(name), t1w_path=name)
    for n, name in enumerate((ONE, TWO), 1)
]


def done(bids: Path, out: Path, **options) -> tuple[ExitCode, str]:
    said = io.StringIO()
    asked = {"overrides": {}, "processes": 1} | options
    return run(
        RunOptions(bids_dir=bids, out_dir=out, **asked), Progress(said), stand_in_stages
    ), said.getvalue()


def rows(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def bids(bids_tree) -> Path:
    table = "participant_id\tdiagnosis\n01\tCN\n02\tAD\n03\tAD\n"
    return bids_tree(ONE, TWO, THREE, tables={"participants.tsv": table})


@pytest.mark.parametrize("name", ["dataset_description.json", "sub-01.html", "notes.txt"])
def test_a_directory_of_somebody_else_is_refused_and_left_alone(bids, out, name):
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(OutputError, match=rf"something that brainstage did not make \({name}\)"):
        done(bids, out)
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("place", ["sub-01", "code/out", "."])
def test_nothing_is_written_among_the_raw_data(bids, place):
    before = sorted(bids.rglob("*"))
    with pytest.raises(UsageError, match="OUT_DIR"):
        done(bids, bids / place)
    assert sorted(bids.rglob("*")) == before
    assert done(bids, bids / "derivatives" / "brainstage")[0] is ExitCode.DONE


@pytest.mark.parametrize("name", [".git", ".datalad", "lost+found"])
def test_a_directory_with_nothing_of_its_own_in_it_is_taken(out, name):
    (out / name).mkdir(parents=True)
    require_ours(out)


def test_a_copy_of_our_outputs_without_their_state_is_ours(bids, out):
    done(bids, out)
    shutil.rmtree(out / ".brainstage")
    assert done(bids, out)[0] is ExitCode.DONE


def test_another_dataset_is_refused_unless_it_is_meant(bids, out, bids_tree, save_nifti):
    done(bids, out)
    other = bids_tree(folder="other")
    save_nifti(other / ONE, np.ones((2, 2, 2), dtype=np.uint8))
    with pytest.raises(ManifestError, match=r"belongs to the dataset 'toy'.*--accept-dataset"):
        done(other, out)
    assert len(rows(out)) == 3
    code, said = done(other, out, accept_dataset=True)
    assert code is ExitCode.DONE
    assert "2 finished scan(s) of earlier runs are not in the dataset" in said
    assert [row["participant_id"] for row in rows(out)] == ["sub-01", "sub-02", "sub-03"]
    assert [row["diagnosis"] for row in rows(out, "data_manifest.csv")] == ["", "AD", "AD"]


def test_a_dataset_without_a_scan_in_common_is_another_one(bids, out, bids_tree):
    done(bids, out)
    other = bids_tree(
        "sub-09/anat/sub-09_T1w.nii", folder="other", description={"Name": "x", "BIDSVersion": "1"}
    )
    with pytest.raises(ManifestError, match="no scan of it is the same"):
        done(other, out)


def test_a_dataset_that_was_moved_or_described_anew_is_the_same(bids, out, tmp_path):
    done(bids, out)
    moved = tmp_path / "elsewhere" / "bids"
    shutil.copytree(bids, moved)
    assert done(moved, out)[0] is ExitCode.DONE
    (moved / "dataset_description.json").write_text('{"Name": "a better name", "BIDSVersion": "1.10.0"}')
    assert done(moved, out)[0] is ExitCode.DONE
    content = (out / ".brainstage" / "output.json").read_text()
    assert json.loads(content)["dataset"]["name"] == "a better name"
    assert str(tmp_path) not in content


def test_finished_scans_stay_in_the_tables_whatever_is_selected(bids, out):
    done(bids, out)
    (bids / TWO).unlink()
    code, said = done(bids, out, participants=("01",))
    assert code is ExitCode.DONE
    assert [row["participant_id"] for row in rows(out)] == ["sub-01", "sub-02", "sub-03"]
    assert (
        "1 finished scan(s) of earlier runs are not in the dataset or manifest of this one, first sub-02"
        in said
    )


def test_a_file_that_was_replaced_under_its_old_time_is_seen(bids, out):
    done(bids, out)
    before = rows(out, "data_manifest.csv")[0]["sha256"]
    path = bids / ONE
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    done(bids, out)
    assert rows(out, "data_manifest.csv")[0]["sha256"] != before


def test_the_group_level_needs_no_raw_data(bids, out):
    done(bids, out)
    before = rows(out), rows(out, "data_manifest.csv"), (out / "dataset_description.json").read_bytes()
    shutil.rmtree(bids)
    assert done(bids, out, level="group")[0] is ExitCode.DONE
    assert before == (
        rows(out), rows(out, "data_manifest.csv"), (out / "dataset_description.json").read_bytes()
    )  # fmt: skip
    assert "the dataset is not there" in (out / "methods.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"qc_status": "pa', '{"qc_status": "maybe"}'])
def test_a_damaged_measurement_is_a_failed_row_and_stops_nothing(bids, out, text):
    done(bids, out)
    next(out.glob("sub-02/anat/*_desc-qc.json")).write_text(text)
    assert done(bids, out, level="group")[0] is ExitCode.SOME_SCAN_FAILED
    assert [row["prediction_status"] for row in rows(out)] == ["no_model", "failed", "no_model"]
    assert "is damaged; run the participant level again" in rows(out)[1]["error"]
    assert done(bids, out)[0] is ExitCode.DONE


def test_every_row_has_the_preprocessing_of_its_own_scan(bids, out):
    done(bids, out)
    [first] = {row["preprocessing_id"] for row in rows(out)}
    done(bids, out, participants=("01",), overrides={"bias_field": {"method": "none"}})
    ids = [row["preprocessing_id"] for row in rows(out)]
    assert ids[1:] == [first, first]
    assert ids[0] != first
    assert all(name[0] == "p" for name in ids)
    methods = (out / "methods.md").read_text()
    assert f"2 of them were preprocessed otherwise, under the identifier `{first}`" in methods
    assert "`bias_field.method` was `'fast'` instead of `'none'`".replace("'", '"') in methods
    done(bids, out, level="group")
    assert [row["preprocessing_id"] for row in rows(out)] == ids


def test_another_resolution_hides_no_finished_scan(bids, out):
    done(bids, out)
    _, said = done(bids, out, level="group", overrides={"registration": {"resolution_mm": 2.0}})
    assert "has not been processed" not in said
    assert len(rows(out)) == 3


def test_scans_that_were_preprocessed_otherwise_are_not_learnt_from(bids, out):
    done(bids, out)
    done(bids, out, participants=("02",), overrides={"bias_field": {"method": "none"}})
    cohort = read_cohort(out, "diagnosis", None)
    assert cohort.left_out == {OTHER_PREPROCESSING: ("sub-02",)}
    other = rows(out)[1]["preprocessing_id"]
    assert cohort.preprocessing_id == rows(out)[0]["preprocessing_id"] != other
    asked = read_cohort(out, "diagnosis", None, preprocessed=other)
    assert [scan.files.key for scan in asked.scans] == ["sub-02"]


def test_what_is_known_of_a_directory_is_read_back_as_it_was(bids, out):
    done(bids, out)
    kept = dataset_of(out)
    assert kept is not None
    assert [(scan.key, scan.label) for scan in kept.scans] == [
        ("sub-01", "CN"),
        ("sub-02", "AD"),
        ("sub-03", "AD"),
    ]
    (out / ".brainstage" / "scans.json").write_text(
        '{"scans": ["sub-01"], "descriptions": {"sub-01": {"t1w_path": 3}}}'
    )
    assert dataset_of(out) is None


def decisions_of(out: Path, decision: str) -> Path:
    """Write a decision about the picture that the page shows of each scan."""
    page = (out / "cohort.html").read_text()
    shown = re.findall(r'data-path="([^"]+)" data-sha256="([^"]+)" data-preprocessing="([^"]+)"', page)
    lines = ["\t".join([path, decision, *identity]) for path, *identity in shown]
    path = out.parent / "qc_decisions.tsv"
    path.write_text("\n".join(["t1w_path\tdecision\tsha256\tpreprocessing_id", *lines]) + "\n")
    return path


def reviews_of(out: Path) -> list[str]:
    assert [row["qc_reasons"] for row in rows(out)] == [row["qc_reasons"] for row in rows(out, "qc.csv")]
    return [row["qc_reasons"] for row in rows(out)]


def test_a_decision_is_about_the_picture_that_was_looked_at_and_no_other(bids, out, save_nifti):
    done(bids, out)
    decisions = decisions_of(out, "fail")
    assert [line.split("\t")[2] for line in decisions.read_text().splitlines()[1:]] == [
        row["sha256"] for row in rows(out, "data_manifest.csv")
    ]
    _, said = done(bids, out, qc_decisions=decisions)
    assert reviews_of(out) == ["reviewed_fail"] * 3
    assert "decision(s)" not in said
    save_nifti(bids / TWO, np.ones((2, 2, 2), dtype=np.uint8))
    other = {"bias_field": {"method": "none"}}
    done(bids, out, participants=("03",), overrides=other)
    _, said = done(bids, out, participants=("01", "02"), qc_decisions=decisions)
    told = "2 decision(s) are about another picture of the scan than there is now, and are not applied: "
    which = "sub-02 (another file), sub-03 (preprocessed otherwise)"
    assert told + which in said
    assert told + which in (out / "methods.md").read_text()
    assert reviews_of(out) == ["reviewed_fail", "", ""]
    assert [row["qc_status"] for row in rows(out)] == ["fail", "pass", "pass"]
    assert "reviewed_fail" not in (out / "sub-02.html").read_text()
    assert "reviewed_fail" in (out / "sub-01.html").read_text()
    [event] = [
        json.loads(line)
        for path in (out / "logs").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"reviews"' in line and "another" in line
    ]
    assert event["not_applied"] == {"sub-02": "another file"}
    done(bids, out, level="group", qc_decisions=decisions)
    assert reviews_of(out) == ["reviewed_fail", "", ""]


def test_a_decision_by_hand_is_bound_to_the_path_and_said_to_be(bids, out, save_nifti):
    decisions = out.parent / "by_hand.tsv"
    decisions.write_text(f"t1w_path\tdecision\n{ONE}\tfail\n")
    for value in (0, 1):
        save_nifti(bids / ONE, np.full((2, 2, 2), value, dtype=np.uint8))
        _, said = done(bids, out, qc_decisions=decisions)
        assert reviews_of(out) == ["reviewed_fail", "", ""]
        assert "1 decision(s) name no sha256, so they are bound to t1w_path alone" in said
        assert "lies there: sub-01\n" in said


def test_training_takes_no_decision_about_another_picture(bids, out, save_nifti):
    done(bids, out)
    decisions = decisions_of(out, "fail")
    save_nifti(bids / TWO, np.ones((2, 2, 2), dtype=np.uint8))
    done(bids, out)
    cohort = read_cohort(out, "diagnosis", ("CN", "AD"), decisions=read_decisions(decisions))
    assert [scan.files.key for scan in cohort.scans] == ["sub-02"]
    assert cohort.left_out == {REVIEW_FAILED: ("sub-01", "sub-03")}
    [remark] = cohort.remarks
    assert remark.startswith("1 decision(s) are about another picture")
    assert "sub-02 (another file)" in remark


def test_pictures_that_are_not_of_one_piece_are_not_decided_about(bids, out):
    done(bids, out)
    decisions = decisions_of(out, "pass")
    marker = out / ".brainstage" / "sub-01" / "registration.json"
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps(content | {"key": "of a run that was killed after it"}))
    done(bids, out, level="group", qc_decisions=decisions)
    assert reviews_of(out) == ["", "reviewed_pass", "reviewed_pass"]
    assert 'data-sha256=""' in (out / "cohort.html").read_text()


def test_each_directory_has_a_name_of_its_own_and_keeps_it(bids, out):
    done(bids, out)
    first = re.findall('data-directory="([0-9a-f]{16})"', (out / "cohort.html").read_text())
    done(bids, out, participants=("01",))
    assert re.findall('data-directory="([0-9a-f]{16})"', (out / "cohort.html").read_text()) == first
    done(bids, out.parent / "other")
    assert first[0] not in (out.parent / "other" / "cohort.html").read_text()


def test_two_runs_lose_no_name_of_each_other(tmp_path, monkeypatch):
    read = module.read_json_or_empty

    def slowly(path: Path) -> dict[str, object]:
        found = read(path)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(module, "read_json_or_empty", slowly)
    datasets = [
        Dataset(root=tmp_path, description={}, scans=(scan,), account=Account.of_scans((), ""))
        for scan in SCANS
    ]
    notes = [
        partial(module.note_preprocessing, tmp_path, f"p{number}", {"seed": number}) for number in (1, 2)
    ]
    notes += [partial(module.note_dataset, tmp_path, dataset) for dataset in datasets]
    threads = [threading.Thread(target=note) for note in notes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = tmp_path / ".brainstage"
    assert set(read(state / "preprocessings.json")) == {"p1", "p2"}
    assert read(state / "scans.json")["scans"] == ["sub-01", "sub-02"]


def test_a_death_is_counted_while_nobody_else_can_begin_the_scan(tmp_path, monkeypatch):
    task = ScanTask(scan=SCANS[0], context=RunContext(out_dir=tmp_path, config=Config()))
    held = []
    monkeypatch.setattr(
        participant,
        "count_death",
        lambda files: held.append(is_held(participant.lease_path(files))) or count_death(files),
    )
    assert participant.outcome_of_death(task) is None
    assert held == [True]
    assert not is_held(participant.lease_path(task.context.files(task.scan)))


DEEP = "[" * 100_000
DAMAGED = {
    ".brainstage/scans.json": (
        "[]",
        DEEP,
        '{"scans": 5}',
        '{"scans": [5, null, "../../x"], "descriptions": {"a": 1}}',
    ),
    ".brainstage/preprocessings.json": ("[]", DEEP, "5"),
    ".brainstage/output.json": ("[]", DEEP, '{"dataset": 5}', '{"dataset": {"name": ["a"], "place": 5}}'),
    ".brainstage/distributions.json": (DEEP, '{"snr": 5}', '{"snr": {"scans": "six"}}'),
    ".brainstage/sub-02/source.json": (DEEP, "{}", '{"sha256": 5}'),
    ".brainstage/sub-02/report.json": (DEEP, "{}", '{"shown": []}'),
    ".brainstage/sub-02/header_findings.json": (DEEP, '{"shape": 5}'),
    ".brainstage/sub-02/running.json": (DEEP, '{"stage": 5}'),
    ".brainstage/sub-02/registration.json": (DEEP, '{"format": 1}'),
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_no_damaged_file_of_ours_stops_the_tables(finished, name, text):
    bids, out = finished
    (out / name).write_text(text)
    assert done(bids, out, level="group")[0] is ExitCode.DONE
    assert [row["prediction_status"] for row in rows(out)] == ["no_model"] * 3
    assert [row["diagnosis"] for row in rows(out, "data_manifest.csv")] == ["CN", "AD", "AD"]
    assert [len(row["sha256"]) for row in rows(out, "data_manifest.csv")] in ([64, 64, 64], [64, 0, 64])
    assert len(read_status(out)) == 3


@pytest.fixture
def finished(finished_once, tmp_path) -> tuple[Path, Path]:
    """Return a BIDS directory and its finished output, to be altered."""
    shutil.copytree(finished_once, tmp_path / "copy")
    return tmp_path / "copy" / "bids", tmp_path / "copy" / "out"


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory, save_nifti) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for name in (ONE, TWO, THREE):
        save_nifti(folder / "bids" / name, np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    (folder / "bids" / "dataset_description.json").write_text('{"Name": "toy", "BIDSVersion": "1.10.0"}')
    (folder / "bids" / "participants.tsv").write_text("participant_id\tdiagnosis\n01\tCN\n02\tAD\n03\tAD\n")
    done(folder / "bids", folder / "out")
    return folder


def test_preprocessings_that_were_altered_are_left_out(finished):
    bids, out = finished
    path = out / ".brainstage" / "preprocessings.json"
    [identifier] = json.loads(path.read_text())
    path.write_text(json.dumps({identifier: 5}))
    done(bids, out, level="group", overrides={"bias_field": {"method": "none"}})
    assert f"under the identifier `{identifier}`" in (out / "methods.md").read_text()
    assert set(json.loads(path.read_text())) != {identifier}


@pytest.mark.parametrize("altered", ["", "a", "A" * 64, None, 5])
def test_a_hash_that_was_altered_is_computed_again(finished, altered):
    bids, out = finished
    done(bids, out)  # with the times of the copies
    path = out / ".brainstage" / "sub-02" / "source.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"sha256": altered}))
    assert done(bids, out)[0] is ExitCode.DONE
    assert json.loads(path.read_text()) == kept


def test_notes_of_a_process_that_died_when_all_was_done_are_swept(finished):
    bids, out = finished
    done(bids, out)  # with the times of the copies
    state = out / ".brainstage" / "sub-02"
    notes = [
        state / name for name in ("running.json", "deaths.json", "last_words.txt", ".tmp-0123abcd-x.json")
    ]
    for note in notes:
        note.write_text("{}")
    with held(state / "lease.json"):  # by one that may still need them
        done(bids, out)
    assert all(note.exists() for note in notes)
    (state / "lease.json").write_text("{}")
    os.utime(state / "lease.json", (1, 1))
    (state / ".tmp-mine").touch()
    done(bids, out)
    assert not any(note.exists() for note in (*notes, state / "lease.json"))
    assert (state / ".tmp-mine").exists()


def test_a_measurement_that_a_disk_forgot_is_made_again(finished):
    bids, out = finished
    done(bids, out)  # with the times of the copies
    path = next(out.glob("sub-02/anat/*_desc-qc.json"))
    whole, status = path.read_bytes(), path.stat()
    path.write_bytes(whole.replace(b"pass", b"p\xffss"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, said = done(bids, out)
    assert code is ExitCode.DONE
    assert "1 of 3 scans to compute" in said
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["", DEEP, "{}", None])
def test_a_damaged_failure_is_no_success(finished, text):
    bids, out = finished
    path = out / ".brainstage" / "sub-02" / "failure.json"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    assert done(bids, out, level="group")[0] is ExitCode.SOME_SCAN_FAILED
    assert [row["prediction_status"] for row in rows(out)] == ["no_model", "failed", "no_model"]
    assert "failure.json, which says why it failed, is damaged" in rows(out)[1]["error"]
    assert [scan.files.key for scan in read_cohort(out, "diagnosis", None).scans] == ["sub-01", "sub-03"]


def test_names_of_bytes_that_are_no_text_stop_nothing(finished):
    bids, out = finished
    (bids / "sub-01" / "anat" / os.fsdecode(b"sub-01_acq-\xff_T1w.nii")).touch()
    (bids / os.fsdecode(b"sub-\xe9")).mkdir()
    renamed = bids.rename(bids.with_name(os.fsdecode(b"b\xffds")))
    code, said = done(renamed, out)
    assert code is ExitCode.DONE
    assert "1 set aside" in said
    assert r"sub-01_acq-\udcff_T1w.nii" in (out / "methods.md").read_text()
    assert any(r"acq-\udcff" in log.read_text() for log in (out / "logs").glob("*.jsonl"))
