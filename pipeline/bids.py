"""A BIDS directory becomes a list of T1w scans, with what the tables say about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from brainstage.pipeline.account import Account, account_of
from brainstage.pipeline.entities import (
    ENTITY_KEYS,
    BidsEntities,
    bare_label,
    entities_of,
    natural_order,
    parse_name,
    validate_name,
)
from brainstage.pipeline.errors import BidsError, ConfigError, InputMissingError
from brainstage.pipeline.files import read_json
from brainstage.pipeline.people import People, read_people
from brainstage.pipeline.records import Covariates, T1wScan
from brainstage.pipeline.source import followed_places, link_fault
from brainstage.pipeline.t1w_files import find_t1w_files
from brainstage.pipeline.tables import number_or_none

_OTHER_SUFFIXES: Final = frozenset(
    {
        "angio", "asl", "aslcontext", "bold", "boldref", "ct", "dwi", "eeg", "epi", "fdopa", "fieldmap", "flair",
        "fmap", "ieeg", "inplanet2", "inplanet1", "m0scan", "magnitude", "mask", "meg", "megre", "mese", "mp2rage",
        "mtr", "mts", "pd", "pdt2", "pdw", "pet", "phasediff", "roi", "sbref", "t1map", "t1rho", "t2map", "t2star",
        "t2starmap", "t2starw", "t2w", "unit1", "vfa", "xfm",
    }
)  # fmt: skip
"""Other images that a filter file may speak of, in lower case; files of other programs do."""


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
        return all(
            _satisfies(getattr(entities, name), wanted, ENTITY_KEYS[name])
            for name, wanted in self.entities.items()
        )


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
    account : Account
        What became of every participant and file.
    columns : tuple of str
        Columns of the tables beyond the ones that every scan has.
    extra : mapping
        Scan key to the values of `columns`.
    """

    root: Path
    description: Mapping[str, Any]
    scans: tuple[T1wScan, ...]
    account: Account
    columns: tuple[str, ...] = ()
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_dataset(
    root: Path, *, validate: bool = True, label_column: str = "diagnosis", strict_tables: bool = True
) -> Dataset:
    """Find the T1w scans of a BIDS directory.

    Parameters
    ----------
    root : Path
    validate : bool
        Demand a ``dataset_description.json``; without it any directory with BIDS names will do.
    label_column : str
        Column of ``participants.tsv`` or ``sub-*_sessions.tsv`` that holds the class.
    strict_tables : bool
        Refuse tables that cannot be read; see :func:`brainstage.pipeline.people.read_people`.

    Raises
    ------
    InputMissingError
        The directory is absent, may not be read, or holds no T1w scan.
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
    files = find_t1w_files(root)
    description = _read_description(root, validate=validate)
    if not files.participants:
        raise BidsError(f"{root.name or root} holds no sub-* directory, so it is not a BIDS dataset")
    people = read_people(root, files.participants, label_column=label_column, strict=strict_tables)
    found, set_aside = _scans(root, files.files)
    if not found and not set_aside:
        reasons = [
            f"{name}: {why}" for name, why in zip(files.participants, files.why_none, strict=True) if why
        ]
        raise InputMissingError(
            f"{root.name or root} holds no *_T1w.nii or *_T1w.nii.gz under sub-*/[ses-*/]anat/; "
            + "; ".join(reasons[:4])
        )
    first = _first_sessions(found, people)
    described = [_described(scan, people, label_column, first) for scan in found]
    return Dataset(
        root=root,
        description=description,
        scans=tuple(scan for scan, _ in described),
        account=account_of(
            people, files.participants, files.why_none, found, set_aside, files.not_recognised
        ),
        columns=tuple(dict.fromkeys(name for _, row in described for name in row)),
        extra={scan.key: row for scan, row in described},
    )


def read_filter_file(path: Path) -> dict[str, Any]:
    """Read a BIDS filter file: JSON with a ``t1w`` object of entity to label, labels, or null.

    Raises
    ------
    InputMissingError, ConfigError
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise InputMissingError(f"filter file {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"filter file {path.name} is not valid JSON: {error}") from error
    by_suffix = (
        {str(key).casefold(): value for key, value in content.items()} if isinstance(content, dict) else {}
    )
    demands = by_suffix.get("t1w", {} if by_suffix.keys() <= _OTHER_SUFFIXES and by_suffix else None)
    if not isinstance(demands, dict):
        raise ConfigError(
            f'filter file {path.name} must hold an object such as {{"t1w": {{"session": "M00"}}}}; '
            f"it has {', '.join(map(str, content)) if isinstance(content, dict) and content else 'none'}"
        )
    unknown_suffixes = sorted(by_suffix.keys() - _OTHER_SUFFIXES - {"t1w"})
    if unknown_suffixes:
        raise ConfigError(
            f"filter file {path.name}: {unknown_suffixes[0]!r} is no kind of image; what is demanded of T1w scans "
            'stands inside "t1w"'
        )
    attribute_of = {key: name for name, key in ENTITY_KEYS.items()} | {name: name for name in ENTITY_KEYS}
    ignored = {"datatype", "suffix", "extension", "scope"}
    unknown = sorted(set(demands) - set(attribute_of) - ignored)
    if unknown:
        raise ConfigError(
            f"filter file {path.name}: unknown entity {unknown[0]!r}; known are {', '.join(ENTITY_KEYS)}"
        )
    unclear = [name for name, wanted in demands.items() if name in attribute_of and not _is_demand(wanted)]
    if unclear:
        raise ConfigError(
            f"filter file {path.name}: {unclear[0]} is {demands[unclear[0]]!r:.60}; it must be a label, a list of "
            "labels, or null"
        )
    return {attribute_of[name]: wanted for name, wanted in demands.items() if name in attribute_of}


def _is_demand(wanted: object) -> bool:
    labels = wanted if isinstance(wanted, list) else [wanted]
    return all(
        label is None or (isinstance(label, str | int) and not isinstance(label, bool)) for label in labels
    )


_QUERIES: Final[Mapping[str, Callable[[str | None], bool]]] = {
    "Query.NONE": lambda label: label is None,
    "Query.ANY": lambda label: label is not None,
    "Query.REQUIRED": lambda label: label is not None,
    "Query.OPTIONAL": lambda _: True,
}
"""How filter files of other BIDS Apps ask for an entity that is absent, or there."""


def _satisfies(label: str | None, wanted: object, key: str) -> bool:
    if isinstance(wanted, list):
        return any(_satisfies(label, item, key) for item in wanted)
    if isinstance(wanted, str) and wanted in _QUERIES:
        return _QUERIES[wanted](label)
    if wanted is None or label is None:
        return wanted is None and label is None
    if isinstance(wanted, int) and label.isdecimal():  # JSON knows no 01
        return wanted == int(label)
    return bare_label(str(wanted), key) == label


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
        content = read_json(path)
    except (OSError, ValueError) as error:
        if not validate:
            return {}
        raise BidsError(f"dataset_description.json is not readable JSON ({error}); mend it") from error
    if not isinstance(content, dict) or (validate and not {"Name", "BIDSVersion"} <= set(content)):
        raise BidsError("dataset_description.json must be an object with Name and BIDSVersion")
    if validate and content.get("DatasetType") == "derivative":
        raise BidsError("the dataset is a derivative (DatasetType), not raw; give the raw BIDS directory")
    return content


def _scans(root: Path, paths: Sequence[Path]) -> tuple[list[T1wScan], list[tuple[str, str]]]:
    found: dict[BidsEntities, T1wScan] = {}
    set_aside: list[tuple[str, str]] = []
    followed = followed_places(root)
    for path in paths:
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
                entities=entities, path=path, t1w_path=relative, fault=link_fault(path, followed)
            )
    return sorted(found.values(), key=lambda scan: scan.entities.sort_key), set_aside


def _misplaced(entities: BidsEntities, path: Path, root: Path) -> str | None:
    folders = path.relative_to(root).parts[:-2]
    expected = (f"sub-{entities.subject}",) + ((f"ses-{entities.session}",) if entities.session else ())
    return None if folders == expected else f"the name belongs into {'/'.join(expected)}/anat"


_FIXED_COLUMNS: Final = ("age", "sex", "site", "diagnosis")


def _first_sessions(scans: Sequence[T1wScan], people: People) -> dict[str, str]:
    """Return the label of each participant's first session, by numbers in the labels."""
    visits = {(scan.entities.subject, scan.entities.session) for scan in scans} | set(people.of_visit)
    first: dict[str, str] = {}
    for participant, session in visits:
        if session:
            first[participant] = min(first.get(participant, session), session, key=natural_order)
    return first


def _described(
    scan: T1wScan, people: People, label_column: str, first: Mapping[str, str]
) -> tuple[T1wScan, dict[str, str]]:
    subject, session = scan.entities.subject, scan.entities.session
    row = people.about(subject, session, first=first.get(subject) == session)
    extra = {name: text for name, text in row.items() if name not in _FIXED_COLUMNS}
    covariates = Covariates(
        age=number_or_none(row.get("age")),
        sex=row.get("sex") or None,
        site=row.get("site") or None,
        extra=extra,
    )
    # What a broken table says of the visits is not known, and a wrong label is worse than a failed row.
    fault = people.refused.get(subject) if session else None
    return (
        replace(scan, covariates=covariates, label=row.get(label_column) or None, fault=scan.fault or fault),
        extra,
    )
