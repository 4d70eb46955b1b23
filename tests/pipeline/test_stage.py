"""The key of a result, and the marker that says the result is complete."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.files import write_text
from brainstage.pipeline.stage import (
    Marker,
    Stage,
    content_key,
    describe_outputs,
    marker_path,
    outputs_intact,
    read_marker,
    source_sha256,
    write_marker,
)


@pytest.fixture
def files(tmp_path):
    return ScanFiles(out_dir=tmp_path, entities=BidsEntities(subject="01"))


def stage(**changes) -> Stage:
    given = {
        "name": "double",
        "version": "1",
        "parameters": {"factor": 2},
        "reads": (),
        "run": lambda state: state,
        "save": lambda _state, _files: [],
        "load": lambda state, _files: state,
    }
    return Stage(**(given | changes))


@pytest.fixture
def marker(files):
    output = write_text(files.anat / "x.txt", "content")
    return Marker(
        stage="double",
        key="k",
        version="1",
        parameters={"factor": 2},
        inputs={"source": "abc"},
        outputs=describe_outputs([output], files),
        tool_versions={"numpy": "2"},
        seconds=1.5,
        attempt=2,
    )


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [
        ({"name": "triple"}, {"source": "a"}),
        ({"version": "2"}, {"source": "a"}),
        ({"parameters": {"factor": 3}}, {"source": "a"}),
        ({"parameters": {"factor": 2, "weights": "w"}}, {"source": "a"}),
        ({}, {"source": "b"}),
        ({}, {"source": "a", "more": "b"}),
    ],
    ids=["name", "version", "parameter", "weights", "input", "more_inputs"],
)
def test_anything_that_matters_changes_the_key(changes, inputs):
    assert content_key(stage(**changes), inputs) != content_key(stage(), {"source": "a"})


def test_what_does_not_matter_leaves_the_key():
    other = stage(run=lambda state: [state], parameters=dict(reversed([("a", 1), ("b", 2)])))
    same = stage(parameters={"a": 1, "b": 2})
    assert content_key(other, {"x": "1", "y": "2"}) == content_key(same, {"y": "2", "x": "1"})


def test_a_marker_reads_back_as_it_was(files, marker):
    write_marker(files, marker)
    assert read_marker(files, "double") == marker
    assert marker.sha256_by_path == {"sub-01/anat/x.txt": marker.outputs[0].sha256}


def test_a_marker_holds_no_absolute_path(files, marker, tmp_path):
    write_marker(files, marker)
    assert str(tmp_path) not in marker_path(files, "double").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", "{}", '{"format": 99}', '{"format": 1, "stage": "double"}', "[" * 100_000],
    ids=["empty", "torn", "null", "list", "number", "object", "other_format", "incomplete", "deep"],
)
def test_a_marker_that_cannot_be_understood_counts_as_none(files, text):
    write_text(marker_path(files, "double"), text)
    assert read_marker(files, "double") is None


def test_a_marker_with_a_strange_output_counts_as_none(files, marker):
    write_marker(files, marker)
    path = marker_path(files, "double")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outputs": [{"path": "x"}]}))
    assert read_marker(files, "double") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": "2"},
        {"seconds": None},
        {"inputs": ["source"]},
        {"outputs": [{"path": "../../outside", "size": 1, "mtime_ns": 1, "sha256": "a"}]},
        {"outputs": [{"path": "/etc/hostname", "size": 1, "mtime_ns": 1, "sha256": "a"}]},
        {"outputs": [{"path": 3, "size": 1, "mtime_ns": 1, "sha256": "a"}]},
        {"outputs": [{"path": "x", "size": "1", "mtime_ns": 1, "sha256": "a"}]},
        {"later": 1},
    ],
)
def test_a_marker_of_other_types_or_about_files_elsewhere_counts_as_none(files, marker, changes):
    write_marker(files, marker)
    path = marker_path(files, "double")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert read_marker(files, "double") is None


def test_an_output_of_a_name_that_no_file_can_have_is_not_intact(files, marker):
    for name in ("a\0b", "x" * 300):
        altered = replace(marker, outputs=(replace(marker.outputs[0], path=name),))
        assert not outputs_intact(altered, files)


def test_a_folder_of_the_same_size_is_not_intact(files, marker):
    (files.anat / "x.txt").unlink()
    (files.anat / "x.txt").mkdir()
    size = (files.anat / "x.txt").stat().st_size
    assert not outputs_intact(replace(marker, outputs=(replace(marker.outputs[0], size=size),)), files)


def test_no_marker_is_none(files):
    assert read_marker(files, "double") is None


def test_outputs_that_were_not_touched_are_intact(files, marker):
    assert outputs_intact(marker, files)


def test_a_copied_directory_is_intact_although_its_times_differ(files, marker):
    os.utime(files.anat / "x.txt", (1, 1))
    assert outputs_intact(marker, files)


@pytest.mark.parametrize("content", [b"CONTENT", b"longer content", None], ids=["bytes", "size", "gone"])
def test_an_altered_or_absent_output_is_not_intact(files, marker, content):
    path = files.anat / "x.txt"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
        os.utime(path, (1, 1))
    assert not outputs_intact(marker, files)


def test_an_output_that_became_a_folder_is_not_intact(files, marker):
    (files.anat / "x.txt").unlink()
    (files.anat / "x.txt").mkdir()
    assert not outputs_intact(marker, files)


def test_the_source_of_a_stage_is_known_where_all_that_it_builds_on_is_as_it_was(files, marker):
    first = replace(marker, stage="ingest", key="k1", inputs={"source": "abc"})
    second = replace(marker, stage="mask", key="k2", inputs={"stage ingest": "k1", "x.txt": "1"})
    third = replace(marker, stage="figures", key="k3", inputs={"stage mask": "k2", "stage ingest": "k1"})
    for one in (first, second, third):
        assert source_sha256(files, "figures") is None
        write_marker(files, one)
    assert source_sha256(files, "figures") == source_sha256(files, "ingest") == "abc"
    write_marker(files, replace(first, key="k9", inputs={"source": "def"}))
    assert source_sha256(files, "ingest") == "def"
    assert source_sha256(files, "mask") is None
    assert source_sha256(files, "figures") is None
