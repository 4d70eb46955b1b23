"""A BIDS directory becomes scans; what does not fit is set aside with a reason, or ends with a sentence."""

from __future__ import annotations

import json
import os

import pytest

from brainstage.pipeline.bids import (
    ScanFilter,
    read_dataset,
    read_filter_file,
)
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import BidsError, ConfigError, InputMissingError

ONE = "sub-01/anat/sub-01_T1w.nii.gz"


def keys(dataset) -> list[str]:
    return [scan.key for scan in dataset.scans]


def test_scans_with_and_without_sessions_are_found_in_order(bids_tree):
    root = bids_tree(
        "sub-02/anat/sub-02_T1w.nii",
        "sub-01/ses-M12/anat/sub-01_ses-M12_T1w.nii.gz",
        "sub-01/ses-M00/anat/sub-01_ses-M00_run-2_T1w.nii.gz",
        "sub-01/ses-M00/anat/sub-01_ses-M00_run-1_T1w.nii.gz",
        "sub-01/ses-M00/anat/sub-01_ses-M00_acq-hires_T1w.nii.gz",
        "sub-01/ses-M00/anat/sub-01_ses-M00_T2w.nii.gz",
    )
    dataset = read_dataset(root)
    assert keys(dataset) == [
        "sub-01_ses-M00_acq-hires",
        "sub-01_ses-M00_run-1",
        "sub-01_ses-M00_run-2",
        "sub-01_ses-M12",
        "sub-02",
    ]
    assert dataset.scans[-1].t1w_path == "sub-02/anat/sub-02_T1w.nii"
    assert dataset.account.set_aside == ()


def test_derivatives_and_hidden_files_are_not_scans(bids_tree):
    root = bids_tree(ONE, "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/._sub-01_T1w.nii.gz")
    assert keys(read_dataset(root)) == ["sub-01"]


def test_tables_describe_scans_and_the_sessions_table_wins(bids_tree):
    root = bids_tree(
        "sub-01/ses-M00/anat/sub-01_ses-M00_T1w.nii.gz",
        "sub-01/ses-M12/anat/sub-01_ses-M12_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        tables={
            "participants.tsv": "participant_id\tage\tsex\tsite\tdiagnosis\tmmse\n"
            "sub-01\t70.5\tF\tA\tCN\t29\nsub-02\tn/a\tn/a\t\tAD\tn/a\n",
            "sub-01/sub-01_sessions.tsv": "session_id\tage\tdiagnosis\tmmse\nses-M12\t71.5\tMCI\tn/a\n",
        },
    )
    dataset = read_dataset(root)
    first, second, third = dataset.scans
    assert (first.covariates.age, first.covariates.sex, first.covariates.site, first.label) == (
        70.5,
        "F",
        "A",
        "CN",
    )
    assert (second.covariates.age, second.covariates.sex, second.label) == (71.5, "F", "MCI")
    assert (third.covariates.age, third.covariates.sex, third.covariates.site) == (None, None, None)
    assert third.label == "AD"
    assert dataset.columns == ("mmse",)
    assert dataset.extra == {
        "sub-01_ses-M00": {"mmse": "29"},
        "sub-01_ses-M12": {"mmse": "29"},
        "sub-02": {"mmse": ""},
    }


def test_every_column_of_a_scan_is_found_by_its_name(bids_tree):
    table = "participant_id\tage\tsex\tmmse\tapoe\nsub-01\t70.50\tF\t29\tn/a\n"
    scan = read_dataset(bids_tree(ONE, tables={"participants.tsv": table})).scans[0]
    names = ("age", "sex", "site", "mmse", "apoe", "unheard_of")
    assert [scan.covariates.value(name) for name in names] == ["70.5", "F", None, "29", None, None]


def test_the_label_column_can_be_another(bids_tree):
    root = bids_tree(ONE, tables={"participants.tsv": "participant_id\tgroup\nsub-01\tpatient\n"})
    assert read_dataset(root, label_column="group").scans[0].label == "patient"
    assert read_dataset(root).scans[0].label is None


def test_a_participants_table_without_the_prefix_is_understood(bids_tree):
    root = bids_tree(ONE, tables={"participants.tsv": "\ufeffparticipant_id\tsex\n01\tM\n"})
    assert read_dataset(root).scans[0].covariates.sex == "M"


def test_a_directory_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match="nowhere does not exist"):
        read_dataset(tmp_path / "nowhere")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "scan.nii").touch()
    with pytest.raises(InputMissingError, match="is a file"):
        read_dataset(tmp_path / "scan.nii")


def test_an_empty_directory_is_no_dataset(tmp_path):
    with pytest.raises(BidsError, match=r"no dataset_description\.json"):
        read_dataset(tmp_path)
    with pytest.raises(BidsError, match=r"no sub-\* directory"):
        read_dataset(tmp_path, validate=False)


def test_a_dataset_without_t1w_is_missing_its_input(bids_tree):
    with pytest.raises(InputMissingError, match=r"no \*_T1w\.nii"):
        read_dataset(bids_tree("sub-01/anat/sub-01_T2w.nii.gz"))


def test_a_derivative_is_refused_unless_validation_is_off(bids_tree):
    root = bids_tree(ONE, description={"Name": "x", "BIDSVersion": "1.8.0", "DatasetType": "derivative"})
    with pytest.raises(BidsError, match="derivative"):
        read_dataset(root)
    assert keys(read_dataset(root, validate=False)) == ["sub-01"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not readable JSON"), ("[]", "must be an object"), ('{"Name": "x"}', "Name and BIDSVersion")],
    ids=["torn", "list", "incomplete"],
)
def test_a_description_that_cannot_be_used_is_refused(bids_tree, text, says):
    root = bids_tree(ONE)
    (root / "dataset_description.json").write_text(text)
    with pytest.raises(BidsError, match=says):
        read_dataset(root)


def test_a_dataset_without_description_can_be_asked_for(bids_tree):
    root = bids_tree(ONE)
    (root / "dataset_description.json").unlink()
    assert keys(read_dataset(root, validate=False)) == ["sub-01"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01/anat/scan_T1w.nii.gz", "not a BIDS name"),
        ("sub-01/anat/sub-01_flip-1_T1w.nii.gz", "'flip' is not allowed"),
        ("sub-01/anat/sub-02_T1w.nii.gz", "belongs into sub-02/anat"),
        ("sub-01/anat/sub-01_ses-M00_T1w.nii.gz", "belongs into sub-01/ses-M00/anat"),
        ("sub-01/ses-M00/anat/sub-01_T1w.nii.gz", "belongs into sub-01/anat"),
        ("sub-01/anat/sub-01_T1w.nii", "the same scan as sub-01/anat/sub-01_T1w.nii"),
        ("sub-01/anat/sub-0=cmd()_T1w.nii", "not letters and digits"),
    ],
    ids=["misnamed", "entity", "subject", "session_in_name", "session_in_folder", "duplicate", "hostile"],
)
def test_what_does_not_fit_is_set_aside_with_a_reason(bids_tree, name, reason):
    dataset = read_dataset(bids_tree(ONE, name))
    assert keys(dataset) == ["sub-01"]
    [(path, why)] = dataset.account.set_aside
    assert path.startswith("sub-01/")
    assert reason in why


def test_a_link_out_of_the_dataset_is_a_fault_of_its_scan(bids_tree, tmp_path):
    root = bids_tree(ONE, "sub-02/anat/sub-02_T1w.nii.gz")
    outside = tmp_path / "secret.nii.gz"
    (root / ONE).rename(outside)
    (root / ONE).symlink_to(outside)
    first, second = read_dataset(root).scans
    assert "leads out of the dataset" in first.fault
    assert second.fault is None


def test_a_subject_folder_that_is_a_link_out_is_a_fault_too(bids_tree):
    elsewhere = bids_tree("sub-02/anat/sub-02_T1w.nii.gz", folder="elsewhere")
    root = bids_tree(ONE)
    (root / "sub-02").symlink_to(elsewhere / "sub-02")
    assert "leads out of the dataset" in read_dataset(root).scans[1].fault


@pytest.mark.parametrize(
    "target", ["../../.git/annex/objects/x", "sub-01_T1w.nii.gz"], ids=["broken", "loop"]
)
def test_a_link_that_leads_nowhere_is_a_fault(bids_tree, target):
    root = bids_tree(ONE)
    (root / ONE).unlink()
    (root / ONE).symlink_to(target)
    assert "git-annex" in read_dataset(root).scans[0].fault


def test_a_link_inside_the_dataset_is_followed(bids_tree):
    root = bids_tree(ONE, "sourcedata/x.nii.gz")
    (root / ONE).unlink()
    (root / ONE).symlink_to("../../sourcedata/x.nii.gz")
    assert read_dataset(root).scans[0].fault is None


SCAN = BidsEntities(subject="01", session="M00", acquisition="mprage")


@pytest.mark.parametrize(
    ("chosen", "selected"),
    [
        (ScanFilter(), True),
        (ScanFilter(participants=("01", "02")), True),
        (ScanFilter(participants=("1",)), False),
        (ScanFilter(sessions=("M00",)), True),
        (ScanFilter(sessions=("M12",)), False),
        (ScanFilter(entities={"acquisition": "mprage"}), True),
        (ScanFilter(entities={"acquisition": ["space", "mprage"]}), True),
        (ScanFilter(entities={"acquisition": None}), False),
        (ScanFilter(entities={"run": None}), True),
        (ScanFilter(entities={"run": 1}), False),
        (ScanFilter(entities={"session": "ses-M00"}), True),
        (ScanFilter(entities={"run": "Query.NONE"}), True),
        (ScanFilter(entities={"acquisition": "Query.NONE"}), False),
        (ScanFilter(entities={"acquisition": "Query.ANY", "run": "Query.OPTIONAL"}), True),
        (ScanFilter(participants=("01",), sessions=("M12",)), False),
    ],
)
def test_a_filter_selects_what_it_says(chosen, selected):
    assert chosen.selects(SCAN) is selected


@pytest.mark.parametrize("text", ['{"T1w": {"run": 1}}', '{"T1W": {"run": 1}, "bold": {"task": "rest"}}'])
def test_a_filter_file_of_another_program_is_understood(tmp_path, text):
    path = tmp_path / "filter.json"
    path.write_text(text)
    chosen = ScanFilter(entities=read_filter_file(path))
    assert chosen.selects(BidsEntities(subject="01", run="01"))
    assert not chosen.selects(BidsEntities(subject="01", run="2"))


def test_a_filter_file_about_other_images_alone_demands_nothing(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text('{"bold": {"task": "rest"}, "T2w": {"run": 1}}')
    assert read_filter_file(path) == {}


def test_a_filter_file_may_use_keys_or_names(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(
        json.dumps({"t1w": {"ses": "M00", "acquisition": ["a", "b"], "run": None, "datatype": "anat"}})
    )
    assert read_filter_file(path) == {"session": "M00", "acquisition": ["a", "b"], "run": None}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, InputMissingError, "cannot be read"),
        ("{", ConfigError, "not valid JSON"),
        ("[]", ConfigError, "must hold an object"),
        ('{"t1w": 3}', ConfigError, "must hold an object"),
        ('{"t1w": {"sesion": "M00"}}', ConfigError, "unknown entity 'sesion'"),
        ('{"session": "M00"}', ConfigError, "it has session"),
        ('{"t1w": {}, "sesion": "M00"}', ConfigError, "'sesion' is no kind of image"),
        ("{}", ConfigError, "it has none"),
        ("[" * 100_000, ConfigError, "nested too deeply"),
        (
            '{"t1w": {"run": ' + "[" * 700 + "]" * 700 + "}}",
            ConfigError,
            "run is .* must be a label, a list of",
        ),
        ('{"t1w": {"run": {"not": 1}}}', ConfigError, "run is .* must be a label, a list of labels, or null"),
        ('{"t1w": {"run": true}}', ConfigError, "run is True; it must be a label"),
    ],
    ids=[
        *("absent", "torn", "list", "number", "misspelt", "no_image", "other_key", "empty"),
        *("deep", "nested", "object", "truth"),
    ],
)
def test_a_filter_file_that_cannot_be_used_is_refused(tmp_path, text, error, says):
    path = tmp_path / "filter.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says):
        read_filter_file(path)


def test_a_table_that_is_a_link_to_nowhere_or_a_pipe_is_not_taken_for_absent(bids_tree):
    root = bids_tree("sub-01/anat/sub-01_T1w.nii.gz")
    (root / "participants.tsv").symlink_to("../annex/nowhere")
    with pytest.raises(InputMissingError, match=r"participants\.tsv cannot be read: .* get it first"):
        read_dataset(root)
    (root / "participants.tsv").unlink()
    os.mkfifo(root / "participants.tsv")
    with pytest.raises(InputMissingError, match=r"participants\.tsv cannot be read: it is no regular file"):
        read_dataset(root)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udcff", None], ids=["torn", "deep", "bytes", "pipe"])
def test_a_damaged_sidecar_of_a_table_is_said(bids_tree, text):
    table = "participant_id\tage\n01\t70\n"
    root = bids_tree("sub-01/anat/sub-01_T1w.nii.gz", tables={"participants.tsv": table})
    if text is None:
        os.mkfifo(root / "participants.json")
    else:
        (root / "participants.json").write_bytes(os.fsencode(text))
    dataset = read_dataset(root)
    assert dataset.scans[0].covariates.age == 70.0
    [remark] = dataset.account.remarks
    assert remark.startswith("not read: participants.json: ")
    assert "ages are taken for years" in remark


def test_a_session_of_thousands_of_digits_stops_nothing(bids_tree):
    digits = "9" * 5000
    table = f"session_id\tdiagnosis\nses-1\tCN\nses-{digits}\tAD\n"
    root = bids_tree(
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", tables={"sub-01/sub-01_sessions.tsv": table}
    )
    dataset = read_dataset(root)
    assert dataset.scans[0].label == "CN"
    assert list(dataset.account.visits_only_in_tables) == [f"sub-01_ses-{digits}"]


def test_a_name_of_bytes_that_are_no_text_is_set_aside(bids_tree):
    root = bids_tree("sub-01/anat/sub-01_T1w.nii.gz")
    (root / "sub-01" / "anat" / os.fsdecode(b"sub-01_acq-\xff_T1w.nii")).touch()
    [(path, reason)] = read_dataset(root).account.set_aside
    assert path == os.fsdecode(b"sub-01/anat/sub-01_acq-\xff_T1w.nii")
    assert "is not letters and digits" in reason
