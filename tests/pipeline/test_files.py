"""A reader sees the old file or the new one, never a half, and nothing unfinished stays behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from brainstage.pipeline.errors import InputMissingError, OutputError, StorageError
from brainstage.pipeline.files import (
    TEMPORARY_PREFIX,
    publish,
    read_json,
    read_regular,
    remove_leftovers,
    sha256_of_bytes,
    sha256_of_file,
    sha256_of_json,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_text(tmp_path / "a" / "b" / "x.txt", "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert names(path.parent) == ["x.txt"]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "long old content")
    write_text(path, "new")
    assert path.read_text() == "new"


def test_the_temporary_file_has_the_ending_of_the_final_one(tmp_path):
    seen = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_bytes(b"x")

    publish(tmp_path / "x.nii.gz", write)
    assert seen[0].parent == tmp_path
    assert seen[0].name.startswith(TEMPORARY_PREFIX)
    assert seen[0].name.endswith("-x.nii.gz")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=["error", "interrupt"])
def test_a_write_that_raises_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = write_text(tmp_path / "x.txt", "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        publish(path, write)
    assert names(tmp_path) == ["x.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_a_storage_error_that_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = write_text(tmp_path / "x.txt", "old")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail_with(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"cannot write x\.txt: No space left") as caught:
        write_text(path, "new")
    assert caught.value.exit_code == 74
    assert names(tmp_path) == ["x.txt"]
    assert path.read_text() == "old"


def test_a_refused_write_is_an_output_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", fail_with(errno.EACCES))
    with pytest.raises(OutputError, match=r"cannot create x\.txt: Permission denied") as caught:
        write_text(tmp_path / "x.txt", "new")
    assert caught.value.exit_code == 73
    assert names(tmp_path) == []


def test_a_folder_under_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot create x\.txt") as caught:
        write_text(tmp_path / "file" / "folder" / "x.txt", "new")
    assert caught.value.exit_code == 73


def test_a_read_only_file_system_is_an_output_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", fail_with(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", fail_with(errno.EROFS))
    with pytest.raises(OutputError, match=r"cannot create x\.txt: Read-only file system"):
        write_bytes(tmp_path / "x.txt", b"new")


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_text(tmp_path / "x.txt", "new")
    assert order == ["fsync", "replace"]


def test_json_has_no_word_for_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_json_is_readable(tmp_path):
    assert write_json(tmp_path / "x.json", {"b": "ä", "a": [1]}).read_text(encoding="utf-8") == (
        '{\n  "b": "ä",\n  "a": [\n    1\n  ]\n}\n'
    )


def test_hashes_are_sha256(tmp_path):
    expected = hashlib.sha256(b"x" * 100_000).hexdigest()
    assert sha256_of_file(write_bytes(tmp_path / "x", b"x" * 100_000)) == expected
    assert sha256_of_bytes(b"x" * 100_000) == expected


def test_the_hash_of_json_does_not_depend_on_order():
    assert sha256_of_json({"a": 1, "b": (2, 3)}) == sha256_of_json({"b": [2, 3], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 1.5})


def test_a_file_that_cannot_be_hashed_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match=r"cannot read x\.nii: No such file"):
        sha256_of_file(tmp_path / "x.nii")


def test_only_old_leftovers_are_removed(tmp_path):
    folder = tmp_path / "sub-01"
    folder.mkdir()
    old, young, kept = (
        folder / ".tmp-aaaaaaaa-x.nii.gz",
        folder / ".tmp-bbbbbbbb-x.nii.gz",
        folder / "x.nii.gz",
    )
    for path in (old, young, kept):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(kept, (1, 1))
    (folder / ".tmp-cccccccc-").mkdir()
    (folder / ".tmp-cccccccc-" / "half.nii.gz").touch()
    os.utime(folder / ".tmp-cccccccc-", (1, 1))
    assert remove_leftovers(tmp_path) == 0, "folders below are for whoever holds their lease"
    assert remove_leftovers(folder) == 2
    assert names(folder) == [".tmp-bbbbbbbb-x.nii.gz", "x.nii.gz"]


@pytest.mark.parametrize("name", [".tmp-my-thesis", ".tmp-", ".tmp-cafe-notes", ".tmp-0123456789-x"])
def test_what_somebody_else_calls_unfinished_is_left(tmp_path, name):
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (1, 1))
    assert remove_leftovers(tmp_path) == 0
    assert (tmp_path / name).is_dir()


def test_age_is_taken_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    (tmp_path / ".tmp-aaaaaaaa-x").touch()
    monkeypatch.setattr(
        "brainstage.pipeline.files.time.time", lambda: 4e9
    )  # this machine's clock is decades ahead
    assert remove_leftovers(tmp_path) == 0


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.nii.gz")
    with pytest.raises(InputMissingError, match=r"x\.nii\.gz: it is no regular file"):
        sha256_of_file(tmp_path / "x.nii.gz")


def test_a_leftover_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    (tmp_path / ".tmp-aaaaaaaa-").touch()
    os.utime(tmp_path / ".tmp-aaaaaaaa-", (1, 1))

    def refuse(_: Path) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert remove_leftovers(tmp_path) == 0


def test_a_link_that_calls_itself_unfinished_is_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-aaaaaaaa-").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path / "out", older_than_s=0.0)
    assert (tmp_path / "kept" / "x").exists()


def test_what_is_read_is_a_regular_file_of_a_size(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_regular(tmp_path / "pipe")
    with (tmp_path / "giant").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(OSError, match="at most 268435456 are read"):
        read_regular(tmp_path / "giant")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_without_end_is_no_json(tmp_path, text):
    path = write_text(tmp_path / "x.json", text)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)


def test_a_name_of_bytes_that_are_no_text_can_be_written(tmp_path):
    name = os.fsdecode(b"sub-\xff")
    content = {"scan": name}
    path = write_json(tmp_path / "x.json", content)
    assert read_json(path) == content
    assert write_text(tmp_path / "x.txt", name).read_text() == r"sub-\udcff"
    assert sha256_of_json(content) != sha256_of_json({"scan": "sub-"})
    assert json.loads(path.read_text()) == content
