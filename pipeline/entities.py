"""BIDS file names of T1w scans: parse, validate, format; three pure functions.

Parsing neither touches the disk nor judges the labels; validation lists every fault; formatting puts the
entities into the order that BIDS prescribes (BIDS 1.10, appendix *Entities*).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

ENTITY_KEYS: Final = {
    "subject": "sub",
    "session": "ses",
    "task": "task",
    "acquisition": "acq",
    "contrast_agent": "ce",
    "reconstruction": "rec",
    "run": "run",
    "echo": "echo",
    "part": "part",
    "chunk": "chunk",
}
"""Attribute of :class:`BidsEntities` to key in a file name, in the order of BIDS: all that a T1w may carry."""

_LABEL: Final = re.compile(r"[0-9a-zA-Z]+")
_SUFFIX: Final = re.compile(r"(?P<stem>.+)_(?P<suffix>[0-9a-zA-Z]+)(?P<extension>\.nii(?:\.gz)?)")


@dataclass(frozen=True, kw_only=True, order=True)
class BidsEntities:
    """What a BIDS file name says about a scan. Labels are kept as written, leading zeros included."""

    subject: str
    session: str | None = None
    task: str | None = None
    acquisition: str | None = None
    contrast_agent: str | None = None
    reconstruction: str | None = None
    run: str | None = None
    echo: str | None = None
    part: str | None = None
    chunk: str | None = None

    @cached_property
    def key(self) -> str:
        """The scan's name in logs, markers and reports, such as ``sub-01_ses-M12_run-1``."""
        return format_entities(self)

    @property
    def sort_key(self) -> tuple[str, ...]:
        """Participant, session, run, then the rest; absent sorts first."""
        first = (self.subject, self.session or "", self.run or "")
        return first + tuple(getattr(self, f.name) or "" for f in fields(self) if f.name not in _SORTED_FIRST)


_SORTED_FIRST: Final = ("subject", "session", "run")


@dataclass(frozen=True, kw_only=True)
class ParsedName:
    """A file name taken apart.

    Attributes
    ----------
    entities : dict
        Key to label, as written, in the order of the file name.
    suffix, extension : str
        Such as ``T1w`` and ``.nii.gz``.
    """

    entities: dict[str, str]
    suffix: str
    extension: str


def parse_name(name: str) -> ParsedName | None:
    """Take a NIfTI file name apart; None when it has no suffix or a part that is no ``key-label``.

    >>> parse_name("sub-01_ses-M12_T1w.nii.gz").entities
    {'sub': '01', 'ses': 'M12'}
    >>> parse_name("T1.nii.gz") is None
    True
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    entities: dict[str, str] = {}
    for part in match["stem"].split("_"):
        key, separator, label = part.partition("-")
        if not separator or not key or key in entities:
            return None
        entities[key] = label
    return ParsedName(entities=entities, suffix=match["suffix"], extension=match["extension"])


def validate_name(parsed: ParsedName) -> list[str]:
    """List what BIDS objects to in a parsed T1w name; empty when nothing.

    >>> validate_name(parse_name("sub-01_flip-1_T1w.nii.gz"))
    ["entity 'flip' is not allowed for a T1w scan"]
    """
    faults = []
    if next(iter(parsed.entities), None) != "sub":
        faults.append("the name does not begin with sub-<label>")
    known = list(ENTITY_KEYS.values())
    faults += [f"entity {key!r} is not allowed for a T1w scan" for key in parsed.entities if key not in known]
    faults += [
        f"label {label!r} of {key!r} is not letters and digits"
        for key, label in parsed.entities.items()
        if _LABEL.fullmatch(label) is None or not label.isascii()
    ]
    order = [known.index(key) for key in parsed.entities if key in known]
    if order != sorted(order):
        faults.append(f"entities are not in the order {', '.join(known)}")
    return faults


def entities_of(parsed: ParsedName) -> BidsEntities:
    """Return the entities of a name that :func:`validate_name` has no fault with."""
    attribute_of = {key: attribute for attribute, key in ENTITY_KEYS.items()}
    return BidsEntities(**{attribute_of[key]: label for key, label in parsed.entities.items()})


def format_entities(entities: BidsEntities, **derived: str | None) -> str:
    """Return the entities as the beginning of a file name, without suffix.

    Parameters
    ----------
    entities : BidsEntities
    **derived : str or None
        Further pairs for derivatives, in their order, such as ``space="MNI152NLin2009aSym"``, ``desc="brain"``.

    Examples
    --------
    >>> format_entities(BidsEntities(subject="01", run="2"), desc="brain")
    'sub-01_run-2_desc-brain'
    """
    pairs = [(key, getattr(entities, attribute)) for attribute, key in ENTITY_KEYS.items()]
    pairs += [(key.rstrip("_"), label) for key, label in derived.items()]
    return "_".join(f"{key}-{label}" for key, label in pairs if label is not None)


def bare_label(text: str, key: str) -> str:
    """Return a label without a leading ``sub-`` or ``ses-``.

    >>> bare_label("sub-01", "sub"), bare_label("01", "sub")
    ('01', '01')
    """
    return text.removeprefix(f"{key}-")


def prefixed_label(label: str | None, key: str) -> str:
    """Return a label as BIDS tables write it; an absent one is empty.

    >>> prefixed_label("01", "sub"), prefixed_label("sub-01", "sub"), prefixed_label(None, "ses")
    ('sub-01', 'sub-01', '')
    """
    return f"{key}-{bare_label(label, key)}" if label else ""


def natural_order(label: str) -> tuple[str | tuple[int, str], ...]:
    """Return a key by which numbers in labels count as numbers.

    >>> sorted(["M120", "M6", "M12", "M00"], key=natural_order)
    ['M00', 'M6', 'M12', 'M120']
    """
    # Every second part is digits, so that like is always compared with like. Python refuses to make a number of more
    # than 4300 of them; the one with more digits is the larger one.
    parts = re.split(r"([0-9]+)", label)
    return tuple(_size(part) if place % 2 else part.casefold() for place, part in enumerate(parts))


def _size(digits: str) -> tuple[int, str]:
    bare = digits.lstrip("0")
    return len(bare), bare
