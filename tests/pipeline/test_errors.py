"""Errors: each has its exit code, says its sentence on one line, and travels between processes."""

from __future__ import annotations

import errno
import inspect
import pickle
from pathlib import Path

import pytest

from brainstage.pipeline import errors
from brainstage.pipeline.errors import (
    BrainstageError,
    ImageError,
    InputError,
    OutputError,
    StorageError,
    ToolError,
    attributed,
    output_error,
)

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, BrainstageError) and found.__module__ == errors.__name__
]

EXIT_CODES = {
    "UsageError": 64,
    "ConfigError": 65,
    "ManifestError": 65,
    "ModelError": 65,
    "ImageError": 65,
    "WeightsError": 65,
    "BidsError": 16,
    "NothingSelectedError": 18,
    "InputMissingError": 66,
    "WeightsMissingError": 66,
    "OutputError": 73,
    "StorageError": 74,
    "StageError": 1,
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items(), ids=EXIT_CODES)
def test_an_error_ends_the_command_with_the_promised_code(name, code):
    assert getattr(errors, name)("x").exit_code == code


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda found: found.__name__)
def test_an_error_survives_the_way_from_a_worker(error_class):
    error = error_class("the sentence")
    error.scan, error.stage = "sub-01", "ingest"
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(back), back.message, back.scan, back.stage) == (
        error_class,
        "the sentence",
        "sub-01",
        "ingest",
    )


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda found: found.__name__)
def test_the_tree_in_the_docstring_shows_every_error(error_class):
    assert error_class.__name__ in (errors.__doc__ or "")


def test_errors_are_also_what_python_calls_them():
    assert issubclass(InputError, ValueError)
    assert issubclass(ToolError, RuntimeError)
    assert issubclass(OutputError, OSError)


def test_a_message_is_one_line():
    assert ImageError("one\n  two\tthree ").message == "one two three"


def test_attribution_fills_in_what_is_not_known_yet():
    with pytest.raises(ImageError, match="bad") as caught, attributed("sub-01", "ingest"):
        raise ImageError("bad")
    assert (caught.value.scan, caught.value.stage) == ("sub-01", "ingest")


def test_the_innermost_attribution_is_kept():
    with (
        pytest.raises(ImageError, match="bad") as caught,
        attributed("sub-01", "outer"),
        attributed("sub-01", "inner"),
    ):
        raise ImageError("bad")
    assert caught.value.stage == "inner"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=["full", "quota", "broken"])
def test_a_disk_that_fails_is_a_storage_error(number):
    error = output_error(Path("/far/away/x.csv"), OSError(number, "reason"))
    assert isinstance(error, StorageError)
    assert "run the same command again" in error.message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR], ids=["denied", "rofs", "file"])
def test_a_place_that_cannot_be_written_is_no_storage_error(number):
    error = output_error(Path("/far/away/x.csv"), OSError(number, "reason"))
    assert type(error) is OutputError
    assert "/far" not in error.message, "an error names a file, not a place on this machine"
