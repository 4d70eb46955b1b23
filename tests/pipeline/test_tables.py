"""A table that a person wrote: every line is a row or is named, whatever stands in it."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.tables import (
    is_absent,
    number_or_none,
    read_csv,
    read_tsv,
    sex_of,
    years_or_none,
)

KNOWN = ("participant_id", "age", "sex")


def table(tmp_path, text: str | bytes, read=read_tsv):
    path = tmp_path / "participants.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, "table", KNOWN)


def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path):
    found = table(tmp_path, 'participant_id\tnotes\nsub-01\t"moved\nsub-02\tok"\nsub-03\t"ok"\n')
    assert [row.cells["participant_id"] for row in found.rows] == ["sub-01", "sub-02", "sub-03"]
    assert [row.cells["notes"] for row in found.rows] == ['"moved', 'ok"', "ok"]
    assert found.faults == ()


@pytest.mark.parametrize(
    ("cell", "text"),
    [('"a"', "a"), ('"say ""x"""', 'say "x"'), ('"', '"'), ('""', ""), ('"a"b"', '"a"b"'), (" a ", "a")],
)
def test_a_pair_of_quotes_around_a_cell_is_taken_off(tmp_path, cell, text):
    [row] = table(tmp_path, f"participant_id\tnotes\nsub-01\t{cell}\n").rows
    assert row.cells["notes"] == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_known_columns_are_found_in_other_case_and_empty_lines_are_passed_over(tmp_path, end):
    text = end.join(["\ufeff Participant ID\tAGE\tMMSE", "sub-01\t7\t29", "\t\t", "", "sub-02\t8\t30"])
    found = table(tmp_path, text)
    assert found.columns == ("participant_id", "age", "MMSE")
    assert [(row.line, row.cells["age"]) for row in found.rows] == [(2, "7"), (5, "8")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("participant_id\tage\nsub-01\t3\t4\n", "line 2: more cells than columns, 3 instead of 2"),
        ("participant_id\tage\nsub-01  3\n", "line 2: fewer cells than columns, 1 instead of 2"),
        ("participant_id\tAge\tage \nsub-01\t3\t4\n", "line 1: the column age stands 2 times"),
        ("participant_id\t\nsub-01\t4\n", "line 1: column 2 has no name"),
        ("participant_id age\nsub-01 4\n", "line 1 has no tab in it"),
    ],
    ids=["more", "fewer", "twice", "nameless", "blanks"],
)
def test_what_fits_no_row_is_named_with_its_line(tmp_path, text, says):
    assert any(says in fault for fault in table(tmp_path, text).faults)


def test_empty_columns_behind_the_last_are_left_out(tmp_path):
    found = table(tmp_path, "participant_id\tage\t\t\nsub-01\t7\t\t\n")
    assert found.columns == ("participant_id", "age")
    assert found.faults == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"participant_id\tname\nsub-01\t\xff\n", "not UTF-8"),
        ("participant_id\tage\n".encode("utf-16"), "not UTF-8"),
        ("participant_id\tage\n".encode("utf-16-le"), "UTF-16"),
    ],
    ids=["latin1", "utf16", "utf16_unmarked"],
)
def test_what_is_no_text_is_refused(tmp_path, text, says):
    with pytest.raises(ManifestError, match=says):
        table(tmp_path, text)


def test_a_table_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match=r"none\.tsv cannot be read"):
        read_tsv(tmp_path / "none.tsv", "table", KNOWN)


@pytest.mark.parametrize("end", ['sub-02,"ok"\n', "sub-02,ok\n"])
def test_a_quote_that_is_not_closed_in_a_comma_separated_table_is_named(tmp_path, end):
    with pytest.raises(ManifestError, match=r"cannot be read as a table: line 2"):
        table(tmp_path, 'participant_id,notes\nsub-01,"moved\n' + end, read_csv)


def test_rows_between_two_stray_quotes_are_not_swallowed(tmp_path):
    found = table(tmp_path, 'participant_id,notes\nsub-01,"moved\nsub-02,ok\nsub-03,again"\n', read_csv)
    assert found.faults == ("line 2: a cell of notes goes on over other rows; is a quote not closed?",)


def test_a_cell_may_have_several_lines(tmp_path):
    found = table(
        tmp_path, 'participant_id,age,notes\nsub-01,7,"one\ntwo, or\rthree"\nsub-02,8,x\n', read_csv
    )
    assert found.faults == ()
    assert [(row.line, row.cells["notes"]) for row in found.rows] == [(2, "one\ntwo, or\rthree"), (5, "x")]


@pytest.mark.parametrize(
    "text", ["", " n/a ", "NA", "-", ".", "null", "None", "unknown", "#N/A", "<NA>", "NaN", "?"]
)
def test_marks_of_absence(text):
    assert is_absent(text)


@pytest.mark.parametrize("text", ["0", "no", "CN", "none of these", "-1", "n"])
def test_values_are_not_absent(text):
    assert not is_absent(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("71.5", 71.5), ("-3", -3.0), ("70,5", 70.5), ("89+", None), ("n/a", None), ("inf", None), ("nan", None),
        ("", None), ("1_000", None), ("1,000.5", None), ("1,2,3", None),
    ],
)  # fmt: skip
def test_a_cell_is_a_finite_number_or_none(text, value):
    assert number_or_none(text) == value


@pytest.mark.parametrize(
    ("text", "unit", "years"),
    [
        ("71", "year", 71.0), ("71,5", "year", 71.5), ("89+", "year", 89.0), ("90 +", "year", 90.0),
        ("71 years", "year", 71.0), ("071Y", "year", 71.0), ("71 yrs.", "year", 71.0), ("858 months", "year", 71.5),
        ("858M", "year", 71.5), ("858", "month", 71.5), ("71y", "month", 71.0), ("P71Y", "year", 71.0),
        ("old", "year", None), ("-5", "year", None), ("700", "year", None), ("71 parsecs", "year", None),
        ("71", "decade", None), ("60-70", "year", None), ("", "year", None), (">89", "year", None),
    ],
)  # fmt: skip
def test_ages_as_the_field_writes_them(text, unit, years):
    assert years_or_none(text, unit) == (None if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("text", "levels", "sex"),
    [
        ("F", {}, ("F", True)), ("female", {}, ("F", True)), (" Male ", {}, ("M", True)), ("X", {}, ("X", True)),
        ("1", {}, ("1", False)), ("1", {"1": "Male", "2": "Female"}, ("M", True)), ("3", {"1": "M"}, ("3", False)),
    ],
)  # fmt: skip
def test_codes_of_the_sex_mean_what_the_sidecar_says_and_nothing_else(text, levels, sex):
    assert sex_of(text, levels) == sex


CELL = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\t\r\n"), max_size=8)


@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=6))
def test_every_line_is_a_row_or_is_named(tmp_path_factory, rows):
    header = ["participant_id", "one", "two"]
    text = "\n".join("\t".join(cells) for cells in [header, *rows])
    found = table(tmp_path_factory.mktemp("t"), text)
    seen = {row.line for row in found.rows}
    for number, cells in enumerate(rows, 2):
        if not any(cell.strip().replace('""', "") for cell in cells):
            continue
        assert number in seen
        assert (len(cells) != len(header)) == any(f"line {number}:" in fault for fault in found.faults)
    for row in found.rows:
        written = rows[row.line - 2]
        if len(written) == len(header):
            assert [text.strip().strip('"') for text in row.cells.values()] == [
                cell.strip().replace('""', '"').strip('"').strip().strip('"') for cell in written
            ] or any('"' in cell for cell in written)


@pytest.mark.parametrize(
    "cell", ["7" * 100_000 + "!", "7" + " " * 100_000 + "!", "7" * 50_000 + "," + "7" * 50_000 + "!"]
)
def test_a_cell_without_end_is_refused_in_one_pass(cell):
    started = time.process_time()
    assert years_or_none(cell) is None
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("read", [read_tsv, read_csv])
def test_a_table_that_is_a_pipe_or_a_giant_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(InputMissingError, match=r"table pipe\.tsv cannot be read: it is no regular file"):
        read(tmp_path / "pipe.tsv", "table", KNOWN)
    with (tmp_path / "giant.tsv").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(
        InputMissingError, match=r"table giant\.tsv cannot be read: it has 1099511627776 bytes"
    ):
        read(tmp_path / "giant.tsv", "table", KNOWN)
