"""A BIDS directory becomes a list of T1w scans, with what the tables say about each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline.entities import ENTITY_KEYS, BidsEntities, entities_of, parse_name, validate_name
from brainstage.pipeline.errors import BidsError, ConfigError, InputMissingError, ManifestError
from brainstage.pipeline.records import Covariates, T1wScan

MISSING: Final = frozenset({"", "n/a", "N/A", "NA", "nan", "NaN"})
"""What tables write for an unknown value."""


@dataclass(frozen=True, kw_only=True)
class ScanFilter:
    """Which scans a run is about; an empty tuple leaves everything.

    Attributes
    ----------
    participants, sessions : tuple of str
        Labels without ``sub-`` and ``ses-``.
    entities : mapping
        Further demands by attribute of :class:`BidsEntities` or key, from ``--bids-filter-file``: a label,
        a list of labels, or None for "must be absent".
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    entities: Mapping[str, Any] = field(default_factory=dict)

    def selects(self, entities: BidsEntities) -> bool:
        """Tell whether a scan passes."""
        if self.participants and entities.subject not in self.participants:
            return False
        if self.sessions and entities.session not in self.sessions:
            return False
        return all(_satisfies(getattr(entities, name), wanted) for name, wanted in self.entities.items())


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A BIDS dataset as found.

    Attributes
    ----------
    root : Path
    description : mapping
        ``dataset_description.json``.
    scans : tuple of T1wScan
        Sorted by participant, session, run.
    set_aside : tuple of (str, str)
        Relative path and reason of every T1w file that is no scan of this dataset.
    columns : tuple of str
        Columns of ``participants.tsv`` beyond the ones that every scan has.
    extra : mapping
        Scan key to the values of `columns`.
    """

    root: Path
    description: Mapping[str, Any]
    scans: tuple[T1wScan, ...]
    set_aside: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_dataset(root: Path, *, validate: bool = True, label_column: str = "diagnosis") -> Dataset:
    """Find the T1w scans of a BIDS directory.

    Parameters
    ----------
    root : Path
    validate : bool
        Demand a ``dataset_description.json``; without it any directory with BIDS names will do.
    label_column : str
        Column of ``participants.tsv`` or ``sub-*_sessions.tsv`` that holds the class.

    Raises
    ------
    InputMissingError
        The directory is absent, or holds no T1w scan.
    BidsError
        It is no BIDS dataset.
    ManifestError
        A table cannot be read.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputMissingError(
            f"BIDS directory {root.name or root} {what}; give the directory that holds sub-*/"
        )
    description = _read_description(root, validate=validate)
    subjects = sorted(p for p in root.iterdir() if p.is_dir() and p.name.startswith("sub-"))
    if not subjects:
        raise BidsError(f"{root.name or root} holds no sub-* directory, so it is not a BIDS dataset")
    participants = read_participants(root / "participants.tsv", "participant_id")
    found, set_aside = _scans(root, subjects)
    if not found and not set_aside:
        raise InputMissingError(
            f"{root.name or root} holds no *_T1w.nii or *_T1w.nii.gz under sub-*/[ses-*/]anat/"
        )
    described = [_described(scan, root, participants, label_column) for scan in found]
    columns = tuple(dict.fromkeys(name for _, row in described for name in row))
    return Dataset(
        root=root,
        description=description,
        scans=tuple(scan for scan, _ in described),
        set_aside=tuple(set_aside),
        columns=columns,
        extra={scan.key: row for scan, row in described},
    )


def read_filter_file(path: Path) -> dict[str, Any]:
    """Read a BIDS filter file: JSON with a ``t1w`` object of entity to label, labels, or null.

    Raises
    ------
    InputMissingError, ConfigError
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissingError(f"filter file {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"filter file {path.name} is not valid JSON: {error}") from error
    demands = content.get("t1w", {}) if isinstance(content, dict) else None
    if not isinstance(demands, dict):
        raise ConfigError(
            f'filter file {path.name} must hold an object such as {{"t1w": {{"session": "M00"}}}}'
        )
    attribute_of = {key: name for name, key in ENTITY_KEYS.items()} | {name: name for name in ENTITY_KEYS}
    ignored = {"datatype", "suffix", "extension", "scope"}
    unknown = sorted(set(demands) - set(attribute_of) - ignored)
    if unknown:
        raise ConfigError(
            f"filter file {path.name}: unknown entity {unknown[0]!r}; known are {', '.join(ENTITY_KEYS)}"
        )
    return {attribute_of[name]: wanted for name, wanted in demands.items() if name in attribute_of}


def read_participants(path: Path, key_column: str) -> dict[str, dict[str, str]]:
    """Read a BIDS table into a dictionary by its key column; empty when there is no such file.

    Raises
    ------
    ManifestError
        When the key column is missing, a row is ragged, or a key stands twice.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path.name} cannot be read as a tab-separated UTF-8 table: {error}") from error
    table: dict[str, dict[str, str]] = {}
    for number, row in rows:
        key = (row.get(key_column) or "").strip()
        if not key:
            raise ManifestError(
                f"{path.name}, line {number}: no {key_column}; the first column must be {key_column}"
            )
        if None in row:
            raise ManifestError(f"{path.name}, line {number}: more cells than columns")
        if key in table:
            raise ManifestError(f"{path.name}, line {number}: {key} stands twice")
        table[key] = {name: (value or "").strip() for name, value in row.items() if name != key_column}
    return table


def number_or_none(text: str | None) -> float | None:
    """Return a number from a table cell, None where it is missing or no number (such as ``89+``).

    >>> number_or_none("71.5"), number_or_none("n/a"), number_or_none("89+")
    (71.5, None, None)
    """
    try:
        value = float(text) if text not in (None, "") else float("nan")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _satisfies(label: str | None, wanted: object) -> bool:
    if isinstance(wanted, list):
        return any(_satisfies(label, item) for item in wanted)
    if wanted is None or label is None:
        return wanted is None and label is None
    return str(wanted) == label


def _read_description(root: Path, *, validate: bool) -> dict[str, Any]:
    path = root / "dataset_description.json"
    if not path.is_file():
        if not validate:
            return {}
        raise BidsError(
            f"{root.name or root} has no dataset_description.json, so it is not a BIDS dataset; "
            "add one, or give --skip-bids-validation"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        if not validate:
            return {}
        raise BidsError(f"dataset_description.json is not readable JSON ({error}); mend it") from error
    if not isinstance(content, dict) or (validate and not {"Name", "BIDSVersion"} <= set(content)):
        raise BidsError("dataset_description.json must be an object with Name and BIDSVersion")
    if validate and content.get("DatasetType") == "derivative":
        raise BidsError("the dataset is a derivative (DatasetType), not raw; give the raw BIDS directory")
    return content


def _scans(root: Path, subjects: list[Path]) -> tuple[list[T1wScan], list[tuple[str, str]]]:
    found: dict[BidsEntities, T1wScan] = {}
    set_aside: list[tuple[str, str]] = []
    resolved_root = root.resolve()
    for path in _t1w_files(subjects):
        relative = path.relative_to(root).as_posix()
        parsed = parse_name(path.name)
        faults = validate_name(parsed) if parsed else ["the name is not a BIDS name"]
        if parsed is None or faults:
            set_aside.append((relative, "; ".join(faults)))
            continue
        entities = entities_of(parsed)
        misplaced = _misplaced(entities, path, root)
        if misplaced:
            set_aside.append((relative, misplaced))
        elif entities in found:
            set_aside.append((relative, f"the same scan as {found[entities].t1w_path}"))
        else:
            found[entities] = T1wScan(
                entities=entities, path=path, t1w_path=relative, fault=_link_fault(path, resolved_root)
            )
    return sorted(found.values(), key=lambda scan: scan.entities.sort_key), set_aside


def _t1w_files(subjects: list[Path]) -> Iterator[Path]:
    for subject in subjects:
        for folder in sorted([subject / "anat", *subject.glob("ses-*/anat")]):
            for path in sorted(folder.glob("*_T1w.nii*")) if folder.is_dir() else []:
                if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."):
                    yield path


def _misplaced(entities: BidsEntities, path: Path, root: Path) -> str | None:
    folders = path.relative_to(root).parts[:-2]
    expected = (f"sub-{entities.subject}",) + ((f"ses-{entities.session}",) if entities.session else ())
    return None if folders == expected else f"the name belongs into {'/'.join(expected)}/anat"


def _link_fault(path: Path, resolved_root: Path) -> str | None:
    """Say why a path cannot be followed: a link out of the dataset, or one that leads nowhere."""
    if not path.exists():
        return "the file is a link to content that is not here; with git-annex or DataLad, get it first"
    if not path.resolve().is_relative_to(resolved_root):
        return "the file is a link that leads out of the dataset, which is not followed; copy the file into the dataset"
    return None


_FIXED_COLUMNS: Final = ("age", "sex", "site")


def _described(
    scan: T1wScan, root: Path, participants: Mapping[str, Mapping[str, str]], label_column: str
) -> tuple[T1wScan, dict[str, str]]:
    subject = f"sub-{scan.entities.subject}"
    row = dict(participants.get(subject, participants.get(scan.entities.subject, {})))
    if scan.entities.session:
        sessions = read_participants(root / subject / f"{subject}_sessions.tsv", "session_id")
        of_session = sessions.get(f"ses-{scan.entities.session}", sessions.get(scan.entities.session, {}))
        row |= {name: value for name, value in of_session.items() if value not in MISSING}
    known = {name: value for name, value in row.items() if value not in MISSING}
    extra = {name: known.get(name, "") for name in row if name not in (*_FIXED_COLUMNS, "diagnosis")}
    covariates = Covariates(
        age=number_or_none(known.get("age")), sex=known.get("sex"), site=known.get("site"), extra=extra
    )
    described = T1wScan(
        entities=scan.entities,
        path=scan.path,
        t1w_path=scan.t1w_path,
        covariates=covariates,
        label=known.get(label_column),
        fault=scan.fault,
    )
    return described, extra
