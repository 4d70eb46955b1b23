"""Names of what a run writes, and the JSON that stands beside it (BIDS derivatives)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from brainstage import __version__
from brainstage.pipeline.entities import BidsEntities, format_entities
from brainstage.pipeline.files import temporary_name, write_json, write_text

TEMPLATE_SPACE: Final = "MNI152NLin2009aSym"
STATE_FOLDER: Final = ".brainstage"
RESOLUTION_LABELS: Final = {1.0: "1", 1.5: "1p5", 2.0: "2"}
"""Voxel size in mm to the label of ``res-``."""
BIDS_VERSION: Final = "1.10.0"


@dataclass(frozen=True, kw_only=True)
class ScanFiles:
    """Where everything about one scan lies under the output directory.

    Attributes
    ----------
    out_dir : Path
    entities : BidsEntities
    resolution : str
        Label of the template grid: ``1``, ``1p5`` or ``2``.
    """

    out_dir: Path
    entities: BidsEntities
    resolution: str = "1"

    @property
    def key(self) -> str:
        """The scan's name."""
        return self.entities.key

    @property
    def subject_folder(self) -> Path:
        """``sub-01`` or ``sub-01/ses-M00``."""
        folder = self.out_dir / f"sub-{self.entities.subject}"
        return folder / f"ses-{self.entities.session}" if self.entities.session else folder

    @property
    def anat(self) -> Path:
        """Folder of the volumes."""
        return self.subject_folder / "anat"

    @property
    def figures(self) -> Path:
        """Folder of the pictures of the report, shared by the sessions of a participant."""
        return self.out_dir / f"sub-{self.entities.subject}" / "figures"

    def _anat(self, suffix: str, **derived: str) -> Path:
        return self.anat / f"{format_entities(self.entities, **derived)}_{suffix}"

    @property
    def native_t1w(self) -> Path:
        """Bias-corrected head, native space, RAS."""
        return self._anat("T1w.nii.gz", desc="preproc")

    @property
    def native_mask(self) -> Path:
        """Brain mask, native space."""
        return self._anat("mask.nii.gz", desc="brain")

    @property
    def template_t1w(self) -> Path:
        """Stripped, normalised brain in template space."""
        return self._anat("T1w.nii.gz", space=TEMPLATE_SPACE, res=self.resolution, desc="preproc")

    @property
    def template_mask(self) -> Path:
        """Brain mask in template space."""
        return self._anat("mask.nii.gz", space=TEMPLATE_SPACE, res=self.resolution, desc="brain")

    @property
    def native_to_template(self) -> Path:
        """Transform that carries native images to the template."""
        return self._anat("xfm.h5", from_="T1w", to=TEMPLATE_SPACE, mode="image")

    @property
    def template_to_native(self) -> Path:
        """Transform that carries template images to native space."""
        return self._anat("xfm.h5", from_=TEMPLATE_SPACE, to="T1w", mode="image")

    @property
    def qc_json(self) -> Path:
        """QC measures and verdict."""
        return self.anat / f"{format_entities(self.entities, desc='qc')}.json"

    @property
    def labels(self) -> Path:
        """Hippocampi, ventricles and tissues as labels, native space."""
        return self._anat("dseg.nii.gz", desc="volumes")

    @property
    def label_names(self) -> Path:
        """What the labels are called (BIDS)."""
        return self._anat("dseg.tsv", desc="volumes")

    def evidence_map(self, method: str, *, native: bool = False) -> Path:
        """Return the path of a map of what a prediction rests on, in template or in native space."""
        return self._anat("map.nii.gz", space="T1w" if native else TEMPLATE_SPACE, desc=method)

    def evidence_regions(self, method: str) -> Path:
        """Return the path of the table of regions of such a map."""
        return self.anat / f"{format_entities(self.entities, desc=method)}_regions.json"

    @property
    def volume_evidence(self) -> Path:
        """What each volume adds to a prediction."""
        return self.anat / f"{format_entities(self.entities, desc='volumes')}_evidence.json"

    def figure(self, name: str) -> Path:
        """Return the path of a picture of the report, such as ``bias_field``; a BIDS label has no underscore."""
        return self.figures / f"{format_entities(self.entities, desc=name.replace('_', ''))}_T1w.png"

    def preview(self, name: str) -> Path:
        """Return the path of a small volume of the report's viewer, such as ``native_mask``."""
        return self.figures / f"{format_entities(self.entities, desc=name.replace('_', ''))}_T1w.nii.gz"

    @property
    def report(self) -> Path:
        """The scan's report, at the top of the output directory."""
        return self.out_dir / f"{self.key}.html"

    @cached_property
    def state(self) -> Path:
        """Folder of the stage markers and small intermediate results."""
        return self.out_dir / STATE_FOLDER / self.key

    @property
    def longest_name(self) -> int:
        """Length of the longest name of a file that a scan may get, unfinished ones included."""
        names = (
            self.template_t1w.name,
            self.native_to_template.name,
            self.evidence_map("linearBrightness").name,
        )
        return max(len(temporary_name(name)) for name in names)

    def relative(self, path: Path) -> str:
        """Return `path` relative to the output directory, with forward slashes."""
        return path.relative_to(self.out_dir).as_posix()


def sidecar_of(image: Path) -> Path:
    """Return the JSON that stands beside a NIfTI file.

    >>> sidecar_of(Path("a_T1w.nii.gz")).name
    'a_T1w.json'
    """
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_dataset_description(out_dir: Path, bids_dir: Path, source: Mapping[str, Any]) -> None:
    """Write ``dataset_description.json`` and ``.bidsignore``.

    Parameters
    ----------
    out_dir, bids_dir : Path
    source : mapping
        The source dataset's own description; only its name and DOI are carried over.
    """
    description: dict[str, Any] = {
        "Name": f"brainstage derivatives of {source.get('Name') or 'a BIDS dataset'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "brainstage",
                "Version": __version__,
                "Description": "Skull stripping, bias correction, normalisation, MNI registration, quality control "
                "and prediction for T1w MRI. For research, not for diagnosis.",
            }
        ],
        "SourceDatasets": [
            {"DOI": str(source["DatasetDOI"])} if source.get("DatasetDOI") else {"URL": "bids:raw:"}
        ],
        "DatasetLinks": _dataset_links(out_dir, bids_dir),
    }
    write_json(out_dir / "dataset_description.json", description)
    write_text(
        out_dir / ".bidsignore",
        f"{STATE_FOLDER}/\nlogs/\n*.html\nmethods.md\n*.csv\n**/figures/\n*_desc-qc.json\n*_xfm.h5\n*_map.*\n*_regions.json\n",
    )


_MAX_LEVELS_UP: Final = 3


def _dataset_links(out_dir: Path, bids_dir: Path) -> dict[str, str]:
    """Link to the raw data by a short relative path; a long one would describe this machine."""
    relative = Path(os.path.relpath(bids_dir.resolve(), out_dir.resolve()))
    return {"raw": relative.as_posix()} if relative.parts.count("..") <= _MAX_LEVELS_UP else {}
