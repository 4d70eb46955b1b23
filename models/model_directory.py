"""Making a directory of results appear whole, or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainstage.models.model_description import older_version, read_description
from brainstage.pipeline.errors import ModelError, OutputError, output_error
from brainstage.pipeline.files import TEMPORARY_PREFIX


def require_replaceable(model_dir: Path) -> None:
    """Raise unless `model_dir` is absent, empty, or a model directory that may be replaced.

    Raises
    ------
    OutputError
        When it is a file, or holds anything that is not a model.
    """
    if not model_dir.exists():
        return
    if not model_dir.is_dir():
        raise OutputError(f"{model_dir.name} is a file: choose a directory for the model")
    if not any(model_dir.iterdir()):
        return
    try:
        read_description(model_dir)
    except ModelError as error:
        if older_version(model_dir):
            return
        raise OutputError(
            f"{model_dir.name} is not empty and not a model directory, so it is not replaced: choose another one"
        ) from error


@contextmanager
def replaced_directory(
    model_dir: Path, require: Callable[[Path], None] = require_replaceable
) -> Iterator[Path]:
    """Give a temporary sibling to fill; it takes the place of `model_dir` when the block ends without an error.

    Parameters
    ----------
    model_dir : Path
        Or another directory that a command makes as a whole.
    require : callable
        Raises unless what is there may be replaced.

    Yields
    ------
    Path
        An empty directory on the same file system.

    Raises
    ------
    OutputError, StorageError
        When the file system refuses; what was at `model_dir` is then still there.
    """
    require(model_dir)
    token = secrets.token_hex(4)
    filling = model_dir.with_name(f"{TEMPORARY_PREFIX}{token}-{model_dir.name}")
    outgoing = model_dir.with_name(f"{TEMPORARY_PREFIX}{token}-old-{model_dir.name}")
    try:
        filling.mkdir(parents=True)
        yield filling
        if model_dir.exists():
            model_dir.rename(outgoing)
        try:
            filling.rename(model_dir)
        except OSError:
            if outgoing.exists():
                outgoing.rename(model_dir)
            raise
    except OutputError:
        raise
    except OSError as error:
        raise output_error(model_dir, error) from error
    finally:
        for leftover in (filling, outgoing):
            shutil.rmtree(leftover, ignore_errors=True)
