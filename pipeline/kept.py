"""What the program keeps for itself in small JSON files, read back as the dataclasses that it was.

A disk may forget a bit, a copy may end half-way, another version may have written other fields: what does not fit the
fields and their types counts as not there, and nothing that reads it has to look again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter
from pydantic_core import from_json

from brainstage.pipeline.files import read_regular

Record = TypeVar("Record")
"""A frozen dataclass of plain values and of further dataclasses."""
_HUGE_NUMBER: Final = re.compile(rb"[eE]\+?[0-9]{3}")
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


def read_record(path: Path, kind: type[Record], besides: Mapping[str, object] = _NOTHING) -> Record | None:
    """Return what a file holds; None when it is absent or cannot be understood.

    Parameters
    ----------
    path : Path
    kind : type
    besides : mapping
        Fields that stand beside those of `kind`, with the values that they must have, such as the format.
    """
    try:
        text = read_regular(path)
        content = from_json(text, allow_inf_nan=False)
        if not isinstance(content, dict) or any(content.pop(name, None) != besides[name] for name in besides):
            return None
        if _HUGE_NUMBER.search(text):  # which the reader takes for infinite
            return as_record(content, kind)
        return _checked(text, content, kind)
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
    try:
        text = json.dumps(content, allow_nan=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return _checked(text.encode(), content, kind)


def _checked(text: bytes, content: object, kind: type[Record]) -> Record:
    """Return what a text stands for; `content` is the same text, parsed, without what may stand beside the record."""
    if not isinstance(content, Mapping) or not _names(kind) >= content.keys():  # type: ignore[arg-type] # is hashable
        raise ValueError(f"{content!r:.200} is no {kind.__name__}")
    reader: TypeAdapter[Record] = _adapter(kind)  # type: ignore[arg-type] # likewise
    return reader.validate_json(text, strict=True)


@cache
def _names(kind: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
