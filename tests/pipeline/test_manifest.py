"""``data_manifest.csv``: every fault in one error, nothing a spreadsheet would run, nothing lost on the way."""

from __future__ import annotations

import csv
import io

import pytest

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.manifest import (
    COLUMNS,
    LONGEST_CELL,
    ManifestRow,
    apply_manifest,
    csv_text,
    read_manifest,
    rows_of,
    write_manifest,
)

HEADER = ",".join(COLUMNS)
PATH = "sub-01/anat/sub-01_T1w.nii.gz"
ROW = ManifestRow(participant_id="sub-01", session_id="", run_id="", t1w_path=PATH)


def written(tmp_path, text: str | bytes):
    path = tmp_path / "data_manifest.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def with_cell(column: str, value: str) -> str:
    cells = {"participant_id": "sub-01", "t1w_path": PATH} | {column: value}
    return csv_text(COLUMNS, [cells])


def test_a_manifest_is_read_with_its_extra_columns(tmp_path):
    text = f"{HEADER},mmse\n01,M00,2,{PATH},{'a' * 64},70.5,F,A,CN,train,29\n"
    [row] = read_manifest(written(tmp_path, text))
    assert (row.participant_id, row.session_id, row.run_id) == ("sub-01", "ses-M00", "run-2")
    assert (row.sha256, row.age, row.sex, row.site) == ("a" * 64, 70.5, "F", "A")
    assert (row.diagnosis, row.split, row.extra) == ("CN", "train", {"mmse": "29"})
    assert (row.value("age"), row.value("mmse"), row.value("absent")) == ("70.5", "29", None)


def test_only_participant_and_path_are_needed(tmp_path):
    [row] = read_manifest(written(tmp_path, f"\ufeffparticipant_id,t1w_path\nsub-01,{PATH}\n"))
    assert row == ROW


def test_missing_values_are_none(tmp_path):
    text = f"{HEADER}\nsub-01,n/a,,{PATH},n/a,n/a,NA,,n/a,n/a\n"
    assert read_manifest(written(tmp_path, text)) == [ROW]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("participant_id", "", "participant_id '' is not letters and digits"),
        ("participant_id", "sub-0/1", "participant_id 'sub-0/1' is not letters and digits"),
        ("t1w_path", "", "t1w_path '' is not a path inside"),
        ("t1w_path", "/etc/passwd", "t1w_path '/etc/passwd' is not a path inside"),
        ("t1w_path", "sub-01/../../x_T1w.nii", ".* is not a path inside"),
        ("sha256", "abc", "sha256 'abc' is not 64"),
        ("age", "old", "age 'old' is not a number"),
        ("split", "validation", "split 'validation' is not train, test or empty"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, column, value, says):
    with pytest.raises(ManifestError, match=f"line 2: {says}"):
        read_manifest(written(tmp_path, with_cell(column, value)))


def test_all_faults_come_in_one_error(tmp_path):
    text = f"{HEADER}\nsub-01,,,{PATH},x,old,,,,maybe\n\nsub-01,,,{PATH},,,,,,,\n"
    with pytest.raises(ManifestError, match=r"5 fault\(s\)") as caught:
        read_manifest(written(tmp_path, text))
    for part in (
        "line 2: sha256",
        "line 2: age",
        "line 2: split",
        "line 4: more cells",
        "stands already in line 2",
    ):
        assert part in caught.value.message


def test_a_flood_of_faults_is_cut_short(tmp_path):
    text = f"{HEADER}\n" + "".join(f"sub-{n},,,sub-{n}.nii,,old,,,,\n" for n in range(20))
    with pytest.raises(ManifestError, match=r"20 fault\(s\).*and 12 more"):
        read_manifest(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t1w_path\nx\n", "no column participant_id"),
        ("", "no column participant_id, t1w_path"),
        ('"' + "x" * 140_000, "cannot be read as a table"),
        (b"participant_id,t1w_path\n\xff,x\n", "not UTF-8"),
        (f'{HEADER}\nsub-01,"' + "x" * 140_000, "cannot be read as a table"),
    ],
    ids=["column", "empty", "endless_header", "latin1", "endless_quote"],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, says):
    with pytest.raises(ManifestError, match=says):
        read_manifest(written(tmp_path, text))


def test_a_manifest_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match=r"data_manifest\.csv cannot be read"):
        read_manifest(tmp_path / "data_manifest.csv")


@pytest.mark.parametrize("text", ["=cmd()", "+cmd", "-", "@SUM(A1)", "\tx", "-1+1"])
def test_text_that_a_spreadsheet_would_run_is_quoted(text):
    assert csv_text(["a"], [{"a": text}]).splitlines()[1].lstrip('"').startswith("'")


@pytest.mark.parametrize("number", ["-0.53", "+1.5", "-3", "-1e-05"])
def test_a_number_is_not_a_formula(number):
    assert csv_text(["a"], [{"a": number}]) == f"a\n{number}\n"


def test_tables_follow_rfc_4180_with_lf():
    text = csv_text(["a", "b"], [{"a": 'say "x", y', "b": "two\nlines"}, {"a": None, "b": True}])
    assert text == 'a,b\n"say ""x"", y","two\nlines"\n,true\n'


@pytest.mark.parametrize("text", ["a,b", 'a"b', "a\nb", "a\rb", "a\r\nb", "'", " a "])
def test_a_cell_reads_back_as_it_was(text):
    table = csv_text(["a", "b"], [{"a": text, "b": 1}])
    assert list(csv.reader(io.StringIO(table, newline="")))[1] == [text, "1"]


@pytest.mark.parametrize("label", ["-", "+", "=x", "'=x", "''-", "'", "-0.5"])
def test_a_label_survives_quoting(tmp_path, label):
    path = tmp_path / "data_manifest.csv"
    row = ManifestRow(**(vars(ROW) | {"diagnosis": label, "extra": {"-log10": label}}))
    write_manifest(path, [row])
    assert read_manifest(path) == [row]


def test_numbers_are_short_and_plain():
    assert csv_text(["a", "b", "c"], [{"a": 1 / 3, "b": -2.0, "c": 7}]) == "a,b,c\n0.333333,-2,7\n"


def test_a_record_without_a_column_leaves_the_cell_empty():
    assert csv_text(["a", "b"], [{"a": 1}]) == "a,b\n1,\n"


def test_extra_columns_stand_after_the_fixed_ones(tmp_path):
    path = tmp_path / "data_manifest.csv"
    write_manifest(path, [ROW, ManifestRow(**(vars(ROW) | {"t1w_path": "x", "extra": {"mmse": "29"}}))])
    lines = path.read_text().splitlines()
    assert lines[0] == f"{HEADER},mmse"
    assert lines[1] == f"sub-01,,,{PATH},,,,,,,"
    assert lines[2].endswith(",29")


@pytest.fixture
def dataset(bids_tree):
    return read_dataset(
        bids_tree(
            PATH,
            "sub-02/anat/sub-02_T1w.nii",
            tables={
                "participants.tsv": "participant_id\tage\tsex\tdiagnosis\tmmse\n"
                "sub-01\t70\tF\tCN\t29\nsub-02\t80\tM\tAD\t20\n"
            },
        )
    )


def test_a_dataset_has_one_row_a_scan(dataset):
    rows = rows_of(dataset, {"sub-01": "a" * 64})
    assert [(row.participant_id, row.sha256, row.diagnosis) for row in rows] == [
        ("sub-01", "a" * 64, "CN"),
        ("sub-02", None, "AD"),
    ]
    assert rows[0].extra == {"mmse": "29"}


def test_a_manifest_chooses_scans_and_overlays_what_it_knows(dataset):
    row = ManifestRow(**(vars(ROW) | {"age": 71.0, "diagnosis": "MCI", "split": "test", "sha256": "b" * 64}))
    chosen, expected = apply_manifest(dataset, [ManifestRow(**(vars(row) | {"extra": {"apoe": "e4"}}))])
    [scan] = chosen.scans
    assert (scan.covariates.age, scan.covariates.sex, scan.label, scan.split) == (71.0, "F", "MCI", "test")
    assert chosen.extra == {"sub-01": {"mmse": "29", "apoe": "e4"}}
    assert [scan.covariates.value(name) for name in ("age", "mmse", "apoe")] == ["71", "29", "e4"]
    assert chosen.columns == ("mmse", "apoe")
    assert expected == {"sub-01": "b" * 64}


def test_scans_stay_sorted_whatever_the_order_of_the_manifest(dataset):
    rows = rows_of(dataset, {})[::-1]
    assert [scan.key for scan in apply_manifest(dataset, rows)[0].scans] == ["sub-01", "sub-02"]


def test_a_manifest_of_another_dataset_is_refused(dataset):
    row = ManifestRow(**(vars(ROW) | {"t1w_path": "sub-09/anat/sub-09_T1w.nii"}))
    with pytest.raises(ManifestError, match=r"1 file\(s\) .* first sub-09/anat"):
        apply_manifest(dataset, [row])


def test_a_cell_is_never_longer_than_readers_of_tables_allow():
    text = csv_text(["a", "b"], [{"a": "x" * 200_000, "b": "y"}])
    (row,) = csv.DictReader(io.StringIO(text))
    assert len(row["a"]) == LONGEST_CELL
    assert row["a"].endswith("... (200000 characters)")
    assert row["b"] == "y"
