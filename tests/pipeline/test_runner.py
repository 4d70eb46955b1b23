"""The stages of one scan: done once, redone when something changed, and a failure is a result too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import (
    ImageError,
    LeaseLostError,
    OutputError,
    SourceChangedError,
    StorageError,
)
from brainstage.pipeline.files import write_json
from brainstage.pipeline.records import Failure, T1wScan
from brainstage.pipeline.runner import ChainOptions, read_failure, record_failure, run_chain
from brainstage.pipeline.stage import Stage, describe_outputs, marker_path, read_marker, write_marker


class Toy:
    """Three stages over numbers: ``add`` one, ``double`` it, and ``note`` which reads only ``add``."""

    def __init__(self, tmp_path) -> None:
        self.entities = BidsEntities(subject="01")
        self.files = ScanFiles(out_dir=tmp_path, entities=self.entities)
        self.scan = T1wScan(entities=self.entities, path=tmp_path / "scan.nii", t1w_path="scan.nii")
        self.ran: list[str] = []
        self.loaded: list[str] = []
        self.seen: list[tuple[str, str, bool]] = []
        self.parameters = {"add": 1, "double": 2, "note": 0}
        self.raises: dict[str, BaseException] = {}
        self.reads = {"add": (), "double": ("add",), "note": ("add",)}

    def stage(self, name: str) -> Stage:
        def run(state):
            self.ran.append(name)
            if name in self.raises:
                raise self.raises[name]
            before = 0 if isinstance(state, T1wScan) else state
            factor = self.parameters[name]
            return before * factor if name == "double" else before + factor

        def save(state, files):
            return [write_json(files.anat / f"{name}.json", {"value": state})]

        def load(before, files):
            before_value = before if isinstance(before, T1wScan) else before + 0
            assert before_value is not None
            self.loaded.append(name)
            return json.loads((files.anat / f"{name}.json").read_text())["value"]

        return Stage(
            name=name,
            version="1",
            parameters={"by": self.parameters[name]},
            reads=self.reads[name],
            run=run,
            save=save,
            load=load,
        )

    def __call__(self, source="abc", **options):
        self.ran.clear()
        self.loaded.clear()
        self.seen.clear()
        chain = ChainOptions(
            tool_versions={"toy": "1"},
            on_stage=lambda key, stage, _seconds, reused: self.seen.append((key, stage, reused)),
            **options,
        )
        return run_chain([self.stage(name) for name in self.parameters], self.scan, source, self.files, chain)

    def output(self, name: str):
        return self.files.anat / f"{name}.json"


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def test_stages_run_in_order_and_say_so(toy):
    result = toy()
    assert toy.ran == ["add", "double", "note"]
    assert toy.seen == [("sub-01", name, False) for name in toy.ran]
    assert result.changed
    assert result.state() == 2
    assert [entry.stage for entry in result.provenance] == toy.ran
    assert result.provenance[0].input_sha256 == {"source": "abc"}
    assert list(result.provenance[1].input_sha256) == ["stage add", "sub-01/anat/add.json"]


def test_nothing_is_done_twice_and_nothing_is_even_read(toy):
    toy()
    result = toy()
    assert (toy.ran, toy.loaded) == ([], [])
    assert not result.changed
    assert all(entry.reused for entry in result.provenance)
    assert result.state() == 2
    assert toy.loaded == ["add", "double", "note"]


def test_a_state_is_loaded_at_most_once(toy):
    toy()
    result = toy()
    assert (result.state(), result.state()) == (2, 2)
    assert toy.loaded == ["add", "double", "note"]


@pytest.mark.parametrize(
    ("changed", "redone"),
    [("add", ["add", "double", "note"]), ("double", ["double"]), ("note", ["note"])],
)
def test_a_parameter_redoes_its_stage_and_what_depends_on_it(toy, changed, redone):
    toy()
    toy.parameters[changed] += 1
    toy()
    assert toy.ran == redone


def test_another_source_redoes_everything_even_if_the_first_files_are_the_same(toy):
    toy()
    before = toy.output("add").read_bytes()
    toy(source="def")
    assert toy.output("add").read_bytes() == before
    assert toy.ran == ["add", "double", "note"], "what the files leave out may be different"


def test_a_result_that_is_made_again_spares_what_depends_on_it(toy):
    toy()
    toy.output("add").unlink()
    toy()
    assert toy.ran == ["add"], "the same key and the same bytes"


@pytest.mark.parametrize("deed", ["deleted", "altered", "marker_deleted", "marker_torn"])
def test_a_result_that_is_not_what_the_marker_says_is_redone(toy, deed):
    toy()
    if deed == "deleted":
        toy.output("double").unlink()
    elif deed == "altered":
        toy.output("double").write_text('{\n  "value": 9\n}\n')
    elif deed == "marker_deleted":
        marker_path(toy.files, "double").unlink()
    else:
        marker_path(toy.files, "double").write_text("{")
    result = toy()
    assert toy.ran == ["double"]
    assert json.loads(toy.output("double").read_text()) == {"value": 2}
    assert result.state() == 2


def test_attempts_are_counted_as_long_as_the_key_is_the_same(toy):
    toy()
    toy.output("double").unlink()
    assert toy().markers["double"].attempt == 2
    toy.parameters["double"] = 5
    assert toy().markers["double"].attempt == 1


def test_a_stage_can_be_asked_for_again(toy):
    toy()
    toy(redo=frozenset({"note"}))
    assert toy.ran == ["note"]


def test_a_failure_is_a_result_with_scan_and_stage(toy):
    toy.raises["double"] = ImageError("no\ngood")
    result = toy()
    assert isinstance(result, Failure)
    assert (result.stage, result.error, result.message) == ("double", "ImageError", "no good")
    assert not result.defect
    assert [entry.stage for entry in result.provenance] == ["add"]
    assert toy.raises["double"].scan == "sub-01"
    assert read_failure(toy.files, toy.scan) == replace(result, provenance=())


def test_a_failure_is_remembered_and_not_computed_again(toy):
    toy.raises["double"] = ImageError("no good")
    first = toy()
    second = toy()
    assert toy.ran == []
    assert (second.stage, second.message) == (first.stage, first.message)


def test_a_failure_is_computed_again_when_asked_for(toy):
    toy.raises["double"] = ImageError("no good")
    toy()
    toy.raises.clear()
    assert toy(retry_failed=True).state() == 2
    assert toy.ran == ["double", "note"]
    assert read_failure(toy.files, toy.scan) is None
    assert not toy().changed


@pytest.mark.parametrize("changed", ["add", "double"])
def test_a_failure_is_forgotten_when_something_before_it_changes(toy, changed):
    toy.raises["double"] = ImageError("no good")
    toy()
    toy.raises.clear()
    toy.parameters[changed] += 1
    assert not isinstance(toy(), Failure)
    assert read_failure(toy.files, toy.scan) is None


def test_the_unforeseen_is_a_defect_with_its_traceback_in_the_log(toy, tmp_path):
    toy.raises["double"] = ZeroDivisionError("by nothing")
    result = toy()
    assert result.defect
    assert result.error == "ZeroDivisionError"
    assert "defect of brainstage" in result.message
    assert str(tmp_path) not in result.message
    [log] = (tmp_path / "logs").glob("*traceback.txt")
    assert log.name in result.message
    assert "ZeroDivisionError: by nothing" in log.read_text()


@pytest.mark.parametrize("error", [OutputError("denied"), StorageError("full")], ids=["denied", "full"])
def test_what_cannot_be_written_ends_the_run(toy, error):
    toy.raises["double"] = error
    with pytest.raises(type(error), match=str(error)):
        toy()
    assert read_failure(toy.files, toy.scan) is None, "it is no fault of the scan"


def test_an_interrupt_ends_the_run_and_blames_no_scan(toy):
    toy.raises["double"] = KeyboardInterrupt("by hand")
    with pytest.raises(KeyboardInterrupt, match="by hand"):
        toy()
    assert read_failure(toy.files, toy.scan) is None
    toy.raises.clear()
    assert toy().state() == 2
    assert toy.ran == ["double", "note"]


def test_the_marker_comes_last(toy, monkeypatch):
    toy()
    toy.parameters["double"] = 7
    with monkeypatch.context() as patch:
        patch.setattr("brainstage.pipeline.runner.write_marker", _killed)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            toy()
    assert json.loads(toy.output("double").read_text()) == {"value": 7}, "the output was published"
    assert read_marker(toy.files, "double") is None, "and neither the old nor a new marker vouches for it"
    toy.parameters["double"] = 2
    assert toy().state() == 2
    assert toy.ran == ["double"]


def _killed(*_args):
    raise KeyboardInterrupt("killed")


def test_only_the_stages_allowed_are_run(toy):
    first = toy(only=frozenset({"note"}))
    assert isinstance(first, Failure)
    assert (first.stage, toy.ran) == ("add", [])
    assert "has not been run with these options" in first.message
    assert read_failure(toy.files, toy.scan) is None
    toy()
    toy.output("note").unlink()
    assert toy(only=frozenset({"note"})).changed
    assert toy.ran == ["note"]


def test_a_failure_without_key_is_tried_again_in_every_run(toy):
    failure = Failure(scan=toy.scan, stage="worker", error="WorkerLost", message="died")
    record_failure(failure, toy.files)
    assert read_failure(toy.files, toy.scan) == failure
    assert toy().state() == 2
    assert read_failure(toy.files, toy.scan) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", "[" * 100_000],
    ids=["empty", "torn", "null", "list", "object", "deep"],
)
def test_a_failure_that_cannot_be_understood_is_one_until_the_scan_was_tried_again(toy, text):
    path = toy.files.state / "failure.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    failure = read_failure(toy.files, toy.scan)
    assert failure is not None
    assert "failure.json, which says why it failed, is damaged" in failure.message
    assert toy().state() == 2
    assert read_failure(toy.files, toy.scan) is None


def test_nothing_is_published_before_all_is_written(toy):
    toy()
    before = toy.output("add").read_text()
    toy.parameters["add"] += 1
    seen = []

    def look():
        seen.append((toy.output("add").read_text(), marker_path(toy.files, "add").exists()))

    toy(require_lease=look)
    assert seen[0] == (before, True), "until the whole result is there, the earlier one stands"
    assert not list(toy.files.state.glob(".tmp-*"))


def test_who_lost_the_lease_publishes_nothing_and_blames_no_scan(toy):
    def lost():
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        toy(require_lease=lost)
    assert toy.ran == ["add"]
    assert not toy.output("add").exists()
    assert read_marker(toy.files, "add") is None
    assert read_failure(toy.files, toy.scan) is None
    assert not list(toy.files.state.glob(".tmp-*"))


@pytest.mark.parametrize("error", [ImageError("bad"), ZeroDivisionError()])
def test_who_lost_the_lease_publishes_no_failure_either(toy, error):
    def lost():
        raise LeaseLostError("taken over")

    toy.raises["add"] = error
    with pytest.raises(LeaseLostError):
        toy(require_lease=lost)
    assert read_failure(toy.files, toy.scan) is None


def test_an_output_that_a_stage_no_longer_writes_is_removed(toy):
    toy()
    stray = toy.output("stray")
    stray.write_text("{}")
    marker = read_marker(toy.files, "note")
    assert marker is not None
    write_marker(toy.files, replace(marker, outputs=(*marker.outputs, *describe_outputs([stray], toy.files))))
    toy.parameters["note"] += 1
    toy()
    assert not stray.exists()
    assert toy.output("note").exists()


def test_a_file_that_changed_meanwhile_is_tried_again_without_being_asked(toy):
    toy.raises["add"] = SourceChangedError("scan.nii holds other bytes")
    assert isinstance(toy(), Failure)
    toy.raises.clear()
    assert not isinstance(toy(), Failure)


def test_memory_that_is_not_there_is_a_failure_with_a_remedy(toy):
    toy.raises["double"] = MemoryError()
    failure = toy()
    assert isinstance(failure, Failure)
    assert not failure.defect
    assert "double stage needs more memory than there is" in failure.message
    assert "--nprocs" in failure.message


def test_a_traceback_names_no_folder_of_this_machine(toy, tmp_path):
    toy.raises["double"] = ZeroDivisionError(f"cannot read {tmp_path}/scan.nii")
    failure = toy()
    [log] = (tmp_path / "logs").iterdir()
    text = log.read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert 'runner.py", line ' in text
    assert "ZeroDivisionError: cannot read .../scan.nii" in text
    assert failure.defect
