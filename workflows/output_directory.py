"""What an output directory knows of itself: whose it is, which dataset it belongs to, and its scans.

``.brainstage/output.json`` says which dataset was last run into it, by name and by hashes, and which version made it.
``.brainstage/scans.json`` describes every scan that any command has begun there, so that tables can be written without
the raw data, and finished scans stay in them whichever scans a later command selects.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from brainstage import __version__
from brainstage.pipeline.account import Account
from brainstage.pipeline.bids import Dataset
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, STATE_FOLDER, ScanFiles, sidecar_of
from brainstage.pipeline.entities import BidsEntities, entities_of, parse_name, validate_name
from brainstage.pipeline.errors import BrainstageError, ManifestError, OutputError
from brainstage.pipeline.files import (
    read_json_or_empty,
    sha256_of_bytes,
    sha256_of_json,
    write_json,
)
from brainstage.pipeline.kept import as_record
from brainstage.pipeline.lease import waited_for
from brainstage.pipeline.records import Covariates, T1wScan
from brainstage.pipeline.source import sha256_of_source
from brainstage.pipeline.stage import source_sha256

Say = Callable[[str], None]

OUTPUT_FILE: Final = "output.json"
SCANS_FILE: Final = "scans.json"
PREPROCESSINGS_FILE: Final = "preprocessings.json"
"""Every ``preprocessing_id`` that was used in the directory, and what it stands for."""
NOTES_LEASE: Final = "scans-lease.json"
"""Held while one of these files is read, added to and written."""
PREPROCESSING_FILE: Final = "preprocessing.json"
"""In the state folder of a scan: its own."""
NAME_FILE: Final = "name.json"
"""A random name: what a browser keeps for this directory shows in no other."""
COMPARED: Final = 3
"""Files whose content is compared where a dataset has moved or its description has changed."""
HARMLESS: Final = frozenset({"Thumbs.db", "lost+found"})
"""What may lie in a directory that counts as empty, beside hidden files, such as those of git and DataLad."""


def require_ours(out_dir: Path) -> None:
    """Refuse a directory that is not empty and was not made by this program.

    Raises
    ------
    OutputError
    """
    if (out_dir / STATE_FOLDER).is_dir():
        return
    try:
        inside = [path.name for path in out_dir.iterdir() if not path.name.startswith(".")]
    except OSError:
        return  # not there yet, or not to be read, which is said where it is written to
    makers = read_json_or_empty(out_dir / "dataset_description.json").get("GeneratedBy")
    if isinstance(makers, list) and {"brainstage"} == {
        maker.get("Name") for maker in makers if isinstance(maker, dict)
    }:
        return  # a copy without its state
    inside = sorted(set(inside) - HARMLESS)
    # Looked at again: another run may have begun the directory between the first look and the second.
    if inside and not (out_dir / STATE_FOLDER).is_dir():
        raise OutputError(
            f"{out_dir.name or out_dir} holds something that brainstage did not make ({inside[0]}), and would be "
            "written over; choose an empty or a new directory, such as BIDS_DIR/derivatives/brainstage"
        )


def require_same_dataset(out_dir: Path, dataset: Dataset, *, other_is_meant: bool) -> None:
    """Refuse a dataset that is not the one an output directory belongs to.

    A dataset is the same where place and description are, or else where the scans that both have hold the same bytes;
    a directory that has no scan in common with it belongs to another one.

    Parameters
    ----------
    out_dir : Path
    dataset : Dataset
    other_is_meant : bool
        The directory is to take it nevertheless; scans of the same name are made anew, all others stay.

    Raises
    ------
    ManifestError
    """
    known = read_json_or_empty(out_dir / STATE_FOLDER / OUTPUT_FILE).get("dataset")
    if other_is_meant or not isinstance(known, dict):
        return
    here = _identity(dataset)
    if known.get("place") == here["place"] and known.get("description_sha256") == here["description_sha256"]:
        return
    compared = _same_bytes(out_dir, dataset)
    if compared is None and not _has_sources(out_dir):
        return  # nothing was made yet that could be taken for this dataset's
    if not compared:
        why = (
            "a scan of the same name has another content"
            if compared is False
            else "no scan of it is the same"
        )
        raise ManifestError(
            f"{out_dir.name} belongs to the dataset {known.get('name') or 'without a name'!r}, and this is another "
            f"one, {here['name'] or 'without a name'!r}: {why}. Choose another OUT_DIR; or, where the dataset itself "
            "was changed or joined with another one, give --accept-dataset"
        )


def note_dataset(out_dir: Path, dataset: Dataset, say: Say = lambda _: None) -> None:
    """Keep which dataset a directory belongs to, and the scans that a run is about; those of earlier runs stay.

    Parameters
    ----------
    out_dir : Path
    dataset : Dataset
        With those scans.
    say : callable
        Told when another run is waited for.
    """
    with waited_for(out_dir / STATE_FOLDER / NOTES_LEASE, say):
        _note_dataset(out_dir / STATE_FOLDER, dataset)


def _note_dataset(state: Path, dataset: Dataset) -> None:
    identity = _identity(dataset)
    earlier = read_json_or_empty(state / OUTPUT_FILE)
    if earlier.get("dataset") != identity or earlier.get("made_by") != __version__:
        write_json(state / OUTPUT_FILE, {"made_by": __version__, "dataset": identity})
    known = read_json_or_empty(state / SCANS_FILE)
    described = {scan.key: _description(scan) for scan in dataset.scans}
    earlier_scans = known.get("descriptions", {})
    if earlier_scans == described:
        return
    scans = {key: earlier_scans[key] for key in _described_scans(known)} | described
    if known.get("descriptions") != scans:
        names = sorted({*scans, *_names(known)})
        write_json(state / SCANS_FILE, {"scans": names, "descriptions": scans})


def note_preprocessing(
    out_dir: Path, identifier: str, content: Mapping[str, Any], say: Say = lambda _: None
) -> None:
    """Keep what a ``preprocessing_id`` stands for, beside those of earlier runs; `say` as for the dataset."""
    path = out_dir / STATE_FOLDER / PREPROCESSINGS_FILE
    if identifier in known_preprocessings(out_dir):
        return
    with waited_for(out_dir / STATE_FOLDER / NOTES_LEASE, say):
        known = known_preprocessings(out_dir)
        write_json(path, {**known, identifier: dict(content)})


def known_preprocessings(out_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what the ``preprocessing_id`` of every run into an output directory stands for."""
    known = read_json_or_empty(out_dir / STATE_FOLDER / PREPROCESSINGS_FILE)
    return {name: content for name, content in known.items() if isinstance(content, dict)}


def last_sha256(files: ScanFiles) -> str | None:
    """Return the hash of a scan's file when it was last read; None where it is not known."""
    found = read_json_or_empty(files.state / "source.json").get("sha256")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def planned_scans(out_dir: Path) -> tuple[str, ...]:
    """Return the names of all scans that any run into an output directory was about."""
    return _names(read_json_or_empty(out_dir / STATE_FOLDER / SCANS_FILE))


def scans_of(out_dir: Path) -> tuple[T1wScan, ...]:
    """Return every scan that any command has begun in an output directory, with what was known about it then."""
    return tuple(_described_scans(read_json_or_empty(out_dir / STATE_FOLDER / SCANS_FILE)).values())


def dataset_of(out_dir: Path) -> Dataset | None:
    """Return the dataset of an output directory as it was last seen; None where no run has begun."""
    known = read_json_or_empty(out_dir / STATE_FOLDER / OUTPUT_FILE).get("dataset")
    scans = scans_of(out_dir)
    if not isinstance(known, dict) or not scans:
        return None
    return with_scans(
        Dataset(
            root=out_dir,
            description={"Name": known.get("name") or ""},
            scans=(),
            account=Account.of_scans(scans, "the dataset is not there: this is what earlier runs saw of it"),
        ),
        scans,
    )


def with_scans(dataset: Dataset, scans: Sequence[T1wScan]) -> Dataset:
    """Return a dataset with further scans, in order; those that it has stay as they are."""
    present = {scan.key for scan in dataset.scans}
    added = [scan for scan in scans if scan.key not in present]
    if not added:
        return dataset
    extra = {**dataset.extra, **{scan.key: scan.covariates.extra for scan in added}}
    return replace(
        dataset,
        scans=tuple(sorted((*dataset.scans, *added), key=lambda scan: scan.entities.sort_key)),
        columns=tuple(dict.fromkeys(name for row in extra.values() for name in row)),
        extra=extra,
    )


def finished_files(files: ScanFiles) -> ScanFiles:
    """Return the files of a scan on the template grid that it was brought to, whichever a command asks for."""
    grids = (replace(files, resolution=label) for label in RESOLUTION_LABELS.values())
    if files.template_t1w.is_file():
        return files
    return next((other for other in grids if other.template_t1w.is_file()), files)


def own_preprocessing_id(files: ScanFiles) -> str | None:
    """Return the ``preprocessing_id`` that a scan was last brought through the chain with; None where none is kept."""
    kept = read_json_or_empty(files.state / PREPROCESSING_FILE).get("id")
    found = kept or read_json_or_empty(sidecar_of(files.template_t1w)).get("PreprocessingId")
    return str(found) if found else None


def own_name(out_dir: Path) -> str:
    """Return a random name that no other output directory has, made when it is first asked for."""
    path = out_dir / STATE_FOLDER / NAME_FILE
    found = read_json_or_empty(path).get("name")
    if isinstance(found, str) and found:
        return found
    name = secrets.token_hex(8)
    write_json(path, {"name": name})
    return name


def own_source_sha256(files: ScanFiles) -> str | None:
    """Return the hash of the file that the pictures of a scan show; None where they are not of one piece."""
    return source_sha256(files, "figures")


def keep_preprocessing_id(files: ScanFiles, identifier: str) -> None:
    """Keep with what ``preprocessing_id`` a scan was brought through the chain."""
    path = files.state / PREPROCESSING_FILE
    if read_json_or_empty(path).get("id") != identifier:
        write_json(path, {"id": identifier})


def _identity(dataset: Dataset) -> dict[str, str]:
    """Return a dataset's name, and hashes of its description and of where it lies, which name no folder."""
    return {
        "name": str(dataset.description.get("Name") or ""),
        "description_sha256": sha256_of_json(dataset.description),
        "place": sha256_of_bytes(os.fsencode(dataset.root.resolve())),
    }


def _same_bytes(out_dir: Path, dataset: Dataset) -> bool | None:
    """Tell whether the scans that directory and dataset have in common hold the same bytes; None without any."""
    compared = 0
    for scan in dataset.scans:
        files = ScanFiles(out_dir=out_dir, entities=scan.entities)
        expected = last_sha256(files)
        if expected is None or scan.fault:
            continue
        try:
            if sha256_of_source(scan.path, scan.root) != expected:
                return False
        except BrainstageError:
            continue  # a file that cannot be read says nothing
        compared += 1
        if compared == COMPARED:
            break
    return True if compared else None


def _has_sources(out_dir: Path) -> bool:
    """Tell whether any scan of the directory was read, so that its content is known."""
    return next((out_dir / STATE_FOLDER).glob("sub-*/source.json"), None) is not None


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What is kept of a scan."""

    t1w_path: str
    age: float | None
    sex: str | None
    site: str | None
    extra: Mapping[str, str]
    label: str | None
    split: str


def _description(scan: T1wScan) -> dict[str, Any]:
    covariates = scan.covariates
    return asdict(
        _Description(
            t1w_path=scan.t1w_path,
            age=covariates.age,
            sex=covariates.sex,
            site=covariates.site,
            extra=dict(covariates.extra),
            label=scan.label,
            split=scan.split,
        )
    )


def _names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of scans in ``scans.json``; what was altered until it is none is left out."""
    found = content.get("scans")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    return tuple(name for name in names if _entities(f"{name}_T1w.nii") is not None)


def _described_scans(content: Mapping[str, Any]) -> dict[str, T1wScan]:
    """Return the scans in ``scans.json``, by name; one whose description was altered until it is none is left out."""
    found = content.get("descriptions")
    scans = {key: _scan(one) for key, one in found.items()} if isinstance(found, dict) else {}
    return {key: scan for key, scan in scans.items() if scan is not None and scan.key == key}


def _scan(description: object) -> T1wScan | None:
    """Return a scan as it was described; None where a file was altered."""
    try:
        known = as_record(description, _Description)
    except ValueError:
        return None
    entities = _entities(known.t1w_path.rpartition("/")[2])
    if entities is None:
        return None
    return T1wScan(
        entities=entities,
        path=Path(known.t1w_path),
        t1w_path=known.t1w_path,
        covariates=Covariates(age=known.age, sex=known.sex, site=known.site, extra=known.extra),
        label=known.label,
        split=known.split,
    )


def _entities(name: str) -> BidsEntities | None:
    parsed = parse_name(name)
    return None if parsed is None or validate_name(parsed) else entities_of(parsed)
