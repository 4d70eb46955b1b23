"""The volumes of a scan as they are kept, and as they may be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.kept import read_record
from brainstage.pipeline.records import BrainVolumes, Failure, QcStatus, SubjectOutcome, VolumesStatus

VOLUMES_RECORD: Final = "volumes_result.json"
FAILED: Final = "failed"
QC_FAILED: Final = "qc_failed"
NOT_MEASURED: Final = "not_measured"


@dataclass(frozen=True, kw_only=True)
class ShownVolumes:
    """What may be shown of a scan's volumes.

    Attributes
    ----------
    status : str
        A ``VolumesStatus``, or ``failed``.
    reasons : tuple of str
        Why something is withheld.
    measures : mapping
        Every number by its column; None where it is withheld, nothing at all where the scan failed quality control.
    volumes_ml : mapping
        Of those that are there.
    atlas_ml : mapping
        Region of the user's atlas to millilitres.
    """

    status: str
    reasons: tuple[str, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    atlas_ml: Mapping[str, float] = field(default_factory=dict)


def read_volumes(files: ScanFiles) -> BrainVolumes | None:
    """Return the volumes kept for a scan; None when there are none, or ones that cannot be understood."""
    return read_record(files.state / VOLUMES_RECORD, BrainVolumes)


def shown_volumes(outcome: SubjectOutcome) -> ShownVolumes:
    """Return what may be shown of a scan: nothing where quality control, or whoever looked, failed it."""
    if isinstance(outcome, Failure):
        return ShownVolumes(status=FAILED, reasons=(FAILED,))
    if outcome.verdict.status is QcStatus.FAIL:
        return ShownVolumes(status=str(VolumesStatus.WITHHELD), reasons=(QC_FAILED,))
    found = outcome.volumes
    if found is None:
        return ShownVolumes(status=str(VolumesStatus.WITHHELD), reasons=(NOT_MEASURED,))
    return ShownVolumes(
        status=str(found.status),
        reasons=found.reasons,
        measures=found.measures,
        volumes_ml={name: ml for name, ml in found.volumes_ml.items() if ml is not None},
        atlas_ml=found.atlas_ml,
    )
