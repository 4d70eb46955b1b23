"""The labelled scans of a finished run, and which of them a model may learn from."""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from brainstage.models.choices import class_fault
from brainstage.models.covariates import Row, text_of
from brainstage.models.norms import ReferencePerson
from brainstage.models.splits import Person, people
from brainstage.models.volume_model import ScanVolumes, scan_volumes
from brainstage.pipeline.config import NetworkGridConfig
from brainstage.pipeline.derivatives import RESOLUTION_LABELS, STATE_FOLDER, ScanFiles
from brainstage.pipeline.entities import entities_of, parse_name, validate_name
from brainstage.pipeline.errors import InputMissingError, ManifestError, UsageError
from brainstage.pipeline.files import read_json
from brainstage.pipeline.manifest import COLUMNS, ManifestRow, read_manifest
from brainstage.pipeline.records import Review, ReviewDecision
from brainstage.pipeline.review import remarks_of
from brainstage.pipeline.runner import FAILURE_MARKER
from brainstage.pipeline.tables import number_or_none
from brainstage.workflows.measured_volumes import read_volumes
from brainstage.workflows.output_directory import (
    finished_files,
    known_preprocessings,
    own_preprocessing_id,
    own_source_sha256,
)

CLINICAL_ORDER: Final = ("CN", "MCI", "AD")
"""The order these classes are shown in where no other is asked for: by severity, not by alphabet."""
NO_LABEL: Final = "no label"
OTHER_LABEL: Final = "label not among the classes"
NO_OUTPUT: Final = "no preprocessed image"
FAILED: Final = "failed in the last run"
QC_FAILED: Final = "failed quality control"
REVIEW_FAILED: Final = "failed by whoever looked at it"
OTHER_PREPROCESSING: Final = "preprocessed otherwise than most"
_NOT_LABELS: Final = frozenset({"participant_id", "session_id", "run_id", "t1w_path", "sha256", "split"})


@dataclass(frozen=True, kw_only=True)
class LabelledScan:
    """A scan with a class and a preprocessed image."""

    row: ManifestRow
    files: ScanFiles
    label: str


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What a finished run offers for training.

    Attributes
    ----------
    classes : tuple of str
        In the order of every probability vector; empty where the labels are numbers.
    scans : tuple of LabelledScan
        To learn from and cross-validate on, sorted as in the manifest.
    test_scans : tuple of LabelledScan
        Those with ``split == test``; never learnt from.
    left_out : mapping
        Reason to the keys of the scans it applies to.
    preprocessing_id : str
    preprocessing_content : mapping
    columns : tuple of str
        Those of the manifest that a model may look at besides the image: not the label, no name, no path.
    same_person : mapping
        Participant to the one who stands for all that are the same person, where scans have shown it.
    remarks : tuple of str
        Decisions about scans that are not applied, or are bound to no picture.
    """

    classes: tuple[str, ...]
    scans: tuple[LabelledScan, ...]
    test_scans: tuple[LabelledScan, ...]
    left_out: Mapping[str, tuple[str, ...]]
    preprocessing_id: str
    preprocessing_content: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    same_person: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def network_grid(self) -> dict[str, Any]:
        """The network grid's configuration, as plain values."""
        return dict(self.preprocessing_content["network_grid"])

    @property
    def labels(self) -> list[str]:
        """Of the scans to learn from."""
        return [scan.label for scan in self.scans]

    @property
    def numbers(self) -> NDArray[np.float64]:
        """The labels of the scans to learn from where they are numbers, (N,)."""
        return numbers_of(self.scans)

    @property
    def participants(self) -> list[str]:
        """Of the scans to learn from; one name for those who are the same person."""
        return self._participants(self.scans)

    @property
    def test_participants(self) -> list[str]:
        """Of the test scans."""
        return self._participants(self.test_scans)

    @property
    def about(self) -> dict[str, Person]:
        """Age and sex of those whose scans are learnt from, as far as they are known."""
        rows = self.covariates(("sex",))
        return people(
            self.participants, [scan.row.age for scan in self.scans], [text_of(row, "sex") for row in rows]
        )

    def covariates(self, names: Sequence[str], *, test: bool = False) -> list[Row]:
        """Return some columns of the scans to learn from, or of the test scans, as text."""
        scans = self.test_scans if test else self.scans
        return [{name: scan.row.value(name) for name in names} for scan in scans]

    def volumes(self, *, test: bool = False) -> list[ScanVolumes]:
        """Return the volumes of the scans to learn from, or of the test scans.

        With age and sex, but for the one that the label itself is: it would be known from what it is to predict.
        """
        scans = self.test_scans if test else self.scans
        by_age, by_sex = "age" in self.columns, "sex" in self.columns
        return [
            scan_volumes(
                measures_of(one.files),
                one.row.age if by_age else None,
                one.row.value("sex") if by_sex else None,
            )
            for one in scans
        ]

    def _participants(self, scans: Sequence[LabelledScan]) -> list[str]:
        names = [scan.row.participant_id for scan in scans]
        return [self.same_person.get(name, name) for name in names]


def read_cohort(
    out_dir: Path,
    label_column: str,
    classes: Sequence[str] | None,
    *,
    by_split: bool = True,
    decisions: Mapping[str, Review] = MappingProxyType({}),
    preprocessed: str | None = None,
    number: bool = False,
) -> Cohort:
    """Read the labels of a finished run and sort its scans.

    Parameters
    ----------
    out_dir : Path
        The output directory of ``brainstage run``.
    label_column : str
        A column of its ``data_manifest.csv``.
    classes : sequence of str or None
        None takes all labels present.
    by_split : bool
        False takes the scans of every split alike, as a model does that learns from none of them.
    decisions : mapping
        ``t1w_path`` to what a person decided, which stands over quality control where it is about the scan's picture.
    preprocessed : str or None
        The ``preprocessing_id`` that scans are to have, where any has it; otherwise that of most.
    number : bool
        The labels are numbers, not classes.

    Raises
    ------
    InputMissingError
        When there is no such directory, no finished run in it, or no usable scan.
    UsageError
        For an unknown column or class, or a label that is no number where numbers are needed.
    ManifestError
        When a participant is in the training and in the test split.
    """
    rows, preprocessing = read_finished_run(out_dir, preprocessed)
    labels = _labels(rows, label_column, "--target" if number else "--label-column")
    present = sorted({label for label in labels if label})
    chosen = () if number else _chosen_classes(present, classes, label_column)
    left_out: dict[str, list[str]] = defaultdict(list)
    kept: list[LabelledScan] = []
    decided: list[tuple[str, Review, str | None]] = []
    resolution = RESOLUTION_LABELS[preprocessing["content"]["registration"]["resolution_mm"]]
    for row, label in zip(rows, labels, strict=True):
        files = files_of_row(row, out_dir, resolution)
        review = decisions.get(row.t1w_path)
        if review is not None:
            about = own_source_sha256(files) or "", own_preprocessing_id(files) or str(preprocessing["id"])
            decided.append((files.key, review, review.objection(*about)))
            review = None if decided[-1][2] else review
        reason = _objection(files, label, present if number else chosen, review, str(preprocessing["id"]))
        if reason is None and label is not None:
            kept.append(LabelledScan(row=row, files=files, label=label))
        elif reason is not None:
            left_out[reason].append(files.key)
    scans = tuple(scan for scan in kept if not by_split or scan.row.split != "test")
    test_scans = tuple(scan for scan in kept if by_split and scan.row.split == "test")
    _require_apart(scans, test_scans)
    if number:
        _require_numbers(kept, label_column)
    if not scans:
        counts = "; ".join(f"{len(keys)} {reason}" for reason, keys in left_out.items())
        raise InputMissingError(
            f"{out_dir.name} holds no scan to {'learn from' if by_split else 'judge'}: "
            f"{counts or 'all are in the test split'}"
        )
    return Cohort(
        classes=chosen,
        scans=scans,
        test_scans=test_scans,
        left_out={reason: tuple(keys) for reason, keys in left_out.items()},
        preprocessing_id=str(preprocessing["id"]),
        preprocessing_content=preprocessing["content"],
        columns=tuple(name for name in _columns(rows) if name != label_column),
        remarks=tuple(remarks_of(decided)),
    )


def reference_people(cohort: Cohort, label: str) -> list[ReferencePerson]:
    """Return the participants of a class with the volumes, age and sex of their first scan."""
    chosen: dict[str, LabelledScan] = {}
    for scan, person in zip(cohort.scans, cohort.participants, strict=True):
        if scan.label == label:
            chosen.setdefault(person, scan)
    return [
        ReferencePerson(
            measures={name: value for name, value in measures_of(scan.files).items() if value is not None},
            age=scan.row.age,
            sex=scan.row.value("sex"),
        )
        for scan in chosen.values()
    ]


def measures_of(files: ScanFiles) -> Mapping[str, float | None]:
    """Return the volumes of a scan, None for what is withheld; nothing where none were measured."""
    found = read_volumes(files)
    return found.measures if found else {}


def read_finished_run(
    out_dir: Path, preprocessed: str | None = None
) -> tuple[Sequence[ManifestRow], Mapping[str, Any]]:
    """Return the scans of a finished run, and ``id`` and ``content`` of their preprocessing.

    Scans of one output directory may have been preprocessed in several ways: what counts is the record of each.

    Parameters
    ----------
    out_dir : Path
    preprocessed : str or None
        The ``preprocessing_id`` that is asked for, where any scan has it; otherwise that of most scans.

    Raises
    ------
    InputMissingError
        When there is no such directory, or no finished run in it.
    ManifestError
        When what is there is damaged.
    """
    if not out_dir.is_dir():
        raise InputMissingError(
            f"there is no directory {str(out_dir)!r}; it is the output directory of brainstage run"
        )
    rows = _require_run(out_dir / "data_manifest.csv", out_dir, read_manifest)
    last = _require_run(out_dir / STATE_FOLDER / "preprocessing.json", out_dir, _read_preprocessing)
    known = {
        **known_preprocessings(out_dir),
        str(last["id"]): last["content"],
    }
    found = Counter(_own_id(row, out_dir) for row in rows)
    counts = {name: count for name, count in found.items() if name in known}
    if preprocessed in counts:
        return rows, {"id": preprocessed, "content": known[preprocessed]}
    if not counts or counts.get(last["id"], 0) == max(counts.values()):
        return rows, last
    chosen = max(counts, key=lambda name: counts[name])
    return rows, {"id": chosen, "content": known[chosen]}


def _own_id(row: ManifestRow, out_dir: Path) -> str:
    """Return the ``preprocessing_id`` of a finished scan; empty where there is none."""
    files = finished_files(files_of_row(row, out_dir, next(iter(RESOLUTION_LABELS.values()))))
    return (own_preprocessing_id(files) or "") if files.template_t1w.is_file() else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with a space before it, or nothing.

    >>> did_you_mean("cn", ["CN", "AD"])
    " Did you mean 'CN'?"
    """
    by_lower = {text.lower(): text for text in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def _require_run(path: Path, out_dir: Path, read: Any) -> Any:  # noqa: ANN401 - passes on what `read` returns
    if not path.is_file():
        raise InputMissingError(
            f"{out_dir.name} holds no {path.name}: run 'brainstage run BIDS_DIR {out_dir.name}' first"
        )
    return read(path)


def _read_preprocessing(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        resolution_mm = content["content"]["registration"]["resolution_mm"]
        if {"id", "content"} <= content.keys() and resolution_mm in RESOLUTION_LABELS:
            NetworkGridConfig.model_validate(content["content"]["network_grid"])
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # said below
    raise ManifestError(f"{path.name} in {STATE_FOLDER} is damaged: run brainstage run again")


def _columns(rows: Sequence[ManifestRow]) -> list[str]:
    """Return the columns that say something about a person or a scan."""
    extra = {name for row in rows for name in row.extra}
    return sorted((set(COLUMNS) | extra) - _NOT_LABELS)


def _labels(rows: Sequence[ManifestRow], column: str, option: str = "--label-column") -> list[str | None]:
    known = _columns(rows)
    if column not in known:
        kind = "label column" if option == "--label-column" else "column"
        raise UsageError(
            f"{option} {column!r} is no {kind} of data_manifest.csv.{did_you_mean(column, known)} "
            f"It has {', '.join(known)}"
        )
    labels = [row.value(column) for row in rows]
    if not any(labels):
        filled = [name for name in known if any(row.value(name) for row in rows)]
        raise UsageError(
            f"the column {column!r} is empty for every scan; filled are {', '.join(filled) or 'none'}"
        )
    return labels


def numbers_of(scans: Sequence[LabelledScan]) -> NDArray[np.float64]:
    """Return the labels of scans as numbers, (N,) float64; NaN for one that is none."""
    found = [number_or_none(scan.label) for scan in scans]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _require_numbers(scans: Sequence[LabelledScan], column: str) -> None:
    strange = [scan for scan in scans if number_or_none(scan.label) is None]
    if strange:
        raise UsageError(
            f"--target {column}: {len(strange)} of {len(scans)} scans have no number there, such as "
            f"{strange[0].label!r} of {strange[0].files.key}: correct the column, empty these cells, or train classes "
            f"with --label-column {column}"
        )


def _chosen_classes(present: list[str], asked: Sequence[str] | None, column: str) -> tuple[str, ...]:
    for name in asked or present:
        if fault := class_fault(name):
            raise UsageError(
                f"the class {name!r} {fault}; rename it in the column {column}, or choose others with --classes"
            )
    if asked is None:
        clinical = tuple(name for name in CLINICAL_ORDER if name in present)
        return (*clinical, *(name for name in present if name not in clinical))
    if len(set(asked)) != len(asked) or len(asked) < 2:
        raise UsageError(f"--classes {' '.join(asked)}: two or more different names are needed")
    unknown = [name for name in asked if name not in present]
    if unknown:
        raise UsageError(
            f"--classes: no scan has {column} {unknown[0]!r}.{did_you_mean(unknown[0], present)} "
            f"Present are {', '.join(present)}"
        )
    return tuple(asked)


def files_of_row(row: ManifestRow, out_dir: Path, resolution: str) -> ScanFiles:
    """Return where everything about a scan of a run lies.

    Raises
    ------
    ManifestError
        When the row names no T1w scan.
    """
    name = PurePosixPath(row.t1w_path).name
    parsed = parse_name(name)
    if parsed is None or validate_name(parsed):
        raise ManifestError(f"data_manifest.csv names {name!r}, which is no BIDS name of a T1w scan")
    return ScanFiles(out_dir=out_dir, entities=entities_of(parsed), resolution=resolution)


def _objection(
    files: ScanFiles, label: str | None, classes: Sequence[str], review: Review | None, preprocessed: str
) -> str | None:
    """Return why a scan is not learnt from, or None."""
    if not label:
        return NO_LABEL
    if label not in classes:
        return OTHER_LABEL
    finished = finished_files(files)
    if not (
        finished.template_t1w.is_file() and finished.template_mask.is_file() and finished.qc_json.is_file()
    ):
        return NO_OUTPUT
    if os.path.lexists(files.state / f"{FAILURE_MARKER}.json"):
        return FAILED  # its images are those of an earlier file or of other options
    if finished != files or own_preprocessing_id(files) not in (None, preprocessed):
        return OTHER_PREPROCESSING
    try:
        status = read_json(files.qc_json).get("qc_status")
    except (OSError, ValueError, AttributeError):
        return NO_OUTPUT
    if review is not None and review.decision is ReviewDecision.FAIL:
        return REVIEW_FAILED
    passed = review is not None and review.decision is ReviewDecision.PASS
    return QC_FAILED if status == "fail" and not passed else None


def _require_apart(scans: Sequence[LabelledScan], test_scans: Sequence[LabelledScan]) -> None:
    both = {scan.row.participant_id for scan in scans} & {scan.row.participant_id for scan in test_scans}
    if both:
        raise ManifestError(
            f"{len(both)} participant(s) have scans in the test split and outside it, first {min(both)}: "
            "give all scans of a participant the same split"
        )
