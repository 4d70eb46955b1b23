"""Whether any row or participant of a generated table is lost or altered in silence.

Run it::

    .venv/bin/python benchmarks/tables.py [--tables 10000]

Hypothesis makes BIDS directories with tables as people write them: ids with and without prefix and zeros, marks of
absence, quotes, missing and surplus cells, rows of visits, other line ends. Each is read, and what is read is compared
with what was written, by a reader of a few lines that knows nothing of this program. The counts go to
``benchmarks/tables.md``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainstage.pipeline.bids import Dataset, read_dataset
from brainstage.pipeline.errors import ManifestError

FOLDER: Final = Path(__file__).parent
ABSENT: Final = ("", "n/a", "-", ".", "unknown", "NaN", "None")
LABELS: Final = ("CN", "AD", "mild MCI", "-x", '"odd', '"CN"', "a;b", "0")
IDS: Final = ("01", "1", "02", "2", "003", "a1", "A1")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A generated dataset.

    Attributes
    ----------
    folders : tuple of str
        Labels of the participants' folders.
    rows : tuple of tuple of str
        Cells of each line below the header, as written.
    by_visit : bool
        There is a column ``session_id``.
    end : str
        Of a line.
    """

    folders: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    by_visit: bool
    end: str

    @property
    def header(self) -> tuple[str, ...]:
        """The columns."""
        return ("participant_id", *(["session_id"] if self.by_visit else []), "diagnosis")

    def write(self, root: Path) -> None:
        """Write the dataset; every participant has two visits where rows are of visits."""
        root.mkdir()
        (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.8.0"}')
        for label in self.folders:
            for session in ("1", "2") if self.by_visit else ("",):
                place = root / f"sub-{label}" / (f"ses-{session}" if session else "") / "anat"
                place.mkdir(parents=True)
                (place / f"sub-{label}{f'_ses-{session}' if session else ''}_T1w.nii").touch()
        text = self.end.join("\t".join(cells) for cells in (self.header, *self.rows))
        (root / "participants.tsv").write_bytes((text + self.end).encode())


@st.composite
def datasets(draw: st.DrawFn) -> Made:
    """Return a strategy for datasets; about half of the tables have a fault."""
    by_visit = draw(st.booleans())
    folders = draw(st.sets(st.sampled_from(IDS), min_size=1, max_size=5))
    values = st.sampled_from((*LABELS, *ABSENT))
    prefix = st.sampled_from(("", "sub-"))
    ids = st.sampled_from(IDS)
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        cells = [draw(prefix) + draw(ids)]
        if by_visit:
            cells.append(draw(st.sampled_from(("", "ses-"))) + draw(st.sampled_from(("1", "2", "3"))))
        cells.append(draw(values))
        fault = draw(st.sampled_from((None,) * 12 + ("short", "long", "nobody", "blank")))
        if fault == "short":
            cells = cells[:-1]
        elif fault == "long":
            cells.append(draw(values))
        elif fault == "nobody":
            cells[0] = draw(st.sampled_from(ABSENT))
        elif fault == "blank":
            cells = [""] * len(cells)
        rows.append(tuple(cells))
    return Made(
        folders=tuple(sorted(folders)),
        rows=tuple(rows),
        by_visit=by_visit,
        end=draw(st.sampled_from(("\n", "\r\n", "\r"))),
    )


def judged(made: Made, root: Path) -> str:
    """Read a generated dataset; return what became of its table, after making sure that it is right.

    Raises
    ------
    AssertionError
        Where a row or a participant is lost, counted twice, or altered.
    """
    made.write(root)
    faulty, said = _as_written(made)
    try:
        dataset = read_dataset(root)
    except ManifestError as error:
        _require(faulty, made, error.message)
        first = min(faulty)
        _require(f"line {first}" in error.message, made, error.message)
        return "refused, with its lines"
    _require(not faulty, made)
    _require_all_accounted(made, dataset, said)
    return "matched in part" if dataset.account.only_in_tables else "matched"


def _as_written(made: Made) -> tuple[set[int], dict[tuple[str, str], str]]:
    """Return the lines at fault, and what the others say of each participant and visit."""
    faulty: set[int] = set()
    said: dict[tuple[str, str], str] = {}
    filled = [(line, cells) for line, cells in enumerate(made.rows, 2) if any(map(_bare, cells))]
    ids = [_bare(cells[0]).removeprefix("sub-") for _, cells in filled]
    visits = made.by_visit and len(set(ids)) < len(ids)
    for line, cells in filled:
        if len(cells) != len(made.header):
            faulty.add(line)
            cells = (*cells, "")[: len(made.header)]
        person = _bare(cells[0]).removeprefix("sub-")
        session = _bare(cells[1]).removeprefix("ses-") if visits else ""
        if person.casefold() in {text.casefold() for text in ABSENT} or (person, session) in said:
            faulty.add(line)
            continue
        label = _bare(cells[-1])
        said[person, session] = "" if label.casefold() in {text.casefold() for text in ABSENT} else label
    return faulty, said


def _bare(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _require(right: bool, made: Made, *found: str) -> None:
    if not right:
        raise AssertionError((made, found))


def _require_all_accounted(made: Made, dataset: Dataset, said: dict[tuple[str, str], str]) -> None:
    account = dataset.account
    folders, people = set(made.folders), {person for person, _ in said}
    _require(set(account.in_folders) == folders, made)
    _require(set(account.in_tables) == people, made)
    _require(set(account.only_in_folders) == folders - people, made)
    _require(set(account.only_in_tables) == people - folders, made)
    scans = {(scan.entities.subject, scan.entities.session or ""): scan.label or "" for scan in dataset.scans}
    _require(len(scans) == len(folders) * (2 if made.by_visit else 1), made)
    by_visit = any(session for _, session in said)
    for (person, session), label in scans.items():
        expected = said.get((person, session if by_visit else ""), "")
        _require(label == expected, made, person, session, label)
    lost = {f"sub-{p}_ses-{s}" for p, s in said if s and p in folders and (p, s) not in scans}
    _require(set(account.visits_only_in_tables) == lost, made)


def table_of(counts: Counter[str]) -> str:
    """Return the counts as Markdown."""
    lines = [
        "# Generated tables",
        "",
        f"Made by `benchmarks/tables.py`: {counts.total()} tables of participants and visits, each with its folders.",
        "Every row and participant was in exactly one of matched, in one place only, and refused with its line; no",
        "label was altered.",
        "",
        "| what became of the table | tables |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {what} | {count} |" for what, count in counts.most_common()), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", type=int, default=10_000)
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="brainstage-tables-"))

    @settings(
        max_examples=options.tables, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(made=datasets())
    def every_table(made: Made) -> None:
        root = folder / "bids"
        shutil.rmtree(root, ignore_errors=True)
        counts[judged(made, root)] += 1

    try:
        every_table()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = table_of(counts)
    print(table)
    (FOLDER / "tables.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
