"""Tables that people write by hand, or with a spreadsheet: every line is a row, or is named.

Tab-separated tables are those of BIDS, which know no quotes: one line is one row, whatever a note begins with.
Comma-separated tables follow RFC 4180; a cell of several lines that could hold rows is named, for a quote that is not
closed swallows them.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from brainstage.pipeline.errors import InputMissingError, ManifestError
from brainstage.pipeline.files import read_regular

ABSENT: Final = frozenset(
    {
        "", "-", "--", "---", ".", "?", "n/a", "n.a.", "n.a", "na", "<na>", "#n/a", "nan", "nil", "none", "null",
        "#null!", "unknown", "missing", "<missing>", "not available",
    }
)  # fmt: skip
"""What tables write for an unknown value, in lower case."""
YEARS_IN: Final = {"year": 1.0, "month": 1.0 / 12.0, "week": 7.0 / 365.25, "day": 1.0 / 365.25}
_UNIT_LETTERS: Final = {"y": "year", "m": "month", "w": "week", "d": "day"}
_AGE: Final = re.compile(r"p?(?P<number>[0-9]++(?:[.,][0-9]++)?|[.,][0-9]++)\s*+\+?\s*+(?P<unit>[a-z]*+)\.?")
"""Possessive: a cell of a hundred thousand digits and a letter is refused in one pass, not in their square."""
OLDEST_YEARS: Final = 130.0
_SEXES: Final = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_OTHER_SEXES: Final = frozenset({"o", "other", "x", "d", "diverse", "intersex", "non-binary"})
_MAX_FAULTS_SHOWN: Final = 8


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table.

    Attributes
    ----------
    line : int
        In the file, from 1 on.
    cells : mapping
        Column to text without blanks and quotes around it, for every column of the table.
    """

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, read whole.

    Attributes
    ----------
    name : str
        Of the file.
    columns : tuple of str
        Those that are known by their known names, whatever the case and blanks in the file.
    rows : tuple of TableRow
        Without lines that have no cell filled.
    faults : tuple of str
        Columns that stand twice or have no name, and rows of another length than the header, each with its line.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    faults: tuple[str, ...] = ()


def read_tsv(path: Path, what: str, known: Collection[str], *, may_lack: Collection[str] = ()) -> Table:
    """Read a tab-separated table; a pair of quotes around a cell is taken off, any other quote is text.

    Parameters
    ----------
    path : Path
    what : str
        What the table is, for the messages.
    known : collection of str
        Columns that are recognised in other case and with other blanks, such as ``Participant ID``.
    may_lack : collection of str
        Columns that a line may end before.

    Raises
    ------
    InputMissingError
        It cannot be read.
    ManifestError
        It is no text.
    """
    text = read_table_text(path, what)
    lines = re.split(r"\r\n|\r|\n", text)
    split = [(number, [_bare(cell) for cell in line.split("\t")]) for number, line in enumerate(lines, 1)]
    return _table(path.name, split, known, separator="tab", may_lack=may_lack)


def read_csv(path: Path, what: str, known: Collection[str]) -> Table:
    """Read a comma-separated table; parameters and errors as of :func:`read_tsv`.

    Raises
    ------
    InputMissingError
    ManifestError
        Also for a quote that is not closed. A cell of several lines one of which could be a row is among the faults.
    """
    text = read_table_text(path, what)
    # A lone carriage return ends a line, too, but not within quotes.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    split: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        for cells in reader:
            split.append((begins, [cell.strip() for cell in cells]))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(
            f"{what} {path.name} cannot be read as a table: line {begins}: {error}; is a quote not closed?"
        ) from error
    table = _table(path.name, split, known, separator="comma")
    swallowed = [
        f"line {row.line}: a cell of {column} goes on over other rows; is a quote not closed?"
        for row in table.rows
        for column, cell in row.cells.items()
        if _holds_a_row(cell, len(table.columns))
    ]
    return replace(table, faults=(*table.faults, *swallowed))


def _holds_a_row(cell: str, columns: int) -> bool:
    """Tell whether a line of a cell could be a row of its own."""
    lines = re.split(r"\r\n|\r|\n", cell)[1:]
    return columns > 1 and any(line.count(",") >= columns - 1 for line in lines)


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
        content = read_regular(path)
    except OSError as error:
        raise InputMissingError(f"{what} {path.name} cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{what} {path.name} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ManifestError(
            f"{what} {path.name} holds bytes of value 0, so it is no text, or UTF-16; save it as UTF-8"
        )
    return text


def faults_error(what: str, name: str, faults: Sequence[str]) -> ManifestError:
    """Return the error that lists the faults of a table, the first few of many."""
    shown = "; ".join(faults[:_MAX_FAULTS_SHOWN])
    more = f"; and {len(faults) - _MAX_FAULTS_SHOWN} more" if len(faults) > _MAX_FAULTS_SHOWN else ""
    return ManifestError(f"{what} {name} has {len(faults)} fault(s): {shown}{more}")


def is_absent(text: str | None) -> bool:
    """Tell whether a cell stands for an unknown value.

    >>> is_absent("N/A"), is_absent(" - "), is_absent("0")
    (True, True, False)
    """
    return text is None or text.strip().casefold() in ABSENT


def number_or_none(text: str | None) -> float | None:
    """Return a number from a table cell, with a decimal point or comma; None where it is none.

    >>> number_or_none("71.5"), number_or_none("71,5"), number_or_none("n/a"), number_or_none("1,000.5")
    (71.5, 71.5, None, None)
    """
    plain = (text or "").strip()
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", plain):
        plain = plain.replace(",", ".")
    try:
        # Python also takes 1_000, which no table means as a number.
        value = float(plain) if "_" not in plain else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def years_or_none(text: str | None, unit: str = "year") -> float | None:
    """Return an age in years; None where a cell holds none between 0 and 130.

    Parameters
    ----------
    text : str or None
        Such as ``71.5``, ``71,5``, ``89+`` (which stands for 89 and more, and is read as 89), ``71 years``, ``071Y``.
    unit : str
        Of numbers without one: ``year``, ``month``, ``week`` or ``day``.

    Examples
    --------
    >>> years_or_none("89+"), years_or_none("70,5"), years_or_none("858", "month"), years_or_none("old")
    (89.0, 70.5, 71.5, None)
    """
    match = _AGE.fullmatch((text or "").strip().casefold())
    if match is None:
        return None
    written = match["unit"]
    if written:
        unit = _UNIT_LETTERS.get(written[0], "")
        if written not in (written[0], unit, f"{unit}s", "yr", "yrs", "mo", "mos", "wk", "wks"):
            return None
    if unit not in YEARS_IN:
        return None
    years = float(match["number"].replace(",", ".")) * YEARS_IN[unit]
    return years if years <= OLDEST_YEARS else None


def sex_of(text: str, levels: Mapping[str, str]) -> tuple[str, bool]:
    """Return a sex as ``F`` or ``M``, and whether it was understood; what is not stays as written.

    Parameters
    ----------
    text : str
    levels : mapping
        What the table's sidecar says that codes mean.

    Examples
    --------
    >>> sex_of("female", {}), sex_of("1", {"1": "male"}), sex_of("1", {}), sex_of("other", {})
    (('F', True), ('M', True), ('1', False), ('other', True))
    """
    meaning = levels.get(text, text).strip().casefold()
    found = _SEXES.get(meaning)
    return (found, True) if found else (text, meaning in _OTHER_SEXES)


def known_name(column: str, known: Collection[str]) -> str:
    """Return the known column that a name means, or the name without blanks around it.

    >>> known_name(" Participant ID", ["participant_id"]), known_name("MMSE", ["age"])
    ('participant_id', 'MMSE')
    """
    plain = _folded(column)
    return next((name for name in known if _folded(name) == plain), column.strip())


def _folded(name: str) -> str:
    return re.sub(r"[\s_]+", "_", name.strip()).casefold()


def _bare(cell: str) -> str:
    """Return a cell without blanks and a pair of quotes around it."""
    text = cell.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        inner = text[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"').strip()
    return text


def _table(
    name: str,
    split: Sequence[tuple[int, list[str]]],
    known: Collection[str],
    *,
    separator: str,
    may_lack: Collection[str] = (),
) -> Table:
    filled = [(number, cells) for number, cells in split if any(cells)]
    if not filled:
        return Table(name=name, columns=(), rows=())
    (first, header), rows = filled[0], filled[1:]
    columns = [known_name(column, known) for column in header]
    faults = list(_header_faults(columns, rows, first, separator))
    for number, cells in rows:
        if len(cells) > len(columns) or not set(columns[len(cells) :]) <= set(may_lack):
            how = "more" if len(cells) > len(columns) else "fewer"
            faults.append(
                f"line {number}: {how} cells than columns, {len(cells)} instead of {len(columns)}; a {separator} lies "
                "between two cells"
            )
    named = [place for place, column in enumerate(columns) if column]
    return Table(
        name=name,
        columns=tuple(columns[place] for place in named),
        rows=tuple(
            TableRow(
                line=number,
                cells={columns[place]: cells[place] if place < len(cells) else "" for place in named},
            )
            for number, cells in rows
        ),
        faults=tuple(faults),
    )


def _header_faults(
    columns: Sequence[str], rows: Sequence[tuple[int, list[str]]], line: int, separator: str
) -> Iterator[str]:
    if len(columns) == 1 and re.search(r"[\t;, ]", columns[0]):
        yield f"line {line} has no {separator} in it; columns are separated by a {separator}"
    for column, count in Counter(columns).items():
        if column and count > 1:
            yield f"line {line}: the column {column} stands {count} times"
    for place, column in enumerate(columns):
        # Spreadsheets leave empty columns behind the last; one with a value and without a name is nobody's.
        if not column and any(cells[place] for _, cells in rows if place < len(cells)):
            yield f"line {line}: column {place + 1} has no name, and cells"
