"""What the program keeps for itself in small JSON files, read back as the dataclasses that it was.

A disk may forget a bit, a copy may end half-way, another version may have written other fields: what does not fit the
fields and their types counts as not there, and nothing that reads it has to look again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from brainstage.pipeline.files import read_json

Record = TypeVar("Record")
"""A frozen dataclass of plain values and of further dataclasses."""


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Return what a file holds; None when it is absent or cannot be understood.

    Parameters
    ----------
    path : Path
    kind : type
    """
    try:
        return as_record(read_json(path), kind)
    except (OSError, ValueError):
        return None


def as_record(content: object, kind: type[Record]) -> Record:
    """Return the dataclass that an object from JSON stands for.

    Parameters
    ----------
    content : object
    kind : type

    Raises
    ------
    ValueError
        When a field is missing, unknown, of another type, or not finite.

    Examples
    --------
    >>> from brainstage.pipeline.attempt import Attempt
    >>> as_record({"stage": "ingest", "key": "", "started": 1}, Attempt)
    Attempt(stage='ingest', key='', started=1.0)
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, Mapping) or not known >= content.keys():
        raise ValueError(f"{content!r:.200} is no {kind.__name__}")
    try:
        text = json.dumps(content, allow_nan=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    reader: TypeAdapter[Record] = _adapter(kind)  # type: ignore[arg-type] # a type is hashable
    return reader.validate_json(text, strict=True)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
