"""The demonstration's cohort: synthetic heads written as a BIDS dataset.

A table in code: 36 participants, a third each of CN, MCI and AD, whose ventricles widen and whose hippocampi shrink
with the disease, with overlap between neighbouring classes. Two of the files are wrong on purpose, one damaged and
one of another contrast, as real collections have them.

The ``data_manifest.csv`` at the repository's root describes this cohort. After a change here or in
:mod:`brainstage.workflows.synthetic.heads`, raise :data:`GENERATOR_VERSION` and write it anew::

    brainstage demo demo && brainstage manifest demo/bids -o data_manifest.csv
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import nibabel as nib
import numpy as np

from brainstage.pipeline.derivatives import BIDS_VERSION
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.errors import OutputError
from brainstage.pipeline.files import (
    sha256_of_bytes,
    sha256_of_file,
    sha256_of_json,
    write_bytes,
    write_json,
    write_text,
)
from brainstage.pipeline.manifest import ManifestRow
from brainstage.workflows.synthetic.anatomy import HeadAnatomy
from brainstage.workflows.synthetic.heads import Contrast, HeadRecipe, SyntheticHead, load_anatomy, make_head

GENERATOR_VERSION: Final = 2
"""Raised whenever the same table would give other files; files of another version are written anew."""

WRITERS: Final = 2
"""Processes that make heads; each takes 0.8 GB at its peak, and two finish within a minute."""

KEPT_FRACTION: Final = 0.6
"""How much of the damaged file is there: its header is whole, its last slices are missing."""

DATASET_NAME: Final = "brainstage demonstration: synthetic T1w heads"
"""Name in ``dataset_description.json``, by which a demonstration recognises its own dataset."""

RECORD: Final = "code/demo_files.json"
"""What was written before, so that a second demonstration leaves it alone; BIDS keeps ``code/`` free for such."""

Say = Callable[[str], None]
"""Gets one line for the user."""


class Defect(StrEnum):
    """What is wrong with a file on purpose."""

    NONE = "none"
    TRUNCATED = "truncated"
    WRONG_CONTRAST = "wrong_contrast"


@dataclass(frozen=True, kw_only=True)
class Site:
    """How a centre acquires: voxel size along the stored axes, their directions, and the scanner's faults."""

    spacing_mm: tuple[float, float, float]
    axcodes: str
    tilt_deg: float
    bias_sd: float
    noise_fraction: float


SITES: Final[Mapping[str, Site]] = {
    "A": Site(spacing_mm=(2.0, 2.0, 2.0), axcodes="RAS", tilt_deg=0.0, bias_sd=0.08, noise_fraction=0.02),
    "B": Site(spacing_mm=(1.8, 2.0, 2.2), axcodes="LPS", tilt_deg=8.0, bias_sd=0.13, noise_fraction=0.025),
}
"""Both sites saw every class; B stores its images the other way round, and tilts its slices. In voxels of
2 mm hippocampi are found and measured as in those of 1.4 mm, a tenth faster."""


class Participant(NamedTuple):
    """A person of the cohort.

    Attributes
    ----------
    label : str
        Without ``sub-``.
    diagnosis : str
        ``CN``, ``MCI`` or ``AD``, the same at every visit.
    age : float
        Years at the first visit.
    sex, site : str
    ventricle_scale, hippocampus_scale : float
        At the first visit, volume relative to the template's.
    followed : bool
        Came again after twelve months.
    defect : Defect
        Of the file of the first visit.
    """

    label: str
    diagnosis: str
    age: float
    sex: str
    site: str
    ventricle_scale: float
    hippocampus_scale: float
    followed: bool = False
    defect: Defect = Defect.NONE


PARTICIPANTS: Final = (
    Participant("01", "CN", 67.9, "F", "A", 1.35, 1.06),
    Participant("02", "MCI", 84.0, "M", "B", 2.92, 0.78),
    Participant("03", "AD", 75.0, "F", "A", 2.99, 0.71, followed=True),
    Participant("04", "CN", 73.9, "M", "B", 1.17, 0.93, followed=True),
    Participant("05", "MCI", 61.8, "M", "B", 1.79, 0.91),
    Participant("06", "AD", 70.2, "F", "A", 3.23, 0.82),
    Participant("07", "CN", 82.1, "M", "A", 1.88, 1.02),
    Participant("08", "MCI", 64.4, "M", "A", 1.27, 0.94, followed=True),
    Participant("09", "AD", 75.9, "M", "A", 2.91, 0.76),
    Participant("10", "CN", 76.2, "F", "A", 1.34, 0.94),
    Participant("11", "MCI", 78.8, "F", "B", 1.85, 0.87),
    Participant("12", "AD", 81.1, "M", "B", 2.84, 0.72),
    Participant("13", "CN", 79.0, "F", "B", 1.62, 0.99),
    Participant("14", "MCI", 73.9, "F", "B", 1.76, 0.85),
    Participant("15", "AD", 61.2, "F", "B", 2.08, 0.78),
    Participant("16", "CN", 65.4, "F", "B", 1.18, 1.01),
    Participant("17", "MCI", 85.1, "M", "A", 2.73, 0.89),
    Participant("18", "AD", 74.2, "F", "B", 3.21, 0.72),
    Participant("19", "CN", 71.9, "F", "B", 0.99, 1.00),
    Participant("20", "MCI", 80.2, "F", "A", 1.82, 0.78),
    Participant("21", "AD", 81.9, "F", "B", 2.64, 0.75),
    Participant("22", "CN", 62.4, "M", "B", 0.97, 1.01),
    Participant("23", "MCI", 65.9, "F", "B", 1.26, 0.87, defect=Defect.TRUNCATED),
    Participant("24", "AD", 66.1, "M", "A", 1.84, 0.73, defect=Defect.WRONG_CONTRAST),
    Participant("25", "CN", 66.1, "M", "A", 0.96, 1.06),
    Participant("26", "MCI", 70.8, "M", "B", 1.80, 0.92),
    Participant("27", "AD", 87.0, "M", "A", 3.70, 0.74),
    Participant("28", "CN", 86.1, "M", "B", 1.37, 0.87),
    Participant("29", "MCI", 69.7, "F", "A", 1.84, 0.94),
    Participant("30", "AD", 68.1, "M", "B", 2.29, 0.78),
    Participant("31", "CN", 77.7, "M", "A", 1.79, 0.99),
    Participant("32", "MCI", 76.0, "M", "A", 2.18, 0.82),
    Participant("33", "AD", 78.4, "F", "A", 3.65, 0.67),
    Participant("34", "CN", 80.2, "F", "A", 1.52, 0.93),
    Participant("35", "MCI", 75.2, "F", "A", 1.88, 0.87),
    Participant("36", "AD", 72.5, "M", "B", 2.29, 0.82),
)
"""Neighbouring classes overlap: a wide-ventricled old CN lies among the MCI, an early AD beside a late MCI.

Within a class ventricles widen and hippocampi shrink with age. Each class has three people of each site and sex, a
young, a middle and an old one, so that none of these tells the classes apart. Twelve of a class leave ten to compare
with when a file is lost and a person's own visits are put aside: enough for prediction sets at 90 %.
"""

YEARLY_CHANGE: Final[Mapping[str, tuple[float, float]]] = {
    "CN": (1.03, 0.99),
    "MCI": (1.06, 0.97),
    "AD": (1.10, 0.95),
}
"""Factors on ventricles and hippocampi from the first visit to the next. Hippocampi lose 1.4 % a year in controls and
4.7 % in AD (Barnes 2009, 10.1016/j.neurobiolaging.2008.01.010)."""


@dataclass(frozen=True, kw_only=True)
class DemoScan:
    """One scan of the cohort and how to make it.

    Attributes
    ----------
    participant : Participant
    months : int
        Since the first visit; 0 or 12.
    """

    participant: Participant
    months: int

    @property
    def entities(self) -> BidsEntities:
        """Participant and session."""
        return BidsEntities(subject=self.participant.label, session=f"M{self.months:02d}")

    @property
    def t1w_path(self) -> str:
        """Relative to the BIDS directory, with forward slashes."""
        folder = f"sub-{self.entities.subject}/ses-{self.entities.session}/anat"
        return f"{folder}/{self.entities.key}_T1w.nii"

    @property
    def age(self) -> float:
        """Years at this visit."""
        return round(self.participant.age + self.months / 12, 1)

    @property
    def defect(self) -> Defect:
        """What is wrong with the file; follow-up scans are all in order."""
        return self.participant.defect if self.months == 0 else Defect.NONE

    @property
    def recipe(self) -> HeadRecipe:
        """The head behind the file."""
        person, site = self.participant, SITES[self.participant.site]
        years = self.months / 12
        ventricle_change, hippocampus_change = YEARLY_CHANGE[person.diagnosis]
        return HeadRecipe(
            person_seed=int(person.label),
            scan_seed=100 * int(person.label) + self.months,
            ventricle_scale=person.ventricle_scale * ventricle_change**years,
            hippocampus_scale=person.hippocampus_scale * hippocampus_change**years,
            contrast=Contrast.T2W if self.defect is Defect.WRONG_CONTRAST else Contrast.T1W,
            spacing_mm=site.spacing_mm,
            axcodes=site.axcodes,
            tilt_deg=site.tilt_deg,
            bias_sd=site.bias_sd,
            noise_fraction=site.noise_fraction,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the file."""
        return sha256_of_json(
            {"recipe": asdict(self.recipe), "defect": self.defect, "generator": GENERATOR_VERSION}
        )

    def manifest_row(self, sha256: str) -> ManifestRow:
        """Return this scan's row of ``data_manifest.csv``."""
        person = self.participant
        return ManifestRow(
            participant_id=f"sub-{self.entities.subject}",
            session_id=f"ses-{self.entities.session}",
            run_id="",
            t1w_path=self.t1w_path,
            sha256=sha256,
            age=self.age,
            sex=person.sex,
            site=person.site,
            diagnosis=person.diagnosis,
        )


def demo_cohort() -> tuple[DemoScan, ...]:
    """Return the cohort's scans, sorted by participant and session."""
    return tuple(
        DemoScan(participant=person, months=months)
        for person in PARTICIPANTS
        for months in ((0, 12) if person.followed else (0,))
    )


def scan_bytes(anatomy: HeadAnatomy, scan: DemoScan) -> bytes:
    """Return the file of a scan, with its defect if it has one."""
    content = nifti_bytes(make_head(anatomy, scan.recipe))
    return content[: int(KEPT_FRACTION * len(content))] if scan.defect is Defect.TRUNCATED else content


def nifti_bytes(head: SyntheticHead) -> bytes:
    """Return a head as an uncompressed NIfTI-1 file: int16, sform = qform with code 1 (scanner), no free text.

    Uncompressed, because the same voxels compress to other bytes with another zlib.
    """
    voxel_to_ras = head.head.voxel_to_ras
    image = nib.Nifti1Image(np.asarray(head.head.data, dtype=np.int16), voxel_to_ras)
    image.set_sform(voxel_to_ras, code=1)
    image.set_qform(voxel_to_ras, code=1)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def write_demo_bids(bids_dir: Path, say: Say) -> list[ManifestRow]:
    """Write the cohort as a BIDS dataset; files that are already there and right are left alone.

    Parameters
    ----------
    bids_dir : Path
        Made when absent.
    say : callable
        Gets progress, one line each.

    Returns
    -------
    list of ManifestRow
        One per scan, with the sha256 of its file.

    Raises
    ------
    OutputError, StorageError
        When the directory holds anything else, or the file system refuses.
    """
    cohort = demo_cohort()
    _require_own(bids_dir)
    _write_tables(bids_dir, cohort)
    known = _files_in_order(bids_dir, cohort)
    wanting = [scan for scan in cohort if scan.t1w_path not in known]
    if wanting:
        say(f"making {len(wanting)} synthetic heads in {bids_dir}, about a minute")
        known |= _write_heads(bids_dir, wanting)
        record = {
            scan.t1w_path: {"fingerprint": scan.fingerprint, "sha256": known[scan.t1w_path]}
            for scan in cohort
        }
        write_json(bids_dir / RECORD, record)
    else:
        say(f"the {len(cohort)} synthetic heads in {bids_dir} are already there")
    return [scan.manifest_row(known[scan.t1w_path]) for scan in cohort]


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_own(bids_dir: Path) -> None:
    """Raise unless the directory is absent, empty or an earlier demonstration: nobody's data are written over."""
    if not bids_dir.exists() or (bids_dir.is_dir() and not any(bids_dir.iterdir())):
        return
    try:
        name = json.loads((bids_dir / "dataset_description.json").read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != DATASET_NAME:
        raise OutputError(f"{bids_dir} is there and is no earlier demonstration: give another directory")


def _files_in_order(bids_dir: Path, cohort: Sequence[DemoScan]) -> dict[str, str]:
    """Path to sha256 of the files that an earlier demonstration wrote from the same recipes, and that still match."""
    try:
        record = json.loads((bids_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = {}
    for scan in cohort:
        entry = record.get(scan.t1w_path, {})
        path = bids_dir / scan.t1w_path
        if entry.get("fingerprint") == scan.fingerprint and path.is_file():
            sha256 = sha256_of_file(path)
            if sha256 == entry.get("sha256"):
                known[scan.t1w_path] = sha256
    return known


def _write_heads(bids_dir: Path, scans: Sequence[DemoScan]) -> dict[str, str]:
    """Make heads, in processes of their own where there is more than one processor; path to sha256."""
    shares = min(WRITERS, usable_processors(), len(scans))
    if shares == 1:
        return _write_share(bids_dir, tuple(scans))
    known: dict[str, str] = {}
    with ProcessPoolExecutor(shares, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(_write_share, bids_dir, tuple(scans[first::shares])) for first in range(shares)
        ]
        for future in futures:
            known |= future.result()
    return known


def _write_share(bids_dir: Path, scans: tuple[DemoScan, ...]) -> dict[str, str]:
    anatomy = load_anatomy()
    known = {}
    for scan in scans:
        content = scan_bytes(anatomy, scan)
        write_bytes(bids_dir / scan.t1w_path, content)
        known[scan.t1w_path] = sha256_of_bytes(content)
    return known


def _write_tables(bids_dir: Path, cohort: Sequence[DemoScan]) -> None:
    description: dict[str, Any] = {
        "Name": DATASET_NAME,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "Acknowledgements": "Made from the MNI152 nonlinear symmetric 2009a template as nilearn carries it",
        "ReferencesAndLinks": ["https://doi.org/10.1016/S1053-8119(09)70884-5"],
    }
    write_json(bids_dir / "dataset_description.json", description)
    write_text(bids_dir / "README", _README)
    write_text(bids_dir / "participants.tsv", _participants_table())
    write_json(bids_dir / "participants.json", _COLUMN_WORDS)
    for person in PARTICIPANTS:
        if person.followed:
            visits = [scan for scan in cohort if scan.participant == person]
            lines = ["session_id\tage", *(f"ses-{scan.entities.session}\t{scan.age:.1f}" for scan in visits)]
            table = bids_dir / f"sub-{person.label}" / f"sub-{person.label}_sessions.tsv"
            write_text(table, "\n".join(lines) + "\n")
            write_json(table.with_suffix(".json"), {"age": _COLUMN_WORDS["age"]})


def _participants_table() -> str:
    lines = ["participant_id\tage\tsex\tsite\tdiagnosis"]
    lines += [f"sub-{p.label}\t{p.age:.1f}\t{p.sex}\t{p.site}\t{p.diagnosis}" for p in PARTICIPANTS]
    return "\n".join(lines) + "\n"


_COLUMN_WORDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "age": {"Description": "age at the visit, invented", "Units": "year"},
    "sex": {"Description": "sex, invented", "Levels": {"F": "female", "M": "male"}},
    "site": {
        "Description": "simulated scanner",
        "Levels": {"A": "2 mm, RAS", "B": "1.8x2x2.2 mm, LPS, tilted"},
    },
    "diagnosis": {
        "Description": "the class whose atrophy was simulated",
        "Levels": {
            "CN": "cognitively normal",
            "MCI": "mild cognitive impairment",
            "AD": "Alzheimer's disease",
        },
    },
}

_README: Final = """Synthetic T1w heads for demonstrating brainstage.

No person was scanned. Each head is the MNI152 nonlinear symmetric 2009a template with an individual deformation,
ventricles and hippocampi changed by a known amount, tissue painted around the brain, a bias field and noise.
The file of sub-23 is damaged on purpose (truncated), and that of sub-24 shows a T2-like contrast under a T1w name.

The template is copyright of the Montreal Neurological Institute, McGill University, which allows its use, change and
distribution for any purpose without fee as long as this notice stays with it.
"""
