"""What became of every participant, file and label of a dataset, in a few lines."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brainstage.pipeline.people import People, Unread
from brainstage.pipeline.records import T1wScan

ACCOUNT_FILE: Final = "account.json"
"""In the state folder of an output directory: the lines of the last tables that were written."""
SHOWN: Final = 4


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who is in the folders and who in the tables, and what could not be used.

    Attributes
    ----------
    in_folders, in_tables : tuple of str
        Labels without ``sub-``.
    only_in_folders, only_in_tables : mapping
        Label to the likely reason; empty where none is known.
    visits_only_in_tables : mapping
        ``sub-01_ses-1`` to the likely reason.
    without_scan : mapping
        Participant's folder, ``sub-02``, to why no file of it can be used.
    set_aside, not_recognised : tuple of (str, str)
        Relative path and reason: of T1w files that are no scan of this dataset, and of files like T1w images.
    unread : tuple of Unread
    remarks : tuple of str
    """

    in_folders: tuple[str, ...]
    in_tables: tuple[str, ...]
    only_in_folders: Mapping[str, str]
    only_in_tables: Mapping[str, str]
    visits_only_in_tables: Mapping[str, str]
    without_scan: Mapping[str, str]
    set_aside: tuple[tuple[str, str], ...]
    not_recognised: tuple[tuple[str, str], ...]
    unread: tuple[Unread, ...]
    remarks: tuple[str, ...]

    @classmethod
    def of_scans(cls, scans: Iterable[T1wScan], remark: str) -> Account:
        """Return what is left to say where the dataset itself is not there."""
        return cls(
            in_folders=tuple(sorted({scan.entities.subject for scan in scans})),
            in_tables=(),
            only_in_folders={},
            only_in_tables={},
            visits_only_in_tables={},
            without_scan={},
            set_aside=(),
            not_recognised=(),
            unread=(),
            remarks=(remark,),
        )


def account_of(
    people: People,
    folders: Sequence[str],
    why_none: Sequence[str],
    scans: Sequence[T1wScan],
    set_aside: Sequence[tuple[str, str]],
    not_recognised: Sequence[tuple[str, str]],
) -> Account:
    """Compare tables and folders.

    Parameters
    ----------
    people : People
    folders, why_none : sequence of str
        The participants' folders, and why there is no T1w file in them; empty where there is one.
    scans : sequence of T1wScan
    set_aside, not_recognised : sequence of (str, str)
    """
    labels = [name.removeprefix("sub-") for name in folders]
    in_folders, in_tables = set(labels), people.participants
    with_scan = {scan.entities.subject for scan in scans}
    reasons = {path.partition("/")[0]: f"{path}: {reason}" for path, reason in reversed(set_aside)}
    visits = {(scan.entities.subject, scan.entities.session or "") for scan in scans}
    sessions: dict[str, set[str]] = defaultdict(set)
    for participant, session in visits - people.of_visit.keys():
        sessions[participant].add(session)
    return Account(
        in_folders=tuple(sorted(in_folders)),
        in_tables=tuple(sorted(in_tables)),
        only_in_folders=likely_reasons(in_folders - in_tables, in_tables - in_folders),
        only_in_tables=likely_reasons(in_tables - in_folders, in_folders - in_tables),
        visits_only_in_tables={
            f"sub-{participant}_ses-{session}": likely_reasons([session], sessions[participant], "ses-")[
                session
            ]
            for participant, session in sorted(people.of_visit.keys() - visits)
            if participant in with_scan
        },
        without_scan={
            name: reasons.get(name) or why or "no file of it can be used"
            for name, label, why in zip(folders, labels, why_none, strict=True)
            if label not in with_scan
        },
        set_aside=tuple(set_aside),
        not_recognised=tuple(not_recognised),
        unread=people.unread,
        remarks=people.remarks,
    )


def account_lines(account: Account, scans: Iterable[T1wScan], label_column: str = "diagnosis") -> list[str]:
    """Return the account of a dataset in words: a line for each matter, none for what is in order.

    Parameters
    ----------
    account : Account
    scans : iterable of T1wScan
        With the labels that count: those of the tables, or of a manifest.
    label_column : str
    """
    known = list(scans)
    both = len(account.in_folders) - len(account.only_in_folders)
    lines = [
        f"participants: {len(account.in_folders)} in folders, {len(account.in_tables)} in tables, {both} in both"
    ]
    if account.in_tables:
        lines += _listed("in folders only, so that no table describes them", account.only_in_folders, "sub-")
    lines += _listed("in tables only", account.only_in_tables, "sub-")
    lines += _listed("visits in tables only", account.visits_only_in_tables)
    lines += _listed("without a T1w scan that can be used", account.without_scan)
    counts = [f"{len(known)} found"]
    for files, what in ((account.set_aside, "set aside"), (account.not_recognised, "not recognised as T1w")):
        if files:
            counts.append(f"{len(files)} {what}")
    lines.append(f"T1w scans: {', '.join(counts)}")
    lines += [f"  set aside: {path}: {reason}" for path, reason in account.set_aside[:SHOWN]]
    if len(account.set_aside) > SHOWN:
        lines.append(f"  set aside: and {len(account.set_aside) - SHOWN} more")
    lines += _listed("not recognised", dict(account.not_recognised))
    labels = Counter(scan.label for scan in known)
    unknown = labels.pop(None, 0)
    shown = [f"{count} {label}" for label, count in sorted(labels.items(), key=lambda item: str(item[0]))]
    lines.append(f"{label_column} of the scans: {', '.join([*shown, f'{unknown} unknown'])}")
    unread: dict[str, list[Unread]] = defaultdict(list)
    for one in account.unread:
        unread[one.column].append(one)
    for column, cells in unread.items():
        first = ", ".join(f"{cell.text!r} of {cell.who}" for cell in cells[:SHOWN])
        what = "is unknown" if column == "age" else "stays as written"
        lines.append(f"{column} not understood, and {what}: {len(cells)} ({first}{_more(len(cells))})")
    return [*lines, *account.remarks]


def likely_reasons(labels: Collection[str], others: Collection[str], prefix: str = "sub-") -> dict[str, str]:
    """Return why labels may have no counterpart, each by a similar one that has none either; empty where none is.

    >>> likely_reasons(["1", "A02", "9"], ["01", "a02"])
    {'1': 'sub-01 differs by zero padding', '9': '', 'A02': 'sub-a02 differs by upper and lower case'}
    """
    found = dict.fromkeys(sorted(labels), "")
    for what, folded in reversed(_LIKENESSES):
        similar = {folded(other): other for other in sorted(others, reverse=True)}
        for label in found:
            if folded(label) in similar:
                found[label] = f"{prefix}{similar[folded(label)]} differs by {what}"
    return found


def _unpadded(label: str) -> str:
    return re.sub(r"0*([0-9]+)", r"\1", label)


def _without_prefix(label: str) -> str:
    return _unpadded(re.sub(r"^(?:subject|sub|session|ses|s)[-_ ]*(?=[0-9])", "", label.casefold()))


_LIKENESSES: Final = (
    ("zero padding", _unpadded),
    ("upper and lower case", str.casefold),
    ("zero padding and case", lambda label: _unpadded(label.casefold())),
    ("characters that are neither letters nor digits", lambda label: re.sub(r"[\W_]+", "", label.casefold())),
    ("the prefix", _without_prefix),
)


def _listed(what: str, found: Mapping[str, str], prefix: str = "") -> list[str]:
    if not found:
        return []
    first = "; ".join(
        f"{prefix}{name}" + (f" ({reason})" if reason else "") for name, reason in list(found.items())[:SHOWN]
    )
    return [f"  {what}: {len(found)}: {first}{_more(len(found), '; ')}"]


def _more(count: int, separator: str = ", ") -> str:
    return f"{separator}and {count - SHOWN} more" if count > SHOWN else ""
