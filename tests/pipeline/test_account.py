"""Every participant, file and label of a dataset is counted once: matched, in one place only, or refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from brainstage.pipeline.account import account_lines, likely_reasons
from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.errors import InputMissingError, ManifestError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import tables

ONE, TWO = "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"


def lines_of(root, **options) -> str:
    dataset = read_dataset(root, **options)
    return "\n".join(account_lines(dataset.account, dataset.scans))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("1", "sub-01 differs by zero padding"),
        ("sub-1", "sub-01 differs by zero padding"),
        ("001", "sub-01 differs by zero padding"),
        ("sub-S01", "sub-01 differs by the prefix"),
        ("S_01", "sub-01 differs by the prefix"),
        ("0 1", "sub-01 differs by characters that are neither letters nor digits"),
        ("77", ""),
    ],
)
def test_a_row_that_belongs_to_no_scan_is_named_with_the_likely_reason(bids_tree, written, reason):
    root = bids_tree(ONE, tables={"participants.tsv": f"participant_id\tdiagnosis\n{written}\tCN\n"})
    dataset = read_dataset(root)
    assert list(dataset.account.only_in_tables.values()) == [reason]
    assert list(dataset.account.only_in_folders) == ["01"]
    assert "1 in folders, 1 in tables, 0 in both" in lines_of(root)
    assert dataset.scans[0].label is None


def test_case_is_named_too():
    assert likely_reasons(["SUB-01", "AB1"], ["ab1"]) == {
        "AB1": "sub-ab1 differs by upper and lower case",
        "SUB-01": "",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-02/anat/sub-02_T1w.NII.GZ", "the extension .NII.GZ is not in lower case"),
        ("sub-02/anat/sub-02_t1w.nii.gz", "the suffix is written t1w, not T1w"),
        ("sub-02/anat/sub-02_T1w_defaced.nii.gz", "defaced stands behind T1w"),
        ("sub-02/anat/sub-02_UNIT1.nii.gz", "UNIT1, the uniform image of MP2RAGE"),
        ("sub-02/anat/sub-02_T1w.mgz", ".mgz is not NIfTI"),
        ("sub-02/anat/sub-02_T1w.hdr", ".hdr is not NIfTI"),
        ("sub-02/anat/sub-02_T1.nii.gz", "the suffix is T1, not T1w"),
        ("sub-02/anat/sub-02_MPRAGE.nii.gz", "the suffix is MPRAGE, not T1w"),
        ("sub-02/sub-02_T1w.nii.gz", "it does not lie in anat/"),
        ("sub-02/ses-1/sub-02_ses-1_T1w.nii.gz", "it does not lie in anat/"),
        ("sub-02/anat/sub-02_T2w.nii.gz", "no file in anat/ ends with _T1w.nii or _T1w.nii.gz"),
        ("sub-02/func/sub-02_task-rest_bold.nii.gz", "there is no anat/, only func"),
        ("sub-02/anat/sub-02_flip-1_T1w.nii.gz", "entity 'flip' is not allowed"),
        ("sub-02/anat/sub-03_T1w.nii.gz", "the name belongs into sub-03/anat"),
    ],
)
def test_a_participant_without_a_scan_says_why(bids_tree, name, reason):
    account = read_dataset(bids_tree(ONE, name)).account
    assert list(account.without_scan) == ["sub-02"]
    assert reason in account.without_scan["sub-02"]


def test_files_beside_a_scan_that_look_like_one_are_named(bids_tree):
    root = bids_tree(ONE, "sub-01/anat/sub-01_T1w_defaced.nii.gz", "Sub-2/x.nii")
    (root / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    account = read_dataset(root).account
    assert account.without_scan == {}
    assert account.not_recognised == (
        ("Sub-2/", "a participant's folder begins with sub-"),
        ("sub-01/anat/sub-01_T1w_defaced.nii.gz", "defaced stands behind T1w"),
    )


def test_a_folder_that_leads_nowhere_or_is_empty_is_no_less_a_participant(bids_tree):
    root = bids_tree(ONE)
    (root / "sub-02").symlink_to("/nonexistent")
    (root / "sub-03").mkdir()
    assert read_dataset(root).account.without_scan == {
        "sub-02": "its folder is a link that leads nowhere",
        "sub-03": "there is no anat/",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("closed", ["sub-02", "sub-02/anat"])
def test_a_folder_that_may_not_be_read_costs_its_participant_alone(bids_tree, closed):
    root = bids_tree(ONE, TWO)
    (root / closed).chmod(0)
    try:
        account = read_dataset(root).account
    finally:
        (root / closed).chmod(0o755)
    assert "the folder may not be read" in account.without_scan["sub-02"]


@pytest.mark.parametrize("closed", ["sub-02/anat", "bids"])
def test_folders_that_cannot_be_listed(bids_tree, monkeypatch, closed):
    root = bids_tree(ONE, TWO)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("brainstage.pipeline.t1w_files.os.scandir", refusing)
    if closed == root.name:
        with pytest.raises(InputMissingError, match="cannot be read: Permission denied"):
            read_dataset(root)
    else:
        assert read_dataset(root).account.without_scan == {"sub-02": "anat: the folder may not be read"}


def test_labels_and_what_was_not_understood_are_counted(bids_tree):
    table = "participant_id\tage\tsex\tdiagnosis\n01\told\t1\tCN\n02\t89+\tFemale\t-\n"
    root = bids_tree(ONE, TWO, tables={"participants.tsv": table})
    said = lines_of(root)
    assert "diagnosis of the scans: 1 CN, 1 unknown" in said
    assert "age not understood, and is unknown: 1 ('old' of sub-01)" in said
    assert "sex not understood, and stays as written: 1 ('1' of sub-01)" in said
    first, second = read_dataset(root).scans
    assert (first.covariates.age, first.covariates.sex) == (None, "1")
    assert (second.covariates.age, second.covariates.sex, second.label) == (89.0, "F", None)


def test_the_sidecar_says_what_codes_and_units_mean(bids_tree):
    root = bids_tree(ONE, tables={"participants.tsv": "participant_id\tage\tsex\n01\t858\t2\n"})
    sidecar = {"age": {"Units": "months"}, "sex": {"Levels": {"1": "male", "2": {"Description": "female"}}}}
    (root / "participants.json").write_text(json.dumps(sidecar))
    [scan] = read_dataset(root).scans
    assert (scan.covariates.age, scan.covariates.sex) == (71.5, "F")


def test_columns_that_name_the_scan_are_not_taken_over(bids_tree):
    table = "participant_id\tsession_id\tsplit\tt1w_path\tmmse\n01\tses-9\tvalidation\tx\t29\n"
    root = bids_tree(ONE, tables={"participants.tsv": table})
    dataset = read_dataset(root)
    assert dataset.columns == ("mmse",)
    assert "the column(s) session_id, t1w_path, split are not taken over" in lines_of(root)


VISITS = tuple(f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in ("M00", "M06", "M12"))


def ages(root) -> list[float | None]:
    return [scan.covariates.age for scan in read_dataset(root).scans]


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        (None, [70.0, 70.0, 70.0]),
        ("ses-M00\t70.1\nses-M06\t70.5\nses-M12\tn/a\n", [70.1, 70.5, None]),
        ("ses-M06\t70.5\n", [70.0, 70.5, None]),
        ("ses-M00\tn/a\nses-M06\t70.5\n", [None, 70.5, None]),
        ("ses-M00\tn/a\nses-M06\t-\nses-M12\t\n", [70.0, 70.0, 70.0]),
    ],
)
def test_the_age_of_a_visit_is_its_own_or_unknown_where_others_have_theirs(bids_tree, sessions, expected):
    tables = {"participants.tsv": "participant_id\tage\nsub-01\t70\n"}
    if sessions:
        tables["sub-01/sub-01_sessions.tsv"] = "session_id\tage\n" + sessions
    assert ages(bids_tree(*VISITS, tables=tables)) == expected


def test_rows_of_visits_in_the_table_of_participants(bids_tree):
    table = "participant_id\tsession_id\tage\tdiagnosis\nsub-01\tM00\t70\tCN\nsub-01\tses-M06\t70.5\tMCI\n"
    root = bids_tree(*VISITS, tables={"participants.tsv": table})
    found = [(scan.covariates.age, scan.label) for scan in read_dataset(root).scans]
    assert found == [(70.0, "CN"), (70.5, "MCI"), (None, None)]
    assert "its column session_id says of which" in lines_of(root)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("participant_id\tage\n01\t3\nsub-01\t4\n", r"line 3: sub-01 stands twice; .*sub-01_sessions\.tsv"),
        ("participant_id\tsession_id\n01\t1\n01\tses-1\n", "line 3: sub-01_ses-1 stands twice"),
        ("participant_id\tage\n\t3\n", "line 2: no participant_id"),
        ("participant_id\tage\nn/a\t3\n", "line 2: no participant_id"),
        ("subject\tage\n01\t3\n", "has no column participant_id; it has subject, age"),
        ("participant_id age\nsub-01 3\n", "line 1 has no tab in it"),
        ("", "it is empty"),
    ],
)
def test_a_table_that_cannot_be_believed_is_refused(bids_tree, table, says):
    root = bids_tree(ONE, tables={"participants.tsv": table})
    with pytest.raises(ManifestError, match=says):
        read_dataset(root)
    assert "not read: table participants.tsv" in lines_of(root, strict_tables=False)


@pytest.mark.parametrize("table", ["session_id\tage\nses-M00\n", "session\tage\nses-M00\t7\n", b"\xff"])
def test_a_sessions_table_that_cannot_be_believed_costs_its_participant_alone(bids_tree, table):
    root = bids_tree(*VISITS[:1], TWO, tables={"participants.tsv": "participant_id\tage\n01\t70\n02\t71\n"})
    (root / "sub-01/sub-01_sessions.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    first, second = read_dataset(root).scans
    assert "table sub-01_sessions.tsv" in (first.fault or "")
    assert (second.fault, second.covariates.age) == (None, 71.0)
    assert "not read: table sub-01_sessions.tsv" in lines_of(root)
    assert read_dataset(root, strict_tables=False).scans[0].fault is None


def test_sessions_in_tables_only_are_named(bids_tree):
    tables = {"sub-01/sub-01_sessions.tsv": "session_id\tage\nses-M0\t70\nses-M06\t71\n"}
    account = read_dataset(bids_tree(*VISITS[:2], tables=tables)).account
    assert account.visits_only_in_tables == {"sub-01_ses-M0": "ses-M00 differs by zero padding"}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=tables.datasets())
def test_no_row_or_participant_of_a_table_is_lost_or_altered(tmp_path_factory, made):
    assert tables.judged(made, tmp_path_factory.mktemp("t") / "bids")


def _pipe(path):
    os.mkfifo(path)


def _link_out(path):
    outside = next(place for place in path.parents if place.name == "bids").parent / "elsewhere.tsv"
    outside.write_text("participant_id\tage\nsub-01\t70\n")
    path.symlink_to(outside)


def _link_to_nothing(path):
    path.symlink_to(path.parent / ".git" / "annex" / "objects" / "gone")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_pipe, "no regular file"),
        (_link_out, "leads out of the dataset"),
        (_link_to_nothing, "get it first"),
        (Path.mkdir, "no regular file"),
    ],
)
@pytest.mark.parametrize("name", ["participants.tsv", "sub-01/sub-01_sessions.tsv"])
def test_a_table_that_cannot_be_read_is_not_taken_for_absent(bids_tree, name, make, why):
    root = bids_tree("sub-01/ses-M00/anat/sub-01_ses-M00_T1w.nii.gz")
    make(root / name)
    if name == "participants.tsv":
        with pytest.raises(InputMissingError, match=why):
            read_dataset(root)
    else:
        (scan,) = read_dataset(root).scans
        assert why in scan.fault


def test_a_description_of_columns_that_is_a_pipe_is_not_waited_for(bids_tree):
    root = bids_tree(
        "sub-01/anat/sub-01_T1w.nii.gz", tables={"participants.tsv": "participant_id\tage\nsub-01\t70\n"}
    )
    os.mkfifo(root / "participants.json")
    assert read_dataset(root).scans[0].covariates.age == 70
