"""What the tables of a BIDS dataset say about its participants and their visits.

``participants.tsv`` describes people, ``sub-*/sub-*_sessions.tsv`` their visits. What the first says of a participant
holds at every visit as long as no visit has its own value in that column; otherwise it holds at the first visit alone,
where the sessions table does not mention that. Of any other visit it is unknown, not what it was at another time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline.entities import bare_label
from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.files import read_json
from brainstage.pipeline.source import followed_places, link_fault
from brainstage.pipeline.tables import (
    Table,
    TableRow,
    faults_error,
    is_absent,
    read_tsv,
    sex_of,
    years_or_none,
)

PARTICIPANTS_FILE: Final = "participants.tsv"
RESERVED: Final = ("participant_id", "session_id", "run_id", "t1w_path", "sha256", "split")
"""Columns that say which scan is meant, or what is done with it: that is up to file names and manifests."""
_KNOWN: Final = (*RESERVED, "age", "sex", "site")
_UNITS: Final = {"year": "year", "yr": "year", "month": "month", "week": "week", "day": "day"}

Cells = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A value that is there and was not understood.

    Attributes
    ----------
    column, text : str
    who : str
        Such as ``sub-01`` or ``sub-01_ses-M12``.
    """

    column: str
    text: str
    who: str


@dataclass(frozen=True, kw_only=True)
class People:
    """All that the tables say; labels without ``sub-`` and ``ses-``, unknown values empty.

    Attributes
    ----------
    columns : tuple of str
        Of all tables, without the reserved ones.
    of_participant : mapping
        Participant to column to text.
    of_visit : mapping
        Participant and session to column to text.
    unread : tuple of Unread
    remarks : tuple of str
        What was not taken over, and tables that could not be read.
    refused : mapping
        Participant to why the table of their sessions cannot be believed.
    """

    columns: tuple[str, ...] = ()
    of_participant: Mapping[str, Cells] = field(default_factory=dict)
    of_visit: Mapping[tuple[str, str], Cells] = field(default_factory=dict)
    unread: tuple[Unread, ...] = ()
    remarks: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def participants(self) -> frozenset[str]:
        """Everybody who is in a table."""
        return frozenset(self.of_participant) | {participant for participant, _ in self.of_visit}

    def about(self, participant: str, session: str | None, *, first: bool = False) -> dict[str, str]:
        """Return what is known at a visit, by column.

        Parameters
        ----------
        participant : str
        session : str or None
            None for a scan without session.
        first : bool
            It is the participant's first visit.
        """
        person = self.of_participant.get(participant, {})
        visit = self.of_visit.get((participant, session or ""), {})
        of_visits = self._filled_for_visits.get(participant, frozenset()) if session else frozenset()
        not_of_person = frozenset() if first and not visit else of_visits
        return {
            column: visit.get(column, "") or ("" if column in not_of_person else person.get(column, ""))
            for column in self.columns
        }

    @cached_property
    def _filled_for_visits(self) -> Mapping[str, frozenset[str]]:
        filled: dict[str, set[str]] = defaultdict(set)
        for (participant, _), cells in self.of_visit.items():
            filled[participant] |= {column for column, text in cells.items() if text}
        return {participant: frozenset(columns) for participant, columns in filled.items()}


def read_people(
    root: Path, subjects: Iterable[str], *, label_column: str = "diagnosis", strict: bool = True
) -> People:
    """Read ``participants.tsv`` and the sessions tables of a dataset.

    Parameters
    ----------
    root : Path
    subjects : iterable of str
        Names of the participants' folders, ``sub-01``.
    label_column : str
    strict : bool
        Refuse a table of participants that cannot be read, and the sessions of those whose own table cannot.
        Otherwise that becomes a remark: a manifest says what the tables would.

    Raises
    ------
    ManifestError
        ``participants.tsv`` has rows of another length than its header, a participant twice, no key, a column twice.
    """
    places = followed_places(root)
    found = _Found(known=(*_KNOWN, label_column))
    sources = [(root / PARTICIPANTS_FILE, "")]
    sources += [(root / name / f"{name}_sessions.tsv", bare_label(name, "sub")) for name in subjects]
    for path, participant in sources:
        try:
            if not os.path.lexists(path):  # a link to content that was not fetched is a table, too
                continue
            _require_ordinary(path, places)
            if participant:
                found.take_sessions(path, participant, root)
            else:
                found.take_participants(path)
        except (ManifestError, InputMissingError) as error:
            if strict and not participant:
                raise
            if strict:
                found.refused[participant] = error.message
            found.remarks.append(f"not read: {error.message}")
        except OSError:
            continue  # a folder that may not be read; the account of the files names it
    return found.people()


def _require_ordinary(path: Path, places: Sequence[Path]) -> None:
    """Refuse a table that is there and cannot be one: nobody would miss what is passed over without a word."""
    fault = link_fault(path, places)
    if fault is None and not path.is_file():
        fault = "it is no regular file"
    if fault is not None:
        raise InputMissingError(f"{path.name} cannot be read: {fault}")


class _Found:
    """What is gathered table by table."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known
        self._columns: dict[str, None] = {}
        self._of_participant: dict[str, Cells] = {}
        self._of_visit: dict[tuple[str, str], Cells] = {}
        self._unread: list[Unread] = []
        self.remarks: list[str] = []
        self.refused: dict[str, str] = {}

    def people(self) -> People:
        """Return what all tables said."""
        return People(
            columns=tuple(self._columns),
            of_participant=self._of_participant,
            of_visit=self._of_visit,
            unread=tuple(self._unread),
            remarks=tuple(self.remarks),
            refused=self.refused,
        )

    def take_participants(self, path: Path) -> None:
        """Read ``participants.tsv``: people, or their visits where participants stand in several rows."""
        table = read_tsv(path, "table", self._known)
        _require_column(table, "participant_id")
        by_visit = "session_id" in table.columns and _some_stand_twice(table)
        ignored = [name for name in RESERVED[1:] if name in table.columns]
        if by_visit:
            ignored.remove("session_id")
            self.remarks.append(f"{path.name} has rows of visits: its column session_id says of which")
        if ignored:
            self.remarks.append(
                f"{path.name}: the column(s) {', '.join(ignored)} are not taken over: file names and manifests say that"
            )
        about = self._beside(path.with_suffix(".json"))
        faults, seen = list(table.faults), set()
        for row in table.rows:
            if is_absent(row.cells["participant_id"]):
                faults.append(f"line {row.line}: no participant_id")
                continue
            participant = bare_label(row.cells["participant_id"], "sub")
            session = bare_label(row.cells["session_id"], "ses") if by_visit else ""
            if by_visit and is_absent(session):
                session = ""
            who = f"sub-{participant}" + (f"_ses-{session}" if session else "")
            if (participant, session) in seen:
                remedy = (
                    ""
                    if by_visit
                    else (
                        f"; what differs between visits belongs into sub-{participant}/sub-{participant}_sessions.tsv, "
                        "or into rows with a session_id"
                    )
                )
                faults.append(f"line {row.line}: {who} stands twice{remedy}")
                continue
            seen.add((participant, session))
            cells = self._cells(row, about, who)
            if session:
                self._of_visit[participant, session] = cells
            else:
                self._of_participant[participant] = cells
        if faults:
            raise faults_error("table", path.name, faults)

    def take_sessions(self, path: Path, participant: str, root: Path) -> None:
        """Read the visits of one participant; their values hold over those of ``participants.tsv``."""
        table = read_tsv(path, "table", self._known)
        _require_column(table, "session_id")
        about = self._beside(path.with_suffix(".json"), root / "sessions.json")
        ignored = [name for name in RESERVED if name in table.columns and name != "session_id"]
        if ignored:
            self.remarks.append(f"{path.name}: the column(s) {', '.join(ignored)} are not taken over")
        faults, seen = list(table.faults), set()
        for row in table.rows:
            session = bare_label(row.cells["session_id"], "ses")
            if is_absent(session) or session in seen:
                what = "no session_id" if is_absent(session) else f"ses-{session} stands twice"
                faults.append(f"line {row.line}: {what}")
                continue
            seen.add(session)
            cells = self._cells(row, about, f"sub-{participant}_ses-{session}")
            earlier = self._of_visit.get((participant, session), {})
            self._of_visit[participant, session] = {
                **earlier,
                **{column: text for column, text in cells.items() if text or column not in earlier},
            }
        if faults:
            raise faults_error("table", path.name, faults)

    def _beside(self, *paths: Path) -> _Sidecar:
        about = _Sidecar.beside(paths)
        self.remarks += about.remarks
        return about

    def _cells(self, row: TableRow, about: _Sidecar, who: str) -> dict[str, str]:
        cells = {}
        for column, text in row.cells.items():
            if column in RESERVED:
                continue
            self._columns.setdefault(column)
            value, understood = about.value(column, "" if is_absent(text) else text)
            cells[column] = value
            if not understood:
                self._unread.append(Unread(column=column, text=text, who=who))
        return cells


@dataclass(frozen=True, kw_only=True)
class _Sidecar:
    """What the JSON beside a table says about its columns: the unit of the age, what codes of the sex mean."""

    age_unit: str = "year"
    sex_levels: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @classmethod
    def beside(cls, paths: Sequence[Path]) -> _Sidecar:
        """Read the first of some JSON files that says something of a column."""
        columns: dict[str, Any] = {}
        remarks = []
        for path in paths:
            if not os.path.lexists(path):
                continue  # no table needs one
            try:
                content = read_json(path)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else f"it is not valid JSON: {error}"
                remarks.append(
                    f"not read: {path.name}: {why}; ages are taken for years, codes of the sex as written"
                )
                continue
            if isinstance(content, dict):
                columns = {str(name).strip().casefold(): value for name, value in content.items()} | columns
        age, sex = (columns.get(name) for name in ("age", "sex"))
        unit = (
            str(age.get("Units", "year")).strip().casefold().rstrip("s.") if isinstance(age, dict) else "year"
        )
        levels = sex.get("Levels") if isinstance(sex, dict) else None
        return cls(
            age_unit=_UNITS.get(unit, unit),
            sex_levels={str(code): _meaning(text) for code, text in levels.items()}
            if isinstance(levels, dict)
            else {},
            remarks=tuple(remarks),
        )

    def value(self, column: str, text: str) -> tuple[str, bool]:
        """Return a value as this program writes it, and whether it was understood; an age that was not is unknown."""
        if column == "age" and text:
            years = years_or_none(text, self.age_unit)
            return ("" if years is None else f"{years:.6g}"), years is not None
        if column == "sex" and text:
            return sex_of(text, self.sex_levels)
        return text, True


def _meaning(level: object) -> str:
    """Return a level's text; newer sidecars have an object with a description."""
    if isinstance(level, dict):
        level = level.get("Description", "")
    return str(level)


def _require_column(table: Table, key: str) -> None:
    if key not in table.columns:
        what = f"it has {', '.join(table.columns[:8])}" if table.columns else "it is empty"
        raise ManifestError(f"table {table.name} has no column {key}; {'; '.join((what, *table.faults[:1]))}")


def _some_stand_twice(table: Table) -> bool:
    ids = [bare_label(row.cells["participant_id"], "sub") for row in table.rows]
    return len(set(ids)) < len(ids)
