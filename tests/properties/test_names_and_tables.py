"""Laws of names and tables: what is written reads back the same, whatever it is."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from brainstage.pipeline.entities import (
    ENTITY_KEYS,
    BidsEntities,
    entities_of,
    format_entities,
    parse_name,
    validate_name,
)
from brainstage.pipeline.manifest import ManifestRow, csv_text, read_manifest, write_manifest

LABELS = st.text("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=12)
ENTITIES = st.builds(
    BidsEntities, subject=LABELS, **{name: st.none() | LABELS for name in ENTITY_KEYS if name != "subject"}
)
# A table strips its cells, and these words mean that the value is unknown.
CELLS = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda text: text not in {"", "n/a", "N/A", "NA", "nan", "NaN"})
)
COLUMN_NAMES = st.from_regex(r"[a-z_=+@-][a-z0-9_]{2,8}", fullmatch=True).filter(
    lambda name: name not in {field.name for field in fields(ManifestRow)}
)


@given(entities=ENTITIES, extension=st.sampled_from([".nii", ".nii.gz"]))
def test_a_name_reads_back_as_its_entities(entities, extension):
    parsed = parse_name(f"{format_entities(entities)}_T1w{extension}")
    assert parsed is not None
    assert validate_name(parsed) == []
    assert entities_of(parsed) == entities
    assert (parsed.suffix, parsed.extension) == ("T1w", extension)


@given(first=ENTITIES, second=ENTITIES)
def test_two_scans_never_share_a_key(first, second):
    assert (first.key == second.key) == (first == second)


@given(entities=ENTITIES)
def test_every_scan_can_be_sorted_among_others(entities):
    least = BidsEntities(subject="0")
    assert min([entities, least], key=lambda e: e.sort_key).sort_key <= entities.sort_key


@given(name=st.text(max_size=40))
def test_no_text_makes_parsing_or_judging_fail(name):
    for candidate in (name, f"sub-{name}_T1w.nii.gz", f"sub-01_{name}_T1w.nii"):
        parsed = parse_name(candidate)
        if parsed is not None and validate_name(parsed) == []:
            assert f"{entities_of(parsed).key}_{parsed.suffix}{parsed.extension}" == candidate


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4
    )
)
def test_a_table_has_the_shape_it_was_given(rows):
    read = list(csv.reader(io.StringIO(csv_text("abc", rows), newline="")))
    assert [len(row) for row in read] == [3] * (len(rows) + 1)


@st.composite
def manifests(draw):
    columns = draw(st.lists(COLUMN_NAMES, unique=True, max_size=3))
    rows = []
    for entities in draw(st.lists(ENTITIES, unique=True, max_size=5)):
        row = ManifestRow(
            participant_id=f"sub-{entities.subject}",
            session_id=f"ses-{entities.session}" if entities.session else "",
            run_id=f"run-{entities.run}" if entities.run else "",
            t1w_path=f"sub-{entities.subject}/anat/{entities.key}_T1w.nii.gz",
            sha256=draw(st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
            age=draw(st.none() | st.integers(0, 12000).map(lambda n: n / 100)),
            sex=draw(st.none() | CELLS),
            site=draw(st.none() | CELLS),
            diagnosis=draw(st.none() | CELLS),
            split=draw(st.sampled_from(["", "train", "test"])),
            extra={name: draw(st.just("") | CELLS) for name in columns},
        )
        rows.append(row)
    return rows


@given(rows=manifests())
def test_a_manifest_reads_back_as_it_was_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "data_manifest.csv"
    write_manifest(path, rows)
    assert read_manifest(path) == rows
    text = path.read_bytes()
    write_manifest(path, read_manifest(path))
    assert path.read_bytes() == text


@given(text=st.text("=+-@\t'1ae \r", min_size=1, max_size=6))
def test_no_cell_is_a_formula(text):
    [cell] = list(csv.reader(io.StringIO(csv_text("a", [{"a": text}]), newline="")))[1]
    assert not cell.startswith(("=", "@", "\t", "\r")) or cell == ""
    if cell.startswith(("+", "-")):
        assert float(cell) == float(text)
