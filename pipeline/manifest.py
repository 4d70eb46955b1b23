"""``data_manifest.csv``: one row per scan. Read whole, with all faults in one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

from brainstage.pipeline.bids import Dataset
from brainstage.pipeline.entities import bare_label, parse_name, prefixed_label
from brainstage.pipeline.errors import ManifestError
from brainstage.pipeline.files import write_text
from brainstage.pipeline.records import Covariates, T1wScan
from brainstage.pipeline.tables import (
    faults_error,
    is_absent,
    number_or_none,
    read_csv,
    sex_of,
    years_or_none,
)

LONGEST_CELL: Final = 32_000
"""Spreadsheets hold 32,767 characters in a cell, and Python's own reader of tables gives up at 131,072."""
COLUMNS: Final = (
    "participant_id",
    "session_id",
    "run_id",
    "t1w_path",
    "sha256",
    "age",
    "sex",
    "site",
    "diagnosis",
    "split",
)
_REQUIRED: Final = ("participant_id", "t1w_path")
_SPLITS: Final = ("", "train", "test")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LABEL: Final = re.compile(r"(?:[a-z]+-)?[0-9a-zA-Z]+")
_NEEDS_QUOTES: Final = re.compile(r'[,"\r\n]')
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One scan of a manifest; empty cells are None.

    Attributes
    ----------
    participant_id, session_id, run_id : str
        Labels as BIDS tables write them, ``sub-01``, ``ses-M00``, ``run-1``; empty where there is none.
    t1w_path : str
        Relative to the BIDS directory.
    extra : mapping
        Every column that is not one of the fixed ones.
    given : frozenset of str
        Fixed columns of the table that it was read from: an empty cell there is unknown, whatever the dataset's tables
        say. In other columns these hold.
    """

    participant_id: str
    session_id: str
    run_id: str
    t1w_path: str
    sha256: str | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None
    diagnosis: str | None = None
    split: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def value(self, column: str) -> str | None:
        """Return a column by name, fixed or extra, as text; None where it is empty or absent."""
        found = getattr(self, column) if column in COLUMNS else self.extra.get(column)
        return None if found in (None, "") else f"{found:g}" if isinstance(found, float) else str(found)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read and check a manifest.

    Raises
    ------
    InputMissingError
        No such file.
    ManifestError
        With every fault found, each with its line.
    """
    table = read_csv(path, "manifest", COLUMNS)
    columns = [_unquoted(name) for name in table.columns]
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise ManifestError(
            f"manifest {path.name} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}"
        )
    given = frozenset(COLUMNS) & set(columns)
    faults = list(table.faults)
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    for row in table.rows:
        number, cells = row.line, {_unquoted(name): text for name, text in row.cells.items()}
        found = _faults_of(cells, seen, number)
        faults += [f"line {number}: {fault}" for fault in found]
        if not found:
            rows.append(_row(cells, given))
    if faults:
        raise faults_error("manifest", path.name, faults)
    return rows


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a manifest, the extra columns after the fixed ones, in one rename."""
    extra = tuple(dict.fromkeys(name for row in rows for name in row.extra))
    records = [
        {name: _kept(row.value(name) or "") for name in COLUMNS}
        | {name: _kept(row.extra.get(name, "")) for name in extra}
        for row in rows
    ]
    write_text(path, csv_text((*COLUMNS, *extra), records))


def csv_text(columns: Sequence[str], records: Iterable[Mapping[str, object]]) -> str:
    r"""Return RFC 4180 text with LF line ends; None is an empty cell, text that a spreadsheet would run is quoted.

    A cell of more than ``LONGEST_CELL`` characters is cut, and ends with how long it was.

    >>> csv_text(["a", "b"], [{"a": "=1+1", "b": -0.5}])
    "a,b\n'=1+1,-0.5\n"
    """
    # The csv module's writer leaves a lone carriage return bare, which readers take for the end of the line.
    lines = [[_cell(name) for name in columns]]
    lines += [[_cell(record.get(name)) for name in columns] for record in records]
    return "".join(",".join(_enclosed(_shortened(str(cell))) for cell in line) + "\n" for line in lines)


def _shortened(cell: str) -> str:
    if len(cell) <= LONGEST_CELL:
        return cell
    ending = f" ... ({len(cell)} characters)"
    return cell[: LONGEST_CELL - len(ending)] + ending


def rows_of(dataset: Dataset, sha256: Mapping[str, str]) -> list[ManifestRow]:
    """Return the manifest of a dataset.

    Parameters
    ----------
    dataset : Dataset
    sha256 : mapping
        Scan key to the hash of the file, where it could be read.
    """
    return [
        ManifestRow(
            participant_id=prefixed_label(scan.entities.subject, "sub"),
            session_id=prefixed_label(scan.entities.session, "ses"),
            run_id=prefixed_label(scan.entities.run, "run"),
            t1w_path=scan.t1w_path,
            sha256=sha256.get(scan.key),
            age=scan.covariates.age,
            sex=scan.covariates.sex,
            site=scan.covariates.site,
            diagnosis=scan.label,
            split=scan.split,
            extra=dataset.extra.get(scan.key, {}),
        )
        for scan in dataset.scans
    ]


def apply_manifest(dataset: Dataset, rows: Sequence[ManifestRow]) -> tuple[Dataset, dict[str, str]]:
    """Keep the scans that a manifest names, with its covariates and labels in place of the tables'.

    Returns
    -------
    dataset : Dataset
    expected : dict
        Scan key to the sha256 that the manifest demands, where it gives one.

    Raises
    ------
    ManifestError
        When it names a file that the dataset does not hold, or a row contradicts the name of its file.
    """
    by_path = {scan.t1w_path: scan for scan in dataset.scans}
    absent = [row.t1w_path for row in rows if row.t1w_path not in by_path]
    if absent:
        raise ManifestError(
            f"the manifest names {len(absent)} file(s) that the dataset does not hold as T1w scans, first {absent[0]}"
        )
    contradictions = [fault for row in rows for fault in _contradictions(row)]
    if contradictions:
        raise faults_error("the", "manifest", contradictions)
    scans = sorted(
        (_overlaid(by_path[row.t1w_path], row) for row in rows), key=lambda scan: scan.entities.sort_key
    )
    keys = {row.t1w_path: by_path[row.t1w_path].key for row in rows}
    extra = {keys[row.t1w_path]: {**dataset.extra.get(keys[row.t1w_path], {}), **row.extra} for row in rows}
    chosen = replace(
        dataset,
        scans=tuple(scans),
        columns=tuple(dict.fromkeys(name for row in extra.values() for name in row)),
        extra=extra,
    )
    return chosen, {keys[row.t1w_path]: row.sha256 for row in rows if row.sha256}


def _overlaid(scan: T1wScan, row: ManifestRow) -> T1wScan:
    known = scan.covariates
    return replace(
        scan,
        covariates=Covariates(
            age=row.age if row.age is not None or "age" in row.given else known.age,
            sex=_sex(row) if row.sex or "sex" in row.given else known.sex,
            site=row.site if row.site or "site" in row.given else known.site,
            extra={**known.extra, **row.extra},
        ),
        label=row.diagnosis if row.diagnosis or "diagnosis" in row.given else scan.label,
        split=row.split,
    )


def _sex(row: ManifestRow) -> str | None:
    return sex_of(row.sex, {})[0] if row.sex else None


def _faults_of(cells: Mapping[str, str], seen: dict[str, int], number: int) -> list[str]:
    value = {name: "" if is_absent(cells.get(name)) else _value_of(cells[name]) for name in COLUMNS}
    faults = []
    if not _LABEL.fullmatch(value["participant_id"]):
        faults.append(f"participant_id {cells['participant_id']!r} is not letters and digits")
    path = PurePosixPath(value["t1w_path"])
    if not value["t1w_path"] or path.is_absolute() or ".." in path.parts:
        faults.append(f"t1w_path {cells['t1w_path']!r} is not a path inside the BIDS directory")
    elif value["t1w_path"] in seen:
        faults.append(f"t1w_path {value['t1w_path']} stands already in line {seen[value['t1w_path']]}")
    seen.setdefault(value["t1w_path"], number)
    if value["sha256"] and not _SHA256.fullmatch(value["sha256"]):
        faults.append(f"sha256 {value['sha256'][:16]!r} is not 64 lower-case hexadecimal digits")
    if value["age"] and years_or_none(value["age"]) is None:
        faults.append(f"age {value['age']!r} is not a number of years")
    if value["split"] not in _SPLITS:
        faults.append(f"split {value['split']!r} is not train, test or empty")
    return faults


def _contradictions(row: ManifestRow) -> list[str]:
    """Return which columns say another participant, session or run than the name of the file."""
    parsed = parse_name(PurePosixPath(row.t1w_path).name)
    if parsed is None:
        return []
    said = (
        ("participant_id", "sub", row.participant_id),
        ("session_id", "ses", row.session_id),
        ("run_id", "run", row.run_id),
    )
    return [
        f"{row.t1w_path}: {column} is {label}, which is not in the file's name"
        for column, key, label in said
        if label and bare_label(label, key) != parsed.entities.get(key)
    ]


def _row(cells: Mapping[str, str], given: frozenset[str]) -> ManifestRow:
    known = {name: _value_of(text) for name, text in cells.items() if not is_absent(text)}
    return ManifestRow(
        participant_id=prefixed_label(known["participant_id"], "sub"),
        session_id=prefixed_label(known.get("session_id", ""), "ses"),
        run_id=prefixed_label(known.get("run_id", ""), "run"),
        t1w_path=known["t1w_path"],
        sha256=known.get("sha256"),
        age=years_or_none(known.get("age")),
        sex=known.get("sex"),
        site=known.get("site"),
        diagnosis=known.get("diagnosis"),
        split=known.get("split", ""),
        extra={name: known.get(name, "") for name in cells if name not in COLUMNS},
        given=given,
    )


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _like_formula(value):
        return f"'{value}"
    return value


def _like_formula(text: str) -> bool:
    # Begins first: hardly any cell does, and every cell of every table comes by.
    return text.lstrip("'").startswith(_FORMULA_STARTS) and not _is_plain_number(text)


def _is_plain_number(text: str) -> bool:
    return text == text.strip() and number_or_none(text) is not None


def _unquoted(text: str) -> str:
    """Return what :func:`_cell` was given."""
    return text[1:] if text.startswith("'") and _like_formula(text) else text


def _kept(text: str) -> str:
    """Return a value as it is written to a manifest: a label ``NONE`` is not the mark of an unknown one."""
    return f"'{text}" if _like_absent(text) else text


def _value_of(cell: str) -> str:
    """Return the value that was written as a cell."""
    return cell[1:] if cell.startswith("'") and _like_absent(cell) else _unquoted(cell)


def _like_absent(text: str) -> bool:
    plain = text.lstrip("'")
    # One that begins like a formula is kept from being one, and by that from being absent.
    return bool(plain) and is_absent(plain) and not _like_formula(plain)


def _enclosed(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text
