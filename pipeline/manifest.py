"""``data_manifest.csv``: one row per scan. Read whole, with all faults in one error."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from brainstage.pipeline.bids import MISSING, Dataset, number_or_none
from brainstage.pipeline.entities import prefixed_label
from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.files import write_text
from brainstage.pipeline.records import Covariates, T1wScan

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
_MAX_FAULTS_SHOWN: Final = 8
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
    text = read_table_text(path, "manifest")
    header, table = _table(text, path.name)
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise ManifestError(
            f"manifest {path.name} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}"
        )
    faults: list[str] = []
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    for number, cells in table:
        found = _faults_of(cells, seen, number)
        faults += [f"line {number}: {fault}" for fault in found]
        if not found:
            rows.append(_row(cells))
    if faults:
        raise faults_error("manifest", path.name, faults)
    return rows


def read_table_text(path: Path, what: str) -> str:
    """Return the text of a table that a person may have written, without a byte order mark.

    Parameters
    ----------
    path : Path
    what : str
        What the table is, for the message.

    Raises
    ------
    InputMissingError
        When it cannot be read.
    ManifestError
        When it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputMissingError(f"{what} {path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{what} {path.name} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error


def faults_error(what: str, name: str, faults: Sequence[str]) -> ManifestError:
    """Return the error that lists the faults of a table, the first few of many."""
    shown = "; ".join(faults[:_MAX_FAULTS_SHOWN])
    more = f"; and {len(faults) - _MAX_FAULTS_SHOWN} more" if len(faults) > _MAX_FAULTS_SHOWN else ""
    return ManifestError(f"{what} {name} has {len(faults)} fault(s): {shown}{more}")


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a manifest, the extra columns after the fixed ones, in one rename."""
    extra = tuple(dict.fromkeys(name for row in rows for name in row.extra))
    records = [
        {name: row.value(name) or "" for name in COLUMNS} | {name: row.extra.get(name, "") for name in extra}
        for row in rows
    ]
    write_text(path, csv_text((*COLUMNS, *extra), records))


def csv_text(columns: Sequence[str], records: Iterable[Mapping[str, object]]) -> str:
    r"""Return RFC 4180 text with LF line ends; None is an empty cell, text that a spreadsheet would run is quoted.

    >>> csv_text(["a", "b"], [{"a": "=1+1", "b": -0.5}])
    "a,b\n'=1+1,-0.5\n"
    """
    # The csv module's writer leaves a lone carriage return bare, which readers take for the end of the line.
    lines = [[_cell(name) for name in columns]]
    lines += [[_cell(record.get(name)) for name in columns] for record in records]
    return "".join(",".join(_enclosed(str(cell)) for cell in line) + "\n" for line in lines)


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
        When it names a file that the dataset does not hold.
    """
    by_path = {scan.t1w_path: scan for scan in dataset.scans}
    absent = [row.t1w_path for row in rows if row.t1w_path not in by_path]
    if absent:
        raise ManifestError(
            f"the manifest names {len(absent)} file(s) that the dataset does not hold as T1w scans, first {absent[0]}"
        )
    scans = sorted(
        (_overlaid(by_path[row.t1w_path], row) for row in rows), key=lambda scan: scan.entities.sort_key
    )
    keys = {row.t1w_path: by_path[row.t1w_path].key for row in rows}
    extra = {keys[row.t1w_path]: {**dataset.extra.get(keys[row.t1w_path], {}), **row.extra} for row in rows}
    chosen = Dataset(
        root=dataset.root,
        description=dataset.description,
        scans=tuple(scans),
        set_aside=dataset.set_aside,
        columns=tuple(dict.fromkeys(name for row in extra.values() for name in row)),
        extra=extra,
    )
    return chosen, {keys[row.t1w_path]: row.sha256 for row in rows if row.sha256}


def _overlaid(scan: T1wScan, row: ManifestRow) -> T1wScan:
    known = scan.covariates
    return T1wScan(
        entities=scan.entities,
        path=scan.path,
        t1w_path=scan.t1w_path,
        covariates=Covariates(
            age=row.age if row.age is not None else known.age,
            sex=row.sex or known.sex,
            site=row.site or known.site,
            extra={**known.extra, **row.extra},
        ),
        label=row.diagnosis or scan.label,
        split=row.split,
        fault=scan.fault,
    )


def _table(text: str, name: str) -> tuple[list[str], list[tuple[int, dict[Any, str | None]]]]:
    """Return the header, and each row with the line that it ends on."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = [_unquoted(column) for column in reader.fieldnames or []]
        reader.fieldnames = header
        return header, [(reader.line_num, dict(cells)) for cells in reader]
    except csv.Error as error:
        raise ManifestError(f"manifest {name} cannot be read as a table: {error}") from error


def _faults_of(cells: Mapping[str | None, str | None], seen: dict[str, int], number: int) -> list[str]:
    value = {name: (cells.get(name) or "").strip() for name in COLUMNS}
    faults = []
    if None in cells:
        faults.append("more cells than columns")
    if not _LABEL.fullmatch(value["participant_id"]):
        faults.append(f"participant_id {value['participant_id']!r} is not letters and digits")
    path = PurePosixPath(value["t1w_path"])
    if not value["t1w_path"] or path.is_absolute() or ".." in path.parts:
        faults.append(f"t1w_path {value['t1w_path']!r} is not a path inside the BIDS directory")
    elif value["t1w_path"] in seen:
        faults.append(f"t1w_path {value['t1w_path']} stands already in line {seen[value['t1w_path']]}")
    seen.setdefault(value["t1w_path"], number)
    if value["sha256"] not in MISSING and not _SHA256.fullmatch(value["sha256"]):
        faults.append(f"sha256 {value['sha256'][:16]!r} is not 64 lower-case hexadecimal digits")
    if value["age"] not in MISSING and number_or_none(value["age"]) is None:
        faults.append(f"age {value['age']!r} is not a number of years")
    if value["split"] not in {*_SPLITS, *MISSING}:
        faults.append(f"split {value['split']!r} is not train, test or empty")
    return faults


def _row(cells: Mapping[str, str | None]) -> ManifestRow:
    text = {name: _unquoted((value or "").strip()) for name, value in cells.items()}
    known = {name: value for name, value in text.items() if value not in MISSING}
    return ManifestRow(
        participant_id=prefixed_label(text["participant_id"], "sub"),
        session_id=prefixed_label(known.get("session_id", ""), "ses"),
        run_id=prefixed_label(known.get("run_id", ""), "run"),
        t1w_path=text["t1w_path"],
        sha256=known.get("sha256"),
        age=number_or_none(known.get("age")),
        sex=known.get("sex"),
        site=known.get("site"),
        diagnosis=known.get("diagnosis"),
        split=known.get("split", ""),
        extra={name: known.get(name, "") for name in text if name not in COLUMNS},
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


def _enclosed(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text
